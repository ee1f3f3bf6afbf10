//! The results of scenarios.

use crate::lab::{Bounds, Machine};
use crate::report::Sample;
use crate::trials::{Measurement, Trial};
use serde::Serialize;

/// All results of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Results {
    /// The command line.
    pub arguments: Vec<String>,
    /// The settings of trials, as text.
    pub settings: String,
    /// The machine.
    pub machine: Machine,
    /// The bounds of near, far and disturbed.
    pub bounds: Bounds,
    /// Switches in the order of the tables; the others are compared with the first.
    pub switches: Vec<String>,
    /// Measurements in the order in which they were made.
    pub measurements: Vec<Measurement>,
    /// Scenarios that a switch does not support, or that failed.
    pub missing: Vec<Missing>,
}

/// A scenario that was not measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Missing {
    /// Name of the scenario.
    pub scenario: String,
    /// Name of the switch.
    pub switch: String,
    /// The round in which it failed; none if the switch does not support it.
    pub round: Option<u32>,
    /// The reason.
    pub why: String,
}

impl Results {
    /// No results yet, of this command line.
    pub fn new(machine: Machine, bounds: Bounds, settings: String, switches: Vec<String>) -> Self {
        Self {
            arguments: std::env::args().collect(),
            settings,
            machine,
            bounds,
            switches,
            measurements: Vec::new(),
            missing: Vec::new(),
        }
    }

    /// The trials for this purpose; of any, if it is empty.
    pub fn trials(&self, purpose: &str) -> Vec<Sample<&Trial>> {
        let mut samples = Vec::new();
        for measured in &self.measurements {
            let trials = measured.trials.iter();
            let trials = trials.filter(|t| purpose.is_empty() || t.purpose == purpose);
            samples.extend(trials.map(|trial| Sample {
                switch: measured.switch.clone(),
                round: measured.round,
                what: measured.scenario.clone(),
                value: trial,
                placement: trial.observed.placement,
                discarded: trial.discarded,
            }));
        }
        samples
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::lab::placement::Placement;
    use crate::lab::{Discard, Observed};
    use crate::load::{Offered, Times};
    use crate::options::tests::parse;
    use crate::trials::{LATENCY, MAXIMUM};

    fn trial(purpose: &str, mpps: f64) -> Trial {
        let arrived = (mpps * 1e6) as u64;
        let offered = Offered {
            seconds: 1.0,
            due: arrived + arrived / 100,
            arrived,
            arrived_within: arrived,
            ..Offered::default()
        };
        let observed = Observed {
            round_trips_ns: [Some(80.0), Some(90.0)],
            placement: Placement::Near,
            busy_cycles: Some(2000.0 / mpps),
            ..Observed::default()
        };
        Trial {
            purpose: purpose.into(),
            core_cycles: Some(2600.0 / mpps),
            latency: Some(Times {
                p50: (1e6 / mpps) as u64,
                p99: (3e6 / mpps) as u64,
                ..Times::default()
            }),
            ..Trial::of(None, &offered, observed)
        }
    }

    /// Three trials, the last of which is discarded, and one for latency.
    fn measurement(scenario: &str, switch: &str, round: u32, mpps: f64) -> Measurement {
        let mut trials = [1.0, 1.1, 50.0].map(|part| trial(MAXIMUM, part * mpps));
        trials[2].discarded = Some(Discard::Waited);
        let latency = trial(&format!("{LATENCY}10 %"), mpps / 10.0);
        Measurement {
            scenario: scenario.into(),
            switch: switch.into(),
            round,
            trials: trials.into_iter().chain([latency]).collect(),
        }
    }

    /// A small run with made-up values.
    pub fn made_up() -> Results {
        let of_round = |round| {
            [
                measurement("pair-64", "crosspoint", round, 20.0),
                measurement("pair-64", "ovs <3.5>", round, 9.5),
                measurement("pair-64-4000macs", "crosspoint", round, 10.0),
                measurement("tso", "crosspoint", round, 0.5),
                measurement("tso", "ovs <3.5>", round, 0.3),
            ]
        };
        Results {
            arguments: vec!["crosspoint-bench".into(), "suite".into()],
            machine: Machine::default(),
            bounds: parse(&[]),
            settings: "workers on [1], generators on [0]".into(),
            switches: vec!["crosspoint".into(), "ovs <3.5>".into()],
            measurements: (0..2).flat_map(of_round).collect(),
            missing: vec![Missing {
                scenario: "pair-64".into(),
                switch: "ovs <3.5>".into(),
                round: Some(1),
                why: "no\nports".into(),
            }],
        }
    }
}
