//! The innermost checksum in packets of Linux's tunnels is found, and finished as the sender would have done; no other
//! checksum is changed.
//!
//! Frames are built from the inside out, with every checksum right. Linux's "local checksum offload" produces the same,
//! except for the innermost checksum, which holds its pseudo-header's sum.

use crosspoint_packet::checksum::{Partial, finish, fold, sum};
use crosspoint_packet::partial::{self, Beyond, HEADERS_LEN_MAX, find_in};
use proptest::prelude::*;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// A packet and its innermost checksum.
#[derive(Clone, Debug)]
struct Packet {
    bytes: Vec<u8>,
    /// Start of the innermost checksum, and the offset of its field from there.
    start: usize,
    offset: usize,
    /// Value that its sender leaves in the field.
    seed: u16,
    /// The packet's Ethernet type and IP protocol.
    ethertype: u16,
    protocol: u8,
}

impl Packet {
    fn behind(mut self, header: &[u8], ethertype: u16, protocol: u8) -> Packet {
        self.bytes.splice(0..0, header.iter().copied());
        self.start += header.len();
        Packet {
            ethertype,
            protocol,
            ..self
        }
    }

    /// Returns the packet as a veth delivers it.
    fn partial(&self) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        let at = self.start + self.offset;
        bytes[at..at + 2].copy_from_slice(&self.seed.to_be_bytes());
        bytes
    }
}

fn pseudo(source: &[u8], destination: &[u8], protocol: u8, len: usize) -> u16 {
    let rest = [&[0, 0, 0, protocol], &(len as u32).to_be_bytes()[..]].concat();
    fold(sum(&rest, sum(source, sum(destination, 0))))
}

const V4: ([u8; 4], [u8; 4]) = ([10, 0, 0, 1], [10, 0, 0, 2]);

fn v6() -> ([u8; 16], [u8; 16]) {
    let address = |last| {
        let mut address = [0; 16];
        (address[0], address[15]) = (0xfd, last);
        address
    };
    (address(1), address(2))
}

/// The innermost packet: TCP or UDP, whose pseudo-header has these addresses.
fn transport(protocol: u8, source: &[u8], destination: &[u8], payload: &[u8]) -> Packet {
    let (mut bytes, offset) = match protocol {
        TCP => {
            let mut header = vec![0; 20];
            (header[1], header[3], header[12], header[13]) = (80, 81, 0x50, 0x10);
            (header, 16)
        }
        _ => {
            let len = (8 + payload.len() as u16).to_be_bytes();
            (vec![0, 80, 0, 81, len[0], len[1], 0, 0], 6)
        }
    };
    bytes.extend(payload);
    let seed = pseudo(source, destination, protocol, bytes.len());
    bytes[offset..offset + 2].copy_from_slice(&seed.to_be_bytes());
    let value = finish(sum(&bytes, 0));
    bytes[offset..offset + 2].copy_from_slice(&value.to_be_bytes());
    Packet {
        bytes,
        start: 0,
        offset,
        seed,
        ethertype: 0,
        protocol,
    }
}

fn ipv4(inner: Packet, options: &[u8]) -> Packet {
    let len = (20 + options.len() + inner.bytes.len()) as u16;
    let mut header = vec![0x45 + (options.len() / 4) as u8, 0];
    header.extend(len.to_be_bytes());
    header.extend([0, 1, 0x40, 0, 64, inner.protocol, 0, 0]);
    header.extend(V4.0);
    header.extend(V4.1);
    header.extend(options);
    let check = !fold(sum(&header, 0));
    header[10..12].copy_from_slice(&check.to_be_bytes());
    inner.behind(&header, 0x0800, 4)
}

/// IPv6 with extension headers, the first of kind `first`.
fn ipv6(inner: Packet, first: u8, extensions: &[u8]) -> Packet {
    let len = (extensions.len() + inner.bytes.len()) as u16;
    let mut header = vec![0x60, 0, 0, 0];
    header.extend(len.to_be_bytes());
    header.extend([first, 64]);
    header.extend(v6().0);
    header.extend(v6().1);
    header.extend(extensions);
    inner.behind(&header, 0x86dd, 41)
}

fn ethernet(inner: Packet) -> Packet {
    let ethertype = inner.ethertype.to_be_bytes();
    let header = [&[2; 12][..], &ethertype].concat();
    inner.behind(&header, 0x6558, 143)
}

fn tag(inner: Packet, ethertype: u16) -> Packet {
    let header = [0, 7, (inner.ethertype >> 8) as u8, inner.ethertype as u8];
    inner.behind(&header, ethertype, 0)
}

/// UDP between the addresses of the outer IP header, with or without a checksum.
fn udp(inner: Packet, port: u16, summed: Option<u8>) -> Packet {
    let len = (8 + inner.bytes.len() as u16).to_be_bytes();
    let to = port.to_be_bytes();
    let header = [0xc0, 0, to[0], to[1], len[0], len[1], 0, 0];
    let mut packet = inner.behind(&header, 0, UDP);
    if let Some(version) = summed {
        let (source, destination) = match version {
            4 => (V4.0.to_vec(), V4.1.to_vec()),
            _ => (v6().0.to_vec(), v6().1.to_vec()),
        };
        let seed = pseudo(&source, &destination, UDP, packet.bytes.len());
        let value = finish(sum(&packet.bytes, u64::from(seed.to_be())));
        packet.bytes[6..8].copy_from_slice(&value.to_be_bytes());
    }
    packet
}

fn gre(inner: Packet, flags: u16) -> Packet {
    let mut header = [flags.to_be_bytes(), inner.ethertype.to_be_bytes()].concat();
    for flag in [0x8000, 0x2000, 0x1000] {
        header.extend(match flags & flag {
            0 => &[][..],
            0x8000 => &[0; 4],
            _ => &[0, 0, 0, 9],
        });
    }
    let mut packet = inner.behind(&header, 0, 47);
    if flags & 0x8000 != 0 {
        let value = !fold(sum(&packet.bytes, 0));
        packet.bytes[4..6].copy_from_slice(&value.to_be_bytes());
    }
    packet
}

/// Encapsulates a packet in a tunnel of kind `kind`.
fn wrap(inner: Packet, kind: u8, summed: bool) -> Packet {
    let sum4 = summed.then_some(4);
    let sum6 = summed.then_some(6);
    let vni = [0, 0, 9, 0];
    match kind {
        0 => ipv4(
            udp(
                ethernet(inner).behind(&[[8, 0, 0, 0], vni].concat(), 0, 0),
                4789,
                sum4,
            ),
            &[],
        ),
        1 => {
            let vxlan = ethernet(inner).behind(&[[8, 0, 0, 0], vni].concat(), 0, 0);
            ipv6(udp(vxlan, 8472, sum6), UDP, &[])
        }
        // VXLAN with a group policy, to an arbitrary port.
        2 => ipv4(
            udp(
                ethernet(inner).behind(&[[0x88, 0, 0, 5], vni].concat(), 0, 0),
                51_234,
                sum4,
            ),
            &[],
        ),
        // VXLAN-GPE.
        3 => {
            let next = if inner.protocol == 41 { 2 } else { 1 };
            ipv4(
                udp(
                    inner.behind(&[[0x0c, 0, 0, next], vni].concat(), 0, 0),
                    4790,
                    sum4,
                ),
                &[],
            )
        }
        // Geneve, with an option.
        4 => {
            let header = [&[2, 0, 0x65, 0x58][..], &vni, &[1, 2, 3, 1, 9, 9, 9, 9]].concat();
            ipv4(udp(ethernet(inner).behind(&header, 0, 0), 6081, sum4), &[])
        }
        5 => ipv6(
            udp(
                ethernet(inner).behind(&[[0, 0, 0x65, 0x58], vni].concat(), 0, 0),
                6081,
                sum6,
            ),
            UDP,
            &[],
        ),
        6 => ipv4(gre(inner, if summed { 0xb000 } else { 0 }), &[]),
        7 => ipv6(
            gre(ethernet(inner), if summed { 0xa000 } else { 0x2000 }),
            47,
            &[],
        ),
        8 => ipv4(inner, &[]),
        9 => {
            let protocol = inner.protocol;
            ipv6(inner, protocol, &[])
        }
        // FOU, and GRE in it.
        10 => ipv4(udp(inner, 5555, sum4), &[]),
        11 => ipv4(udp(gre(ethernet(inner), 0), 5555, sum4), &[]),
        // GUE.
        12 => {
            let header = [0, inner.protocol, 0, 0];
            ipv4(udp(inner.behind(&header, 0, 0), 6080, sum4), &[])
        }
        // MPLS in GRE, in UDP, and in IP.
        13 => {
            let labels = inner.behind(&[0, 1, 0, 64, 0, 2, 1, 64], 0x8847, 137);
            ipv4(gre(labels, 0), &[])
        }
        14 => ipv4(udp(inner.behind(&[0x20, 1, 1, 64], 0, 0), 6635, sum4), &[]),
        15 => ipv4(inner.behind(&[0, 1, 1, 64], 0, 137), &[]),
        // The three kinds of ERSPAN.
        16 => ipv4(
            gre(
                Packet {
                    ethertype: 0x88be,
                    ..ethernet(inner)
                },
                0,
            ),
            &[],
        ),
        17 => {
            let mirrored = ethernet(inner).behind(&[0x10, 1, 0, 1, 0, 0, 0, 0], 0x88be, 0);
            ipv4(gre(mirrored, 0x1000), &[])
        }
        18 => {
            let mirrored =
                ethernet(inner).behind(&[0x20, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0], 0x22eb, 0);
            ipv4(gre(mirrored, 0x1000), &[])
        }
        // NSH in VXLAN-GPE.
        19 => {
            let nsh = ethernet(inner).behind(&[0x0f, 0xc2, 2, 3, 0, 0, 1, 255], 0, 0);
            ipv4(
                udp(
                    nsh.behind(&[[0x0c, 0, 0, 4], vni].concat(), 0, 0),
                    4790,
                    sum4,
                ),
                &[],
            )
        }
        // Segment routing of Ethernet and of IP, before the last of two segments.
        _ => {
            let inner = if kind == 20 { ethernet(inner) } else { inner };
            let mut routing = vec![inner.protocol, 4, 4, 1, 1, 0, 0, 0];
            routing.extend([7; 16]);
            routing.extend([8; 16]);
            ipv6(inner, 43, &routing)
        }
    }
}

const KINDS: u8 = 22;

fn innermost(v6_: bool, protocol: u8, payload: &[u8]) -> Packet {
    match v6_ {
        false => ipv4(transport(protocol, &V4.0, &V4.1, payload), &[]),
        true => {
            let (source, destination) = v6();
            ipv6(
                transport(protocol, &source, &destination, payload),
                protocol,
                &[],
            )
        }
    }
}

fn check(packet: &Packet) {
    let found = find_in(&packet.partial());
    let place = Partial {
        start: packet.start as u16,
        offset: packet.offset as u16,
    };
    assert_eq!(found, Some(place), "{packet:x?}");
    let mut bytes = packet.partial();
    let value = finish(sum(&bytes[packet.start..], 0));
    let at = packet.start + packet.offset;
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
    assert_eq!(bytes, packet.bytes);
    assert_eq!(find_in(&packet.bytes), None, "it is whole");
}

proptest! {
    /// In every tunnel, with and without its own checksum, within up to two others and after tags.
    #[test]
    fn the_innermost_checksum_of_tunnels_in_tunnels_is_found(
        tcp: bool, v6: bool, payload in prop::collection::vec(any::<u8>(), 0..100),
        kinds in prop::collection::vec((0..KINDS, any::<bool>()), 0..3), tags in prop::collection::vec(any::<bool>(), 0..4),
    ) {
        let mut packet = innermost(v6, if tcp { TCP } else { UDP }, &payload);
        for (kind, summed) in kinds {
            packet = wrap(packet, kind, summed);
        }
        for service in tags {
            packet = tag(packet, if service { 0x88a8 } else { 0x8100 });
        }
        let packet = ethernet(packet);
        prop_assume!(packet.start + packet.offset + 2 <= HEADERS_LEN_MAX);
        // Once in 65536 frames a finished checksum is equal to the partial one.
        let at = packet.start + packet.offset;
        prop_assume!(packet.bytes[at..at + 2] != packet.seed.to_be_bytes());
        check(&packet);
    }

    /// For any beginning of the frame the result is the same, or that more is needed.
    #[test]
    fn a_beginning_says_the_same_or_asks_for_more(
        kind in 0..KINDS, summed: bool, tcp: bool, len in 0usize..300,
    ) {
        let packet = ethernet(wrap(innermost(false, if tcp { TCP } else { UDP }, &[5; 80]), kind, summed));
        let frame = packet.partial();
        let beginning = &frame[..len.min(frame.len())];
        match partial::find(beginning, frame.len()) {
            Ok(found) => prop_assert_eq!(found, find_in(&frame)),
            Err(Beyond) => prop_assert!(beginning.len() < frame.len()),
        }
    }

    #[test]
    fn any_bytes_are_walked_without_panic(
        kinds in prop::collection::vec(0..KINDS, 0..4), cut in 0usize..200, bytes in prop::collection::vec(any::<u8>(), 0..600),
        changes in prop::collection::vec((0usize..300, any::<u8>()), 0..8), more in 0usize..2000,
    ) {
        let _ = partial::find(&bytes, bytes.len() + more);
        let mut packet = innermost(true, UDP, &[]);
        for kind in kinds {
            packet = wrap(packet, kind, true);
        }
        let mut frame = ethernet(packet).partial();
        for (at, value) in changes {
            let at = at % frame.len();
            frame[at] = value;
        }
        frame.truncate(frame.len().saturating_sub(cut));
        if let Ok(Some(found)) = partial::find(&frame, frame.len() + more) {
            prop_assert!(usize::from(found.start + found.offset) + 2 <= frame.len());
        }
    }
}

/// In the pseudo-header, a routing header's last segment is the destination, and a home address is the source.
#[test]
fn addresses_of_extension_headers_and_options_are_those_of_the_pseudo_header() {
    let (source, destination) = v6();
    let last: [u8; 16] = [0x20; 16];
    let of = |source: &[u8], destination: &[u8]| transport(TCP, source, destination, b"bytes");
    let check_behind = |inner: Packet, first, extensions: &[u8]| {
        check(&ethernet(ipv6(inner, first, extensions)));
    };
    let options = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0];
    check_behind(of(&source, &destination), 0, &options(TCP));
    check_behind(of(&source, &destination), 60, &options(TCP));
    check_behind(
        of(&source, &destination),
        0,
        &[options(60), options(TCP)].concat(),
    );
    // Segment routing with the last segment first; a source route with the last one last; a mobile node's.
    let segments = |next, left| [&[next, 4, 4, left, 1, 0, 0, 0], &last[..], &[7; 16]].concat();
    let route = |kind, left| [&[TCP, 4, kind, left, 0, 0, 0, 0][..], &[7; 16], &last[..]].concat();
    let mobile = |left| [&[TCP, 2, 2, left, 0, 0, 0, 0], &last[..]].concat();
    check_behind(of(&source, &last), 43, &segments(TCP, 1));
    check_behind(of(&source, &last), 43, &route(0, 2));
    check_behind(of(&source, &last), 43, &mobile(1));
    check_behind(
        of(&source, &last),
        43,
        &[segments(60, 1), options(TCP).to_vec()].concat(),
    );
    // RPL: a prefix of eight bytes is left out.
    let mut compressed = destination;
    compressed[8..].copy_from_slice(&[5; 8]);
    let rpl = [&[TCP, 2, 3, 2, 0x88, 0, 0, 0][..], &[4; 8], &[5; 8]].concat();
    check_behind(of(&source, &compressed), 43, &rpl);
    // At the end of the route the IPv6 header has the last destination.
    check_behind(of(&source, &destination), 43, &segments(TCP, 0));
    check_behind(of(&source, &destination), 43, &route(0, 0));
    let home = [&[TCP, 2, 1, 2, 0, 0, 0xc9, 16][..], &last].concat();
    check_behind(of(&last, &destination), 60, &home);
    // IPv4: a loose and a strict route, with one hop left and with none.
    for kind in [131, 137] {
        let hops = |pointer| [1, kind, 11, pointer, 9, 9, 9, 9, 10, 9, 8, 7];
        check(&ethernet(ipv4(of(&V4.0, &[10, 9, 8, 7]), &hops(8))));
        check(&ethernet(ipv4(of(&V4.0, &V4.1), &hops(12))));
    }
}

/// GRE's checksum may be the partial one if the inner packet has no checksum.
#[test]
fn the_checksum_of_gre_itself_may_be_partial() {
    let echo = Packet {
        bytes: vec![8, 0, 0xf7, 0xff, 0, 0, 0, 0],
        start: 0,
        offset: 0,
        seed: 0,
        ethertype: 0,
        protocol: 1,
    };
    let packet = gre(ipv4(echo, &[]), 0x8000);
    let packet = Packet {
        start: 0,
        offset: 4,
        seed: 0,
        ..packet
    };
    check(&ethernet(ipv4(packet, &[])));
}

/// A packet that is mirrored, or left to the other end (remote checksum offload), is covered unchanged by an outer
/// checksum.
#[test]
fn what_a_checksum_around_it_covers_as_it_stands_is_left_alone() {
    let mirrored = innermost(false, TCP, b"bytes");
    let mirrored = Packet {
        bytes: mirrored.partial(),
        ..mirrored
    };
    for kind in [0, 1, 2, 4, 6, 7, 10, 12] {
        let frame = ethernet(wrap(mirrored.clone(), kind, true)).bytes;
        assert_eq!(find_in(&frame), None, "{kind}");
    }
    // And the outer datagram's checksum may itself be partial.
    let outer = ethernet(wrap(mirrored, 0, true));
    let outer = Packet {
        start: 34,
        offset: 6,
        seed: pseudo(&V4.0, &V4.1, UDP, outer.bytes.len() - 34),
        ..outer
    };
    check(&outer);
}

#[test]
fn fragments_and_what_is_enciphered_are_left_alone() {
    let (source, destination) = v6();
    let inner = || transport(TCP, &source, &destination, b"bytes");
    for (first, extension) in [
        (44, [TCP, 0, 0, 1, 0, 0, 0, 1]),
        (51, [TCP, 0, 0, 0, 0, 0, 0, 0]),
    ] {
        let frame = ethernet(ipv6(inner(), first, &extension)).partial();
        assert_eq!(find_in(&frame), None);
    }
    let mut frame = ethernet(innermost(false, TCP, b"bytes")).partial();
    frame[20] = 0x20;
    assert_eq!(find_in(&frame), None);
}
