//! The cost budget of one burst, and frames that exceed it.

use std::sync::Arc;

use crosspoint_engine::bridge::storm::StormControl;
use crosspoint_engine::bridge::storm::StormLimits;
use crosspoint_engine::bridge::vlan::VlanPolicy;
use crosspoint_engine::snapshot::Egress;
use crosspoint_frame::{BURST, Work, tsc};
use crosspoint_guest::ChainSplit;
use crosspoint_packet::DropReason;
use crosspoint_vring::feature;

use crate::checks::{assert_balanced, ledger_of};
use crate::frames::{Flow, host};
use crate::large::large;
use crate::ports::PortOptions;
use crate::rig::Rig;
use crate::world::MODERN;

const BROADCAST: [u8; 6] = [0xff; 6];

fn rig(ports: &[PortOptions]) -> Rig {
    let mut rig = Rig::new(ports, 1, 1);
    rig.drivers.iter_mut().for_each(|driver| driver.post_all());
    rig
}

/// Returns how many frames were delivered to each port, and the drops of port 0's frames.
fn outcome(rig: &Rig) -> (Vec<u64>, impl Fn(DropReason) -> u64 + use<>) {
    let ports = rig.view.ports.iter().flatten();
    let ledgers: Vec<_> = ports.map(|port| ledger_of(&port.counters)).collect();
    assert_balanced(&ledgers);
    let delivered = ledgers
        .iter()
        .map(|ledger| ledger.tx.iter().map(|(frames, _)| frames).sum())
        .collect();
    let drops = ledgers[0].drops.clone();
    (delivered, move |reason| {
        drops.get(&reason).copied().unwrap_or(0)
    })
}

/// Large frames with very many segments for very many ports: no more segments are made than the budget allows, and all
/// copies of every frame are counted.
#[test]
fn a_burst_makes_no_more_segments_than_it_may_cost() {
    let port = PortOptions {
        features: MODERN | feature::CSUM | feature::GUEST_CSUM,
        frame_len_max: 65_600,
        receive_size: 1024,
        ..PortOptions::default()
    };
    for receivers in [1, 28] {
        let mut rig = rig(&vec![port.clone(); 1 + receivers]);
        let (header, frame) = large(&[7; 60_000], 32, false);
        let frame = [&host(9)[..], &host(0), &frame[12..]].concat();
        assert!(rig.drivers[0].transmit.send(&header, &frame).unwrap());
        let _ = rig.drivers[0].transmit.ring().publish();
        assert_eq!(rig.turn(0, 0), 1);
        let (delivered, dropped) = outcome(&rig);
        let copies: u64 = delivered.iter().sum();
        let each = u64::from(Work::SEGMENT + Work::COPY);
        assert!(
            copies > 0 && copies * each <= u64::from(Work::BURST),
            "{copies}"
        );
        assert!(dropped(DropReason::BurstBudget) > 0);
    }
}

/// A burst of broadcasts for many ports: the copies cost no more than the budget, and whole ports are left out rather
/// than single frames of a flow.
#[test]
fn a_burst_is_flooded_no_further_than_it_may_cost() {
    let port = PortOptions {
        receive_size: 128,
        transmit_size: 128,
        ..PortOptions::default()
    };
    let mut rig = rig(&vec![port; 100]);
    let flow = Flow::plain(host(1), BROADCAST);
    for number in 0..BURST as u64 {
        rig.drivers[0].send(&flow.frame(1514, 0, 0, number));
    }
    let _ = rig.drivers[0].transmit.ring().publish();
    assert_eq!(rig.turn(0, 0), BURST);
    let (delivered, dropped) = outcome(&rig);
    let copies: u64 = delivered.iter().sum();
    let each = u64::from(Work::COPY + Work::of_bytes(1514));
    assert!(
        copies > 1000 / 2 && copies * each <= u64::from(Work::BURST),
        "{copies}"
    );
    assert!(
        delivered
            .iter()
            .all(|frames| [0, BURST as u64].contains(frames))
    );
    assert_eq!(dropped(DropReason::BurstBudget), BURST as u64);
}

/// One broadcast reaches every port of the largest switch.
#[test]
fn one_broadcast_reaches_all_of_a_thousand_ports() {
    let port = PortOptions {
        receive_size: 4,
        transmit_size: 4,
        ..PortOptions::default()
    };
    let mut rig = rig(&vec![port; crosspoint_engine::MAX_PORTS]);
    rig.pass(0, &[Flow::plain(host(1), BROADCAST).frame(60, 0, 0, 1)]);
    let (delivered, _) = outcome(&rig);
    assert!(delivered.iter().skip(1).all(|frames| *frames == 1));
}

/// Ports that are down are not members of their VLANs: they get no copies and count no drops.
#[test]
fn ports_that_are_down_cost_a_flood_nothing() {
    let mut rig = rig(&vec![PortOptions::default(); 5]);
    let egresses = [Egress::Down, Egress::Quarantined, Egress::Disabled];
    for (number, egress) in (1..).zip(egresses) {
        rig.view.ports[number].as_mut().unwrap().egress = egress;
    }
    rig.view.renew_members();
    rig.pass(0, &[Flow::plain(host(1), BROADCAST).frame(60, 0, 0, 1)]);
    let (delivered, _) = outcome(&rig);
    assert_eq!(delivered, [0, 0, 0, 0, 1]);
    let ledger = |number: usize| ledger_of(&rig.view.ports[number].as_ref().unwrap().counters);
    assert!((1..4).all(|number| ledger(number).drops.is_empty()));
    // Without any member, the drop reason is `NoDestination`.
    rig.view.ports[4].as_mut().unwrap().egress = Egress::Down;
    rig.view.renew_members();
    rig.pass(0, &[Flow::plain(host(1), BROADCAST).frame(60, 0, 0, 2)]);
    assert_eq!(outcome(&rig).1(DropReason::NoDestination), 1);
}

/// Each kind of flood has its own limit, and frames for known addresses have none.
#[test]
fn floods_keep_to_their_ports_limits() {
    let mut rig = rig(&vec![PortOptions::default(); 3]);
    rig.pass(1, &[Flow::plain(host(7), BROADCAST).frame(60, 0, 0, 1)]);
    let before = outcome(&rig).0;
    let limits = StormLimits {
        broadcast: 1,
        multicast: 1,
        unknown_unicast: 1,
    };
    let storm = StormControl::new(limits, 1e15, tsc());
    rig.view.ports[0].as_mut().unwrap().storm = Some(Arc::new(storm));
    let kinds = [
        (BROADCAST, DropReason::StormBroadcast),
        ([1, 0, 0x5e, 0, 0, 9], DropReason::StormMulticast),
        (host(99), DropReason::StormUnknownUnicast),
    ];
    let send = |rig: &mut Rig, dst| {
        let frame = |number| Flow::plain(host(1), dst).frame(60, 0, 0, number);
        let frames: Vec<Vec<u8>> = (0..1000).map(frame).collect();
        for some in frames.chunks(200) {
            rig.pass(0, some);
            rig.drivers[0].transmit.reap().unwrap();
            rig.drivers
                .iter_mut()
                .for_each(|driver| drop(driver.received()));
        }
    };
    for (dst, reason) in kinds {
        // Two copies per frame: a bucket holds 1024.
        send(&mut rig, dst);
        let (_, dropped) = outcome(&rig);
        assert_eq!(dropped(reason), 1000 - 512, "{reason:?}");
        rig.drivers
            .iter_mut()
            .for_each(|driver| drop(driver.received()));
    }
    send(&mut rig, host(7));
    let (delivered, dropped) = outcome(&rig);
    assert_eq!(delivered[1], before[1] + 3 * 512 + 1000);
    assert_eq!(dropped(DropReason::NoDestination), 0);
}

/// One receiver's buffers are in a thousand pieces each. Frames for it beyond the budget are dropped for that reason.
/// Frames of the same burst for other guests all arrive, also if their buffers are chains as real drivers make them.
#[test]
fn a_guest_with_costly_buffers_takes_nothing_from_others() {
    let port = |split, buffer_len, features| PortOptions {
        split,
        buffer_len,
        features,
        receive_size: 4096,
        vlan: VlanPolicy::Access(1),
        ..PortOptions::default()
    };
    let plain = feature::VERSION_1 | feature::CSUM | feature::INDIRECT_DESC;
    let mut rig = rig(&[
        port(ChainSplit::Single, 2048, MODERN),
        port(ChainSplit::Pieces(2), 2048, plain),
        port(ChainSplit::Pieces(120), 2048, plain),
    ]);
    for (number, address) in [(1, host(11)), (2, host(12))] {
        rig.pass(
            number,
            &[Flow::plain(address, BROADCAST).frame(60, 0, 0, 1)],
        );
    }
    rig.drivers
        .iter_mut()
        .for_each(|driver| drop(driver.received()));
    let before = outcome(&rig).0;
    for number in 0..BURST as u64 {
        let dst = if number % 2 == 0 { host(11) } else { host(12) };
        rig.drivers[0].send(&Flow::plain(host(1), dst).frame(100, 0, 0, number));
    }
    let _ = rig.drivers[0].transmit.ring().publish();
    assert_eq!(rig.turn(0, 0), BURST);
    let (delivered, _) = outcome(&rig);
    assert_eq!(delivered[2] - before[2], BURST as u64 / 2);
    let costly = ledger_of(&rig.view.ports[1].as_ref().unwrap().counters);
    let costly = costly.drops.get(&DropReason::GuestBuffersCostly).copied();
    assert!(
        costly > Some(0) && delivered[1] > before[1],
        "{costly:?} {delivered:?}"
    );
}
