//! Storm control: into how many copies the frames of one port may be flooded, per second.
//!
//! One frame that is flooded costs a worker as many copies as the VLAN has members. So the limit counts copies, not
//! frames: a port with a limit of 100 000 may send 10 000 broadcasts a second to ten members, or 100 to a thousand.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use crosspoint_packet::{DropReason, Mac};

/// Copies that may follow each other at once, however low the limit: one frame for every port that a switch can have.
const BURST_COPIES_MIN: u64 = crate::MAX_PORTS as u64;
/// A bucket holds the copies of one part in so many of a second.
const BURSTS_PER_SECOND: u64 = 10;
/// A bucket is refilled this many times a second at most: refilling is a locked operation.
const REFILLS_PER_SECOND: u64 = 10_000;

/// Why a frame is flooded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FloodKind {
    /// Its destination is the broadcast address.
    Broadcast,
    /// Its destination is another group address.
    Multicast,
    /// No port is known for its destination.
    UnknownUnicast,
}

impl FloodKind {
    /// Why a frame for `dst` is flooded.
    pub fn of(dst: Mac) -> FloodKind {
        match dst {
            Mac::BROADCAST => FloodKind::Broadcast,
            group if group.is_group() => FloodKind::Multicast,
            _ => FloodKind::UnknownUnicast,
        }
    }

    /// The reason under which frames beyond the limit are dropped.
    pub fn drop_reason(self) -> DropReason {
        match self {
            FloodKind::Broadcast => DropReason::StormBroadcast,
            FloodKind::Multicast => DropReason::StormMulticast,
            FloodKind::UnknownUnicast => DropReason::StormUnknownUnicast,
        }
    }
}

/// Limits of one port, in flooded copies per second; 0 for no limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StormLimits {
    /// Of broadcasts.
    pub broadcast: u32,
    /// Of other group addresses.
    pub multicast: u32,
    /// Of destinations that are not in the forwarding database.
    pub unknown_unicast: u32,
}

impl StormLimits {
    /// Whether nothing is limited.
    pub fn is_unlimited(&self) -> bool {
        *self == StormLimits::default()
    }
}

/// The limits of one port at work: three token buckets, shared by all workers.
#[derive(Debug)]
pub struct StormControl {
    limits: StormLimits,
    buckets: [Bucket; 3],
}

#[derive(Debug)]
struct Bucket {
    /// Copies per second; 0 for no limit.
    rate: u64,
    /// Most copies that it holds.
    capacity: i64,
    /// Cycles of the time stamp counter in a second.
    hz: u64,
    /// Copies that may be made now; less than none where the last frame had more copies than were left.
    tokens: AtomicI64,
    /// When it was last refilled, cycles.
    refilled_at: AtomicU64,
}

impl StormControl {
    /// Buckets for these limits, full; `hz` is the time stamp counter's frequency and `now` its value.
    pub fn new(limits: StormLimits, hz: f64, now: u64) -> StormControl {
        let bucket = |rate: u32| Bucket::new(rate.into(), hz.max(1.0) as u64, now);
        StormControl {
            limits,
            buckets: [
                bucket(limits.broadcast),
                bucket(limits.multicast),
                bucket(limits.unknown_unicast),
            ],
        }
    }

    /// The limits.
    pub fn limits(&self) -> StormLimits {
        self.limits
    }

    /// Whether a frame may be flooded into `copies` at `now`, cycles. If so they are taken off. A frame with more copies
    /// than are left passes, and the next ones wait until the debt is paid: so any frame passes some time.
    pub fn allows(&self, kind: FloodKind, copies: usize, now: u64) -> bool {
        self.buckets[kind as usize].take(copies as i64, now)
    }
}

impl Bucket {
    fn new(rate: u64, hz: u64, now: u64) -> Bucket {
        let capacity = (rate / BURSTS_PER_SECOND).max(BURST_COPIES_MIN) as i64;
        Bucket {
            rate,
            capacity,
            hz,
            tokens: AtomicI64::new(capacity),
            refilled_at: AtomicU64::new(now),
        }
    }

    fn take(&self, copies: i64, now: u64) -> bool {
        if self.rate == 0 {
            return true;
        }
        self.refill(now);
        if self.tokens.load(Ordering::Relaxed) <= 0 {
            return false;
        }
        self.tokens.fetch_sub(copies, Ordering::Relaxed);
        true
    }

    /// Adds what has come since the last time. One of the workers that come at once does it.
    fn refill(&self, now: u64) {
        let before = self.refilled_at.load(Ordering::Relaxed);
        let elapsed = now.wrapping_sub(before);
        // A worker that read its clock before another one refilled sees a time that is long, not short.
        if elapsed < self.hz / REFILLS_PER_SECOND || elapsed > u64::MAX / 2 {
            return;
        }
        // No more than fills the bucket from any debt that one frame can make.
        let elapsed = elapsed.min(self.hz.saturating_mul(2));
        let fresh = (u128::from(elapsed) * u128::from(self.rate) / u128::from(self.hz)) as u64;
        if fresh == 0 {
            return;
        }
        // Only the time that whole copies took: the rest counts for the next one.
        let used = (u128::from(fresh) * u128::from(self.hz) / u128::from(self.rate)) as u64;
        let at = match now.wrapping_sub(before) == elapsed {
            true => before.wrapping_add(used),
            false => now,
        };
        let won =
            self.refilled_at
                .compare_exchange(before, at, Ordering::Relaxed, Ordering::Relaxed);
        if won.is_ok() {
            let filled = |tokens: i64| Some(tokens.saturating_add(fresh as i64).min(self.capacity));
            // The function never answers `None`, so this cannot fail.
            let _ = self
                .tokens
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, filled);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HZ: u64 = 1_000_000_000;

    proptest! {
        /// Over any time, whatever comes when, no more copies pass than the bucket holds, the rate allows, and one frame
        /// has; and one that asks without pause gets no less than the rate.
        #[test]
        fn copies_keep_to_the_rate(
            rate in 1_000u32..10_000_000,
            steps in prop::collection::vec((0u64..3_000_000, 1usize..1000), 1..400),
        ) {
            let limits = StormLimits { broadcast: rate, ..StormLimits::default() };
            let control = StormControl::new(limits, HZ as f64, 7);
            let (mut now, mut passed, mut asked) = (7u64, 0i128, 0i128);
            for (time, copies) in steps {
                now += time;
                asked += copies as i128;
                if control.allows(FloodKind::Broadcast, copies, now) {
                    passed += copies as i128;
                }
            }
            let capacity = control.buckets[0].capacity as i128;
            let earned = i128::from(now - 7) * i128::from(rate) / i128::from(HZ);
            prop_assert!(passed <= capacity + earned + 1000, "{} of {} and {}", passed, capacity, earned);
            prop_assert!(passed >= asked.min(capacity.min(earned)) - 1000, "{} of {}", passed, asked);
        }
    }

    #[test]
    fn kinds_have_limits_of_their_own_and_none_is_no_limit() {
        let limits = StormLimits {
            multicast: 1000,
            ..StormLimits::default()
        };
        let control = StormControl::new(limits, HZ as f64, 0);
        assert!((0..100).all(|_| control.allows(FloodKind::Broadcast, 1000, 0)));
        assert!(control.allows(FloodKind::Multicast, 1024, 0));
        assert!(!control.allows(FloodKind::Multicast, 1, 0));
        assert!(control.allows(FloodKind::UnknownUnicast, 1, 0));
        assert!(control.allows(FloodKind::Multicast, 1, HZ));
    }
}
