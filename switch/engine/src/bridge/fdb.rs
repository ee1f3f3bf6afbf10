//! Forwarding database (FDB): the port on which each MAC address was last seen, per VLAN. All workers share it, without a
//! lock.
//!
//! Fixed size, set-associative: a bucket is one cache line with seven entries and an age for each. An entry is one 64-bit
//! word, so it is read and replaced as a whole. It has 48 bits of tag and 16 of port; the key has 60 bits (MAC and VLAN).
//! The 12 bits that the tag lacks are given by the bucket's number: the key is first mapped by a secret *bijection* of 60
//! bits, so tag and bucket together are the whole key, and two addresses never match by chance.

#[cfg(loom)]
use loom::sync::atomic::{AtomicU8, AtomicU64, Ordering};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use crosspoint_packet::Mac;

mod damping;
mod fixed;

pub use crate::bridge::moves::Damping;
pub use crate::bridge::moves::Mover;
use crate::bridge::moves::Moves;
pub use crate::bridge::moves::WINDOW_S_MAX;
pub use crate::bridge::quota::{Count, PortEvents, Quota};

/// Entries per bucket. With their ages they fill one cache line.
pub const WAYS: usize = 7;
/// Bits of the key that the bucket's number gives. This also sets the smallest number of buckets.
const IMPLIED_BITS: u32 = 12;
const KEY_BITS: u32 = 60;
/// Bits of an entry's tag: the rest of the key.
const TAG_BITS: u32 = KEY_BITS - IMPLIED_BITS;
const KEY_MASK: u64 = (1 << KEY_BITS) - 1;
const EMPTY: u64 = 0;

/// Smallest capacity, in entries.
pub const MIN_CAPACITY: usize = WAYS << IMPLIED_BITS;

#[repr(C, align(64))]
struct Bucket {
    entries: [AtomicU64; WAYS],
    /// Tick at which each address was last seen.
    ages: [AtomicU8; WAYS],
}

impl Bucket {
    fn new() -> Bucket {
        Bucket {
            entries: std::array::from_fn(|_| AtomicU64::new(EMPTY)),
            ages: std::array::from_fn(|_| AtomicU8::new(0)),
        }
    }
}

/// Hashed key of an address: computed once per frame and address, then used for prefetch and lookup.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Key(u64);

/// Result of learning an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Learned {
    /// Already known on this port.
    Known,
    /// New.
    New,
    /// It moved here from this port.
    Moved(u16),
    /// The port has reached its address limit.
    Refused,
    /// The bucket is full of other addresses. The frame is forwarded, and replies to it are flooded.
    Full,
    /// It has moved too often and stays on this port.
    Damped(u16),
    /// The caller does not allow it on this port.
    NotAllowed,
}

/// The forwarding database.
pub struct Fdb {
    buckets: Box<[Bucket]>,
    seed: [u64; 2],
    /// Bits of the permuted key that choose the bucket.
    bucket_mask: u64,
    moves: Moves,
}

impl Fdb {
    /// Creates a table of at least `capacity` entries. The secret `seed` decides where entries are placed.
    pub fn new(capacity: usize, seed: [u64; 2]) -> Fdb {
        let buckets = capacity
            .div_ceil(WAYS)
            .next_power_of_two()
            .max(1 << IMPLIED_BITS);
        Fdb::with_buckets(buckets, seed)
    }

    fn with_buckets(buckets: usize, seed: [u64; 2]) -> Fdb {
        Fdb {
            buckets: (0..buckets).map(|_| Bucket::new()).collect(),
            seed,
            bucket_mask: buckets as u64 - 1,
            moves: Moves::new(buckets * WAYS),
        }
    }

    /// Returns the number of entries that the table can hold.
    pub fn capacity(&self) -> usize {
        self.buckets.len() * WAYS
    }

    /// Counts the entries.
    pub fn entries(&self) -> usize {
        let slots = self.buckets.iter().flat_map(|bucket| &bucket.entries);
        slots
            .filter(|slot| slot.load(Ordering::Relaxed) != EMPTY)
            .count()
    }

    /// Returns the key of `mac` in `vlan` (below 4096).
    #[inline(always)]
    pub fn key(&self, mac: Mac, vlan: u16) -> Key {
        let [a, b] = self.seed;
        // Each step maps 60 bits one to one: xor, shift-xor, multiplication by an odd number.
        let mut x = (mac.to_word() | u64::from(vlan & 0xfff) << 48) ^ (a & KEY_MASK);
        x = (x ^ (x >> 29)).wrapping_mul(b | 1) & KEY_MASK;
        x = (x ^ (x >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9) & KEY_MASK;
        Key(x ^ (x >> 30))
    }

    #[inline(always)]
    fn bucket(&self, key: Key) -> Option<&Bucket> {
        self.buckets.get(self.bucket_number(key))
    }

    #[inline(always)]
    fn bucket_number(&self, key: Key) -> usize {
        (key.0 & self.bucket_mask) as usize
    }

    /// Returns the index, in the move table, of the entry in `way` of the key's bucket.
    fn place(&self, key: Key, way: usize) -> usize {
        self.bucket_number(key) * WAYS + way
    }

    /// Packs tag and port into one word. A port is stored as its number plus one, so no entry equals EMPTY.
    #[inline(always)]
    fn entry(key: Key, port: u16) -> u64 {
        (key.0 >> IMPLIED_BITS) << 16 | (u64::from(port) + 1)
    }

    #[inline(always)]
    fn port_of(entry: u64) -> u16 {
        (entry as u16).wrapping_sub(1)
    }

    /// Prefetches the key's cache line.
    #[inline(always)]
    pub fn prefetch(&self, key: Key) {
        if let Some(bucket) = self.bucket(key) {
            crosspoint_frame::prefetch_read(std::ptr::from_ref(bucket).cast());
        }
    }

    /// Returns the way that an entry with this tag takes if it is free at insertion. Nearly all entries are in it, so a
    /// lookup begins there. The tag bits used here do not choose the bucket.
    #[inline(always)]
    fn first_way(tag: u64) -> usize {
        ((tag >> (TAG_BITS - 8)) as usize * WAYS) >> 8
    }

    /// All ways, in the order in which a lookup of the tag visits them.
    fn ways(tag: u64) -> impl Iterator<Item = usize> {
        let first = Fdb::first_way(tag);
        (first..WAYS).chain(0..first)
    }

    #[inline(always)]
    fn find(bucket: &Bucket, tag: u64) -> Option<(usize, u64)> {
        let first = Fdb::first_way(tag);
        let entry = bucket.entries.get(first)?.load(Ordering::Relaxed);
        if entry != EMPTY && entry >> 16 == tag {
            return Some((first, entry));
        }
        Fdb::find_further(bucket, tag)
    }

    #[inline(never)]
    fn find_further(bucket: &Bucket, tag: u64) -> Option<(usize, u64)> {
        Fdb::ways(tag).find_map(|way| {
            let entry = bucket.entries.get(way)?.load(Ordering::Relaxed);
            (entry != EMPTY && entry >> 16 == tag).then_some((way, entry))
        })
    }

    /// The port that the address was last seen on.
    #[inline(always)]
    pub fn lookup(&self, key: Key) -> Option<u16> {
        let (_, entry) = Fdb::find(self.bucket(key)?, key.0 >> IMPLIED_BITS)?;
        Some(Fdb::port_of(entry))
    }

    /// Fast path for nearly all frames: the source was already seen on `from` in this tick, and the destination is known
    /// on another port, which is returned. `None` only means that the fast path does not apply.
    #[inline(always)]
    pub fn known_way(&self, (src, dst): (Key, Key), from: u16, tick: u8) -> Option<u16> {
        let (bucket, way) = (self.bucket(src)?, Fdb::first_way(src.0 >> IMPLIED_BITS));
        let is_known = bucket.entries.get(way)?.load(Ordering::Relaxed) == Fdb::entry(src, from)
            && bucket.ages.get(way)?.load(Ordering::Relaxed) == tick;
        let (bucket, tag) = (self.bucket(dst)?, dst.0 >> IMPLIED_BITS);
        let entry = bucket
            .entries
            .get(Fdb::first_way(tag))?
            .load(Ordering::Relaxed);
        let to = Fdb::port_of(entry);
        (is_known && entry >> 16 == tag && entry != EMPTY && to != from).then_some(to)
    }

    /// Returns the port that the address was last seen on, and how many ticks before `tick` that was.
    pub fn last_seen(&self, key: Key, tick: u8) -> Option<(u16, u8)> {
        let bucket = self.bucket(key)?;
        let (way, entry) = Fdb::find(bucket, key.0 >> IMPLIED_BITS)?;
        let age = bucket.ages.get(way)?.load(Ordering::Relaxed);
        Some((Fdb::port_of(entry), tick.wrapping_sub(age)))
    }

    /// Returns what [`learn`](Self::learn) would return, and changes nothing.
    pub fn would_learn<'q>(
        &self,
        key: Key,
        port: u16,
        quotas: impl Fn(u16) -> Option<&'q Quota>,
    ) -> Learned {
        let known = self.lookup(key);
        if known.is_some_and(|known| known != port)
            && let Some(home) = self.home_against(key, port, &quotas)
        {
            return Learned::Damped(home);
        }
        let is_free = |slot: &AtomicU64| slot.load(Ordering::Relaxed) == EMPTY;
        let bucket = self.bucket(key);
        match known {
            Some(known) if known == port => Learned::Known,
            _ if quotas(port).is_some_and(|quota| !quota.has_room()) => Learned::Refused,
            Some(other) => Learned::Moved(other),
            None if bucket.is_some_and(|bucket| bucket.entries.iter().any(is_free)) => Learned::New,
            None => Learned::Full,
        }
    }

    /// Records that the address was seen on `port` at `tick`. `quotas(port)` is a port's quota.
    #[inline(always)]
    pub fn learn<'q>(
        &self,
        key: Key,
        port: u16,
        tick: u8,
        quotas: impl Fn(u16) -> Option<&'q Quota>,
    ) -> Learned {
        self.learn_if(key, port, tick, quotas, || true)
    }

    /// Like [`learn`](Self::learn), but an address that is new on the port is learned only if `is_allowed` returns
    /// `true`. It is not called for an address that is already known there.
    #[inline(always)]
    pub fn learn_if<'q>(
        &self,
        key: Key,
        port: u16,
        tick: u8,
        quotas: impl Fn(u16) -> Option<&'q Quota>,
        is_allowed: impl FnOnce() -> bool,
    ) -> Learned {
        let Some(bucket) = self.bucket(key) else {
            return Learned::Full;
        };
        if let Some((way, entry)) = Fdb::find(bucket, key.0 >> IMPLIED_BITS)
            && Fdb::port_of(entry) == port
            && let Some(age) = bucket.ages.get(way)
        {
            // At most one store per entry and tick: the line stays shared between workers.
            if age.load(Ordering::Relaxed) != tick {
                age.store(tick, Ordering::Relaxed);
            }
            return Learned::Known;
        }
        match is_allowed() {
            true => self.learn_slowly(bucket, key, port, tick, quotas),
            false => Learned::NotAllowed,
        }
    }

    /// Learns a new address, or one that moved.
    #[cold]
    fn learn_slowly<'q>(
        &self,
        bucket: &Bucket,
        key: Key,
        port: u16,
        tick: u8,
        quotas: impl Fn(u16) -> Option<&'q Quota>,
    ) -> Learned {
        if let Some(home) = self.damp(bucket, key, port, &quotas) {
            return Learned::Damped(home);
        }
        let quota = quotas(port);
        let new = Fdb::entry(key, port);
        if let Some(quota) = quota.filter(|quota| !quota.take()) {
            // Another worker may be learning the same address, and have taken the last place for it.
            let known = Fdb::find(bucket, key.0 >> IMPLIED_BITS);
            if known.is_some_and(|(_, entry)| entry == new) {
                return Learned::Known;
            }
            quota.note_refused();
            return Learned::Refused;
        }
        let give_back = |port| {
            if let Some(quota) = quotas(port) {
                quota.give_back();
            }
        };
        // A failed exchange means that another thread changed the bucket: search again, a few times.
        for _ in 0..WAYS {
            let (way, old) = match Fdb::find(bucket, key.0 >> IMPLIED_BITS) {
                Some((_, entry)) if entry == new => {
                    give_back(port);
                    return Learned::Known;
                }
                Some(found) => found,
                None => {
                    let is_free = |way: &usize| {
                        let slot = bucket.entries.get(*way);
                        slot.is_some_and(|slot| slot.load(Ordering::Relaxed) == EMPTY)
                    };
                    let mut ways = Fdb::ways(key.0 >> IMPLIED_BITS);
                    let Some(way) = ways.find(is_free) else { break };
                    (way, EMPTY)
                }
            };
            let (Some(slot), Some(age)) = (bucket.entries.get(way), bucket.ages.get(way)) else {
                break;
            };
            // Before the entry: the sweeper must not see a new entry with an old age.
            age.store(tick, Ordering::Relaxed);
            let place = self.place(key, way);
            if old == EMPTY {
                self.moves.forget(place);
            }
            // Acquire too: the old owner took its quota before it wrote the entry, and we give it back after.
            let won = slot.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed);
            if won.is_err() {
                continue;
            }
            if old == EMPTY {
                self.drop_twins(bucket, way, new, &give_back);
                return Learned::New;
            }
            let from = Fdb::port_of(old);
            give_back(from);
            if let Some(quota) = quota {
                quota.events.addresses_moved.add_one();
            }
            self.moves.note(place, Fdb::mark(key), from, port);
            return Learned::Moved(from);
        }
        give_back(port);
        Learned::Full
    }

    /// Returns the key of an entry of bucket `number`.
    fn key_of(number: usize, entry: u64) -> Key {
        let low = number as u64 & ((1 << IMPLIED_BITS) - 1);
        Key((entry >> 16) << IMPLIED_BITS | low)
    }

    /// Removes every address for which `is_doomed(address, VLAN, port)` returns `true`, and gives its quota back. For the
    /// control thread: it visits every entry.
    pub fn remove_if<'q>(
        &self,
        quotas: impl Fn(u16) -> Option<&'q Quota>,
        is_doomed: impl Fn(Mac, u16, u16) -> bool,
    ) {
        self.take_out(quotas, |number, entry, _| {
            let (mac, vlan) = self.unkey(Fdb::key_of(number, entry));
            is_doomed(mac, vlan, Fdb::port_of(entry))
        });
    }

    /// Removes duplicate entries. Two workers that learn one address at once may each fill a free way. The one that
    /// `find` reaches first counts; the others, from `way` on, are never found and are removed.
    fn drop_twins(&self, bucket: &Bucket, way: usize, new: u64, give_back: &impl Fn(u16)) {
        let (mut seen, mut is_reached) = (false, false);
        for other in Fdb::ways(new >> 16) {
            let Some(slot) = bucket.entries.get(other) else {
                continue;
            };
            is_reached |= other == way;
            let entry = slot.load(Ordering::Acquire);
            if entry == EMPTY || entry >> 16 != new >> 16 {
                continue;
            }
            if seen
                && is_reached
                && slot
                    .compare_exchange(entry, EMPTY, Ordering::AcqRel, Ordering::Relaxed)
                    .is_ok()
            {
                give_back(Fdb::port_of(entry));
            }
            seen = true;
        }
    }

    /// Removes every entry for which `doomed(port, age in ticks)` returns `true`, and gives its quota back. Returns how
    /// many entries are left. For the control thread, at most once per tick.
    pub fn sweep<'q>(
        &self,
        tick: u8,
        quotas: impl Fn(u16) -> Option<&'q Quota>,
        doomed: impl Fn(u16, u8) -> bool,
    ) -> usize {
        self.take_out(quotas, |_, entry, age| {
            let age = tick.wrapping_sub(age.load(Ordering::Relaxed));
            doomed(Fdb::port_of(entry), age)
        })
    }

    /// Removes every entry for which `is_doomed(bucket number, entry, age)` returns `true`. Returns how many are left.
    fn take_out<'q>(
        &self,
        quotas: impl Fn(u16) -> Option<&'q Quota>,
        is_doomed: impl Fn(usize, u64, &AtomicU8) -> bool,
    ) -> usize {
        let mut left = 0;
        for (number, bucket) in self.buckets.iter().enumerate() {
            for (slot, age) in bucket.entries.iter().zip(&bucket.ages) {
                let entry = slot.load(Ordering::Acquire);
                if entry == EMPTY {
                    continue;
                }
                let gone = is_doomed(number, entry, age)
                    && slot
                        .compare_exchange(entry, EMPTY, Ordering::AcqRel, Ordering::Relaxed)
                        .is_ok();
                if !gone {
                    left += 1;
                } else if let Some(quota) = quotas(Fdb::port_of(entry)) {
                    quota.give_back();
                }
            }
        }
        left
    }

    /// Lists all entries: address, VLAN, port, age in ticks.
    pub fn dump(&self, tick: u8) -> Vec<(Mac, u16, u16, u8)> {
        let mut out = Vec::new();
        for (number, bucket) in self.buckets.iter().enumerate() {
            for (slot, age) in bucket.entries.iter().zip(&bucket.ages) {
                let entry = slot.load(Ordering::Acquire);
                if entry != EMPTY {
                    let (mac, vlan) = self.unkey(Fdb::key_of(number, entry));
                    let age = tick.wrapping_sub(age.load(Ordering::Relaxed));
                    out.push((mac, vlan, Fdb::port_of(entry), age));
                }
            }
        }
        out
    }

    /// Inverts the bijection: returns a key's address and VLAN.
    fn unkey(&self, key: Key) -> (Mac, u16) {
        let [a, b] = self.seed;
        let unshift = |x: u64, by: u32| x ^ (x >> by) ^ (x.checked_shr(2 * by).unwrap_or(0));
        let mut x = unshift(key.0, 30);
        x = x.wrapping_mul(inverse(0xbf58_476d_1ce4_e5b9)) & KEY_MASK;
        x = unshift(x, 31);
        x = x.wrapping_mul(inverse(b | 1)) & KEY_MASK;
        x = unshift(x, 29) ^ (a & KEY_MASK);
        (Mac::from_le_word(x), (x >> 48) as u16)
    }
}

/// Inverse of an odd number modulo 2^64, by Newton's iteration: each step doubles the number of correct bits.
fn inverse(odd: u64) -> u64 {
    (0..6).fold(odd, |x, _| {
        x.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(x)))
    })
}

#[cfg(all(test, not(loom)))]
mod tests;

#[cfg(all(test, loom))]
mod loom_tests;
