//! Taps: copies of passing frames, with the result of each, for packet capture.
//!
//! A worker never waits for the reader of a tap: a frame for which no [`Slot`] is free, or which exceeds the tap's rate,
//! is not captured, and is counted. Without taps the cost is one check of an empty list per burst. With taps, the copies
//! for a queue of a tapped port are sent one by one, so that the result of each is known.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam::queue::ArrayQueue;
use crosspoint_frame::{
    BURST, Burst, Clock, Frame, Gather, HeaderOp, Offload, Prefix, TxEntry, tsc,
};
use crosspoint_packet::DropReason;

use crate::egress::deliver::fate;
use crate::egress::tx::Tx;
use crate::observe::counters::Counter;
use crate::observe::counters::QueueCounters;
use crate::snapshot::Snapshot;
use crate::stream::StreamId;

/// Most taps at the same time.
pub const TAPS_MAX: usize = 4;
/// A worker that was idle may capture this many milliseconds' worth of frames at once.
const SAVED_MS: u64 = 10;

/// Direction of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// From the port into the switch.
    Received,
    /// From the switch to the port.
    Sent,
}

/// Result of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// Received: it goes to this port.
    Port(u16),
    /// Received: it goes to every other port that carries its VLAN.
    Flood,
    /// Sent: it was delivered to the port.
    Delivered,
    /// It was dropped.
    Dropped(DropReason),
}

/// Returns whether a frame is wanted, given its first bytes and its length. Workers call it, so it must neither allocate
/// nor wait.
pub type Filter = Box<dyn Fn(&[u8], usize) -> bool + Send + Sync>;

/// What a tap captures.
pub struct Wanted {
    /// Only frames of this port.
    pub port: Option<u16>,
    /// Only frames of this queue.
    pub queue: Option<u16>,
    /// Frames from ports.
    pub received: bool,
    /// Copies for ports.
    pub sent: bool,
    /// Only dropped frames.
    pub dropped_only: bool,
    /// Bytes kept of each frame.
    pub snap_len: usize,
    /// Most frames per second and worker that are considered.
    pub rate_max: u64,
    /// Only frames for which this filter returns `true`.
    pub filter: Option<Filter>,
}

/// One captured frame.
#[derive(Clone, Debug)]
pub struct Slot {
    /// Time-stamp counter at capture.
    pub tsc: u64,
    /// The worker that processed it.
    pub worker: usize,
    /// Its number on that worker. Sent copies have the number of the received frame. `None` for a frame joined from
    /// several.
    pub serial: Option<u64>,
    /// The port that it was received on or sent to.
    pub port: u16,
    /// That port's queue.
    pub queue: u16,
    /// Direction.
    pub direction: Direction,
    /// Result.
    pub fate: Fate,
    /// Length, bytes.
    pub len: u32,
    /// The VLAN that it is in; 0 for none.
    pub vlan: u16,
    /// The number of its bridge.
    pub bridge: u8,
    /// Its 802.1p priority.
    pub priority: u8,
    /// Offloads that were still to be done.
    pub offload: Offload,
    /// Its first bytes.
    pub bytes: Vec<u8>,
}

/// A tap's counters, summed over all workers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TapCounts {
    /// Frames captured.
    pub kept: u64,
    /// Frames for which no slot was free: the reader is too slow.
    pub missed: u64,
    /// Frames not considered because they exceeded `rate_max`.
    pub over_rate: u64,
}

/// One worker's counters and rate budget.
#[derive(Debug, Default)]
#[repr(align(128))]
struct ByWorker {
    kept: Counter,
    missed: Counter,
    over_rate: Counter,
    /// Budget in cycles, `cycles_per_frame` for each frame; and when it was last updated.
    saved: AtomicU64,
    since: AtomicU64,
}

/// A tap: what it captures, and its free and filled slots.
pub struct Tap {
    wanted: Wanted,
    cycles_per_frame: u64,
    saved_max: u64,
    free: ArrayQueue<Box<Slot>>,
    filled: ArrayQueue<Box<Slot>>,
    workers: Box<[ByWorker]>,
    ended: AtomicBool,
}

impl Tap {
    /// Creates a tap with `slots` slots (at least one) for a switch with `workers` workers.
    pub fn new(wanted: Wanted, slots: usize, workers: usize, clock: &Clock) -> Arc<Tap> {
        let slots = slots.max(1);
        let (free, filled) = (ArrayQueue::new(slots), ArrayQueue::new(slots));
        for _ in 0..slots {
            let _ = free.push(Box::new(Slot {
                tsc: 0,
                worker: 0,
                serial: None,
                port: 0,
                queue: 0,
                direction: Direction::Received,
                fate: Fate::Flood,
                len: 0,
                vlan: 0,
                bridge: 0,
                priority: 0,
                offload: Offload::default(),
                bytes: Vec::with_capacity(wanted.snap_len),
            }));
        }
        let cycles_per_frame = (clock.hz() as u64 / wanted.rate_max.max(1)).max(1);
        let saved = clock.hz() as u64 / 1000 * SAVED_MS;
        Arc::new(Tap {
            // At a low rate, the time between two frames is longer than the usual limit.
            saved_max: saved.max(cycles_per_frame * BURST as u64),
            cycles_per_frame,
            wanted,
            free,
            filled,
            workers: (0..workers).map(|_| ByWorker::default()).collect(),
            ended: AtomicBool::new(false),
        })
    }

    /// Returns the next captured frame of any worker, if there is one. Each worker's frames are in order.
    pub fn next(&self) -> Option<Box<Slot>> {
        self.filled.pop()
    }

    /// Returns a slot so that it can be filled again.
    pub fn give_back(&self, slot: Box<Slot>) {
        let _ = self.free.push(slot);
    }

    /// Returns the port that it captures, if it is limited to one.
    pub fn port(&self) -> Option<u16> {
        self.wanted.port
    }

    /// Marks the tap as ended: its port was removed.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }

    /// Whether the tap has ended: no frames follow those that [`next`](Self::next) still returns.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Returns the counters.
    pub fn counts(&self) -> TapCounts {
        let sum = |of: fn(&ByWorker) -> &Counter| self.workers.iter().map(|w| of(w).get()).sum();
        TapCounts {
            kept: sum(|worker| &worker.kept),
            missed: sum(|worker| &worker.missed),
            over_rate: sum(|worker| &worker.over_rate),
        }
    }

    fn wants(&self, direction: Direction, (port, queue): StreamId) -> bool {
        let way = match direction {
            Direction::Received => self.wanted.received,
            Direction::Sent => self.wanted.sent,
        };
        way && self.wanted.port.is_none_or(|wanted| wanted == port)
            && self.wanted.queue.is_none_or(|wanted| wanted == queue)
    }

    /// Returns how many of `count` frames `worker` may consider now; the rest is counted as over the rate.
    fn allow(&self, worker: usize, count: usize) -> usize {
        let Some(of) = self.workers.get(worker) else {
            return 0;
        };
        let now = tsc();
        let since = of.since.swap(now, Ordering::Relaxed);
        let passed = match since {
            0 => self.saved_max,
            since => now.wrapping_sub(since),
        };
        let saved = of.saved.load(Ordering::Relaxed).saturating_add(passed);
        let saved = saved.min(self.saved_max);
        let allowed = (saved / self.cycles_per_frame).min(count as u64);
        of.saved
            .store(saved - allowed * self.cycles_per_frame, Ordering::Relaxed);
        of.over_rate.add(count as u64 - allowed);
        allowed as usize
    }

    /// Returns a slot with the frame's first bytes after `tag` is applied; `None` if the frame is not wanted or was
    /// missed.
    pub(super) fn take(
        &self,
        worker: usize,
        burst: &Burst,
        frame: &Frame,
        tag: HeaderOp,
    ) -> Option<Box<Slot>> {
        let Some(mut slot) = self.free.pop() else {
            // It is not known whether the filter would have accepted the frame.
            self.count(worker, |of| &of.missed);
            return None;
        };
        slot.len = (frame.len as usize).saturating_add_signed(tag.growth()) as u32;
        (slot.vlan, slot.priority) = (frame.vlan, (frame.tci >> 13) as u8);
        slot.bridge = frame.bridge;
        slot.offload = frame.offload;
        slot.bytes.clear();
        // Up to its capacity: nothing is allocated.
        slot.bytes
            .resize(self.wanted.snap_len.min(slot.len as usize), 0);
        read(burst, frame, tag, &mut slot.bytes);
        let filter = self.wanted.filter.as_ref();
        if filter.is_some_and(|filter| !filter(&slot.bytes, slot.len as usize)) {
            self.give_back(slot);
            return None;
        }
        Some(slot)
    }

    /// Fills in the rest of the slot and hands it to the reader.
    pub(super) fn put(&self, mut slot: Box<Slot>, seen: Seen, fate: Fate) {
        if self.wanted.dropped_only && !matches!(fate, Fate::Dropped(_)) {
            self.give_back(slot);
            return;
        }
        slot.tsc = tsc();
        (slot.worker, slot.serial) = (seen.worker, seen.serial);
        (slot.port, slot.queue) = seen.id;
        (slot.direction, slot.fate) = (seen.direction, fate);
        self.count(seen.worker, |of| &of.kept);
        // The queue has room for all slots.
        let _ = self.filled.push(slot);
    }

    fn count(&self, worker: usize, of: impl Fn(&ByWorker) -> &Counter) {
        if let Some(worker) = self.workers.get(worker) {
            of(worker).add(1);
        }
    }
}

/// Place at which a frame was captured.
#[derive(Clone, Copy)]
pub(super) struct Seen {
    pub(super) worker: usize,
    pub(super) serial: Option<u64>,
    pub(super) id: StreamId,
    pub(super) direction: Direction,
}

/// Copies a frame's first bytes, with `tag` applied, as many as `out` has.
fn read(burst: &Burst, frame: &Frame, tag: HeaderOp, out: &mut [u8]) {
    let prefix = Prefix::new(&[], frame, tag);
    let gather = Gather::new(&prefix, burst, frame);
    let (head, segments) = gather.pieces();
    let mut at = head.len().min(out.len());
    out[..at].copy_from_slice(&head[..at]);
    for segment in segments {
        at += segment.read(out.get_mut(at..).unwrap_or(&mut []));
    }
}

/// Origin of the frames of a burst that is being sent.
#[derive(Clone, Copy)]
pub(crate) enum Origin {
    /// Unchanged, as received.
    Received,
    /// Segments of the frame with this index.
    CutFrom(usize),
    /// Joined from several frames.
    Joined,
}

/// Captures the frames of a burst that was received on `id` and has been looked up.
pub(super) fn received(burst: &Burst, id: StreamId, view: &Snapshot, tx: &mut Tx) {
    let worker = tx.worker;
    tx.serial = tx.serial.wrapping_add(BURST as u64);
    for tap in &view.taps {
        if !tap.wants(Direction::Received, id) {
            continue;
        }
        let allowed = tap.allow(worker, burst.len());
        for (index, frame) in burst.frames().iter().enumerate().take(allowed) {
            let fate = fate(frame, id.0, view);
            if tap.wanted.dropped_only && !matches!(fate, Fate::Dropped(_)) {
                continue;
            }
            if let Some(slot) = tap.take(worker, burst, frame, HeaderOp::Keep) {
                let seen = Seen {
                    worker,
                    serial: Some(tx.serial + index as u64),
                    id,
                    direction: Direction::Received,
                };
                tap.put(slot, seen, fate);
            }
        }
    }
}

/// Captures copies for port `number` that are not made, and why: it exceeds its share or its rate. They count as frames of its
/// first queue.
#[cold]
#[inline(never)]
pub(crate) fn refused(
    burst: &Burst,
    (picks, reason): (impl Iterator<Item = TxEntry> + Clone, DropReason),
    number: u16,
    view: &Snapshot,
    tx: &Tx,
) {
    let (worker, id) = (tx.worker, (number, 0));
    for tap in &view.taps {
        if !tap.wants(Direction::Sent, id) {
            continue;
        }
        let allowed = tap.allow(worker, picks.clone().count());
        for pick in picks.clone().take(allowed) {
            let frame = burst.frames().get(usize::from(pick.frame));
            let slot = frame.and_then(|frame| tap.take(worker, burst, frame, pick.tag));
            if let Some(slot) = slot {
                let seen = Seen {
                    worker,
                    serial: Some(tx.serial + u64::from(pick.frame)),
                    id,
                    direction: Direction::Sent,
                };
                tap.put(slot, seen, Fate::Dropped(reason));
            }
        }
    }
}

/// The taps, for the copies to one queue.
#[derive(Clone, Copy)]
pub(crate) struct Taps<'a> {
    pub(crate) taps: &'a [Arc<Tap>],
    /// The serial number of the burst's first frame.
    pub(crate) serial: u64,
    pub(crate) origin: Origin,
}

/// How many of the next copies each tap considers.
#[derive(Default)]
pub(crate) struct Allowed([usize; TAPS_MAX]);

impl Allowed {
    /// Returns the largest number that any tap considers.
    pub(crate) fn most(&self) -> usize {
        self.0.into_iter().max().unwrap_or(0)
    }
}

/// Slots that the taps hold for one copy until its result is known.
pub(crate) struct Held {
    slots: [Option<Box<Slot>>; TAPS_MAX],
    drops: [u64; DropReason::COUNT],
}

impl Taps<'_> {
    /// Returns how many of the next `count` copies each tap considers.
    pub(crate) fn allow(&self, worker: usize, id: StreamId, count: usize) -> Allowed {
        let mut allowed = Allowed::default();
        for (allowed, tap) in allowed.0.iter_mut().zip(self.taps) {
            if tap.wants(Direction::Sent, id) {
                *allowed = tap.allow(worker, count);
            }
        }
        allowed
    }

    /// Fills the taps' slots from a copy that is about to be sent: copy `number` of those allowed.
    pub(crate) fn hold(
        &self,
        worker: usize,
        (burst, pick): (&Burst, &TxEntry),
        (allowed, number): (&Allowed, usize),
        to: &QueueCounters,
    ) -> Held {
        let mut held = Held {
            slots: [const { None }; TAPS_MAX],
            drops: std::array::from_fn(|reason| to.drops[reason].get()),
        };
        let Some(frame) = burst.frames().get(usize::from(pick.frame)) else {
            return held;
        };
        let taps = self.taps.iter().zip(&allowed.0);
        for (slot, (tap, allowed)) in held.slots.iter_mut().zip(taps) {
            if number < *allowed {
                *slot = tap.take(worker, burst, frame, pick.tag);
            }
        }
        held
    }

    /// Passes the held slots to the readers with the copy's result: delivered, or dropped for the reason that `to` has
    /// counted since.
    pub(crate) fn release(
        &self,
        worker: usize,
        id: StreamId,
        (held, pick, delivered): (Held, &TxEntry, bool),
        to: &QueueCounters,
    ) {
        let counted = |reason: &&DropReason| {
            let index = **reason as usize;
            held.drops.get(index).copied() != to.drops.get(index).map(Counter::get)
        };
        let fate = match delivered {
            true => Fate::Delivered,
            // Frames that a NIC's interface refuses are counted at the source port.
            false => Fate::Dropped(
                *DropReason::ALL
                    .iter()
                    .find(counted)
                    .unwrap_or(&DropReason::BadOffload),
            ),
        };
        let of = |index: usize| Some(self.serial + index as u64);
        let seen = Seen {
            worker,
            serial: match self.origin {
                Origin::Received => of(usize::from(pick.frame)),
                Origin::CutFrom(index) => of(index),
                Origin::Joined => None,
            },
            id,
            direction: Direction::Sent,
        };
        for (slot, tap) in held.slots.into_iter().zip(self.taps) {
            if let Some(slot) = slot {
                tap.put(slot, seen, fate);
            }
        }
    }
}
