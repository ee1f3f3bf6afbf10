//! Damping of moves, in the forwarding database.

#[cfg(loom)]
use loom::sync::atomic::Ordering;
#[cfg(not(loom))]
use std::sync::atomic::Ordering;

use super::{Bucket, Damping, EMPTY, Fdb, IMPLIED_BITS, Key, Mover, Quota, WAYS};
use crate::bridge::moves::Noted;

impl Fdb {
    /// Mark that tells an address's move record from that of another address that had the same slot.
    pub(super) fn mark(key: Key) -> u16 {
        (key.0 >> IMPLIED_BITS) as u16
    }

    /// Returns the port that the address stays on, if it has moved too often.
    fn home_if_damped(&self, key: Key) -> Option<u16> {
        let (way, _) = Fdb::find(self.bucket(key)?, key.0 >> IMPLIED_BITS)?;
        let place = self.place(key, way);
        self.moves.home_if_damped(place, Fdb::mark(key))
    }

    /// Returns the port that the address stays on although it was seen on `port`, if it has moved too often. A home that
    /// was removed (it has no quota) keeps no address.
    pub(super) fn home_against<'q>(
        &self,
        key: Key,
        port: u16,
        quotas: &impl Fn(u16) -> Option<&'q Quota>,
    ) -> Option<u16> {
        let home = self.home_if_damped(key)?;
        (home != port && quotas(home).is_some()).then_some(home)
    }

    /// If the address has moved too often, refuses it to `port` and moves it back to its home. Returns the home.
    pub(super) fn damp<'q>(
        &self,
        bucket: &Bucket,
        key: Key,
        port: u16,
        quotas: &impl Fn(u16) -> Option<&'q Quota>,
    ) -> Option<u16> {
        let home = self.home_against(key, port, quotas)?;
        if let Some(quota) = quotas(port) {
            quota.events.addresses_damped.add_one();
        }
        self.moves.count_refused();
        let (way, old) = Fdb::find(bucket, key.0 >> IMPLIED_BITS)?;
        let (away, slot) = (Fdb::port_of(old), bucket.entries.get(way)?);
        let quota = quotas(home)?;
        // If the home's quota is used up, the address stays where it is.
        if away != home && quota.take() {
            let back = Fdb::entry(key, home);
            let won = slot.compare_exchange(old, back, Ordering::AcqRel, Ordering::Relaxed);
            match (won.is_ok(), quotas(away)) {
                (true, Some(lost)) => lost.give_back(),
                (true, None) => {}
                (false, _) => quota.give_back(),
            }
        }
        Some(home)
    }

    /// Sets the limit on moves.
    pub fn set_damping(&self, damping: Damping) {
        self.moves.set_damping(damping);
    }

    /// Sets the clock that moves are counted by, seconds. For the control thread, about once a second.
    pub fn set_time_s(&self, time_s: u64) {
        self.moves.set_time_s(time_s);
    }

    /// Returns how often, in total, an address was refused to a port because it had moved too often.
    pub fn moves_refused(&self) -> u64 {
        self.moves.refused()
    }

    /// Removes move records older than the window. For the control thread, at least every hour.
    pub fn forget_old_moves(&self) {
        self.moves.forget_old();
    }

    /// Lists the addresses that have moved within the window.
    pub fn movers(&self) -> Vec<Mover> {
        let recent = self.moves.recent();
        let mover = |(place, noted): (usize, Noted)| {
            let (number, way) = (place / WAYS, place % WAYS);
            let entry = self.buckets.get(number)?.entries.get(way)?;
            let entry = entry.load(Ordering::Acquire);
            let key = Fdb::key_of(number, entry);
            // Another address has the slot now.
            if entry == EMPTY || Fdb::mark(key) != noted.mark {
                return None;
            }
            let (mac, vlan) = self.unkey(key);
            Some(self.moves.mover(noted, mac, vlan, Fdb::port_of(entry)))
        };
        recent.filter_map(mover).collect()
    }

    /// Removes the move records of every address whose home is `port`: addresses must not be moved back to it. For a port
    /// that is removed.
    pub fn forget_moves_of(&self, port: u16) {
        self.moves.forget_home(port);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::bridge::fdb::Learned;
    use crosspoint_packet::Mac;
    use proptest::prelude::*;

    const PORTS: u16 = 4;
    const DAMPING: Damping = Damping {
        moves_max: 5,
        window_s: 180,
    };

    fn damped_table() -> (Fdb, Key) {
        let fdb = Fdb::new(0, [7, 9]);
        fdb.set_damping(DAMPING);
        let key = fdb.key(Mac::new([2, 0, 0, 0, 0, 1]), 1);
        (fdb, key)
    }

    fn no_quota(_: u16) -> Option<&'static Quota> {
        None
    }

    proptest! {
        /// In the window that a first move starts, an address moves five times and then at most once more: back to where
        /// it was before the first. This holds for any ports and any number of claims.
        #[test]
        fn an_address_moves_no_more_often_than_it_may(
            claims in prop::collection::vec((0..PORTS, 0u64..40), 1..400),
        ) {
            let (fdb, key) = damped_table();
            let quotas: Vec<Quota> = (0..PORTS).map(|_| Quota::new(0)).collect();
            let quota = |port: u16| quotas.get(usize::from(port));
            // The port before the first move, the time of that move, and the number of moves.
            let (mut now, mut window) = (0, None::<(u16, u64, u32)>);
            for (port, wait) in claims {
                now += wait;
                fdb.set_time_s(now);
                let before = fdb.lookup(key);
                let expected = fdb.would_learn(key, port, quota);
                prop_assert_eq!(fdb.learn(key, port, 0, quota), expected);
                let (Some(from), after) = (before, fdb.lookup(key)) else { continue };
                window = window.filter(|(_, first, _)| now - first < 180);
                if after != Some(from) {
                    let (home, first, moves) = window.unwrap_or((from, now, 0));
                    prop_assert!(moves < 5 || (moves == 5 && after == Some(home)), "{} moves", moves);
                    window = Some((home, first, moves + 1));
                }
                let used: u32 = quotas.iter().map(Quota::used).sum();
                prop_assert_eq!(used, 1);
            }
        }

        /// An address that moves rarely is always where it was last seen.
        #[test]
        fn a_guest_that_migrates_is_not_held_up(moves in prop::collection::vec((0..PORTS, 45u64..10_000), 1..100)) {
            let (fdb, key) = damped_table();
            let mut now = 0;
            for (port, wait) in moves {
                now += wait;
                fdb.set_time_s(now);
                fdb.learn(key, port, 0, no_quota);
                prop_assert_eq!(fdb.lookup(key), Some(port));
            }
        }
    }

    #[test]
    fn a_thief_does_not_keep_the_address_and_is_named() {
        let (fdb, key) = damped_table();
        let (owner, thief) = (Quota::new(0), Quota::new(0));
        let quota = |port| Some(if port == 0 { &owner } else { &thief });
        fdb.learn(key, 0, 0, quota);
        // The owner does not answer the last claim, so the thief has the last move.
        for claim in 0..5 {
            fdb.learn(key, u16::from(claim % 2 == 0), 0, quota);
        }
        assert_eq!(fdb.lookup(key), Some(1));
        assert_eq!(fdb.learn(key, 2, 0, quota), Learned::Damped(0));
        assert_eq!(fdb.lookup(key), Some(0));
        assert_eq!(fdb.learn(key, 1, 0, quota), Learned::Damped(0));
        assert_eq!((owner.used(), thief.used()), (1, 0));
        assert_eq!(
            (
                thief.events.addresses_moved.get(),
                thief.events.addresses_damped.get(),
                fdb.moves_refused()
            ),
            (3, 2, 2)
        );
        let [mover] = fdb.movers()[..] else {
            panic!("one address has moved")
        };
        assert!(mover.is_damped && (mover.home, mover.other, mover.port) == (0, 1, 0));
        // The home port is removed; then its number is reused.
        let without_home = |port| (port != 0).then_some(&thief);
        assert_eq!(fdb.would_learn(key, 1, without_home), Learned::Moved(0));
        fdb.forget_moves_of(0);
        assert!(fdb.movers().is_empty());
        assert_eq!(fdb.learn(key, 1, 0, quota), Learned::Moved(0));
    }
}
