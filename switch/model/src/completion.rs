//! Completion times as a histogram with quantiles.

use hdrhistogram::Histogram;

use crate::status::LatencyStatus;

/// Longer times are recorded as this. The data path's last bucket begins at about 20 s.
const LONGEST_NS: u64 = 100_000_000_000;
/// The data path's buckets are an eighth wide, so two digits lose nothing; a histogram takes 30 KiB.
const DIGITS: u8 = 2;

/// The times of one queue, or of several added up.
#[derive(Debug)]
pub struct Completion {
    /// Absent if nothing was measured, which holds for most queues of a large host.
    times_ns: Option<Histogram<u64>>,
}

impl Completion {
    /// Reads what the data path counted.
    pub fn new(latency: &LatencyStatus) -> Completion {
        let mut times_ns = None;
        for &(middle_ns, count) in latency.buckets_ns.iter().filter(|(_, count)| *count > 0) {
            // hdrhistogram accepts these constant bounds, so this is never `None`.
            if times_ns.is_none() {
                times_ns = Histogram::new_with_bounds(1, LONGEST_NS, DIGITS).ok();
            }
            if let Some(times_ns) = &mut times_ns {
                times_ns.saturating_record_n(middle_ns, count);
            }
        }
        Completion { times_ns }
    }

    /// The number of measured times.
    pub fn count(&self) -> u64 {
        self.times_ns.as_ref().map_or(0, Histogram::len)
    }

    /// The time that this share of the measurements (0.99, say) does not exceed; absent if there are none.
    pub fn quantile_ns(&self, quantile: f64) -> Option<u64> {
        let times_ns = self.times_ns.as_ref()?;
        Some(times_ns.value_at_quantile(quantile))
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
            prop_assert_eq!(completion.quantile_ns(q).is_some(), completion.count() > 0);
        }
    }

    #[test]
    fn a_queue_without_measurements_has_no_quantiles() {
        let completion = Completion::new(&LatencyStatus::default());
        assert_eq!((completion.count(), completion.quantile_ns(0.5)), (0, None));
    }
}
