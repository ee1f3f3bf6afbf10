//! Measurements of any load: trials at the rate that the switch takes, and on request latency at parts of it.

pub mod jury;

pub use jury::{Jury, Trial};

use crate::error::BenchError;
use crate::interrupt;
use crate::lab::Placement;
use crate::stats::median;
use serde::Serialize;
use std::time::Duration;

/// The purpose of trials at the rate that the switch takes: the maximum receive rate.
pub const MAXIMUM: &str = "MRR";
/// Start of the purpose of a trial for latency; the load follows, in percent of the maximum receive rate.
pub const LATENCY: &str = "latency at ";
/// Length of the traffic before the first trial, which is not measured.
const WARM_UP: Duration = Duration::from_millis(200);
/// Loads for latency, percent of the maximum receive rate; 0 stands for [`RATE_MIN`].
const PERCENTS: [u32; 4] = [0, 10, 50, 90];
/// The lowest load, frames per second, over all directions.
const RATE_MIN: f64 = 10_000.0;

/// Lengths and numbers of trials.
#[derive(Clone, Copy, Debug)]
pub struct Lengths {
    /// Length of a trial.
    pub trial: Duration,
    /// Trials at the maximum, and at each load at which latency is measured.
    pub trials: u32,
    /// Frames per second of these trials, over all directions; without it, as many as the switch takes.
    pub rate: Option<f64>,
    /// Whether latency is measured.
    pub latency: bool,
}

/// The results of one switch in one scenario, in one round.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Measurement {
    /// What was measured.
    pub scenario: String,
    /// Name of the switch.
    pub switch: String,
    /// From 0.
    pub round: u32,
    /// Every trial, in order.
    pub trials: Vec<Trial>,
}

/// Measures by trials of `run`, at a rate (`None`: as many frames as the switch takes) for a time. The caller fills in the
/// names of scenario and switch.
pub fn measure(
    lengths: Lengths,
    mut run: impl FnMut(Option<f64>, Duration) -> Result<Trial, BenchError>,
) -> Result<Measurement, BenchError> {
    run(lengths.rate, WARM_UP)?;
    let mut trials = Vec::new();
    let mut series = |trials: &mut Vec<Trial>, purpose: &str, rate| -> Result<(), BenchError> {
        for _ in 0..lengths.trials {
            interrupt::check()?;
            trials.push(Trial {
                purpose: purpose.into(),
                ..run(rate, lengths.trial)?
            });
        }
        Ok(())
    };
    series(&mut trials, MAXIMUM, lengths.rate)?;
    if lengths.latency {
        let maximum = maximum(&trials);
        for percent in PERCENTS {
            let rate = (maximum * f64::from(percent) / 100.0).max(RATE_MIN);
            let purpose = format!("{LATENCY}{percent} %");
            series(&mut trials, &purpose, Some(rate))?;
        }
    }
    Ok(Measurement {
        trials,
        ..Measurement::default()
    })
}

/// The lowest median of the trials of one placement: the cores may be in it when latency is measured.
fn maximum(trials: &[Trial]) -> f64 {
    let of = |placement: &Placement| {
        let counted = trials.iter().filter(|trial| trial.discarded.is_none());
        let here = counted.filter(|trial| trial.observed.placement == *placement);
        median(here.map(|trial| trial.mpps * 1e6))
    };
    let known = Placement::ALL.iter().filter_map(of);
    known.reduce(f64::min).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::Observed;
    use crate::load::Offered;

    #[test]
    fn latency_is_measured_below_the_maximum() {
        let lengths = Lengths {
            trial: Duration::from_millis(500),
            trials: 2,
            rate: None,
            latency: true,
        };
        let run = |rate: Option<f64>, time: Duration| {
            let arrived = (rate.unwrap_or(2e6) * time.as_secs_f64()) as u64;
            let offered = Offered {
                seconds: time.as_secs_f64(),
                arrived_within: arrived,
                ..Offered::default()
            };
            Ok(Trial::of(rate, &offered, Observed::default()))
        };
        let measured = measure(lengths, run).unwrap();
        let rates: Vec<_> = measured.trials.iter().map(|trial| trial.rate).collect();
        assert_eq!(rates[..2], [None; 2]);
        assert_eq!(rates[2..5], [Some(1e4), Some(1e4), Some(2e5)]);
        assert_eq!(measured.trials[9].purpose, "latency at 90 %");
    }
}
