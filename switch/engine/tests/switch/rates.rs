//! Rates of ports: what a guest sends is held back and none of it is lost; what is sent to a guest beyond its rate is dropped
//! there and counted, and nothing else is.

use std::sync::Arc;

use crosspoint_engine::stages::meter::{Meter, RateLimit};
use crosspoint_frame::{Clock, tsc};
use crosspoint_packet::DropReason;

use crate::frames::{Flow, host};
use crate::ports::{PortOptions, port};
use crate::single::Single;

const SENDER: u16 = 0;
const LIMITED: u16 = 1;
const OTHER: u16 = 2;
const BROADCAST: [u8; 6] = [0xff; 6];
/// Bytes of each frame.
const LEN: usize = 1000;

fn meter(megabits: u64, burst_bytes: u64, clock: &Clock) -> Option<Arc<Meter>> {
    let limit = RateLimit {
        bits_per_s: megabits * 1_000_000,
        burst_bytes,
        packets_per_s: 0,
    };
    Meter::new(limit, clock.hz(), tsc()).map(Arc::new)
}

/// A worker with three guests.
pub fn start(options: [PortOptions; 3]) -> Single {
    let made = options.iter().enumerate();
    let made = made.map(|(number, options)| port(number as u16, options, 1));
    Single::start(made.collect(), Box::new([]))
}

/// Frames beyond the rate wait in the guest's ring: each arrives, in order, and no more in any time than the burst and what
/// the rate allows.
#[test]
fn what_a_guest_sends_beyond_its_rate_waits_and_arrives_in_order() {
    let clock = Clock::calibrate();
    let (megabits, burst) = (400, 64 << 10);
    let sender = PortOptions {
        meter_out: meter(megabits, burst, &clock),
        ..PortOptions::default()
    };
    let plain = PortOptions::default();
    let mut single = start([sender, plain.clone(), plain]);
    let flow = Flow::plain(host(SENDER as u8), host(OTHER as u8));
    let began = tsc();
    let (mut sent, mut received) = (0u32, 0u32);
    let limit = 3000;
    while received < limit {
        while sent < limit
            && sent - received < 200
            && single.drivers[0].transmit.ring().outstanding() < 200
        {
            single.drivers[0].send(&flow.frame(LEN, 0, 0, sent as u64));
            sent += 1;
        }
        let _ = single.drivers[0].transmit.ring().publish();
        single.turn();
        let _ = single.drivers[0].transmit.reap().unwrap();
        for bytes in single.drivers[usize::from(OTHER)].received().remove(0) {
            assert_eq!(bytes, flow.frame(LEN, 0, 0, received as u64), "order");
            received += 1;
        }
        let seconds = tsc().wrapping_sub(began) as f64 / clock.hz();
        let earned = seconds * megabits as f64 * 125_000.0;
        // A burst may exceed the credit by what is earned in 100 us and a frame.
        let most = earned * 1.01 + burst as f64 + megabits as f64 * 12.5 + 2.0 * LEN as f64;
        let bytes = f64::from(received) * LEN as f64;
        assert!(bytes <= most, "{bytes} of {most} bytes in {seconds} s");
    }
    let ledgers = single.ledgers();
    assert!(ledgers.iter().all(|ledger| ledger.drops.is_empty()));
}

/// Frames to a guest beyond its rate are dropped and counted at its port, unicast and flooded; its neighbour gets all.
#[test]
fn what_is_sent_to_a_guest_beyond_its_rate_is_dropped_at_its_port() {
    let clock = Clock::calibrate();
    let plain = PortOptions::default();
    let limited = PortOptions {
        meter_in: meter(1, 20 * LEN as u64, &clock),
        ..plain.clone()
    };
    let mut single = start([plain.clone(), limited, plain]);
    let to = [host(LIMITED as u8), host(OTHER as u8), BROADCAST];
    let frames = to.map(|dst| Flow::plain(host(SENDER as u8), dst).frame(LEN, 0, 0, 1));
    let mut counts = [0u64; 3];
    for _ in 0..20 {
        for frame in frames.iter().cycle().take(60) {
            single.drivers[0].send(frame);
        }
        single.drain();
        for (count, driver) in counts.iter_mut().zip(&mut single.drivers) {
            *count += driver.received().concat().len() as u64;
        }
    }
    let ledgers = single.ledgers();
    let dropped = ledgers[usize::from(LIMITED)]
        .drops
        .get(&DropReason::RateExceeded);
    assert_eq!(counts[usize::from(OTHER)], 800, "{counts:?}");
    assert_eq!(
        counts[usize::from(LIMITED)] + dropped.copied().unwrap_or(0),
        800,
        "{counts:?}"
    );
    // The burst, and what a megabit gives while this runs.
    let passed = counts[usize::from(LIMITED)];
    assert!((20..700).contains(&passed), "{counts:?}");
    let others = [SENDER, OTHER].map(|port| ledgers[usize::from(port)].drops.len());
    assert_eq!(others, [0, 0]);
}
