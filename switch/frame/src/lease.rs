use std::cell::Cell;

use crate::BURST;

/// Where the frames of a burst lie, if they lie in a UMEM: who sends one on through the same UMEM may take its memory,
/// and leaves other memory in its place. Then nothing is copied.
///
/// A *place* is the UMEM address of a run of bytes, one for each descriptor that the burst was received in.
pub struct Lease {
    /// Which UMEM, by a number that is its own; 0 for none, or when nobody may take anything.
    umem: Cell<usize>,
    places: [Cell<u64>; BURST],
    lens: [u32; BURST],
    /// Per frame: its first place, and how many it has.
    spans: [Cell<(u8, u8)>; BURST],
    frames: usize,
}

impl Default for Lease {
    fn default() -> Lease {
        Lease {
            umem: Cell::new(0),
            places: [const { Cell::new(0) }; BURST],
            lens: [0; BURST],
            spans: [const { Cell::new((0, 0)) }; BURST],
            frames: 0,
        }
    }
}

impl Lease {
    /// The frames of this burst lie in `umem`; none is noted yet.
    #[inline(always)]
    pub fn open(&mut self, umem: usize) {
        self.umem.set(umem);
        self.frames = 0;
    }

    /// Nobody may take anything: the frames lie elsewhere, or more than one copy of some is made.
    #[inline(always)]
    pub fn close(&self) {
        self.umem.set(0);
    }

    /// Nobody may take the memory of frame `frame`: several copies of it are made.
    #[inline(always)]
    pub fn close_frame(&self, frame: usize) {
        if let Some(span) = self.spans.get(frame) {
            span.set((0, 0));
        }
    }

    /// Notes that `len` bytes lie at `place`, number `index` of the burst's places. Beyond [`BURST`] it is ignored.
    #[inline(always)]
    pub fn set_place(&mut self, index: usize, place: u64, len: u32) {
        if let (Some(slot), Some(of)) = (self.places.get(index), self.lens.get_mut(index)) {
            slot.set(place);
            *of = len;
        }
    }

    /// Notes that the next frame has `count` places from number `first` on. Returns its number.
    #[inline(always)]
    pub fn end_frame(&mut self, first: usize, count: usize) -> usize {
        let frame = self.frames;
        if let Some(span) = self.spans.get(frame) {
            span.set((first as u8, count as u8));
            self.frames += 1;
        }
        frame
    }

    /// How many frames were noted.
    #[inline(always)]
    pub fn frames(&self) -> usize {
        self.frames
    }

    /// The places of frame `frame`, by number, if they may be taken by who sends through `umem`: none otherwise.
    #[inline(always)]
    pub fn span(&self, frame: usize, umem: usize) -> std::ops::Range<usize> {
        match self.spans.get(frame).map(Cell::get) {
            Some((first, count)) if self.umem.get() == umem => {
                usize::from(first)..usize::from(first) + usize::from(count)
            }
            _ => 0..0,
        }
    }

    /// Place number `index`, or what was left there; and its length.
    #[inline(always)]
    pub fn place(&self, index: usize) -> (u64, u32) {
        match (self.places.get(index), self.lens.get(index)) {
            (Some(place), Some(len)) => (place.get(), *len),
            _ => (0, 0),
        }
    }

    /// Takes the memory at place number `index`, and leaves `other` there.
    #[inline(always)]
    pub fn exchange(&self, index: usize, other: u64) {
        if let Some(place) = self.places.get(index) {
            place.set(other);
        }
    }
}
