//! A look at transmit rings without their queues: whether a driver has written where it would show something new.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use crate::GuestMemory;

/// The 16 bits of a transmit ring that a driver changes when it offers a frame to an empty one: the available index
/// (virtio 1.2, 2.7.6), or the flags of the next descriptor (2.8.1); and what they were.
///
/// That they have changed says nothing about what the driver offers: ask the queue.
pub struct Glance {
    look: Look,
    areas: Arc<GuestMemory>,
}

/// Small, and apart from what keeps its pointer good: all that a look at a ring reads.
#[derive(Clone, Copy)]
struct Look {
    at: *const AtomicU16,
    mask: u16,
    value: u16,
}

// SAFETY: the pointer is into memory that the owner of the `Look` holds too; every access is atomic.
unsafe impl Send for Look {}

impl Look {
    /// # Safety
    /// The memory that `Glance::new` was given must be held.
    #[inline(always)]
    unsafe fn has_changed(self) -> bool {
        // SAFETY: the caller holds the memory that `new` was given 16 bits of, which keeps them mapped.
        let now = unsafe { &*self.at }.load(Ordering::Relaxed);
        now & self.mask != self.value
    }
}

impl Glance {
    /// The bits of `mask` at `at`, which lies in `areas`, while they are `value`.
    pub(crate) fn new(at: &AtomicU16, mask: u16, value: u16, areas: &Arc<GuestMemory>) -> Glance {
        let areas = areas.clone();
        let look = Look { at, mask, value };
        Glance { look, areas }
    }

    /// Whether they are something else now.
    pub fn has_changed(&self) -> bool {
        // SAFETY: `areas` is held.
        unsafe { self.look.has_changed() }
    }
}

/// Looks at many rings at once, so that their cache misses overlap: one load for each ring, and nothing else of its queue.
/// A worker with hundreds of quiet guests looks at each of them many thousand times a second.
pub struct Glances {
    looks: Vec<Look>,
    /// What keeps each of them good, at the same place.
    areas: Vec<Arc<GuestMemory>>,
}

impl Glances {
    /// Room for looks at so many rings.
    pub fn with_capacity(rings: usize) -> Glances {
        Glances {
            looks: Vec::with_capacity(rings),
            areas: Vec::with_capacity(rings),
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.looks.len()
    }

    /// Whether there are none.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.looks.is_empty()
    }

    /// Adds one behind the others.
    pub fn push(&mut self, glance: Glance) {
        self.looks.push(glance.look);
        self.areas.push(glance.areas);
    }

    /// Takes out the one at `place`, where the last one is from now on.
    pub fn swap_remove(&mut self, place: usize) {
        if place < self.looks.len() {
            self.looks.swap_remove(place);
            self.areas.swap_remove(place);
        }
    }

    /// Takes all out.
    pub fn clear(&mut self) {
        self.looks.clear();
        self.areas.clear();
    }

    /// Whether any ring shows something new. Nearly never: it is found without a branch between the loads.
    #[inline(always)]
    pub fn have_changed(&self) -> bool {
        let looks = self.looks.iter();
        // SAFETY: `areas` holds the memory of each.
        looks.fold(false, |any, look| any | unsafe { look.has_changed() })
    }

    /// Whether the ring at `place` does.
    pub fn has_changed(&self, place: usize) -> bool {
        let look = self.looks.get(place);
        // SAFETY: as above.
        look.is_some_and(|look| unsafe { look.has_changed() })
    }
}
