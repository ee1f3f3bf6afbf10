//! What a worker remembers of packets that have passed changes nothing that is decided.

use crosspoint_engine::groups::{Connection, Direction};
use proptest::prelude::*;

use crate::groups::{ACK, Packet, Rig, SYN, TCP, UDP, any_packet, any_rule, rule};

/// The connections, in an order, without the time since their last packets.
fn connections(rig: &Rig) -> Vec<Connection> {
    let all = rig.connections.iter();
    let mut all: Vec<_> = all.map(|one| Connection { idle_s: 0, ..one }).collect();
    all.sort_by_key(|one| (one.zone, one.protocol, one.source, one.destination));
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    /// Few different packets, in any order and often: once within a second, so that verdicts are remembered, and once with a
    /// second between any two, so that none is. All that is seen of both is the same.
    #[test]
    fn repeated_packets_pass_as_if_nothing_was_remembered(
        rules in [prop::collection::vec(any_rule(), 0..6), prop::collection::vec(any_rule(), 0..6)],
        packets in prop::collection::vec(any_packet(), 1..9),
        order in prop::collection::vec(any::<prop::sample::Index>(), 1..120),
        change in any::<prop::sample::Index>(),
    ) {
        let mut rigs = [Rig::new(rules.clone()), Rig::new(rules.clone())];
        for (number, index) in order.iter().enumerate() {
            // Rules change once.
            if number > 0 && number == change.index(order.len()) {
                rigs.iter_mut().for_each(|rig| rig.set_rules(rules[1].clone(), 1, false));
            }
            rigs[1].connections.sweep(number as u32 + 1, 0, |_| None);
            let packet = index.get(&packets);
            let [one, other] = rigs.each_mut().map(|rig| rig.pass(packet));
            prop_assert_eq!(one, other, "packet {}: {:?}", number, packet);
            prop_assert_eq!(connections(&rigs[0]), connections(&rigs[1]), "after {}", number);
        }
        let [a, b] = &rigs;
        for (a, b) in a.tables.iter().zip(&b.tables) {
            for rule in 0..6 {
                prop_assert_eq!(a.hits(rule), b.hits(rule), "rule {}", rule);
            }
        }
        for port in 0..3 {
            prop_assert_eq!(a.drops(port), b.drops(port));
        }
    }
}

fn packet(from: u8, to: u8, protocol: u8, flags: u8) -> Packet {
    Packet {
        from,
        to,
        v6: false,
        protocol,
        ports: if from == 0 { (1000, 80) } else { (80, 1000) },
        flags,
        is_flooded: false,
    }
}

/// Equal packets keep their connection as long as they come, however long that is.
#[test]
fn a_connection_of_equal_packets_does_not_time_out_while_they_come() {
    let mut rig = Rig::new([vec![rule(Direction::Out, None, &[], None)], vec![]]);
    let (there, back) = (packet(0, 2, UDP, 0), packet(2, 0, UDP, 0));
    let zone = rig.zones[0].clone();
    for second in 1..400 {
        for _ in 0..5 {
            assert!(rig.pass(&there) && rig.pass(&back), "second {second}");
        }
        let slots = rig.connections.capacity();
        let swept = rig.connections.sweep(second, slots, |_| Some(&zone));
        assert_eq!(swept.removed, 0, "second {second}");
    }
    // Without them it does.
    let slots = rig.connections.capacity();
    assert_eq!(
        rig.connections.sweep(800, slots, |_| Some(&zone)).removed,
        1
    );
    assert!(!rig.pass(&back));
}

/// Its state is what other packets have made of it, not what it was when an equal packet passed.
#[test]
fn a_packet_that_is_equal_to_an_earlier_one_establishes_a_connection_that_was_answered_meanwhile() {
    let mut rig = Rig::new([vec![rule(Direction::Out, None, &[], None)], vec![]]);
    let (syn, ack) = (packet(0, 2, TCP, SYN), packet(0, 2, TCP, ACK));
    let answer = packet(2, 0, TCP, SYN | ACK);
    let mut phases = Vec::new();
    for packet in [&syn, &ack, &ack, &ack, &answer, &ack] {
        assert!(rig.pass(packet));
        phases.push(rig.connections.iter().next().expect("one").phase.label());
    }
    assert_eq!(phases[3..], ["syn_sent", "syn_received", "established"]);
}
