//! Two guests on two sockets of a running switch that connects them (two queue pairs): compares bytes, or measures.
//!
//! `pair check SOCKET0 SOCKET1` sends frames of all sizes both ways, through chains, indirect tables, event index and
//! odd bases, split and packed rings, and compares every byte; features that the switch does not offer are skipped.
//! `pair rate SOCKET0 SOCKET1 [FRAME_LEN [FLOWS [TRIALS [packed]]]]` sends from the first to the second and prints
//! Mpps, for each choice of what the transmitter writes. Pin it: `taskset -c 0`.

use crosspoint_guest::net::features::{EVENT_IDX, IN_ORDER, INDIRECT_DESC, MQ, MRG_RXBUF};
use crosspoint_guest::{
    ChainSplit, Guest, GuestError, GuestOptions, TxPumpOptions, TxWrites, VirtioNetHdr,
};
use std::time::{Duration, Instant};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, default: u32| {
        arguments
            .get(i)
            .map_or(Ok(default), |argument| argument.parse())
    };
    match arguments.first().map(String::as_str) {
        Some("check") if arguments.len() == 3 => check(&arguments[1], &arguments[2]),
        Some("rate") if arguments.len() >= 3 => rate(
            &arguments[1],
            &arguments[2],
            number(3, 60)? as usize,
            number(4, 1)?,
            number(5, 5)?,
            arguments
                .get(6)
                .is_some_and(|argument| argument == "packed"),
        ),
        _ => Err(
            "usage: pair check|rate SOCKET0 SOCKET1 [FRAME_LEN [FLOWS [TRIALS [packed]]]]".into(),
        ),
    }
}

fn check(path0: &str, path1: &str) -> Result<()> {
    let modern = GuestOptions::default();
    let cases = [
        ("single descriptors", modern.clone()),
        (
            "header apart",
            GuestOptions {
                tx_split: ChainSplit::HeaderApart,
                ..modern.clone()
            },
        ),
        (
            "pieces of 500, base 65500, three regions",
            GuestOptions {
                tx_split: ChainSplit::Pieces(500),
                base: 65_500,
                region_bases: vec![0, 1 << 32, 1 << 40],
                ..modern.clone()
            },
        ),
        (
            "indirect tables, event index",
            GuestOptions {
                features: modern.features | INDIRECT_DESC | EVENT_IDX,
                tx_split: ChainSplit::Pieces(100),
                indirect: true,
                ..modern.clone()
            },
        ),
        (
            "small receive buffers, ring of 1024",
            GuestOptions {
                rx_buffer_len: 256,
                ring_size: 1024,
                ..modern.clone()
            },
        ),
        (
            "two queue pairs",
            GuestOptions {
                features: modern.features | MQ,
                queue_pairs: 2,
                ..modern.clone()
            },
        ),
        (
            "used in order",
            GuestOptions {
                features: modern.features | IN_ORDER,
                ..modern.clone()
            },
        ),
        (
            "packed rings",
            GuestOptions {
                packed: true,
                ..modern.clone()
            },
        ),
        (
            "packed rings of 100, indirect tables, event index, small receive buffers",
            GuestOptions {
                packed: true,
                ring_size: 100,
                rx_buffer_len: 256,
                features: modern.features | INDIRECT_DESC | EVENT_IDX,
                tx_split: ChainSplit::Pieces(200),
                indirect: true,
                ..modern.clone()
            },
        ),
        (
            "packed rings used in order, header apart",
            GuestOptions {
                packed: true,
                features: modern.features | IN_ORDER,
                tx_split: ChainSplit::HeaderApart,
                ..modern.clone()
            },
        ),
        (
            "no mergeable buffers",
            GuestOptions {
                features: modern.features & !MRG_RXBUF,
                ..modern.clone()
            },
        ),
    ];
    for (name, options) in cases {
        let queues = usize::from(options.queue_pairs);
        let mut guests = match Guest::connect(path0, options.clone()) {
            Err(GuestError::NotPacked { .. }) => {
                println!("{name}: not offered");
                continue;
            }
            first => [first?, Guest::connect(path1, options)?],
        };
        println!("{name}: {:x?}", guests.each_ref().map(Guest::negotiated));
        std::thread::sleep(Duration::from_millis(300));
        (0..queues).try_for_each(|queue| exchange(&mut guests, queue, 2000))?;
        // Stop, disconnect, reconnect: nothing may be lost or repeated.
        for guest in &mut guests {
            let bases = guest.stop()?;
            guest.disconnect();
            println!("  stopped at {bases:?}");
        }
        for guest in &mut guests {
            guest.reconnect()?;
        }
        std::thread::sleep(Duration::from_millis(300));
        (0..queues).try_for_each(|queue| exchange(&mut guests, queue, 300))?;
        println!("  ok");
    }
    Ok(())
}

fn exchange(guests: &mut [Guest; 2], queue: usize, count: usize) -> Result<()> {
    for (from, to) in [(0, 1), (1, 0)] {
        let mut received = 0;
        for first in (0..count).step_by(20) {
            let frames: Vec<Vec<u8>> = (first..count.min(first + 20)).map(frame).collect();
            for frame in &frames {
                let deadline = Instant::now() + Duration::from_secs(5);
                while !guests[from].send_with_header(queue, &VirtioNetHdr::default(), frame)? {
                    if Instant::now() > deadline {
                        return Err("transmit ring stays full".into());
                    }
                }
            }
            let got = guests[to].receive_at_least(queue, frames.len(), Duration::from_secs(5))?;
            if got.iter().map(|(_, bytes)| bytes).ne(frames.iter()) {
                return Err(format!(
                    "frames {first}..: {} of {} came, or differ",
                    got.len(),
                    frames.len()
                )
                .into());
            }
            received += got.len();
        }
        println!(
            "  queue {queue}, {from} to {to}: {received} frames, kicks {}",
            guests[from].kicks()
        );
    }
    Ok(())
}

fn frame(number: usize) -> Vec<u8> {
    let len = 60 + number * 37 % 1455;
    let mut frame: Vec<u8> = (0..len)
        .map(|i| (number * 131 + i * 7 + (i >> 8)) as u8)
        .collect();
    frame[..14].copy_from_slice(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x88, 0xb5]);
    frame
}

/// Windows of a millisecond: on a shared machine most trials have an interruption somewhere. The upper tenth of the
/// windows shows the rate of the pumps and the switch without interruptions.
const WINDOW: Duration = Duration::from_millis(1);

fn rate(
    path0: &str,
    path1: &str,
    frame_len: usize,
    flows: u32,
    trials: u32,
    packed: bool,
) -> Result<()> {
    for writes in [TxWrites::Frame, TxWrites::Descriptor, TxWrites::Nothing] {
        let options = TxPumpOptions {
            frame_len,
            flows,
            writes,
            ..TxPumpOptions::default()
        };
        let mut rates = Vec::new();
        for _ in 0..trials {
            rates.extend(trial(path0, path1, &options, packed)?);
        }
        rates.sort_by(f64::total_cmp);
        let quantile = |q: usize| rates[(rates.len() - 1) * q / 100];
        println!(
            "{frame_len} bytes, {flows} flows, writes {writes:?}: median {:.2}, upper tenth {:.2}, best {:.2} Mpps",
            quantile(50),
            quantile(90),
            quantile(100)
        );
    }
    Ok(())
}

fn trial(
    path0: &str,
    path1: &str,
    options: &TxPumpOptions,
    packed: bool,
) -> std::result::Result<Vec<f64>, GuestError> {
    let guest = GuestOptions {
        packed,
        ..GuestOptions::default()
    };
    let mut sender = Guest::connect(path0, guest.clone())?;
    let mut receiver = Guest::connect(path1, guest)?;
    let mut tx = sender.take_tx_pump(0, options)?;
    let mut rx = receiver.take_rx_pump(0, true)?;
    std::thread::sleep(Duration::from_millis(300));
    let mut rates = Vec::with_capacity(500);
    for _ in 0..500 {
        let start = Instant::now();
        let mut frames = 0;
        while start.elapsed() < WINDOW {
            for _ in 0..32 {
                tx.poll()?;
                frames += u64::from(rx.poll()?.frames);
            }
        }
        rates.push(frames as f64 / start.elapsed().as_secs_f64() / 1e6);
    }
    Ok(rates)
}
