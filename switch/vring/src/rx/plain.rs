//! The delivery that nearly all are: each frame as it is, into one plain buffer.
//!
//! One pass reads the ring's entries and asks for the buffers' lines, one copies. The first is made early, when the frames
//! are still on their way to this core (see [`RxQueue::look`]): both waits pass together. What is not plain is left to
//! the general way, in `queue`.

use std::sync::atomic::{Ordering, fence};

use crosspoint_frame::{
    BURST, Burst, Frame, Pick, SegmentMut, TagOp, copy_plain, prefetch_buffer, virtio_header,
};

use super::Outcome;
use super::queue::{RxQueue, RxScratch};
use super::ring::{Buffer, RxRing};
use crate::feature;

/// How many queues' buffers a worker keeps: those of more push each other out, and are looked at again.
const QUEUES: usize = 64;

/// Buffers that were looked at and not taken, by queue.
pub(super) struct Aheads(Box<[Ahead; QUEUES]>);

impl Default for Aheads {
    fn default() -> Aheads {
        Aheads(Box::new(std::array::from_fn(|_| Ahead::default())))
    }
}

/// Those of one queue: positions `from..upto`, each at its place modulo [`BURST`].
///
/// Kept over the end of a turn, unlike other segments: the pointers are good as long as the queue's memory is that of
/// `generation`, which is looked at before each use. Positions never come again, and what the driver has offered stays
/// as it is until it is taken; so an entry is good as long as the ring's head is not beyond it.
struct Ahead {
    /// Whose they are; 0 is nobody's.
    queue: u64,
    generation: u64,
    from: u64,
    upto: u64,
    /// Up to where the driver is known to offer: its index is in a line that its core writes, and is looked at only when
    /// what is known runs out.
    end: u64,
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
            from: 0,
            upto: 0,
            end: 0,
            buffers: [none; BURST],
            ids: [0; BURST],
        }
    }
}

/// The place of a position.
#[inline(always)]
fn place(at: u64) -> usize {
    at as usize % BURST
}

#[allow(private_bounds, reason = "there are two layouts, both here")]
impl<R: RxRing> RxQueue<R> {
    /// Reads the entries of up to `count` plain buffers from the ring's head on, and asks for their first lines, to be
    /// written. Nothing is taken. What was looked at already is not looked at again.
    #[inline(never)]
    pub(super) fn look(&self, count: usize, scratch: &mut RxScratch) {
        self.look_from(self.reserve.head(), count, self.ahead(scratch));
    }

    #[inline(always)]
    fn ahead<'s>(&self, scratch: &'s mut RxScratch) -> &'s mut Ahead {
        &mut scratch.aheads.0[self.id as usize % QUEUES]
    }

    #[inline(never)]
    fn look_from(&self, head: u64, count: usize, ahead: &mut Ahead) {
        let memory = self.ring.memory();
        let this = (self.id, memory.generation());
        if (ahead.queue, ahead.generation) != this {
            (ahead.queue, ahead.generation) = this;
            (ahead.from, ahead.upto, ahead.end) = (head, head, head);
        }
        // Others have taken what was looked at, or this comes late and is before it.
        if head > ahead.upto || head < ahead.from {
            ahead.upto = head;
        }
        ahead.from = head;
        let wanted = head + count.min(BURST) as u64;
        if ahead.upto >= wanted {
            return;
        }
        if ahead.end < wanted {
            // What is wrong with the ring is found out by the general way.
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
            // point, and beyond it as long as it is the queue's: `Ahead` says which it is of. Never borrowed.
            ahead.buffers[place(at)] = unsafe { SegmentMut::new(ptr, len) };
            ahead.ids[place(at)] = id;
            ahead.upto = at + 1;
        }
    }

    /// Delivers the first of `picks`, as many as are plain and have a plain buffer that holds them. Returns how many
    /// that were: of the others nothing was touched.
    #[inline(never)]
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
        let (head, ahead) = (self.reserve.head(), self.ahead(scratch));
        self.look_from(head, picks.len(), ahead);
        let count = self.count_plain(burst, picks, ahead);
        // LOAD-BEARING: before the head is looked at again, as in `deliver`.
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
        // The next burst is probably as long: its buffers are on their way while it is.
        self.look_from(head + count as u64, count, ahead);
        count
    }

    /// How many of `picks`, from the first on, can go this way.
    #[inline(never)]
    fn count_plain(&self, burst: &Burst, picks: &[Pick], ahead: &Ahead) -> usize {
        let completes = self.features.has(feature::GUEST_CSUM);
        let header = self.features.header_len();
        let is_plain = |(at, pick): &(u64, &Pick)| {
            let room = ahead.buffers[place(*at)].len();
            let frame: Option<&Frame> = burst.frames().get(usize::from(pick.frame));
            frame.is_some_and(|frame| {
                pick.tag == TagOp::Keep
                    && (!frame.offload.needs_csum || (completes && !frame.offload.finish))
                    && header + frame.len as usize <= room
            })
        };
        let pairs = (ahead.from..ahead.upto).zip(picks);
        pairs.take_while(is_plain).count()
    }

    /// Copies the picked frames and writes their used entries. Returns the bytes of the frames, and what the first used
    /// entry says.
    #[inline(never)]
    fn fill_plain<const HEADER: usize>(
        &self,
        burst: &Burst,
        picks: &[Pick],
        ahead: &Ahead,
    ) -> (u64, (u16, u32)) {
        let (mut bytes, mut first) = (0, (0, 0));
        for (at, pick) in (ahead.from..).zip(picks) {
            let Some(frame) = burst.frames().get(usize::from(pick.frame)) else {
                continue;
            };
            let (to, id) = (ahead.buffers[place(at)], ahead.ids[place(at)]);
            let header = virtio_header::<HEADER>(&frame.offload, TagOp::Keep, 1, false);
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
