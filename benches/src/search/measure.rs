//! The measurements of any load: trials at its maximum, a search if one is asked for, and latency below the rate found.

use super::goal::PDR;
use super::latency::{LatencyPlan, LatencyPoint, latency};
use super::options::SearchOptions;
use super::trials::{Judge, Limits, MAXIMUM, SearchTrial};
use super::{SearchResult, search};
use crate::error::BenchError;
use crate::interrupt;
use crate::load::Load;
use serde::{Deserialize, Serialize};
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
    /// Frames per second of these trials, over all directions; without it, as many as the switch takes.
    pub rate: Option<f64>,
}

/// The results of one switch in one scenario, in one round.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// What was measured.
    pub scenario: String,
    /// Name of the switch.
    pub switch: String,
    /// From 0.
    pub round: u32,
    /// Trials at the rate that the switch takes.
    pub maxima: Vec<SearchTrial>,
    /// The rates with no loss and with little, if a search was asked for.
    pub search: Option<SearchResult>,
    /// Latency at parts of the partial-drop rate.
    pub latency: Vec<LatencyPoint>,
}

impl Measurement {
    /// Every trial.
    pub fn trials(&self) -> impl Iterator<Item = &SearchTrial> + Clone {
        let search = self.search.iter().flat_map(|search| &search.trials);
        let latency = self.latency.iter().flat_map(|point| &point.trials);
        self.maxima.iter().chain(search).chain(latency)
    }
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
    judge.trial(load, lengths.rate, lengths.warmup)?;
    let mut measured = Measurement {
        maxima: at_maximum(load, judge, lengths)?,
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

/// Trials at the given rate, or at the rate that the switch takes, in any placement.
fn at_maximum(
    load: &mut dyn Load,
    judge: &mut dyn Judge,
    lengths: Lengths,
) -> Result<Vec<SearchTrial>, BenchError> {
    let trial = |_| {
        interrupt::check()?;
        let judged = judge.trial(load, lengths.rate, lengths.trial)?;
        Ok(SearchTrial::of(
            MAXIMUM,
            lengths.rate,
            lengths.trial,
            &judged,
        ))
    };
    (0..lengths.trials).map(trial).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::tests::parse;
    use crate::search::latency::PARTS;
    use crate::search::simulated::{Knows, Simulated};

    #[test]
    fn a_search_is_followed_by_latency_below_its_result() {
        let mut load = Simulated::of_capacity(1e6);
        let mut judge = Knows(load.clone());
        let lengths = Lengths {
            warmup: Duration::from_millis(5),
            trial: Duration::from_millis(100),
            trials: 2,
            rate: None,
        };
        let mut of = |arguments: &[&str]| {
            let options: SearchOptions = parse(arguments);
            measure(&mut load, &mut judge, &options, lengths).unwrap()
        };
        let measured = of(&["--search", "--latency"]);
        assert_eq!(
            measured.search.as_ref().map(|found| found.goals.len()),
            Some(2)
        );
        assert_eq!(measured.latency.len(), PARTS.len());
        assert_eq!(measured.maxima.len(), 2);
        for trial in measured.trials() {
            assert!(trial.arrived <= trial.sent, "{trial:?}");
        }
        assert!(of(&[]).search.is_none());
    }
}
