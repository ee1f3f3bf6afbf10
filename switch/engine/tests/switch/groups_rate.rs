//! The rate of a guest's new connections.

use std::time::Instant;

use crosspoint_engine::groups::Direction;
use crosspoint_frame::Clock;
use crosspoint_packet::DropReason;

use crate::groups::{Packet, Rig, TCP, rule};
use crate::groups_cases::any_out;

const GUEST: usize = 0;
/// Stations: a guest, its neighbour, and one behind the uplink.
const A: u8 = 0;
const NEIGHBOUR: u8 = 1;
const FAR: u8 = 2;

/// A guest that begins connections faster than its rate loses those beyond it, under a reason of their own; its neighbour begins
/// a thousand meanwhile and loses none, and what others begin to the guest has a rate of its own. `trace` says so, too.
#[test]
fn a_flood_of_new_connections_costs_the_neighbour_none() {
    let rules = || vec![any_out(), rule(Direction::In, None, &[], None)];
    let mut rig = Rig::with([rules(), rules()], 1_000_000);
    rig.zones[0].set_connections_rate(100, Clock::calibrate().hz());
    let began = Instant::now();
    let syn = |from: u8, to: u8, number: u16| Packet::new(from, to, TCP, (1024 + number, 80));
    let mut passed = 0;
    for number in 0..1000 {
        passed += usize::from(rig.pass(&syn(A, FAR, number)));
        assert!(
            rig.pass(&syn(NEIGHBOUR, FAR, number)),
            "{number}: the neighbour's"
        );
    }
    let earned = began.elapsed().as_millis() as usize / 10;
    assert!((100..=101 + earned).contains(&passed), "{passed}, {earned}");
    let refused = 1000 - passed as u64;
    assert_eq!(rig.drops(GUEST)[&DropReason::ConnectionRateOut], refused);
    let zone = &rig.zones[0];
    assert_eq!(
        (zone.rate_refused_total(), zone.refused_total()),
        (refused, 0)
    );
    let others = (0..100).filter(|number| rig.pass(&syn(FAR, A, *number)));
    assert_eq!(others.count(), 100);
    // A connection that is known goes on.
    assert!(rig.pass(&syn(A, FAR, 0)));
    rig.zones[0].set_connections_rate(1, 1e12);
    let next = syn(A, FAR, 5000).frame(b"");
    assert_eq!(
        rig.explained_drop(GUEST, &next),
        Some(DropReason::ConnectionRateOut)
    );
    rig.zones[0].set_connections_rate(0, 1e12);
    assert!(rig.pass(&syn(A, FAR, 5000)));
}
