use crosspoint_packet::checksum;

use crate::sum::Summer;
use crate::{Burst, Frame, HEAD_LEN, HeaderOp, Offload, Segment, SegmentMut, TxEntry};

/// Maximum bytes before a frame in a receive buffer: the virtio-net header.
const MAX_HEADER: usize = 12;
/// Header, frame head, and two pushed tags.
const PREFIX_LEN: usize = MAX_HEADER + HEAD_LEN + 8;

/// The first bytes of one copy, assembled on the stack: the destination's header (none for a NIC), then the frame's
/// head with its tag pushed or popped.
pub struct Prefix {
    bytes: [u8; PREFIX_LEN],
    header: usize,
    len: usize,
}

impl Prefix {
    /// Creates the prefix: `header` (at most 12 bytes), then the head of `frame` with `tag` applied.
    #[inline(always)]
    pub fn new<const HEADER: usize>(header: &[u8; HEADER], frame: &Frame, tag: HeaderOp) -> Prefix {
        const { assert!(HEADER <= MAX_HEADER) };
        let mut prefix = Prefix {
            bytes: [0; PREFIX_LEN],
            header: HEADER,
            len: HEADER + frame.head_len(),
        };
        let (front, body) = prefix.bytes.split_at_mut(HEADER);
        front.copy_from_slice(header);
        match tag {
            HeaderOp::Keep => body[..HEAD_LEN].copy_from_slice(&frame.head),
            HeaderOp::Push => {
                body[..12].copy_from_slice(&frame.head[..12]);
                body[12..14].copy_from_slice(&[0x81, 0x00]);
                body[14..16].copy_from_slice(&frame.tci.to_be_bytes());
                body[16..HEAD_LEN + 4].copy_from_slice(&frame.head[12..]);
                prefix.len += 4;
            }
            // `parse` has checked that the tag is present, so the head has 18 bytes.
            HeaderOp::Pop => {
                body[..12].copy_from_slice(&frame.head[..12]);
                body[12..HEAD_LEN - 4].copy_from_slice(&frame.head[16..]);
                prefix.len -= 4;
            }
            HeaderOp::PushBridge | HeaderOp::PushBoth | HeaderOp::PopBoth => {
                write_head_with_bridge_tag(body, frame, tag);
                prefix.len = prefix.len.saturating_add_signed(tag.growth());
            }
        }
        prefix
    }

    #[inline(always)]
    fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }
}

/// Writes the head of a frame, with tags of its bridge pushed or popped, to the start of `body`. When both tags are popped,
/// the bridge stage has checked that they are there, so the head has 22 bytes.
#[cold]
#[inline(never)]
fn write_head_with_bridge_tag(body: &mut [u8], frame: &Frame, tag: HeaderOp) {
    let tci = frame.tci.to_be_bytes();
    let own = [0x81, 0x00, tci[0], tci[1]];
    let (addresses, rest) = frame.head.split_at(12);
    let (tags, rest): ([&[u8]; 2], &[u8]) = match tag {
        HeaderOp::PushBridge => ([&frame.bridge_tag, &[]], rest),
        HeaderOp::PushBoth => ([&frame.bridge_tag, &own], rest),
        _ => ([&[], &[]], rest.get(8..).unwrap_or(&[])),
    };
    let bytes = [addresses, tags[0], tags[1], rest];
    for (to, from) in body.iter_mut().zip(bytes.iter().flat_map(|part| *part)) {
        *to = *from;
    }
}

/// One copy: the prefix, then the frame's segments.
pub struct Gather<'a> {
    prefix: &'a Prefix,
    segments: &'a [Segment],
    frame_len: usize,
}

impl<'a> Gather<'a> {
    /// Creates the copy of `burst`'s `frame` that begins with `prefix`.
    #[inline(always)]
    pub fn new(prefix: &'a Prefix, burst: &'a Burst, frame: &Frame) -> Gather<'a> {
        let tail = (frame.len as usize).saturating_sub(HEAD_LEN);
        Gather {
            prefix,
            segments: burst.segments(frame),
            frame_len: prefix.len + tail,
        }
    }

    /// The copy's bytes: the prefix, and the segments after it.
    pub fn pieces(&self) -> (&[u8], &[Segment]) {
        (self.prefix.bytes(), self.segments)
    }

    /// Length of the copy in bytes, including the destination's header.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.frame_len
    }

    /// Whether there is nothing to copy.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.frame_len == 0
    }

    /// Length of a copy of `pick`'s frame after `header` bytes.
    #[inline(always)]
    pub fn len_of(frame: &Frame, pick: TxEntry, header: usize) -> usize {
        (header + frame.len as usize).saturating_add_signed(pick.tag.growth())
    }

    /// Copies everything into one buffer; returns how many bytes fitted.
    #[inline(always)]
    pub fn copy_to(&self, to: SegmentMut) -> usize {
        let mut at = to.write(self.prefix.bytes());
        for segment in self.segments {
            at += to.skip(at).write_segment(segment);
        }
        at
    }

    /// Copies everything into `to`, filling each buffer to its last byte before the next. Returns how many bytes fitted.
    pub fn scatter(&self, to: &[SegmentMut]) -> usize {
        let mut cursor = Cursor::new(to);
        cursor.write(self.prefix.bytes());
        for segment in self.segments {
            cursor.write_segment(segment, None);
        }
        cursor.total
    }

    /// Like `scatter`, and completes the checksum that `offload` requests: each byte is loaded once for both the copy
    /// and the sum.
    pub fn copy_finished(&self, offload: &Offload, tag: HeaderOp, to: &[SegmentMut]) -> usize {
        let start = self.checksum_start(offload, tag);
        let (mut cursor, mut sum) = (Cursor::new(to), Summer::default());
        let head = self.prefix.bytes();
        cursor.write(head);
        sum.add(head.get(start..).unwrap_or(&[]));
        let mut skip = start.saturating_sub(head.len());
        for segment in self.segments {
            // Headers longer than the copied head are not part of the sum.
            if skip > 0 {
                cursor.write_segment(&segment.first(skip), None);
            }
            cursor.write_segment(&segment.skip(skip), Some(&mut sum));
            skip = skip.saturating_sub(segment.len());
        }
        let at = start + usize::from(offload.csum_offset);
        let value = checksum::finish(sum.total());
        write_at(to, at, &value.to_be_bytes());
        cursor.total
    }

    /// Writes the prefix to `to`, overwriting what is there.
    pub fn write_head(&self, to: SegmentMut) {
        to.write(self.prefix.bytes());
    }

    /// Start of the sum that `offload` requests, in bytes from the copy's start (including the destination's header).
    fn checksum_start(&self, offload: &Offload, tag: HeaderOp) -> usize {
        let start = self.prefix.header + usize::from(offload.csum_start);
        start.saturating_add_signed(tag.growth())
    }

    /// Position and value of the checksum that `offload` requests, computed over the copy's bytes. The position is in
    /// bytes from the copy's start (including the destination's header). `None` if no checksum is requested. `parse`
    /// has checked the offsets against the frame's length.
    pub fn checksum(&self, offload: &Offload, tag: HeaderOp) -> Option<(usize, u16)> {
        if !offload.needs_csum {
            return None;
        }
        let start = self.checksum_start(offload, tag);
        let head = self.prefix.bytes();
        let mut skip = start.saturating_sub(head.len());
        let mut sum = Summer::default();
        sum.add(head.get(start..).unwrap_or(&[]));
        for segment in self.segments {
            let rest = segment.skip(skip);
            sum.add_sum(rest.sum(), rest.len());
            skip = skip.saturating_sub(segment.len());
        }
        let at = start + usize::from(offload.csum_offset);
        Some((at, checksum::finish(sum.total())))
    }

    /// Completes the checksum of a frame that was already copied to `to`.
    pub fn complete_checksum(&self, offload: &Offload, tag: HeaderOp, to: &[SegmentMut]) {
        if let Some((at, value)) = self.checksum(offload, tag) {
            write_at(to, at, &value.to_be_bytes());
        }
    }
}

/// Write position in a list of buffers, which are filled one after the other.
struct Cursor<'a> {
    to: &'a [SegmentMut],
    index: usize,
    used: usize,
    total: usize,
}

impl<'a> Cursor<'a> {
    fn new(to: &'a [SegmentMut]) -> Cursor<'a> {
        Cursor {
            to,
            index: 0,
            used: 0,
            total: 0,
        }
    }

    /// Room at the current position; `None` when the buffers are full.
    #[inline(always)]
    fn room(&mut self) -> Option<SegmentMut> {
        loop {
            let room = self.to.get(self.index)?.skip(self.used);
            if !room.is_empty() {
                return Some(room);
            }
            self.index += 1;
            self.used = 0;
        }
    }

    #[inline(always)]
    fn advance(&mut self, n: usize) {
        self.used += n;
        self.total += n;
    }

    #[inline(always)]
    fn write(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty()
            && let Some(room) = self.room()
        {
            let n = room.write(bytes);
            bytes = bytes.get(n..).unwrap_or(&[]);
            self.advance(n);
        }
    }

    #[inline(always)]
    fn write_segment(&mut self, segment: &Segment, mut sum: Option<&mut Summer>) {
        let mut rest = *segment;
        while !rest.is_empty()
            && let Some(room) = self.room()
        {
            let n = match &mut sum {
                None => room.write_segment(&rest),
                Some(sum) => {
                    let (n, of_it) = room.write_summed(&rest);
                    sum.add_sum(of_it, n);
                    n
                }
            };
            rest = rest.skip(n);
            self.advance(n);
        }
    }
}

/// The most frequent copy: `header`, then the unchanged frame, into one buffer. Returns how many bytes fitted. Header
/// and head are copied directly from their sources: if they were first assembled on the stack, they would be loaded
/// across the stores that had written them.
#[inline(always)]
pub fn copy_plain<const HEADER: usize>(
    header: &[u8; HEADER],
    frame: &Frame,
    burst: &Burst,
    to: SegmentMut,
) -> usize {
    let mut at = HEADER + frame.head_len();
    if !to.write_head(header, &frame.head, frame.head_len()) {
        if !to.write_array(header) {
            return to.write(header);
        }
        at = HEADER + to.skip(HEADER).write(frame.headers());
    }
    for segment in burst.segments(frame) {
        at += to.skip(at).write_segment(segment);
    }
    at
}

/// Like [`copy_plain`], and completes the checksum that the frame requests: each byte is loaded once for both the copy
/// and the sum.
#[inline(always)]
pub fn copy_plain_finished<const HEADER: usize>(
    header: &[u8; HEADER],
    frame: &Frame,
    burst: &Burst,
    to: SegmentMut,
) -> usize {
    if !to.write_array(header) {
        return to.write(header);
    }
    let start = usize::from(frame.offload.csum_start);
    let kept = frame.headers();
    let mut sum = Summer::default();
    sum.add(kept.get(start..).unwrap_or(&[]));
    let mut at = HEADER + to.skip(HEADER).write(kept);
    // Headers longer than the copied head are not part of the sum.
    let mut skip = start.saturating_sub(kept.len());
    for segment in burst.segments(frame) {
        at += to.skip(at).write_segment(&segment.first(skip));
        let (n, of_it) = to.skip(at).write_summed(&segment.skip(skip));
        sum.add_sum(of_it, n);
        at += n;
        skip = skip.saturating_sub(segment.len());
    }
    let field = HEADER + start + usize::from(frame.offload.csum_offset);
    to.skip(field)
        .write_array(&checksum::finish(sum.total()).to_be_bytes());
    at
}

/// Writes `bytes` at offset `at` of the buffers, overwriting what is there.
pub(crate) fn write_at(to: &[SegmentMut], mut at: usize, bytes: &[u8]) {
    let mut rest = bytes;
    for buffer in to {
        if at < buffer.len() {
            let n = buffer.skip(at).write(rest);
            rest = rest.get(n..).unwrap_or(&[]);
            at += n;
        }
        if rest.is_empty() {
            return;
        }
        at -= buffer.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crosspoint_packet::parse_l4;
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    fn cut(bytes: &[u8], sizes: &[usize]) -> Vec<Segment> {
        let mut at: usize = 0;
        let mut out = Vec::new();
        for size in sizes.iter().chain([&usize::MAX]) {
            let end = bytes.len().min(at.saturating_add(*size));
            // SAFETY: within `bytes`, which the tests keep alive for the burst's whole life.
            out.push(unsafe { Segment::new(bytes[at..].as_ptr(), (end - at) as u32) });
            at = end;
        }
        out
    }

    fn room(buffers: &mut [Vec<u8>]) -> Vec<SegmentMut> {
        let of = |b: &mut Vec<u8>| {
            // SAFETY: the vector has this length and outlives the copy; no reference to it is used meanwhile.
            unsafe { SegmentMut::new(b.as_mut_ptr(), b.len() as u32) }
        };
        buffers.iter_mut().map(of).collect()
    }

    fn model(frame: &[u8], tag: HeaderOp, tci: u16) -> Vec<u8> {
        let mut out = frame.to_vec();
        match tag {
            HeaderOp::Keep => {}
            HeaderOp::Push => {
                let t = tci.to_be_bytes();
                out.splice(12..12, [0x81, 0, t[0], t[1]]);
            }
            HeaderOp::Pop => drop(out.drain(12..16)),
            HeaderOp::PushBridge => drop(out.splice(12..12, BRIDGE_TAG)),
            HeaderOp::PushBoth => {
                let t = tci.to_be_bytes();
                out.splice(12..12, [0x81, 0, t[0], t[1]]);
                out.splice(12..12, BRIDGE_TAG);
            }
            HeaderOp::PopBoth => drop(out.drain(12..20)),
        }
        out
    }

    const BRIDGE_TAG: [u8; 4] = [0x88, 0xa8, 0x20, 0x64];

    proptest! {
        /// For any layout of the frame in the sender's memory and any receive buffers, the same bytes arrive, with the
        /// tags pushed or popped.
        #[test]
        fn bytes_arrive_identical(
            bytes in proptest::collection::vec(any::<u8>(), 22..3000),
            cuts in proptest::collection::vec(0usize..200, 0..8),
            rooms in proptest::collection::vec(1usize..300, 0..20),
            tag in prop_oneof![
                Just(HeaderOp::Keep),
                Just(HeaderOp::Push),
                Just(HeaderOp::Pop),
                Just(HeaderOp::PushBridge),
                Just(HeaderOp::PushBoth),
                Just(HeaderOp::PopBoth),
            ],
            tci: u16,
        ) {
            let mut burst = Burst::new();
            prop_assert!(burst.push_segments(&cut(&bytes, &cuts), Offload::default()));
            burst.set_bridge(1, BRIDGE_TAG);
            burst.frames_mut()[0].tci = tci;
            let frame = &burst.frames()[0];
            let prefix = Prefix::new(&[7; 12], frame, tag);
            let gather = Gather::new(&prefix, &burst, frame);
            let want = [vec![7; 12], model(&bytes, tag, tci)].concat();
            prop_assert_eq!(gather.len(), want.len());
            prop_assert_eq!(Gather::len_of(frame, TxEntry { frame: 0, tag }, 12), want.len());

            let mut buffers: Vec<Vec<u8>> = rooms.iter().map(|n| vec![0; *n]).collect();
            let n = gather.scatter(&room(&mut buffers));
            let got = buffers.concat();
            prop_assert_eq!(n, want.len().min(got.len()));
            prop_assert_eq!(&got[..n], &want[..n]);

            let mut one = [vec![0; 4000]];
            let n = gather.copy_to(room(&mut one)[0]);
            prop_assert_eq!(&one[0][..n], &want[..]);
        }

        #[test]
        fn a_contiguous_frame_is_the_same_frame(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let (mut a, mut b) = (Burst::new(), Burst::new());
            let whole = cut(&bytes, &[]);
            prop_assert!(a.push_contiguous(whole[0], Offload::default()));
            prop_assert!(b.push_segments(&whole, Offload::default()));
            prop_assert_eq!(a.frames()[0].head, b.frames()[0].head);
            prop_assert_eq!(a.frames()[0].len, b.frames()[0].len);
        }

        /// The receiver's checksum is the one that the sender would have computed, for any layout of the frame and any
        /// change of its tag.
        #[test]
        fn a_partial_checksum_is_completed_in_the_copy(
            payload in proptest::collection::vec(any::<u8>(), 0..600),
            cuts in proptest::collection::vec(0usize..90, 0..8),
            rooms in proptest::collection::vec(1usize..90, 60),
            push: bool,
        ) {
            let mut whole = Vec::new();
            PacketBuilder::ethernet2([2; 6], [4; 6]).ipv6([1; 16], [2; 16], 9).tcp(1, 2, 3, 4)
                .write(&mut whole, &payload).unwrap();
            let mut bytes = whole.clone();
            let l4 = parse_l4(&bytes).unwrap();
            let at = l4.offset + 16;
            // As a driver leaves the field: with the pseudo-header's sum only.
            let real = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
            // Zero equals all ones in one's complement, and the code generates all ones.
            prop_assume!(real != 0);
            bytes[at..at + 2].fill(0);
            let body = checksum::fold(checksum::sum(&bytes[l4.offset..], 0));
            let pseudo = checksum::fold(checksum::sum(&(!real).to_be_bytes(), checksum::sum(&(!body).to_be_bytes(), 0)));
            bytes[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());

            let offload = Offload { needs_csum: true, csum_start: l4.offset as u16, csum_offset: 16, ..Offload::default() };
            let mut burst = Burst::new();
            prop_assert!(burst.push_segments(&cut(&bytes, &cuts), offload));
            burst.frames_mut()[0].tci = 5;
            let frame = &burst.frames()[0];
            let tag = if push { HeaderOp::Push } else { HeaderOp::Keep };
            let prefix = Prefix::new(&[], frame, tag);
            let gather = Gather::new(&prefix, &burst, frame);
            let mut buffers: Vec<Vec<u8>> = rooms.iter().map(|n| vec![0; *n]).collect();
            let to = room(&mut buffers);
            let want = model(&whole, tag, 5);
            let n = gather.scatter(&to);
            gather.complete_checksum(&offload, tag, &to);
            prop_assert_eq!(&buffers.concat()[..n], &want[..n]);
            for buffer in &mut buffers {
                buffer.fill(0);
            }
            prop_assert_eq!(gather.copy_finished(&offload, tag, &to), n);
            prop_assert_eq!(&buffers.concat()[..n], &want[..n]);
            if !push {
                let mut one = [vec![0; 4000]];
                let n = copy_plain_finished(&[7; 12], frame, &burst, room(&mut one)[0]);
                prop_assert_eq!(&one[0][..n], &[&[7; 12][..], &want].concat()[..]);
            }
        }
    }
}
