use crate::counters::Counter;

/// Buckets per power of two: values are known to within an eighth.
const STEPS_LOG2: u32 = 3;
const STEPS: u64 = 1 << STEPS_LOG2;
/// Values from 2^36 cycles (some 20 s) on share the last bucket.
const MAX_LOG2: u32 = 36;
const BUCKETS: usize = ((MAX_LOG2 - STEPS_LOG2 + 1) as usize) << STEPS_LOG2;

/// A histogram with one writer, log-linear as HDR histograms are, but fixed in size and made of
/// plain counters, so that recording is one add and the reader needs no agreement.
#[derive(Debug)]
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

    /// Every bucket that has values: its middle, in cycles, and how many.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> {
        let counts = self
            .buckets
            .iter()
            .enumerate()
            .map(|(i, n)| (i as u64, n.get()));
        counts.filter(|(_, n)| *n > 0).map(|(i, n)| {
            let (octave, step) = (i >> STEPS_LOG2, i & (STEPS - 1));
            let middle = match octave {
                0 => step,
                _ => ((2 * (STEPS + step) + 1) << (octave - 1)) / 2,
            };
            (middle, n)
        })
    }

    /// Sum of all values, cycles.
    pub fn sum(&self) -> u64 {
        self.sum.get()
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

    #[test]
    fn any_value_has_a_bucket() {
        let latency = Latency::default();
        latency.record(u64::MAX, 1);
        latency.record(0, 1);
        assert_eq!(latency.buckets().count(), 2);
    }
}
