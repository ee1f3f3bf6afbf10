//! Trials of a load on a switch, and whether they count.

use crate::error::BenchError;
use crate::lab::{CoreTimes, Counters, Crew, Discard, Observed, Shares};
use crate::load::{Load, Offered, Times};
use serde::Serialize;
use std::time::Duration;

/// A trial, as in the file.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Trial {
    /// Whether it is for the maximum receive rate, or for latency.
    pub purpose: String,
    /// Frames per second asked for; none: full load.
    pub rate: Option<f64>,
    /// Length, seconds.
    pub seconds: f64,
    /// Frames that the rate asked for.
    pub due: u64,
    /// Frames that were given to the switch.
    pub sent: u64,
    /// Frames that arrived.
    pub arrived: u64,
    /// Millions of frames per second that arrived before the end.
    pub mpps: f64,
    /// Part of the frames due that did not arrive.
    pub loss: f64,
    /// Part of the transmit polls that found the ring full.
    pub ring_full: f64,
    /// Times from guest to guest.
    pub latency: Option<Times>,
    /// Times of the first frames of quiet guests.
    pub first: Option<Times>,
    /// The generator's iterations: times cannot be known more exactly than this.
    pub iterations: Option<Times>,
    /// What was observed around it.
    pub observed: Observed,
    /// TSC cycles of all the switch's cores for each time that it handled a frame that arrived, idle iterations included;
    /// none if nothing arrived within the trial.
    pub core_cycles: Option<f64>,
    /// Why it does not count.
    pub discarded: Option<Discard>,
}

impl Trial {
    /// The record of an offer.
    pub fn of(rate: Option<f64>, offered: &Offered, observed: Observed) -> Self {
        Self {
            purpose: String::new(),
            rate,
            seconds: offered.seconds,
            due: offered.due,
            sent: offered.sent,
            arrived: offered.arrived,
            mpps: offered.mpps(),
            loss: offered.loss(),
            ring_full: offered.ring_full(),
            latency: Times::of(&offered.latency_ns),
            first: Times::of(&offered.first_ns),
            iterations: Times::of(&offered.iterations_ns),
            observed,
            core_cycles: None,
            discarded: None,
        }
    }
}

/// Runs the trials of one scenario on one switch, and decides whether they count.
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

impl Jury {
    /// One trial of `load`. Call on the first generator's core.
    pub fn trial(
        &self,
        load: &mut dyn Load,
        rate: Option<f64>,
        time: Duration,
    ) -> Result<Trial, BenchError> {
        let counted = self.counters();
        let mut spent = None;
        let (offered, mut observed) = self.crew.observe(|| {
            let started = self.times();
            let offered = load.offer(rate, time)?;
            spent = started.zip(self.times()).map(|(from, to)| to.since(from));
            Ok(offered)
        })?;
        if self.has_shares {
            let busy = counted.zip(self.counters());
            let busy = busy.map(|(before, after)| after.since(before).busy_cycles);
            observed.shares = Some(shares(offered.arrived, spent, busy, self.crew.clock.hz()));
        }
        let discarded = Discard::of(offered.arrived, &observed, self.crew.bounds.wait_max);
        let handled_per_s = offered.mpps() * 1e6 * self.passes as f64;
        let cycles_per_s = self.crew.clock.hz() * self.crew.workers.len() as f64;
        Ok(Trial {
            core_cycles: (handled_per_s > 0.0).then(|| cycles_per_s / handled_per_s),
            discarded: discarded.filter(|why| *why != Discard::Placement || !self.any_placement),
            ..Trial::of(rate, &offered, observed)
        })
    }

    fn times(&self) -> Option<CoreTimes> {
        let (core, worker) = self.crew.workers[0];
        // Without a switch, its core has nothing to do.
        (self.has_shares && self.passes > 0).then(|| CoreTimes::now(worker, core))?
    }

    fn counters(&self) -> Option<Counters> {
        let address = self.crew.metrics.filter(|_| self.has_shares)?;
        Counters::read(address).ok()
    }
}

/// The shares of a trial's cost to the switch's core: `spent` by its thread, of which crosspoint counted `busy` cycles.
fn shares(arrived: u64, spent: Option<CoreTimes>, busy: Option<f64>, hz: f64) -> Shares {
    let arrived = arrived.max(1) as f64;
    let cycles = |of: fn(CoreTimes) -> Option<f64>| Some(of(spent?)? * hz / arrived);
    let kernel = cycles(|spent| Some(spent.kernel));
    let user = match busy {
        // Poll iterations with work, minus their time in the kernel: empty polls are left out.
        Some(busy) => kernel.map(|kernel| (busy / arrived - kernel).max(0.0)),
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
        let spent = CoreTimes {
            user: Some(0.5),
            kernel: 0.4,
            softirq: 0.3,
        };
        for (busy, user) in [(Some(900e6), 100.0), (None, 1000.0)] {
            let shares = shares(1_000_000, Some(spent), busy, 2e9);
            assert!((shares.user.unwrap() - user).abs() < 1e-6);
            assert!((shares.kernel.unwrap() - 800.0).abs() < 1e-6);
            assert!((shares.softirq.unwrap() - 600.0).abs() < 1e-6);
        }
    }
}
