//! Packed receive rings (virtio 1.2, 2.8).

use std::sync::atomic::{AtomicU16, Ordering, fence};

use crosspoint_frame::Work;
use crosspoint_memory::GuestMemory;

use super::ring::{Buffer, RxRing};
use crate::RingFault;
use crate::chain::Direction;
use crate::packed::{PackedChain, PackedRing};
use crate::reserve::{Reservation, Reserve};

/// How often a worker records the position again because other workers published meanwhile.
const MAX_NOTES: usize = 16;

impl RxRing for PackedRing {
    fn event_range(&self) -> u64 {
        // `wants_call` handles whole laps itself, and a driver that wants no calls gets none.
        u64::MAX
    }

    fn base(&self, head: u64) -> u32 {
        PackedRing::base(self, head)
    }

    #[inline(always)]
    fn size(&self) -> u16 {
        PackedRing::size(self)
    }

    #[inline(always)]
    fn memory(&self) -> &GuestMemory {
        PackedRing::memory(self)
    }

    #[inline(always)]
    fn prefetch_descriptors(&self, head: u64, count: usize) {
        for i in (0..count as u64).step_by(4) {
            self.prefetch_used(head + i);
        }
    }

    /// The descriptors carry their own state. Never more than the ring's size.
    #[inline(always)]
    fn offered(&self, _reserve: &Reserve, _head: u64, _wanted: usize) -> Result<usize, RingFault> {
        Ok(PackedRing::size(self).into())
    }

    #[inline(always)]
    fn single(&self, memory: &GuestMemory, at: u64) -> (*mut u8, u32, u16) {
        let nothing = (std::ptr::null_mut(), 0, 0);
        let Some(d) = self.read(at) else {
            return nothing;
        };
        if !d.is_single(Direction::Write) || d.id >= PackedRing::size(self) {
            return nothing;
        }
        match memory.translate(d.address, d.len) {
            Some(ptr) => (ptr, d.len, d.id),
            None => nothing,
        }
    }

    fn chain(
        &self,
        memory: &GuestMemory,
        at: u64,
        indirect: bool,
        work: &mut Work,
        piece: &mut dyn FnMut(*mut u8, u32),
    ) -> Result<Option<(u16, u16)>, RingFault> {
        match self.walk(memory, at, Direction::Write, indirect, work, piece)? {
            PackedChain::Whole { id, entries } => Ok(Some((id, entries))),
            PackedChain::Nothing | PackedChain::OutOfBudget => Ok(None),
        }
    }

    #[inline(always)]
    fn set_used(&self, at: u64, first: bool, buffer: &Buffer, len: u32) {
        self.note_entries(at, buffer.entries);
        // The first used descriptor returns the whole run: `publish` writes it.
        if !first {
            PackedRing::set_used(self, at, buffer.id, len);
        }
    }

    /// Each worker returns its own run without regard to runs before or after it: the driver takes them in ring order.
    #[inline(always)]
    fn publish(
        &self,
        reserve: &Reserve,
        worker: usize,
        run: Reservation,
        (id, len): (u16, u32),
    ) -> Option<(u64, u64)> {
        self.publish_used(run.start(), id, len);
        if self.is_tracked() {
            return Some(self.publish_noted(reserve, worker, run));
        }
        Some(reserve.finish(worker, run))
    }

    #[inline(always)]
    fn mark_used(&self, memory: &GuestMemory, from: u64, to: u64) {
        PackedRing::mark_used(self, memory, from, to);
    }

    #[inline(always)]
    fn wants_call(&self, old: u64, new: u64) -> bool {
        PackedRing::wants_call(self, old, new)
    }

    #[inline(always)]
    fn has_begun(&self, head: u64) -> bool {
        head != 0 || self.read(head).is_some()
    }

    fn is_taken(&self, head: u64) -> bool {
        let last = head + u64::from(PackedRing::size(self)) - 1;
        self.is_seen(head) || self.read(last).is_some()
    }
}

impl PackedRing {
    /// Ends a run in a ring whose position is recorded. The recorded position is the end of the last run that no
    /// unfinished run precedes.
    #[cold]
    fn publish_noted(&self, reserve: &Reserve, worker: usize, run: Reservation) -> (u64, u64) {
        let own = (run.start(), run.start() + run.len() as u64);
        // This index is not read; only the order of the runs is needed here.
        let _ = reserve.publish(worker, run, &AtomicU16::new(0));
        // If another worker has published meanwhile, it records that itself.
        for _ in 0..MAX_NOTES {
            let published = reserve.published();
            self.note(published);
            // LOAD-BEARING: two workers may record at once. If an older record overwrites a newer one, the newer one's
            // fence comes before this fence, so its end is seen here.
            fence(Ordering::SeqCst);
            if reserve.published() == published {
                break;
            }
        }
        own
    }
}
