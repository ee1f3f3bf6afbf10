//! Histograms that cost a burst or a poll iteration no more than the plain counter that they replace: recording
//! increments one bucket, and the total count is the sum of the buckets. The sum of the values is counted anyway: a
//! queue's frames, a worker's cycles.

use crate::observe::counters::Counter;

/// Number of buckets of [`BurstSizes`]: up to 1, 2, 4, 8, 16, 32 and 64 frames, and more.
const SIZES: usize = 8;

/// Histogram of burst sizes in frames.
#[derive(Clone, Debug, Default)]
pub struct BurstSizes {
    buckets: [Counter; SIZES],
}

impl BurstSizes {
    /// Upper bounds of the buckets, in frames; the last bucket has none.
    pub const BOUNDS: [u64; SIZES - 1] = [1, 2, 4, 8, 16, 32, 64];

    /// Counts a burst of `frames` frames, at least one.
    #[inline(always)]
    pub fn record(&self, frames: u32) {
        // For 2^n + 1 to 2^(n + 1) frames, twice the number minus one has n + 2 binary digits. It is odd, so never zero.
        let log2 = (frames.wrapping_mul(2).wrapping_sub(1) | 1).ilog2();
        self.buckets[(log2 as usize).min(SIZES - 1)].add(1);
    }

    /// Returns the number of bursts per bucket.
    pub fn counts(&self) -> [u64; SIZES] {
        self.buckets.each_ref().map(Counter::get)
    }

    /// Returns the total number of bursts.
    pub fn count(&self) -> u64 {
        self.counts().into_iter().sum()
    }
}

/// Buckets of [`Turns`] per power of two, as a logarithm: values are accurate to within an eighth.
const STEPS_LOG2: u32 = 2;
/// Below 2^6 cycles the resolution is lower. Hardly any iteration is that short: reading the clock alone takes half of
/// that.
const MIN_LOG2: u32 = 3;
/// Iterations of 2^36 cycles (some 20 s) and more share the last bucket.
const MAX_LOG2: u32 = 36;
const TURNS: usize = ((MAX_LOG2 - MIN_LOG2) << STEPS_LOG2) as usize;

/// Histogram of the duration of a worker's poll iterations.
#[derive(Debug)]
pub struct Turns {
    buckets: [Counter; TURNS],
}

impl Default for Turns {
    fn default() -> Turns {
        Turns {
            buckets: std::array::from_fn(|_| Counter::default()),
        }
    }
}

impl Turns {
    /// Counts an iteration that took `cycles`.
    #[inline(always)]
    pub fn record(&self, cycles: u64) {
        // The bucket is the exponent and the first mantissa bits of a floating point number: fewer instructions than
        // counting digits. From 2^6 on, the bit that keeps the exponent from being too small does not change them.
        let number = (cycles | 1 << MIN_LOG2) as i64 as f64;
        let digits = (number.to_bits() >> (f64::MANTISSA_DIGITS - 1 - STEPS_LOG2)) as usize;
        const FIRST: usize = ((f64::MAX_EXP as u32 - 1 + MIN_LOG2) << STEPS_LOG2) as usize;
        self.buckets[(digits - FIRST).min(TURNS - 1)].add(1);
    }

    /// Returns each non-empty bucket: its middle, in cycles, and its number of iterations.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> {
        let counts = (0u64..).zip(&self.buckets).map(|(i, n)| (i, n.get()));
        counts.filter(|(_, n)| *n > 0).map(|(i, n)| {
            let (octave, step) = (i >> STEPS_LOG2, i & ((1 << STEPS_LOG2) - 1));
            let digits = (1 << STEPS_LOG2) + step;
            let middle = ((2 * digits + 1) << (u64::from(MIN_LOG2 - STEPS_LOG2) + octave)) / 2;
            (middle, n)
        })
    }

    /// Returns the number of iterations. Safe to call while iterations are counted: it never decreases.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(Counter::get).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_burst_is_counted_in_the_first_bucket_whose_bound_it_does_not_exceed() {
        for frames in 1..=200 {
            let sizes = BurstSizes::default();
            sizes.record(frames);
            let bound = BurstSizes::BOUNDS.partition_point(|bound| *bound < u64::from(frames));
            let mut expected = [0; SIZES];
            expected[bound] = 1;
            assert_eq!(sizes.counts(), expected, "{frames} frames");
        }
    }

    proptest! {
        #[test]
        fn a_turn_is_known_to_within_an_eighth(cycles in 1u64 << 6..1 << MAX_LOG2) {
            let turns = Turns::default();
            turns.record(cycles);
            let all: Vec<_> = turns.buckets().collect();
            prop_assert_eq!((all.len(), all[0].1, turns.count()), (1, 1, 1));
            let middle = all[0].0;
            prop_assert!(middle.abs_diff(cycles) <= cycles / 8, "{} for {}", middle, cycles);
        }

        #[test]
        fn every_turn_is_counted_however_long_it_took(all in prop::collection::vec(any::<u64>(), 0..20)) {
            let turns = Turns::default();
            all.iter().for_each(|cycles| turns.record(*cycles));
            for extreme in [0, u64::MAX] {
                turns.record(extreme);
            }
            prop_assert_eq!(turns.count(), all.len() as u64 + 2);
            prop_assert_eq!(turns.buckets().map(|(_, n)| n).sum::<u64>(), turns.count());
        }
    }
}
