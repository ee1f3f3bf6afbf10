//! Where the device of a packed ring stands, as the ring's own marks tell it.
//!
//! A driver offers slots one behind the other, all of a chain's; a device gives back the first of each chain. So from
//! where the device stands, once around: what is offered, and then what was given back in the lap before. A split ring
//! has its used index for that. There is no other memory here that could be older than the ring: the driver must zero
//! all of it before the queue begins (virtio 1.2, 4.1.5.1.3).

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{PackedRing, SlotState};
use crate::split::F_NEXT;

/// How often a ring is looked at that seems to contradict a base, and how long between.
const LOOKS: u32 = 4;
const PAUSE: Duration = Duration::from_millis(1);

impl PackedRing {
    /// `base` if the ring's marks can mean that, else the one position that they can mean. `None` when there is none or
    /// several: they are exact where every buffer took one entry.
    pub(crate) fn find_position(&self, base: u64) -> Option<u64> {
        let size = u64::from(self.size);
        let mut budget = 8 * size;
        if self.could_be_at(base, &mut budget)? {
            return Some(base);
        }
        let mut found = None;
        for at in 0..2 * size {
            if self.begins_something(at) && self.could_be_at(at, &mut budget)? {
                if found.is_some() {
                    return None;
                }
                found = Some(at);
            }
        }
        found
    }

    /// Whether the driver has begun this ring anew, and no device has given back anything: from the beginning on, what is
    /// offered, and then what was never written.
    pub(crate) fn is_new(&self) -> bool {
        let mut offered = true;
        (0..u64::from(self.size)).all(|at| {
            offered &= self.state(at) == SlotState::Available;
            let (low, high) = self.words(self.slot(at));
            offered || (low.load(Ordering::Relaxed), high.load(Ordering::Relaxed)) == (0, 0)
        })
    }

    /// Whether the marks prove that the device does not stand at `at`, however many entries buffers took. A driver offers
    /// the first of a chain last, so what is just being offered is looked at again.
    pub(crate) fn is_refuted(&self, at: u64) -> bool {
        (0..LOOKS).all(|look| {
            if look > 0 {
                std::thread::sleep(PAUSE);
            }
            self.is_refuted_now(at)
        })
    }

    fn is_refuted_now(&self, at: u64) -> bool {
        let (mut offered, mut is_one_possible, mut is_end_of_chain) = (true, false, false);
        for position in at..at + u64::from(self.size) {
            let state = self.state(position);
            match state {
                // In this lap: so it was behind the device.
                SlotState::Used => return true,
                SlotState::Available if offered => is_one_possible = true,
                // Nothing is offered behind what is not.
                SlotState::Available => return true,
                // Not the first of a chain that was given back, and the one before it was a chain's last.
                SlotState::Other if is_end_of_chain && !self.in_order => return true,
                SlotState::Other => {}
                SlotState::Before => is_one_possible = true,
            }
            offered &= state == SlotState::Available;
            is_end_of_chain = state == SlotState::Other && !self.goes_on(position);
        }
        !is_one_possible
    }

    fn goes_on(&self, at: u64) -> bool {
        let (_, high) = self.words(self.slot(at));
        (high.load(Ordering::Relaxed) >> 48) as u16 & F_NEXT != 0
    }

    /// Whether the slot before `at` is behind a device that stands there.
    fn begins_something(&self, at: u64) -> bool {
        let size = u64::from(self.size);
        if at.is_multiple_of(size) {
            return true;
        }
        self.state(at - 1) == SlotState::Used || self.state(at - 1 + size) == SlotState::Available
    }

    /// Whether, from `at` on, the ring is first available and then given back in the lap before.
    /// `None` when that takes too long to find out.
    fn could_be_at(&self, at: u64, budget: &mut u64) -> Option<bool> {
        let mut available = true;
        for position in at..at + u64::from(self.size) {
            *budget = budget.checked_sub(1)?;
            match self.state(position) {
                SlotState::Available if available => {}
                SlotState::Before => available = false,
                _ => return Some(false),
            }
        }
        Some(true)
    }
}
