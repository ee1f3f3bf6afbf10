use crosspoint_packet::checksum;
use crosspoint_packet::segment::HEADERS_MAX;

use crate::sum::Summer;
use crate::{BURST, Burst, Frame, HEAD_LEN, MAX_BURST_SEGMENTS, Offload, Segment};

/// Maximum own bytes of one frame: its headers, and the part of the original's copied head that belongs to it.
const OWN_MAX: usize = HEADERS_MAX + HEAD_LEN;

/// A burst of frames derived from other frames: each has its own headers, followed by references to payload in the
/// original frame.
pub struct DerivedBurst {
    burst: Burst,
    /// The own bytes of all frames, concatenated; never grows beyond its initial capacity.
    own: Vec<u8>,
}

/// End of the last part of a frame, so that consecutive parts are found without scanning the preceding segments again.
/// For one frame; a new cursor is at the frame's beginning.
#[derive(Clone, Copy, Debug)]
pub struct PartCursor {
    /// Index of a segment.
    index: usize,
    /// Offset of that segment from the frame's start, in bytes.
    at: usize,
}

impl Default for PartCursor {
    fn default() -> PartCursor {
        PartCursor {
            index: 0,
            at: HEAD_LEN,
        }
    }
}

impl Default for DerivedBurst {
    fn default() -> DerivedBurst {
        DerivedBurst {
            burst: Burst::new(),
            own: Vec::with_capacity(BURST * OWN_MAX),
        }
    }
}

impl DerivedBurst {
    /// Removes every frame.
    pub fn clear(&mut self) {
        self.burst.clear();
        self.own.clear();
    }

    /// The frames; they must be delivered before the next [`clear`](Self::clear).
    pub fn burst(&self) -> &Burst {
        &self.burst
    }

    /// Adds a frame: `header`, followed by the bytes `offset..offset + len` of `frame` in `from`. It gets the
    /// addresses, VLAN and verdict of `frame`. `cursor` is shared by all parts of one frame. Returns `false` if there
    /// is no room, the header is longer than [`HEADERS_MAX`], or the frame does not have these bytes.
    pub fn push(
        &mut self,
        header: &[u8],
        (from, frame): (&Burst, &Frame),
        (offset, len): (usize, usize),
        offload: Offload,
        cursor: &mut PartCursor,
    ) -> bool {
        let end = offset.saturating_add(len);
        if header.len() > HEADERS_MAX
            || end > frame.len as usize
            || self.own.capacity() - self.own.len() < OWN_MAX
        {
            return false;
        }
        let start = self.own.len();
        self.own.extend_from_slice(header);
        let kept = frame.headers();
        let kept = kept.get(offset.min(kept.len())..end.min(kept.len()));
        self.own.extend_from_slice(kept.unwrap_or(&[]));
        let mut pieces = self.burst.take_scratch();
        let own = self.own.get(start..).unwrap_or(&[]);
        // SAFETY: `own` is in a vector that is not moved, since it never grows beyond its capacity (checked above), and
        // is not changed until `clear`, which removes the frame too.
        pieces.push(unsafe { Segment::new(own.as_ptr(), own.len() as u32) });
        let whole = add_range(&mut pieces, from.segments(frame), (offset, end), cursor);
        let pushed = whole && self.burst.push_segments(&pieces, offload);
        self.burst.put_scratch(pieces);
        if let (true, Some(made)) = (pushed, self.burst.frames_mut().last_mut()) {
            made.be_like(frame);
        }
        pushed
    }

    /// Copies a frame of at most [`HEADERS_MAX`] bytes. Returns `false` if there is no room or the frame is longer.
    pub fn push_own(&mut self, bytes: &[u8], offload: Offload) -> bool {
        if bytes.len() > HEADERS_MAX || self.own.capacity() - self.own.len() < OWN_MAX {
            return false;
        }
        let start = self.own.len();
        self.own.extend_from_slice(bytes);
        let own = self.own.get(start..).unwrap_or(&[]);
        // SAFETY: as in `push`.
        let piece = unsafe { Segment::new(own.as_ptr(), own.len() as u32) };
        self.burst.push_contiguous(piece, offload)
    }

    /// The frames, for the stages to change.
    pub fn burst_mut(&mut self) -> &mut Burst {
        &mut self.burst
    }

    /// Adds a copy of `frame` of `from`.
    pub fn push_same(&mut self, from: &Burst, frame: &Frame) -> bool {
        self.burst.push_same(from, frame)
    }

    /// Adds a frame: `header`, followed by the bytes of each of `members` from an offset on. Members are indices of
    /// frames in `from`; the new frame gets the first one's addresses, VLAN and verdict. Returns `false` in the same
    /// cases as [`push`](Self::push).
    pub fn push_joined(
        &mut self,
        header: &[u8],
        from: &Burst,
        members: &[(u8, usize)],
        offload: Offload,
    ) -> bool {
        if header.len() > HEADERS_MAX
            || self.own.capacity() - self.own.len() < HEADERS_MAX + members.len() * HEAD_LEN
        {
            return false;
        }
        let mut pieces = self.burst.take_scratch();
        let mut whole = true;
        let mut start = self.own.len();
        self.own.extend_from_slice(header);
        for (number, offset) in members {
            let Some(frame) = from.frames().get(usize::from(*number)) else {
                whole = false;
                break;
            };
            self.own
                .extend_from_slice(frame.headers().get(*offset..).unwrap_or(&[]));
            let own = self.own.get(start..).unwrap_or(&[]);
            if !own.is_empty() && pieces.len() < MAX_BURST_SEGMENTS {
                // SAFETY: as in `push`.
                pieces.push(unsafe { Segment::new(own.as_ptr(), own.len() as u32) });
            }
            start = self.own.len();
            let range = (*offset, frame.len as usize);
            let mut cursor = PartCursor::default();
            whole &= add_range(&mut pieces, from.segments(frame), range, &mut cursor);
        }
        let pushed = whole && self.burst.push_segments(&pieces, offload);
        self.burst.put_scratch(pieces);
        let first = members
            .first()
            .and_then(|(number, _)| from.frames().get(usize::from(*number)));
        if let (true, Some(made), Some(first)) = (pushed, self.burst.frames_mut().last_mut(), first)
        {
            made.be_like(first);
        }
        pushed
    }
}

/// Adds the part of a frame's bytes `start..end` that is in its segments, which begin after its head. Returns `false`
/// if this exceeds the segments of a burst. Scans the segments from `cursor` on and leaves it at the segment where the
/// range ends.
fn add_range(
    pieces: &mut Vec<Segment>,
    segments: &[Segment],
    (start, end): (usize, usize),
    cursor: &mut PartCursor,
) -> bool {
    if start < cursor.at {
        *cursor = PartCursor::default();
    }
    while let Some(segment) = segments.get(cursor.index) {
        let behind = cursor.at + segment.len();
        let (from, to) = (start.max(cursor.at), end.min(behind));
        if from < to {
            if pieces.len() == MAX_BURST_SEGMENTS {
                return false;
            }
            pieces.push(segment.skip(from - cursor.at).first(to - from));
        }
        // The next part may begin in this segment.
        if end < behind {
            break;
        }
        *cursor = PartCursor {
            index: cursor.index + 1,
            at: behind,
        };
    }
    true
}

impl Frame {
    /// Copies the stages' results from `other`.
    fn be_like(&mut self, other: &Frame) {
        (self.dst, self.src) = (other.dst, other.src);
        (self.vlan, self.tci) = (other.vlan, other.tci);
        (self.tagged, self.stacked, self.tags) = (other.tagged, other.stacked, other.tags);
        (self.bridge, self.bridge_tag) = (other.bridge, other.bridge_tag);
        self.has_bridge_tag = other.has_bridge_tag;
        self.verdict = other.verdict;
    }
}

impl Burst {
    /// Copies the first bytes of a frame, as many as it and `out` have; returns how many.
    pub fn read_beginning(&self, frame: &Frame, out: &mut [u8]) -> usize {
        let kept = frame.headers();
        let mut at = kept.len().min(out.len());
        out[..at].copy_from_slice(&kept[..at]);
        for segment in self.segments(frame) {
            at += segment.read(out.get_mut(at..).unwrap_or(&mut []));
        }
        at
    }

    /// Folded one's-complement sum of `sum` and a frame's bytes from `start` on (RFC 1071).
    pub fn folded_sum(&self, frame: &Frame, start: usize, sum: u16) -> u16 {
        let mut summer = Summer::default();
        let kept = frame.headers();
        summer.add(kept.get(start..).unwrap_or(&[]));
        let mut skip = start.saturating_sub(kept.len());
        for segment in self.segments(frame) {
            let rest = segment.skip(skip);
            summer.add_sum(rest.sum(), rest.len());
            skip = skip.saturating_sub(segment.len());
        }
        checksum::fold(summer.total() + u64::from(sum.to_be()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// A frame that is cut into parts and reassembled is unchanged, for any layout of its bytes.
        #[test]
        fn parts_have_the_bytes_that_they_name(
            bytes in proptest::collection::vec(any::<u8>(), 18..2000),
            cuts in proptest::collection::vec(0usize..200, 0..8),
            header in proptest::collection::vec(any::<u8>(), 0..HEADERS_MAX),
            len in 1usize..700, first in 0usize..300,
        ) {
            let mut from = Burst::new();
            let mut pieces = Vec::new();
            let mut at = 0usize;
            for cut in cuts.iter().chain([&usize::MAX]) {
                let end = bytes.len().min(at.saturating_add(*cut));
                // SAFETY: within `bytes`, which outlives the burst.
                pieces.push(unsafe { Segment::new(bytes[at..].as_ptr(), (end - at) as u32) });
                at = end;
            }
            prop_assert!(from.push_segments(&pieces, Offload::default()));
            let frame = &from.frames()[0];
            let mut beginning = [0; 100];
            let n = from.read_beginning(frame, &mut beginning);
            prop_assert_eq!(&beginning[..n], &bytes[..bytes.len().min(100)]);

            let mut parts = DerivedBurst::default();
            let mut offset = first.min(bytes.len());
            let mut cursor = PartCursor::default();
            while offset < bytes.len() {
                parts.clear();
                let len = len.min(bytes.len() - offset);
                prop_assert!(parts.push(&header, (&from, frame), (offset, len), Offload::default(), &mut cursor));
                let made = &parts.burst().frames()[0];
                let mut got = vec![0; 4000];
                let n = parts.burst().read_beginning(made, &mut got);
                prop_assert_eq!(&got[..n], &[&header[..], &bytes[offset..offset + len]].concat()[..]);
                prop_assert_eq!(made.len as usize, n);
                offset += len;
            }
            prop_assert!(!parts.push(&header, (&from, frame), (bytes.len(), 1), Offload::default(), &mut cursor));
            // A part before the last one is found too.
            parts.clear();
            prop_assert!(parts.push(&[], (&from, frame), (0, bytes.len()), Offload::default(), &mut cursor));
            let mut got = vec![0; 4000];
            let n = parts.burst().read_beginning(&parts.burst().frames()[0], &mut got);
            prop_assert_eq!(&got[..n], &bytes[..]);
        }
    }

    #[test]
    fn a_full_list_of_parts_takes_no_more() {
        let bytes = [5u8; 3000];
        let mut from = Burst::new();
        // SAFETY: within `bytes`, which outlives the burst.
        let whole = unsafe { Segment::new(bytes.as_ptr(), 3000) };
        assert!(from.push_contiguous(whole, Offload::default()));
        let (frame, mut parts) = (&from.frames()[0], DerivedBurst::default());
        for _ in 0..BURST {
            assert!(parts.push(
                &[1; HEADERS_MAX],
                (&from, frame),
                (0, 3000),
                Offload::default(),
                &mut PartCursor::default()
            ));
        }
        let mut cursor = PartCursor::default();
        let whole = (&from, frame);
        assert!(!parts.push(&[1], whole, (0, 1), Offload::default(), &mut cursor));
        assert_eq!(parts.burst().len(), BURST);
    }
}
