//! Addresses that the control thread puts into the forwarding database.

#[cfg(loom)]
use loom::sync::atomic::Ordering;
#[cfg(not(loom))]
use std::sync::atomic::Ordering;

use super::{EMPTY, Fdb, IMPLIED_BITS, Key, Quota, WAYS};

impl Fdb {
    /// Puts the address on `port`, seen at `tick`, wherever it was before; its moves are forgotten, and the port's limit
    /// does not apply. Returns `false` if there is no room. For the control thread; it may have to be called again if
    /// workers learn the address elsewhere at the same time.
    pub fn put<'q>(
        &self,
        key: Key,
        port: u16,
        tick: u8,
        quotas: impl Fn(u16) -> Option<&'q Quota>,
    ) -> bool {
        let (tag, new) = (key.0 >> IMPLIED_BITS, Fdb::entry(key, port));
        let Some(bucket) = self.bucket(key) else {
            return false;
        };
        let give_back = |port| {
            if let Some(quota) = quotas(port) {
                quota.give_back();
            }
        };
        // A failed exchange means that another thread changed the bucket: search again, a few times.
        for _ in 0..WAYS {
            let free = || {
                let is_free = |way: &usize| {
                    let slot = bucket.entries.get(*way);
                    slot.is_some_and(|slot| slot.load(Ordering::Relaxed) == EMPTY)
                };
                Some((Fdb::ways(tag).find(is_free)?, EMPTY))
            };
            let Some((way, old)) = Fdb::find(bucket, tag).or_else(free) else {
                return false;
            };
            let (Some(slot), Some(age)) = (bucket.entries.get(way), bucket.ages.get(way)) else {
                return false;
            };
            age.store(tick, Ordering::Relaxed);
            if old == new {
                return true;
            }
            self.moves.forget(self.place(key, way));
            if let Some(quota) = quotas(port) {
                quota.count();
            }
            let won = slot.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed);
            match (won, old) {
                (Err(_), _) => give_back(port),
                (Ok(_), EMPTY) => {
                    self.drop_twins(bucket, way, new, &give_back);
                    return true;
                }
                (Ok(_), old) => {
                    give_back(Fdb::port_of(old));
                    return true;
                }
            }
        }
        false
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::bridge::fdb::Learned;
    use crosspoint_packet::Mac;

    #[test]
    fn an_address_is_put_on_a_port_wherever_it_was_and_whatever_its_limit() {
        let fdb = Fdb::new(0, [7, 9]);
        let quotas = [Quota::new(1), Quota::new(0)];
        let quota = |port: u16| quotas.get(usize::from(port));
        let used = || quotas.each_ref().map(Quota::used);
        let key = |last| fdb.key(Mac::new([2, 0, 0, 0, 0, last]), 5);
        assert_eq!(fdb.learn(key(1), 0, 0, quota), Learned::New);
        assert_eq!(fdb.learn(key(2), 1, 0, quota), Learned::New);
        assert!(fdb.put(key(2), 0, 3, quota));
        assert_eq!((used(), fdb.lookup(key(2))), ([2, 0], Some(0)));
        // Again, which makes it young.
        assert!(fdb.put(key(2), 0, 9, quota));
        assert_eq!((used(), fdb.last_seen(key(2), 9)), ([2, 0], Some((0, 0))));
        assert!(fdb.put(key(3), 1, 9, quota));
        assert_eq!(used(), [2, 1]);
        assert_eq!(fdb.sweep(9, quota, |_, age| age > 5), 2);
        assert_eq!(used(), [1, 1]);
    }

    #[test]
    fn an_address_finds_no_room_in_a_bucket_that_is_full_of_others() {
        let fdb = Fdb::new(0, [7, 9]);
        let first = fdb.key(Mac::new([2, 0, 0, 0, 0, 0]), 5);
        let all = (0..).map(|n: u32| {
            let [a, b, c, d] = n.to_be_bytes();
            fdb.key(Mac::new([2, 0, a, b, c, d]), 5)
        });
        let same = |key: &Key| fdb.bucket_number(*key) == fdb.bucket_number(first);
        let put: Vec<bool> = all
            .filter(same)
            .take(WAYS + 1)
            .map(|key| fdb.put(key, 1, 0, |_| None))
            .collect();
        assert_eq!(put.iter().filter(|is| **is).count(), WAYS);
        assert_eq!(put.last(), Some(&false));
    }
}
