//! Watches trials from outside, and decides whether they count.

use crate::error::BenchError;
use crate::load::{Load, Offered};
use crate::search::{Judge, Judged};
use crate::trial::Discard;
use crate::watch::Crew;
use std::time::Duration;

/// Judges the trials of one scenario on one switch.
pub struct Jury {
    /// The threads.
    pub crew: Crew,
    /// How often the switch handles each frame that arrives.
    pub passes: usize,
    /// A trial in which a thread waited longer for its core does not count, percent.
    pub wait_max: f64,
    /// Whether trials count that are neither near nor far.
    pub any_placement: bool,
}

impl Judge for Jury {
    /// Call on the first generator's core.
    fn trial(
        &mut self,
        load: &mut dyn Load,
        rate: Option<f64>,
        time: Duration,
    ) -> Result<Judged, BenchError> {
        let (offered, observed) = self.crew.observe(|| load.offer(rate, time))?;
        let discarded = Discard::of(offered.arrived, &observed, self.wait_max);
        Ok(Judged {
            core_cycles: self.core_cycles(&offered),
            discarded: discarded.filter(|why| *why != Discard::Placement || !self.any_placement),
            offered,
            observed,
        })
    }
}

impl Jury {
    fn core_cycles(&self, offered: &Offered) -> Option<f64> {
        let handled_per_s = offered.mpps() * 1e6 * self.passes as f64;
        let cycles_per_s = self.crew.clock.hz() * self.crew.workers.len() as f64;
        (handled_per_s > 0.0).then(|| cycles_per_s / handled_per_s)
    }
}
