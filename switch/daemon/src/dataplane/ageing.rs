//! The clock for ageing addresses: a hundred ticks make up the ageing time.

use std::time::Duration;

use super::Dataplane;

/// Ageing time, and the state of the clock.
pub(super) struct Ageing {
    after: Duration,
    tick: Duration,
    ticks: u64,
    /// Uptime up to which ticks are counted; `None`: counting starts at the next call.
    counted: Option<Duration>,
}

impl Ageing {
    pub fn new(after: Duration) -> Ageing {
        Ageing {
            after,
            // An age has 8 bits, and is compared with at most half of that range.
            tick: Duration::from_secs(after.as_secs().div_ceil(100).max(1)),
            ticks: 0,
            counted: Some(Duration::ZERO),
        }
    }

    /// The new tick, if one has begun, when the switch has run for `uptime`.
    pub fn advance(&mut self, uptime: Duration) -> Option<u64> {
        let counted = self.counted.unwrap_or(uptime);
        let passed = uptime.saturating_sub(counted).as_millis() / self.tick.as_millis();
        let passed = u32::try_from(passed).unwrap_or(u32::MAX);
        self.counted = Some(counted + self.tick * passed);
        self.ticks += u64::from(passed);
        (passed > 0).then_some(self.ticks)
    }

    /// The same clock with other ticks. The part of a tick that has passed is dropped: in shorter ticks it could be
    /// many.
    fn changed_to(&self, after: Duration) -> Ageing {
        Ageing {
            ticks: self.ticks,
            counted: None,
            ..Ageing::new(after)
        }
    }

    /// Number of ticks that an address is kept without a frame.
    pub fn ticks_max(&self) -> u64 {
        self.after.as_secs().div_ceil(self.tick.as_secs())
    }

    /// The ageing time, and the length of a tick.
    pub fn times(&self) -> (Duration, Duration) {
        (self.after, self.tick)
    }
}

impl Dataplane {
    /// Sets the ageing time. Current ages are taken as a number of the new ticks: an address at its maximum age stays
    /// at it.
    pub fn set_ageing(&self, after: Duration) {
        let ageing = &mut self.lock().ageing;
        *ageing = ageing.changed_to(after);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_go_on_where_their_length_changes() {
        let seconds = Duration::from_secs;
        let mut ageing = Ageing::new(seconds(86_400));
        assert_eq!(ageing.advance(seconds(863)), None);
        assert_eq!(ageing.advance(seconds(2000)), Some(2));
        ageing = ageing.changed_to(seconds(2));
        assert_eq!(ageing.advance(seconds(2500)), None);
        assert_eq!(ageing.advance(seconds(2501)), Some(3));
        assert_eq!(ageing.ticks_max(), 2);
    }
}
