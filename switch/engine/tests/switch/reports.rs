//! A guest that breaks the rules of its rings is reported in every case.

use crosspoint_engine::worker::Idle;
use crosspoint_packet::DropReason;
use crosspoint_vring::RingFault;

use crate::checks::{assert_balanced, ledger_of};
use crate::floor::{Change, Floor, wait_for};
use crate::frames::{Flow, host};
use crate::ports::{Driver, PortOptions, port};
use crate::rig::Rig;

fn break_transmit_ring(driver: &mut Driver) {
    let ring = driver.transmit.ring();
    ring.set_avail_idx(30_000);
}

fn floor(faults: usize) -> (Floor, Driver) {
    let mut floor = Floor::start(1, Idle::SleepAfter(100_000), faults, |run| run());
    let (driver, port) = port(0, &PortOptions::default(), 1);
    floor.change(Change {
        port: Some((0, port.view)),
        add: vec![(0, port.stream)],
        ..Change::default()
    });
    (floor, driver)
}

#[test]
fn a_broken_transmit_ring_is_reported_once() {
    let (floor, mut driver) = floor(16);
    break_transmit_ring(&mut driver);
    floor.links[0].waker.wake();
    let mut fault = None;
    wait_for("the report", || {
        fault = floor.shared.faults.pop();
        fault.is_some()
    });
    let (port, fault) = fault.unwrap();
    assert!(port == 0 && matches!(fault, RingFault::AvailJump { ahead: 30_000, .. }));
    let turns = floor.links[0].counters.turns.count();
    wait_for("some turns", || {
        floor.links[0].waker.wake();
        floor.links[0].counters.turns.count() > turns + 100
    });
    assert!(floor.shared.faults.pop().is_none());
}

/// The fault is reported even if another guest has filled the list (each burst for a broken receive ring makes an entry).
#[test]
fn a_broken_transmit_ring_is_reported_though_the_list_was_full() {
    let (floor, mut driver) = floor(1);
    let other = (7, RingFault::Direction);
    floor.shared.faults.push(other).unwrap();
    break_transmit_ring(&mut driver);
    let turns = floor.links[0].counters.turns.count();
    wait_for("some turns", || {
        floor.links[0].waker.wake();
        floor.links[0].counters.turns.count() > turns + 100
    });
    assert_eq!(floor.shared.faults.pop(), Some(other));
    let turns = floor.links[0].counters.turns.count();
    wait_for("some turns", || {
        floor.links[0].waker.wake();
        floor.links[0].counters.turns.count() > turns + 100
    });
    assert_eq!(floor.shared.faults.pop().map(|(port, _)| port), Some(0));
}

/// Copies for a guest with an invalid receive ring are counted at its port, and copies for others arrive.
#[test]
fn a_broken_receive_ring_costs_the_others_nothing() {
    let options = PortOptions::default();
    let mut rig = Rig::new(&[options.clone(), options.clone(), options], 1, 1);
    rig.drivers.iter_mut().for_each(|driver| driver.post_all());
    rig.drivers[1].receive[0].ring().set_avail_idx(30_000);
    let frames: Vec<_> = (0..40)
        .map(|i| Flow::plain(host(0), [0xff; 6]).frame(100, 0, 0, i))
        .collect();
    rig.pass(0, &frames);
    assert_eq!(rig.drivers[2].received().concat(), frames);
    let ports = rig.view.ports.iter().flatten();
    let ledgers: Vec<_> = ports.map(|port| ledger_of(&port.counters)).collect();
    assert_eq!(ledgers[1].drops[&DropReason::GuestQuarantined], 40);
    assert_balanced(&ledgers);
}
