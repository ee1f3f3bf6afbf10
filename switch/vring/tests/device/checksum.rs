//! Partial checksums: completed for a guest that cannot complete them, described to a guest that can.

use std::sync::Arc;

use crosspoint_frame::{Burst, HeaderOp, TxEntry};
use crosspoint_guest::net::HDR_F_NEEDS_CSUM;
use crosspoint_guest::{ChainSplit, VirtioNetHdr};
use crosspoint_vring::{RxScratch, feature};
use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
use proptest::prelude::*;

use crate::world::{Guest, LAYOUTS, MODERN, tagged};

/// One's-complement sum of big-endian words, written as in RFC 1071.
fn ones_sum(bytes: &[u8]) -> u16 {
    let mut sum = 0u64;
    for pair in bytes.chunks(2) {
        sum += u64::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[derive(Clone, Copy, Debug)]
struct Kind {
    v6: bool,
    tcp: bool,
    vlan: bool,
}

/// A frame with a correct checksum, and the offset of its transport header.
fn packet(kind: Kind, payload: &[u8]) -> (Vec<u8>, usize) {
    let mut bytes = Vec::new();
    let ip = if kind.v6 { 40 } else { 20 };
    macro_rules! write {
        ($builder:expr) => {
            match (kind.v6, kind.tcp) {
                (false, true) => $builder
                    .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
                    .tcp(80, 81, 5, 6)
                    .write(&mut bytes, payload),
                (false, false) => $builder
                    .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
                    .udp(80, 81)
                    .write(&mut bytes, payload),
                (true, true) => $builder
                    .ipv6([3; 16], [4; 16], 64)
                    .tcp(80, 81, 5, 6)
                    .write(&mut bytes, payload),
                (true, false) => $builder
                    .ipv6([3; 16], [4; 16], 64)
                    .udp(80, 81)
                    .write(&mut bytes, payload),
            }
        };
    }
    let ethernet = PacketBuilder::ethernet2([2; 6], [4; 6]);
    if kind.vlan {
        write!(ethernet.single_vlan(5.try_into().unwrap()))
    } else {
        write!(ethernet)
    }
    .unwrap();
    (bytes, if kind.vlan { 18 } else { 14 } + ip)
}

/// As a sender with checksum offload leaves it: the field holds the sum of the pseudo-header.
fn partial(whole: &[u8], l4: usize, kind: Kind) -> Vec<u8> {
    let at = l4 + if kind.tcp { 16 } else { 6 };
    let (from, to) = if kind.v6 { (l4 - 32, l4) } else { (l4 - 8, l4) };
    let tail = [
        [0, if kind.tcp { 6 } else { 17 }],
        ((whole.len() - l4) as u16).to_be_bytes(),
    ]
    .concat();
    let mut bytes = whole.to_vec();
    bytes[at..at + 2].copy_from_slice(&ones_sum(&[&whole[from..to], &tail].concat()).to_be_bytes());
    bytes
}

/// Whether etherparse accepts the checksum.
fn is_right(frame: &[u8]) -> bool {
    let sliced = SlicedPacket::from_ethernet(frame).unwrap();
    // Both representations of zero are correct.
    let same = |a: u16, b: u16| a == b || (a.is_multiple_of(0xffff) && b.is_multiple_of(0xffff));
    let (header, payload) = match sliced.transport.as_ref().unwrap() {
        TransportSlice::Tcp(tcp) => (
            etherparse::TransportHeader::Tcp(tcp.to_header()),
            tcp.payload(),
        ),
        TransportSlice::Udp(udp) => (
            etherparse::TransportHeader::Udp(udp.to_header()),
            udp.payload(),
        ),
        other => panic!("{other:?}"),
    };
    use etherparse::NetSlice::*;
    use etherparse::TransportHeader::*;
    match (sliced.net.as_ref().unwrap(), header) {
        (Ipv4(ip), Tcp(tcp)) => same(
            tcp.checksum,
            tcp.calc_checksum_ipv4(&ip.header().to_header(), payload)
                .unwrap(),
        ),
        (Ipv4(ip), Udp(udp)) => same(
            udp.checksum,
            udp.calc_checksum_ipv4(&ip.header().to_header(), payload)
                .unwrap(),
        ),
        (Ipv6(ip), Tcp(tcp)) => same(
            tcp.checksum,
            tcp.calc_checksum_ipv6(&ip.header().to_header(), payload)
                .unwrap(),
        ),
        (Ipv6(ip), Udp(udp)) => same(
            udp.checksum,
            udp.calc_checksum_ipv6(&ip.header().to_header(), payload)
                .unwrap(),
        ),
        other => panic!("{other:?}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// A receiver without GUEST_CSUM gets correct bytes and a header that requests nothing. A receiver with it gets the
    /// sender's bytes, and the header gives the position of the checksum in the copy, with the tag pushed or popped.
    #[test]
    fn a_partial_checksum_is_finished_or_described(
        v6: bool, tcp: bool, vlan: bool, guest_csum: bool, mergeable: bool,
        change_tag: bool,
        layout in proptest::sample::select(&LAYOUTS[..]),
        payload in prop_oneof![proptest::collection::vec(any::<u8>(), 0..100), proptest::collection::vec(any::<u8>(), 0..4000)],
        split in 1usize..300,
        buffer_len in 64usize..2000,
    ) {
        let kind = Kind { v6, tcp, vlan };
        let (whole, l4) = packet(kind, &payload);
        prop_assert!(is_right(&whole));
        let sent = partial(&whole, l4, kind);
        let csum_offset = if tcp { 16 } else { 6 };
        let header = VirtioNetHdr { flags: HDR_F_NEEDS_CSUM, csum_start: l4 as u16, csum_offset, ..Default::default() };

        let mut from = Guest::for_queues(1024, 5000, 64);
        let (mut sender, mut tx) = from.transmit(1024, 7, layout | MODERN | feature::CSUM | feature::INDIRECT_DESC, 5000);
        sender.set_split(ChainSplit::Pieces(split.max(sent.len() / 50)));
        prop_assert!(sender.send(&header, &sent).unwrap());
        let _ = sender.virtqueue().publish();
        let features = layout | feature::VERSION_1 | if guest_csum { feature::GUEST_CSUM } else { 0 } | if mergeable { feature::MRG_RXBUF } else { 0 };
        let buffer_len = if mergeable { buffer_len } else { 8192 };
        let mut to = Guest::for_queues(128, 64, buffer_len);
        let rx_split = ChainSplit::Pieces(split.max(buffer_len / 50));
        let (mut receiver, rx) = to.receive((128, 9), features | feature::INDIRECT_DESC, buffer_len, rx_split, 1, Arc::default());
        receiver.post(u16::MAX).unwrap();
        let _ = receiver.virtqueue().publish();

        let mut burst = Burst::new();
        prop_assert_eq!(tx.receive(&mut burst), 1);
        burst.frames_mut()[0].tci = 0x6123;
        let (tag, moved) = match (change_tag, vlan) {
            (false, _) => (HeaderOp::Keep, 0),
            (true, false) => (HeaderOp::Push, 4),
            (true, true) => (HeaderOp::Pop, -4),
        };
        let outcome = rx.deliver(0, &burst, &[TxEntry { frame: 0, tag }], &mut RxScratch::default());
        prop_assert_eq!(outcome.frames, 1);
        tx.complete();
        let (got_header, got) = receiver.receive().unwrap().remove(0);
        let buffers = got_header.num_buffers;
        if guest_csum {
            prop_assert_eq!(&got, &tagged(&sent, tag, 0x6123));
            let csum_start = header.csum_start.wrapping_add_signed(moved);
            prop_assert_eq!(got_header, VirtioNetHdr { csum_start, num_buffers: buffers, ..header });
        } else {
            prop_assert_eq!(got_header, VirtioNetHdr { num_buffers: buffers, ..Default::default() });
            prop_assert!(is_right(&got));
            // Nothing else was changed.
            let (expected, at) = (tagged(&whole, tag, 0x6123), l4.wrapping_add_signed(moved.into()) + usize::from(csum_offset));
            prop_assert_eq!(&got[..at], &expected[..at]);
            prop_assert_eq!(&got[at + 2..], &expected[at + 2..]);
        }
    }
}
