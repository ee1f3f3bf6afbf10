//! Buckets in Prometheus' form: counts of the values that do not exceed each bound.
//!
//! The bounds never change, whatever the data path's own buckets are: Prometheus cannot add up histograms with different
//! bounds.

use crosspoint_model::status::LatencyStatus;

/// Bounds of completion times, nanoseconds.
pub const BOUNDS_NS: [u64; 15] = [
    250, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000,
    2_000_000, 5_000_000, 10_000_000,
];
/// Bounds of the time between two poll iterations of a worker, nanoseconds: from 100 ms on it is a stall.
pub const GAP_BOUNDS_NS: [u64; 18] = [
    250,
    500,
    1_000,
    2_000,
    5_000,
    10_000,
    20_000,
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    2_000_000,
    5_000_000,
    10_000_000,
    20_000_000,
    50_000_000,
    100_000_000,
];
/// Bounds of the sizes of bursts, frames. The data path has the same.
pub const BURST_BOUNDS: [u64; 7] = crosspoint_engine::observe::BurstSizes::BOUNDS;

/// For each bound the number of values that do not exceed it, and the total. Real counts do not overflow; the sums saturate,
/// so that wrong ones cannot panic.
pub(super) fn cumulative<const N: usize>(
    values: &[(u64, u64)],
    bounds: &[u64; N],
) -> ([u64; N], u64) {
    let (mut counts, mut above) = ([0u64; N], 0u64);
    for (value, count) in values {
        let bound = bounds.partition_point(|bound| bound < value);
        let at = counts.get_mut(bound).unwrap_or(&mut above);
        *at = at.saturating_add(*count);
    }
    add_up(counts, above)
}

/// Like [`cumulative`], for counts by bound.
pub(super) fn add_up<const N: usize>(mut counts: [u64; N], above: u64) -> ([u64; N], u64) {
    let mut below = 0u64;
    for count in &mut counts {
        below = below.saturating_add(*count);
        *count = below;
    }
    (counts, below.saturating_add(above))
}

/// A sum of times, seconds.
pub(super) fn sum_seconds(latency: &LatencyStatus) -> f64 {
    match latency.sum_ns.is_finite() {
        true => latency.sum_ns.max(0.0) / 1e9,
        false => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn counts_at_every_bound_are_right(
            values in prop::collection::vec((0u64..200_000_000, 0u64..1000), 0..60),
        ) {
            let not_above = |ns: u64| values.iter().filter(|v| v.0 <= ns).map(|v| v.1).sum::<u64>();
            let (counts, count) = cumulative(&values, &GAP_BOUNDS_NS);
            for (bound, count) in GAP_BOUNDS_NS.iter().zip(counts) {
                prop_assert_eq!(count, not_above(*bound), "at {}", bound);
            }
            prop_assert_eq!(count, not_above(u64::MAX));
        }

        #[test]
        fn nothing_that_a_status_can_hold_makes_them_panic(
            buckets_ns in prop::collection::vec(any::<(u64, u64)>(), 0..20), sum_ns: f64,
        ) {
            let (counts, count) = cumulative(&buckets_ns, &BOUNDS_NS);
            prop_assert!(counts.is_sorted() && counts.last() <= Some(&count));
            let sum = sum_seconds(&LatencyStatus { buckets_ns, sum_ns });
            prop_assert!(sum >= 0.0 && sum.is_finite());
        }
    }
}
