//! Delivery into a receive ring of either layout: plan, reserve, fill, publish, call.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use crossbeam::utils::CachePadded;
use crosspoint_frame::{
    BURST, Burst, Frame, Gather, Pick, Prefix, SegmentMut, TagOp, Work, copy_plain,
    copy_plain_finished, prefetch_write, virtio_header,
};

use super::Outcome;
use super::plain::Aheads;
use super::ring::{Buffer, RxRing};
use crate::reserve::{MAX_RESERVATION, Reserve};
use crate::{Features, GuestMemory, Notifier, RingFault, feature};

/// How often a worker tries anew when another was faster, before it drops.
const MAX_RACES: usize = 16;
/// Most writable pieces that the buffers of one reservation may have together: those of chains,
/// and the single ones. A buffer with more is used as far as it goes.
const MAX_PIECES: usize = 4096 + MAX_RESERVATION;
/// How many receive queues there have been.
static QUEUES: AtomicU64 = AtomicU64::new(0);

/// A receive queue with a ring of one layout.
pub struct RxQueue<R> {
    /// A number that no other queue has had.
    pub(super) id: u64,
    pub(super) ring: R,
    pub(super) features: Features,
    pub(super) reserve: Reserve,
    /// Where it began.
    pub(super) begin: u64,
    call: Arc<Notifier>,
    /// Per worker: the positions that it has published and owes the driver a call for.
    owed: Box<[CachePadded<Owed>]>,
    /// Whether anybody has called yet. What a predecessor published it may not have called for.
    called: AtomicBool,
}

/// Positions `since..until`; none when `since` is NONE. Written by one worker.
struct Owed {
    since: AtomicU64,
    until: AtomicU64,
}

const NONE: u64 = u64::MAX;
/// Which buffers one copy gets.
#[derive(Clone, Copy, Default)]
struct Plan {
    /// The copy, as a number among the picks; UNUSABLE for buffers that go back as they came.
    pick: u8,
    buffers: u16,
}

/// The `pick` of buffers that have no room even for the header before a frame: given back empty.
const UNUSABLE: u8 = u8::MAX;

/// A worker's working memory for `deliver`: made once.
pub struct RxScratch {
    pub(super) aheads: Aheads,
    buffers: Vec<Buffer>,
    pieces: Vec<SegmentMut>,
    plans: Vec<Plan>,
    /// Ring entries of all buffers.
    entries: usize,
    /// Whether the driver has offered no more.
    exhausted: bool,
    fault: Option<RingFault>,
    /// What may still be done for this delivery.
    work: Work,
    /// What may be asked for beyond each copy's own, by all deliveries of the burst together: a guest whose buffers are
    /// in many pieces takes nothing from those whose are not.
    shared: Work,
}

impl RxScratch {
    /// Another burst is to be delivered: it has all of [`Work::RECEIVERS`].
    #[inline(always)]
    pub fn begin_burst(&mut self) {
        self.shared = Work::new(Work::RECEIVERS);
    }

    fn usable(&self) -> bool {
        !self.exhausted && self.fault.is_none() && !self.work.is_spent()
    }

    /// Plans to give the last buffer back empty: it has no room even for the header before a frame. A driver must not
    /// offer such (virtio 1.2, 5.1.6.3.1); left in the ring, each frame would be tried on it. `false` when it is not a
    /// whole one within the `available` entries.
    #[cold]
    fn set_aside(&mut self, available: usize) -> bool {
        if !self.usable() || self.entries > available || !self.work.spend(Work::GIVEN_BACK) {
            return false;
        }
        match self.plans.last_mut() {
            Some(plan) if plan.pick == UNUSABLE => plan.buffers += 1,
            // One run before each frame, and one behind the last, so there is room: no allocation.
            _ => self.plans.push(Plan {
                pick: UNUSABLE,
                buffers: 1,
            }),
        }
        true
    }

    /// What was wrong with the ring that the last `deliver` counted faulty copies for.
    pub fn take_fault(&mut self) -> Option<RingFault> {
        self.fault.take()
    }
}

impl Default for RxScratch {
    fn default() -> RxScratch {
        RxScratch {
            aheads: Aheads::default(),
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
            // From 1 on: 0 is nobody's.
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
        picks: &[Pick],
        scratch: &mut RxScratch,
    ) -> Outcome {
        let memory = self.ring.memory();
        let mut outcome = Outcome::default();
        let mut rest = picks;
        let mut races = 0;
        // What each copy may ask for by itself; looked up when the first one is not plain.
        let mut own = None;
        // Each turn takes at least one pick, or is a lost race, of which there are few, or gives back unusable buffers,
        // which is paid for.
        while !rest.is_empty() {
            let plain = self.deliver_plain(worker, burst, rest, scratch, &mut outcome);
            if plain > 0 {
                // A guest that has mended meanwhile what the last plan stumbled over.
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
            // LOAD-BEARING: before the head is looked at again. Entries from `head` on hold
            // still only while nobody takes them: what was read of entries that another worker
            // has taken since may be half of something new, and no fault of the guest's.
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

    /// Finds buffers for as many picks as the driver's offer allows, from position `head` on,
    /// without taking them.
    #[inline(always)]
    fn plan(
        &self,
        memory: &GuestMemory,
        head: u64,
        burst: &Burst,
        picks: &[Pick],
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
        // A frame as long as one that the next buffers did not hold is not tried on them again.
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
                // Another used entry, and another piece to copy to.
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
                // The last chain reaches beyond what one reservation may have.
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
            // It fits no buffer; or not even all that one reservation can have.
            let most = usize::from(self.ring.size()).min(MAX_RESERVATION);
            // Beyond, and not the first: the next reservation has it.
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

    /// Reads the buffer at position `at` into the scratch; returns its length. A buffer at
    /// fault has none, and the fault is left in the scratch.
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
        // SAFETY: translated for `len` bytes of the memory, which stays mapped until the
        // worker's next quiescent point; guest memory is never borrowed.
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
            // A buffer of more pieces, or bytes, than anybody needs is used as far as it goes.
            if pieces.len() < MAX_PIECES && len.checked_add(n).is_some() {
                // SAFETY: the chain's walk translated `n` bytes of the memory.
                pieces.push(unsafe { SegmentMut::new(ptr, n) });
                len += n;
            }
        });
        let (id, entries) = match walked {
            Ok(Some(whole)) => whole,
            Ok(None) => {
                // Not to be had in this reservation: what it would need is no longer asked for.
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

    /// Marks what a delivery wrote, after it was written: a page that is copied between mark and
    /// write would go stale.
    #[cold]
    fn mark(
        &self,
        memory: &GuestMemory,
        burst: &Burst,
        picks: &[Pick],
        scratch: &RxScratch,
        (from, to): (u64, u64),
    ) {
        let (mut buffers, mut pieces) = (scratch.buffers.iter(), scratch.pieces.iter());
        for plan in &scratch.plans {
            let pick = picks.get(usize::from(plan.pick));
            let frame = pick.and_then(|pick| burst.frames().get(usize::from(pick.frame)));
            // Into unusable buffers nothing was written.
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
        picks: &[Pick],
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
                [one] if pick.tag == TagOp::Keep && !complete => {
                    copy_plain(&header, frame, burst, *one)
                }
                [one] if pick.tag == TagOp::Keep => {
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

    /// A copy whose tag is pushed or popped, that spans buffers, or whose checksum the guest
    /// cannot complete itself.
    #[inline(never)]
    fn copy_with_care<const HEADER: usize>(
        &self,
        header: &[u8; HEADER],
        frame: &Frame,
        tag: TagOp,
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

/// What `fill` has copied.
struct Filled {
    /// Bytes of the frames.
    bytes: u64,
    /// What the run's first used entry says: id and length.
    first: (u16, u32),
}

/// What copies of the picked frames may ask for of their receiver's buffers, each by itself.
#[cold]
fn own_work(burst: &Burst, picks: &[Pick]) -> u32 {
    let frames = picks.iter().take(BURST);
    let frames = frames.filter_map(|pick| burst.frames().get(usize::from(pick.frame)));
    frames
        .map(|frame| Work::OWN + Work::of_bytes(frame.len))
        .sum()
}

/// Nothing more can be delivered: the driver offers no buffers, or nonsense, or such that cost too much to use.
fn give_up(outcome: &mut Outcome, copies: u32, scratch: &RxScratch) {
    match scratch.fault {
        None if scratch.work.is_spent() => outcome.costly += copies,
        None => outcome.full += copies,
        Some(_) => outcome.faulty += copies,
    }
}

#[derive(Default)]
struct Planned {
    /// How many picks were decided on: they have buffers, or are too big.
    picks: usize,
    /// How many of them have buffers.
    frames: u32,
    /// How many of them are too big for a buffer.
    small: u32,
}
