use crate::observe::counters::Counter;

/// Buckets per power of two, as a logarithm: values are accurate to within an eighth.
const STEPS_LOG2: u32 = 3;
const STEPS: u64 = 1 << STEPS_LOG2;
/// Values from 2^36 cycles (some 20 s) on share the last bucket.
const MAX_LOG2: u32 = 36;
const BUCKETS: usize = ((MAX_LOG2 - STEPS_LOG2 + 1) as usize) << STEPS_LOG2;

/// A histogram with one writer: log-linear like HDR histograms, but of fixed size and made of plain counters, so that
/// recording is one add and the reader needs no synchronization.
#[derive(Clone, Debug)]
pub struct Latency {
    buckets: [Counter; BUCKETS],
    sum: Counter,
}

impl Default for Latency {
    fn default() -> Latency {
        Latency {
            buckets: std::array::from_fn(|_| Counter::default()),
            sum: Counter::default(),
        }
    }
}

impl Latency {
    /// Records `n` values of `cycles` each.
    #[inline(always)]
    pub fn record(&self, cycles: u64, n: u64) {
        self.buckets[Latency::bucket(cycles)].add(n);
        self.sum.add(cycles.wrapping_mul(n));
    }

    #[inline(always)]
    fn bucket(cycles: u64) -> usize {
        if cycles < STEPS {
            return cycles as usize;
        }
        let log2 = cycles.ilog2();
        let step = (cycles >> (log2 - STEPS_LOG2)) - STEPS;
        let index = ((log2 - STEPS_LOG2 + 1) as usize) << STEPS_LOG2 | step as usize;
        index.min(BUCKETS - 1)
    }

    /// Returns each non-empty bucket: its middle, in cycles, and its number of values.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> {
        let counts = (0..).zip(&self.buckets).map(|(i, n)| (i, n.get()));
        counts.filter(|(_, n)| *n > 0).map(|(i, n)| (middle(i), n))
    }

    /// Sum of all values, cycles.
    pub fn sum(&self) -> u64 {
        self.sum.get()
    }
}

/// Returns the middle of bucket `index`, cycles.
fn middle(index: u64) -> u64 {
    let (octave, step) = (index >> STEPS_LOG2, index & (STEPS - 1));
    match octave {
        0 => step,
        _ => ((2 * (STEPS + step) + 1) << (octave - 1)) / 2,
    }
}

/// Sum of several histograms at one moment, as plain numbers.
#[derive(Clone, Debug)]
pub struct Latencies {
    buckets: [u64; BUCKETS],
    sum: u64,
}

impl Default for Latencies {
    fn default() -> Latencies {
        Latencies {
            buckets: [0; BUCKETS],
            sum: 0,
        }
    }
}

impl Latencies {
    /// Returns the sum of `all`.
    pub fn of<'l>(all: impl IntoIterator<Item = &'l Latency>) -> Latencies {
        let mut sum = Latencies::default();
        // Most workers never see most queues; this avoids reading two kilobytes for each of those.
        for one in all.into_iter().filter(|one| one.sum() > 0) {
            for (bucket, counter) in sum.buckets.iter_mut().zip(&one.buckets) {
                *bucket = bucket.wrapping_add(counter.get());
            }
            sum.sum = sum.sum.wrapping_add(one.sum());
        }
        sum
    }

    /// Adds `others`.
    pub fn add(&mut self, others: &Latencies) {
        for (bucket, n) in self.buckets.iter_mut().zip(&others.buckets) {
            *bucket = bucket.wrapping_add(*n);
        }
        self.sum = self.sum.wrapping_add(others.sum);
    }

    /// Returns the values counted since `earlier`.
    pub fn since(&self, earlier: &Latencies) -> Latencies {
        let pairs = self.buckets.iter().zip(&earlier.buckets);
        let mut difference = Latencies {
            sum: self.sum.wrapping_sub(earlier.sum),
            ..Latencies::default()
        };
        for (bucket, (now, before)) in difference.buckets.iter_mut().zip(pairs) {
            *bucket = now.wrapping_sub(*before);
        }
        difference
    }

    /// Returns each non-empty bucket: its middle, in cycles, and its number of values.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> {
        let counts = (0..).zip(self.buckets);
        counts.filter(|(_, n)| *n > 0).map(|(i, n)| (middle(i), n))
    }

    /// Returns the number of values.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Returns their sum, cycles.
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// Returns the value, in cycles, that a share of 0 to 1 of the values does not exceed, accurate to within an eighth;
    /// `None` if there are no values.
    pub fn quantile(&self, share: f64) -> Option<u64> {
        let wanted = (self.count() as f64 * share).ceil().max(1.0) as u64;
        let mut seen = 0;
        self.buckets().find_map(|(middle, n)| {
            seen += n;
            (seen >= wanted).then_some(middle)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_value_is_known_to_within_an_eighth(value in 0u64..1 << 36) {
            let latency = Latency::default();
            latency.record(value, 3);
            let all: Vec<_> = latency.buckets().collect();
            prop_assert_eq!(all.len(), 1);
            let (middle, n) = all[0];
            prop_assert_eq!((n, latency.sum()), (3, 3 * value));
            prop_assert!(middle.abs_diff(value) <= value / 8, "{} for {}", middle, value);
        }
    }

    proptest! {
        #[test]
        fn a_quantile_of_what_came_since_is_that_of_the_values_that_came(
            before in prop::collection::vec(1u64..1 << 30, 0..50),
            after in prop::collection::vec(1u64..1 << 30, 1..50),
            share in 0.0f64..=1.0,
        ) {
            // Two queues.
            let queues = [Latency::default(), Latency::default()];
            let record = |values: &[u64]| {
                let pairs = values.iter().zip(queues.iter().cycle());
                pairs.for_each(|(value, queue)| queue.record(*value, 1));
            };
            record(&before);
            let earlier = Latencies::of(&queues);
            record(&after);
            let since = Latencies::of(&queues).since(&earlier);
            prop_assert_eq!(since.count(), after.len() as u64);
            prop_assert_eq!(since.sum(), after.iter().sum::<u64>());
            let mut sorted = after.clone();
            sorted.sort_unstable();
            let rank = (share * after.len() as f64).ceil().max(1.0) as usize;
            let (exact, found) = (sorted[rank - 1], since.quantile(share).unwrap());
            prop_assert!(found.abs_diff(exact) <= exact / 8, "{} for {}", found, exact);
        }
    }

    #[test]
    fn any_value_has_a_bucket() {
        let latency = Latency::default();
        latency.record(u64::MAX, 1);
        latency.record(0, 1);
        assert_eq!(latency.buckets().count(), 2);
    }
}
