//! Connections that travel with a guest: they go on at the other switch, and bring in nothing that its rules forbid.

use std::net::IpAddr;

use crosspoint_engine::groups::{Arrived, Direction, EXPORTED_LEN, GroupPolicy, Rule};
use proptest::prelude::*;

use crate::groups::{
    ACK, FIN, Packet, RST, Rig, SYN, TCP, UDP, address, any_packet, any_rule, rule,
};
use crate::groups_cases::any_out;

const A: u8 = 0;
const FAR: u8 = 2;

/// A packet between guest A and the station behind the uplink, of a protocol with ports.
fn between() -> impl Strategy<Value = Packet> {
    (any_packet(), any::<bool>()).prop_map(|(packet, is_out)| Packet {
        from: if is_out { A } else { FAR },
        to: if is_out { FAR } else { A },
        protocol: if packet.protocol == TCP { TCP } else { UDP },
        is_flooded: false,
        ..packet
    })
}

fn rules() -> impl Strategy<Value = Vec<Rule>> {
    let stateful = any_rule().prop_map(|rule| Rule {
        stateful: true,
        link: Default::default(),
        ..rule
    });
    prop::collection::vec(stateful, 0..5)
}

fn policy(rig: &Rig) -> GroupPolicy {
    GroupPolicy::new(rig.tables[0].clone(), rig.zones[0].clone(), 0, false)
}

fn arrive(rig: &Rig, connections: &[u8]) -> Arrived {
    rig.connections.arrive(connections, &policy(rig))
}

/// Connections of guest A, in the form in which they travel.
fn leave(rig: &Rig) -> Vec<u8> {
    rig.connections.export_zone(1, usize::MAX)
}

/// A connection that `packet` would belong to, as a front end could make it up.
fn forged(packet: &Packet, [phase, is_low, is_out]: [u8; 3]) -> Vec<u8> {
    let bits = |station: u8| match address(station, packet.v6) {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    };
    let mut ends = [
        (bits(packet.from), packet.ports.0),
        (bits(packet.to), packet.ports.1),
    ];
    ends.sort_unstable();
    let [(low, low_port), (high, high_port)] = ends;
    let mut bytes = [low.to_le_bytes(), high.to_le_bytes()].concat();
    bytes.extend(low_port.to_le_bytes());
    bytes.extend(high_port.to_le_bytes());
    bytes.extend([packet.protocol, 0, 0, 0]);
    // No VLAN, and any zone.
    bytes.extend(77u64.rotate_left(32).to_le_bytes());
    bytes.extend([phase, is_low, is_out, 0, 0, 0, 0, 0]);
    bytes
}

fn has_opened_only(packet: &Packet) -> bool {
    packet.protocol != TCP || packet.flags & (FIN | RST) == 0
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// With the same rules, the other switch passes what the first one would have passed, and nothing else; but half-open
    /// connections, and those other than TCP's that others began, begin anew.
    #[test]
    fn connections_go_on_at_the_other_switch(
        rules in rules(),
        before in prop::collection::vec(between(), 0..20),
        after in prop::collection::vec(between(), 1..20),
    ) {
        let mut first = Rig::new([rules.clone(), vec![any_out()]]);
        let mut second = Rig::new([rules, vec![any_out()]]);
        for packet in &before {
            // Half-open connections stay behind.
            let opened = Packet { flags: SYN, ..packet.clone() };
            for packet in [&opened, &opened.answer(), &opened.clone().flags(ACK), packet] {
                if has_opened_only(packet) {
                    first.pass(packet);
                }
            }
        }
        let leaving = leave(&first);
        let arrived = arrive(&second, &leaving);
        prop_assert_eq!(arrived.denied, 0);
        let all = arrived.taken + arrived.left;
        prop_assert_eq!(all * EXPORTED_LEN, leaving.len());
        for packet in after.iter().chain(&before).filter(|packet| has_opened_only(packet)) {
            let (here, there) = (first.pass(packet), second.pass(packet));
            prop_assert!(here || !there, "{packet:?}");
            prop_assert!(there || !here || packet.protocol == UDP, "{packet:?}");
        }
    }

    /// Whatever a front end makes up, a packet passes only if rules allow it, or it can only be an answer to what they allow:
    /// a segment that is no SYN, or a datagram to the guest.
    #[test]
    fn made_up_connections_pass_nothing_that_the_rules_forbid(
        rules in rules(),
        packets in prop::collection::vec((between(), any::<[u8; 3]>()), 1..6),
        garbage in prop::collection::vec(any::<u8>(), 0..300),
        has_arrived in any::<bool>(),
    ) {
        let new = || Rig::new([rules.clone(), vec![any_out()]]);
        let attacked = || {
            let rig = new();
            for (packet, [phase, is_low, is_out]) in &packets {
                arrive(&rig, &forged(packet, [phase % 15, is_low % 2, is_out % 2]));
            }
            arrive(&rig, &garbage);
            if has_arrived {
                rig.connections.note_arrival(&rig.zones[0]);
            }
            rig
        };
        for (packet, _) in &packets {
            let first = |packet: &Packet| Packet {
                flags: if packet.protocol == TCP { SYN } else { 0 },
                ..packet.clone()
            };
            let is_allowed = new().pass(&first(packet));
            let is_answer = match packet.protocol {
                TCP => packet.flags & (SYN | ACK | FIN | RST) != SYN,
                _ => packet.from == FAR,
            };
            let is_other_allowed = new().pass(&first(&packet.answer()));
            // What passes begins connections, whose answers would pass.
            let mut rig = attacked();
            let explained = rig.explained_drop(usize::from(packet.from), &packet.frame(b"x"));
            let passes = rig.pass(packet);
            prop_assert!(packet.from == FAR || explained.is_none() == passes, "{explained:?} {:?} {packet:?}", rig.drops(0));
            prop_assert!(!passes || is_allowed || (is_answer && is_other_allowed), "{packet:?}");
        }
    }
}

/// The guest serves port 80 and may begin nothing.
fn server(connections_max: u32) -> Rig {
    let to_80 = rule(Direction::In, Some(TCP), &[80..=80], None);
    let to_53 = rule(Direction::In, Some(UDP), &[53..=53], None);
    Rig::with([vec![to_80, to_53], vec![any_out()]], connections_max)
}

#[test]
fn an_established_connection_of_a_server_that_may_begin_none_goes_on() {
    let (mut first, mut second) = (server(1000), server(1000));
    let syn = Packet::new(FAR, A, TCP, (1000, 80));
    let (ack, data) = (syn.clone().flags(ACK), syn.answer().flags(ACK));
    assert!(first.pass(&syn) && first.pass(&syn.answer()) && first.pass(&ack));
    assert!(!second.pass(&data), "it is not known");
    let arrived = arrive(&second, &leave(&first));
    assert_eq!((arrived.taken, arrived.left), (1, 0));
    assert!(second.pass(&data) && second.pass(&ack));
    assert_eq!(second.zones[0].connections(), 1);
    // Another guest's connections do not travel with it, nor do those beyond its quota arrive.
    assert!(first.connections.export_zone(2, 10).is_empty());
    assert_eq!(first.connections.export_zone(1, 0).len(), 0);
    for port in 2000..2100 {
        let syn = Packet::new(FAR, A, TCP, (port, 80));
        first.pass(&syn);
        first.pass(&syn.answer());
        first.pass(&syn.clone().flags(ACK));
    }
    let small = server(64);
    let arrived = arrive(&small, &leave(&first));
    assert_eq!((arrived.taken, arrived.left), (64, 37));
    assert_eq!(small.zones[0].connections(), 64);
    // Rules that do not allow it.
    let none = Rig::new([vec![any_out()], vec![any_out()]]);
    assert_eq!(arrive(&none, &leave(&first)).denied, 101);
}

/// Without the other switch's connections: for 30 s the rules of either direction count, and no connection begins by that.
#[test]
fn for_30_s_a_guest_that_has_arrived_goes_on_by_its_rules() {
    let mut rig = server(1000);
    let sweep = |rig: &Rig, seconds: u32| {
        let zones = rig.zones.clone();
        rig.connections.sweep(seconds, 1, |id| {
            zones.get(id as usize - 1).map(|zone| &**zone)
        });
    };
    let from_80 = Packet::new(A, FAR, TCP, (80, 1000)).flags(ACK);
    let frame = from_80.frame(b"payload");
    assert!(!rig.pass(&from_80));
    sweep(&rig, 100);
    rig.connections.note_arrival(&rig.zones[0]);
    assert_eq!(rig.explained_drop(0, &frame), None);
    assert!(rig.pass(&from_80));
    assert_eq!(rig.zones[0].connections(), 0, "others could use them up");
    for forbidden in [
        from_80.clone().flags(SYN),
        Packet::new(A, FAR, TCP, (81, 1000)).flags(ACK),
        Packet::new(A, FAR, UDP, (53, 1000)),
        Packet::new(FAR, A, TCP, (1000, 81)).flags(ACK),
    ] {
        assert!(!rig.pass(&forbidden), "{forbidden:?}");
    }
    sweep(&rig, 129);
    assert!(rig.pass(&from_80));
    sweep(&rig, 130);
    assert!(!rig.pass(&from_80));
    // Not again, until five minutes have passed.
    sweep(&rig, 399);
    rig.connections.note_arrival(&rig.zones[0]);
    assert!(!rig.pass(&from_80));
    sweep(&rig, 400);
    rig.connections.note_arrival(&rig.zones[0]);
    assert!(rig.pass(&from_80));
    sweep(&rig, 700);
    rig.zones[0].forget_arrival(700);
    // The count of seconds has 20 bits.
    sweep(&rig, 400 + (1 << 20));
    assert!(!rig.pass(&from_80));
    // The client's next segment begins a connection, at any time.
    assert!(rig.pass(&Packet::new(FAR, A, TCP, (1000, 80)).flags(ACK)));
    assert!(rig.pass(&from_80));
    assert_eq!(rig.zones[0].connections(), 1);
}
