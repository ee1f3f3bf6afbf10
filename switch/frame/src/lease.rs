use std::cell::Cell;

use crate::BURST;

/// UMEM addresses of a burst's frames. If a frame is sent through the same UMEM, the sender may take its memory and
/// leave other memory in its place; then nothing is copied.
///
/// A *place* is the UMEM address of a run of bytes, one for each descriptor that the burst was received in.
pub struct FrameSwap {
    /// Identity of the UMEM; 0 if there is none or no memory may be taken.
    umem: Cell<usize>,
    places: [Cell<u64>; BURST],
    lens: [u32; BURST],
    /// Per frame: index of its first place, and number of places.
    spans: [Cell<(u8, u8)>; BURST],
    frames: usize,
}

impl Default for FrameSwap {
    fn default() -> FrameSwap {
        FrameSwap {
            umem: Cell::new(0),
            places: [const { Cell::new(0) }; BURST],
            lens: [0; BURST],
            spans: [const { Cell::new((0, 0)) }; BURST],
            frames: 0,
        }
    }
}

impl FrameSwap {
    /// Begins a burst in `umem`, with no frames yet.
    #[inline(always)]
    pub fn open(&mut self, umem: usize) {
        self.umem.set(umem);
        self.frames = 0;
    }

    /// Forbids taking memory: the frames are elsewhere, or some frames are copied more than once.
    #[inline(always)]
    pub fn close(&self) {
        self.umem.set(0);
    }

    /// Forbids taking the memory of frame `frame`, since it is copied more than once.
    #[inline(always)]
    pub fn close_frame(&self, frame: usize) {
        if let Some(span) = self.spans.get(frame) {
            span.set((0, 0));
        }
    }

    /// Sets place `index` of the burst to `len` bytes at `place`. Ignored if `index` is [`BURST`] or more.
    #[inline(always)]
    pub fn set_place(&mut self, index: usize, place: u64, len: u32) {
        if let (Some(slot), Some(of)) = (self.places.get(index), self.lens.get_mut(index)) {
            slot.set(place);
            *of = len;
        }
    }

    /// Adds the next frame, with `count` places from index `first` on. Returns its index.
    #[inline(always)]
    pub fn end_frame(&mut self, first: usize, count: usize) -> usize {
        let frame = self.frames;
        if let Some(span) = self.spans.get(frame) {
            span.set((first as u8, count as u8));
            self.frames += 1;
        }
        frame
    }

    /// Number of frames added.
    #[inline(always)]
    pub fn frames(&self) -> usize {
        self.frames
    }

    /// Indices of the places of frame `frame` if a sender through `umem` may take them; otherwise empty.
    #[inline(always)]
    pub fn span(&self, frame: usize, umem: usize) -> std::ops::Range<usize> {
        match self.spans.get(frame).map(Cell::get) {
            Some((first, count)) if self.umem.get() == umem => {
                usize::from(first)..usize::from(first) + usize::from(count)
            }
            _ => 0..0,
        }
    }

    /// Address and length of place `index`; the address is that of the other memory if it was exchanged.
    #[inline(always)]
    pub fn place(&self, index: usize) -> (u64, u32) {
        match (self.places.get(index), self.lens.get(index)) {
            (Some(place), Some(len)) => (place.get(), *len),
            _ => (0, 0),
        }
    }

    /// Takes the memory at place `index`, and leaves `other` there.
    #[inline(always)]
    pub fn exchange(&self, index: usize, other: u64) {
        if let Some(place) = self.places.get(index) {
            place.set(other);
        }
    }
}
