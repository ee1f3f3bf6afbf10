//! Switches simulated by a formula, so that a search's result can be compared with the truth.

use super::trials::{Judge, Judged};
use crate::error::BenchError;
use crate::lab::placement::Placement;
use crate::lab::trial::{Discard, Observed};
use crate::load::{Load, Offered, runs};
use crate::random::Random;
use std::time::Duration;

/// Number of frames lost in a row.
const RUN: u64 = 32;

/// A switch with a capacity and disturbances.
#[derive(Clone, Debug)]
pub struct Simulated {
    /// Frames per second.
    pub capacity: f64,
    /// Variation of the capacity between trials, as a part.
    pub noise: f64,
    /// Part of the trials in which there is a burst of loss.
    pub bursts: f64,
    /// Part of the frames that such a burst loses.
    pub burst_loss: f64,
    /// Loads between these lose a tenth, although they are below the capacity.
    pub hole: Option<(f64, f64)>,
    /// Part of the trials that are disturbed: all their frames are lost.
    pub disturbed: f64,
    /// Trials between two changes of the placement; if the placement is far, the capacity is half.
    pub placement_lasts: Option<usize>,
    /// State of the noise.
    pub seed: u64,
    /// Trials so far.
    pub trials: usize,
}

impl Simulated {
    /// A switch without disturbances.
    pub fn of_capacity(capacity: f64) -> Self {
        Self {
            capacity,
            noise: 0.0,
            bursts: 0.0,
            burst_loss: 0.0,
            hole: None,
            disturbed: 0.0,
            placement_lasts: None,
            seed: 1,
            trials: 0,
        }
    }

    fn random(&mut self) -> f64 {
        let mut random = Random(self.seed);
        let part = random.part();
        self.seed = random.0;
        part
    }

    fn is_far(&self) -> bool {
        let lasts = self.placement_lasts;
        lasts.is_some_and(|lasts| (self.trials / lasts) % 2 == 1)
    }

    fn loss(&mut self, rate: f64) -> f64 {
        let far = if self.is_far() { 0.5 } else { 1.0 };
        let capacity = self.capacity * far * (1.0 + self.noise * (2.0 * self.random() - 1.0));
        let over = 1.0 - (capacity / rate).min(1.0);
        let in_hole = self
            .hole
            .is_some_and(|(from, to)| (from..to).contains(&rate));
        let burst = self.random() < self.bursts;
        let hole = if in_hole { 0.1 } else { 0.0 };
        let burst = if burst { self.burst_loss } else { 0.0 };
        over.max(hole).max(burst)
    }
}

impl Load for Simulated {
    fn offer(&mut self, rate: Option<f64>, time: Duration) -> Result<Offered, BenchError> {
        let seconds = time.as_secs_f64();
        let offered = rate.unwrap_or(if self.is_far() {
            self.capacity / 2.0
        } else {
            self.capacity
        });
        let due = (offered * seconds) as u64;
        let lost = (due as f64 * self.loss(offered)) as u64;
        self.trials += 1;
        let arrived = due - lost;
        let mut loss_runs = runs();
        loss_runs.saturating_record_n(RUN, lost / RUN);
        loss_runs.saturating_record_n(lost % RUN, u64::from(!lost.is_multiple_of(RUN)));
        Ok(Offered {
            seconds,
            due,
            sent: due,
            arrived,
            arrived_within: arrived,
            loss_runs,
            ..Offered::default()
        })
    }
}

/// A judge that knows when the simulated switch was disturbed.
#[derive(Debug)]
pub struct Knows(pub Simulated);

impl Judge for Knows {
    fn trial(
        &mut self,
        load: &mut dyn Load,
        rate: Option<f64>,
        time: Duration,
    ) -> Result<Judged, BenchError> {
        let placement = if self.0.is_far() {
            Placement::Far
        } else {
            Placement::Near
        };
        self.0.trials += 1;
        let mut offered = load.offer(rate, time)?;
        let disturbed = self.0.random() < self.0.disturbed;
        if disturbed {
            offered.arrived = 0;
        }
        Ok(Judged {
            offered,
            observed: Observed {
                placement,
                busy_cycles: Some(2e9 / self.0.capacity),
                ..Observed::nothing()
            },
            core_cycles: Some(2.6e9 / self.0.capacity),
            discarded: disturbed.then_some(Discard::Waited),
        })
    }
}
