//! A port's part of the table of connections: how many it has, and may have.
//!
//! What others send to a guest can use up only a part of its quota: connections that the guest does not answer are limited by
//! direction. So it can always begin its own.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use super::rate::ConnectionRate;
use super::rules::Direction;
use super::state::{Entry, Phase, TICK_MASK, idle};

/// Least value of each part of a quota.
const PART_MIN: u32 = 64;
/// Parts of the quota that may be half-open, in each direction; that others have begun and the guest has not answered; and
/// of datagrams in fragments, in each direction.
const HALF_OPEN_PART: u32 = 10;
const UNANSWERED_PART: u32 = 4;
const FRAGMENTS_PART: u32 = 32;

/// Seconds for which a guest that has arrived from another switch may go on with connections that are not known here.
pub const ARRIVAL_S: u32 = 30;
/// Seconds after an arrival in which another one counts for nothing: a front end that connects again and again gains no more.
const ARRIVAL_AGAIN_S: u32 = 300;
/// In the note of an arrival: there is one.
const HAS_ARRIVED: u32 = 1 << 31;

/// Counts of one port, written by all workers when connections begin and end. In a cache line of its own: guests do not slow
/// each other.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct Zone {
    id: u32,
    max: AtomicU32,
    connections: AtomicU32,
    /// By direction: in, out.
    half_open: [AtomicU32; 2],
    /// Others that only their originator has sent; those that came in.
    unanswered: AtomicU32,
    /// By direction.
    fragments: [AtomicU32; 2],
    generation: AtomicU8,
    /// When the guest arrived, seconds as in the table, with a bit that says that this is not long ago.
    arrival: AtomicU32,
    created: AtomicU64,
    refused: AtomicU64,
    rate: ConnectionRate,
}

/// The value, for operators: two workers may count out of order for a moment.
fn value(count: &AtomicU32) -> u32 {
    count
        .load(Ordering::Relaxed)
        .cast_signed()
        .max(0)
        .cast_unsigned()
}

/// Adds one, if there are less than `max`.
fn reserve(count: &AtomicU32, max: u32) -> bool {
    let before = count.fetch_add(1, Ordering::Relaxed).cast_signed();
    let has_room = i64::from(before) < i64::from(max);
    if !has_room {
        count.fetch_sub(1, Ordering::Relaxed);
    }
    has_room
}

impl Zone {
    /// Creates a zone with a number of its own, which may have `connections_max` connections. A tenth of them may be half-open
    /// in each direction, a quarter begun by others and not answered; 64 at least.
    pub fn new(id: u32, connections_max: u32) -> Zone {
        Zone {
            id,
            max: connections_max.into(),
            ..Zone::default()
        }
    }

    /// Changes how many connections it may have. Those that it has stay.
    pub fn set_connections_max(&self, max: u32) {
        self.max.store(max, Ordering::Relaxed);
    }

    /// Changes how many connections may begin in a second, in each direction; 0 for no limit. `hz`: cycles of the time stamp
    /// counter in a second.
    pub fn set_connections_rate(&self, per_s: u32, hz: f64) {
        self.rate.set(per_s, hz);
    }

    /// Returns how many connections were refused, since more began in a second than may.
    pub fn rate_refused_total(&self) -> u64 {
        self.rate.refused()
    }

    pub(super) fn rate(&self) -> &ConnectionRate {
        &self.rate
    }

    /// Returns its number.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Returns the number of its connections.
    pub fn connections(&self) -> u32 {
        value(&self.connections)
    }

    /// Returns the number of those that are half-open TCP.
    pub fn half_open(&self) -> u32 {
        self.half_open.iter().map(value).sum()
    }

    /// Returns how many there have been.
    pub fn created_total(&self) -> u64 {
        self.created.load(Ordering::Relaxed)
    }

    /// Returns how many were refused, since the port or the table had too many.
    pub fn refused_total(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Notes that the guest has arrived from another switch at `now`, seconds since the table was made; not again within
    /// five minutes.
    pub(super) fn note_arrival(&self, now: u32) {
        if self.arrived_within(ARRIVAL_AGAIN_S, now) {
            return;
        }
        let note = HAS_ARRIVED | now & TICK_MASK;
        self.arrival.store(note, Ordering::Relaxed);
    }

    fn arrived_within(&self, seconds: u32, now: u32) -> bool {
        let note = self.arrival.load(Ordering::Relaxed);
        note & HAS_ARRIVED != 0 && idle(note & TICK_MASK, now) < seconds
    }

    /// Returns whether the guest has arrived within the last [`ARRIVAL_S`] seconds.
    pub(super) fn has_arrived(&self, now: u32) -> bool {
        self.arrived_within(ARRIVAL_S, now)
    }

    /// Forgets an arrival that is long ago, before the count of seconds comes again.
    pub fn forget_arrival(&self, seconds: u32) {
        if !self.arrived_within(ARRIVAL_AGAIN_S, seconds & TICK_MASK) {
            // A guest that arrives in this moment loses its note, which costs it at most what it would cost without.
            self.arrival.store(0, Ordering::Relaxed);
        }
    }

    /// Returns the generation of its rules.
    pub(super) fn generation(&self) -> u8 {
        self.generation.load(Ordering::Relaxed)
    }

    pub(super) fn set_generation(&self, generation: u8) {
        self.generation.store(generation, Ordering::Relaxed);
    }

    /// The count that limits connections of this phase besides their number, and the part of the quota that it may reach.
    fn limit(&self, phase: Phase, direction: Direction) -> Option<(&AtomicU32, u32)> {
        let side = usize::from(direction == Direction::Out);
        let [of_in, of_out] = match phase {
            Phase::Fragments => [&self.fragments[0], &self.fragments[1]],
            phase if phase.is_half_open() => [&self.half_open[0], &self.half_open[1]],
            phase if phase.is_unanswered() && side == 0 => [&self.unanswered; 2],
            _ => return None,
        };
        let part = match phase {
            Phase::Fragments => FRAGMENTS_PART,
            phase if phase.is_half_open() => HALF_OPEN_PART,
            _ => UNANSWERED_PART,
        };
        let max = (self.max.load(Ordering::Relaxed) / part).max(PART_MIN);
        Some((if side == 0 { of_in } else { of_out }, max))
    }

    /// Counts another connection, if there is room for it. [`note_gone`](Self::note_gone) takes that back.
    pub(super) fn reserve(&self, entry: &Entry) -> bool {
        let is_counted = entry.phase != Phase::Fragments;
        if is_counted && !reserve(&self.connections, self.max.load(Ordering::Relaxed)) {
            return false;
        }
        let limit = self.limit(entry.phase, entry.direction);
        if let Some((count, max)) = limit
            && !reserve(count, max)
        {
            if is_counted {
                self.connections.fetch_sub(1, Ordering::Relaxed);
            }
            return false;
        }
        true
    }

    /// Counts that a connection has changed to another phase.
    pub(super) fn note_change(&self, before: &Entry, after: &Entry) {
        if let Some((count, _)) = self.limit(after.phase, after.direction) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        if let Some((count, _)) = self.limit(before.phase, before.direction) {
            count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    pub(super) fn note_created(&self) {
        self.created.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn note_gone(&self, entry: &Entry) {
        if let Some((count, _)) = self.limit(entry.phase, entry.direction) {
            count.fetch_sub(1, Ordering::Relaxed);
        }
        if entry.phase != Phase::Fragments {
            self.connections.fetch_sub(1, Ordering::Relaxed);
        }
    }

    pub(super) fn note_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }
}
