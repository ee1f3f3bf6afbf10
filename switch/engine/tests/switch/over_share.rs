//! Frames for a port that exceeds its share of a busy worker: dropped before they are copied, counted at their
//! destination, and captured so by taps.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8};

use crossbeam::queue::ArrayQueue;
use crosspoint_engine::bridge::fdb::Fdb;
use crosspoint_engine::observe::tap::Direction;
use crosspoint_engine::observe::tap::Fate;
use crosspoint_engine::observe::tap::Tap;
use crosspoint_engine::observe::tap::Wanted;
use crosspoint_engine::snapshot::Snapshot;
use crosspoint_engine::sync::sleep::Waker;
use crosspoint_engine::worker::Idle;
use crosspoint_engine::worker::Shared;
use crosspoint_engine::worker::Times;
use crosspoint_engine::worker::Update;
use crosspoint_engine::worker::Worker;
use crosspoint_engine::worker::WorkerLink;
use crosspoint_frame::Clock;
use crosspoint_guest::ChainSplit;
use crosspoint_packet::{DropReason, FlowHasher, Mac};
use crosspoint_vring::feature;

use crate::checks::{assert_balanced, ledger_of};
use crate::floor::QUANTUM_CYCLES;
use crate::frames::{Flow, host};
use crate::ports::{Driver, PortOptions, port};

const SENDER: u16 = 0;
const COSTLY: u16 = 1;
const OTHER: u16 = 2;
const BROADCAST: [u8; 6] = [0xff; 6];

/// A worker that the test runs, with a competing sender of large weight, a receiver whose buffers are in a hundred pieces
/// each, and a receiver with plain buffers.
fn start(tap: Arc<Tap>) -> (Worker, Arc<Snapshot>, Vec<Driver>) {
    let shared = Arc::new(Shared {
        stop: AtomicBool::new(false),
        tick: AtomicU8::new(0),
        faults: ArrayQueue::new(8),
        quantum_cycles: QUANTUM_CYCLES,
    });
    let plain = PortOptions {
        transmit_size: 1024,
        receive_size: 4096,
        ..PortOptions::default()
    };
    let costly = PortOptions {
        features: feature::VERSION_1 | feature::CSUM | feature::INDIRECT_DESC,
        split: ChainSplit::Pieces(20),
        ..plain.clone()
    };
    let made = [&plain, &costly, &plain].into_iter().enumerate();
    let made = made.map(|(number, options)| port(number as u16, options, 1));
    let (mut drivers, mut views, mut streams) = (Vec::new(), Vec::new(), Vec::new());
    for (mut driver, mut made) in made {
        driver.post_all();
        // The sender's virtual time grows slowly, so that the receiver gets ahead of it also on a slow machine.
        made.view.weight = if views.is_empty() { 10_000 } else { 1 };
        drivers.push(driver);
        views.push(Some(made.view));
        streams.push(made.stream);
    }
    let fdb = Arc::new(Fdb::new(0, [1, 2]));
    let view = Snapshot::new(
        views.into(),
        fdb.clone(),
        FlowHasher::new(3),
        Box::new([tap]),
    );
    let view = Arc::new(view);
    for number in [SENDER, COSTLY, OTHER] {
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

/// A capture shows frames dropped for a port over its share, unicast or flooded, as dropped there with that reason, and
/// as often as counted.
#[test]
fn taps_see_frames_for_a_port_that_is_over_its_share_as_dropped() {
    let wanted = Wanted {
        port: None,
        queue: None,
        received: false,
        sent: true,
        dropped_only: true,
        snap_len: 64,
        rate_max: u64::MAX,
        filter: None,
    };
    let tap = Tap::new(wanted, 16_384, 1, &Clock::calibrate());
    let (mut worker, view, mut drivers) = start(tap.clone());
    let frames = [host(COSTLY as u8), host(COSTLY as u8), BROADCAST];
    let frames = frames.map(|dst| Flow::plain(host(SENDER as u8), dst).frame(1514, 0, 0, 1));
    let over_share = DropReason::OverShare;
    let (mut times, mut seen) = (Times::begin(), [0u64; 2]);
    for _ in 0..60 {
        for frame in frames.iter().cycle().take(250) {
            drivers[0].send(frame);
        }
        let _ = drivers[0].transmit.ring().publish();
        // A long burst makes the next ones shorter.
        while drivers[0].transmit.reap().unwrap() > 0
            || drivers[0].transmit.ring().outstanding() > 0
        {
            worker.turn(&mut times);
        }
        drivers
            .iter_mut()
            .for_each(|driver| drop(driver.received()));
        for slot in std::iter::from_fn(|| tap.next()) {
            if slot.fate == Fate::Dropped(over_share) {
                assert_eq!((slot.direction, slot.port), (Direction::Sent, COSTLY));
                assert!(slot.bytes[..6] == frames[0][..6] || slot.bytes[..6] == BROADCAST);
                seen[usize::from(slot.bytes[..6] == BROADCAST)] += 1;
            }
            tap.give_back(slot);
        }
    }
    assert_eq!((tap.counts().missed, tap.counts().over_rate), (0, 0));
    let ledgers: Vec<_> = view
        .ports
        .iter()
        .flatten()
        .map(|port| ledger_of(&port.counters))
        .collect();
    assert_balanced(&ledgers);
    let counted = ledgers[usize::from(COSTLY)].drops.get(&over_share).copied();
    assert_eq!(Some(seen[0] + seen[1]), counted, "{seen:?}");
    assert!(seen.iter().all(|count| *count > 0), "{seen:?}");
    assert!(!ledgers[usize::from(OTHER)].drops.contains_key(&over_share));
}
