//! Every segment is equal to the one that a sender without segmentation offload would send.

use crosspoint_packet::segment::HEADERS_MAX;
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use proptest::prelude::*;

use crate::frames::{Large, any_large, cut, finished, large, plan, same};

proptest! {
    #[test]
    fn segments_are_what_a_sender_without_segmentation_sends(large in large()) {
        let frame = large.frame();
        let segments = cut(&frame, large.request());
        prop_assert_eq!(segments.len(), large.count());
        let mut payload: Vec<u8> = Vec::new();
        for (index, segment) in segments.into_iter().enumerate() {
            let at = segment.1;
            let segment = finished(segment);
            prop_assert!(
                same(&segment, &large.expected(index), at),
                "segment {}:\n{:02x?}\nshould be\n{:02x?}", index, segment, large.expected(index)
            );
            payload.extend(&segment[large.header_len()..]);
        }
        prop_assert!(payload == large.payload, "the payload is another");
    }

    /// A parser that uses the lengths in the headers finds a valid packet, and no extra bytes.
    #[test]
    fn a_strict_parser_takes_every_segment(large in large()) {
        for segment in cut(&large.frame(), large.request()) {
            let segment = finished(segment);
            let packet = SlicedPacket::from_ethernet(&segment).unwrap();
            prop_assert_eq!(packet.link_exts.len(), large.tags.len());
            let behind_ip = segment.len() - large.transport_offset();
            match packet.net.unwrap() {
                NetSlice::Ipv4(ip) => {
                    let header = ip.header().to_header();
                    prop_assert_eq!(header.header_checksum, header.calc_header_checksum());
                    prop_assert_eq!(ip.payload().payload.len(), behind_ip);
                }
                NetSlice::Ipv6(ip) => prop_assert_eq!(ip.payload().payload.len(), behind_ip),
                other => prop_assert!(false, "{:?}", other),
            }
            match packet.transport.unwrap() {
                TransportSlice::Tcp(tcp) => prop_assert_eq!(tcp.slice().len(), behind_ip),
                TransportSlice::Udp(udp) => prop_assert_eq!(usize::from(udp.length()), behind_ip),
                other => prop_assert!(false, "{:?}", other),
            }
        }
    }

    /// A TCP frame with a finished checksum and no request for it.
    #[test]
    fn a_whole_checksum_is_computed_again_for_every_segment(
        large in large().prop_filter("TCP", Large::is_tcp),
    ) {
        let mut request = large.request();
        let with = cut(&large.frame(), request);
        request.checksum = None;
        let at = large.transport_offset() + 16;
        let place = large.request().checksum;
        let mut frame = large.frame();
        frame[at..at + 2].copy_from_slice(&[0x12, 0x34]);
        for (a, b) in with.iter().zip(cut(&frame, request)) {
            prop_assert_eq!(a.1, b.1);
            prop_assert!(same(&a.0, &b.0, place));
        }
    }

    /// The contiguous beginning may end directly after the headers, but not earlier.
    #[test]
    fn the_headers_are_enough(large in any_large()) {
        let (frame, len) = (large.frame(), large.header_len());
        let whole = plan(&frame[..frame.len().min(HEADERS_MAX)], frame.len(), large.request());
        prop_assert!(whole.is_ok());
        prop_assert_eq!(whole.unwrap().header_len(), len);
        prop_assert_eq!(plan(&frame[..len], frame.len(), large.request()), whole);
        prop_assert!(plan(&frame[..len - 1], frame.len(), large.request()).is_err());
    }
}

#[test]
fn a_frame_without_payload_is_one_segment() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    runner
        .run(&any_large(), |mut large| {
            large.payload.clear();
            let mut segments = cut(&large.frame(), large.request());
            prop_assert_eq!(segments.len(), 1);
            let at = segments[0].1;
            let segment = finished(segments.remove(0));
            prop_assert!(same(&segment, &large.expected(0), at));
            Ok(())
        })
        .unwrap();
}
