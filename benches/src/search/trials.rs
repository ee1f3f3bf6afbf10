//! Trials, those that count and those that do not.

use crate::error::BenchError;
use crate::interrupt;
use crate::lab::placement::Placement;
use crate::lab::trial::{Discard, Observed};
use crate::load::{Load, Offered};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The purpose of a trial that warms up.
pub const WARM_UP: &str = "warm-up";
/// The purpose of a trial without a rate.
pub const MAXIMUM: &str = "MRR";

/// Runs trials of a load, and decides whether they count.
pub trait Judge {
    /// One trial of `load`: see [`Load::offer`].
    ///
    /// # Errors
    /// An error of the trial itself. A trial that does not count is no error.
    fn trial(
        &mut self,
        load: &mut dyn Load,
        rate: Option<f64>,
        time: Duration,
    ) -> Result<Judged, BenchError>;
}

/// A trial and its judgement.
pub struct Judged {
    /// The result of the offer.
    pub offered: Offered,
    /// What was observed around it.
    pub observed: Observed,
    /// TSC cycles of all the switch's cores for each time that it handled a frame that arrived, idle iterations included;
    /// none if nothing arrived within the trial.
    pub core_cycles: Option<f64>,
    /// Why it does not count.
    pub discarded: Option<Discard>,
}

/// The limits of a search.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Most trials, including those that do not count, but not those of the other placement.
    pub trials_max: usize,
    /// Most disturbed trials in a row.
    pub repeats_max: usize,
    /// Most trials in a row of the other placement.
    pub patience: usize,
    /// The lowest load, frames per second.
    pub rate_min: f64,
    /// The highest load, frames per second.
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
    /// It was completed.
    Done,
    /// [`Limits::trials_max`] was reached.
    TrialsMax,
    /// [`Limits::repeats_max`] was reached.
    Disturbed,
    /// [`Limits::patience`] was reached.
    OtherPlacement,
}

impl Ended {
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::TrialsMax => "too many trials",
            Self::Disturbed => "disturbed too often",
            Self::OtherPlacement => "the other placement",
        }
    }
}

/// A trial, as in the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SearchTrial {
    /// The goal, or another purpose.
    pub purpose: String,
    /// Frames per second asked for; none: full load.
    pub rate: Option<f64>,
    /// Length asked for, seconds.
    pub asked_seconds: f64,
    /// Length, seconds.
    pub seconds: f64,
    /// Frames that the rate asked for.
    pub due: u64,
    /// Frames that were given to the switch.
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
    /// Lengths of runs of lost frames, and the number of such runs.
    pub loss_runs: Vec<(u64, u64)>,
    /// What was observed around it.
    pub observed: Observed,
    /// See [`Judged`].
    pub core_cycles: Option<f64>,
    /// Why it does not count.
    pub discarded: Option<Discard>,
    /// Whether it would count, but is of the other placement.
    pub other_placement: bool,
}

impl SearchTrial {
    /// Whether it counts.
    pub fn counts(&self) -> bool {
        self.discarded.is_none() && !self.other_placement && self.purpose != WARM_UP
    }

    /// The record of a trial.
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
    /// No trials yet.
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

    /// Runs one trial that never counts.
    ///
    /// # Errors
    /// An error of load or judge.
    pub fn warm_up(&mut self, time: Duration) -> Result<(), BenchError> {
        self.once(WARM_UP, None, time).map(|_| ())
    }

    /// Runs a trial that counts; none if a limit was reached first, after which there are no further trials.
    ///
    /// # Errors
    /// An error of load or judge.
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

    /// The placement of the trials that count.
    pub fn placement(&self) -> Option<Placement> {
        self.placement
    }

    /// How the series ended, so far.
    pub fn ended(&self) -> Ended {
        self.ended
    }

    /// Every trial, in order.
    pub fn into_log(self) -> Vec<SearchTrial> {
        self.log
    }
}
