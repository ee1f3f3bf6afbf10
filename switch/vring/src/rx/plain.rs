//! The fast path, which nearly all deliveries take: each frame unchanged into one plain buffer.
//!
//! One pass reads the ring's entries and prefetches the buffers; a second pass copies. The first pass runs early, while
//! the frames are still on their way to this core's cache (see [`RxQueue::look`]), so both waits overlap. Everything
//! that is not plain is left to the general path in `queue`.

use std::sync::atomic::{Ordering, fence};

use crosspoint_frame::{
    BURST, Burst, Frame, HeaderOp, SegmentMut, TxEntry, copy_plain, prefetch_buffer, virtio_header,
};

use super::Outcome;
use super::queue::{RxQueue, RxScratch};
use super::ring::{Buffer, RxRing};
use crate::feature;

/// Number of queues whose prefetched buffers a worker keeps. With more queues, entries evict each other and are read
/// again.
const QUEUES: usize = 64;

/// Buffers that were prefetched and not taken, by queue.
pub(super) struct PrefetchedQueues(Box<[PrefetchedBuffers; QUEUES]>);

impl Default for PrefetchedQueues {
    fn default() -> PrefetchedQueues {
        PrefetchedQueues(Box::new(std::array::from_fn(|_| {
            PrefetchedBuffers::default()
        })))
    }
}

/// Prefetched buffers of one queue: positions `from..upto`, each at its position modulo [`BURST`].
///
/// Kept across poll iterations, unlike other segments. The pointers are valid as long as the queue's memory has this
/// `generation`, which is checked before each use. Positions are never reused, and an available entry does not change
/// until it is taken, so an entry is valid as long as the ring's head has not passed it.
struct PrefetchedBuffers {
    /// The queue's number; 0 for none.
    queue: u64,
    generation: u64,
    from: u64,
    upto: u64,
    /// End of the entries known to be available. The driver's index is in a cache line that the driver's core writes,
    /// so it is read only when the known entries run out.
    end: u64,
    buffers: [SegmentMut; BURST],
    ids: [u16; BURST],
}

impl Default for PrefetchedBuffers {
    fn default() -> PrefetchedBuffers {
        // SAFETY: a segment of zero bytes.
        let none = unsafe { SegmentMut::new(std::ptr::null_mut(), 0) };
        PrefetchedBuffers {
            queue: 0,
            generation: 0,
            from: 0,
            upto: 0,
            end: 0,
            buffers: [none; BURST],
            ids: [0; BURST],
        }
    }
}

/// Index in the arrays for a position.
#[inline(always)]
fn place(at: u64) -> usize {
    at as usize % BURST
}

#[allow(private_bounds, reason = "there are two layouts, both here")]
impl<R: RxRing> RxQueue<R> {
    /// Reads the entries of up to `count` plain buffers from the ring's head on and prefetches the buffers' first cache
    /// lines for writing. Nothing is taken. Entries that were already read are not read again.
    #[inline(never)]
    pub(super) fn look(&self, count: usize, scratch: &mut RxScratch) {
        self.look_from(self.reserve.head(), count, self.ahead(scratch));
    }

    #[inline(always)]
    fn ahead<'s>(&self, scratch: &'s mut RxScratch) -> &'s mut PrefetchedBuffers {
        &mut scratch.aheads.0[self.id as usize % QUEUES]
    }

    #[inline(never)]
    fn look_from(&self, head: u64, count: usize, ahead: &mut PrefetchedBuffers) {
        let memory = self.ring.memory();
        let this = (self.id, memory.generation());
        if (ahead.queue, ahead.generation) != this {
            (ahead.queue, ahead.generation) = this;
            (ahead.from, ahead.upto, ahead.end) = (head, head, head);
        }
        // Other workers have taken the prefetched entries, or this thread's head is older than they are.
        if head > ahead.upto || head < ahead.from {
            ahead.upto = head;
        }
        ahead.from = head;
        let wanted = head + count.min(BURST) as u64;
        if ahead.upto >= wanted {
            return;
        }
        if ahead.end < wanted {
            // The general path reports a faulty ring.
            let offered = self.ring.offered(&self.reserve, head, count);
            ahead.end = head + offered.unwrap_or(0) as u64;
        }
        for at in ahead.upto..wanted.min(ahead.end) {
            let (ptr, len, id) = self.ring.single(memory, at);
            if ptr.is_null() {
                break;
            }
            prefetch_buffer(ptr, self.features.header_len());
            // SAFETY: translated for `len` bytes of the memory, which stays mapped until the worker's next quiescent
            // point, and beyond it as long as it is the queue's memory: `PrefetchedBuffers` records its generation. Never borrowed.
            ahead.buffers[place(at)] = unsafe { SegmentMut::new(ptr, len) };
            ahead.ids[place(at)] = id;
            ahead.upto = at + 1;
        }
    }

    /// Delivers the leading picks that are plain and have a plain buffer that fits. Returns how many were delivered;
    /// the others are untouched.
    #[inline(never)]
    pub(super) fn deliver_plain(
        &self,
        worker: usize,
        burst: &Burst,
        picks: &[TxEntry],
        scratch: &mut RxScratch,
        outcome: &mut Outcome,
    ) -> usize {
        if self.ring.memory().log().is_some() {
            return 0;
        }
        let (head, ahead) = (self.reserve.head(), self.ahead(scratch));
        self.look_from(head, picks.len(), ahead);
        let count = self.count_plain(burst, picks, ahead);
        // LOAD-BEARING: before the head is read again, as in `deliver`.
        fence(Ordering::Acquire);
        if count == 0 || self.reserve.head() != head {
            return 0;
        }
        let Some(run) = self.reserve.try_reserve(worker, head, count) else {
            return 0;
        };
        let picks = picks.get(..count).unwrap_or(&[]);
        let (bytes, first) = match self.features.header_len() {
            12 => self.fill_plain::<12>(burst, picks, ahead),
            _ => self.fill_plain::<10>(burst, picks, ahead),
        };
        outcome.frames += count as u32;
        outcome.bytes += bytes;
        if let Some(moved) = self.ring.publish(&self.reserve, worker, run, first) {
            outcome.touched |= self.owe(worker, moved);
        }
        // The next burst is probably as long: prefetch its buffers now, while it arrives.
        self.look_from(head + count as u64, count, ahead);
        count
    }

    /// Number of leading picks that this path can deliver.
    #[inline(never)]
    fn count_plain(&self, burst: &Burst, picks: &[TxEntry], ahead: &PrefetchedBuffers) -> usize {
        let completes = self.features.has(feature::GUEST_CSUM);
        let header = self.features.header_len();
        let is_plain = |(at, pick): &(u64, &TxEntry)| {
            let room = ahead.buffers[place(*at)].len();
            let frame: Option<&Frame> = burst.frames().get(usize::from(pick.frame));
            frame.is_some_and(|frame| {
                pick.tag == HeaderOp::Keep
                    && (!frame.offload.needs_csum || (completes && !frame.offload.finish))
                    && header + frame.len as usize <= room
            })
        };
        let pairs = (ahead.from..ahead.upto).zip(picks);
        pairs.take_while(is_plain).count()
    }

    /// Copies the picked frames and writes their used entries. Returns the bytes of the frames and the first used entry
    /// (id and length).
    #[inline(never)]
    fn fill_plain<const HEADER: usize>(
        &self,
        burst: &Burst,
        picks: &[TxEntry],
        ahead: &PrefetchedBuffers,
    ) -> (u64, (u16, u32)) {
        let (mut bytes, mut first) = (0, (0, 0));
        for (at, pick) in (ahead.from..).zip(picks) {
            let Some(frame) = burst.frames().get(usize::from(pick.frame)) else {
                continue;
            };
            let (to, id) = (ahead.buffers[place(at)], ahead.ids[place(at)]);
            let header = virtio_header::<HEADER>(&frame.offload, HeaderOp::Keep, 1, false);
            let written = copy_plain(&header, frame, burst, to) as u32;
            bytes += u64::from(frame.len);
            let is_first = at == ahead.from;
            if is_first {
                first = (id, written);
            }
            let buffer = Buffer {
                id,
                pieces: 1,
                entries: 1,
                len: to.len() as u32,
            };
            self.ring.set_used(at, is_first, &buffer, written);
        }
        (bytes, first)
    }
}
