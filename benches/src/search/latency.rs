//! Times of frames at parts of a rate.

use super::trials::{Ended, Judge, Limits, SearchTrial, Trials};
use crate::error::BenchError;
use crate::lab::placement::Placement;
use crate::load::{Load, times};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The rate for "0 %": frames per second, over all directions.
pub const IDLE_RATE: f64 = 10_000.0;
/// Parts of the partial-drop rate.
pub const PARTS: [f64; 4] = [0.0, 0.1, 0.5, 0.9];

/// Percentiles of a curve.
const CURVE: [f64; 15] = [
    0.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95, 99.99, 99.995, 99.999, 100.0,
];

/// Percentiles of a time, nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// Number of times.
    pub count: u64,
    /// The median.
    pub p50: u64,
    /// 90 in 100 took no longer.
    pub p90: u64,
    /// 99 in 100 took no longer.
    pub p99: u64,
    /// 999 in 1000 took no longer.
    pub p99_9: u64,
    /// The longest.
    pub max: u64,
}

impl Times {
    /// The percentiles of a histogram in nanoseconds; `None` if it is empty.
    pub fn of(histogram: &Histogram<u64>) -> Option<Self> {
        let at = |part| histogram.value_at_quantile(part);
        (!histogram.is_empty()).then(|| Self {
            count: histogram.len(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            max: histogram.max(),
        })
    }
}

/// Times of frames at one load.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LatencyPoint {
    /// Part of the partial-drop rate: 0 to 1; 0 stands for [`IDLE_RATE`].
    pub part: f64,
    /// Frames per second, over all directions.
    pub rate: f64,
    /// Placement of the trials that count.
    pub placement: Option<Placement>,
    /// How the series of trials ended.
    pub ended: Ended,
    /// Time from when a frame was due until the sink saw it, over all trials.
    pub times: Option<Times>,
    /// The generator's iterations in these trials: times cannot be known more exactly than this.
    pub turns: Option<Times>,
    /// Percentiles, and nanoseconds.
    pub curve: Vec<(f64, u64)>,
    /// Every trial, in order.
    pub trials: Vec<SearchTrial>,
}

/// The loads, and how long each is measured.
#[derive(Clone, Copy, Debug)]
pub struct LatencyPlan {
    /// The rate of which loads are parts; without one, only the load 0.
    pub of: Option<f64>,
    /// Length of a trial.
    pub trial: Duration,
    /// Trials that count, for each load.
    pub trials: u32,
}

/// Measures times at [`PARTS`] of a rate, in the placement that `limits` name.
///
/// # Errors
/// An error of load or judge.
pub fn latency(
    load: &mut dyn Load,
    judge: &mut dyn Judge,
    limits: &Limits,
    plan: LatencyPlan,
) -> Result<Vec<LatencyPoint>, BenchError> {
    let parts = PARTS
        .iter()
        .filter(|part| **part == 0.0 || plan.of.is_some());
    let point = |part: &f64| {
        let rate = plan.of.map_or(0.0, |of| of * part).max(IDLE_RATE);
        let mut trials = Trials::new(load, judge, limits);
        let (mut latency, mut iterations) = (times(), times());
        for _ in 0..plan.trials {
            let purpose = format!("latency at {:.0} %", part * 100.0);
            let Some(offered) = trials.run(&purpose, Some(rate), plan.trial)? else {
                break;
            };
            latency += &offered.latency_ns;
            iterations += &offered.iterations_ns;
        }
        let at = |percent: f64| (percent, latency.value_at_percentile(percent));
        let curve = CURVE.map(at).to_vec();
        Ok(LatencyPoint {
            part: *part,
            rate,
            placement: trials.placement(),
            ended: trials.ended(),
            times: Times::of(&latency),
            turns: Times::of(&iterations),
            curve: if latency.is_empty() {
                Vec::new()
            } else {
                curve
            },
            trials: trials.into_log(),
        })
    };
    parts.map(point).collect()
}
