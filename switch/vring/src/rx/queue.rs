//! Delivery into a receive ring of either layout: plan, reserve, fill, publish, call.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use crossbeam::utils::CachePadded;
use crosspoint_frame::{
    BURST, Burst, Frame, Gather, HeaderOp, Prefix, SegmentMut, TxEntry, Work, copy_plain,
    copy_plain_finished, prefetch_write, virtio_header,
};
use crosspoint_memory::GuestMemory;

use super::Outcome;
use super::plain::PrefetchedQueues;
use super::ring::{Buffer, RxRing};
use crate::reserve::{MAX_RESERVATION, Reserve};
use crate::{Features, Notifier, RingFault, feature};

/// How many races a worker may lose against other workers before it drops frames.
const MAX_RACES: usize = 16;
/// Maximum writable pieces of all buffers of one reservation: those of chains, and single ones. A buffer with more is
/// used as far as its pieces fit.
const MAX_PIECES: usize = 4096 + MAX_RESERVATION;
/// Number of receive queues ever created.
static QUEUES: AtomicU64 = AtomicU64::new(0);

/// A receive queue with a ring of one layout.
pub struct RxQueue<R> {
    /// Unique number; never reused.
    pub(super) id: u64,
    pub(super) ring: R,
    pub(super) features: Features,
    pub(super) reserve: Reserve,
    /// Start position.
    pub(super) begin: u64,
    call: Arc<Notifier>,
    /// Per worker: positions that the worker has published without calling the driver yet.
    owed: Box<[CachePadded<Owed>]>,
    /// Whether a call was made yet. A predecessor may have published entries without a call.
    called: AtomicBool,
}

/// Positions `since..until`; none if `since` is NONE. Written by one worker.
struct Owed {
    since: AtomicU64,
    until: AtomicU64,
}

const NONE: u64 = u64::MAX;
/// Buffers assigned to one copy.
#[derive(Clone, Copy, Default)]
struct Plan {
    /// The copy's index in the picks; UNUSABLE for buffers that are returned empty.
    pick: u8,
    buffers: u16,
}

/// The `pick` of buffers without room for the header before a frame; they are returned empty.
const UNUSABLE: u8 = u8::MAX;

/// A worker's scratch memory for `deliver`, allocated once.
pub struct RxScratch {
    pub(super) aheads: PrefetchedQueues,
    buffers: Vec<Buffer>,
    pieces: Vec<SegmentMut>,
    plans: Vec<Plan>,
    /// Ring entries that all buffers take.
    entries: usize,
    /// Whether no more buffers are available.
    exhausted: bool,
    fault: Option<RingFault>,
    /// Work left for this delivery.
    work: Work,
    /// Work that all deliveries of the burst may use together, beyond each copy's own. So a guest whose buffers have
    /// many pieces takes nothing from guests whose buffers do not.
    shared: Work,
}

impl RxScratch {
    /// Begins another burst, with a full budget of [`Work::RECEIVERS`].
    #[inline(always)]
    pub fn begin_burst(&mut self) {
        self.shared = Work::new(Work::RECEIVERS);
    }

    fn usable(&self) -> bool {
        !self.exhausted && self.fault.is_none() && !self.work.is_spent()
    }

    /// Plans to return the last buffer empty, since it has no room for the header before a frame. A driver must not
    /// make such buffers available (virtio 1.2, 5.1.6.3.1); if it stayed in the ring, each frame would be tried on it
    /// again. Returns `false` if it is not a complete buffer within the `available` entries.
    #[cold]
    fn set_aside(&mut self, available: usize) -> bool {
        if !self.usable() || self.entries > available || !self.work.spend(Work::GIVEN_BACK) {
            return false;
        }
        match self.plans.last_mut() {
            Some(plan) if plan.pick == UNUSABLE => plan.buffers += 1,
            // At most one run before each frame and one after the last, so the capacity suffices: no allocation.
            _ => self.plans.push(Plan {
                pick: UNUSABLE,
                buffers: 1,
            }),
        }
        true
    }

    /// Takes the ring fault that made the last `deliver` count faulty copies.
    pub fn take_fault(&mut self) -> Option<RingFault> {
        self.fault.take()
    }
}

impl Default for RxScratch {
    fn default() -> RxScratch {
        RxScratch {
            aheads: PrefetchedQueues::default(),
            buffers: Vec::with_capacity(MAX_RESERVATION),
            pieces: Vec::with_capacity(MAX_PIECES),
            plans: Vec::with_capacity(2 * BURST + 1),
            entries: 0,
            exhausted: false,
            fault: None,
            work: Work::new(0),
            shared: Work::new(Work::RECEIVERS),
        }
    }
}
#[allow(private_bounds, reason = "there are two layouts, both here")]
impl<R: RxRing> RxQueue<R> {
    pub(super) fn new(
        ring: R,
        features: Features,
        call: Arc<Notifier>,
        base: u64,
        workers: usize,
    ) -> RxQueue<R> {
        let reserve = Reserve::new(ring.size(), base, workers);
        let owed = || Owed {
            since: AtomicU64::new(NONE),
            until: AtomicU64::new(NONE),
        };
        RxQueue {
            // From 1 on: 0 means no queue.
            id: QUEUES.fetch_add(1, Ordering::Relaxed) + 1,
            ring,
            features,
            reserve,
            begin: base,
            call,
            owed: (0..workers).map(|_| CachePadded::new(owed())).collect(),
            called: AtomicBool::new(false),
        }
    }

    pub(super) fn takes(&self, gso_type: u8) -> bool {
        self.features.takes(gso_type)
    }

    pub(super) fn deliver(
        &self,
        worker: usize,
        burst: &Burst,
        picks: &[TxEntry],
        scratch: &mut RxScratch,
    ) -> Outcome {
        let memory = self.ring.memory();
        let mut outcome = Outcome::default();
        let mut rest = picks;
        let mut races = 0;
        // Each copy's own work; computed at the first copy that is not plain.
        let mut own = None;
        // Each iteration takes at least one pick, or is a lost race (few are allowed), or returns unusable buffers,
        // which costs work.
        while !rest.is_empty() {
            let plain = self.deliver_plain(worker, burst, rest, scratch, &mut outcome);
            if plain > 0 {
                // The guest has fixed the fault that the last plan found.
                scratch.fault = None;
                rest = rest.get(plain..).unwrap_or(&[]);
                continue;
            }
            if own.is_none() {
                own = Some(own_work(burst, rest));
                scratch.work = Work::new(scratch.shared.left() + own.unwrap_or(0));
            }
            let head = self.reserve.head();
            let planned = self.plan(memory, head, burst, rest, scratch);
            // LOAD-BEARING: before the head is read again. Entries from `head` on are stable only while no worker takes
            // them. Entries that another worker has taken since may have been read half-changed, which is no fault of
            // the guest's.
            fence(Ordering::Acquire);
            let taken = match (self.reserve.head() == head, scratch.entries) {
                (false, _) => None,
                (true, 0) => {
                    outcome.small += planned.small;
                    rest = rest.get(planned.picks..).unwrap_or(&[]);
                    if planned.picks == 0 {
                        give_up(&mut outcome, rest.len() as u32, scratch);
                        break;
                    }
                    continue;
                }
                (true, entries) => self.reserve.try_reserve(worker, head, entries),
            };
            let Some(run) = taken else {
                races += 1;
                if races == MAX_RACES {
                    outcome.contended += rest.len() as u32;
                    break;
                }
                continue;
            };
            outcome.small += planned.small;
            outcome.frames += planned.frames;
            let filled = match self.features.header_len() {
                12 => self.fill::<12>(run.start(), burst, rest, scratch),
                _ => self.fill::<10>(run.start(), burst, rest, scratch),
            };
            outcome.bytes += filled.bytes;
            let (from, to) = (run.start(), run.start() + run.len() as u64);
            if let Some(moved) = self.ring.publish(&self.reserve, worker, run, filled.first) {
                outcome.touched |= self.owe(worker, moved);
            }
            if memory.log().is_some() {
                self.mark(memory, burst, rest, scratch, (from, to));
            }
            rest = rest.get(planned.picks..).unwrap_or(&[]);
        }
        if let Some(own) = own {
            let all = scratch.shared.left() + own;
            let used = all - scratch.work.left();
            (outcome.work, outcome.excess) = (used.min(own), used.saturating_sub(own));
            scratch.shared.spend(outcome.excess);
        }
        outcome
    }

    pub(super) fn owe(&self, worker: usize, (old, new): (u64, u64)) -> bool {
        let Some(owed) = self.owed.get(worker) else {
            return false;
        };
        owed.until.store(new, Ordering::Relaxed);
        let first = owed.since.load(Ordering::Relaxed) == NONE;
        if first {
            owed.since.store(old, Ordering::Relaxed);
        }
        first
    }

    #[inline(always)]
    pub(super) fn flush(&self, worker: usize) -> bool {
        let Some(owed) = self.owed.get(worker) else {
            return false;
        };
        let old = owed.since.load(Ordering::Relaxed);
        if old == NONE {
            return false;
        }
        owed.since.store(NONE, Ordering::Relaxed);
        let new = owed.until.load(Ordering::Relaxed);
        let must = new - old >= self.ring.event_range() || !self.called.load(Ordering::Relaxed);
        if must {
            self.called.store(true, Ordering::Relaxed);
        }
        (must || self.ring.wants_call(old, new)) && self.call.call()
    }

    /// Finds buffers for as many picks as the available entries allow, from position `head` on, without taking them.
    #[inline(always)]
    fn plan(
        &self,
        memory: &GuestMemory,
        head: u64,
        burst: &Burst,
        picks: &[TxEntry],
        scratch: &mut RxScratch,
    ) -> Planned {
        scratch.buffers.clear();
        scratch.pieces.clear();
        scratch.plans.clear();
        scratch.entries = 0;
        scratch.exhausted = false;
        scratch.fault = None;
        let mut planned = Planned::default();
        let available = match self.ring.offered(&self.reserve, head, picks.len()) {
            Ok(available) => available.min(MAX_RESERVATION),
            Err(fault) => {
                scratch.fault = Some(fault);
                return planned;
            }
        };
        let mergeable = self.features.has(feature::MRG_RXBUF);
        let header = self.features.header_len();
        // A frame that is at least as long as one that did not fit into the next buffers is not tried on them again.
        let mut refused = usize::MAX;
        for (index, pick) in picks.iter().take(BURST).enumerate() {
            let Some(frame) = burst.frames().get(usize::from(pick.frame)) else {
                break;
            };
            let need = Gather::len_of(frame, *pick, header);
            if need >= refused {
                planned.small += 1;
                planned.picks += 1;
                continue;
            }
            let (mut first, mut first_piece) = (scratch.buffers.len(), scratch.pieces.len());
            let mut first_entry = scratch.entries;
            let mut room = 0;
            while room < need && scratch.entries < available && scratch.usable() {
                if !mergeable && scratch.buffers.len() > first {
                    break;
                }
                // One more used entry, and one more piece to copy to.
                if scratch.buffers.len() > first && !scratch.work.spend(Work::BUFFER) {
                    break;
                }
                room += self.take(memory, head + scratch.entries as u64, scratch);
                if room < header && scratch.buffers.len() == first + 1 {
                    if !scratch.set_aside(available) {
                        break;
                    }
                    (first, first_piece) = (scratch.buffers.len(), scratch.pieces.len());
                    (first_entry, room) = (scratch.entries, 0);
                }
            }
            let beyond = scratch.entries > available;
            if beyond {
                // The last chain exceeds what one reservation may have.
                room = 0;
            }
            if room >= need {
                let buffers = (scratch.buffers.len() - first) as u16;
                scratch.plans.push(Plan {
                    pick: index as u8,
                    buffers,
                });
                planned.picks += 1;
                planned.frames += 1;
                refused = usize::MAX;
                continue;
            }
            let tried = scratch.entries - first_entry;
            // It fits no single buffer, or not even all buffers that one reservation can have.
            let most = usize::from(self.ring.size()).min(MAX_RESERVATION);
            // Exceeded, but not by the first frame: the next reservation takes it.
            let too_small = scratch.usable()
                && !(beyond && first_entry > 0)
                && ((!mergeable && tried > 0) || tried >= most);
            scratch.buffers.truncate(first);
            scratch.pieces.truncate(first_piece);
            scratch.entries = first_entry;
            if !too_small {
                break;
            }
            refused = need;
            planned.small += 1;
            planned.picks += 1;
        }
        planned
    }

    /// Reads the buffer at position `at` into the scratch and returns its length. A buffer at fault has length 0, and
    /// the fault is stored in the scratch.
    #[inline(always)]
    fn take(&self, memory: &GuestMemory, at: u64, scratch: &mut RxScratch) -> usize {
        let (ptr, len, id) = self.ring.single(memory, at);
        if !scratch.work.spend(Work::LOOK) {
            return 0;
        }
        if ptr.is_null() {
            return self.take_chain(memory, at, scratch);
        }
        if scratch.pieces.len() == MAX_PIECES {
            scratch.exhausted = true;
            return 0;
        }
        prefetch_write(ptr);
        prefetch_write(ptr.wrapping_add(64));
        // SAFETY: translated for `len` bytes of the memory, which stays mapped until the worker's next quiescent point.
        // Guest memory is never borrowed.
        scratch.pieces.push(unsafe { SegmentMut::new(ptr, len) });
        scratch.entries += 1;
        scratch.buffers.push(Buffer {
            id,
            pieces: 1,
            entries: 1,
            len,
        });
        len as usize
    }

    #[cold]
    fn take_chain(&self, memory: &GuestMemory, at: u64, scratch: &mut RxScratch) -> usize {
        let first = scratch.pieces.len();
        let (pieces, mut len) = (&mut scratch.pieces, 0u32);
        let (indirect, work) = (self.features.has(feature::INDIRECT_DESC), &mut scratch.work);
        let walked = self.ring.chain(memory, at, indirect, work, &mut |ptr, n| {
            // A buffer with more pieces or bytes than any frame needs is used as far as they fit.
            if pieces.len() < MAX_PIECES && len.checked_add(n).is_some() {
                // SAFETY: the chain's walk translated `n` bytes of the memory.
                pieces.push(unsafe { SegmentMut::new(ptr, n) });
                len += n;
            }
        });
        let (id, entries) = match walked {
            Ok(Some(whole)) => whole,
            Ok(None) => {
                // It does not fit into this reservation: no more buffers are read for it.
                scratch.exhausted = true;
                scratch.pieces.truncate(first);
                return 0;
            }
            Err(fault) => {
                scratch.fault = Some(fault);
                (0, 1)
            }
        };
        if scratch.fault.is_some() {
            len = 0;
        }
        scratch.entries += usize::from(entries);
        scratch.buffers.push(Buffer {
            id,
            pieces: (scratch.pieces.len() - first) as u16,
            entries,
            len,
        });
        len as usize
    }

    /// Marks what a delivery wrote, after the write: a page that is copied between mark and write would be stale.
    #[cold]
    fn mark(
        &self,
        memory: &GuestMemory,
        burst: &Burst,
        picks: &[TxEntry],
        scratch: &RxScratch,
        (from, to): (u64, u64),
    ) {
        let (mut buffers, mut pieces) = (scratch.buffers.iter(), scratch.pieces.iter());
        for plan in &scratch.plans {
            let pick = picks.get(usize::from(plan.pick));
            let frame = pick.and_then(|pick| burst.frames().get(usize::from(pick.frame)));
            // Nothing was written to unusable buffers.
            let mut left = pick.zip(frame).map_or(0, |(pick, frame)| {
                Gather::len_of(frame, *pick, self.features.header_len())
            });
            for buffer in buffers.by_ref().take(plan.buffers.into()) {
                for piece in pieces.by_ref().take(buffer.pieces.into()) {
                    let written = left.min(piece.len());
                    if written > 0 {
                        memory.mark(piece.ptr(), written);
                    }
                    left -= written;
                }
            }
        }
        self.ring.mark_used(memory, from, to);
    }

    /// Copies the planned frames and writes their used entries from position `start` on.
    #[inline(always)]
    fn fill<const HEADER: usize>(
        &self,
        start: u64,
        burst: &Burst,
        picks: &[TxEntry],
        scratch: &RxScratch,
    ) -> Filled {
        let (mut buffers, mut pieces) = (scratch.buffers.as_slice(), scratch.pieces.as_slice());
        let (mut at, mut bytes, mut first_used) = (start, 0, (0, 0));
        for plan in &scratch.plans {
            let (mine, others) = buffers.split_at(usize::from(plan.buffers).min(buffers.len()));
            let count = mine
                .iter()
                .map(|buffer| usize::from(buffer.pieces))
                .sum::<usize>();
            let (to, later) = pieces.split_at(count.min(pieces.len()));
            (buffers, pieces) = (others, later);
            let pick = picks.get(usize::from(plan.pick));
            let frame = pick.and_then(|pick| burst.frames().get(usize::from(pick.frame)));
            let (Some(pick), Some(frame)) = (pick, frame) else {
                for buffer in mine {
                    self.ring.set_used(at, at == start, buffer, 0);
                    if at == start {
                        first_used = (buffer.id, 0);
                    }
                    at += u64::from(buffer.entries);
                }
                continue;
            };

            let completes = self.features.has(feature::GUEST_CSUM) && !frame.offload.finish;
            let complete = frame.offload.needs_csum && !completes;
            let header = virtio_header::<HEADER>(&frame.offload, pick.tag, plan.buffers, complete);
            let mut left = match to {
                [one] if pick.tag == HeaderOp::Keep && !complete => {
                    copy_plain(&header, frame, burst, *one)
                }
                [one] if pick.tag == HeaderOp::Keep => {
                    copy_plain_finished(&header, frame, burst, *one)
                }
                _ => self.copy_with_care(&header, frame, pick.tag, burst, to, complete),
            };
            bytes += left.saturating_sub(HEADER) as u64;
            for buffer in mine {
                let written = left.min(buffer.len as usize);
                let first = at == start;
                if first {
                    first_used = (buffer.id, written as u32);
                }
                self.ring.set_used(at, first, buffer, written as u32);
                at += u64::from(buffer.entries);
                left -= written;
            }
        }
        Filled {
            bytes,
            first: first_used,
        }
    }

    /// Copies a frame whose tag is pushed or popped, that spans several buffers, or whose checksum the guest cannot
    /// complete.
    #[inline(never)]
    fn copy_with_care<const HEADER: usize>(
        &self,
        header: &[u8; HEADER],
        frame: &Frame,
        tag: HeaderOp,
        burst: &Burst,
        to: &[SegmentMut],
        complete: bool,
    ) -> usize {
        let prefix = Prefix::new(header, frame, tag);
        let gather = Gather::new(&prefix, burst, frame);
        match to {
            _ if complete => gather.copy_finished(&frame.offload, tag, to),
            [one] => gather.copy_to(*one),
            many => gather.scatter(many),
        }
    }
}

/// Result of `fill`.
struct Filled {
    /// Bytes of the frames.
    bytes: u64,
    /// The run's first used entry: id and length.
    first: (u16, u32),
}

/// Own work of the copies of the picked frames, together.
#[cold]
fn own_work(burst: &Burst, picks: &[TxEntry]) -> u32 {
    let frames = picks.iter().take(BURST);
    let frames = frames.filter_map(|pick| burst.frames().get(usize::from(pick.frame)));
    frames
        .map(|frame| Work::OWN + Work::of_bytes(frame.len))
        .sum()
}

/// Counts `copies` as dropped: no buffers are available, the ring is at fault, or the buffers cost too much work.
fn give_up(outcome: &mut Outcome, copies: u32, scratch: &RxScratch) {
    match scratch.fault {
        None if scratch.work.is_spent() => outcome.costly += copies,
        None => outcome.full += copies,
        Some(_) => outcome.faulty += copies,
    }
}

#[derive(Default)]
struct Planned {
    /// Picks that were decided: they have buffers, or are too big.
    picks: usize,
    /// Picks that have buffers.
    frames: u32,
    /// Picks that are too big for a buffer.
    small: u32,
}
