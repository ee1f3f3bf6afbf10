//! What happens to a frame's tags in a copy of it.

use crosspoint_packet::TAGS_MAX;

/// What to do with a frame's tags in one copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HeaderOp {
    /// Keep the bytes unchanged.
    Keep,
    /// Insert an 802.1Q tag with the frame's `tci`.
    Push,
    /// Remove the first tag.
    Pop,
    /// Insert the tag of the frame's bridge.
    PushBridge,
    /// Insert the tag of the frame's bridge, and an 802.1Q tag with the frame's `tci` behind it.
    PushBoth,
    /// Remove the first two tags.
    PopBoth,
}

impl HeaderOp {
    /// Number of bytes by which the copy is longer than the frame.
    #[inline(always)]
    pub fn growth(self) -> isize {
        match self {
            HeaderOp::Keep => 0,
            HeaderOp::Push | HeaderOp::PushBridge => 4,
            HeaderOp::Pop => -4,
            HeaderOp::PushBoth => 8,
            HeaderOp::PopBoth => -8,
        }
    }

    /// Number of tags of a copy, if the frame has `tags`; at most [`TAGS_MAX`]. Any tag behind the second is part of the
    /// payload.
    #[inline(always)]
    pub fn tags_of_copy(self, tags: u8) -> u8 {
        match self {
            HeaderOp::Keep => tags,
            HeaderOp::Push | HeaderOp::PushBridge => (tags + 1).min(TAGS_MAX),
            HeaderOp::PushBoth => (tags + 2).min(TAGS_MAX),
            HeaderOp::Pop => tags.saturating_sub(1),
            HeaderOp::PopBoth => tags.saturating_sub(2),
        }
    }
}
