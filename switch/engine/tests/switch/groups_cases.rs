//! Single cases of security groups: what always passes, TCP's states, ICMP errors, fragments, headers that hide what they
//! are, limits, and changed rules.

use crosspoint_engine::groups::{ConnectionState, Direction, LinkParts, Rule, TcpFlags};
use crosspoint_guest::VirtioNetHdr;
use crosspoint_packet::{DropReason, Mac};

use crate::frames::host;
use crate::groups::{ACK, FIN, Packet, RST, Rig, SYN, TCP, UDP, rule};

const GUEST: usize = 0;
const UPLINK: usize = 2;
/// Stations: the two guests, and one behind the uplink.
const A: u8 = 0;
const FAR: u8 = 2;

pub fn any_out() -> Rule {
    rule(Direction::Out, None, &[], None)
}

/// The guest may send everything, and gets TCP to port 80.
fn web() -> Rig {
    let to_80 = rule(Direction::In, Some(TCP), &[80..=80], None);
    Rig::new([vec![any_out(), to_80], vec![any_out()]])
}

fn ethernet(to: usize, from: usize, ethertype: &[u8], packet: &[u8]) -> Vec<u8> {
    let mut frame = [&host(to as u8)[..], &host(from as u8), ethertype, packet].concat();
    frame.resize(frame.len().max(60), 0);
    frame
}

/// An IPv4 packet from the far station to the guest, or the other way.
fn v4(from: u8, to: u8, protocol: u8, id: u16, place: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0];
    packet.extend((20 + payload.len() as u16).to_be_bytes());
    packet.extend(id.to_be_bytes());
    packet.extend(place.to_be_bytes());
    packet.extend([64, protocol, 0, 0, 10, 0, 0, from, 10, 0, 0, to]);
    packet.extend(payload);
    packet
}

fn v6(from: u8, to: u8, hops: u8, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next, hops]);
    for station in [from, to] {
        let mut address = [0; 16];
        address[..4].copy_from_slice(&[0x20, 1, 0xd, 0xb8]);
        address[15] = station;
        packet.extend(address);
    }
    packet.extend(payload);
    packet
}

fn udp(ports: (u16, u16), len: usize) -> Vec<u8> {
    let mut datagram = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
    datagram.extend((len as u16 + 8).to_be_bytes());
    datagram.extend([0, 0]);
    datagram.resize(8 + len, 7);
    datagram
}

const V4: &[u8] = &[8, 0];
const V6: &[u8] = &[0x86, 0xdd];

/// A station cannot be reached without ARP, neighbour discovery and DHCP; everything else needs a rule.
#[test]
fn what_every_station_needs_passes_without_a_rule_and_nothing_else_does() {
    let to_guest = |ethertype: &[u8], packet: &[u8]| {
        let mut rig = Rig::new([vec![], vec![]]);
        !rig.send(UPLINK, &ethernet(GUEST, UPLINK, ethertype, packet))
            .is_empty()
    };
    let from_guest = |ethertype: &[u8], packet: &[u8]| {
        let mut rig = Rig::new([vec![], vec![]]);
        !rig.send(GUEST, &ethernet(UPLINK, GUEST, ethertype, packet))
            .is_empty()
    };
    let arp = [0, 1, 8, 0, 6, 4, 0, 1];
    assert!(to_guest(&[8, 6], &arp) && from_guest(&[8, 6], &arp));
    // Where a guest is after it has moved; and what is no ARP.
    assert!(to_guest(&[0x80, 0x35], &arp) && from_guest(&[0x80, 0x35], &arp));
    assert!(!from_guest(&[8, 6], &[&arp[..], &[1; 100]].concat()));
    assert!(!from_guest(&[8, 6], &[9; 28]));
    let discovery = |kind: u8| [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &[0; 16]].concat();
    let (all_nodes, near) = ([0xff, 2], [0xfe, 0x80]);
    let v6_to = |to: [u8; 2], mut packet: Vec<u8>| {
        packet[24..26].copy_from_slice(&to);
        packet
    };
    for kind in [133, 134, 135, 137] {
        let to_all = |hops| v6_to(all_nodes, v6(FAR, A, hops, 58, &discovery(kind)));
        assert!(to_guest(V6, &to_all(255)), "{kind}");
        assert!(!to_guest(V6, &to_all(64)), "{kind}");
        // To a station behind a router.
        assert!(
            !from_guest(V6, &v6(A, FAR, 255, 58, &discovery(kind))),
            "{kind}"
        );
    }
    assert!(from_guest(V6, &v6(A, FAR, 255, 58, &discovery(136))));
    assert!(from_guest(
        V6,
        &v6_to(all_nodes, v6(A, FAR, 1, 58, &discovery(143)))
    ));
    let dhcp = |ports| v4(FAR, A, UDP, 0, 0, &udp(ports, 20));
    let to_all = |ports| {
        let mut packet = dhcp(ports);
        packet[16..20].fill(255);
        packet
    };
    assert!(to_guest(V4, &dhcp((67, 68))) && from_guest(V4, &to_all((68, 67))));
    assert!(!from_guest(V4, &dhcp((68, 67))));
    assert!(!to_guest(V4, &to_all((68, 67))) && !from_guest(V4, &dhcp((67, 68))));
    let dhcp6 = |ports| {
        let mut packet = v6_to(near, v6(FAR, A, 64, UDP, &udp(ports, 20)));
        packet[8..10].copy_from_slice(&near);
        packet
    };
    assert!(to_guest(V6, &dhcp6((547, 546))) && from_guest(V6, &dhcp6((546, 547))));
    assert!(!to_guest(V6, &dhcp6((546, 547))) && !from_guest(V6, &dhcp6((547, 546))));
    assert!(!from_guest(V6, &v6(A, FAR, 64, UDP, &udp((546, 547), 20))));
    // Neither IP nor ARP; IP in a SNAP frame; behind too many tags; a header of the other version.
    assert!(!to_guest(&[0x88, 0xcc], &[1; 40]));
    assert!(!to_guest(
        &[0, 40, 0xaa, 0xaa, 3, 0, 0, 0, 8, 0],
        &v4(FAR, A, UDP, 0, 0, &udp((1, 2), 4))
    ));
    assert!(!to_guest(
        &[0x81, 0, 0, 5, 0x81, 0, 0, 5, 0x81, 0, 0, 5, 8, 0],
        &[0x45; 40]
    ));
    assert!(!to_guest(V4, &v6(FAR, A, 64, UDP, &udp((1, 2), 4))));
}

/// A tag, options and extension headers do not change what a packet is.
#[test]
fn rules_see_through_tags_options_and_extension_headers() {
    let passes = |ethertype: &[u8], packet: &[u8]| {
        let to_53 = rule(Direction::In, Some(UDP), &[53..=53], None);
        let mut rig = Rig::new([vec![to_53], vec![]]);
        !rig.send(UPLINK, &ethernet(GUEST, UPLINK, ethertype, packet))
            .is_empty()
    };
    for (port, expected) in [(53, true), (54, false)] {
        let datagram = udp((9, port), 80);
        assert_eq!(passes(V4, &v4(FAR, A, UDP, 0, 0, &datagram)), expected);
        assert_eq!(
            passes(&[0x81, 0, 0, 9, 8, 0], &v4(FAR, A, UDP, 0, 0, &datagram)),
            expected
        );
        let mut with_options = v4(FAR, A, UDP, 0, 0, &[&[1; 40][..], &datagram].concat());
        with_options[0] = 0x4f;
        assert_eq!(passes(V4, &with_options), expected);
        // Hop by hop, destination options, routing: the ports lie behind the first 64 bytes.
        let extended = [
            &[60, 0, 1, 4, 0, 0, 0, 0][..],
            &[43, 0, 1, 4, 0, 0, 0, 0],
            &[UDP, 0, 0, 0, 0, 0, 0, 0],
            &datagram,
        ]
        .concat();
        assert_eq!(passes(V6, &v6(FAR, A, 64, 0, &extended)), expected);
        let tagged = [0x81, 0, 0, 9, 0x81, 0, 0, 9, 0x86, 0xdd];
        assert_eq!(passes(&tagged, &v6(FAR, A, 64, UDP, &datagram)), expected);
    }
}

/// Answers pass; so do both sides of a connection that is being closed; and the port can be used again.
#[test]
fn tcp_is_followed_from_its_beginning_to_its_end() {
    let mut rig = web();
    let syn = Packet::new(FAR, A, TCP, (1000, 80));
    let (to, from) = (syn.clone(), syn.answer());
    assert!(!rig.pass(&Packet::new(FAR, A, TCP, (1000, 81))));
    assert!(rig.pass(&syn));
    let phase = |rig: &Rig| rig.connections.iter().next().map(|one| one.phase);
    assert_eq!(phase(&rig), Some(ConnectionState::SynSent));
    assert_eq!(
        (rig.zones[0].connections(), rig.zones[0].half_open()),
        (1, 1)
    );
    assert!(rig.pass(&from.clone().flags(SYN | ACK)));
    // A server that answers again and again establishes nothing.
    for _ in 0..3 {
        assert!(rig.pass(&syn) && rig.pass(&from.clone().flags(SYN | ACK)));
        assert_eq!(phase(&rig), Some(ConnectionState::SynReceived));
    }
    assert!(rig.pass(&to.clone().flags(ACK)));
    assert_eq!(phase(&rig), Some(ConnectionState::Established));
    assert_eq!(rig.zones[0].half_open(), 0);
    // A SYN within a connection changes nothing (RFC 5961, 4).
    assert!(rig.pass(&syn));
    assert_eq!(phase(&rig), Some(ConnectionState::Established));
    assert!(rig.pass(&to.clone().flags(FIN | ACK)) && rig.pass(&from.clone().flags(ACK)));
    assert!(rig.pass(&from.clone().flags(FIN | ACK)) && rig.pass(&to.clone().flags(ACK)));
    assert_eq!(phase(&rig), Some(ConnectionState::Closed));
    assert!(rig.pass(&syn));
    assert_eq!(phase(&rig), Some(ConnectionState::SynSent));
    assert!(rig.pass(&from.flags(RST | ACK)));
    assert_eq!(phase(&rig), Some(ConnectionState::Closed));
    assert_eq!(
        (rig.zones[0].connections(), rig.zones[0].half_open()),
        (1, 0)
    );
    rig.single.ledgers();
}

/// An error passes to the sender of the packet that it quotes, from whatever router; another one needs a rule.
#[test]
fn an_icmp_error_belongs_to_the_connection_whose_packet_it_quotes() {
    for is_v6 in [false, true] {
        let mut rig = web();
        let out = Packet {
            v6: is_v6,
            ..Packet::new(A, FAR, UDP, (5000, 33434))
        };
        assert!(rig.pass(&out));
        let error = |port: u16, to: u8| {
            let quoted = [5000u16.to_be_bytes(), port.to_be_bytes(), [0, 20], [0, 0]].concat();
            match is_v6 {
                false => {
                    let inner = v4(A, FAR, UDP, 0, 0, &quoted);
                    let message = [&[3, 3, 0, 0, 0, 0, 0, 0][..], &inner].concat();
                    ethernet(GUEST, UPLINK, V4, &v4(3, to, 1, 0, 0, &message))
                }
                true => {
                    let inner = v6(A, FAR, 64, UDP, &quoted);
                    let message = [&[1, 4, 0, 0, 0, 0, 0, 0][..], &inner, &[0; 100]].concat();
                    ethernet(GUEST, UPLINK, V6, &v6(3, to, 64, 58, &message))
                }
            }
        };
        assert_eq!(rig.send(UPLINK, &error(33434, A)), [GUEST]);
        assert!(rig.send(UPLINK, &error(33435, A)).is_empty());
        // Not for the quoted packet's sender.
        assert!(rig.send(UPLINK, &error(33434, 9)).is_empty());
        assert_eq!(rig.drops(GUEST)[&DropReason::GroupDeniedIn], 2);
    }
}

/// The fragments of a datagram pass if its first one does, in both directions and in both versions of IP.
#[test]
fn later_fragments_follow_the_first() {
    let mut rig = web();
    let more = 0x2000;
    let to_guest = |id: u16, place: u16, payload: &[u8]| {
        ethernet(GUEST, UPLINK, V4, &v4(FAR, A, TCP, id, place, payload))
    };
    let mut segment = [1000u16.to_be_bytes(), 80u16.to_be_bytes()].concat();
    segment.resize(64, 0);
    assert!(rig.send(UPLINK, &to_guest(7, 8, &[1; 64])).is_empty());
    assert_eq!(rig.send(UPLINK, &to_guest(7, more, &segment)), [GUEST]);
    assert_eq!(rig.send(UPLINK, &to_guest(7, 8, &[1; 64])), [GUEST]);
    // The datagrams of another protocol have numbers of their own (RFC 791, 3.2).
    let of_udp = v4(FAR, A, UDP, 7, 8, &[1; 64]);
    assert!(
        rig.send(UPLINK, &ethernet(GUEST, UPLINK, V4, &of_udp))
            .is_empty()
    );
    // Another datagram; a first fragment that is not allowed; one without all ports (RFC 1858, 3).
    assert!(rig.send(UPLINK, &to_guest(8, 8, &[1; 64])).is_empty());
    let mut denied = segment.clone();
    denied[3] = 81;
    assert!(rig.send(UPLINK, &to_guest(9, more, &denied)).is_empty());
    assert!(rig.send(UPLINK, &to_guest(9, 8, &[1; 64])).is_empty());
    assert!(
        rig.send(UPLINK, &to_guest(10, more, &segment[..4]))
            .is_empty()
    );
    assert_eq!(rig.drops(GUEST)[&DropReason::FragmentUnknownIn], 4);

    let from_guest = |id: u32, place: u16, payload: &[u8]| {
        let header = [
            &[UDP, 0][..],
            &place.to_be_bytes(),
            &id.to_be_bytes(),
            payload,
        ]
        .concat();
        ethernet(UPLINK, GUEST, V6, &v6(A, FAR, 64, 44, &header))
    };
    assert!(rig.send(GUEST, &from_guest(1, 64, &[1; 64])).is_empty());
    assert_eq!(
        rig.send(GUEST, &from_guest(1, 1, &udp((5, 6), 56))),
        [UPLINK]
    );
    assert_eq!(rig.send(GUEST, &from_guest(1, 64, &[1; 64])), [UPLINK]);
    assert_eq!(rig.drops(GUEST)[&DropReason::FragmentUnknownOut], 1);
}

/// A guest over its quota loses its own new connections; those that it has go on, and its neighbour has its own quota.
#[test]
fn a_guest_over_its_quota_loses_only_its_own_new_connections() {
    let rules = || vec![any_out()];
    let mut rig = Rig::with([rules(), rules()], 1000);
    // A tenth may be half-open.
    let syn = |from: u8, port: u16| Packet::new(from, FAR, TCP, (port, 80));
    let passed = (0..300).filter(|port| rig.pass(&syn(A, *port))).count();
    assert_eq!(passed, 100);
    assert_eq!(rig.drops(GUEST)[&DropReason::ConnectionLimitOut], 200);
    assert!(rig.pass(&syn(A, 0).answer()) && rig.pass(&syn(1, 0)));
    let datagram = |port: u16| Packet::new(A, FAR, UDP, (port, 53));
    let passed = (0..2000).filter(|port| rig.pass(&datagram(*port))).count();
    assert_eq!(passed, 900);
    assert_eq!(rig.zones[0].connections(), 1000);
    assert_eq!(rig.zones[0].refused_total(), 200 + 1100);
    assert_eq!(
        rig.tables[0].hits(0),
        1000,
        "what the quota refuses is no hit"
    );
    // What times out makes room: TCP that is half-open after 30 s, UDP of one side after 30 s.
    let zones = rig.zones.clone();
    let zone = |id: u32| {
        zones
            .iter()
            .map(|zone| &**zone)
            .find(|zone| zone.id() == id)
    };
    let all = rig.connections.capacity();
    assert_eq!(rig.connections.sweep(30, all, zone).removed, 0);
    assert_eq!(rig.connections.sweep(31, all, zone).removed, 1001);
    assert_eq!(
        (
            rig.connections.len(),
            rig.zones[0].connections(),
            rig.zones[0].half_open()
        ),
        (0, 0, 0)
    );
    assert!(rig.pass(&datagram(1)) && rig.pass(&syn(A, 1)));
}

/// Changed rules end connections that they no longer allow, at their next packet, and no others, also if the other direction
/// is allowed; or they leave all, if asked to.
#[test]
fn changed_rules_end_what_they_no_longer_allow() {
    for keeps in [false, true] {
        let mut rig = web();
        let web = Packet::new(FAR, A, TCP, (1000, 80));
        let dns = Packet::new(A, FAR, UDP, (2000, 53));
        for packet in [&web, &dns] {
            assert!(rig.pass(packet) && rig.pass(&packet.answer()));
        }
        assert!(rig.pass(&web.clone().flags(ACK)));
        rig.set_rules(vec![any_out()], 1, keeps);
        // The server sends what was not acknowledged again: that begins no connection in its direction.
        for _ in 0..2 {
            assert_eq!(rig.pass(&web.answer().flags(ACK)), keeps);
            assert_eq!(rig.pass(&web.clone().flags(ACK)), keeps);
        }
        assert!(rig.pass(&dns) && rig.pass(&dns.answer()));
        // The guest itself may begin one between these ports.
        assert!(rig.pass(&web.answer().flags(SYN)));
        assert!(rig.pass(&web.clone().flags(SYN | ACK)));
        assert_eq!(rig.zones[0].connections(), 2);
        // And what is allowed again goes on; a connection that was kept began in the direction that is not.
        rig.set_rules(vec![rule(Direction::Out, Some(UDP), &[], None)], 2, false);
        assert!(rig.pass(&dns) && !rig.pass(&web.answer().flags(ACK)));
        rig.set_rules(vec![any_out()], 3, false);
        assert!(rig.pass(&dns));
        assert_eq!(rig.pass(&web.answer().flags(ACK)), !keeps);
        rig.single.ledgers();
    }
}

/// A request for a checksum writes into no field that was decided on.
#[test]
fn a_checksum_over_the_ports_of_sctp_is_refused() {
    let mut rig = Rig::new([vec![any_out()], vec![]]);
    let header = |csum_offset| VirtioNetHdr {
        flags: crosspoint_guest::net::HDR_F_NEEDS_CSUM,
        csum_start: 34,
        csum_offset,
        ..VirtioNetHdr::default()
    };
    let frame = ethernet(UPLINK, GUEST, V4, &v4(A, FAR, 132, 0, 0, &[1; 40]));
    for (offset, passes) in [(8, true), (2, false), (0, false)] {
        let sent = rig.single.drivers[GUEST]
            .transmit
            .send(&header(offset), &frame);
        assert!(sent.unwrap());
        rig.single.drain_of(GUEST);
        let got = rig.single.drivers[UPLINK].received().concat();
        assert_eq!(!got.is_empty(), passes, "{offset}");
    }
    assert_eq!(rig.drops(GUEST)[&DropReason::BadOffload], 2);
}

/// Echo requests begin connections, and only the replies to them belong to these.
#[test]
fn only_replies_to_an_echo_request_belong_to_it() {
    let message =
        |kind: u8, id: u16| [&[kind, 0, 0, 0][..], &id.to_be_bytes(), &[0, 1], &[0; 12]].concat();
    let to_guest = |rig: &mut Rig, kind, id| {
        let frame = ethernet(GUEST, UPLINK, V4, &v4(FAR, A, 1, 0, 0, &message(kind, id)));
        !rig.send(UPLINK, &frame).is_empty()
    };
    let from_guest = |rig: &mut Rig, kind, id| {
        let frame = ethernet(UPLINK, GUEST, V4, &v4(A, FAR, 1, 0, 0, &message(kind, id)));
        !rig.send(GUEST, &frame).is_empty()
    };
    let ping = Rule {
        icmp: Some((8, None)),
        ..rule(Direction::In, Some(1), &[], None)
    };
    let mut rig = Rig::new([vec![ping], vec![]]);
    assert!(to_guest(&mut rig, 8, 0) && from_guest(&mut rig, 0, 0));
    // Neither a redirect nor a time stamp, nor a request the other way.
    for kind in [5, 13, 14, 0] {
        assert!(!to_guest(&mut rig, kind, 0), "{kind}");
    }
    assert!(!from_guest(&mut rig, 8, 0) && !from_guest(&mut rig, 0, 1));
    let reply = Rule {
        icmp: Some((0, None)),
        ..rule(Direction::Out, Some(1), &[], None)
    };
    let mut rig = Rig::new([vec![reply], vec![]]);
    assert!(from_guest(&mut rig, 0, 7) && !to_guest(&mut rig, 8, 7));
    assert_eq!(rig.zones[0].connections(), 0);
}

/// The same addresses in two VLANs are two connections.
#[test]
fn a_connection_of_one_vlan_lets_nothing_of_another_in() {
    let mut rig = web();
    let (out, back) = (udp((5000, 53), 20), udp((53, 5000), 20));
    let tag = |vlan: u8| [0x81, 0, 0, vlan, 8, 0];
    let from_guest = ethernet(UPLINK, GUEST, &tag(10), &v4(A, FAR, UDP, 0, 0, &out));
    let to_guest = |vlan| ethernet(GUEST, UPLINK, &tag(vlan), &v4(FAR, A, UDP, 0, 0, &back));
    // Addresses are known without a VLAN only: these frames are flooded.
    assert_eq!(rig.send(GUEST, &from_guest), [UPLINK]);
    assert!(rig.send(UPLINK, &to_guest(20)).is_empty());
    assert_eq!(rig.send(UPLINK, &to_guest(10)), [GUEST]);
}

/// What others begin uses up a part of the guest's quota only.
#[test]
fn others_cannot_use_up_a_guests_quota() {
    let mut rig = Rig::with(
        [
            vec![any_out(), rule(Direction::In, None, &[], None)],
            vec![],
        ],
        1000,
    );
    let packets = (0..2000u16).flat_map(|port| {
        let syn = Packet::new(FAR, A, TCP, (port, 80));
        [
            syn.clone(),
            syn.clone().flags(FIN | ACK).at_port(81),
            syn.flags(ACK).at_port(82),
            Packet::new(FAR, A, UDP, (port, 53)),
        ]
    });
    let passed = packets.filter(|packet| rig.pass(packet)).count();
    assert_eq!(passed, 100 + 250);
    assert!(
        rig.pass(&Packet::new(A, FAR, TCP, (1, 80)))
            && rig.pass(&Packet::new(A, FAR, UDP, (1, 80)))
    );
}

#[test]
fn what_is_not_ip_passes_by_a_rule_for_its_type_only() {
    const PPPOE: u16 = 0x8863;
    let of_type = |direction, link: LinkParts| Rule {
        link: LinkParts {
            ethertype: Some(PPPOE),
            ..link
        },
        ..rule(direction, None, &[], None)
    };
    let from_far = LinkParts {
        macs: vec![Mac::new(host(UPLINK as u8))].into(),
        ..LinkParts::default()
    };
    let rules = vec![
        any_out(),
        of_type(Direction::Out, LinkParts::default()),
        of_type(Direction::In, from_far),
    ];
    let mut rig = Rig::new([rules, vec![any_out()]]);
    let frame = |to: usize, from: usize, kind: u16| ethernet(to, from, &kind.to_be_bytes(), &[7]);
    assert_eq!(rig.send(GUEST, &frame(UPLINK, GUEST, PPPOE)), [UPLINK]);
    assert_eq!(rig.send(UPLINK, &frame(GUEST, UPLINK, PPPOE)), [GUEST]);
    // From another station, and of other types: a rule for any protocol is one for IP.
    assert_eq!(rig.send(UPLINK, &frame(GUEST, 9, PPPOE)), [0; 0]);
    assert_eq!(rig.send(GUEST, &frame(UPLINK, GUEST, 0x8864)), [0; 0]);
    assert_eq!(rig.tables[GUEST].hits(1), 1);
    assert_eq!(rig.tables[GUEST].hits(2), 1);
    // Tags or a SNAP header do not make another frame one of this type.
    let hidden = ethernet(
        UPLINK,
        GUEST,
        &[0, 60],
        &[0xaa, 0xaa, 3, 0, 0, 0, 0x88, 0x63],
    );
    assert_eq!(rig.send(GUEST, &hidden), [0; 0]);
    assert_eq!(rig.drops(GUEST)[&DropReason::GroupDeniedOut], 2);
}

/// A connection goes on after a change of rules if these allow it from the station that now sends.
#[test]
fn a_rule_for_a_station_also_holds_when_rules_change() {
    let from = |station: u8| Rule {
        link: LinkParts {
            macs: vec![Mac::new(host(station))].into(),
            ..LinkParts::default()
        },
        ..rule(Direction::In, Some(TCP), &[80..=80], None)
    };
    let mut rig = Rig::new([vec![from(UPLINK as u8)], vec![any_out()]]);
    let open = Packet::new(FAR, A, TCP, (1000, 80));
    assert!(rig.pass(&open));
    assert!(rig.pass(&open.answer()));
    rig.set_rules(vec![from(UPLINK as u8), any_out()], 1, false);
    assert!(rig.pass(&open.clone().flags(ACK)));
    assert!(rig.pass(&open.answer().flags(ACK)));
    rig.set_rules(vec![from(9)], 2, false);
    assert!(!rig.pass(&open.flags(ACK)));
}

/// Flags that a rule compares cannot be hidden: not behind a tiny first fragment and padding, not under a fragment that would be
/// written over them (RFC 1858, RFC 3128), and not behind more headers than are read.
#[test]
fn no_segment_hides_its_flags_from_a_rule() {
    let flags = |set, clear| Rule {
        link: LinkParts {
            tcp_flags: Some(TcpFlags { set, clear }),
            ..LinkParts::default()
        },
        stateful: false,
        ..rule(Direction::In, Some(TCP), &[], None)
    };
    const MORE: u16 = 0x2000;
    let header = |flags: u8| {
        let mut header = [&[0, 9, 0, 80][..], &[0; 8], &[0x50, flags], &[0; 6]].concat();
        header.resize(24, 0);
        header
    };
    let mut rig = Rig::new([vec![flags(ACK, 0)], vec![any_out()]]);
    let mut passes = |place: u16, payload: &[u8]| {
        let packet = v4(FAR, A, TCP, 7, place, payload);
        let mut frame = ethernet(GUEST, UPLINK, &[8, 0], &packet);
        // What is behind a short packet is padding: flags of another segment.
        if payload.len() == 8 {
            frame[14 + 20 + 13] = ACK;
        }
        !rig.send(UPLINK, &frame).is_empty()
    };
    assert!(!passes(MORE, &header(SYN)[..8]));
    assert!(!passes(MORE, &header(SYN)));
    assert!(passes(MORE, &header(ACK)));
    assert!(!passes(1, &header(SYN)[8..]));
    assert!(passes(3, &[7; 40]));

    // Receivers take the protocol of IPv6 from the first fragment alone.
    let fragment = |next: u8, place: u16, payload: &[u8]| {
        let header = [&[next, 0][..], &place.to_be_bytes(), &[0, 0, 0, 9], payload].concat();
        ethernet(GUEST, UPLINK, &[0x86, 0xdd], &v6(FAR, A, 64, 44, &header))
    };
    assert!(!rig.send(UPLINK, &fragment(TCP, 1, &header(ACK))).is_empty());
    for next in [TCP, UDP, 59] {
        assert!(
            rig.send(UPLINK, &fragment(next, 8, &header(SYN)[8..]))
                .is_empty()
        );
    }
    assert!(!rig.send(UPLINK, &fragment(TCP, 24, &[7; 40])).is_empty());

    // Ports within the bytes that are read, and flags behind them.
    let mut rig = Rig::new([vec![flags(0, SYN)], vec![any_out()]]);
    let mut passes = |options: usize, flags: u8| {
        let len = (options / 8 - 1) as u8;
        let mut payload = [&[TCP, len, 1, 4][..], &vec![0; options - 4]].concat();
        payload.extend(header(flags));
        let packet = v6(FAR, A, 64, 60, &payload);
        !rig.send(UPLINK, &ethernet(GUEST, UPLINK, &[0x86, 0xdd], &packet))
            .is_empty()
    };
    for (options, flags, expected) in [
        (8, ACK, true),
        (8, SYN, false),
        (64, ACK, false),
        (64, SYN, false),
    ] {
        assert_eq!(passes(options, flags), expected, "{options} {flags}");
    }
}

/// A connection that a rule with flags has allowed goes on after a change of rules that keeps this rule.
#[test]
fn a_rule_with_flags_does_not_end_its_connections_when_rules_change() {
    let acks = Rule {
        link: LinkParts {
            tcp_flags: Some(TcpFlags {
                set: ACK,
                clear: SYN,
            }),
            ..LinkParts::default()
        },
        ..rule(Direction::In, Some(TCP), &[80..=80], None)
    };
    let mut rig = Rig::new([vec![acks.clone()], vec![any_out()]]);
    let segment = Packet::new(FAR, A, TCP, (1000, 80)).flags(ACK);
    assert!(!rig.pass(&segment.clone().flags(SYN)));
    assert!(rig.pass(&segment) && rig.pass(&segment.answer().flags(ACK)));
    rig.set_rules(vec![acks, any_out()], 1, false);
    assert!(rig.pass(&segment) && rig.pass(&segment.answer().flags(ACK)));
    rig.set_rules(vec![any_out()], 2, false);
    assert!(!rig.pass(&segment));
}

/// A router or a gateway with one port: packets of a connection come in and go out again.
#[test]
fn a_guest_that_forwards_through_its_one_port_has_its_connections() {
    let to_80 = rule(Direction::In, Some(TCP), &[80..=80], None);
    let mut rig = Rig::new([vec![to_80], vec![any_out()]]);
    // As the guest sends it on to the far station, or as that sends it to the guest.
    let at = |packet: &Packet, from: usize, to: usize| {
        let mut frame = packet.frame(b"payload");
        frame[..6].copy_from_slice(&host(to as u8));
        frame[6..12].copy_from_slice(&host(from as u8));
        frame
    };
    let syn = Packet::new(FAR, A, TCP, (1000, 80));
    let answer = syn.answer();
    for (packet, from, to) in [
        (&syn, UPLINK, GUEST),
        (&syn, GUEST, UPLINK),
        (&answer, UPLINK, GUEST),
        (&answer, GUEST, UPLINK),
    ] {
        assert_eq!(
            rig.send(from, &at(packet, from, to)),
            [to],
            "{packet:?} from {from}"
        );
    }
    assert_eq!(rig.zones[0].connections(), 1);
}
