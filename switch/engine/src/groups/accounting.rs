//! What connections have carried, for a collector (IPFIX, RFC 7011): packets and octets in both directions, begin and end.
//!
//! There is no [`Accounting`] until something is exported; without it packets are not counted at all. It is not part of the table of
//! connections: cells of that have no room, and are shared by workers.
//!
//! - *Counts*: each worker has a cell for each slot of the table, which no other worker writes. They only grow, and are not reset
//!   when the slot is used again: what the slot had then is noted, and is the *base* of the next connection. So no count is lost,
//!   and none is counted twice, whichever workers have a connection's packets.
//! - *Events*: a connection that begins, ends or is denied goes into a bounded queue, one for each worker and one for the control
//!   side, which ends what has timed out. An event that finds it full is counted and lost. An event of the end has all that a
//!   record needs, so events may be read in any order.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};

use crossbeam::queue::ArrayQueue;
use crossbeam::utils::CachePadded;
use crosspoint_frame::tsc;

use super::connections::{Connection, Connections};
use super::key::Key;
use super::rate::ConnectionRate;
use super::rules::Direction;
use super::state::{Entry, Phase};

/// Events that wait for the exporting thread, of each worker: those of 20 ms at 400 000 connections a second.
const EVENTS: usize = 8192;
/// The same of the control side, which removes a part of the table at once.
const SWEPT_EVENTS: usize = 1 << 15;
/// Binary places of a time stamp that the time of the last packet does not have: 0.4 ms at 2.6 GHz. It wraps after 20 days.
const LAST_SHIFT: u32 = 20;
/// In place of the time at which a connection began: another thread writes it just now.
const BUSY: u64 = 1;

/// Packets and octets, of the originator and of the other side. They wrap.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Packets; a large frame is as many as the segments that it is cut into.
    pub packets: [u32; 2],
    /// Octets of IP packets, with their headers.
    pub octets: [u64; 2],
}

impl Counts {
    /// Returns what was added after `before`. A value that was read before `before` adds nothing.
    pub fn since(&self, before: &Counts) -> Counts {
        let octets = |side: usize| {
            let more = self.octets[side].wrapping_sub(before.octets[side]);
            more.cast_signed().max(0).cast_unsigned()
        };
        let packets = |side: usize| {
            let more = self.packets[side].wrapping_sub(before.packets[side]);
            more.cast_signed().max(0).cast_unsigned()
        };
        Counts {
            packets: [0, 1].map(packets),
            octets: [0, 1].map(octets),
        }
    }

    /// Returns whether there is nothing.
    pub fn is_zero(&self) -> bool {
        *self == Counts::default()
    }
}

/// Why a connection has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FlowEnd {
    /// No packet came for as long as `[connections]` says.
    Idle,
    /// Both sides have closed it, or one has reset it.
    Closed,
    /// Changed rules do not allow it, or its port is gone.
    Forced,
}

/// What has happened to a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FlowEvent {
    /// It has begun.
    Begun,
    /// It has ended.
    Ended(FlowEnd),
    /// Its first packet was dropped: no rule allows it, or the port has too many.
    Denied,
}

/// A connection, and what its slot has counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowRecord {
    /// Its slot; with `began_at`, no other connection has the same.
    pub slot: u32,
    /// The connection.
    pub connection: Connection,
    /// VLAN of its bridge; 0 for none.
    pub vlan: u16,
    /// When it began, or counting did; cycles.
    pub began_at: u64,
    /// When its last packet passed, cycles; to within a millisecond.
    pub last_at: u64,
    /// The slot's counts when it began.
    pub base: Counts,
    /// The slot's counts now, or when it ended.
    pub counts: Counts,
}

/// Counts of one slot on one worker. Half a cache line.
#[repr(align(32))]
#[derive(Default)]
struct Cell {
    octets: [AtomicU64; 2],
    packets: [AtomicU32; 2],
    last: AtomicU32,
}

/// A slot's present connection: when it began, and the slot's counts then.
#[repr(align(32))]
#[derive(Default)]
struct Begun {
    at: AtomicU64,
    octets: [AtomicU64; 2],
    packets: [AtomicU32; 2],
}

/// A worker's part.
struct Shard {
    cells: Box<[Cell]>,
    events: ArrayQueue<(FlowEvent, FlowRecord)>,
    denied: ConnectionRate,
    /// Events that found the queue full, and denied ones beyond their rate.
    lost: CachePadded<AtomicU64>,
    unsent: AtomicU64,
}

/// Counts and events of all connections of a table.
pub struct Accounting {
    is_on: AtomicBool,
    has_begins: AtomicBool,
    /// When it was made, cycles.
    made_at: u64,
    shards: Box<[Shard]>,
    begun: Box<[Begun]>,
    swept: ArrayQueue<(FlowEvent, FlowRecord)>,
    swept_lost: AtomicU64,
}

/// What is exported.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct AccountingOptions {
    /// Whether connections that begin are events, and not only those that end.
    pub begins: bool,
    /// The most denied packets in a second that are events, of each worker and direction; 0 for none.
    pub denied_per_s: u32,
    /// Cycles of the time stamp counter in a second.
    pub hz: f64,
}

/// Adds to a count that no other thread writes.
fn add_32(count: &AtomicU32, more: u32) {
    let sum = count.load(Ordering::Relaxed).wrapping_add(more);
    count.store(sum, Ordering::Relaxed);
}

fn add_64(count: &AtomicU64, more: u64) {
    let sum = count.load(Ordering::Relaxed).wrapping_add(more);
    count.store(sum, Ordering::Relaxed);
}

impl Begun {
    fn set(&self, now: u64, base: &Counts) {
        self.at.store(BUSY, Ordering::Relaxed);
        fence(Ordering::Release);
        for side in 0..2 {
            self.octets[side].store(base.octets[side], Ordering::Relaxed);
            self.packets[side].store(base.packets[side], Ordering::Relaxed);
        }
        self.at.store(now.max(BUSY + 1), Ordering::Release);
    }

    /// `None` while another thread sets it.
    fn get(&self) -> Option<(u64, Counts)> {
        let at = self.at.load(Ordering::Acquire);
        let base = Counts {
            packets: self
                .packets
                .each_ref()
                .map(|count| count.load(Ordering::Relaxed)),
            octets: self
                .octets
                .each_ref()
                .map(|count| count.load(Ordering::Relaxed)),
        };
        fence(Ordering::Acquire);
        let again = self.at.load(Ordering::Relaxed);
        (at != BUSY && again == at).then_some((at, base))
    }
}

impl Accounting {
    fn new(slots: usize, workers: usize) -> Accounting {
        let shard = |_| Shard {
            cells: (0..slots).map(|_| Cell::default()).collect(),
            events: ArrayQueue::new(EVENTS),
            denied: ConnectionRate::default(),
            lost: CachePadded::default(),
            unsent: AtomicU64::new(0),
        };
        Accounting {
            is_on: AtomicBool::new(false),
            has_begins: AtomicBool::new(false),
            made_at: tsc(),
            shards: (0..workers.max(1)).map(shard).collect(),
            begun: (0..slots).map(|_| Begun::default()).collect(),
            swept: ArrayQueue::new(SWEPT_EVENTS),
            swept_lost: AtomicU64::new(0),
        }
    }

    fn set(&self, options: &AccountingOptions) {
        for shard in &self.shards {
            shard.denied.set(options.denied_per_s, options.hz);
        }
        self.has_begins.store(options.begins, Ordering::Relaxed);
        self.is_on.store(true, Ordering::Relaxed);
    }

    /// Stops counting. What was counted stays.
    pub fn stop(&self) {
        self.is_on.store(false, Ordering::Relaxed);
    }

    /// Takes the next event.
    pub fn next_event(&self) -> Option<(FlowEvent, FlowRecord)> {
        let of_workers = self.shards.iter().find_map(|shard| shard.events.pop());
        of_workers.or_else(|| self.swept.pop())
    }

    /// Returns how many events were lost, because a queue was full.
    pub fn events_lost(&self) -> u64 {
        let shards = self.shards.iter();
        let of_workers: u64 = shards.map(|shard| shard.lost.load(Ordering::Relaxed)).sum();
        of_workers + self.swept_lost.load(Ordering::Relaxed)
    }

    /// Returns how many denied packets were no events, because they exceeded their rate.
    pub fn denied_unsent(&self) -> u64 {
        let shards = self.shards.iter();
        shards
            .map(|shard| shard.unsent.load(Ordering::Relaxed))
            .sum()
    }

    /// Returns its memory, bytes.
    pub fn bytes(&self) -> usize {
        let events = self.shards.len() * EVENTS + SWEPT_EVENTS;
        self.begun.len() * (size_of::<Begun>() + self.shards.len() * size_of::<Cell>())
            + events * size_of::<(FlowEvent, FlowRecord)>()
    }

    /// Counts packets of the originator (`side` 0) or of the other side (1), on a worker.
    #[inline]
    pub(super) fn add(
        &self,
        (worker, slot): (usize, u32),
        side: usize,
        (packets, octets): (u32, u64),
        now: u64,
    ) {
        let shard = self.shards.get(worker);
        let Some(cell) = shard.and_then(|shard| shard.cells.get(slot as usize)) else {
            return;
        };
        add_64(&cell.octets[side & 1], octets);
        add_32(&cell.packets[side & 1], packets);
        cell.last
            .store((now >> LAST_SHIFT) as u32, Ordering::Relaxed);
    }

    /// The counts of a slot, and when it was last counted, cycles; 0 if it never was.
    fn counts(&self, slot: u32, now: u64) -> (Counts, u64) {
        let (mut all, mut last_at) = (Counts::default(), 0);
        let cells = self
            .shards
            .iter()
            .filter_map(|shard| shard.cells.get(slot as usize));
        for cell in cells {
            for side in 0..2 {
                let (octets, packets) = (&cell.octets[side], &cell.packets[side]);
                all.octets[side] = all.octets[side].wrapping_add(octets.load(Ordering::Relaxed));
                all.packets[side] = all.packets[side].wrapping_add(packets.load(Ordering::Relaxed));
            }
            let last = cell.last.load(Ordering::Relaxed);
            if last != 0 {
                // Another worker's packet may be a moment later than now.
                let age = ((now >> LAST_SHIFT) as u32).wrapping_sub(last);
                let age = age.cast_signed().max(0).cast_unsigned();
                last_at = last_at.max(now.saturating_sub(u64::from(age) << LAST_SHIFT));
            }
        }
        (all, last_at)
    }

    /// Notes that a slot is used for another connection. Only for the worker that fills the slot, or has changed it so.
    fn begin(&self, slot: u32, now: u64) {
        if let Some(begun) = self.begun.get(slot as usize) {
            begun.set(now, &self.counts(slot, now).0);
        }
    }

    /// The record of a connection that is in a slot.
    fn record(&self, slot: u32, key: &Key, entry: &Entry) -> Option<FlowRecord> {
        let now = tsc();
        let (began_at, base) = self.begun.get(slot as usize)?.get()?;
        // Connections that are older than counting have counts from then.
        let began_at = if began_at == 0 {
            self.made_at
        } else {
            began_at
        };
        let (counts, last_at) = self.counts(slot, now);
        Some(FlowRecord {
            slot,
            connection: Connection::of(key, entry, entry.tick),
            vlan: key.vlan(),
            began_at,
            last_at: last_at.clamp(began_at.min(now), now),
            base,
            counts,
        })
    }

    fn push(&self, worker: usize, event: FlowEvent, record: FlowRecord) {
        if let Some(shard) = self.shards.get(worker)
            && shard.events.push((event, record)).is_err()
        {
            add_64(&shard.lost, 1);
        }
    }

    /// A connection has begun in a slot, on a worker.
    pub(super) fn begun(&self, worker: usize, slot: u32, key: &Key, entry: &Entry) {
        if self.has_begins.load(Ordering::Relaxed)
            && let Some(record) = self.record(slot, key, entry)
        {
            self.push(worker, FlowEvent::Begun, record);
        }
    }

    /// A connection was replaced by another one between the same ports, on a worker.
    pub(super) fn begun_again(
        &self,
        worker: usize,
        slot: u32,
        key: &Key,
        (before, after): (&Entry, &Entry),
        is_on: bool,
    ) {
        let Some(ended) = self.record(slot, key, before) else {
            return;
        };
        // The base of the next one is what this one ends with: no packet is in neither.
        if let Some(begun) = self.begun.get(slot as usize) {
            begun.set(tsc(), &ended.counts);
        }
        if is_on {
            self.push(worker, FlowEvent::Ended(end_of(before)), ended);
            self.begun(worker, slot, key, after);
        }
    }

    /// Whether another denied packet may be an event now. If not, it is counted.
    pub(super) fn has_room_for_denied(
        &self,
        worker: usize,
        direction: Direction,
        now: u64,
    ) -> bool {
        let Some(shard) = self.shards.get(worker) else {
            return false;
        };
        let has_room = shard.denied.is_limited() && shard.denied.has_room(direction, now);
        match has_room {
            true => shard.denied.pay(direction, now),
            false => add_64(&shard.unsent, 1),
        }
        has_room
    }

    /// A connection was denied, by its first packet.
    pub(super) fn denied(
        &self,
        worker: usize,
        (key, entry): (&Key, &Entry),
        (packets, octets): (u32, u64),
        now: u64,
    ) {
        let counts = Counts {
            packets: [packets, 0],
            octets: [octets, 0],
        };
        let record = FlowRecord {
            slot: u32::MAX,
            connection: Connection::of(key, entry, entry.tick),
            vlan: key.vlan(),
            began_at: now,
            last_at: now,
            base: Counts::default(),
            counts,
        };
        self.push(worker, FlowEvent::Denied, record);
    }
}

fn end_of(entry: &Entry) -> FlowEnd {
    match entry.phase {
        Phase::Closed => FlowEnd::Closed,
        Phase::Revoked => FlowEnd::Forced,
        _ => FlowEnd::Idle,
    }
}

impl Connections {
    /// Begins to count what connections carry, or changes what is exported of it. The memory is taken the first time, for this
    /// number of workers, and stays.
    pub fn start_accounting(&self, workers: usize, options: &AccountingOptions) -> &Accounting {
        let accounting = self.accounting.get_or_init(|| {
            let accounting = Accounting::new(self.capacity(), workers);
            Box::new(accounting)
        });
        accounting.set(options);
        accounting
    }

    /// Returns what counts, if something does.
    #[inline]
    pub fn accounting(&self) -> Option<&Accounting> {
        let accounting = self.accounting.get()?;
        accounting
            .is_on
            .load(Ordering::Relaxed)
            .then_some(&**accounting)
    }

    /// Returns the connection of a slot, with its counts.
    pub fn flow_at(&self, slot: u32) -> Option<FlowRecord> {
        let accounting = self.accounting.get()?;
        let (state, key) = self.live_at(slot)?;
        let entry = state.entry();
        let record = accounting.record(slot, &key, &entry)?;
        let (again, _) = self.live_at(slot)?;
        (entry.phase != Phase::Fragments && again.is_same_use(state)).then_some(record)
    }

    /// Notes that a slot is being filled with another connection.
    #[inline]
    pub(super) fn account_begin(&self, slot: u32) {
        if let Some(accounting) = self.accounting.get() {
            accounting.begin(slot, tsc());
        }
    }

    /// Notes that a connection was replaced by another one between the same ports.
    pub(super) fn account_again(
        &self,
        worker: usize,
        slot: u32,
        key: &Key,
        entries: (&Entry, &Entry),
    ) {
        if let Some(accounting) = self.accounting.get() {
            let is_on = accounting.is_on.load(Ordering::Relaxed);
            accounting.begun_again(worker, slot, key, entries, is_on);
        }
    }

    /// The record of a connection that is about to be removed by the control side.
    pub(super) fn account_end(&self, slot: u32, key: &Key, entry: &Entry) -> Option<FlowRecord> {
        let accounting = self.accounting()?;
        let record = accounting.record(slot, key, entry)?;
        (entry.phase != Phase::Fragments).then_some(record)
    }

    /// Notes that it was removed. `is_forced`: its zone is gone.
    pub(super) fn account_removed(&self, record: FlowRecord, entry: &Entry, is_forced: bool) {
        let Some(accounting) = self.accounting() else {
            return;
        };
        let end = if is_forced {
            FlowEnd::Forced
        } else {
            end_of(entry)
        };
        let pushed = accounting.swept.push((FlowEvent::Ended(end), record));
        if pushed.is_err() {
            // Sweeps do not run beside each other.
            add_64(&accounting.swept_lost, 1);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
