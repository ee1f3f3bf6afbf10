//! Checks transmit rings without their queues: whether a driver has written where it would make a frame available.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use crosspoint_memory::GuestMemory;

/// The 16 bits of a transmit ring that a driver changes when it makes a frame available in an empty ring, and their
/// last value: the available index (virtio 1.2, 2.7.6), or the flags of the next descriptor (2.8.1).
///
/// A change does not say what is available: ask the queue.
pub struct Glance {
    look: Look,
    areas: Arc<GuestMemory>,
}

/// Everything that a check of a ring reads. Small, and separate from the reference that keeps its pointer valid.
#[derive(Clone, Copy)]
struct Look {
    at: *const AtomicU16,
    mask: u16,
    value: u16,
}

// SAFETY: the pointer points into memory that the owner of the `Look` keeps alive too; every access is atomic.
unsafe impl Send for Look {}

impl Look {
    /// # Safety
    /// The memory that was passed to `Glance::new` must be kept alive.
    #[inline(always)]
    unsafe fn has_changed(self) -> bool {
        // SAFETY: the caller keeps the memory alive that contains the 16 bits passed to `new`, so they stay mapped.
        let now = unsafe { &*self.at }.load(Ordering::Relaxed);
        now & self.mask != self.value
    }
}

impl Glance {
    /// Watches the bits of `mask` at `at`, which is in `areas`, for a value other than `value`.
    pub(crate) fn new(at: &AtomicU16, mask: u16, value: u16, areas: &Arc<GuestMemory>) -> Glance {
        let areas = areas.clone();
        let look = Look { at, mask, value };
        Glance { look, areas }
    }

    /// Whether the bits have changed.
    pub fn has_changed(&self) -> bool {
        // SAFETY: `areas` keeps the memory alive.
        unsafe { self.look.has_changed() }
    }
}

/// Checks many rings at once, so that their cache misses overlap: one load for each ring, and nothing else of its
/// queue. A worker with hundreds of idle guests checks each of them many thousand times a second.
pub struct Glances {
    looks: Vec<Look>,
    /// The memory that each look reads, at the same index.
    areas: Vec<Arc<GuestMemory>>,
}

impl Glances {
    /// Creates an empty list with room for this many rings.
    pub fn with_capacity(rings: usize) -> Glances {
        Glances {
            looks: Vec::with_capacity(rings),
            areas: Vec::with_capacity(rings),
        }
    }

    /// Number of rings.
    pub fn len(&self) -> usize {
        self.looks.len()
    }

    /// Whether there are no rings.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.looks.is_empty()
    }

    /// Adds a ring at the end.
    pub fn push(&mut self, glance: Glance) {
        self.looks.push(glance.look);
        self.areas.push(glance.areas);
    }

    /// Removes the ring at `place`; the last ring takes its place.
    pub fn swap_remove(&mut self, place: usize) {
        if place < self.looks.len() {
            self.looks.swap_remove(place);
            self.areas.swap_remove(place);
        }
    }

    /// Removes all rings.
    pub fn clear(&mut self) {
        self.looks.clear();
        self.areas.clear();
    }

    /// Whether any ring has changed. Nearly never true, so there is no branch between the loads.
    #[inline(always)]
    pub fn have_changed(&self) -> bool {
        let looks = self.looks.iter();
        // SAFETY: `areas` keeps the memory of each look alive.
        looks.fold(false, |any, look| any | unsafe { look.has_changed() })
    }

    /// Whether the ring at `place` has changed.
    pub fn has_changed(&self, place: usize) -> bool {
        let look = self.looks.get(place);
        // SAFETY: as above.
        look.is_some_and(|look| unsafe { look.has_changed() })
    }
}
