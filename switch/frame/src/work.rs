use crosspoint_packet::MAX_FRAME_LEN;

use crate::burst::{BURST, BURST_BYTES};

/// Work budget of one burst, beyond the basic cost of every burst: its frames read once, and one copy of each made.
///
/// One unit is about one cycle of the time stamp counter at 2.6 GHz, with the memory in a near cache. Whatever a
/// burst's frames, rings and receivers are, all work that a guest can multiply is charged here: descriptors and pieces,
/// receive buffers read, segments, and copies beyond the first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Work {
    left: u32,
}

impl Work {
    /// Maximum work to read the chains of one burst: descriptors, and further regions that they span.
    pub const READ: u32 = 1280 * Work::STEP;
    /// Budget of one burst for floods and segments: 50 us, by the costs below. A burst of four TCP frames of 64 KiB
    /// that are cut at 536 bytes costs 114 000.
    pub const BURST: u32 = 130_000;
    /// Maximum work for all receivers' buffers of one burst together, beyond [`Work::OWN`] for each copy.
    pub const RECEIVERS: u32 = 65_000;
    /// Work that each copy may use for its receiver's buffers: a chain of 19 descriptors, as Linux makes for large
    /// frames without mergeable buffers, costs 912.
    pub const OWN: u32 = 1024;
    /// Maximum own work of one delivery (a burst of copies). For floods and segments it is charged to [`Work::BURST`]
    /// afterwards, so the last delivery may exceed that budget by this much.
    pub const DELIVERY: u32 =
        BURST as u32 * Work::OWN + (BURST_BYTES as u32 + MAX_FRAME_LEN as u32) / Work::BYTES;
    /// Maximum cost of one burst beyond the basic cost of every burst: reading it, floods and segments, receivers'
    /// buffers, the own work of frames for one port each, and the last delivery of a flood or of segments.
    pub const MOST: u32 = Work::READ + Work::BURST + Work::RECEIVERS + 2 * Work::DELIVERY;
    /// Bytes copied for one unit: 64 cycles for a KiB.
    const BYTES: u32 = 16;
    /// One descriptor read and translated, or one more region that it spans: some are in the previous one's cache line,
    /// others far away.
    pub const STEP: u32 = 48;
    /// One receive buffer read.
    pub const LOOK: u32 = 16;
    /// One more receive buffer that a copy takes: its used entry, and the piece to copy to.
    pub const BUFFER: u32 = 80;
    /// One port checked as the destination of a flooded frame; [`Work::TRIED`] is for each frame tried on it.
    pub const PORT: u32 = 50;
    /// See [`Work::PORT`].
    pub const TRIED: u32 = 4;
    /// One copy of a flooded frame compared with the rules and connections of its receiver.
    pub const JUDGED: u32 = 300;
    /// One receive buffer returned empty: its used entry is written, and its cache line moves to the driver's core.
    pub const GIVEN_BACK: u32 = 80;
    /// One copy made and published.
    pub const COPY: u32 = 60;
    /// One more piece of memory that a copy is read from, or written to.
    pub const PIECE: u32 = 12;
    /// One segment's header made.
    pub const SEGMENT: u32 = 140;

    /// Creates a budget of `units`.
    pub const fn new(units: u32) -> Work {
        Work { left: units }
    }

    /// Units left.
    #[inline(always)]
    pub fn left(&self) -> u32 {
        self.left
    }

    /// Subtracts `units`. If fewer are left, sets the budget to 0 and returns `false`.
    #[inline(always)]
    pub fn spend(&mut self, units: u32) -> bool {
        let left = self.left.checked_sub(units);
        self.left = left.unwrap_or(0);
        left.is_some()
    }

    /// Whether the budget is used up.
    #[inline(always)]
    pub fn is_spent(&self) -> bool {
        self.left == 0
    }

    /// Cost of copying `bytes`.
    #[inline(always)]
    pub fn of_bytes(bytes: u32) -> u32 {
        bytes / Work::BYTES
    }
}

impl Default for Work {
    fn default() -> Work {
        Work::new(Work::BURST)
    }
}
