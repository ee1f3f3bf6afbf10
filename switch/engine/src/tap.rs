//! Taps: copies of frames that go past, with what became of them, for people who look.
//!
//! A worker never waits for who looks: a frame for which no [`Slot`] is free, or that is beyond the tap's rate, goes on
//! unseen and is counted. Without taps it costs a look at an empty list for each burst. With some, the copies for a
//! queue of a tapped port are sent one by one, to know what became of each.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam::queue::ArrayQueue;
use crosspoint_frame::{BURST, Burst, Clock, Frame, Gather, Offload, Pick, Prefix, TagOp, tsc};
use crosspoint_packet::DropReason;

use crate::counters::{Counter, QueueCounters};
use crate::deliver::fate;
use crate::stream::StreamId;
use crate::tx::Tx;
use crate::view::View;

/// Most taps at once.
pub const TAPS_MAX: usize = 4;
/// A worker that was idle looks at so many thousandths of a second's frames at once.
const SAVED_MS: u64 = 10;

/// Which way a frame went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// From the port into the switch.
    Received,
    /// From the switch to the port.
    Sent,
}

/// What became of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// Received: it goes to one port, by number.
    Port(u16),
    /// Received: it goes to every other port that carries its VLAN.
    Flood,
    /// Sent: the port has it.
    Delivered,
    /// It was dropped.
    Dropped(DropReason),
}

/// Says of a frame, by its first bytes and its length, whether it is wanted. It is called by workers: it must neither
/// allocate nor wait.
pub type Filter = Box<dyn Fn(&[u8], usize) -> bool + Send + Sync>;

/// What a tap wants.
pub struct Wanted {
    /// Of this port only.
    pub port: Option<u16>,
    /// Of this queue only.
    pub queue: Option<u16>,
    /// Frames from ports.
    pub received: bool,
    /// Copies for ports.
    pub sent: bool,
    /// Only those that are dropped.
    pub dropped_only: bool,
    /// Bytes kept of each.
    pub snap_len: usize,
    /// Frames that each worker looks at in a second.
    pub rate_max: u64,
    /// Only those that this says yes to.
    pub filter: Option<Filter>,
}

/// One frame that was seen.
#[derive(Clone, Debug)]
pub struct Slot {
    /// When: the time-stamp counter.
    pub tsc: u64,
    /// The worker that had it.
    pub worker: usize,
    /// Its number on that worker: copies that were sent have that of the frame that was received. `None` for what was
    /// joined of several.
    pub serial: Option<u64>,
    /// The port that it came from or goes to.
    pub port: u16,
    /// That port's queue.
    pub queue: u16,
    /// Which way it went.
    pub direction: Direction,
    /// What became of it.
    pub fate: Fate,
    /// Its length, bytes.
    pub len: u32,
    /// What was still to be done with it.
    pub offload: Offload,
    /// Its first bytes.
    pub bytes: Vec<u8>,
}

/// What a tap has counted, over all workers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TapCounts {
    /// Frames that were kept.
    pub kept: u64,
    /// Frames that were wanted, and for which no slot was free: who looks is too slow.
    pub missed: u64,
    /// Frames that were not looked at: there were more than `rate_max`.
    pub over_rate: u64,
}

/// What one worker counts and saves.
#[derive(Debug, Default)]
#[repr(align(128))]
struct ByWorker {
    kept: Counter,
    missed: Counter,
    over_rate: Counter,
    /// Cycles that it may still spend, at `cycles_per_frame` for each frame; and when that was reckoned.
    saved: AtomicU64,
    since: AtomicU64,
}

/// A tap: what is wanted, and the slots, some free, some filled.
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
    /// A tap with `slots` slots (at least one) for a switch with so many workers.
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
                offload: Offload::default(),
                bytes: Vec::with_capacity(wanted.snap_len),
            }));
        }
        let cycles_per_frame = (clock.hz() as u64 / wanted.rate_max.max(1)).max(1);
        let saved = clock.hz() as u64 / 1000 * SAVED_MS;
        Arc::new(Tap {
            // At a low rate there is more between two frames than may be saved.
            saved_max: saved.max(cycles_per_frame * BURST as u64),
            cycles_per_frame,
            wanted,
            free,
            filled,
            workers: (0..workers).map(|_| ByWorker::default()).collect(),
            ended: AtomicBool::new(false),
        })
    }

    /// The next frame that was seen, of any worker, if there is one. Each worker's are in order.
    pub fn next(&self) -> Option<Box<Slot>> {
        self.filled.pop()
    }

    /// Gives a slot back, to be filled again.
    pub fn give_back(&self, slot: Box<Slot>) {
        let _ = self.free.push(slot);
    }

    /// The one port that it wants, if it wants one only.
    pub fn port(&self) -> Option<u16> {
        self.wanted.port
    }

    /// Notes that there is nothing more to come: its port has gone.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }

    /// Whether there is nothing more to come than what [`next`](Self::next) still has.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// What was kept, and what was not.
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

    /// How many of `count` frames `worker` may look at now; the rest is counted.
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

    /// A slot with the frame's first bytes, as they are behind `tag`; `None` where it is not wanted, or missed.
    fn take(&self, worker: usize, burst: &Burst, frame: &Frame, tag: TagOp) -> Option<Box<Slot>> {
        let Some(mut slot) = self.free.pop() else {
            // Whether the filter would have said yes is not known.
            self.count(worker, |of| &of.missed);
            return None;
        };
        slot.len = (frame.len as usize).saturating_add_signed(tag.growth()) as u32;
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

    /// Fills in the rest, and lets go of it.
    fn put(&self, mut slot: Box<Slot>, seen: Seen, fate: Fate) {
        if self.wanted.dropped_only && !matches!(fate, Fate::Dropped(_)) {
            self.give_back(slot);
            return;
        }
        slot.tsc = tsc();
        (slot.worker, slot.serial) = (seen.worker, seen.serial);
        (slot.port, slot.queue) = seen.id;
        (slot.direction, slot.fate) = (seen.direction, fate);
        self.count(seen.worker, |of| &of.kept);
        // There are as many places as slots.
        let _ = self.filled.push(slot);
    }

    fn count(&self, worker: usize, of: impl Fn(&ByWorker) -> &Counter) {
        if let Some(worker) = self.workers.get(worker) {
            of(worker).add(1);
        }
    }
}

/// Where a frame was seen.
#[derive(Clone, Copy)]
struct Seen {
    worker: usize,
    serial: Option<u64>,
    id: StreamId,
    direction: Direction,
}

/// Copies a frame's first bytes, with `tag` applied, as many as `out` has.
fn read(burst: &Burst, frame: &Frame, tag: TagOp, out: &mut [u8]) {
    let prefix = Prefix::new(&[], frame, tag);
    let gather = Gather::new(&prefix, burst, frame);
    let (head, segments) = gather.pieces();
    let mut at = head.len().min(out.len());
    out[..at].copy_from_slice(&head[..at]);
    for segment in segments {
        at += segment.read(out.get_mut(at..).unwrap_or(&mut []));
    }
}

/// What the frames of a burst that is being sent are.
#[derive(Clone, Copy)]
pub(crate) enum Origin {
    /// As they were received.
    Received,
    /// Cut out of the frame of this index.
    CutFrom(usize),
    /// Joined of several.
    Joined,
}

/// Shows the taps a burst that came in on `id`, and has been looked up.
#[cold]
#[inline(never)]
pub fn received(burst: &Burst, id: StreamId, view: &View, tx: &mut Tx) {
    let worker = tx.worker;
    tx.serial = tx.serial.wrapping_add(BURST as u64);
    for tap in &view.taps {
        if !tap.wants(Direction::Received, id) {
            continue;
        }
        let allowed = tap.allow(worker, burst.len());
        for (index, frame) in burst.frames().iter().enumerate().take(allowed) {
            let fate = fate(frame, view);
            if tap.wanted.dropped_only && !matches!(fate, Fate::Dropped(_)) {
                continue;
            }
            if let Some(slot) = tap.take(worker, burst, frame, TagOp::Keep) {
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

/// Shows the taps copies for port `number` that are not made, since frames for it have had more than its share: where
/// they are counted, at its first queue.
#[cold]
#[inline(never)]
pub(crate) fn over_share(
    burst: &Burst,
    picks: impl Iterator<Item = Pick> + Clone,
    number: u16,
    view: &View,
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
                tap.put(slot, seen, Fate::Dropped(DropReason::OverShare));
            }
        }
    }
}

/// The taps, as the copies for one queue see them.
#[derive(Clone, Copy)]
pub(crate) struct Taps<'a> {
    pub(crate) taps: &'a [Arc<Tap>],
    /// The serial number of the burst's first frame.
    pub(crate) serial: u64,
    pub(crate) origin: Origin,
}

/// How many of the next copies each tap looks at.
#[derive(Default)]
pub(crate) struct Allowed([usize; TAPS_MAX]);

impl Allowed {
    /// How many some tap looks at.
    pub(crate) fn most(&self) -> usize {
        self.0.into_iter().max().unwrap_or(0)
    }
}

/// What the taps keep of one copy until it is known what becomes of it.
pub(crate) struct Held {
    slots: [Option<Box<Slot>>; TAPS_MAX],
    drops: [u64; DropReason::COUNT],
}

impl Taps<'_> {
    /// How many of the next `count` copies each tap looks at.
    pub(crate) fn allow(&self, worker: usize, id: StreamId, count: usize) -> Allowed {
        let mut allowed = Allowed::default();
        for (allowed, tap) in allowed.0.iter_mut().zip(self.taps) {
            if tap.wants(Direction::Sent, id) {
                *allowed = tap.allow(worker, count);
            }
        }
        allowed
    }

    /// Takes of copy `number` of those allowed, which is about to be sent, what the taps want.
    pub(crate) fn hold(
        &self,
        worker: usize,
        (burst, pick): (&Burst, &Pick),
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

    /// Has the taps keep it, now that it is known what became of it: delivered, or dropped for the reason that `to` has
    /// counted since.
    pub(crate) fn release(
        &self,
        worker: usize,
        id: StreamId,
        (held, pick, delivered): (Held, &Pick, bool),
        to: &QueueCounters,
    ) {
        let counted = |reason: &&DropReason| {
            let index = **reason as usize;
            held.drops.get(index).copied() != to.drops.get(index).map(Counter::get)
        };
        let fate = match delivered {
            true => Fate::Delivered,
            // What a NIC's interface refuses is counted where it came from.
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
