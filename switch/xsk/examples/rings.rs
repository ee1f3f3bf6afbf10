//! Measures the cost of ring calls for receiving and sending, without the kernel's part: nanoseconds per frame of 64
//! bytes for each call of `XskTx` and `XskRx`, medians over bursts of 64 that go over a veth pair in copy mode. The copy
//! of the 64 bytes is in `deliver`, and it is the same for both implementations of the rings.
//!
//! ```sh
//! cargo run --release -p crosspoint-xsk --example rings [-- BURSTS]
//! cargo run --release -p crosspoint-xsk --example rings --features xsk-rs [-- BURSTS]
//! ```
//!
//! Run as root, on a core without other load: `taskset -c 1`.

#[path = "../tests/wire/mod.rs"]
mod wire;

use crosspoint_frame::{BURST, Burst, Clock, tsc};
use wire::{End, frame, load};

const MTU: u32 = 1500;
/// Bursts before the measured ones.
const WARMUP: usize = 100;

/// Clock ticks of one burst, by call.
#[derive(Clone, Copy)]
struct Ticks {
    deliver: u64,
    receive: u64,
    complete: u64,
    /// Ticks of reading the clock, which are included in each of the others.
    nothing: u64,
}

fn main() {
    let bursts = std::env::args().nth(1);
    let bursts: usize = bursts.map_or(20_000, |word| word.parse().expect("a number of bursts"));
    let clock = Clock::calibrate();
    wire::make(1, MTU);
    let mut ends = (End::open("left", 1, MTU), End::open("right", 1, MTU));
    let frames: Vec<_> = (0..BURST as u32).map(|n| frame(64, n)).collect();
    let (mut there, mut here) = (Burst::new(), Burst::new());
    let picks = load(&mut there, &frames);
    let ticks = (0..WARMUP + bursts).map(|_| {
        let (left, right) = (&mut ends.0, &mut ends.1);
        let start = tsc();
        let sent = left.tx[0].deliver(&there, &picks);
        let delivered = tsc();
        assert_eq!(sent.frames as usize, BURST, "{sent:?}");
        left.flush(0);
        let mut sums = Ticks {
            deliver: delivered - start,
            receive: 0,
            complete: 0,
            nothing: 0,
        };
        let mut received = 0;
        // Nearly always one burst, which the kernel has delivered during `flush`.
        while received < BURST {
            here.clear();
            let start = tsc();
            let count = right.rx[0].receive(&mut here);
            let taken = tsc();
            right.rx[0].complete(&here);
            let given_back = tsc();
            sums.nothing = tsc() - given_back;
            sums.receive += taken - start;
            sums.complete += given_back - taken;
            received += count;
        }
        sums
    });
    let ticks: Vec<_> = ticks.skip(WARMUP).collect();
    println!("rings: {}", crosspoint_xsk::BACKEND);
    for (call, of) in [
        ("deliver", (|t| t.deliver) as fn(&Ticks) -> u64),
        ("receive", |t| t.receive),
        ("complete", |t| t.complete),
    ] {
        let net = median(ticks.iter().map(|t| of(t).saturating_sub(t.nothing)));
        println!(
            "{call:>9}: {:6.2} ns per frame",
            clock.ns(net) / BURST as f64
        );
    }
}

fn median(values: impl Iterator<Item = u64>) -> u64 {
    let mut values: Vec<_> = values.collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or_default()
}
