//! ARP and neighbour discovery for an address that is bound to a port go to that port alone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crosspoint_engine::bridge::vlan::VlanPolicy;
use crosspoint_engine::observe::explain::{Destination, Packet, explain};
use crosspoint_engine::snapshot::Egress;
use crosspoint_frame::Offload;
use etherparse::PacketBuilder;
use proptest::prelude::*;

use crate::frames::host;
use crate::ports::PortOptions;
use crate::rig::Rig;

const ASKER: u16 = 0;
const OWNER: u16 = 1;
const BOUND: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const BOUND6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);
/// The ports that a flood from the asker goes to.
const ALL: [u16; 3] = [1, 2, 3];

/// The owner has a list of addresses, the others none. All are in VLAN 7; the last is a trunk that carries VLAN 8 too.
fn rig() -> Rig {
    let free = PortOptions {
        vlan: VlanPolicy::Access(7),
        ..PortOptions::default()
    };
    let nets = [
        format!("{BOUND}/32"),
        format!("{BOUND6}/128"),
        "192.0.2.0/24".to_owned(),
    ];
    let owner = PortOptions {
        macs: vec![host(OWNER as u8)],
        ips: nets.map(|net| net.parse().unwrap()).to_vec(),
        ..free.clone()
    };
    let trunk = PortOptions {
        vlan: VlanPolicy::trunk(&[7, 8], None),
        ..PortOptions::default()
    };
    let mut rig = Rig::new(&[free.clone(), owner, free, trunk], 1, 3);
    rig.view.suppresses = true;
    rig.drivers.iter_mut().for_each(|driver| driver.post_all());
    rig
}

fn request(from: u8, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let own = host(from);
    let head = [&[0xff; 6][..], &own, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]].concat();
    let (sender, target) = (sender.octets(), target.octets());
    [&head[..], &own, &sender, &[0; 6], &target, &[0; 18]].concat()
}

/// A solicitation, by another implementation of the headers.
fn solicitation(from: u8, target: Ipv6Addr) -> Vec<u8> {
    let [.., a, b, c] = target.octets();
    let [.., last] = target.segments();
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), last);
    let own = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, from.into());
    let payload = [&target.octets()[..], &[1, 1], &host(from)].concat();
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2(host(from), [0x33, 0x33, 0xff, a, b, c])
        .ipv6(own.octets(), group.octets(), 255)
        .icmpv6_raw(135, 0, [0; 4])
        .write(&mut bytes, &payload)
        .unwrap();
    bytes
}

fn ask(target: IpAddr) -> Vec<u8> {
    match target {
        IpAddr::V4(target) => request(0, OTHER, target),
        IpAddr::V6(target) => solicitation(0, target),
    }
}

/// The ports that get a frame, and the frames as these have them.
fn receivers(rig: &mut Rig, from: u16, frame: &[u8]) -> (Vec<u16>, Vec<Vec<u8>>) {
    rig.pass(usize::from(from), &[frame.to_vec()]);
    let (mut ports, mut got) = (Vec::new(), Vec::new());
    for (number, driver) in (0..).zip(&mut rig.drivers) {
        let frames = driver.received().concat();
        ports.extend(frames.iter().map(|_| number));
        got.extend(frames);
    }
    (ports, got)
}

#[test]
fn a_request_for_a_bound_address_goes_to_its_port_alone_unchanged() {
    for target in [IpAddr::V4(BOUND), IpAddr::V6(BOUND6)] {
        let mut rig = rig();
        let frame = ask(target);
        let specimen = Packet {
            ingress: ASKER,
            bytes: &frame,
            len: frame.len() as u32,
            offload: Offload::default(),
            fate: None,
        };
        let explained = explain(specimen, &rig.view, 0);
        assert_eq!(explained.destination, Some(Destination::BoundPort(OWNER)));
        let (ports, got) = receivers(&mut rig, ASKER, &frame);
        assert_eq!((ports, &got[0]), (vec![OWNER], &frame), "{target}");
        let counters = rig.view.port(ASKER).unwrap().counters.clone();
        assert_eq!(counters.at(0, 0).neighbors_suppressed.get(), 1);
        assert_eq!(counters.at(0, 0).broadcasts.get(), 0);
    }
}

/// What it is, the port that sends, its frame, a change of the switch, and the ports that get the frame.
type Case<'c> = (&'c str, u16, Vec<u8>, fn(&mut Rig), &'c [u16]);

#[test]
fn what_no_single_port_answers_is_flooded() {
    let to_bound = || request(0, OTHER, BOUND);
    let to = |last| request(0, OTHER, Ipv4Addr::new(10, 0, 0, last));
    let of_prefix = request(0, OTHER, Ipv4Addr::new(192, 0, 2, 5));
    let cases: [Case<'_>; 7] = [
        ("an address without a port", 0, to(5), |_| (), &ALL),
        // A prefix is allowed at a port, and not bound to it.
        ("an address of a prefix", 0, of_prefix, |_| (), &ALL),
        (
            "an announcement",
            1,
            request(1, BOUND, BOUND),
            |_| (),
            &[0, 2, 3],
        ),
        (
            "it is off",
            0,
            to_bound(),
            |rig| rig.view.suppresses = false,
            &ALL,
        ),
        (
            "its port is down",
            0,
            to_bound(),
            |rig| {
                rig.view.ports[1].as_mut().unwrap().egress = Egress::Down;
                rig.view.renew_members();
            },
            &[2, 3],
        ),
        (
            "the asker does not reach its port",
            0,
            to_bound(),
            |rig| {
                rig.view.ports[0].as_mut().unwrap().is_isolated = true;
                rig.view.ports[3].as_mut().unwrap().is_uplink = true;
            },
            &[3],
        ),
        (
            "two ports have it",
            0,
            to_bound(),
            |rig| {
                let guard = rig.view.ports[1].as_ref().unwrap().sources.clone();
                rig.view.ports[2].as_mut().unwrap().sources = guard;
                rig.view.renew_members();
            },
            &ALL,
        ),
    ];
    for (what, from, frame, change, expected) in cases {
        let mut rig = rig();
        change(&mut rig);
        assert_eq!(receivers(&mut rig, from, &frame).0, expected, "{what}");
    }
}

#[test]
fn a_request_keeps_to_its_vlan_and_loses_its_tag_there() {
    let mut rig = rig();
    let plain = request(3, Ipv4Addr::new(10, 0, 0, 3), BOUND);
    let tagged = |vlan: u8| [&plain[..12], &[0x81, 0, 0, vlan], &plain[12..]].concat();
    let (ports, got) = receivers(&mut rig, 3, &tagged(7));
    assert_eq!((ports, &got[0]), (vec![OWNER], &plain));
    // In a VLAN that the owner does not carry, the address is not bound; no other port carries it.
    assert_eq!(receivers(&mut rig, 3, &tagged(8)).0, [0; 0]);
}

proptest! {
    /// Whatever is sent: no port gets it that would not have got the flood, and either all of these get it or the owner.
    #[test]
    fn suppression_only_takes_copies_away(
        change in prop::collection::vec((0usize..86, any::<u8>()), 0..4),
        len in 42usize..90,
        is_v6 in any::<bool>(),
    ) {
        let target = if is_v6 { IpAddr::V6(BOUND6) } else { IpAddr::V4(BOUND) };
        let mut frame = ask(target);
        for (at, byte) in change {
            // The source stays: others are another station's.
            if let Some(place) = frame.get_mut(at).filter(|_| !(6..12).contains(&at)) {
                *place = byte;
            }
        }
        frame.truncate(len);
        let (mut with, mut without) = (rig(), rig());
        without.view.suppresses = false;
        let (narrow, got) = receivers(&mut with, ASKER, &frame);
        let (wide, flooded) = receivers(&mut without, ASKER, &frame);
        prop_assert!(narrow.iter().all(|port| wide.contains(port)));
        prop_assert!(narrow == wide || narrow == [OWNER], "{:?} {:?}", narrow, wide);
        prop_assert!(got.iter().all(|one| flooded.contains(one)));
    }
}
