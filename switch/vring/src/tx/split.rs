//! Split transmit rings (virtio 1.2, 2.7).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crosspoint_frame::{BURST, Burst, Segment, Work, prefetch_read};

use super::{Batch, Chain, Pieces, read_offload};
use crate::arming::arm;
use crate::chain::Direction;
use crate::{Features, Glance, Notifier, RingFault, SplitRing, chain, feature};

/// The only consumer of a split transmit ring.
pub struct SplitTx {
    ring: SplitRing,
    features: Features,
    call: Arc<Notifier>,
    /// Position of the next entry to take, in the 16 bits of the ring's indices.
    next: u16,
    /// Position of the next used entry: `next` minus the entries of the current burst and batches.
    used: u16,
    /// Used position at the last decision whether to call.
    called: u16,
    /// Whether such a decision was made yet. The first decision is always to call, since a predecessor may have
    /// completed entries without a call.
    decided: bool,
    /// The driver's available index when it was last read.
    avail: u16,
    /// Heads of the burst being handled: `held` of them from `first` on.
    heads: [u16; BURST],
    first: usize,
    held: usize,
    /// Frames from `next` on that have been read and prefetched, and not taken.
    ahead: Lookahead,
    /// Whether the last burst left frames that had been read, or was a full burst.
    is_cut_short: bool,
    /// Generation of the memory that `ahead` has addresses in.
    generation: u64,
    /// Set when the guest broke a rule of the ring: no more frames are taken.
    fault: Option<RingFault>,
}

/// The next burst: its descriptors have been read, its bytes prefetched.
struct Lookahead {
    heads: [u16; BURST],
    /// Buffers of single descriptors; null for any other chain.
    buffers: [(*mut u8, u32); BURST],
    /// Entries from `from` on have not been taken yet.
    from: usize,
    len: usize,
}

impl Lookahead {
    #[inline(always)]
    fn is_empty(&self) -> bool {
        self.from == self.len
    }

    /// Empties the lookahead.
    #[inline(always)]
    fn clear(&mut self) {
        (self.from, self.len) = (0, 0);
    }
}

// SAFETY: the pointers are addresses in the ring's memory, which the queue keeps alive.
unsafe impl Send for Lookahead {}

impl SplitTx {
    pub(super) fn new(
        ring: SplitRing,
        features: Features,
        call: Arc<Notifier>,
        base: u16,
    ) -> SplitTx {
        let mut queue = SplitTx {
            ring,
            features,
            call,
            next: base,
            used: base,
            called: base,
            decided: false,
            avail: base,
            heads: [0; BURST],
            first: 0,
            held: 0,
            ahead: Lookahead {
                heads: [0; BURST],
                buffers: [(std::ptr::null_mut(), 0); BURST],
                from: 0,
                len: 0,
            },
            is_cut_short: false,
            generation: 0,
            fault: None,
        };
        queue.set_kicks(false);
        queue
    }

    pub(super) fn base(&self) -> u32 {
        self.next.into()
    }

    #[inline(never)]
    pub(super) fn receive(&mut self, burst: &mut Burst) -> usize {
        let generation = self.ring.memory().generation();
        if generation != self.generation {
            // Another memory table: addresses in the previous one may be unmapped.
            self.generation = generation;
            self.ahead.clear();
        }
        if self.ahead.is_empty() {
            self.look_ahead();
        }
        let (from, len) = (self.ahead.from, self.ahead.len);
        if from == len {
            return 0;
        }
        self.heads = self.ahead.heads;
        self.first = from;
        let (mut taken, mut work) = (0, chain::WORK);
        let header = self.features.header_len();
        for i in from..len {
            if !self.push(
                burst,
                header,
                self.ahead.buffers[i],
                self.heads[i],
                &mut work,
            ) {
                break;
            }
            taken += 1;
            if burst.is_full() {
                break;
            }
        }
        burst.note_reading(chain::WORK.left() - work.left());
        self.held = taken;
        self.next = self.next.wrapping_add(taken as u16);
        self.ahead.from = from + taken;
        self.is_cut_short = taken == BURST || from + taken < len;
        if self.fault.is_some() {
            self.ahead.clear();
        } else if self.ahead.is_empty() {
            self.look_ahead();
        }
        taken
    }

    /// Whether the last burst was full and left frames that were available when it was read.
    #[inline(always)]
    pub(super) fn has_backlog(&self) -> bool {
        self.is_cut_short && !self.ahead.is_empty()
    }

    pub(super) fn glance(&self) -> Option<Glance> {
        let is_idle = self.ahead.is_empty() && self.held == 0 && self.fault.is_none();
        is_idle.then(|| self.ring.glance(self.next)).flatten()
    }

    pub(super) fn fault(&self) -> Option<RingFault> {
        self.fault
    }

    /// Reads the descriptors of the next burst and prefetches its bytes, in passes, so that the cache misses of the
    /// whole burst overlap. Also prefetches the descriptors of the burst after it.
    #[inline(never)]
    fn look_ahead(&mut self) {
        let Lookahead {
            heads,
            buffers,
            from,
            len,
        } = &mut self.ahead;
        (*from, *len) = (0, 0);
        // The driver's index bounces between the cores: read it only when the known entries run out.
        if usize::from(self.avail.wrapping_sub(self.next)) < BURST {
            self.avail = self.ring.avail_index();
        }
        let (offered, size) = (self.avail.wrapping_sub(self.next), self.ring.size());
        if offered == 0 || self.fault.is_some() {
            return;
        }
        if offered > size {
            self.fault = Some(RingFault::AvailJump {
                ahead: offered,
                size,
            });
            return;
        }
        let count = usize::from(offered).min(BURST);
        for (i, head) in heads.iter_mut().take(count).enumerate() {
            *head = self.ring.avail_entry(self.next.wrapping_add(i as u16));
            self.ring.prefetch_descriptor(*head);
        }
        let memory = self.ring.memory();
        for (buffer, head) in buffers.iter_mut().zip(heads).take(count) {
            *buffer = chain::single(&self.ring, memory, *head, Direction::Read);
            prefetch_read(buffer.0);
            prefetch_read(buffer.0.wrapping_add(64));
        }
        *len = count;
        let after = usize::from(offered).min(2 * BURST);
        for i in (count..after).step_by(4) {
            let head = self.ring.avail_entry(self.next.wrapping_add(i as u16));
            self.ring.prefetch_descriptor(head);
        }
        for i in (0..count).step_by(8) {
            self.ring.prefetch_used(self.next.wrapping_add(i as u16));
        }
    }

    /// Adds the frame of one chain to the burst. Returns `false` if the burst has no room for it or the chain is at
    /// fault. An empty burst has room for any frame.
    #[inline(always)]
    fn push(
        &mut self,
        burst: &mut Burst,
        header: usize,
        (ptr, len): (*mut u8, u32),
        head: u16,
        work: &mut Work,
    ) -> bool {
        if !ptr.is_null() && len as usize >= header {
            // SAFETY: `ptr` was translated for `len` bytes of the memory that the ring still has: `receive` has
            // compared its generation.
            let whole = unsafe { Segment::new(ptr, len) };
            let offload = read_offload(&whole);
            return burst.push_contiguous(whole.skip(header), offload);
        }
        self.push_chain(burst, head, work)
    }

    #[cold]
    fn push_chain(&mut self, burst: &mut Burst, head: u16, work: &mut Work) -> bool {
        let is_alone = *work == chain::WORK;
        let mut list = burst.take_scratch();
        let mut pieces = Pieces::new(&mut list);
        let walked = chain::walk(
            &self.ring,
            self.ring.memory(),
            head,
            Direction::Read,
            self.features.has(feature::INDIRECT_DESC),
            work,
            &mut |ptr, len| pieces.push(ptr, len),
        );
        let pushed = match walked {
            Ok(true) => pieces.push_frame(burst, self.features.header_len()),
            // The next burst reads it, with a whole burst's work.
            Ok(false) if !is_alone => false,
            Ok(false) => {
                self.fault = Some(chain::costly());
                false
            }
            Err(fault) => {
                self.fault = Some(fault);
                false
            }
        };
        burst.put_scratch(list);
        pushed
    }

    #[inline(never)]
    pub(super) fn complete(&mut self) {
        let held = std::mem::take(&mut self.held);
        if held == 0 {
            return;
        }
        let heads = self.heads.iter().skip(self.first);
        for (i, head) in heads.take(held).enumerate() {
            self.ring
                .set_used(self.used.wrapping_add(i as u16), *head, 0);
        }
        self.publish(held);
    }

    /// Publishes `count` used entries that have been written.
    #[inline(always)]
    fn publish(&mut self, count: usize) {
        let from = self.used;
        self.used = self.used.wrapping_add(count as u16);
        self.ring.used_index().store(self.used, Ordering::Release);
        self.ring.note(self.used);
        self.ring.mark_used(self.ring.memory(), from, self.used);
    }

    pub(super) fn take_batch(&mut self) -> Batch {
        let mut batch = Batch {
            len: std::mem::take(&mut self.held),
            end: self.next.into(),
            ..Batch::default()
        };
        let heads = self.heads.iter().skip(self.first);
        for (chain, head) in batch.chains.iter_mut().zip(heads) {
            *chain = Chain {
                id: *head,
                entries: 1,
            };
        }
        batch
    }

    pub(super) fn complete_batch(&mut self, batch: &Batch) {
        if batch.is_empty() {
            return;
        }
        for (i, chain) in batch.chains().iter().enumerate() {
            let at = self.used.wrapping_add(i as u16);
            self.ring.set_used(at, chain.id, 0);
        }
        self.publish(batch.len());
    }

    #[inline(always)]
    pub(super) fn flush(&mut self) -> bool {
        if self.called == self.used {
            return false;
        }
        let old = std::mem::replace(&mut self.called, self.used);
        let first = !std::mem::replace(&mut self.decided, true);
        (first || self.ring.wants_call(old, self.used)) && self.call.call()
    }

    pub(super) fn set_kicks(&mut self, wanted: bool) -> bool {
        arm(
            || self.ring.set_kicks(wanted, self.next),
            || self.ring.avail_index() != self.next,
        )
    }
}
