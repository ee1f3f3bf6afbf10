//! Storm control: limits the flooded copies of one port's frames, per second.
//!
//! A flooded frame costs a worker one copy per member of the VLAN. So the limit counts copies, not frames: a port with a
//! limit of 100 000 may send 10 000 broadcasts a second to ten members, or 100 to a thousand.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use crosspoint_packet::{DropReason, Mac};

/// Smallest burst of copies, however low the limit: one frame to every port that a switch can have.
const BURST_COPIES_MIN: u64 = crate::MAX_PORTS as u64;
/// A bucket holds the copies of a second divided by this.
const BURSTS_PER_SECOND: u64 = 10;
/// Most refills of a bucket per second: a refill is a locked operation.
const REFILLS_PER_SECOND: u64 = 10_000;

/// Why a frame is flooded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FloodKind {
    /// The destination is the broadcast address.
    Broadcast,
    /// The destination is another group address.
    Multicast,
    /// No port is known for the destination.
    UnknownUnicast,
}

impl FloodKind {
    /// Returns why a frame for `dst` is flooded.
    pub fn of(dst: Mac) -> FloodKind {
        match dst {
            Mac::BROADCAST => FloodKind::Broadcast,
            group if group.is_group() => FloodKind::Multicast,
            _ => FloodKind::UnknownUnicast,
        }
    }

    /// Returns the drop reason of frames beyond the limit.
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
    /// Limit for broadcasts.
    pub broadcast: u32,
    /// Limit for other group addresses.
    pub multicast: u32,
    /// Limit for destinations that are not in the forwarding database.
    pub unknown_unicast: u32,
}

impl StormLimits {
    /// Returns whether nothing is limited.
    pub fn is_unlimited(&self) -> bool {
        *self == StormLimits::default()
    }
}

/// Policer of one port: three token buckets, shared by all workers.
#[derive(Debug)]
pub struct StormControl {
    limits: StormLimits,
    buckets: [Bucket; 3],
}

#[derive(Debug)]
struct Bucket {
    /// Copies per second; 0 for no limit.
    rate: u64,
    /// Most tokens that it holds.
    capacity: i64,
    /// Cycles of the time stamp counter in a second.
    hz: u64,
    /// Copies that may be made now; negative if the last frame had more copies than were left.
    tokens: AtomicI64,
    /// When it was last refilled, cycles.
    refilled_at: AtomicU64,
}

impl StormControl {
    /// Creates full buckets for these limits; `hz` is the time stamp counter's frequency and `now` its value.
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

    /// Returns the limits.
    pub fn limits(&self) -> StormLimits {
        self.limits
    }

    /// Returns whether a frame may be flooded into `copies` copies at `now`, cycles, and if so takes the tokens. A frame
    /// with more copies than tokens left passes too, and later frames are refused until the debt is refilled: so a frame
    /// with any number of copies can pass.
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

    /// Adds the tokens earned since the last refill. If several workers refill at once, one of them does it.
    fn refill(&self, now: u64) {
        let before = self.refilled_at.load(Ordering::Relaxed);
        let elapsed = now.wrapping_sub(before);
        // A worker that read its clock before another one refilled sees a huge time, not a negative one.
        if elapsed < self.hz / REFILLS_PER_SECOND || elapsed > u64::MAX / 2 {
            return;
        }
        let fresh = u128::from(elapsed) * u128::from(self.rate) / u128::from(self.hz);
        if fresh == 0 {
            return;
        }
        // Only the time of whole copies is used up: the rest counts for the next refill.
        let used = (fresh * u128::from(self.hz) / u128::from(self.rate)) as u64;
        let at = before.wrapping_add(used);
        let fresh = i64::try_from(fresh).unwrap_or(i64::MAX);
        let won =
            self.refilled_at
                .compare_exchange(before, at, Ordering::Relaxed, Ordering::Relaxed);
        if won.is_ok() {
            let filled = |tokens: i64| Some(tokens.saturating_add(fresh).min(self.capacity));
            // The function never returns `None`, so this cannot fail.
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
        /// Over any time and pattern, at most as many copies pass as the bucket holds, plus what the rate allows, plus
        /// one frame; a sender that asks without pause gets no less than the rate.
        #[test]
        fn copies_keep_to_the_rate(
            rate in prop_oneof![1u32..1_000, 1_000u32..10_000_000],
            steps in prop::collection::vec(
                (prop_oneof![0u64..3_000_000, 0u64..20_000_000_000], 1usize..1000),
                1..400,
            ),
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
