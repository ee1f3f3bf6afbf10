//! For any bytes of a guest: an error or valid segments, never a panic.

use crosspoint_packet::checksum::Partial;
use crosspoint_packet::segment::{GsoRequest, HEADERS_MAX, SEGMENTS_MAX, SegmentError};
use proptest::prelude::*;

use crate::frames::{Ip, Large, Transport, any_large, plan};

/// Checks the invariants of every segmentation.
fn check(headers: &[u8], frame_len: usize, request: GsoRequest) -> Result<(), TestCaseError> {
    let Ok(segmentation) = plan(headers, frame_len, request) else {
        return Ok(());
    };
    prop_assert!((1..=SEGMENTS_MAX).contains(&segmentation.count()));
    prop_assert!(segmentation.header_len() <= headers.len().min(frame_len).min(HEADERS_MAX));
    let mut out = [0; HEADERS_MAX];
    let mut at = segmentation.header_len();
    for index in 0..segmentation.count() {
        let info = segmentation.segment(index, headers, &mut out).unwrap();
        prop_assert_eq!(info.payload_offset, at);
        prop_assert!(info.payload_len <= request.gso_size.into());
        prop_assert!(info.header_len <= HEADERS_MAX);
        if let Some(place) = info.checksum {
            prop_assert!(usize::from(place.start + place.offset) + 2 <= info.header_len);
        }
        at += info.payload_len;
    }
    prop_assert_eq!(at, frame_len);
    for index in [segmentation.count(), segmentation.count() + 1, usize::MAX] {
        prop_assert_eq!(segmentation.segment(index, headers, &mut out), None);
    }
    let short = &headers[..segmentation.header_len() - 1];
    prop_assert_eq!(segmentation.segment(0, short, &mut out), None);
    // A guest may write to its headers between the two calls.
    let other = vec![0xff; HEADERS_MAX];
    prop_assert!(
        segmentation
            .segment(segmentation.count() - 1, &other, &mut out)
            .is_some()
    );
    Ok(())
}

fn request() -> impl Strategy<Value = GsoRequest> {
    let kind = prop_oneof![Just(1), Just(3), Just(4), Just(5), Just(0x81), any::<u8>()];
    let size = prop_oneof![0u16..100, any::<u16>()];
    let place = (any::<u16>(), prop_oneof![Just(6), Just(16), any::<u16>()]);
    let place = place.prop_map(|(start, offset)| Partial { start, offset });
    (kind, size, proptest::option::of(place)).prop_map(|(gso_type, gso_size, checksum)| {
        GsoRequest {
            gso_type,
            gso_size,
            checksum,
        }
    })
}

proptest! {
    #[test]
    fn any_bytes_are_segmented_without_panic(
        headers in proptest::collection::vec(any::<u8>(), 0..400),
        frame_len in prop_oneof![0usize..500, 0usize..70_000, any::<usize>()],
        request in request(),
    ) {
        check(&headers, frame_len, request)?;
    }

    /// Nearly valid frames are processed further than random bytes.
    #[test]
    fn spoilt_frames_are_segmented_without_panic(
        large in any_large(),
        spoilt in proptest::collection::vec((0usize..HEADERS_MAX, any::<u8>()), 0..4),
        cut in prop_oneof![Just(400), 0usize..400],
        other_len in proptest::option::of(prop_oneof![0usize..500, 0usize..70_000, any::<usize>()]),
        other in proptest::option::of(request()),
    ) {
        let mut frame = large.frame();
        for (at, value) in spoilt {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        let headers = &frame[..cut.min(frame.len())];
        check(headers, other_len.unwrap_or(frame.len()), other.unwrap_or(large.request()))?;
    }

    /// The guest's place of the checksum is the right one, or the frame is refused.
    #[test]
    fn a_checksum_elsewhere_is_an_error(large in any_large(), start: u16, offset: u16) {
        let mut request = large.request();
        let place = Partial { start, offset };
        prop_assume!(request.checksum != Some(place));
        request.checksum = Some(place);
        let frame = large.frame();
        prop_assert_eq!(
            plan(&frame, frame.len(), request),
            Err(SegmentError::ChecksumPlace)
        );
    }

    #[test]
    fn a_type_that_the_frame_is_not_of_is_an_error(large in any_large(), gso_type: u8) {
        let frame = large.frame();
        let request = GsoRequest { gso_type, ..large.request() };
        let of_it = gso_type & 0x7f == large.request().gso_type & 0x7f
            && (gso_type & 0x80 == 0 || large.is_tcp());
        let error = match gso_type {
            _ if of_it => None,
            // The other types of UDP: the same frame, to be cut differently.
            3 | 5 if !large.is_tcp() => return Ok(()),
            1 | 3 | 4 | 5 | 0x81 | 0x84 => Some(SegmentError::OtherProtocol),
            other => Some(SegmentError::UnknownType(other)),
        };
        prop_assert_eq!(plan(&frame, frame.len(), request).err(), error);
    }
}

/// Applies `change` to a valid frame of kind `kind`, and checks for the expected error.
fn spoil(
    kind: impl Fn(&Large) -> bool,
    change: impl Fn(&Large, &mut Vec<u8>, &mut GsoRequest),
    error: SegmentError,
) {
    let config = ProptestConfig {
        cases: 32,
        ..ProptestConfig::default()
    };
    proptest::test_runner::TestRunner::new(config)
        .run(&any_large().prop_filter("kind", kind), |large| {
            let (mut frame, mut request) = (large.frame(), large.request());
            change(&large, &mut frame, &mut request);
            prop_assert_eq!(plan(&frame, frame.len(), request), Err(error));
            Ok(())
        })
        .unwrap();
}

fn is_v4(large: &Large) -> bool {
    matches!(large.ip, Ip::V4(_))
}

#[test]
fn a_size_of_zero_is_an_error() {
    spoil(
        |_| true,
        |_, _, request| request.gso_size = 0,
        SegmentError::SmallSize,
    );
}

#[test]
fn a_fragment_is_never_segmented() {
    for (at, bits) in [(6, 0x20), (6, 0x1f), (7, 0x01)] {
        spoil(
            is_v4,
            |large, frame, _| frame[large.ip_offset() + at] |= bits,
            SegmentError::Fragment,
        );
    }
    // Next header of the last header before TCP or UDP: 44.
    spoil(
        |large| matches!(&large.ip, Ip::V6(_, extensions) if extensions.is_empty()),
        |large, frame, _| frame[large.ip_offset() + 6] = 44,
        SegmentError::Fragment,
    );
}

#[test]
fn a_header_shorter_than_itself_is_an_error() {
    spoil(
        is_v4,
        |large, frame, _| frame[large.ip_offset()] = 0x44,
        SegmentError::BadHeader,
    );
    spoil(
        Large::is_tcp,
        |large, frame, _| frame[large.transport_offset() + 12] = 0x40,
        SegmentError::BadHeader,
    );
}

#[test]
fn the_other_version_of_ip_is_an_error() {
    spoil(
        |_| true,
        |large, frame, _| frame[large.ip_offset()] ^= 0x20,
        SegmentError::BadHeader,
    );
}

#[test]
fn datagrams_without_a_partial_checksum_are_an_error() {
    spoil(
        |large| matches!(large.transport, Transport::Udp(_)),
        |_, _, request| request.checksum = None,
        SegmentError::ChecksumPlace,
    );
}

#[test]
fn too_many_segments_are_an_error() {
    spoil(
        |large| large.fragments.is_none() && large.payload.len() <= SEGMENTS_MAX,
        |large, frame, request| {
            frame.resize(large.header_len() + SEGMENTS_MAX + 1, 0);
            request.gso_size = 1;
        },
        SegmentError::TooManySegments(SEGMENTS_MAX + 1),
    );
    spoil(
        |large| large.fragments.is_some() && large.fragmented_from() == large.transport_offset(),
        |large, frame, request| {
            frame.resize(large.fragmented_from() + 8 * SEGMENTS_MAX + 1, 0);
            request.gso_size = 15;
        },
        SegmentError::TooManySegments(SEGMENTS_MAX + 1),
    );
}

#[test]
fn a_fragment_too_small_for_the_headers_of_the_first_is_an_error() {
    spoil(
        |large| large.count() > 1 && large.fragments.is_some(),
        |large, _, request| {
            let headers = large.header_len() - large.fragmented_from();
            request.gso_size = headers as u16 / 8 * 8 - 1;
        },
        SegmentError::SmallSize,
    );
}

proptest! {
    /// One more extension header: the longest that fits, or the next longer one.
    #[test]
    fn headers_longer_than_the_limit_are_an_error(
        large in any_large().prop_filter("IPv6", Large::is_v6),
    ) {
        const HOP_BY_HOP: u8 = 0;
        const ROUTING: u8 = 43;
        let inserted = if large.fragments.is_some() && large.count() > 1 { 8 } else { 0 };
        let room = (HEADERS_MAX - inserted - large.header_len()) / 8;
        prop_assume!(room > 0 && large.payload.len() < 60_000);
        for (words, error) in [(room, None), (room + 1, Some(SegmentError::Truncated))] {
            let (mut frame, mut request) = (large.frame(), large.request());
            let ip = large.ip_offset();
            // Hop-by-hop options stay the first.
            let (named, at) = match frame[ip + 6] {
                HOP_BY_HOP => (ip + 40, ip + 48 + 8 * usize::from(frame[ip + 41])),
                _ => (ip + 6, ip + 40),
            };
            let mut extension = vec![0; words * 8];
            extension[..2].copy_from_slice(&[frame[named], words as u8 - 1]);
            frame[named] = ROUTING;
            frame.splice(at..at, extension);
            request.checksum = request.checksum.map(|place| Partial {
                start: place.start + 8 * words as u16,
                ..place
            });
            prop_assert_eq!(plan(&frame, frame.len(), request).err(), error);
        }
    }
}

#[test]
fn a_packet_longer_than_ip_has_room_for_is_an_error() {
    spoil(
        |large| large.gso_size > 100,
        |large, frame, _| {
            let first = if is_v4(large) { 0 } else { 40 };
            frame.resize(large.ip_offset() + first + 65_536, 0);
        },
        SegmentError::FrameTooLong,
    );
}
