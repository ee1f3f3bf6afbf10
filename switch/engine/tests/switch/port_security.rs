//! A guest claims only the addresses that its port has, by data, ARP and neighbour discovery, however the packet is wrapped;
//! and no other port claims them.

use std::net::{Ipv4Addr, Ipv6Addr};

use crosspoint_engine::bridge::vlan::VlanPolicy;
use crosspoint_packet::DropReason::{self, IpNotAllowed, NeighborNotAllowed};

use crate::frames::host;
use crate::ports::{PortOptions, port};
use crate::single::Single;

const GUARDED: usize = 0;
const FREE: usize = 1;
const OWN: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const NONE: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const OWN6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const OTHER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
const NONE6: Ipv6Addr = Ipv6Addr::UNSPECIFIED;
/// What the guarded station makes of its MAC address, 02:00:00:00:00:00.
const LOCAL6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0xff, 0xfe00, 0);

const V4: &[u8] = &[8, 0];
const V6: &[u8] = &[0x86, 0xdd];
const ARP: &[u8] = &[8, 6];
const PRIORITY_TAG: &[u8] = &[0x81, 0, 0xe0, 0];
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

fn v4(source: Ipv4Addr, ports: [u16; 2]) -> Vec<u8> {
    let mut packet = vec![0; 28];
    (packet[0], packet[8], packet[9]) = (0x45, 64, UDP);
    packet[12..16].copy_from_slice(&source.octets());
    packet[20..22].copy_from_slice(&ports[0].to_be_bytes());
    packet[22..24].copy_from_slice(&ports[1].to_be_bytes());
    packet
}

fn v6(source: Ipv6Addr, hops: u8, next: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 40];
    (packet[0], packet[6], packet[7]) = (0x60, next[0], hops);
    packet[8..24].copy_from_slice(&source.octets());
    // Each extension header of eight bytes names the next one.
    for next in &next[1..] {
        packet.extend([*next, 0, 0, 0, 0, 0, 0, 0]);
    }
    packet.extend(payload);
    packet
}

fn arp(mac: [u8; 6], sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let head: &[u8] = &[0, 1, 8, 0, 6, 4, 0, 2];
    [head, &mac, &sender.octets(), &[0; 6], &target.octets()].concat()
}

/// Neighbour discovery: its type, its target, and options.
fn nd(kind: u8, target: Ipv6Addr, options: &[u8]) -> Vec<u8> {
    [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &target.octets(), options].concat()
}

fn link_option(kind: u8, mac: [u8; 6]) -> Vec<u8> {
    [&[kind, 1][..], &mac].concat()
}

/// Sends one frame from port `from`, and returns why it was dropped, if it was.
fn fate(from: usize, wrap: &[u8], ethertype: &[u8], packet: &[u8]) -> Option<DropReason> {
    let guarded = PortOptions {
        vlan: VlanPolicy::Access(7),
        macs: vec![host(0)],
        ips: ["10.0.0.1/32", "192.0.2.0/24", "2001:db8::1/128"]
            .map(|net| net.parse().unwrap())
            .to_vec(),
        ..PortOptions::default()
    };
    let free = PortOptions {
        vlan: VlanPolicy::Access(7),
        ..PortOptions::default()
    };
    let elsewhere = PortOptions {
        vlan: VlanPolicy::Access(8),
        ..PortOptions::default()
    };
    let made = [guarded, free.clone(), elsewhere, free];
    let made = made.iter().enumerate();
    let made = made.map(|(number, options)| port(number as u16, options, 1));
    let mut single = Single::start(made.collect(), Box::new([]));
    let mut frame = [&[0xff; 6], &host(from as u8)[..], wrap, ethertype, packet].concat();
    frame.resize(frame.len().max(60), 0);
    single.drivers[from].send(&frame);
    single.drain_of(from);
    let drops = single.ledgers().swap_remove(from).drops;
    let reason = drops
        .into_keys()
        .find(|reason| *reason != DropReason::NoDestination);
    let receivers = [GUARDED, FREE, 3].into_iter().filter(|port| *port != from);
    for receiver in receivers {
        let got = single.drivers[receiver].received().concat();
        assert_eq!(got.is_empty(), reason.is_some(), "{reason:?}");
    }
    reason
}

#[test]
fn a_guarded_port_claims_only_its_own_addresses() {
    let own = host(0);
    let dhcp = [68, 67];
    let solicit =
        |source, target, options: &[u8]| v6(source, 255, &[ICMPV6], &nd(135, target, options));
    let advertise = |target, options: &[u8]| v6(OWN6, 255, &[ICMPV6], &nd(136, target, options));
    let behind = |next: &[u8], target| v6(OWN6, 255, next, &nd(136, target, &[]));
    let mut first_fragment = v6(OWN6, 255, &[44], &[]);
    first_fragment.extend([ICMPV6, 0, 0, 1, 0, 0, 0, 9]);
    first_fragment.extend(nd(136, OWN6, &[]));
    let long: Vec<u8> = nd(136, OWN6, &[14, 12].repeat(48));
    for (what, ethertype, packet, expected) in [
        ("IPv4", V4, v4(OWN, [1, 2]), None),
        (
            "IPv4 of an allowed prefix",
            V4,
            v4(Ipv4Addr::new(192, 0, 2, 9), [1, 2]),
            None,
        ),
        (
            "a neighbour's IPv4 address",
            V4,
            v4(OTHER, [1, 2]),
            Some(IpNotAllowed),
        ),
        ("DHCP before there is an address", V4, v4(NONE, dhcp), None),
        (
            "no address, and no DHCP",
            V4,
            v4(NONE, [1, 2]),
            Some(IpNotAllowed),
        ),
        ("ARP", ARP, arp(own, OWN, OTHER), None),
        ("gratuitous ARP", ARP, arp(own, OWN, OWN), None),
        (
            "ARP for a neighbour's address",
            ARP,
            arp(own, OTHER, OWN),
            Some(NeighborNotAllowed),
        ),
        (
            "ARP with another MAC address",
            ARP,
            arp(host(9), OWN, OTHER),
            Some(NeighborNotAllowed),
        ),
        (
            "a probe for the own address",
            ARP,
            arp(own, NONE, OWN),
            None,
        ),
        (
            "a probe for a neighbour's address",
            ARP,
            arp(own, NONE, OTHER),
            Some(NeighborNotAllowed),
        ),
        (
            "ARP of another kind",
            ARP,
            vec![0; 28],
            Some(NeighborNotAllowed),
        ),
        ("IPv6", V6, v6(OWN6, 64, &[UDP], &[0; 8]), None),
        (
            "the own link-local address",
            V6,
            v6(LOCAL6, 64, &[UDP], &[0; 8]),
            None,
        ),
        (
            "a neighbour's IPv6 address",
            V6,
            v6(OTHER6, 64, &[UDP], &[0; 8]),
            Some(IpNotAllowed),
        ),
        (
            "no IPv6 address",
            V6,
            v6(NONE6, 64, &[UDP], &[0; 8]),
            Some(IpNotAllowed),
        ),
        (
            "an echo request",
            V6,
            v6(OWN6, 255, &[ICMPV6], &[128, 0, 0, 0]),
            None,
        ),
        (
            "a report of groups without an address",
            V6,
            v6(NONE6, 1, &[0, ICMPV6], &[143, 0, 0, 0, 0, 0, 0, 0]),
            None,
        ),
        (
            "a solicitation for a neighbour",
            V6,
            solicit(OWN6, OTHER6, &link_option(1, own)),
            None,
        ),
        (
            "one with another MAC address",
            V6,
            solicit(OWN6, OTHER6, &link_option(1, host(9))),
            Some(NeighborNotAllowed),
        ),
        (
            "one from a neighbour's address",
            V6,
            solicit(OTHER6, OWN6, &[]),
            Some(IpNotAllowed),
        ),
        (
            "detection of duplicates of the own address",
            V6,
            solicit(NONE6, OWN6, &[]),
            None,
        ),
        (
            "and of a neighbour's",
            V6,
            solicit(NONE6, OTHER6, &[]),
            Some(NeighborNotAllowed),
        ),
        (
            "an advertisement",
            V6,
            advertise(OWN6, &link_option(2, own)),
            None,
        ),
        (
            "an advertisement of a neighbour's address",
            V6,
            advertise(OTHER6, &link_option(2, own)),
            Some(NeighborNotAllowed),
        ),
        (
            "an advertisement with another MAC address",
            V6,
            advertise(OWN6, &link_option(2, host(9))),
            Some(NeighborNotAllowed),
        ),
        (
            "one behind another option",
            V6,
            advertise(
                OWN6,
                &[vec![14, 1, 0, 0, 0, 0, 0, 0], link_option(2, host(9))].concat(),
            ),
            Some(NeighborNotAllowed),
        ),
        (
            "two MAC addresses",
            V6,
            advertise(
                OWN6,
                &[link_option(2, own), link_option(2, host(9))].concat(),
            ),
            Some(NeighborNotAllowed),
        ),
        (
            "options without a length",
            V6,
            advertise(OWN6, &[2, 0, 0, 0, 0, 0, 0, 0]),
            Some(NeighborNotAllowed),
        ),
        (
            "an advertisement behind options",
            V6,
            behind(&[0, 60, ICMPV6], OTHER6),
            Some(NeighborNotAllowed),
        ),
        (
            "the own address behind options",
            V6,
            behind(&[0, 60, ICMPV6], OWN6),
            None,
        ),
        (
            "one behind more options than are read",
            V6,
            behind(&[0, 60, 60, 60, 60, 60, 60, 60, 60, 60, ICMPV6], OWN6),
            Some(NeighborNotAllowed),
        ),
        (
            "a fragment of an advertisement",
            V6,
            first_fragment,
            Some(NeighborNotAllowed),
        ),
        (
            "an advertisement longer than is read",
            V6,
            v6(OWN6, 255, &[ICMPV6], &long),
            Some(NeighborNotAllowed),
        ),
        ("no IP", &[0x88, 0xb5], vec![0; 40], None),
    ] {
        for (how, wrap) in [("plain", &[][..]), ("with a priority tag", PRIORITY_TAG)] {
            assert_eq!(
                fate(GUARDED, wrap, ethertype, &packet),
                expected,
                "{what}, {how}"
            );
        }
    }
}

/// The address is bound to the guarded port in its VLAN, and there only.
#[test]
fn no_other_port_claims_an_address_that_is_bound() {
    let (mine, elsewhere) = (host(FREE as u8), 2);
    let advertise = |source, target| v6(source, 255, &[ICMPV6], &nd(136, target, &[]));
    for (what, from, ethertype, packet, expected) in [
        (
            "ARP for it",
            FREE,
            ARP,
            arp(mine, OWN, OTHER),
            Some(NeighborNotAllowed),
        ),
        (
            "ARP for an address of a prefix, which is not bound",
            FREE,
            ARP,
            arp(mine, Ipv4Addr::new(192, 0, 2, 200), OTHER),
            None,
        ),
        (
            "a probe for it",
            FREE,
            ARP,
            arp(mine, NONE, OWN),
            Some(NeighborNotAllowed),
        ),
        (
            "ARP that asks for it",
            FREE,
            ARP,
            arp(mine, OTHER, OWN),
            None,
        ),
        (
            "ARP of another kind",
            FREE,
            ARP,
            vec![0; 28],
            Some(NeighborNotAllowed),
        ),
        (
            "an advertisement of it",
            FREE,
            V6,
            advertise(OTHER6, OWN6),
            Some(NeighborNotAllowed),
        ),
        (
            "an advertisement of its link-local address",
            FREE,
            V6,
            advertise(OTHER6, LOCAL6),
            Some(NeighborNotAllowed),
        ),
        (
            "a solicitation from it, with another MAC address",
            FREE,
            V6,
            v6(
                OWN6,
                255,
                &[ICMPV6],
                &nd(135, OTHER6, &link_option(1, mine)),
            ),
            Some(NeighborNotAllowed),
        ),
        (
            "a solicitation of routers from it, with another MAC address",
            FREE,
            V6,
            v6(
                OWN6,
                255,
                &[ICMPV6],
                &[&[133, 0, 0, 0, 0, 0, 0, 0][..], &link_option(1, mine)].concat(),
            ),
            Some(NeighborNotAllowed),
        ),
        (
            "ARP of IEEE 802 for it",
            FREE,
            ARP,
            [&[0, 6][..], &arp(mine, OWN, OTHER)[2..]].concat(),
            Some(NeighborNotAllowed),
        ),
        (
            "an advertisement with two MAC addresses",
            FREE,
            V6,
            v6(
                OTHER6,
                255,
                &[ICMPV6],
                &nd(
                    136,
                    OWN6,
                    &[link_option(2, mine), link_option(2, host(9))].concat(),
                ),
            ),
            Some(NeighborNotAllowed),
        ),
        (
            "ARP behind a SNAP header",
            FREE,
            &[0, 36, 0xaa, 0xaa, 3, 0, 0, 0, 8, 6],
            arp(mine, OWN, OTHER),
            Some(NeighborNotAllowed),
        ),
        (
            "an advertisement of another",
            FREE,
            V6,
            advertise(OTHER6, OTHER6),
            None,
        ),
        (
            "ARP for it in another VLAN",
            elsewhere,
            ARP,
            arp(host(2), OWN, OTHER),
            None,
        ),
    ] {
        let got = match from == elsewhere {
            true => fate_elsewhere(ethertype, &packet),
            false => fate(from, &[], ethertype, &packet),
        };
        assert_eq!(got, expected, "{what}");
    }
}

/// In VLAN 8 there is one port only: what counts is why the frame was dropped.
fn fate_elsewhere(ethertype: &[u8], packet: &[u8]) -> Option<DropReason> {
    let guarded = PortOptions {
        vlan: VlanPolicy::Access(7),
        macs: vec![host(0)],
        ips: vec!["10.0.0.1/32".parse().unwrap()],
        ..PortOptions::default()
    };
    let other = PortOptions {
        vlan: VlanPolicy::Access(8),
        ..PortOptions::default()
    };
    let made = [guarded, other.clone(), other];
    let made = made.iter().enumerate();
    let made = made.map(|(number, options)| port(number as u16, options, 1));
    let mut single = Single::start(made.collect(), Box::new([]));
    let mut frame = [&[0xff; 6], &host(2)[..], ethertype, packet].concat();
    frame.resize(60, 0);
    single.drivers[2].send(&frame);
    single.drain_of(2);
    let drops = single.ledgers().swap_remove(2).drops;
    drops.into_keys().next()
}
