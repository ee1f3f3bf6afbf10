//! The measurements of any load: trials at its maximum, a search if one is asked for, and latency below the rate found.

use crate::error::BenchError;
use crate::interrupt;
use crate::latency::{LatencyPlan, latency};
use crate::load::Load;
use crate::results::Measurement;
use crate::search::options::SearchOptions;
use crate::search::{Judge, Limits, MAXIMUM, PDR, SearchTrial, search};
use std::time::Duration;

/// Lengths and numbers of trials.
#[derive(Clone, Copy, Debug)]
pub struct Lengths {
    /// Length of the traffic before the first trial.
    pub warmup: Duration,
    /// Length of a trial.
    pub trial: Duration,
    /// Trials at the maximum, and at each load at which latency is measured.
    pub trials: u32,
}

/// Measures `load`. The caller fills in the names of scenario and switch.
///
/// # Errors
/// An error of load or judge.
pub fn measure(
    load: &mut dyn Load,
    judge: &mut dyn Judge,
    options: &SearchOptions,
    lengths: Lengths,
) -> Result<Measurement, BenchError> {
    judge.trial(load, None, lengths.warmup)?;
    let mut measured = Measurement {
        maxima: maxima(load, judge, lengths)?,
        ..Measurement::default()
    };
    if !options.search {
        return Ok(measured);
    }
    let limits = options.limits();
    let found = search(load, judge, &options.goals(lengths.trial), &limits)?;
    if options.latency {
        let partial_drop = found.goal(PDR);
        let plan = LatencyPlan {
            of: partial_drop.and_then(|goal| goal.conditional_throughput),
            trial: lengths.trial,
            trials: lengths.trials,
        };
        let limits = Limits {
            placement: found.placement,
            ..limits
        };
        measured.latency = latency(load, judge, &limits, plan)?;
    }
    measured.search = Some(found);
    Ok(measured)
}

/// Trials at the rate that the switch takes, in any placement.
fn maxima(
    load: &mut dyn Load,
    judge: &mut dyn Judge,
    lengths: Lengths,
) -> Result<Vec<SearchTrial>, BenchError> {
    let trial = |_| {
        interrupt::check()?;
        let judged = judge.trial(load, None, lengths.trial)?;
        Ok(SearchTrial::of(MAXIMUM, None, lengths.trial, &judged))
    };
    (0..lengths.trials).map(trial).collect()
}
