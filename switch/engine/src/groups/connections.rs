//! The connections of all guests with security groups: one table that all workers share, without a lock.
//!
//! Both directions of a connection may be on different workers, so workers cannot have tables of their own. Each port with
//! groups has a *zone*: a connection between two such guests has an entry for each, with its own rules and quota.
//!
//! A connection is in one of the slots of two buckets, chosen by a secret hash of its key. A bucket is one cache line with
//! the states of its slots; a state has a part of the hash, so that nearly always only the right key is compared. The key
//! lies in a line of its own.
//!
//! - *Look-up*: read the state, compare the key, read the state again: if it is another use of the slot, the key may be a
//!   mixture, and is not this connection's.
//! - *Insert*: take a free slot by a compare-and-swap to "busy", write the key, publish the state. Two workers may insert
//!   the same connection at once: the first in the order of slots is used from then on, and the other times out.
//! - *Change*: a compare-and-swap of the state. An established connection's state is written once a second at most.
//! - *Remove*: a compare-and-swap to "free". The control side does it for what has timed out.
//!
//! All loops are bounded by the number of slots of two buckets.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::OnceLock;
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use crossbeam::utils::CachePadded;

use super::accounting::Accounting;
use super::key::Key;
use super::numbers::address_of;
use super::rules::Direction;
use super::state::{Entry, Phase, Slot, State, TAG_MASK, TICK_MASK, idle};
use super::timeouts::{SharedTimeouts, Timeouts};
use super::zone::Zone;
#[cfg(loom)]
use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// Slots of a bucket: a cache line. One under loom, which tries every interleaving.
const SLOTS: usize = if cfg!(loom) { 1 } else { 8 };
/// Free slots with which a bucket takes a connection without a look at the other one. With fewer than five, connections do not fit
/// into a table that has as many as were asked for.
const ROOMY: usize = 5;
/// Attempts to change a state that other workers change at the same time.
const TRIES: usize = 4;

/// Where a key may be: a bucket, another one, and the part of the hash that states have.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Place {
    first: u32,
    second: u32,
    tag: u32,
    /// The slot that the connection is likely to be in, once it was looked for.
    likely: u32,
}

/// A connection that was found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub(super) slot: u32,
    pub(super) state: State,
    pub(super) entry: Entry,
}

#[repr(align(64))]
#[derive(Default)]
struct Bucket([AtomicU64; SLOTS]);

#[repr(align(64))]
#[derive(Default)]
struct KeySlot([AtomicU64; 6]);

/// A connection as operators see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Connection {
    /// Number of its port's zone.
    pub zone: u32,
    /// IP protocol.
    pub protocol: u8,
    /// Address and port of the originator; the identifier of an echo request in place of the port; 0 for protocols without.
    pub source: (IpAddr, u16),
    /// The same of the other side.
    pub destination: (IpAddr, u16),
    /// Direction of its first packet.
    pub direction: Direction,
    /// Its phase.
    pub phase: Phase,
    /// Seconds since its last packet.
    pub idle_s: u32,
}

impl Connection {
    /// The connection with a key, `now` seconds after the table was made.
    pub(super) fn of(key: &Key, entry: &Entry, now: u32) -> Connection {
        let ends = match entry.is_low_originator {
            true => key.ends(),
            false => key.ends().turned(),
        };
        Connection {
            zone: key.zone(),
            protocol: key.protocol(),
            source: (address_of(ends.source), ends.source_port),
            destination: (address_of(ends.destination), ends.destination_port),
            direction: entry.direction,
            phase: entry.phase,
            idle_s: idle(entry.tick, now),
        }
    }
}

/// Result of a sweep.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Swept {
    /// Slots that were looked at.
    pub slots: usize,
    /// Connections that timed out.
    pub removed: usize,
}

/// The table.
pub struct Connections {
    buckets: Box<[Bucket]>,
    keys: Box<[KeySlot]>,
    seeds: [u64; 3],
    /// As many connections as were asked for.
    max: usize,
    /// Seconds since the table was made.
    tick: AtomicU32,
    timeouts: SharedTimeouts,
    /// Written for each connection that begins: not in a line that each packet reads.
    len: CachePadded<AtomicU32>,
    /// The slot that the next sweep begins with.
    next: CachePadded<AtomicU32>,
    /// What counts packets, once something is exported.
    pub(super) accounting: OnceLock<Box<Accounting>>,
}

impl Connections {
    /// Creates a table for `max` connections; it has half as many slots again, so that they fit, and 72 bytes for each.
    pub fn new(max: usize, timeouts: Timeouts) -> Connections {
        let count = (max + max / 2).div_ceil(SLOTS).max(2);
        let hasher = RandomState::new();
        let connections = Connections {
            buckets: (0..count).map(|_| Bucket::default()).collect(),
            keys: (0..count * SLOTS).map(|_| KeySlot::default()).collect(),
            // Random for each process: guests choose what is hashed.
            seeds: [0u64, 1, 2].map(|number| hasher.hash_one(number) | 1),
            max,
            tick: AtomicU32::new(0),
            timeouts: SharedTimeouts::default(),
            len: CachePadded::new(AtomicU32::new(0)),
            next: CachePadded::new(AtomicU32::new(0)),
            accounting: OnceLock::new(),
        };
        connections.set_timeouts(timeouts);
        connections
    }

    /// Changes when connections time out.
    pub fn set_timeouts(&self, timeouts: Timeouts) {
        self.timeouts.set(timeouts);
    }

    /// Returns the number of slots.
    pub fn capacity(&self) -> usize {
        self.keys.len()
    }

    /// Returns the number of connections.
    pub fn len(&self) -> usize {
        // Two workers may count out of order for a moment.
        self.len.load(Ordering::Relaxed).cast_signed().max(0) as usize
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the memory of the table, bytes.
    pub fn bytes(&self) -> usize {
        self.buckets.len() * size_of::<Bucket>() + self.keys.len() * size_of::<KeySlot>()
    }

    /// The time, seconds since the table was made.
    #[inline(always)]
    pub(super) fn now(&self) -> u32 {
        self.tick.load(Ordering::Relaxed)
    }

    /// Where a key may be.
    #[inline(always)]
    pub(super) fn place(&self, key: &Key) -> Place {
        let [a, b, c, d, e, f] = key.words;
        let [s, t, u] = self.seeds;
        // Multiplication to 128 bits, both halves folded, as in wyhash (Wang Yi).
        let fold = |x: u64, y: u64| {
            let product = u128::from(x) * u128::from(y);
            product as u64 ^ (product >> 64) as u64
        };
        let hash = fold(fold(a ^ s, b ^ t) ^ c ^ u, fold(d ^ t, e ^ s) ^ f ^ u);
        let hash = fold(hash ^ s, u);
        // Each half of the hash gives a bucket by its upper bits (Lemire, "Fast random integer generation in an interval",
        // 2019); the lower bits give the tag.
        let count = self.buckets.len() as u64;
        let (low, high) = (hash & 0xffff_ffff, hash >> 32);
        Place {
            first: ((low * count) >> 32) as u32,
            second: ((high * count) >> 32) as u32,
            tag: (low as u32 ^ (high as u32) << 6) & TAG_MASK,
            likely: u32::MAX,
        }
    }

    /// Whether many connections are in their second bucket. To be asked once for a burst.
    #[inline(always)]
    pub(super) fn is_dense(&self) -> bool {
        self.len() > self.max / 2
    }

    /// Prefetches what a look-up reads first: the first bucket, and the second one too if the table is dense.
    #[inline(always)]
    pub(super) fn prefetch(&self, place: &Place, is_dense: bool) {
        self.prefetch_bucket(place.first);
        if is_dense {
            self.prefetch_bucket(place.second);
        }
    }

    #[inline(always)]
    fn prefetch_bucket(&self, bucket: u32) {
        if let Some(bucket) = self.buckets.get(bucket as usize) {
            crosspoint_frame::prefetch_read(std::ptr::from_ref(bucket).cast());
        }
    }

    /// Prefetches the state of a slot.
    #[inline(always)]
    pub(super) fn prefetch_state(&self, slot: u32) {
        if let Some(word) = self.state_at(slot) {
            crosspoint_frame::prefetch_read(std::ptr::from_ref(word).cast());
        }
    }

    /// Whether a slot has this state, and its last packet passed in this second. It is then the same use of the slot: within a
    /// second none is used so often that its sequence number comes again.
    #[inline(always)]
    pub(super) fn has_state(&self, slot: u32, state: State) -> bool {
        let word = self.state_at(slot);
        word.is_some_and(|word| word.load(Ordering::Relaxed) == state.0)
            && state.tick() == self.now()
    }

    /// Prefetches the first key that may be the right one, and notes where it is; the second bucket, if it is not there yet and
    /// the first one does not have the connection.
    #[inline(always)]
    pub(super) fn prefetch_key(&self, place: &mut Place, is_dense: bool) {
        place.likely = u32::MAX;
        if self.prefetch_key_in(place.first, place) {
            return;
        }
        match is_dense {
            true => {
                self.prefetch_key_in(place.second, place);
            }
            false => self.prefetch_bucket(place.second),
        }
    }

    /// Returns whether the bucket may have the connection.
    #[inline(always)]
    fn prefetch_key_in(&self, bucket: u32, place: &mut Place) -> bool {
        let Some(states) = self.buckets.get(bucket as usize) else {
            return true;
        };
        let has_tag =
            |word: &AtomicU64| State(word.load(Ordering::Relaxed)).is_live_with(place.tag);
        let Some(index) = states.0.iter().position(has_tag) else {
            return false;
        };
        place.likely = bucket * SLOTS as u32 + index as u32;
        if let Some(key) = self.keys.get(place.likely as usize) {
            crosspoint_frame::prefetch_read(std::ptr::from_ref(key).cast());
        }
        true
    }

    /// Finds a connection.
    #[inline(always)]
    pub(super) fn find(&self, key: &Key, place: &Place) -> Option<Found> {
        let likely = place.likely as usize;
        if let Some(bucket) = self.buckets.get(likely / SLOTS)
            && let Some(word) = bucket.0.get(likely % SLOTS)
            && let Some(found) = self.found_at(word, place.likely, key, place.tag)
        {
            return Some(found);
        }
        let found = self.find_in(place.first, key, place.tag);
        found.or_else(|| self.find_in(place.second, key, place.tag))
    }

    #[inline(always)]
    fn find_in(&self, bucket: u32, key: &Key, tag: u32) -> Option<Found> {
        let states = self.buckets.get(bucket as usize)?;
        let mut slots = (bucket * SLOTS as u32..).zip(&states.0);
        slots.find_map(|(slot, word)| self.found_at(word, slot, key, tag))
    }

    /// Returns the connection of a slot, whose state is `word`, if it has this key.
    #[inline(always)]
    fn found_at(&self, word: &AtomicU64, slot: u32, key: &Key, tag: u32) -> Option<Found> {
        // Acquire: the key was written before the state was published.
        let state = State(word.load(Ordering::Acquire));
        if !state.is_live_with(tag) || !self.has_key(slot, key) {
            return None;
        }
        // LOAD-BEARING: the key is read before the state is read again.
        fence(Ordering::Acquire);
        let again = State(word.load(Ordering::Relaxed));
        again.is_same_use(state).then(|| Found {
            slot,
            state: again,
            entry: again.entry(),
        })
    }

    /// Whether a slot has this key. Word by word: a key that is stored in words and loaded whole waits for the stores.
    #[inline(always)]
    fn has_key(&self, slot: u32, key: &Key) -> bool {
        let Some(KeySlot(words)) = self.keys.get(slot as usize) else {
            return false;
        };
        let differs =
            |(word, expected): (&AtomicU64, &u64)| word.load(Ordering::Relaxed) ^ expected;
        words
            .iter()
            .zip(&key.words)
            .map(differs)
            .fold(0, |all, one| all | one)
            == 0
    }

    fn key_at(&self, slot: u32) -> Option<Key> {
        let words = &self.keys.get(slot as usize)?.0;
        Some(Key {
            words: words.each_ref().map(|word| word.load(Ordering::Relaxed)),
        })
    }

    fn state_at(&self, slot: u32) -> Option<&AtomicU64> {
        let slot = slot as usize;
        self.buckets.get(slot / SLOTS)?.0.get(slot % SLOTS)
    }

    /// Changes a connection by `with`, which may be called several times. Returns what it was before, and what it is now;
    /// `None` if it is gone.
    pub(super) fn change(
        &self,
        found: &Found,
        with: impl Fn(Entry) -> Entry,
    ) -> Option<(Entry, Entry)> {
        let word = self.state_at(found.slot)?;
        let mut state = found.state;
        for _ in 0..TRIES {
            let (before, after) = (state.entry(), with(state.entry()));
            if before == after {
                return Some((before, after));
            }
            let new = state.with(&after).0;
            match word.compare_exchange(state.0, new, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some((before, after)),
                Err(now) if State(now).is_same_use(state) => state = State(now),
                Err(_) => return None,
            }
        }
        // Other workers changed it at the same time: their packets count.
        Some((state.entry(), state.entry()))
    }

    fn free(&self, slot: u32, state: State) -> bool {
        let Some(word) = self.state_at(slot) else {
            return false;
        };
        let freed = state.freed().0;
        let result = word.compare_exchange(state.0, freed, Ordering::Relaxed, Ordering::Relaxed);
        if result.is_ok() {
            self.len.fetch_sub(1, Ordering::Relaxed);
        }
        result.is_ok()
    }

    /// Adds a connection. Returns its slot; `None` if both buckets are full.
    pub(super) fn insert(&self, key: &Key, place: &Place, entry: &Entry) -> Option<u32> {
        let free_in = |bucket: u32| {
            let states = self.buckets.get(bucket as usize);
            let words = states.map_or(&[][..], |bucket| &bucket.0);
            let is_free =
                |word: &&AtomicU64| State(word.load(Ordering::Relaxed)).slot() == Slot::Free;
            words.iter().filter(is_free).count()
        };
        // The first one while it has room, so that look-ups in a table with room read one line; then the emptier one, so that
        // buckets are full only when the table is (Azar et al., "Balanced allocations", 1999).
        let free = free_in(place.first);
        let buckets = match free >= ROOMY || free >= free_in(place.second) {
            true => [place.first, place.second],
            false => [place.second, place.first],
        };
        for bucket in buckets {
            let first = bucket * SLOTS as u32;
            for slot in first..first + SLOTS as u32 {
                if self.fill(slot, key, place.tag, entry) {
                    return Some(slot);
                }
            }
        }
        None
    }

    /// Takes a slot, if it is free.
    fn fill(&self, slot: u32, key: &Key, tag: u32, entry: &Entry) -> bool {
        let (Some(word), Some(place)) = (self.state_at(slot), self.keys.get(slot as usize)) else {
            return false;
        };
        let state = State(word.load(Ordering::Relaxed));
        if state.slot() != Slot::Free {
            return false;
        }
        // Acquire: the key is written after the slot is taken.
        let busy = state.busy();
        let taken = word.compare_exchange(state.0, busy.0, Ordering::Acquire, Ordering::Relaxed);
        if taken.is_err() {
            return false;
        }
        // LOAD-BEARING: a reader that sees a word of this key also sees that the slot is not what it was.
        fence(Ordering::Release);
        for (place, value) in place.0.iter().zip(key.words) {
            place.store(value, Ordering::Relaxed);
        }
        self.len.fetch_add(1, Ordering::Relaxed);
        self.account_begin(slot);
        word.store(busy.live(tag, entry).0, Ordering::Release);
        true
    }

    /// Removes what has timed out among the next `slots` slots. `seconds`: the time since the table was made. `zone` returns
    /// a zone by its number; connections of zones that are gone are removed. For the control side.
    pub fn sweep<'z>(
        &self,
        seconds: u32,
        slots: usize,
        zone: impl Fn(u32) -> Option<&'z Zone>,
    ) -> Swept {
        self.tick.store(seconds & TICK_MASK, Ordering::Relaxed);
        let is_full = self.len() > self.max / 4 * 3;
        let mut swept = Swept::default();
        for _ in 0..slots.min(self.capacity()) {
            let slot = self.next.load(Ordering::Relaxed);
            let next = (slot as usize + 1) % self.capacity();
            self.next.store(next as u32, Ordering::Relaxed);
            swept.slots += 1;
            let Some((state, key)) = self.live_at(slot) else {
                continue;
            };
            let (entry, zone) = (state.entry(), zone(key.zone()));
            let timeout = self.timeouts.of(entry.phase, key.protocol(), is_full);
            let is_over = idle(entry.tick, seconds) > timeout;
            let Some(zone) = zone.filter(|_| !is_over) else {
                let record = self.account_end(slot, &key, &entry);
                if self.free(slot, state) {
                    swept.removed += 1;
                    zone.into_iter().for_each(|zone| zone.note_gone(&entry));
                    record
                        .into_iter()
                        .for_each(|record| self.account_removed(record, &entry, zone.is_none()));
                }
                continue;
            };
            self.age_generation(slot, state, zone);
        }
        swept
    }

    /// Seconds without a packet after which a connection is over, while the table has room.
    pub(super) fn timeout_of(&self, phase: Phase, key: &Key) -> u32 {
        self.timeouts.of(phase, key.protocol(), false)
    }

    /// The connection of a slot, if there is one.
    pub(super) fn live_at(&self, slot: u32) -> Option<(State, Key)> {
        let word = self.state_at(slot)?;
        let state = State(word.load(Ordering::Acquire));
        if state.slot() != Slot::Live {
            return None;
        }
        let key = self.key_at(slot)?;
        fence(Ordering::Acquire);
        let again = State(word.load(Ordering::Relaxed));
        again.is_same_use(state).then_some((again, key))
    }

    /// Returns the connections, in no order. Connections that begin or end meanwhile may be missing.
    pub fn iter(&self) -> impl Iterator<Item = Connection> {
        let now = self.now();
        (0..self.capacity() as u32).filter_map(move |slot| {
            let (state, key) = self.live_at(slot)?;
            let entry = state.entry();
            if entry.phase == Phase::Fragments {
                return None;
            }
            Some(Connection::of(&key, &entry, now))
        })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::groups::key::Ends;
    use crate::groups::key::tests::of;

    fn key(number: u32) -> Key {
        let ends = Ends {
            source: number.into(),
            destination: u128::MAX,
            source_port: 1,
            destination_port: 2,
        };
        of(&ends, 6, (0, 1)).0
    }

    const ENTRY: Entry = Entry {
        phase: Phase::Established,
        is_low_originator: true,
        direction: Direction::In,
        generation: 3,
        tick: 5,
    };

    /// As many connections as were asked for fit, each is found with its entry, and others are not.
    #[test]
    fn as_many_connections_fit_as_were_asked_for() {
        let max = 300_000;
        let table = Connections::new(max, Timeouts::default());
        for number in 0..max as u32 {
            let key = key(number);
            let slot = table.insert(&key, &table.place(&key), &ENTRY);
            assert!(slot.is_some(), "{number}");
        }
        assert_eq!(table.len(), max);
        for number in 0..2 * max as u32 {
            let key = key(number);
            let found = table.find(&key, &table.place(&key));
            let expected = (number < max as u32).then_some(ENTRY);
            assert_eq!(found.map(|found| found.entry), expected, "{number}");
        }
    }

    /// A million connections need 108 bytes each.
    #[test]
    fn a_million_connections_need_108_bytes_each() {
        let table = Connections::new(1_000_000, Timeouts::default());
        assert_eq!(table.bytes(), 108_000_000);
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::sync::Arc;

    use super::*;

    fn key(number: u64) -> Key {
        Key { words: [number; 6] }
    }

    fn entry(tick: u32) -> Entry {
        Entry {
            phase: Phase::OneWay,
            is_low_originator: true,
            direction: Direction::In,
            generation: 0,
            tick,
        }
    }

    /// While a slot is given to another connection with the same part of the hash, a reader finds either one with its own
    /// entry, and a change reaches only the connection that it was made for.
    #[test]
    fn a_slot_that_is_used_again_is_not_mistaken() {
        let mut builder = loom::model::Builder::new();
        // More preemptions take minutes.
        builder.preemption_bound = Some(3);
        builder.check(|| {
            let place = Place {
                first: 0,
                second: 0,
                tag: 1,
                likely: u32::MAX,
            };
            let table = Arc::new(Connections::new(1, Timeouts::default()));
            assert!(table.insert(&key(1), &place, &entry(1)).is_some());
            let other = table.clone();
            let changer = loom::thread::spawn(move || {
                let found = other.find(&key(1), &place).expect("it is there");
                assert!(
                    other.free(found.slot, found.state) || found.entry.tick != 1 || {
                        // The reader has changed it meanwhile.
                        let found = other.find(&key(1), &place).expect("it is there");
                        other.free(found.slot, found.state)
                    }
                );
                assert!(other.insert(&key(2), &place, &entry(2)).is_some());
            });
            for number in [1, 2] {
                if let Some(found) = table.find(&key(number), &place) {
                    assert_eq!(u64::from(found.entry.tick), number);
                    table.change(&found, |entry| Entry {
                        generation: number as u8,
                        ..entry
                    });
                }
            }
            changer.join().expect("no panic");
            let found = table.find(&key(2), &place).expect("it is there");
            assert_eq!(found.entry.tick, 2);
            assert!(matches!(found.entry.generation, 0 | 2));
        });
    }
}
