//! Pseudo-random numbers: splitmix64 (Steele, Lea, Flood 2014).

/// A sequence determined by its seed.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next number, 64 bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0 to 1, without 1.
    pub fn part(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A number between two values, uniformly distributed.
    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + self.part() * (high - low)
    }

    /// A number between two values, whose logarithm is uniformly distributed.
    pub fn between_log(&mut self, low: f64, high: f64) -> f64 {
        self.between(low.ln(), high.ln()).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_keep_their_bounds_and_fill_them() {
        let mut random = Random(1);
        let values: Vec<f64> = (0..10_000)
            .map(|_| random.between_log(1.0, 100.0))
            .collect();
        assert!(values.iter().all(|value| (1.0..100.0).contains(value)));
        let below_ten = values.iter().filter(|value| **value < 10.0).count();
        assert!((4_500..5_500).contains(&below_ten), "{below_ten}");
    }
}
