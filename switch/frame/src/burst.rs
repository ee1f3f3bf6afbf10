use crosspoint_packet::{DropReason, MAX_FRAME_LEN, Mac, TAG_LEN, TAGS_MAX};

use crate::{Lease, Segment};

/// Most frames handled together.
pub const BURST: usize = 64;
/// Bytes of each frame that are read once and kept aside: every header the switch decides on.
pub const HEAD_LEN: usize = 64;
/// What a segment of a large frame counts for in a burst's length, bytes, if it has fewer: one
/// burst is cut into no more than 256 segments, and those of its last frame: so the frames that a driver
/// makes stay below what a burst may cost ([`crate::Work`]).
const SEGMENT_WEIGHT: u64 = 1024;
/// `gso_type` of a datagram that is to become fragments (virtio 1.2, 5.1.6).
const GSO_UDP: u8 = 3;
/// A burst with so many bytes takes no more frames: with 64 of the largest it would hold a worker,
/// and whoever waits for it, a millisecond. A burst of 64 frames of ordinary size has 97 kB.
pub const BURST_BYTES: u64 = 256 << 10;
/// Most segments that the frames of one burst may have together. A ring gives up its turn when
/// the next frame would not fit; a single chain may have as many.
pub const MAX_BURST_SEGMENTS: usize = 4096;

/// What a frame still needs done, in virtio's terms (virtio 1.2, 5.1.6): all zero for nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Offload {
    /// The checksum from `csum_start` is to be computed and put at `csum_start + csum_offset`.
    pub needs_csum: bool,
    /// That, for receivers too who would do it themselves.
    pub finish: bool,
    /// Segmentation kind: 0 for none.
    pub gso_type: u8,
    /// Header length that segmentation repeats, bytes.
    pub hdr_len: u16,
    /// Payload bytes per segment.
    pub gso_size: u16,
    /// Bytes from the frame's start.
    pub csum_start: u16,
    /// Bytes from `csum_start`.
    pub csum_offset: u16,
    /// Whether segments may also be smaller, since nobody knows what size the sender meant. Without a kind of
    /// segmentation: the frame is large, and cannot be cut without that size. No guest's frame has it.
    pub any_size: bool,
}

/// Where a frame goes: what the stages decide, one after the other. One word, so that it is
/// written and read as one: an `enum` is stored in parts and loaded whole, which stalls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Verdict(u32);

/// A [`Verdict`], to be matched on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// Not decided yet.
    Pending,
    /// To one port.
    Port(u16),
    /// To every other port that carries the VLAN.
    Flood,
    /// Nowhere; counted by `deliver`.
    Drop(DropReason),
}

impl Verdict {
    /// Not decided yet.
    pub const PENDING: Verdict = Verdict(0);
    /// To every other port that carries the VLAN.
    pub const FLOOD: Verdict = Verdict(1 << 16);
    const PORT: u32 = 2 << 16;
    const DROP: u32 = 3 << 16;

    /// To port number `port`.
    #[inline(always)]
    pub const fn port(port: u16) -> Verdict {
        Verdict(Verdict::PORT | port as u32)
    }

    /// Nowhere, for `reason`.
    #[inline(always)]
    pub const fn drop(reason: DropReason) -> Verdict {
        Verdict(Verdict::DROP | reason as u32)
    }

    /// The verdict, to be matched on.
    #[inline(always)]
    pub fn decision(self) -> Decision {
        let low = self.0 as u16;
        match self.0 & !0xffff {
            Verdict::PORT => Decision::Port(low),
            Verdict::DROP => match DropReason::ALL.get(usize::from(low)) {
                Some(reason) => Decision::Drop(*reason),
                None => Decision::Pending,
            },
            0 => Decision::Pending,
            _ => Decision::Flood,
        }
    }
}

/// One frame of a burst: two cache lines, the first being the frame's first bytes.
#[repr(C, align(64))]
#[derive(Clone, Debug)]
pub struct Frame {
    /// The first bytes; those after `head_len` are no part of the frame.
    pub head: [u8; HEAD_LEN],
    /// Destination address (set by `parse`).
    pub dst: Mac,
    /// Source address (set by `parse`).
    pub src: Mac,
    /// Length of the whole frame, bytes.
    pub len: u32,
    /// First of this frame's segments within the burst's list: the bytes after `head`.
    pub(crate) segment_first: u16,
    pub(crate) segment_count: u16,
    /// What is still to be done.
    pub offload: Offload,
    /// Tag control information to push: priority and VLAN. Meaningful when a tag is pushed.
    pub tci: u16,
    /// Where it goes.
    pub verdict: Verdict,
    /// The VLAN the frame travels in; 0 for frames that belong to none.
    pub vlan: u16,
    /// Whether the bytes carry an 802.1Q tag.
    pub tagged: bool,
    /// Whether there is another one behind it.
    pub stacked: bool,
    /// How many tags, 802.1Q or 802.1ad, do not count in its length (`TAGS_MAX` at most).
    pub tags: u8,
}

impl Frame {
    const EMPTY: Frame = Frame {
        head: [0; HEAD_LEN],
        dst: Mac::BROADCAST,
        src: Mac::BROADCAST,
        len: 0,
        segment_first: 0,
        segment_count: 0,
        offload: Offload {
            needs_csum: false,
            finish: false,
            gso_type: 0,
            hdr_len: 0,
            gso_size: 0,
            csum_start: 0,
            csum_offset: 0,
            any_size: false,
        },
        tci: 0,
        verdict: Verdict::PENDING,
        vlan: 0,
        tagged: false,
        stacked: false,
        tags: 0,
    };

    /// All that decides where the frame goes and what becomes of its tag, as one word: verdict, VLAN, tags. Equal for
    /// frames with the same fate.
    #[inline(always)]
    pub fn route(&self) -> u64 {
        let tags = u64::from(self.tagged) | u64::from(self.stacked) << 8;
        u64::from(self.verdict.0) | u64::from(self.vlan) << 32 | tags << 48
    }

    /// How many bytes of `head` are the frame's.
    #[inline(always)]
    pub fn head_len(&self) -> usize {
        (self.len as usize).min(HEAD_LEN)
    }

    /// The frame's first bytes, as many as it has.
    #[inline(always)]
    pub fn headers(&self) -> &[u8] {
        self.head.get(..self.head_len()).unwrap_or(&[])
    }

    /// Drops the frame, unless it is dropped already: the first reason stands.
    #[inline(always)]
    pub fn drop_for(&mut self, reason: DropReason) {
        if !matches!(self.verdict.decision(), Decision::Drop(_)) {
            self.verdict = Verdict::drop(reason);
        }
    }
}

/// What to do with a frame's 802.1Q tag in one copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TagOp {
    /// Leave the bytes as they are.
    Keep,
    /// Insert a tag with the frame's `tci`.
    Push,
    /// Take the tag out.
    Pop,
}

impl TagOp {
    /// By how many bytes the copy is longer than the frame.
    #[inline(always)]
    pub fn growth(self) -> isize {
        match self {
            TagOp::Keep => 0,
            TagOp::Push => 4,
            TagOp::Pop => -4,
        }
    }
}

/// One copy to make: a frame of the burst, and what to do with its tag.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pick {
    /// Index of the frame in the burst.
    pub frame: u8,
    /// What to do with its tag.
    pub tag: TagOp,
}

/// Up to [`BURST`] frames, received together from one queue. Made once per worker and reused:
/// nothing is allocated after start.
pub struct Burst {
    frames: Box<[Frame; BURST]>,
    len: usize,
    /// With so many frames it is full, at most [`BURST`].
    frames_max: usize,
    /// Bytes of all frames, or what they count for.
    weight: u64,
    /// Whether a frame is to be cut into segments, for those who do not take it whole.
    large: bool,
    segments: Vec<Segment>,
    /// Whether a frame was put together from the pieces of a chain.
    has_chains: bool,
    /// What reading the frames' descriptors took.
    reading: u32,
    /// Lent to whoever puts a frame's pieces together.
    scratch: Vec<Segment>,
    /// Whose memory may be taken instead of copied.
    lease: Lease,
}

impl Default for Burst {
    fn default() -> Burst {
        Burst::new()
    }
}

impl Burst {
    /// An empty burst with all its memory.
    pub fn new() -> Burst {
        Burst {
            frames: Box::new([const { Frame::EMPTY }; BURST]),
            len: 0,
            frames_max: BURST,
            weight: 0,
            large: false,
            segments: Vec::with_capacity(MAX_BURST_SEGMENTS),
            has_chains: false,
            reading: 0,
            scratch: Vec::with_capacity(MAX_BURST_SEGMENTS),
            lease: Lease::default(),
        }
    }

    /// Forgets every frame.
    #[inline(always)]
    pub fn clear(&mut self) {
        self.len = 0;
        self.weight = 0;
        self.large = false;
        self.has_chains = false;
        self.reading = 0;
        self.segments.clear();
        self.lease.close();
    }

    /// Where its frames lie, if they may be taken instead of copied.
    #[inline(always)]
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// The same, to be filled by who receives.
    #[inline(always)]
    pub fn lease_mut(&mut self) -> &mut Lease {
        &mut self.lease
    }

    /// Whether the burst is as long as one may be: [`BURST_BYTES`], or the frames' number.
    #[inline(always)]
    pub fn is_full(&self) -> bool {
        self.len >= self.frames_max || self.weight >= BURST_BYTES
    }

    /// From now on the burst is full with so many frames: at least one, at most [`BURST`].
    #[inline(always)]
    pub fn set_frames_max(&mut self, frames: usize) {
        self.frames_max = frames.clamp(1, BURST);
    }

    /// What following the frames' descriptors took beyond one for each frame, in units of [`Work`](crate::Work).
    #[inline(always)]
    pub fn reading(&self) -> u32 {
        self.reading
    }

    /// Notes that, by who receives.
    #[inline(always)]
    pub fn note_reading(&mut self, units: u32) {
        self.reading = units;
    }

    /// In how many pieces of memory the frame lies, besides its head.
    #[inline(always)]
    pub fn piece_count(&self, frame: &Frame) -> usize {
        frame.segment_count.into()
    }

    /// Whether a frame is to be cut into segments, for those who do not take it whole.
    #[inline(always)]
    pub fn has_large(&self) -> bool {
        self.large
    }

    /// Says so.
    #[inline(always)]
    pub fn set_large(&mut self) {
        self.large = true;
    }

    /// Whether each frame is in one piece, and none is to be cut.
    #[inline(always)]
    pub fn is_plain(&self) -> bool {
        !self.large && !self.has_chains
    }

    /// How many frames there are.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many more segments the burst can hold.
    #[inline(always)]
    pub fn segment_room(&self) -> usize {
        MAX_BURST_SEGMENTS - self.segments.len()
    }

    /// The frames.
    #[inline(always)]
    pub fn frames(&self) -> &[Frame] {
        self.frames.get(..self.len).unwrap_or(&[])
    }

    /// The frames, to be decided on.
    #[inline(always)]
    pub fn frames_mut(&mut self) -> &mut [Frame] {
        self.frames.get_mut(..self.len).unwrap_or(&mut [])
    }

    /// The segments that hold a frame's bytes after its head.
    #[inline(always)]
    pub fn segments(&self, frame: &Frame) -> &[Segment] {
        let first = usize::from(frame.segment_first);
        self.segments
            .get(first..first + usize::from(frame.segment_count))
            .unwrap_or(&[])
    }

    /// Lends an empty list with room for [`MAX_BURST_SEGMENTS`]; give it back with
    /// [`put_scratch`](Self::put_scratch).
    pub fn take_scratch(&mut self) -> Vec<Segment> {
        self.has_chains = true;
        std::mem::take(&mut self.scratch)
    }

    /// Takes the list back.
    pub fn put_scratch(&mut self, mut scratch: Vec<Segment>) {
        scratch.clear();
        self.scratch = scratch;
    }

    /// Adds a frame that lies in one segment. A full burst refuses (`false`).
    #[inline(always)]
    pub fn push_contiguous(&mut self, bytes: Segment, offload: Offload) -> bool {
        if self.len == BURST || self.segments.len() == MAX_BURST_SEGMENTS {
            return false;
        }
        let frame = &mut self.frames[self.len];
        bytes.read(&mut frame.head);
        frame.len = bytes.len() as u32;
        frame.segment_first = self.segments.len() as u16;
        frame.segment_count = 0;
        if bytes.len() > HEAD_LEN {
            self.segments.push(bytes.skip(HEAD_LEN));
            frame.segment_count = 1;
        }
        frame.offload = offload;
        frame.verdict = Verdict::PENDING;
        self.weight += weight(frame.len, &frame.offload);
        self.len += 1;
        true
    }

    /// Adds a frame of at most [`HEAD_LEN`] bytes, which are copied: nobody need keep them. A
    /// longer one, or a full burst, is refused (`false`).
    pub fn push_short(&mut self, bytes: &[u8]) -> bool {
        if self.len == BURST || bytes.len() > HEAD_LEN {
            return false;
        }
        let frame = &mut self.frames[self.len];
        frame.head[..bytes.len()].copy_from_slice(bytes);
        frame.len = bytes.len() as u32;
        frame.segment_first = self.segments.len() as u16;
        frame.segment_count = 0;
        frame.offload = Offload::default();
        frame.verdict = Verdict::PENDING;
        self.weight += weight(frame.len, &frame.offload);
        self.len += 1;
        true
    }

    /// Adds a frame that is the same as `frame` of `from`, with what was found out about it. A burst without room for
    /// it refuses (`false`).
    pub fn push_same(&mut self, from: &Burst, frame: &Frame) -> bool {
        let segments = from.segments(frame);
        if self.len == BURST || segments.len() > self.segment_room() {
            return false;
        }
        let first = self.segments.len() as u16;
        self.segments.extend_from_slice(segments);
        let slot = &mut self.frames[self.len];
        slot.clone_from(frame);
        slot.segment_first = first;
        self.weight += weight(frame.len, &frame.offload);
        self.len += 1;
        true
    }

    /// Adds a frame that is too long to refer to: it has a length and no bytes, and the length
    /// gets it dropped. A full burst refuses (`false`).
    pub fn push_oversize(&mut self) -> bool {
        let pushed = self.push_segments(&[], Offload::default());
        if let (true, Some(frame)) = (pushed, self.frames_mut().last_mut()) {
            frame.len = (MAX_FRAME_LEN + TAG_LEN * usize::from(TAGS_MAX)) as u32 + 1;
        }
        pushed
    }

    /// Adds a frame that lies in several segments, in order. A burst without room for it, or a
    /// frame of over 4 GiB, is refused (`false`).
    pub fn push_segments(&mut self, pieces: &[Segment], offload: Offload) -> bool {
        if self.len == BURST || pieces.len() > self.segment_room() {
            return false;
        }
        let total: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
        let Ok(len) = u32::try_from(total) else {
            return false;
        };
        let frame = &mut self.frames[self.len];
        frame.segment_first = self.segments.len() as u16;
        let mut filled = 0;
        for piece in pieces {
            let read = piece.read(frame.head.get_mut(filled..).unwrap_or(&mut []));
            filled += read;
            if piece.len() > read {
                self.segments.push(piece.skip(read));
            }
        }
        frame.segment_count = self.segments.len() as u16 - frame.segment_first;
        frame.len = len;
        frame.offload = offload;
        frame.verdict = Verdict::PENDING;
        self.weight += weight(frame.len, &frame.offload);
        self.len += 1;
        true
    }
}

/// What a frame counts for in a burst's length, bytes.
#[inline(always)]
fn weight(len: u32, offload: &Offload) -> u64 {
    match offload.gso_type {
        0 => len.into(),
        _ => weight_of_segments(len, offload),
    }
}

#[cold]
fn weight_of_segments(len: u32, offload: &Offload) -> u64 {
    // Fragments of a datagram have a multiple of 8 bytes (RFC 791, 2.3).
    let size = match offload.gso_type {
        GSO_UDP => offload.gso_size & !7,
        _ => offload.gso_size,
    };
    let segments = len.div_ceil(u32::from(size).max(1));
    u64::from(len).max(u64::from(segments) * SEGMENT_WEIGHT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_frame_is_copied_and_a_longer_one_refused() {
        let mut burst = Burst::new();
        assert!(burst.push_short(&[7; 60]));
        assert!(!burst.push_short(&[7; HEAD_LEN + 1]));
        assert_eq!(burst.frames()[0].headers(), [7; 60]);
        assert!(burst.segments(&burst.frames()[0]).is_empty());
        while burst.len() < BURST {
            assert!(burst.push_short(&[1; HEAD_LEN]));
        }
        assert!(!burst.push_short(&[]));
    }

    #[test]
    fn a_frame_is_two_cache_lines() {
        assert_eq!(std::mem::size_of::<Frame>(), 128);
        assert_eq!(std::mem::align_of::<Frame>(), 64);
    }
}
