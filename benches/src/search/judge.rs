//! Watches trials from outside, and decides whether they count.

use super::trials::{Judge, Judged};
use crate::error::BenchError;
use crate::lab::cpu_times::Times;
use crate::lab::metrics::Counters;
use crate::lab::trial::{Discard, Observed, Shares};
use crate::lab::watch::Crew;
use crate::load::{Load, Offered};
use std::time::Duration;

/// Judges the trials of one scenario on one switch.
pub struct Jury {
    /// The threads.
    pub crew: Crew,
    /// How often the switch handles each frame that arrives; 0 if there is no switch.
    pub passes: usize,
    /// Whether the shares of the first worker's core are measured.
    pub has_shares: bool,
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
        let counted = self.counters();
        let mut spent = None;
        let (offered, observed) = self.crew.observe(|| {
            let started = self.times();
            let offered = load.offer(rate, time)?;
            spent = started.zip(self.times()).map(|(from, to)| to.since(from));
            Ok(offered)
        })?;
        let busy = counted.zip(self.counters());
        let costs = Costs {
            spent,
            busy: busy.map(|(before, after)| after.since(before)),
            hz: self.crew.clock.hz(),
        };
        let discarded = Discard::of(offered.arrived, &observed, self.crew.bounds.wait_max);
        Ok(Judged {
            core_cycles: self.core_cycles(&offered),
            discarded: discarded.filter(|why| *why != Discard::Placement || !self.any_placement),
            observed: Observed {
                shares: self.has_shares.then(|| shares(&offered, &costs)),
                ..observed
            },
            offered,
        })
    }
}

impl Jury {
    fn core_cycles(&self, offered: &Offered) -> Option<f64> {
        let handled_per_s = offered.mpps() * 1e6 * self.passes as f64;
        let cycles_per_s = self.crew.clock.hz() * self.crew.workers.len() as f64;
        (handled_per_s > 0.0).then(|| cycles_per_s / handled_per_s)
    }

    fn times(&self) -> Option<Times> {
        let (core, worker) = self.crew.workers[0];
        // Without a switch, its core has nothing to do.
        (self.has_shares && self.passes > 0).then(|| Times::now(worker, core))?
    }

    fn counters(&self) -> Option<Counters> {
        let address = self.crew.metrics.filter(|_| self.has_shares)?;
        Counters::read(address).ok()
    }
}

/// The cost of a trial to the switch's core.
struct Costs {
    spent: Option<Times>,
    /// crosspoint's own counters.
    busy: Option<Counters>,
    /// Rate of the time stamp counter.
    hz: f64,
}

/// The shares of that cost.
fn shares(offered: &Offered, costs: &Costs) -> Shares {
    let arrived = offered.arrived.max(1) as f64;
    let cycles = |of: fn(Times) -> Option<f64>| Some(of(costs.spent?)? * costs.hz / arrived);
    let kernel = cycles(|spent| Some(spent.kernel));
    let user = match costs.busy {
        // Poll iterations with work, minus their time in the kernel: empty polls are left out.
        Some(busy) => kernel.map(|kernel| (busy.busy_cycles / arrived - kernel).max(0.0)),
        None => cycles(|spent| spent.user),
    };
    Shares {
        user,
        kernel,
        softirq: cycles(|spent| Some(spent.softirq)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_share_is_taken_out_of_busy_cycles_but_not_out_of_user_time() {
        let offered = Offered {
            arrived: 1_000_000,
            ..Offered::default()
        };
        let spent = Times {
            user: Some(0.5),
            kernel: 0.4,
            softirq: 0.3,
        };
        let costs = |busy: Option<Counters>| Costs {
            spent: Some(spent),
            busy,
            hz: 2e9,
        };
        let busy = Counters {
            busy_cycles: 900e6,
            ..Counters::default()
        };
        for (costs, user) in [(costs(Some(busy)), 100.0), (costs(None), 1000.0)] {
            let shares = shares(&offered, &costs);
            assert!((shares.user.unwrap() - user).abs() < 1e-6);
            assert!((shares.kernel.unwrap() - 800.0).abs() < 1e-6);
            assert!((shares.softirq.unwrap() - 600.0).abs() < 1e-6);
        }
    }
}
