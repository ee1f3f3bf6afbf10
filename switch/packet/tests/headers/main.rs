//! The walk of a frame's headers agrees with etherparse's, for any chain of headers, cut at any byte; and each of its
//! callers answers from it.

mod reference;

use crosspoint_packet::filter::Filter;
use crosspoint_packet::gro::{JOIN_HEADERS, Joinable, inspect};
use crosspoint_packet::headers::{EXTENSIONS_MAX, Fragment, Headers, Stop, Tags};
use crosspoint_packet::{FlowHasher, parse_l4};
use proptest::prelude::*;
use proptest::sample::select;

use reference::walk_and_compare;

const TCP: u8 = 6;
const UDP: u8 = 17;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AH: u8 = 51;
const DESTINATION: u8 = 60;
const MOBILITY: u8 = 135;

/// An extension header: its kind, its length beyond the shortest in units of 8 bytes, and the contents of a fragment
/// header's offset field.
#[derive(Clone, Copy, Debug)]
struct Extension {
    kind: u8,
    units: u8,
    place: u16,
}

impl Extension {
    fn new(kind: u8) -> Extension {
        Extension {
            kind,
            units: 0,
            place: 0,
        }
    }

    fn fragment(place: u16) -> Extension {
        Extension {
            place,
            ..Extension::new(FRAGMENT)
        }
    }

    fn bytes(&self, next: u8) -> Vec<u8> {
        let units = usize::from(self.units);
        match self.kind {
            FRAGMENT => {
                let [high, low] = self.place.to_be_bytes();
                vec![next, 0, high, low, 1, 2, 3, 4]
            }
            // With a check value of 12 bytes, so that the length is a multiple of 8.
            AH => {
                let mut bytes = vec![0; 24 + 8 * units];
                bytes[..2].copy_from_slice(&[next, 4 + 2 * self.units]);
                bytes
            }
            _ => {
                let mut bytes = vec![0; 8 + 8 * units];
                bytes[..2].copy_from_slice(&[next, self.units]);
                bytes
            }
        }
    }
}

/// Returns a frame with these tags, extension headers and payload.
fn ipv6(tags: &[u16], extensions: &[Extension], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let nexts = extensions.iter().skip(1).map(|extension| extension.kind);
    let nexts: Vec<u8> = nexts.chain([protocol]).collect();
    let mut packet: Vec<u8> = extensions
        .iter()
        .zip(&nexts)
        .flat_map(|(extension, next)| extension.bytes(*next))
        .collect();
    packet.extend(payload);
    let first = extensions.first().map_or(protocol, |first| first.kind);
    let mut frame = link(tags, 0x86dd);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend((packet.len() as u16).to_be_bytes());
    frame.extend([first, 64]);
    frame.extend([0xfd, 1].repeat(8));
    frame.extend([0xfd, 2].repeat(8));
    frame.extend(packet);
    frame
}

fn ipv4(
    tags: &[u16],
    (options, place): (u8, u16),
    headers: u8,
    protocol: u8,
    payload: &[u8],
) -> Vec<u8> {
    let authentication = Extension::new(AH);
    let mut packet = vec![];
    for number in 0..headers {
        let next = if number + 1 == headers { protocol } else { AH };
        packet.extend(authentication.bytes(next));
    }
    packet.extend(payload);
    let header = 20 + 4 * usize::from(options);
    let mut ip = vec![0; header];
    ip[0] = 0x45 + options;
    ip[2..4].copy_from_slice(&((header + packet.len()) as u16).to_be_bytes());
    ip[6..8].copy_from_slice(&place.to_be_bytes());
    ip[8..10].copy_from_slice(&[64, if headers > 0 { AH } else { protocol }]);
    ip[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    let mut frame = link(tags, 0x0800);
    frame.extend(ip);
    frame.extend(packet);
    frame
}

fn link(tags: &[u16], ethertype: u16) -> Vec<u8> {
    let mut frame = vec![2; 12];
    for tag in tags {
        frame.extend(tag.to_be_bytes());
        frame.extend([0, 100]);
    }
    frame.extend(ethertype.to_be_bytes());
    frame
}

/// A TCP or UDP header and some payload.
fn payload() -> Vec<u8> {
    let mut bytes = vec![0; 28];
    bytes[..4].copy_from_slice(&[0, 80, 1, 187]);
    bytes[4..6].copy_from_slice(&28_u16.to_be_bytes());
    bytes[12] = 0x50;
    bytes
}

fn tags() -> impl Strategy<Value = Vec<u16>> {
    let kind = select(vec![0x8100_u16, 0x8100, 0x88a8, 0x9100]);
    prop_oneof![Just(vec![]), prop::collection::vec(kind, 0..6)]
}

fn extension() -> impl Strategy<Value = Extension> {
    let kinds = vec![HOP_BY_HOP, ROUTING, FRAGMENT, AH, DESTINATION, MOBILITY];
    // Whole, first, later, last, and a reserved bit.
    let place = select(vec![0_u16, 0, 1, 1, 9, 0xfff8, 2]);
    (select(kinds), 0..4_u8, place).prop_map(|(kind, units, place)| Extension {
        kind,
        units,
        place,
    })
}

fn protocol() -> impl Strategy<Value = u8> {
    select(vec![TCP, TCP, UDP, 58, 1, 132, 50, 59, 4, 41, 253])
}

fn frame() -> impl Strategy<Value = Vec<u8>> {
    let v6 = (
        tags(),
        prop::collection::vec(extension(), 0..11),
        any::<bool>(),
        protocol(),
    )
        .prop_map(|(tags, mut extensions, in_order, protocol)| {
            if in_order {
                extensions.sort_by_key(|extension| extension.kind != HOP_BY_HOP);
                let is_late = |i: usize, e: &Extension| i > 0 && e.kind == HOP_BY_HOP;
                let mut number = 0..;
                extensions.retain(|e| !is_late(number.next().unwrap(), e));
            }
            ipv6(&tags, &extensions, protocol, &payload())
        });
    let place = select(vec![0_u16, 0, 0x4000, 0x2000, 0x2007, 7, 0x8000]);
    let v4 = (tags(), 0..=10_u8, place, 0..3_u8, protocol()).prop_map(
        |(tags, options, place, headers, protocol)| {
            ipv4(&tags, (options, place), headers, protocol, &payload())
        },
    );
    prop_oneof![2 => v6, 1 => v4]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Every chain of headers, cut at every byte.
    #[test]
    fn every_chain_cut_at_every_byte_is_walked_as_etherparse_walks_it(frame in frame()) {
        let whole = walk_and_compare(&frame);
        for len in 0..frame.len() {
            let cut = walk_and_compare(&frame[..len]);
            // Fewer bytes lead to no other answer, only to none.
            prop_assert!(cut == whole || cut.stop == Stop::CutShort, "{len}: {cut:?}, {whole:?}");
        }
    }

    /// The same with bytes that contradict the rest: versions, lengths, kinds.
    #[test]
    fn spoiled_headers_are_walked_as_etherparse_walks_them(
        frame in frame(), spoils in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut frame = frame;
        for (at, byte) in spoils {
            let at = at.index(frame.len());
            frame[at] = byte;
        }
        walk_and_compare(&frame);
    }

    #[test]
    fn any_bytes_are_walked_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        walk_and_compare(&bytes);
    }

    /// No caller finds ports where another finds none.
    #[test]
    fn all_callers_find_the_same_transport_header(frame in frame()) {
        let headers = Headers::parse(&frame);
        if headers != Headers::parse_behind(&frame, Tags::Any) {
            // Behind tags that only filters skip.
            return Ok(());
        }
        let found = headers.stop == Stop::Layer4;
        let has = |text: &str| Filter::parse(text).unwrap().matches(&frame);
        let is_tcp = found && headers.protocol == TCP;
        let is_udp = found && headers.protocol == UDP;
        prop_assert_eq!(has("src port 80 and dst port 443"), found && matches!(headers.protocol, TCP | UDP | 132));
        prop_assert_eq!(has("tcp port 80"), is_tcp);
        prop_assert_eq!(has("udp port 80"), is_udp);
        let l4 = parse_l4(&frame);
        prop_assert_eq!(l4.is_some(), found || headers.stop == Stop::LaterFragment);
        if let Some(l4) = l4 {
            prop_assert_eq!((l4.protocol, l4.offset), (headers.protocol, headers.offset));
            prop_assert_eq!(l4.offset + l4.len, frame.len());
        }
        // Joining closes the open runs at a frame that may be TCP, and only there.
        let head = &frame[..frame.len().min(JOIN_HEADERS)];
        if found && headers.offset + 20 <= head.len() {
            let is_foreign = inspect(head, frame.len()) == Joinable::Foreign;
            prop_assert_eq!(is_foreign, !is_tcp);
        }
    }

    /// All fragments of a datagram, and all packets of a flow with the same kinds of headers, have one hash; it needs 64 bytes.
    #[test]
    fn fragments_of_a_datagram_have_one_hash(
        tags in prop::collection::vec(select(vec![0x8100_u16, 0x88a8]), 0..3), seed: u64,
        before in select(vec![vec![], vec![DESTINATION], vec![HOP_BY_HOP, ROUTING]]), protocol in select(vec![TCP, UDP]),
        options in 0..=10_u8, ports: u32,
    ) {
        let hasher = FlowHasher::new(seed);
        let hash = |frame: &[u8]| {
            let head = hasher.hash(&frame[..frame.len().min(64)]);
            assert_eq!(head, hasher.hash(frame));
            head
        };
        let mut other = payload();
        other[..4].copy_from_slice(&ports.to_be_bytes());
        let fragment = |place: u16, payload: &[u8]| {
            let mut chain: Vec<Extension> = before.iter().map(|kind| Extension::new(*kind)).collect();
            chain.push(Extension::fragment(place));
            hash(&ipv6(&tags, &chain, protocol, payload))
        };
        prop_assert_eq!(fragment(1, &payload()), fragment(0x89, &other));
        let fragment = |place: u16, payload: &[u8]| hash(&ipv4(&tags, (options, place), 0, protocol, payload));
        prop_assert_eq!(fragment(0x2000, &payload()), fragment(0x2003, &other));
        prop_assert_eq!(fragment(0x2000, &payload()), fragment(7, &other));
    }
}

#[test]
fn a_hash_does_not_depend_on_lengths_in_headers() {
    let hasher = FlowHasher::new(5);
    let frames = [
        (ipv4(&[], (0, 0), 0, TCP, &payload()), 16..18),
        (ipv6(&[], &[], TCP, &payload()), 18..20),
    ];
    for (frame, len) in frames {
        let mut large = frame.clone();
        large[len].fill(0);
        assert_eq!(hasher.hash(&frame), hasher.hash(&large));
    }
}

#[test]
fn a_walk_says_where_it_stopped_and_why() {
    let option = Extension::new(DESTINATION);
    let walk = |extensions: &[Extension]| Headers::parse(&ipv6(&[], extensions, TCP, &payload()));
    let plain = walk(&[]);
    assert_eq!((plain.stop, plain.offset), (Stop::Layer4, 54));
    let most = walk(&[option; EXTENSIONS_MAX]);
    assert_eq!(
        (most.stop, most.protocol, most.offset),
        (Stop::Layer4, TCP, 54 + 64)
    );
    let more = walk(&[option; EXTENSIONS_MAX + 1]);
    assert_eq!(
        (more.stop, more.protocol, more.offset),
        (Stop::TooManyExtensions, DESTINATION, 54 + 64)
    );
    let late = walk(&[option, Extension::new(HOP_BY_HOP)]);
    assert_eq!((late.stop, late.offset), (Stop::BadHeader, 62));
    let fragments = [
        (0, Fragment::Atomic, Stop::Layer4),
        (1, Fragment::First, Stop::Layer4),
        (8, Fragment::Later, Stop::LaterFragment),
        (9, Fragment::Later, Stop::LaterFragment),
    ];
    for (place, fragment, stop) in fragments {
        let found = walk(&[option, Extension::fragment(place), option]);
        assert_eq!((found.fragment, found.stop), (fragment, stop), "{place}");
        assert!(!found.repeatable);
    }
    // A later fragment before a whole one stays one.
    let both = walk(&[Extension::fragment(1), Extension::fragment(0)]);
    assert_eq!((both.fragment, both.stop), (Fragment::First, Stop::Layer4));
    assert!(walk(&[option]).repeatable && !walk(&[Extension::new(AH)]).repeatable);
    assert!(!walk(&[Extension::new(MOBILITY)]).repeatable);
}

#[test]
fn three_tags_are_too_many_unless_any_are_taken() {
    let frame = ipv4(&[0x8100; 3], (0, 0), 0, TCP, &payload());
    let standard = Headers::parse(&frame);
    assert_eq!(
        (standard.stop, standard.tags, standard.ip_version),
        (Stop::TooManyTags, 2, 0)
    );
    let any = Headers::parse_behind(&frame, Tags::Any);
    assert_eq!((any.stop, any.tags, any.offset), (Stop::Layer4, 3, 46));
    let old = ipv4(&[0x9100], (0, 0), 0, TCP, &payload());
    assert_eq!(Headers::parse(&old).stop, Stop::Unknown);
    assert_eq!(Headers::parse_behind(&old, Tags::Any).stop, Stop::Layer4);
}

#[test]
fn headers_that_contradict_themselves_are_none() {
    let stop = |frame: &[u8]| walk_and_compare(frame).stop;
    let mut v4 = ipv4(&[], (0, 0), 1, TCP, &payload());
    assert_eq!(stop(&v4), Stop::Layer4);
    // The length of an AH, in words less two.
    v4[35] = 0;
    assert_eq!(stop(&v4), Stop::BadHeader);
    for first in [0x44, 0x40, 0x55, 0x65] {
        v4[14] = first;
        assert_eq!(stop(&v4), Stop::BadHeader, "{first:#x}");
    }
    let mut v6 = ipv6(&[], &[], TCP, &payload());
    v6[14] = 0x45;
    assert_eq!(stop(&v6), Stop::BadHeader);
}
