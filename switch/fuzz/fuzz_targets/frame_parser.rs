//! Headers and checksums of arbitrary bytes: parsed without a panic, and with etherparse's results.
#![no_main]

use crosspoint_frame::{Burst, Gather, HeaderOp, Offload, Prefix, Segment, SegmentMut};
use crosspoint_packet::filter::Filter;
use crosspoint_packet::gro::{JOIN_HEADERS, Joinable, inspect};
use crosspoint_packet::headers::{Headers, Stop};
use crosspoint_packet::{FlowHasher, PROTO_TCP, Parsed, checksum, parse_l4, partial};
use etherparse::EtherType;
use libfuzzer_sys::fuzz_target;

#[path = "../../packet/tests/headers/reference.rs"]
mod reference;

/// Bytes that choose how the frame is cut and which checksum is requested; the rest is the frame.
const ORDERS: usize = 8;

fuzz_target!(|bytes: &[u8]| {
    let Some((orders, frame)) = bytes.split_first_chunk::<ORDERS>() else {
        return;
    };
    link_layer(frame);
    transport_layer(frame);
    found_partials_finish_right(frame);
    copies_are_the_frame(orders, frame);
});

/// Addresses and the outer tag.
fn link_layer(frame: &[u8]) {
    let mut head = [0; 64];
    let n = frame.len().min(64);
    head[..n].copy_from_slice(&frame[..n]);
    let parsed = Parsed::new(&head, frame.len());
    let Ok(theirs) = etherparse::Ethernet2Slice::from_slice_without_fcs(frame) else {
        return;
    };
    assert_eq!(parsed.dst.bytes(), theirs.destination());
    assert_eq!(parsed.src.bytes(), theirs.source());
    let tag = (theirs.ether_type() == EtherType::VLAN_TAGGED_FRAME && frame.len() >= 18)
        .then(|| u16::from_be_bytes([frame[14], frame[15]]));
    assert_eq!(parsed.tci, tag);
}

/// The walk agrees with etherparse's, and so do its callers with it.
fn transport_layer(frame: &[u8]) {
    reference::walk_and_compare(frame);
    let headers = Headers::parse(frame);
    if let Some(l4) = parse_l4(frame) {
        assert_eq!((l4.protocol, l4.offset), (headers.protocol, headers.offset));
        assert!(l4.ip_offset >= 14 && l4.offset > l4.ip_offset);
    }
    let head = &frame[..frame.len().min(64)];
    let hasher = FlowHasher::new(1);
    assert_eq!(hasher.hash(head), hasher.hash(frame));
    let joined = &frame[..frame.len().min(JOIN_HEADERS)];
    if let Joinable::Data(segment) = inspect(joined, frame.len()) {
        assert_eq!((headers.stop, headers.protocol), (Stop::Layer4, PROTO_TCP));
        assert_eq!(headers.offset, segment.checksum_start());
    }
    let ports = Filter::parse("tcp portrange 0-65535").expect("a filter");
    let is_tcp = headers.stop == Stop::Layer4 && headers.protocol == PROTO_TCP;
    if is_tcp && frame.len() >= headers.offset + 4 {
        assert!(ports.matches(frame));
    }
}

/// A checksum that is detected as partial can be completed: its place is in the frame, and the sum written there makes
/// the packet's checksum correct.
fn found_partials_finish_right(frame: &[u8]) {
    let Some(partial) = partial::find_in(frame) else {
        return;
    };
    let (start, at) = (
        usize::from(partial.start),
        usize::from(partial.start) + usize::from(partial.offset),
    );
    assert!(at + 2 <= frame.len());
    let mut whole = frame.to_vec();
    whole[at..at + 2]
        .copy_from_slice(&checksum::finish(checksum::sum(&frame[start..], 0)).to_be_bytes());
    // Together with the pseudo-header's sum, which was in the field, the sum is zero.
    let field = u16::from_be_bytes([frame[at], frame[at + 1]]);
    let total = checksum::fold(checksum::sum(
        &field.to_be_bytes(),
        checksum::sum(&whole[start..], 0),
    ));
    let even = at.wrapping_sub(start).is_multiple_of(2);
    assert!(!even || total == 0xffff || total == 0, "{total:#x}");
}

/// However the frame is cut and whatever checksum is requested, the copy equals the frame except for that checksum.
fn copies_are_the_frame(orders: &[u8; ORDERS], frame: &[u8]) {
    let tag = [HeaderOp::Keep, HeaderOp::Push][usize::from(orders[0] & 1)];
    let offload = Offload {
        needs_csum: orders[0] & 2 != 0,
        csum_start: u16::from_le_bytes([orders[1], orders[2]]),
        csum_offset: u16::from_le_bytes([orders[3], orders[4]]),
        ..Offload::default()
    };
    let size = usize::from(orders[5]).max(1);
    let pieces: Vec<Segment> = frame
        .chunks(size)
        // SAFETY: the pieces are within `frame`, which is not written and outlives the burst.
        .map(|piece| unsafe { Segment::new(piece.as_ptr(), piece.len() as u32) })
        .collect();
    let mut burst = Burst::new();
    if !burst.push_segments(&pieces, offload) {
        return;
    }
    burst.frames_mut()[0].tci = u16::from_le_bytes([orders[6], orders[7]]);
    let copied = &burst.frames()[0];
    let prefix = Prefix::new(&[7; 12], copied, tag);
    let gather = Gather::new(&prefix, &burst, copied);
    // Room in small buffers, between canary bytes that must not change.
    let room = size + 40;
    let mut memory = vec![0x5a_u8; (frame.len() / room + 3) * 2 * room];
    let base = memory.as_mut_ptr();
    let to: Vec<SegmentMut> = (0..memory.len() / (2 * room))
        // SAFETY: each run is within `memory`, which is accessed only through these as long as they exist.
        .map(|i| unsafe { SegmentMut::new(base.add(2 * i * room), room as u32) })
        .collect();
    let n = gather.scatter(&to);
    gather.complete_checksum(&offload, tag, &to);
    assert_eq!(n, gather.len());
    let got: Vec<u8> = memory
        .chunks(2 * room)
        .flat_map(|run| run[..room].to_vec())
        .collect();
    assert!(
        memory
            .chunks(2 * room)
            .all(|run| run[room..].iter().all(|byte| *byte == 0x5a)),
        "written beyond a buffer"
    );
    if tag == HeaderOp::Keep {
        assert_eq!(got[..12], [7; 12]);
        let at = usize::from(offload.csum_start) + usize::from(offload.csum_offset);
        let differ = |i: &usize| got[12 + i] != frame[*i];
        assert!(
            (0..frame.len())
                .filter(differ)
                .all(|i| offload.needs_csum && (i == at || i == at + 1))
        );
    }
    // Bytes after the copy are unchanged, except if a checksum was requested there: `parse` forbids that.
    if !offload.needs_csum {
        assert!(
            got[n..].iter().all(|byte| *byte == 0x5a),
            "written beyond the copy"
        );
    }
}
