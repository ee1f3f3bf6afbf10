//! The rate of a port's new connections.
//!
//! A clock of virtual time for each direction (GCRA, ITU-T I.371), as in [`meter`](crate::stages::meter): what others begin does
//! not use up what the guest may begin. A connection is paid for when it is in the table, so that one which is refused costs
//! nothing: a flood beyond the rate only reads the clock. Several workers that begin a connection at the same time may together
//! exceed the rate by one connection each.

use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::utils::CachePadded;

use super::rules::Direction;

/// Fractions of a cycle of the time stamp counter in which virtual time is counted. At 5 GHz the count lasts for seven years.
const TICKS_PER_CYCLE: u64 = 16;

/// The limit of one port. In cache lines of its own: written for each connection that begins, if there is a limit.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(super) struct ConnectionRate {
    /// Ticks that one connection takes; 0 for no limit.
    cost: AtomicU64,
    /// Ticks that a pause is worth at most: what the connections of a second take.
    depth: AtomicU64,
    /// By direction, in and out: until when the connections that have begun are paid for, ticks.
    paid_until: [AtomicU64; 2],
    /// Connections that were refused. Not in the line that all workers read.
    refused: CachePadded<AtomicU64>,
}

impl ConnectionRate {
    /// Changes the limit: connections a second, in each direction; 0 for none. `hz`: cycles of the time stamp counter in a
    /// second. What was earned by a pause until now stays.
    pub(super) fn set(&self, per_s: u32, hz: f64) {
        let ticks = (hz.max(1.0) as u64).saturating_mul(TICKS_PER_CYCLE);
        let cost = ticks
            .checked_div(per_s.into())
            .map_or(0, |cost| cost.max(1));
        let depth = cost.saturating_mul(per_s.into());
        self.depth.store(depth, Ordering::Relaxed);
        self.cost.store(cost, Ordering::Relaxed);
    }

    /// Returns whether there is a limit: only then the time has to be known.
    pub(super) fn is_limited(&self) -> bool {
        self.cost.load(Ordering::Relaxed) != 0
    }

    /// Returns whether another connection may begin at `now`, cycles.
    pub(super) fn has_room(&self, direction: Direction, now: u64) -> bool {
        let paid_until = self.paid_until(direction).load(Ordering::Relaxed);
        let from = paid_until.max(self.floor(now));
        let until = from.saturating_add(self.cost.load(Ordering::Relaxed));
        until <= ticks_of(now)
    }

    /// Pays for a connection that has begun.
    pub(super) fn pay(&self, direction: Direction, now: u64) {
        let (paid_until, floor) = (self.paid_until(direction), self.floor(now));
        if paid_until.load(Ordering::Relaxed) < floor {
            paid_until.fetch_max(floor, Ordering::Relaxed);
        }
        paid_until.fetch_add(self.cost.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    pub(super) fn note_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// No more than `depth` ticks before `now` are left to be used later.
    fn floor(&self, now: u64) -> u64 {
        ticks_of(now).saturating_sub(self.depth.load(Ordering::Relaxed))
    }

    fn paid_until(&self, direction: Direction) -> &AtomicU64 {
        let [of_in, of_out] = &self.paid_until;
        match direction {
            Direction::In => of_in,
            Direction::Out => of_out,
        }
    }
}

fn ticks_of(cycles: u64) -> u64 {
    cycles.wrapping_mul(TICKS_PER_CYCLE)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HZ: u64 = 2_600_000_000;

    fn limit(per_s: u32) -> ConnectionRate {
        let rate = ConnectionRate::default();
        rate.set(per_s, HZ as f64);
        rate
    }

    /// Begins connections at these times, cycles. Returns how many of them may begin.
    fn begun(rate: &ConnectionRate, direction: Direction, times: impl Iterator<Item = u64>) -> u64 {
        let begins = |now: &u64| {
            let has_room = !rate.is_limited() || rate.has_room(direction, *now);
            if has_room {
                rate.pay(direction, *now);
            }
            has_room
        };
        times.filter(begins).count() as u64
    }

    proptest! {
        /// Whatever the times of the attempts: in any period, no more connections begin than those of the rate and of one
        /// second's pause; and as many as the rate allows, if there are attempts all the time.
        #[test]
        fn connections_keep_to_the_rate(
            per_s in 1u32..=2_000_000,
            gaps in prop::collection::vec(0..HZ / 500, 1..2000),
            begins_at in 2 * HZ..1 << 50,
        ) {
            let rate = limit(per_s);
            let times: Vec<u64> = gaps.iter().scan(begins_at, |now, gap| { *now += gap; Some(*now) }).collect();
            let lasts = times.last().unwrap() - begins_at;
            let most = u128::from(per_s) + u128::from(lasts) * u128::from(per_s) / u128::from(HZ) + 2;
            let count = begun(&rate, Direction::Out, times.into_iter());
            prop_assert!(u128::from(count) <= most, "{count} of {most}");
        }
    }

    /// A flood of a million SYN packets a second begins a thousand connections a second, and the other direction has its own
    /// thousand. A pause of a minute is worth one second.
    #[test]
    fn a_flood_begins_as_many_connections_as_the_rate_and_no_more() {
        let rate = limit(1000);
        let flood = |from_s: u64, seconds: u64| {
            (0..seconds * 1_000_000).map(move |number| from_s * HZ + number * (HZ / 1_000_000))
        };
        let first = begun(&rate, Direction::Out, flood(100, 3));
        assert!((3999..=4001).contains(&first), "{first}");
        let others = (0..1000).map(|number| 102 * HZ + number * (HZ / 1000));
        assert_eq!(begun(&rate, Direction::In, others), 1000);
        let later = begun(&rate, Direction::Out, flood(163, 1));
        assert!((1999..=2001).contains(&later), "{later}");
    }

    /// Without a limit all begin; a limit that is set while the switch runs counts from then on.
    #[test]
    fn a_limit_that_changes_holds_at_once() {
        let rate = ConnectionRate::default();
        assert!(!rate.is_limited());
        let burst = |from_s: u64| (0..500).map(move |number| from_s * HZ + number);
        assert_eq!(begun(&rate, Direction::In, burst(9)), 500);
        rate.set(100, HZ as f64);
        assert!(rate.is_limited());
        assert_eq!(begun(&rate, Direction::In, burst(10)), 100);
        rate.set(200, HZ as f64);
        assert_eq!(begun(&rate, Direction::In, burst(11)), 200);
        rate.set(0, HZ as f64);
        assert_eq!(begun(&rate, Direction::In, burst(11)), 500);
    }
}
