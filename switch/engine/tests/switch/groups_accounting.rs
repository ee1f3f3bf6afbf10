//! What is counted of connections for a collector.

use std::time::Instant;

use crosspoint_engine::groups::{AccountingOptions, Counts, FlowEnd, FlowEvent, FlowRecord, Zone};
use crosspoint_packet::DropReason;
use proptest::prelude::*;

use crate::groups::{ACK, FIN, Packet, RST, Rig, SYN, TCP, UDP, address};
use crate::groups_cases::any_out;

const GUEST: usize = 0;
/// The stations: the guest, and one behind the uplink.
const A: u8 = 0;
const FAR: u8 = 2;
/// Length of an Ethernet header.
const ETHERNET_LEN: u64 = 14;
const PAYLOAD: &[u8] = b"payload";

fn options(denied_per_s: u32) -> AccountingOptions {
    AccountingOptions {
        begins: true,
        denied_per_s,
        hz: 2e9,
    }
}

fn rig(denied_per_s: u32) -> Rig {
    let rig = Rig::new([vec![any_out()], vec![any_out()]]);
    rig.connections.start_accounting(1, &options(denied_per_s));
    rig
}

fn sweep(rig: &Rig, seconds: u32) {
    let zone = |id: u32| {
        rig.zones
            .iter()
            .map(|zone| &**zone)
            .find(|zone: &&Zone| zone.id() == id)
    };
    rig.connections
        .sweep(seconds, rig.connections.capacity(), zone);
}

fn events(rig: &Rig) -> Vec<(FlowEvent, FlowRecord)> {
    let accounting = rig.connections.accounting().expect("it is on");
    std::iter::from_fn(|| accounting.next_event()).collect()
}

/// The guest's packet, or one to it.
fn packet(is_out: bool, protocol: u8, port: u16, flags: u8) -> Packet {
    let packet = Packet::new(A, FAR, protocol, (port, 80));
    let packet = if is_out { packet } else { packet.answer() };
    Packet { flags, ..packet }
}

/// Whether the packet is of a connection in the table.
fn knows(rig: &Rig, packet: &Packet) -> bool {
    let ends = [(packet.from, packet.ports.0), (packet.to, packet.ports.1)];
    let ends = ends.map(|(station, port)| (address(station, false), port));
    rig.connections.iter().any(|connection| {
        let other = [connection.source, connection.destination];
        let is_same = ends == other || ends == [other[1], other[0]];
        is_same && connection.protocol == packet.protocol && connection.zone == 1
    })
}

fn add(all: &mut [(u64, u64); 2], counts: &Counts) {
    for (side, (packets, octets)) in all.iter_mut().enumerate() {
        *packets += u64::from(counts.packets[side]);
        *octets += counts.octets[side];
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever packets come and whenever connections end: the records of all connections together have each packet that passed,
    /// in its direction, once. The guest begins all connections.
    #[test]
    fn each_packet_that_passes_is_in_one_record(
        steps in prop::collection::vec((any::<bool>(), prop::sample::select(vec![TCP, UDP]), 0u16..4, 0usize..5, 0u32..12), 1..200),
    ) {
        let mut rig = rig(0);
        let (mut sent, mut recorded) = ([(0, 0); 2], [(0, 0); 2]);
        let (mut now, mut begun, mut ended) = (0, 0, 0);
        let record = |events: Vec<(FlowEvent, FlowRecord)>, recorded: &mut [(u64, u64); 2]| {
            let mut counts = (0, 0);
            for (event, record) in events {
                match event {
                    FlowEvent::Begun => counts.0 += 1,
                    FlowEvent::Ended(_) => {
                        add(recorded, &record.counts.since(&record.base));
                        counts.1 += 1;
                    }
                    FlowEvent::Denied => {}
                }
            }
            counts
        };
        for (is_out, protocol, port, flags, pause) in steps {
            let packet = packet(is_out, protocol, port, [SYN, ACK, SYN | ACK, FIN | ACK, RST | ACK][flags]);
            // A reset that begins no connection belongs to none.
            if rig.pass(&packet) && knows(&rig, &packet) {
                let (packets, octets) = &mut sent[usize::from(!is_out)];
                *packets += 1;
                *octets += packet.frame(PAYLOAD).len() as u64 - ETHERNET_LEN;
            }
            now += pause;
            sweep(&rig, now);
            let counts = record(events(&rig), &mut recorded);
            (begun, ended) = (begun + counts.0, ended + counts.1);
        }
        let live: Vec<FlowRecord> = (0..rig.connections.capacity() as u32)
            .filter_map(|slot| rig.connections.flow_at(slot)).collect();
        live.iter().for_each(|record| add(&mut recorded, &record.counts.since(&record.base)));
        prop_assert_eq!(recorded, sent);
        prop_assert_eq!(begun, ended + live.len());
    }
}

/// A connection that begins again between the same ports is another one: the first has ended, with its own packets.
#[test]
fn a_connection_that_begins_again_is_another_record() {
    let mut rig = rig(0);
    for flags in [SYN, ACK, ACK, RST | ACK, SYN, ACK] {
        assert!(rig.pass(&packet(true, TCP, 7, flags)));
    }
    let all = events(&rig);
    let kinds: Vec<FlowEvent> = all.iter().map(|(event, _)| *event).collect();
    let end = FlowEvent::Ended(FlowEnd::Closed);
    assert_eq!(kinds, [FlowEvent::Begun, end, FlowEvent::Begun]);
    let first = &all[1].1;
    assert_eq!(first.counts.since(&first.base).packets, [4, 0]);
    let second = rig.connections.flow_at(first.slot).expect("it is there");
    assert_eq!(second.counts.since(&second.base).packets, [2, 0]);
    assert!(second.began_at > first.began_at);
}

/// Packets that would have begun a connection and were dropped are events, up to the rate; the rest is counted.
#[test]
fn denied_connections_are_events_up_to_their_rate() {
    let mut rig = rig(5);
    let began = Instant::now();
    for port in 0..50 {
        assert!(!rig.pass(&packet(false, UDP, port, 0)));
    }
    assert_eq!(rig.drops(GUEST)[&DropReason::GroupDeniedIn], 50);
    let all = events(&rig);
    // The clock of the test may be faster than the rate's.
    let earned = began.elapsed().as_millis() as usize / 50 + 1;
    assert!((5..=5 + earned).contains(&all.len()), "{}", all.len());
    let accounting = rig.connections.accounting().expect("it is on");
    assert_eq!(accounting.denied_unsent() as usize, 50 - all.len());
    let octets = packet(false, UDP, 0, 0).frame(PAYLOAD).len() as u64 - ETHERNET_LEN;
    for (port, (event, record)) in (0u16..).zip(&all).take(5) {
        assert_eq!(
            (*event, record.connection.source.1),
            (FlowEvent::Denied, 80)
        );
        assert_eq!(record.connection.destination.1, port);
        assert_eq!(
            (record.counts.packets, record.counts.octets),
            ([1, 0], [octets, 0])
        );
    }
}

/// What nothing is exported of is not counted, and what began before it was has the packets from then.
#[test]
fn counting_begins_when_something_is_exported() {
    let mut rig = Rig::new([vec![any_out()], vec![any_out()]]);
    let send = |rig: &mut Rig| assert!(rig.pass(&packet(true, UDP, 9, 0)));
    send(&mut rig);
    assert!(rig.connections.accounting().is_none());
    rig.connections.start_accounting(1, &options(0));
    (0..3).for_each(|_| send(&mut rig));
    rig.connections.accounting().expect("it is on").stop();
    send(&mut rig);
    rig.connections.start_accounting(1, &options(0));
    sweep(&rig, 31);
    let [(FlowEvent::Ended(FlowEnd::Idle), record)] = events(&rig)[..] else {
        panic!("one record");
    };
    assert_eq!(record.counts.since(&record.base).packets, [3, 0]);
}
