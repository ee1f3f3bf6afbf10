//! Rates of ports: what a guest sends is held back and none of it is lost; what is sent to a guest beyond its rate is dropped
//! there and counted, and nothing else is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8};

use crossbeam::queue::ArrayQueue;
use crosspoint_engine::bridge::fdb::Fdb;
use crosspoint_engine::snapshot::Snapshot;
use crosspoint_engine::stages::meter::{Meter, RateLimit};
use crosspoint_engine::sync::sleep::Waker;
use crosspoint_engine::worker::{Idle, Shared, Times, Update, Worker, WorkerLink};
use crosspoint_frame::{Clock, tsc};
use crosspoint_packet::{DropReason, FlowHasher, Mac};

use crate::checks::{assert_balanced, ledger_of};
use crate::floor::QUANTUM_CYCLES;
use crate::frames::{Flow, host};
use crate::ports::{Driver, PortOptions, port};

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

/// A worker that the test runs, with three guests whose addresses are known.
pub fn start(options: [PortOptions; 3]) -> (Worker, Arc<Snapshot>, Vec<Driver>) {
    let shared = Arc::new(Shared {
        stop: AtomicBool::new(false),
        tick: AtomicU8::new(0),
        faults: ArrayQueue::new(8),
        quantum_cycles: QUANTUM_CYCLES,
    });
    let (mut drivers, mut views, mut streams) = (Vec::new(), Vec::new(), Vec::new());
    for (number, options) in options.iter().enumerate() {
        let (mut driver, made) = port(number as u16, options, 1);
        driver.post_all();
        drivers.push(driver);
        views.push(Some(made.view));
        streams.push(made.stream);
    }
    let fdb = Arc::new(Fdb::new(0, [1, 2]));
    let view = Snapshot::new(views.into(), fdb.clone(), FlowHasher::new(3), Box::new([]));
    let view = Arc::new(view);
    for number in [SENDER, LIMITED, OTHER] {
        let key = fdb.key(Mac::new(host(number as u8)), 0);
        fdb.learn(key, number, 0, |port| view.port(port).map(|of| &*of.quota));
    }
    let link = Arc::new(WorkerLink::new(Waker::new().expect("an eventfd")));
    let worker = Worker::new(0, shared, link.clone(), view.clone(), Idle::Spin);
    let mut update = Update::new(view.clone(), 3);
    update.add = streams;
    assert!(link.mailbox.publish(update).is_ok());
    (worker, view, drivers)
}

fn balanced(view: &Snapshot) -> Vec<crate::bridge::Ledger> {
    let ports = view.ports.iter().flatten();
    let ledgers: Vec<_> = ports.map(|port| ledger_of(&port.counters)).collect();
    assert_balanced(&ledgers);
    ledgers
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
    let (mut worker, view, mut drivers) = start([sender, plain.clone(), plain]);
    let flow = Flow::plain(host(SENDER as u8), host(OTHER as u8));
    let (mut times, began) = (Times::begin(), tsc());
    let (mut sent, mut received) = (0u32, 0u32);
    let limit = 3000;
    while received < limit {
        while sent < limit
            && sent - received < 200
            && drivers[0].transmit.ring().outstanding() < 200
        {
            drivers[0].send(&flow.frame(LEN, 0, 0, sent as u64));
            sent += 1;
        }
        let _ = drivers[0].transmit.ring().publish();
        worker.turn(&mut times);
        let _ = drivers[0].transmit.reap().unwrap();
        for bytes in drivers[usize::from(OTHER)].received().remove(0) {
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
    let ledgers = balanced(&view);
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
    let (mut worker, view, mut drivers) = start([plain.clone(), limited, plain]);
    let to = [host(LIMITED as u8), host(OTHER as u8), BROADCAST];
    let frames = to.map(|dst| Flow::plain(host(SENDER as u8), dst).frame(LEN, 0, 0, 1));
    let (mut times, mut counts) = (Times::begin(), [0u64; 3]);
    for _ in 0..20 {
        for frame in frames.iter().cycle().take(60) {
            drivers[0].send(frame);
        }
        let _ = drivers[0].transmit.ring().publish();
        while drivers[0].transmit.reap().unwrap() > 0
            || drivers[0].transmit.ring().outstanding() > 0
        {
            worker.turn(&mut times);
        }
        for (count, driver) in counts.iter_mut().zip(&mut drivers) {
            *count += driver.received().concat().len() as u64;
        }
    }
    let ledgers = balanced(&view);
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
