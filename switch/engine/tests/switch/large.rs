//! Large frames: whole for receivers that take them, cut for the others; a flood does each as needed.

use crosspoint_guest::VirtioNetHdr;
use crosspoint_packet::{DropReason, checksum, parse_l4};
use crosspoint_vring::feature;
use etherparse::{PacketBuilder, PacketHeaders, TransportHeader};
use proptest::prelude::*;

use crate::checks::{assert_balanced, ledger_of};
use crate::frames::host;
use crate::ports::PortOptions;
use crate::rig::Rig;
use crate::world::{MODERN, Random};

const TCPV4: u8 = 1;
const TCPV6: u8 = 4;
const PLAIN: u64 = MODERN | feature::CSUM;
const PARTIAL: u64 = PLAIN | feature::GUEST_CSUM;
const LARGE: u64 = PARTIAL | feature::GUEST_TSO4 | feature::GUEST_TSO6;

/// Returns a sender's large TCP frame, with the pseudo-header's sum in its checksum, and the header for the device.
pub fn large(payload: &[u8], mss: u16, v6: bool) -> (VirtioNetHdr, Vec<u8>) {
    let link = PacketBuilder::ethernet2(host(0), host(9));
    let mut frame = Vec::new();
    match v6 {
        true => link
            .ipv6([1; 16], [2; 16], 64)
            .tcp(5, 6, 0xffff_ff00, 1000)
            .psh()
            .write(&mut frame, payload),
        false => link
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .tcp(5, 6, 0xffff_ff00, 1000)
            .psh()
            .write(&mut frame, payload),
    }
    .unwrap();
    let l4 = parse_l4(&frame).unwrap();
    let at = l4.offset + 16;
    let whole = u16::from_be_bytes([frame[at], frame[at + 1]]);
    frame[at..at + 2].fill(0);
    let body = checksum::fold(checksum::sum(&frame[l4.offset..], 0));
    // In one's-complement sums: pseudo-header = not checksum - body.
    let parts = [(!whole).to_be_bytes(), (!body).to_be_bytes()].concat();
    let pseudo = checksum::fold(checksum::sum(&parts, 0));
    frame[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
    let header = VirtioNetHdr {
        flags: 1,
        gso_type: if v6 { TCPV6 } else { TCPV4 },
        hdr_len: (l4.offset + 20) as u16,
        gso_size: mss,
        csum_start: l4.offset as u16,
        csum_offset: 16,
        ..VirtioNetHdr::default()
    };
    (header, frame)
}

/// Parses, strictly, a segment with a finished checksum. Returns sequence number and payload.
pub fn read(frame: &[u8]) -> (u32, Vec<u8>) {
    let packet = PacketHeaders::from_ethernet_slice(frame).expect("a sound frame");
    let (net, Some(TransportHeader::Tcp(tcp))) = (packet.net.unwrap(), packet.transport) else {
        panic!("no TCP");
    };
    let payload = packet.payload.slice().to_vec();
    let expected = match &net {
        etherparse::NetHeaders::Ipv4(ip, _) => {
            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            tcp.calc_checksum_ipv4(ip, &payload).unwrap()
        }
        etherparse::NetHeaders::Ipv6(ip, _) => tcp.calc_checksum_ipv6(ip, &payload).unwrap(),
        _ => panic!("no IP"),
    };
    // Zero and all ones are the same value (RFC 1624, 3); a finished sum is all ones.
    let same = |sum: u16| if sum == 0 { 0xffff } else { sum };
    assert_eq!(same(tcp.checksum), same(expected));
    (tcp.sequence_number, payload)
}

fn finish(header: &VirtioNetHdr, frame: &mut [u8]) {
    if header.flags & 1 != 0 {
        let (start, at) = (
            usize::from(header.csum_start),
            usize::from(header.csum_start + header.csum_offset),
        );
        let sum = checksum::finish(checksum::sum(&frame[start..], 0));
        frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// One flood, three receivers: the one that takes large frames gets it whole, with its offload request; the others
    /// get segments, with finished checksums if they need them, and the payloads together are the frame's. Frames before
    /// and after it keep their order, and every copy is counted. (Small segments for two receivers may exceed one burst's
    /// budget, `Work::BURST`: then some are dropped for that reason.)
    #[test]
    fn each_receiver_gets_a_large_frame_as_it_needs_it(
        len in 1usize..65_000, mss in 300u16..9000, v6: bool, seed: u64,
    ) {
        let port = |features| PortOptions { features, frame_len_max: 65_600, receive_size: 1024, transmit_size: 16, ..PortOptions::default() };
        let ports = [LARGE | feature::HOST_TSO4 | feature::HOST_TSO6, LARGE, PARTIAL, PLAIN].map(port);
        let mut rig = Rig::new(&ports, 1, seed);
        rig.drivers.iter_mut().for_each(|driver| driver.post_all());
        let payload = Random(seed).bytes(len);
        let (mut header, frame) = large(&payload, mss, v6);
        let hdr_len = std::mem::replace(&mut header.hdr_len, seed as u16);
        let small = |number: u8| [&host(0)[..], &host(9), &[0x88, 0xb5, number], &[number; 60]].concat();
        for (header, frame) in [(VirtioNetHdr::default(), small(1)), (header, frame.clone()), (VirtioNetHdr::default(), small(2))] {
            // Source and destination are unknown: a flood.
            let frame = [&host(9)[..], &host(0), &frame[12..]].concat();
            prop_assert!(rig.drivers[0].transmit.send(&header, &frame).unwrap());
        }
        let _ = rig.drivers[0].transmit.ring().publish();
        while rig.turn(0, 0) > 0 {}

        let segments = len.div_ceil(usize::from(mss));
        header.hdr_len = hdr_len;
        // A frame that fits in one segment is not cut.
        let whole = if segments > 1 { (header.gso_type, mss, header.hdr_len, 1) } else { (0, 0, 0, 1) };
        for (port, count) in [(1, 1), (2, segments), (3, segments)] {
            let arrived = rig.drivers[port].receive[0].receive().unwrap();
            prop_assert_eq!(arrived.len(), count + 2, "port {}", port);
            prop_assert_eq!((arrived[0].1[14], arrived[count + 1].1[14]), (1, 2));
            let (mut next, mut got) = (0xffff_ff00u32, Vec::new());
            for (head, bytes) in &arrived[1..=count] {
                let mut bytes = bytes.clone();
                match port {
                    1 => prop_assert_eq!((head.gso_type, head.gso_size, head.hdr_len, head.flags & 1), whole),
                    2 => prop_assert_eq!((head.gso_type, head.flags & 1), (0, 1)),
                    _ => prop_assert_eq!((head.gso_type, head.flags & 1), (0, 0)),
                }
                finish(head, &mut bytes);
                let (sequence, part) = read(&bytes);
                prop_assert_eq!(sequence, next);
                next = next.wrapping_add(part.len() as u32);
                got.extend(part);
            }
            prop_assert!(got == payload, "another payload at port {}", port);
        }
        let ledgers: Vec<_> = rig.view.ports.iter().flatten().map(|port| ledger_of(&port.counters)).collect();
        assert_balanced(&ledgers);
        prop_assert_eq!(ledgers[0].segment_copies, 2 * (segments as u64 - 1));
    }
}

/// A frame that cannot be cut is dropped with a reason, also for receivers of large frames: they would follow its
/// request.
#[test]
fn a_frame_that_cannot_be_cut_is_dropped_with_a_name() {
    let port = |features| PortOptions {
        features,
        ..PortOptions::default()
    };
    let mut rig = Rig::new(&[LARGE, PARTIAL, LARGE].map(port), 1, 1);
    rig.drivers.iter_mut().for_each(|driver| driver.post_all());
    let (mut header, frame) = large(&[7; 900], 100, false);
    header.gso_type = TCPV6;
    let frame = [&host(9)[..], &host(0), &frame[12..]].concat();
    assert!(rig.drivers[0].transmit.send(&header, &frame).unwrap());
    let _ = rig.drivers[0].transmit.ring().publish();
    while rig.turn(0, 0) > 0 {}
    assert_eq!(rig.drivers[1].received().concat().len(), 0);
    assert_eq!(rig.drivers[2].received().concat().len(), 0);
    let drops = &rig.view.ports[0].as_ref().unwrap().counters;
    let named = drops.sum(0, |c| &c.drops[DropReason::BadOffload as usize]);
    assert_eq!(named, 1);
    let ledgers: Vec<_> = rig
        .view
        .ports
        .iter()
        .flatten()
        .map(|port| ledger_of(&port.counters))
        .collect();
    assert_balanced(&ledgers);
}

/// Segments cost work even if they are short: a guest that asks for very many gets shorter bursts, so that it does not
/// delay other guests, and it loses no frames by that.
#[test]
fn frames_that_ask_for_thousands_of_segments_come_few_at_a_time() {
    let port = |features| PortOptions {
        features,
        frame_len_max: 4200,
        receive_size: 1024,
        ..PortOptions::default()
    };
    let mut rig = Rig::new(&[LARGE, PARTIAL].map(port), 1, 1);
    let (header, frame) = large(&[7; 4000], 2, false);
    let frame = [&host(9)[..], &host(0), &frame[12..]].concat();
    for _ in 0..20 {
        assert!(rig.drivers[0].transmit.send(&header, &frame).unwrap());
    }
    let _ = rig.drivers[0].transmit.ring().publish();
    let mut frames = 0;
    loop {
        let count = rig.turn(0, 0);
        assert!(count <= 3, "{count} frames of 2000 segments in one turn");
        frames += count;
        if count == 0 {
            break;
        }
    }
    assert_eq!(frames, 20);
}
