//! A guest's receive queue: the ring of buffers that frames are delivered into, by any worker.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use crossbeam::utils::CachePadded;
use crosspoint_frame::{
    BURST, Burst, Frame, Gather, Offload, Pick, Prefix, SegmentMut, TagOp, copy_plain,
    prefetch_write,
};

use crate::chain::{self, Direction};
use crate::reserve::{MAX_RESERVATION, Reserve};
use crate::tx::F_NEEDS_CSUM;
use crate::{Features, Notifier, RingFault, SplitRing, feature};

/// How often a worker tries anew when another was faster, before it drops.
const MAX_RACES: usize = 16;
/// Most writable pieces that the buffers of one reservation may have together: those of chains,
/// which are bounded by the budget, and the single ones.
const MAX_PIECES: usize = chain::BUDGET as usize + MAX_RESERVATION;

/// A guest's receive queue. Shared by all workers.
pub struct GuestRx {
    ring: SplitRing,
    features: Features,
    reserve: Reserve,
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
/// From so many entries on, 16 bits cannot say which of them the driver waits for.
const INDEX_RANGE: u64 = 1 << 16;

/// What became of the copies of one `deliver`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Outcome {
    /// Copies delivered.
    pub frames: u32,
    /// Their bytes, headers of the ring not counted.
    pub bytes: u64,
    /// Copies dropped because the driver had offered no buffers.
    pub full: u32,
    /// Copies dropped because a buffer was too small and could not be joined with the next.
    pub small: u32,
    /// Copies dropped because other workers were faster, again and again.
    pub contended: u32,
    /// Copies dropped because the ring is broken.
    pub faulty: u32,
    /// Whether the worker must come back and [`flush`](GuestRx::flush).
    pub touched: bool,
}

/// One receive buffer of the reservation being planned.
#[derive(Clone, Copy, Default)]
struct Buffer {
    id: u16,
    pieces: u16,
    len: u32,
}

/// Which buffers one copy gets.
#[derive(Clone, Copy, Default)]
struct Plan {
    pick: u8,
    buffers: u16,
}

/// A worker's working memory for `deliver`: made once.
pub struct RxScratch {
    buffers: Vec<Buffer>,
    pieces: Vec<SegmentMut>,
    plans: Vec<Plan>,
    fault: Option<RingFault>,
    /// Descriptors that may still be followed for this plan.
    budget: u32,
}

impl RxScratch {
    fn usable(&self) -> bool {
        self.fault.is_none() && self.budget > 0
    }

    /// What was wrong with the ring that the last `deliver` counted faulty copies for.
    pub fn take_fault(&mut self) -> Option<RingFault> {
        self.fault.take()
    }
}

impl Default for RxScratch {
    fn default() -> RxScratch {
        RxScratch {
            buffers: Vec::with_capacity(MAX_RESERVATION),
            pieces: Vec::with_capacity(MAX_PIECES),
            plans: Vec::with_capacity(BURST),
            fault: None,
            budget: 0,
        }
    }
}

impl GuestRx {
    /// The queue, beginning at ring position `base`, delivered to by `workers` workers. The
    /// driver is asked for no kicks: nobody waits for buffers.
    pub fn new(
        ring: SplitRing,
        features: Features,
        call: Arc<Notifier>,
        base: u16,
        workers: usize,
    ) -> GuestRx {
        ring.set_kicks(false, base);
        // What a predecessor left there may not be where we go on; helpers compare with it.
        ring.used_index().store(base, Ordering::Release);
        let reserve = Reserve::new(ring.size(), base, workers);
        let owed = || Owed {
            since: AtomicU64::new(NONE),
            until: AtomicU64::new(NONE),
        };
        GuestRx {
            ring,
            features,
            reserve,
            call,
            owed: (0..workers).map(|_| CachePadded::new(owed())).collect(),
            called: AtomicBool::new(false),
        }
    }

    /// The position from which a successor goes on, when no worker is delivering.
    pub fn base(&self) -> u16 {
        self.reserve.head() as u16
    }

    /// Copies the picked frames into the guest's buffers and publishes them: one reservation,
    /// one index store, for all of them where the buffers allow. A guest that breaks the rules
    /// gets `faulty` copies, and what it did is left in the scratch.
    pub fn deliver(
        &self,
        worker: usize,
        burst: &Burst,
        picks: &[Pick],
        scratch: &mut RxScratch,
    ) -> Outcome {
        let mut outcome = Outcome::default();
        let mut rest = picks;
        let mut races = 0;
        // Each turn takes at least one pick, or is a lost race, of which there are few.
        while !rest.is_empty() {
            let head = self.reserve.head();
            let planned = self.plan(head, burst, rest, scratch);
            // LOAD-BEARING: before the head is looked at again. Entries from `head` on hold
            // still only while nobody takes them: what was read of entries that another worker
            // has taken since may be half of something new, and no fault of the guest's.
            fence(Ordering::Acquire);
            let taken = match (self.reserve.head() == head, scratch.buffers.len()) {
                (false, _) => None,
                (true, 0) => {
                    outcome.small += planned.small;
                    rest = rest.get(planned.picks..).unwrap_or(&[]);
                    if planned.picks == 0 {
                        self.give_up(&mut outcome, rest.len() as u32, scratch);
                        break;
                    }
                    continue;
                }
                (true, buffers) => self.reserve.try_reserve(worker, head, buffers),
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
            outcome.frames += scratch.plans.len() as u32;
            outcome.bytes += match self.features.header_len() {
                12 => self.fill::<12>(run.start(), burst, rest, scratch),
                _ => self.fill::<10>(run.start(), burst, rest, scratch),
            };
            if let Some(moved) = self.reserve.publish(worker, run, self.ring.used_index()) {
                outcome.touched |= self.owe(worker, moved);
            }
            rest = rest.get(planned.picks..).unwrap_or(&[]);
        }
        outcome
    }

    /// Nothing more can be delivered: the driver offers no buffers, or nonsense.
    fn give_up(&self, outcome: &mut Outcome, copies: u32, scratch: &RxScratch) {
        match scratch.fault {
            None => outcome.full += copies,
            Some(_) => outcome.faulty += copies,
        }
    }

    /// Asks for the lines that lead to the next `count` buffers. After a delivery: the next one
    /// finds them in the cache.
    pub fn prefetch_descriptors(&self, count: usize) {
        let head = self.reserve.head() as u16;
        self.ring.prefetch_avail_index();
        // Four descriptors to a line, and drivers hand them out in order, mostly.
        for i in (0..count as u16).step_by(4) {
            let at = head.wrapping_add(i);
            self.ring.prefetch_descriptor(self.ring.avail_entry(at));
            self.ring.prefetch_used(at);
        }
    }

    /// Asks for the next `count` buffers themselves, to be written. While the frames that will
    /// go there are still on their way to the cache: both waits pass together. What is read
    /// here decides nothing.
    pub fn prefetch_buffers(&self, count: usize) {
        let head = self.reserve.head() as u16;
        self.ring.prefetch_used_index();
        for i in 0..count as u16 {
            let id = self.ring.avail_entry(head.wrapping_add(i));
            let (ptr, _) = chain::single(&self.ring, id, Direction::Write);
            prefetch_write(ptr);
            prefetch_write(ptr.wrapping_add(64));
        }
    }

    fn owe(&self, worker: usize, (old, new): (u64, u64)) -> bool {
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

    /// Calls the driver if it wants to know of what this worker has published since its last
    /// flush. Returns whether it did. The worker has passed a sequentially consistent fence
    /// since it published.
    pub fn flush(&self, worker: usize) -> bool {
        let Some(owed) = self.owed.get(worker) else {
            return false;
        };
        let old = owed.since.load(Ordering::Relaxed);
        if old == NONE {
            return false;
        }
        owed.since.store(NONE, Ordering::Relaxed);
        let new = owed.until.load(Ordering::Relaxed);
        let must = new - old >= INDEX_RANGE || !self.called.load(Ordering::Relaxed);
        if must {
            self.called.store(true, Ordering::Relaxed);
        }
        (must || self.ring.wants_call(old as u16, new as u16)) && self.call.call()
    }

    /// Finds buffers for as many picks as the driver's offer allows, from position `head` on,
    /// without taking them.
    #[inline(always)]
    fn plan(&self, head: u64, burst: &Burst, picks: &[Pick], scratch: &mut RxScratch) -> Planned {
        scratch.buffers.clear();
        scratch.pieces.clear();
        scratch.plans.clear();
        scratch.fault = None;
        scratch.budget = chain::BUDGET;
        let mut planned = Planned::default();
        let avail = self.ring.avail_index();
        let Some(available) = self.reserve.available(head, avail) else {
            let ahead = avail.wrapping_sub(head as u16);
            scratch.fault = Some(RingFault::AvailJump {
                ahead,
                size: self.ring.size(),
            });
            return planned;
        };
        let available = available.min(MAX_RESERVATION);
        for i in 0..available.min(picks.len()) {
            let at = (head as u16).wrapping_add(i as u16);
            self.ring.prefetch_descriptor(self.ring.avail_entry(at));
        }
        let mergeable = self.features.has(feature::MRG_RXBUF);
        let header = self.features.header_len();
        for (index, pick) in picks.iter().take(BURST).enumerate() {
            let Some(frame) = burst.frames().get(usize::from(pick.frame)) else {
                break;
            };
            let need = Gather::len_of(frame, *pick, header);
            let (first, first_piece) = (scratch.buffers.len(), scratch.pieces.len());
            let mut room = 0;
            while room < need && scratch.buffers.len() < available && scratch.usable() {
                if !mergeable && scratch.buffers.len() > first {
                    break;
                }
                let at = (head as u16).wrapping_add(scratch.buffers.len() as u16);
                room += self.take(at, scratch);
            }
            if room >= need {
                let buffers = (scratch.buffers.len() - first) as u16;
                scratch.plans.push(Plan {
                    pick: index as u8,
                    buffers,
                });
                planned.picks += 1;
                continue;
            }
            let tried = scratch.buffers.len() - first;
            // It fits no buffer; or not even all that one reservation can have.
            let most = usize::from(self.ring.size()).min(MAX_RESERVATION);
            let too_small = scratch.usable() && ((!mergeable && tried > 0) || tried == most);
            scratch.buffers.truncate(first);
            scratch.pieces.truncate(first_piece);
            if !too_small {
                break;
            }
            planned.small += 1;
            planned.picks += 1;
        }
        planned
    }

    /// Reads the buffer at position `at` into the scratch; returns its length. A buffer at
    /// fault has none, and the fault is left in the scratch.
    #[inline(always)]
    fn take(&self, at: u16, scratch: &mut RxScratch) -> usize {
        let id = self.ring.avail_entry(at);
        let (ptr, len) = chain::single(&self.ring, id, Direction::Write);
        if ptr.is_null() {
            return self.take_chain(id, scratch);
        }
        prefetch_write(ptr);
        prefetch_write(ptr.wrapping_add(64));
        // SAFETY: translated for `len` bytes of the memory that the ring holds; guest memory is
        // never borrowed.
        scratch.pieces.push(unsafe { SegmentMut::new(ptr, len) });
        scratch.buffers.push(Buffer { id, pieces: 1, len });
        len as usize
    }

    #[cold]
    fn take_chain(&self, id: u16, scratch: &mut RxScratch) -> usize {
        let first = scratch.pieces.len();
        let (pieces, mut len) = (&mut scratch.pieces, 0u32);
        let (indirect, budget) = (
            self.features.has(feature::INDIRECT_DESC),
            &mut scratch.budget,
        );
        let walked = chain::walk(
            &self.ring,
            id,
            Direction::Write,
            indirect,
            budget,
            &mut |ptr, n| {
                // A buffer of more pieces, or bytes, than anybody needs is used as far as it goes.
                if pieces.len() < MAX_PIECES && len.checked_add(n).is_some() {
                    // SAFETY: `walk` translated `n` bytes of the memory that the ring holds.
                    pieces.push(unsafe { SegmentMut::new(ptr, n) });
                    len += n;
                }
            },
        );
        match walked {
            Ok(true) => {}
            Ok(false) => len = 0,
            Err(fault) => (scratch.fault, len) = (Some(fault), 0),
        }
        let count = (scratch.pieces.len() - first) as u16;
        scratch.buffers.push(Buffer {
            id,
            pieces: count,
            len,
        });
        len as usize
    }

    /// Copies the planned frames and writes their used entries from position `start` on;
    /// returns the bytes of the frames.
    #[inline(always)]
    fn fill<const HEADER: usize>(
        &self,
        start: u64,
        burst: &Burst,
        picks: &[Pick],
        scratch: &RxScratch,
    ) -> u64 {
        let (mut buffers, mut pieces) = (scratch.buffers.as_slice(), scratch.pieces.as_slice());
        let (mut at, mut bytes) = (start as u16, 0);
        for plan in &scratch.plans {
            let Some(pick) = picks.get(usize::from(plan.pick)) else {
                continue;
            };
            let Some(frame) = burst.frames().get(usize::from(pick.frame)) else {
                continue;
            };
            let (mine, others) = buffers.split_at(usize::from(plan.buffers).min(buffers.len()));
            let count = mine
                .iter()
                .map(|buffer| usize::from(buffer.pieces))
                .sum::<usize>();
            let (to, later) = pieces.split_at(count.min(pieces.len()));
            (buffers, pieces) = (others, later);

            let complete = frame.offload.needs_csum && !self.features.has(feature::GUEST_CSUM);
            let header = header::<HEADER>(&frame.offload, pick.tag, plan.buffers, complete);
            let mut left = match to {
                [one] if pick.tag == TagOp::Keep && !complete => {
                    copy_plain(&header, frame, burst, *one)
                }
                _ => self.copy_with_care(&header, frame, pick.tag, burst, to, complete),
            };
            bytes += left.saturating_sub(HEADER) as u64;
            for buffer in mine {
                let written = left.min(buffer.len as usize);
                self.ring.set_used(at, buffer.id, written as u32);
                at = at.wrapping_add(1);
                left -= written;
            }
        }
        bytes
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
        let copied = match to {
            [one] => gather.copy_to(*one),
            many => gather.scatter(many),
        };
        if complete {
            gather.complete_checksum(&frame.offload, tag, to);
        }
        copied
    }
}

#[derive(Default)]
struct Planned {
    /// How many picks were decided on: they have buffers, or are too big.
    picks: usize,
    /// How many of them are too big for a buffer.
    small: u32,
}

/// struct virtio_net_hdr before a received frame (virtio 1.2, 5.1.6.4): with 10 bytes, the
/// legacy one without `num_buffers`.
#[inline(always)]
fn header<const HEADER: usize>(
    offload: &Offload,
    tag: TagOp,
    buffers: u16,
    completed: bool,
) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    if let Some(field) = header.get_mut(10..12) {
        field.copy_from_slice(&buffers.to_le_bytes());
    }
    if offload.needs_csum && !completed {
        let start = usize::from(offload.csum_start).saturating_add_signed(tag.growth());
        header[0] = F_NEEDS_CSUM;
        header[6..8].copy_from_slice(&(start as u16).to_le_bytes());
        header[8..10].copy_from_slice(&offload.csum_offset.to_le_bytes());
    }
    header
}
