use crosspoint_packet::MAX_FRAME_LEN;

use crate::burst::{BURST, BURST_BYTES};

/// What one burst may still cost, beyond what every burst costs: its frames read once, and one copy of each made.
///
/// One unit is about one cycle of the time stamp counter at 2.6 GHz, with the memory in a near cache. Whatever the
/// frames, rings and receivers of a burst are, everything that can be multiplied by a guest is paid for here: descriptors
/// and pieces, looks at receive buffers, segments, and copies beyond the first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Work {
    left: u32,
}

impl Work {
    /// Work that reading the chains of one burst may cost: so many descriptors, and more regions that they span.
    pub const READ: u32 = 1280 * Work::STEP;
    /// Work of one burst: 50 us, by the costs below. A burst of four TCP frames of 64 KiB that are cut at 536 bytes
    /// costs 114 000.
    pub const BURST: u32 = 130_000;
    /// Work that receivers' buffers may ask for in one burst, all together, beyond [`Work::OWN`] for each copy.
    pub const RECEIVERS: u32 = 65_000;
    /// Work that any copy may ask for of its receiver's buffers: a chain of 19 descriptors, as Linux makes them for large
    /// frames without mergeable buffers, is 912.
    pub const OWN: u32 = 1024;
    /// What the buffers of one delivery, of a burst of copies, may ask for by themselves. Of floods and segments it is paid
    /// from [`Work::BURST`] once it is known: the last delivery may take so much more than there was.
    pub const DELIVERY: u32 =
        BURST as u32 * Work::OWN + (BURST_BYTES as u32 + MAX_FRAME_LEN as u32) / Work::BYTES;
    /// The most that one burst may cost beyond what every burst costs: reading it, floods and segments, receivers'
    /// buffers, the own ones of frames for one port each, and the last delivery of a flood or of segments.
    pub const MOST: u32 = Work::READ + Work::BURST + Work::RECEIVERS + 2 * Work::DELIVERY;
    /// So many bytes are copied for one unit: 64 cycles for a KiB.
    const BYTES: u32 = 16;
    /// One descriptor read and translated, or one more region that it spans: some lie in the cache line of the one before,
    /// others far away.
    pub const STEP: u32 = 48;
    /// One receive buffer looked at.
    pub const LOOK: u32 = 16;
    /// One more receive buffer that a copy takes: its used entry, and the piece to copy to.
    pub const BUFFER: u32 = 80;
    /// One port that a flooded frame may go to looked at, and one frame tried on it.
    pub const PORT: u32 = 50;
    /// See [`Work::PORT`].
    pub const TRIED: u32 = 4;
    /// One receive buffer given back empty: its used entry is written, and its line goes to the driver's core.
    pub const GIVEN_BACK: u32 = 80;
    /// One copy made and published.
    pub const COPY: u32 = 60;
    /// One more piece of memory that a copy is read from, or written to.
    pub const PIECE: u32 = 12;
    /// A segment's header made.
    pub const SEGMENT: u32 = 140;

    /// Work of so many units.
    pub const fn new(units: u32) -> Work {
        Work { left: units }
    }

    /// What is left.
    #[inline(always)]
    pub fn left(&self) -> u32 {
        self.left
    }

    /// Takes off `units`; `false`, and nothing is left, when there are fewer.
    #[inline(always)]
    pub fn spend(&mut self, units: u32) -> bool {
        let left = self.left.checked_sub(units);
        self.left = left.unwrap_or(0);
        left.is_some()
    }

    /// Whether nothing more can be done.
    #[inline(always)]
    pub fn is_spent(&self) -> bool {
        self.left == 0
    }

    /// What copying `bytes` costs.
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
