//! Snooping: the ports that get multicast, by what stations and routers have said.

use std::net::IpAddr;
use std::sync::Arc;

use crosspoint_engine::bridge::multicast::{Family, Heard, Messages, Multicast, Said, Snooping};
use etherparse::PacketBuilder;
use proptest::prelude::*;

use crate::ports::PortOptions;
use crate::rig::Rig;

const GROUP: [u8; 4] = [239, 1, 2, 3];
const GROUP6: &str = "ff05::1:3";

fn rig(ports: usize) -> (Rig, Arc<Messages>) {
    let options: Vec<PortOptions> = (0..ports)
        .map(|number| PortOptions {
            // The last port may be a router's.
            is_server: number + 1 == ports,
            ..PortOptions::default()
        })
        .collect();
    let mut rig = Rig::new(&options, 1, 5);
    rig.drivers.iter_mut().for_each(|driver| driver.post_all());
    let messages = Arc::new(Messages::default());
    rig.view.snooping = Some(Snooping {
        messages: messages.clone(),
        multicast: Arc::new(Multicast::new(false)),
    });
    (rig, messages)
}

fn set(rig: &mut Rig, multicast: Multicast) {
    if let Some(snooping) = &mut rig.view.snooping {
        snooping.multicast = Arc::new(multicast);
    }
}

fn mac_of(group: IpAddr) -> [u8; 6] {
    match group {
        IpAddr::V4(group) => {
            let [_, b, c, d] = group.octets();
            [1, 0, 0x5e, b & 0x7f, c, d]
        }
        IpAddr::V6(group) => {
            let [.., c, d, e, f] = group.octets();
            [0x33, 0x33, c, d, e, f]
        }
    }
}

fn source(number: u8) -> [u8; 6] {
    [2, 0, 0, 0, 1, number]
}

/// A datagram for a group, made by another implementation of the headers.
fn datagram(group: &str, from: u8) -> Vec<u8> {
    let group: IpAddr = group.parse().unwrap();
    let link = PacketBuilder::ethernet2(source(from), mac_of(group));
    let mut bytes = Vec::new();
    match group {
        IpAddr::V4(group) => link
            .ipv4([10, 0, 0, from], group.octets(), 4)
            .udp(5, 6)
            .write(&mut bytes, &[7; 40]),
        IpAddr::V6(group) => link
            .ipv6([0xfd; 16], group.octets(), 4)
            .udp(5, 6)
            .write(&mut bytes, &[7; 40]),
    }
    .unwrap();
    bytes
}

/// An IGMP message with a router alert option (RFC 2113).
fn igmp(from: u8, to: [u8; 4], message: &[u8]) -> Vec<u8> {
    let len = (24 + message.len()) as u16;
    let ip = [
        &[0x46, 0xc0][..],
        &len.to_be_bytes(),
        &[0, 0, 0, 0, 1, 2, 0, 0, 10, 0, 0, from],
        &to,
        &[0x94, 4, 0, 0],
    ];
    let head = [&mac_of(IpAddr::from(to))[..], &source(from), &[8, 0]].concat();
    [&head[..], &ip.concat(), message, &[0; 20]].concat()
}

/// An MLD message behind a hop-by-hop header with a router alert (RFC 2711).
fn mld(from: u8, to: &str, message: &[u8]) -> Vec<u8> {
    let IpAddr::V6(to) = to.parse().unwrap() else {
        panic!("an IPv6 address")
    };
    let own = [&[0xfe, 0x80][..], &[0; 13], &[from]].concat();
    let len = (8 + message.len()) as u16;
    let ip = [
        &[0x60, 0, 0, 0][..],
        &len.to_be_bytes(),
        &[0, 1],
        &own,
        &to.octets(),
        &[58, 0, 5, 2, 0, 0, 1, 0],
    ];
    let head = [&mac_of(IpAddr::V6(to))[..], &source(from), &[0x86, 0xdd]].concat();
    [&head[..], &ip.concat(), message].concat()
}

fn counts(rig: &mut Rig) -> Vec<usize> {
    let drivers = rig.drivers.iter_mut();
    drivers
        .map(|driver| driver.received().concat().len())
        .collect()
}

fn said(messages: &Messages) -> Vec<(u16, Said)> {
    let heard = messages.take().into_iter();
    heard.map(|Heard { port, said, .. }| (port, said)).collect()
}

#[test]
fn reports_leaves_and_queries_of_every_version_are_heard() {
    let (mut rig, messages) = rig(3);
    let (group, group6): (IpAddr, IpAddr) = (GROUP.into(), GROUP6.parse().unwrap());
    let IpAddr::V6(bytes6) = group6 else {
        unreachable!()
    };
    let record = |kind: u8, sources: u16| {
        [
            &[kind, 0][..],
            &sources.to_be_bytes(),
            &GROUP,
            &vec![10; 4 * usize::from(sources)],
        ]
        .concat()
    };
    let v3 = |records: &[Vec<u8>]| {
        [
            &[0x22, 0, 0, 0, 0, 0][..],
            &(records.len() as u16).to_be_bytes(),
            &records.concat(),
        ]
        .concat()
    };
    let of_v1 = |kind: u8| [&[kind, 0, 0, 0][..], &GROUP].concat();
    let of_mld1 = |kind: u8| [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &bytes6.octets()].concat();
    let record6 = [&[4, 0, 0, 0][..], &bytes6.octets()].concat();
    let mld2 = [&[143, 0, 0, 0, 0, 0, 0, 1][..], &record6].concat();
    let all: [(Vec<u8>, &[Said]); 9] = [
        (igmp(1, GROUP, &of_v1(0x12)), &[Said::Join(group)]),
        (igmp(1, GROUP, &of_v1(0x16)), &[Said::Join(group)]),
        (igmp(1, [224, 0, 0, 2], &of_v1(0x17)), &[Said::Leave(group)]),
        // Exclude nothing; include nothing; include two sources; block one.
        (
            igmp(
                1,
                [224, 0, 0, 22],
                &v3(&[record(4, 0), record(3, 0), record(1, 2), record(6, 1)]),
            ),
            &[Said::Join(group), Said::Leave(group), Said::Join(group)],
        ),
        // More records than there are bytes.
        (
            igmp(
                1,
                [224, 0, 0, 22],
                &[&[0x22, 0, 0, 0, 0, 0, 0xff, 0xff][..], &record(2, 0)].concat(),
            ),
            &[Said::Join(group)],
        ),
        (mld(1, GROUP6, &of_mld1(131)), &[Said::Join(group6)]),
        (mld(1, "ff02::2", &of_mld1(132)), &[Said::Leave(group6)]),
        (mld(1, "ff02::16", &mld2), &[Said::Join(group6)]),
        (datagram("239.1.2.3", 1), &[]),
    ];
    for (frame, expected) in &all {
        rig.pass(0, std::slice::from_ref(frame));
        let expected: Vec<(u16, Said)> = expected.iter().map(|said| (0, *said)).collect();
        let heard = said(&messages);
        assert_eq!(heard, expected);
    }
    counts(&mut rig);
    // Queries: from the router's port, and from a guest that may not be one.
    let query = igmp(
        9,
        [224, 0, 0, 1],
        &[0x11, 100, 0, 0, 0, 0, 0, 0, 2, 125, 0, 0],
    );
    let query6 = mld(9, "ff02::1", &of_mld1(130));
    rig.pass(2, &[query.clone(), query6]);
    let heard = said(&messages);
    assert!(
        matches!(
            heard[..],
            [
                (2, Said::Query(IpAddr::V4(_))),
                (2, Said::Query(IpAddr::V6(_)))
            ]
        ),
        "{heard:?}"
    );
    assert_eq!(counts(&mut rig), [2, 2, 0]);
    // To one station, in fragments, and where a long header hides it: refused too.
    let unicast = [&source(7)[..], &query[6..]].concat();
    let mut fragment = query.clone();
    fragment[20] |= 0x20;
    let mut hidden = mld(9, "ff02::1", &[0; 1200]);
    hidden[55] = 140;
    rig.pass(1, &[query, unicast, fragment, hidden]);
    assert_eq!((said(&messages), counts(&mut rig)), (vec![], vec![0, 0, 0]));
}

#[test]
fn a_group_goes_to_its_members_and_routers_and_a_report_to_routers_only() {
    let (mut rig, _messages) = rig(4);
    let place = (0, 0);
    // No querier: all is flooded.
    rig.pass(0, &[datagram("239.1.2.3", 1)]);
    assert_eq!(counts(&mut rig), [0, 1, 1, 1]);
    let mut known = Multicast::new(false);
    known.add_querier(place, Family::V4, vec![3]);
    known.add_group(place, GROUP.into(), vec![3, 1, 0]);
    set(&mut rig, known);
    let frames = [
        datagram("239.1.2.3", 1),
        datagram("224.0.0.5", 1),
        datagram("239.9.9.9", 1),
        datagram(GROUP6, 1),
    ];
    rig.pass(0, &frames[..1]);
    assert_eq!(counts(&mut rig), [0, 1, 0, 1], "a member, and the router");
    rig.pass(0, &frames[1..2]);
    assert_eq!(counts(&mut rig), [0, 1, 1, 1], "a group of the link");
    rig.pass(0, &frames[2..]);
    assert_eq!(
        counts(&mut rig),
        [0, 2, 2, 2],
        "an unknown group, and one of the other family"
    );
    let report = igmp(1, GROUP, &[&[0x16, 0, 0, 0][..], &GROUP].concat());
    rig.pass(0, &[report]);
    assert_eq!(counts(&mut rig), [0, 0, 0, 1]);

    let mut strict = Multicast::new(true);
    strict.add_querier(place, Family::V4, vec![]);
    strict.add_group(place, GROUP.into(), vec![2]);
    set(&mut rig, strict);
    // All of one burst, with a unicast frame for a port between them.
    rig.pass(
        0,
        &[frames[2].clone(), frames[0].clone(), frames[2].clone()],
    );
    assert_eq!(counts(&mut rig), [0, 0, 1, 0]);
    let drops = rig.view.ports[0].as_ref().map(|port| {
        port.counters.at(0, 0).drops[crosspoint_packet::DropReason::NoListener as usize].get()
    });
    assert_eq!(drops, Some(2));
}

proptest! {
    /// Whatever a guest sends, the worker goes on, and one port's messages leave room for another's.
    #[test]
    fn a_hostile_report_costs_only_its_own_place(
        messages in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 0..300)), 1..80),
    ) {
        let (mut rig, heard) = rig(3);
        for (is_v4, mut message) in messages {
            let kinds = if is_v4 { [0x22, 0x16] } else { [143, 131] };
            if let Some(first) = message.first_mut() {
                *first = kinds[usize::from(*first & 1)];
            }
            let frame = match is_v4 {
                true => igmp(1, [224, 0, 0, 22], &message),
                false => mld(1, "ff02::16", &message),
            };
            rig.pass(0, &[frame]);
            counts(&mut rig);
        }
        rig.pass(1, &[igmp(2, GROUP, &[&[0x16, 0, 0, 0][..], &GROUP].concat())]);
        prop_assert!(said(&heard).contains(&(1, Said::Join(GROUP.into()))));
    }
}
