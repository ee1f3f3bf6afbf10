//! Packed transmit rings (virtio 1.2, 2.8).

use std::sync::Arc;

use crosspoint_frame::{BURST, Burst, Segment, Work, prefetch_read};

use super::{Batch, Chain, Pieces, read_offload};
use crate::arming::arm;
use crate::chain::Direction;
use crate::packed::{PackedChain, PackedRing};
use crate::{Features, Glance, Notifier, RingFault, chain, feature};

/// The only consumer of a packed transmit ring.
pub struct PackedTx {
    ring: PackedRing,
    features: Features,
    call: Arc<Notifier>,
    /// Position of the next chain to take.
    next: u64,
    /// Position of the next used descriptor: `next` minus the entries of the current burst and batches.
    used: u64,
    /// Used position at the last decision whether to call.
    called: u64,
    /// Whether such a decision was made yet. The first decision is always to call, since a predecessor may have
    /// completed entries without a call.
    decided: bool,
    /// Chains of the burst being handled: `held` of them from `first` on.
    chains: [Chain; BURST],
    first: usize,
    held: usize,
    /// Chains from `next` on that have been read and prefetched, and not taken.
    ahead: Lookahead,
    /// Whether the last burst left chains that had been read, or was a full burst.
    is_cut_short: bool,
    /// Generation of the memory that `ahead` has addresses in.
    generation: u64,
    /// Set when the guest broke a rule of the ring: no more frames are taken.
    fault: Option<RingFault>,
}

/// The next burst: its descriptors have been read, its bytes prefetched.
struct Lookahead {
    chains: [Chain; BURST],
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

impl PackedTx {
    pub(super) fn new(
        ring: PackedRing,
        features: Features,
        call: Arc<Notifier>,
        base: u64,
    ) -> PackedTx {
        let mut queue = PackedTx {
            ring,
            features,
            call,
            next: base,
            used: base,
            called: base,
            decided: false,
            chains: [Chain::default(); BURST],
            first: 0,
            held: 0,
            ahead: Lookahead {
                chains: [Chain::default(); BURST],
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
        self.ring.base(self.next)
    }

    #[inline(always)]
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
        self.chains = self.ahead.chains;
        self.first = from;
        let (mut taken, mut work, mut at) = (0, chain::WORK, self.next);
        let header = self.features.header_len();
        for i in from..len {
            if !self.push(
                burst,
                header,
                self.ahead.buffers[i],
                self.chains[i],
                at,
                &mut work,
            ) {
                break;
            }
            at += u64::from(self.chains[i].entries);
            taken += 1;
            if burst.is_full() {
                break;
            }
        }
        burst.note_reading(chain::WORK.left() - work.left());
        self.held = taken;
        self.next = at;
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

    /// Reads the descriptors of the next burst and prefetches its bytes. Descriptors are adjacent, four to a cache
    /// line, and carry their own availability.
    fn look_ahead(&mut self) {
        let Lookahead {
            chains,
            buffers,
            from,
            len,
        } = &mut self.ahead;
        (*from, *len) = (0, 0);
        if self.fault.is_some() {
            return;
        }
        let memory = self.ring.memory();
        // A burst follows no more descriptors than its work allows: no need to count further.
        let most = u32::from(self.ring.size()).min(chain::STEPS);
        let (mut at, end) = (self.next, self.next + u64::from(most));
        for (chain, buffer) in chains.iter_mut().zip(buffers) {
            // Entries beyond the ring's size are entries that we hold.
            let Some(d) = (at < end).then(|| self.ring.read(at)).flatten() else {
                break;
            };
            let entries = self.ring.entries_of(at, d.flags);
            *chain = Chain { id: d.id, entries };
            *buffer = (std::ptr::null_mut(), 0);
            if d.is_single(Direction::Read)
                && d.id < self.ring.size()
                && let Some(ptr) = memory.translate(d.address, d.len)
            {
                *buffer = (ptr, d.len);
                prefetch_read(ptr);
                prefetch_read(ptr.wrapping_add(64));
            }
            at += u64::from(entries);
            *len += 1;
        }
        // If this burst is full, the driver is ahead: prefetch the next burst's descriptors.
        if *len == BURST {
            for i in (0..BURST as u64).step_by(4) {
                self.ring.prefetch(at + i);
            }
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
        chain: Chain,
        at: u64,
        work: &mut Work,
    ) -> bool {
        if !ptr.is_null() && len as usize >= header {
            // SAFETY: `ptr` was translated for `len` bytes of the memory that the ring still has: `receive` has
            // compared its generation.
            let whole = unsafe { Segment::new(ptr, len) };
            let offload = read_offload(&whole);
            return burst.push_contiguous(whole.skip(header), offload);
        }
        self.push_chain(burst, chain, at, work)
    }

    #[cold]
    fn push_chain(&mut self, burst: &mut Burst, seen: Chain, at: u64, work: &mut Work) -> bool {
        let is_alone = *work == chain::WORK;
        let mut list = burst.take_scratch();
        let mut pieces = Pieces::new(&mut list);
        let walked = self.ring.walk(
            self.ring.memory(),
            at,
            Direction::Read,
            self.features.has(feature::INDIRECT_DESC),
            work,
            &mut |ptr, len| pieces.push(ptr, len),
        );
        let pushed = match walked {
            // The following chains were read at the place where this one ended then.
            Ok(PackedChain::Whole { id, entries }) if entries == seen.entries => {
                let index = self.first + burst.len();
                let pushed = pieces.push_frame(burst, self.features.header_len());
                if let (true, Some(chain)) = (pushed, self.chains.get_mut(index)) {
                    chain.id = id;
                }
                pushed
            }
            Ok(PackedChain::OutOfBudget) => {
                // Not even the whole burst's work was enough: the chain is at fault.
                self.fault = self.fault.or(is_alone.then(chain::costly));
                false
            }
            Ok(PackedChain::Nothing | PackedChain::Whole { .. }) => {
                self.fault = Some(RingFault::ChainCut);
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

    #[inline(always)]
    pub(super) fn complete(&mut self) {
        let held = std::mem::take(&mut self.held);
        if held == 0 {
            return;
        }
        let held = self.first..self.first + held;
        let chains = self.chains.get(held).unwrap_or(&[]);
        give_back(&self.ring, self.features, chains, (self.used, self.next));
        self.used = self.next;
    }

    pub(super) fn take_batch(&mut self) -> Batch {
        let mut batch = Batch {
            len: std::mem::take(&mut self.held),
            end: self.next,
            ..Batch::default()
        };
        let chains = self.chains.iter().skip(self.first);
        for (slot, chain) in batch.chains.iter_mut().zip(chains) {
            *slot = *chain;
        }
        batch
    }

    pub(super) fn complete_batch(&mut self, batch: &Batch) {
        let span = (self.used, batch.end);
        give_back(&self.ring, self.features, batch.chains(), span);
        self.used = batch.end;
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
            || self.ring.read(self.next).is_some(),
        )
    }
}

/// Returns chains to the driver; they take the ring's positions `from..to`.
#[inline(always)]
fn give_back(ring: &PackedRing, features: Features, chains: &[Chain], (from, to): (u64, u64)) {
    let Some((first, others)) = chains.split_first() else {
        return;
    };
    if features.has(feature::IN_ORDER) {
        // One used descriptor with the last chain's id stands for all (virtio 1.2, 2.8.5).
        let last = others.last().unwrap_or(first);
        ring.note_entries(from, (to - from) as u16);
        ring.publish_used(from, last.id, 0);
    } else {
        let mut at = from + u64::from(first.entries);
        ring.note_entries(from, first.entries);
        for chain in others {
            ring.note_entries(at, chain.entries);
            ring.set_used(at, chain.id, 0);
            at += u64::from(chain.entries);
        }
        ring.publish_used(from, first.id, 0);
    }
    ring.note(to);
    ring.mark_used(ring.memory(), from, to);
}
