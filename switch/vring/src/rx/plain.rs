//! The delivery that nearly all are: each frame as it is, into one plain buffer.
//!
//! One pass reads the ring's entries and asks for the buffers' lines, one copies. The first is made early, when the frames
//! are still on their way to this core (see [`RxQueue::look`]): both waits pass together. What is not plain is left to
//! the general way, in `queue`.

use std::sync::atomic::{Ordering, fence};

use crosspoint_frame::{
    BURST, Burst, Frame, Pick, SegmentMut, TagOp, copy_plain, prefetch_write, virtio_header,
};

use super::Outcome;
use super::queue::{RxQueue, RxScratch};
use super::ring::{Buffer, RxRing};
use crate::feature;

/// Buffers that were looked at and not taken, from position `head` on.
///
/// Kept over the end of a turn: the pointers are good as long as the queue's memory is that of `generation`, which is
/// looked at before each use.
pub(super) struct Ahead {
    /// Whose they are; 0 is nobody's.
    queue: u64,
    generation: u64,
    head: u64,
    /// Up to where the driver is known to offer: its index is in a line that its core writes, and is looked at only when
    /// what is known runs out.
    end: u64,
    len: usize,
    buffers: [SegmentMut; BURST],
    ids: [u16; BURST],
}

impl Default for Ahead {
    fn default() -> Ahead {
        // SAFETY: no bytes at all.
        let none = unsafe { SegmentMut::new(std::ptr::null_mut(), 0) };
        Ahead {
            queue: 0,
            generation: 0,
            head: 0,
            end: 0,
            len: 0,
            buffers: [none; BURST],
            ids: [0; BURST],
        }
    }
}

#[allow(private_bounds, reason = "there are two layouts, both here")]
impl<R: RxRing> RxQueue<R> {
    /// Reads the entries of up to `count` plain buffers from the ring's head on, and asks for their first lines, to be
    /// written. Nothing is taken. What was looked at already is not looked at again.
    #[inline(always)]
    pub(super) fn look(&self, count: usize, scratch: &mut RxScratch) {
        self.look_from(self.reserve.head(), count, &mut scratch.ahead);
    }

    #[inline(always)]
    fn look_from(&self, head: u64, count: usize, ahead: &mut Ahead) {
        let memory = self.ring.memory();
        let this = (self.id, memory.generation());
        if (ahead.queue, ahead.generation) != this {
            (ahead.queue, ahead.generation) = this;
            (ahead.end, ahead.len) = (0, 0);
        }
        if ahead.head != head {
            (ahead.head, ahead.len) = (head, 0);
        }
        if ahead.len >= count {
            return;
        }
        if ahead.end < head + count as u64 {
            // What is wrong with the ring is found out by the general way.
            let offered = self.ring.offered(&self.reserve, head, count);
            ahead.end = head + offered.unwrap_or(0) as u64;
        }
        let count = count.min(ahead.end.saturating_sub(head) as usize);
        let slots = ahead.buffers.iter_mut().zip(&mut ahead.ids);
        let from = ahead.len;
        for (i, (buffer, id)) in slots.enumerate().take(count).skip(from) {
            let (ptr, len, buffer_id) = self.ring.single(memory, head + i as u64);
            if ptr.is_null() {
                break;
            }
            prefetch_write(ptr);
            prefetch_write(ptr.wrapping_add(64));
            // SAFETY: translated for `len` bytes of the memory, which stays mapped until the worker's next quiescent
            // point, and beyond it as long as it is the queue's: `Ahead` says which it is of. Never borrowed.
            *buffer = unsafe { SegmentMut::new(ptr, len) };
            *id = buffer_id;
            ahead.len = i + 1;
        }
    }

    /// Delivers the first of `picks`, as many as are plain and have a plain buffer that holds them. Returns how many
    /// that were: of the others nothing was touched.
    #[inline(always)]
    pub(super) fn deliver_plain(
        &self,
        worker: usize,
        burst: &Burst,
        picks: &[Pick],
        scratch: &mut RxScratch,
        outcome: &mut Outcome,
    ) -> usize {
        if self.ring.memory().log().is_some() {
            return 0;
        }
        let (head, ahead) = (self.reserve.head(), &mut scratch.ahead);
        self.look_from(head, picks.len().min(BURST), ahead);
        let count = self.count_plain(burst, picks, ahead);
        // LOAD-BEARING: before the head is looked at again, as in `deliver`.
        fence(Ordering::Acquire);
        if count == 0 || self.reserve.head() != head {
            return 0;
        }
        let Some(run) = self.reserve.try_reserve(worker, head, count) else {
            return 0;
        };
        let (bytes, first) = match self.features.header_len() {
            12 => self.fill_plain::<12>(head, burst, picks, count, ahead),
            _ => self.fill_plain::<10>(head, burst, picks, count, ahead),
        };
        outcome.frames += count as u32;
        outcome.bytes += bytes;
        if let Some(moved) = self.ring.publish(&self.reserve, worker, run, first) {
            outcome.touched |= self.owe(worker, moved);
        }
        // For the next burst, so that its buffers are on their way while it is.
        self.look_from(head + count as u64, BURST, ahead);
        count
    }

    /// How many of `picks`, from the first on, can go this way.
    #[inline(always)]
    fn count_plain(&self, burst: &Burst, picks: &[Pick], ahead: &Ahead) -> usize {
        let completes = self.features.has(feature::GUEST_CSUM);
        let header = self.features.header_len();
        let is_plain = |(pick, buffer): (&Pick, &SegmentMut)| {
            burst
                .frames()
                .get(usize::from(pick.frame))
                .is_some_and(|frame: &Frame| {
                    pick.tag == TagOp::Keep
                        && (completes || !frame.offload.needs_csum)
                        && header + frame.len as usize <= buffer.len()
                })
        };
        let buffers = ahead.buffers.iter().take(ahead.len);
        let both = picks.iter().zip(buffers);
        both.take_while(|pair| is_plain(*pair)).count()
    }

    /// Copies `count` frames and writes their used entries from position `start` on. Returns the bytes of the frames,
    /// and what the first used entry says.
    #[inline(always)]
    fn fill_plain<const HEADER: usize>(
        &self,
        start: u64,
        burst: &Burst,
        picks: &[Pick],
        count: usize,
        ahead: &Ahead,
    ) -> (u64, (u16, u32)) {
        let (mut bytes, mut first) = (0, (0, 0));
        let buffers = ahead.buffers.iter().zip(&ahead.ids);
        for (i, (pick, (to, id))) in picks.iter().zip(buffers).take(count).enumerate() {
            let Some(frame) = burst.frames().get(usize::from(pick.frame)) else {
                continue;
            };
            let header = virtio_header::<HEADER>(&frame.offload, TagOp::Keep, 1, false);
            let written = copy_plain(&header, frame, burst, *to) as u32;
            bytes += u64::from(frame.len);
            if i == 0 {
                first = (*id, written);
            }
            let buffer = Buffer {
                id: *id,
                pieces: 1,
                entries: 1,
                len: to.len() as u32,
            };
            self.ring
                .set_used(start + i as u64, i == 0, &buffer, written);
        }
        (bytes, first)
    }
}
