//! Converts the time-stamp counter to the time of day.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crosspoint_frame::{Clock, tsc};

/// How long one comparison of the two clocks is used. The counter's rate is known to about 10^-5.
const AGE_MAX: Duration = Duration::from_secs(1);

/// Both clocks, compared from time to time.
pub(super) struct Watch {
    clock: Clock,
    since: Instant,
    tsc: u64,
    ns: u64,
}

impl Watch {
    pub(super) fn new(clock: Clock) -> Watch {
        let mut watch = Watch {
            clock,
            since: Instant::now(),
            tsc: 0,
            ns: 0,
        };
        watch.compare();
        watch
    }

    fn compare(&mut self) {
        self.since = Instant::now();
        self.tsc = tsc();
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        self.ns = now.map_or(0, |now| now.as_nanos() as u64);
    }

    /// Compares the clocks again when due. Never between two frames of one batch, so that their distance stays exact.
    pub(super) fn tend(&mut self) {
        if self.since.elapsed() > AGE_MAX {
            self.compare();
        }
    }

    /// The time of day for a counter value: nanoseconds since 1970.
    pub(super) fn ns(&self, at: u64) -> u64 {
        let passed = at.wrapping_sub(self.tsc) as i64;
        let ns = self.clock.ns(passed.unsigned_abs()) as u64;
        match passed < 0 {
            true => self.ns.saturating_sub(ns),
            false => self.ns.saturating_add(ns),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_day_before_and_after_the_comparison() {
        let before = tsc();
        std::thread::sleep(Duration::from_millis(20));
        let watch = Watch::new(Clock::calibrate());
        std::thread::sleep(Duration::from_millis(20));
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_nanos() as u64;
        let (first, last) = (watch.ns(before), watch.ns(tsc()));
        assert!(first < watch.ns && last > watch.ns);
        // A busy machine may delay the code between the two readings.
        assert!(now.abs_diff(last) < 1_000_000_000, "{now} {last}");
        assert!((39_000_000..).contains(&(last - first)));
    }
}
