use crosspoint_packet::{DropReason, MAX_FRAME_LEN, Mac, TAG_LEN, TAGS_MAX};

use crate::hold::Held;
use crate::{FrameSwap, HeaderOp, Segment};

/// Maximum number of frames in a burst.
pub const BURST: usize = 64;
/// Bytes of each frame that are read once and copied: every header that the switch decides on.
pub const HEAD_LEN: usize = 64;
/// Minimum weight, in bytes, of a large frame's segment in a burst's length. So one burst is cut into at most 256
/// segments plus those of its last frame, and the frames that a driver makes stay within the cost limit of a burst
/// ([`crate::Work`]).
const SEGMENT_WEIGHT: u64 = 1024;
/// `gso_type` of a UDP datagram to be fragmented (virtio 1.2, 5.1.6).
const GSO_UDP: u8 = 3;
/// A burst with this many bytes takes no more frames: 64 frames of the largest size would occupy a worker, and
/// everything that waits for it, for a millisecond. A burst of 64 frames of ordinary size has 97 kB.
pub const BURST_BYTES: u64 = 256 << 10;
/// Maximum segments of all frames of one burst. A poll of a ring ends when the next frame would not fit; a single chain
/// may have as many.
pub const MAX_BURST_SEGMENTS: usize = 4096;

/// Offloads that a frame still needs, in virtio's terms (virtio 1.2, 5.1.6); all zero for none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Offload {
    /// The checksum from `csum_start` on must be computed and stored at `csum_start + csum_offset`.
    pub needs_csum: bool,
    /// The switch must complete the checksum, even for receivers that could do it themselves.
    pub finish: bool,
    /// GSO type; 0 for none.
    pub gso_type: u8,
    /// Length of the headers that each segment repeats, in bytes.
    pub hdr_len: u16,
    /// Payload bytes per segment.
    pub gso_size: u16,
    /// Offset from the frame's start, in bytes.
    pub csum_start: u16,
    /// Offset from `csum_start`, in bytes.
    pub csum_offset: u16,
    /// Whether segments may be smaller too, since the sender's segment size is unknown. With `gso_type` 0: the frame is
    /// too large, and cannot be cut without that size. Never set for guests' frames.
    pub any_size: bool,
}

/// Where a frame goes, decided by the stages in turn. Packed into one word, which is stored and loaded whole: an `enum`
/// is stored in parts and loaded whole, which stalls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Verdict(u32);

/// A [`Verdict`] as an enum, for matching.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// Not decided yet.
    Pending,
    /// To one port.
    Port(u16),
    /// To every other port that carries the VLAN.
    Flood,
    /// Dropped; counted by `deliver`.
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

    /// Dropped for `reason`.
    #[inline(always)]
    pub const fn drop(reason: DropReason) -> Verdict {
        Verdict(Verdict::DROP | reason as u32)
    }

    /// Returns the verdict as an enum, for matching.
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
    /// The frame's first bytes; bytes after `head_len` are not part of the frame.
    pub head: [u8; HEAD_LEN],
    /// Destination address (set by `parse`).
    pub dst: Mac,
    /// Source address (set by `parse`).
    pub src: Mac,
    /// Length of the whole frame in bytes.
    pub len: u32,
    /// Index of this frame's first segment in the burst's list; the segments hold the bytes after `head`.
    pub(crate) segment_first: u16,
    pub(crate) segment_count: u16,
    /// Offloads that are still needed.
    pub offload: Offload,
    /// Tag control information to push: priority and VLAN. Meaningful when a tag is pushed.
    pub tci: u16,
    /// Where the frame goes.
    pub verdict: Verdict,
    /// The frame's VLAN in its bridge, below 4096; 0 for frames that belong to none.
    pub vlan: u16,
    /// Whether the frame has an 802.1Q tag, behind its bridge's tag if it has that.
    pub tagged: bool,
    /// Whether another tag follows it, of either kind; without an 802.1Q tag, whether it has an 802.1ad tag.
    pub stacked: bool,
    /// Number of 802.1Q or 802.1ad tags that are not counted in its length (`TAGS_MAX` at most).
    pub tags: u8,
    /// The number of the frame's bridge; 0 for the default bridge.
    pub bridge: u8,
    /// Whether the frame begins with its bridge's tag.
    pub has_bridge_tag: bool,
    /// Its bridge's tag, as it is on the wire. Meaningful when that tag is pushed.
    pub bridge_tag: [u8; TAG_LEN],
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
        tags: 0,
        tagged: false,
        stacked: false,
        bridge: 0,
        has_bridge_tag: false,
        bridge_tag: [0; TAG_LEN],
    };

    /// Everything that decides where the frame goes and what happens to its tag, as one word: verdict, VLAN, tags. VLAN and
    /// tags lie beside each other, so that one load reads them. Frames of one bridge with equal words are handled the same.
    #[inline(always)]
    pub fn route(&self) -> u64 {
        let tags = u64::from(self.tagged) | u64::from(self.stacked) << 8;
        u64::from(self.verdict.0) | u64::from(self.vlan) << 32 | tags << 48
    }

    /// Number of bytes of `head` that belong to the frame.
    #[inline(always)]
    pub fn head_len(&self) -> usize {
        (self.len as usize).min(HEAD_LEN)
    }

    /// The frame's first bytes, at most [`HEAD_LEN`].
    #[inline(always)]
    pub fn headers(&self) -> &[u8] {
        self.head.get(..self.head_len()).unwrap_or(&[])
    }

    /// Drops the frame, unless it is dropped already: the first reason is kept.
    #[inline(always)]
    pub fn drop_for(&mut self, reason: DropReason) {
        if !matches!(self.verdict.decision(), Decision::Drop(_)) {
            self.verdict = Verdict::drop(reason);
        }
    }
}

/// One copy to make: a frame of the burst, and what to do with its tag.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TxEntry {
    /// Index of the frame in the burst.
    pub frame: u8,
    /// What to do with its tag.
    pub tag: HeaderOp,
}

/// Up to [`BURST`] frames, received together from one queue. Created once per worker and reused: nothing is allocated
/// after start.
pub struct Burst {
    frames: Box<[Frame; BURST]>,
    len: usize,
    /// Number of frames at which the burst is full, at most [`BURST`].
    frames_max: usize,
    /// Total weight of all frames: their bytes, or more for large frames.
    weight: u64,
    /// Whether a frame must be segmented for receivers that do not accept it whole.
    large: bool,
    segments: Vec<Segment>,
    /// Whether a frame was assembled from the pieces of a chain.
    has_chains: bool,
    /// Work spent on reading the frames' descriptors.
    reading: u32,
    /// Whether frames may be in other bridges than the default one.
    has_bridges: bool,
    /// Scratch list, lent to code that assembles a frame's pieces.
    scratch: Vec<Segment>,
    /// UMEM memory of the frames that may be taken instead of copied.
    lease: FrameSwap,
    /// Memory of the frames that are held.
    pub(crate) held: Held,
}

impl Default for Burst {
    fn default() -> Burst {
        Burst::new()
    }
}

impl Burst {
    /// Creates an empty burst and allocates all its memory.
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
            has_bridges: false,
            scratch: Vec::with_capacity(MAX_BURST_SEGMENTS),
            lease: FrameSwap::default(),
            held: Held::default(),
        }
    }

    /// Removes every frame.
    #[inline(always)]
    pub fn clear(&mut self) {
        self.len = 0;
        self.weight = 0;
        self.large = false;
        self.has_chains = false;
        self.reading = 0;
        self.segments.clear();
        self.lease.close();
        if self.has_bridges {
            self.forget_bridges();
        }
    }

    /// Puts all frames into `bridge`, whose tag on the wire is `tag`; later bursts are in the default bridge again.
    pub fn set_bridge(&mut self, bridge: u8, tag: [u8; TAG_LEN]) {
        self.note_bridges();
        for frame in self.frames_mut() {
            (frame.bridge, frame.has_bridge_tag, frame.bridge_tag) = (bridge, false, tag);
        }
    }

    /// Notes that frames of this burst may be in other bridges than the default one.
    pub fn note_bridges(&mut self) {
        self.has_bridges = true;
    }

    /// A frame's place in the array is used again, and most bursts do not write these fields.
    #[cold]
    fn forget_bridges(&mut self) {
        self.has_bridges = false;
        for frame in self.frames.iter_mut() {
            (frame.bridge, frame.has_bridge_tag) = (0, false);
            frame.bridge_tag = [0; TAG_LEN];
        }
    }

    /// UMEM addresses of the frames, if they may be taken instead of copied.
    #[inline(always)]
    pub fn lease(&self) -> &FrameSwap {
        &self.lease
    }

    /// The same, for the receiving code to fill.
    #[inline(always)]
    pub fn lease_mut(&mut self) -> &mut FrameSwap {
        &mut self.lease
    }

    /// Whether the burst has reached [`BURST_BYTES`] or its maximum number of frames.
    #[inline(always)]
    pub fn is_full(&self) -> bool {
        self.len >= self.frames_max || self.weight >= BURST_BYTES
    }

    /// Sets the number of frames at which the burst is full: at least one, at most [`BURST`].
    #[inline(always)]
    pub fn set_frames_max(&mut self, frames: usize) {
        self.frames_max = frames.clamp(1, BURST);
    }

    /// Work spent on reading the frames' descriptors beyond one for each frame, in units of [`Work`](crate::Work).
    #[inline(always)]
    pub fn reading(&self) -> u32 {
        self.reading
    }

    /// Records the work that reading the descriptors took.
    #[inline(always)]
    pub fn note_reading(&mut self, units: u32) {
        self.reading = units;
    }

    /// Number of memory pieces of the frame besides its head.
    #[inline(always)]
    pub fn piece_count(&self, frame: &Frame) -> usize {
        frame.segment_count.into()
    }

    /// Whether a frame must be segmented for receivers that do not accept it whole.
    #[inline(always)]
    pub fn has_large(&self) -> bool {
        self.large
    }

    /// Marks the burst as holding a frame that must be segmented for some receivers.
    #[inline(always)]
    pub fn set_large(&mut self) {
        self.large = true;
    }

    /// Whether each frame is in one piece and none needs segmentation.
    #[inline(always)]
    pub fn is_plain(&self) -> bool {
        !self.large && !self.has_chains
    }

    /// Number of frames.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no frames.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of segments that the burst can still take.
    #[inline(always)]
    pub fn segment_room(&self) -> usize {
        MAX_BURST_SEGMENTS - self.segments.len()
    }

    /// The frames.
    #[inline(always)]
    pub fn frames(&self) -> &[Frame] {
        self.frames.get(..self.len).unwrap_or(&[])
    }

    /// The frames, for the stages to change.
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

    /// Gives a frame this segment instead of those that it has. There must be room for it.
    pub(crate) fn replace_segments(&mut self, index: usize, segment: Segment) {
        let first = self.segments.len();
        if first < MAX_BURST_SEGMENTS
            && let Some(frame) = self.frames.get_mut(index)
        {
            self.segments.push(segment);
            (frame.segment_first, frame.segment_count) = (first as u16, 1);
        }
    }

    /// Gives a frame this segment in place of the bytes that follow its head, as many as the segment has; the bytes behind
    /// them stay where they are. There must be room for the frame's segments and one more.
    pub(crate) fn replace_beginning(&mut self, index: usize, segment: Segment) {
        let Some(frame) = self.frames.get_mut(index) else {
            return;
        };
        let old = usize::from(frame.segment_first);
        let old = old..old + usize::from(frame.segment_count);
        let (first, mut skip) = (self.segments.len(), segment.len());
        if first + old.len() >= MAX_BURST_SEGMENTS {
            return;
        }
        self.segments.push(segment);
        for piece in old {
            let Some(piece) = self.segments.get(piece).copied() else {
                return;
            };
            if piece.len() > skip {
                self.segments.push(piece.skip(skip));
            }
            skip = skip.saturating_sub(piece.len());
        }
        frame.segment_first = first as u16;
        frame.segment_count = (self.segments.len() - first) as u16;
    }

    /// Lends an empty list with room for [`MAX_BURST_SEGMENTS`]; return it with [`put_scratch`](Self::put_scratch).
    pub fn take_scratch(&mut self) -> Vec<Segment> {
        self.has_chains = true;
        std::mem::take(&mut self.scratch)
    }

    /// Returns the list.
    pub fn put_scratch(&mut self, mut scratch: Vec<Segment>) {
        scratch.clear();
        self.scratch = scratch;
    }

    /// Adds a frame that is in one segment. Returns `false` if the burst is full.
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

    /// Copies a frame of at most [`HEAD_LEN`] bytes into the burst; the bytes need not stay valid. Returns `false` if
    /// the frame is longer or the burst is full.
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

    /// Adds a copy of `frame` of `from`, with all its metadata. Returns `false` if there is no room.
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

    /// Adds a frame that is too long to refer to. It has a length and no bytes; the length gets it dropped. Returns
    /// `false` if the burst is full.
    pub fn push_oversize(&mut self) -> bool {
        let pushed = self.push_segments(&[], Offload::default());
        if let (true, Some(frame)) = (pushed, self.frames_mut().last_mut()) {
            frame.len = (MAX_FRAME_LEN + TAG_LEN * usize::from(TAGS_MAX)) as u32 + 1;
        }
        pushed
    }

    /// Adds a frame that is in several segments, in order. Returns `false` if there is no room or the frame is longer
    /// than 4 GiB.
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

/// Weight of a frame in a burst's length, in bytes.
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
