//! Completion times as a histogram that can be asked for quantiles and for Prometheus buckets.

use hdrhistogram::Histogram;

use crate::status::LatencyStatus;

/// Upper bounds of the exported buckets, nanoseconds. They never change: Prometheus cannot add up histograms whose
/// bounds differ.
pub const BOUNDS_NS: [u64; 15] = [
    250, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000,
    2_000_000, 5_000_000, 10_000_000,
];

/// Longer times count as this one. The data path's last bucket begins at some 20 s.
const LONGEST_NS: u64 = 100_000_000_000;
/// The data path knows times to within an eighth, so two digits lose nothing, and a histogram takes 30 KiB.
const DIGITS: u8 = 2;

/// The times of one queue, or of several once they are added up.
#[derive(Debug)]
pub struct Completion {
    /// Absent where nothing was measured, which is most queues of a large host.
    times_ns: Option<Histogram<u64>>,
    sum_ns: f64,
}

impl Completion {
    /// Reads what the data path counted.
    pub fn new(latency: &LatencyStatus) -> Completion {
        let mut times_ns = None;
        for &(middle_ns, count) in latency.buckets_ns.iter().filter(|(_, count)| *count > 0) {
            // The bounds are constants that hdrhistogram accepts, so that this is never `None`.
            if times_ns.is_none() {
                times_ns = Histogram::new_with_bounds(1, LONGEST_NS, DIGITS).ok();
            }
            if let Some(times_ns) = &mut times_ns {
                times_ns.saturating_record_n(middle_ns, count);
            }
        }
        let sum_ns = if latency.sum_ns.is_finite() {
            latency.sum_ns.max(0.0)
        } else {
            0.0
        };
        Completion { times_ns, sum_ns }
    }

    /// How many times were measured.
    pub fn count(&self) -> u64 {
        self.times_ns.as_ref().map_or(0, Histogram::len)
    }

    /// Their sum.
    pub fn sum_seconds(&self) -> f64 {
        self.sum_ns / 1e9
    }

    /// The time that a share of the measurements (0.99, say) does not exceed; absent where there are none.
    pub fn quantile_ns(&self, quantile: f64) -> Option<u64> {
        let times_ns = self.times_ns.as_ref()?;
        Some(times_ns.value_at_quantile(quantile))
    }

    /// For every bound of [`BOUNDS_NS`], how many measurements do not exceed it.
    pub fn cumulative(&self) -> [u64; BOUNDS_NS.len()] {
        let mut counts = [0; BOUNDS_NS.len()];
        let Some(times_ns) = &self.times_ns else {
            return counts;
        };
        // One walk over the histogram, where asking it once per bound would be fifteen.
        for step in times_ns.iter_recorded() {
            let time_ns = times_ns.lowest_equivalent(step.value_iterated_to());
            let bound = BOUNDS_NS.partition_point(|bound_ns| *bound_ns < time_ns);
            if let Some(count) = counts.get_mut(bound) {
                *count += step.count_at_value();
            }
        }
        let mut below = 0;
        for count in &mut counts {
            below += *count;
            *count = below;
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn latency(buckets_ns: &[(u64, u64)]) -> LatencyStatus {
        let sum_ns = buckets_ns.iter().map(|(ns, n)| (ns * n) as f64).sum();
        LatencyStatus {
            buckets_ns: buckets_ns.to_vec(),
            sum_ns,
        }
    }

    proptest! {
        #[test]
        fn counts_at_every_bound_are_right_to_within_a_hundredth_of_the_bound(
            buckets in prop::collection::vec((0u64..30_000_000, 0u64..1000), 0..60),
        ) {
            let completion = Completion::new(&latency(&buckets));
            let not_above = |ns: u64| buckets.iter().filter(|b| b.0 <= ns).map(|b| b.1).sum::<u64>();
            let counts = completion.cumulative();
            for (bound_ns, count) in BOUNDS_NS.iter().zip(counts) {
                prop_assert!(not_above(*bound_ns) <= count, "{} at {}", count, bound_ns);
                prop_assert!(count <= not_above(bound_ns + bound_ns / 100), "{} at {}", count, bound_ns);
            }
            prop_assert!(counts.is_sorted());
            prop_assert_eq!(completion.count(), not_above(u64::MAX));
        }

        #[test]
        fn quantiles_are_of_values_that_were_measured(
            buckets in prop::collection::vec((1u64..30_000_000, 1u64..1000), 1..60), q in 0.0f64..=1.0,
        ) {
            let ns = Completion::new(&latency(&buckets)).quantile_ns(q).expect("there are some");
            prop_assert!(buckets.iter().any(|b| b.0.abs_diff(ns) <= b.0 / 100 + 1), "{}", ns);
        }

        #[test]
        fn nothing_that_a_status_can_hold_makes_it_panic(
            buckets in prop::collection::vec(any::<(u64, u64)>(), 0..20), sum_ns: f64, q: f64,
        ) {
            let completion = Completion::new(&LatencyStatus { buckets_ns: buckets, sum_ns });
            prop_assert!(completion.sum_seconds() >= 0.0 && completion.sum_seconds().is_finite());
            completion.quantile_ns(q);
            prop_assert!(completion.cumulative().last() <= Some(&completion.count()));
        }
    }

    #[test]
    fn a_queue_without_measurements_has_no_quantiles() {
        let completion = Completion::new(&LatencyStatus::default());
        assert_eq!((completion.count(), completion.sum_seconds()), (0, 0.0));
        assert_eq!(completion.quantile_ns(0.5), None);
        assert_eq!(completion.cumulative(), [0; BOUNDS_NS.len()]);
    }
}
