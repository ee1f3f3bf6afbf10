//! Split receive rings (virtio 1.2, 2.7).

use crosspoint_frame::Work;
use crosspoint_memory::GuestMemory;

use super::ring::{Buffer, RxRing};
use crate::chain::Direction;
use crate::reserve::{Reservation, Reserve};
use crate::{RingFault, SplitRing, chain};

impl RxRing for SplitRing {
    fn event_range(&self) -> u64 {
        // The index has 16 bits.
        1 << 16
    }

    fn base(&self, head: u64) -> u32 {
        u32::from(head as u16)
    }

    #[inline(always)]
    fn size(&self) -> u16 {
        SplitRing::size(self)
    }

    #[inline(always)]
    fn memory(&self) -> &GuestMemory {
        SplitRing::memory(self)
    }

    #[inline(always)]
    fn prefetch_descriptors(&self, head: u64, count: usize) {
        self.prefetch_avail_index();
        // Four descriptors share a cache line, and drivers mostly use them in order.
        for i in (0..count as u16).step_by(4) {
            let at = (head as u16).wrapping_add(i);
            self.prefetch_descriptor(self.avail_entry(at));
            self.prefetch_used(at);
        }
    }

    #[inline(always)]
    fn offered(&self, reserve: &Reserve, head: u64, wanted: usize) -> Result<usize, RingFault> {
        let avail = self.avail_index();
        let Some(available) = reserve.available(head, avail) else {
            return Err(RingFault::AvailJump {
                ahead: avail.wrapping_sub(head as u16),
                size: self.size(),
            });
        };
        for i in 0..available.min(wanted) {
            let at = (head as u16).wrapping_add(i as u16);
            self.prefetch_descriptor(self.avail_entry(at));
        }
        Ok(available)
    }

    #[inline(always)]
    fn single(&self, memory: &GuestMemory, at: u64) -> (*mut u8, u32, u16) {
        let id = self.avail_entry(at as u16);
        let (ptr, len) = chain::single(self, memory, id, Direction::Write);
        (ptr, len, id)
    }

    fn chain(
        &self,
        memory: &GuestMemory,
        at: u64,
        indirect: bool,
        work: &mut Work,
        piece: &mut dyn FnMut(*mut u8, u32),
    ) -> Result<Option<(u16, u16)>, RingFault> {
        let id = self.avail_entry(at as u16);
        let whole = chain::walk(self, memory, id, Direction::Write, indirect, work, piece)?;
        Ok(whole.then_some((id, 1)))
    }

    #[inline(always)]
    fn set_used(&self, at: u64, _first: bool, buffer: &Buffer, len: u32) {
        SplitRing::set_used(self, at as u16, buffer.id, len);
    }

    #[inline(always)]
    fn publish(
        &self,
        reserve: &Reserve,
        worker: usize,
        run: Reservation,
        _first: (u16, u32),
    ) -> Option<(u64, u64)> {
        let moved = reserve.publish(worker, run, self.used_index());
        if let Some((_, to)) = moved {
            self.note(to as u16);
        }
        moved
    }

    #[inline(always)]
    fn mark_used(&self, memory: &GuestMemory, from: u64, to: u64) {
        SplitRing::mark_used(self, memory, from as u16, to as u16);
    }

    #[inline(always)]
    fn wants_call(&self, old: u64, new: u64) -> bool {
        SplitRing::wants_call(self, old as u16, new as u16)
    }

    #[inline(always)]
    fn has_begun(&self, head: u64) -> bool {
        head != 0 || self.avail_index() != 0
    }

    fn is_taken(&self, head: u64) -> bool {
        self.is_seen(head as u16) || self.avail_index().wrapping_sub(head as u16) == self.size()
    }
}
