//! Trials that count, and those that do not.

use crate::error::BenchError;
use crate::interrupt;
use crate::load::{Load, Offered};
use crate::placement::Placement;
use crate::trial::{Discard, Observed};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Makes a load offer, and says whether that counts.
pub trait Judge {
    /// One trial of `load`: see [`Load::offer`].
    ///
    /// # Errors
    /// What could not be done. That a trial does not count is none.
    fn trial(
        &mut self,
        load: &mut dyn Load,
        rate: Option<f64>,
        time: Duration,
    ) -> Result<Judged, BenchError>;
}

/// A trial and what is to be thought of it.
pub struct Judged {
    /// What became of the frames.
    pub offered: Offered,
    /// What was observed around it.
    pub observed: Observed,
    /// TSC cycles of all the switch's cores for each time that it handled a frame that arrived, idle turns included; none
    /// when nothing arrived within the trial.
    pub core_cycles: Option<f64>,
    /// Why it does not count.
    pub discarded: Option<Discard>,
}

/// How long a search goes on.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Trials, those that do not count too, but for those of the other placement.
    pub trials_max: usize,
    /// Trials in a row that were disturbed.
    pub repeats_max: usize,
    /// Trials in a row of the other placement.
    pub patience: usize,
    /// No load below, frames per second.
    pub rate_min: f64,
    /// No load above, frames per second.
    pub rate_max: Option<f64>,
    /// The placement to search in; without one, that of the first trial that counts.
    pub placement: Option<Placement>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            trials_max: 400,
            repeats_max: 20,
            patience: 200,
            rate_min: 10_000.0,
            rate_max: None,
            placement: None,
        }
    }
}

/// How a search, or another series of trials, ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ended {
    /// By itself.
    Done,
    /// By [`Limits::trials_max`].
    TrialsMax,
    /// By [`Limits::repeats_max`].
    Disturbed,
    /// By [`Limits::patience`].
    OtherPlacement,
}

impl Ended {
    /// In tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::TrialsMax => "too many trials",
            Self::Disturbed => "disturbed too often",
            Self::OtherPlacement => "the other placement",
        }
    }
}

/// One trial, in the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SearchTrial {
    /// The goal, or what else it was for.
    pub purpose: String,
    /// Frames per second asked for; none: as many as the switch took.
    pub rate: Option<f64>,
    /// Length asked for, seconds.
    pub asked_seconds: f64,
    /// Length, seconds.
    pub seconds: f64,
    /// Frames that the rate asked for.
    pub due: u64,
    /// Frames that the switch was given.
    pub sent: u64,
    /// Frames that arrived.
    pub arrived: u64,
    /// Frames that arrived before the end.
    pub arrived_within: u64,
    /// Millions of frames per second that arrived before the end.
    pub mpps: f64,
    /// Part of the frames due that did not arrive.
    pub loss: f64,
    /// Part of the transmit polls that found the ring full.
    pub ring_full: f64,
    /// Median of the time from guest to guest, nanoseconds.
    pub p50_ns: Option<u64>,
    /// 99 in 100 frames took less, nanoseconds.
    pub p99_ns: Option<u64>,
    /// Median of the time that the first frame of a quiet guest took, nanoseconds.
    pub first_p50_ns: Option<u64>,
    /// 99 in 100 of them took less, nanoseconds.
    pub first_p99_ns: Option<u64>,
    /// Frames lost in a row, and how often so many.
    pub loss_runs: Vec<(u64, u64)>,
    /// What was observed around it.
    pub observed: Observed,
    /// As in [`Judged`].
    pub core_cycles: Option<f64>,
    /// Why it does not count.
    pub discarded: Option<Discard>,
    /// It would count, but is of the other placement.
    pub other_placement: bool,
}

impl SearchTrial {
    /// It counts.
    pub fn counts(&self) -> bool {
        self.discarded.is_none() && !self.other_placement && self.purpose != super::WARM_UP
    }

    /// Of a trial that was asked for.
    pub fn of(purpose: &str, rate: Option<f64>, time: Duration, judged: &Judged) -> Self {
        let offered = &judged.offered;
        let latency = &offered.latency_ns;
        let of = |times: &Histogram<u64>, part| {
            (!times.is_empty()).then(|| times.value_at_quantile(part))
        };
        let at = |part| of(latency, part);
        let runs = offered.loss_runs.iter_recorded();
        Self {
            purpose: purpose.into(),
            rate,
            asked_seconds: time.as_secs_f64(),
            seconds: offered.seconds,
            due: offered.due,
            sent: offered.sent,
            arrived: offered.arrived,
            arrived_within: offered.arrived_within,
            mpps: offered.mpps(),
            loss: offered.loss(),
            ring_full: offered.ring_full,
            p50_ns: at(0.5),
            p99_ns: at(0.99),
            first_p50_ns: of(&offered.first_ns, 0.5),
            first_p99_ns: of(&offered.first_ns, 0.99),
            loss_runs: runs
                .map(|run| (run.value_iterated_to(), run.count_at_value()))
                .collect(),
            observed: judged.observed,
            core_cycles: judged.core_cycles,
            discarded: judged.discarded,
            other_placement: false,
        }
    }
}

/// Trials of one load in one placement. Those that do not count are repeated, within limits.
pub struct Trials<'a> {
    load: &'a mut dyn Load,
    judge: &'a mut dyn Judge,
    limits: &'a Limits,
    placement: Option<Placement>,
    ended: Ended,
    log: Vec<SearchTrial>,
}

impl<'a> Trials<'a> {
    /// None yet.
    pub fn new(load: &'a mut dyn Load, judge: &'a mut dyn Judge, limits: &'a Limits) -> Self {
        Self {
            load,
            judge,
            limits,
            placement: limits.placement,
            ended: Ended::Done,
            log: Vec::new(),
        }
    }

    /// One trial that does not count, whatever it is.
    ///
    /// # Errors
    /// What could not be done.
    pub fn warm_up(&mut self, time: Duration) -> Result<(), BenchError> {
        self.once(super::WARM_UP, None, time).map(|_| ())
    }

    /// A trial that counts, or none when a limit was reached before there was one; then there will be no other.
    ///
    /// # Errors
    /// What could not be done.
    pub fn run(
        &mut self,
        purpose: &str,
        rate: Option<f64>,
        time: Duration,
    ) -> Result<Option<Offered>, BenchError> {
        let (mut disturbed, mut elsewhere) = (0, 0);
        while self.ended == Ended::Done {
            let of_placement = self.log.iter().filter(|trial| !trial.other_placement);
            if of_placement.count() >= self.limits.trials_max {
                self.ended = Ended::TrialsMax;
                break;
            }
            let judged = self.once(purpose, rate, time)?;
            if judged.discarded.is_some() {
                disturbed += 1;
                if disturbed > self.limits.repeats_max {
                    self.ended = Ended::Disturbed;
                }
                continue;
            }
            let placement = judged.observed.placement;
            if *self.placement.get_or_insert(placement) == placement {
                return Ok(Some(judged.offered));
            }
            self.log.last_mut().expect("just logged").other_placement = true;
            (disturbed, elsewhere) = (0, elsewhere + 1);
            if elsewhere > self.limits.patience {
                self.ended = Ended::OtherPlacement;
            }
        }
        Ok(None)
    }

    fn once(
        &mut self,
        purpose: &str,
        rate: Option<f64>,
        time: Duration,
    ) -> Result<Judged, BenchError> {
        interrupt::check()?;
        let judged = self.judge.trial(self.load, rate, time)?;
        self.log.push(SearchTrial::of(purpose, rate, time, &judged));
        Ok(judged)
    }

    /// Of the trials that count.
    pub fn placement(&self) -> Option<Placement> {
        self.placement
    }

    /// How it ended, so far.
    pub fn ended(&self) -> Ended {
        self.ended
    }

    /// Every trial, in order.
    pub fn into_log(self) -> Vec<SearchTrial> {
        self.log
    }
}
