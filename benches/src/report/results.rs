//! The results file.

use crate::error::BenchError;
use crate::lab::machine::Machine;
use crate::lab::placement::Bounds;
use crate::search::measure::Measurement;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::Path;

/// Version of the file's format; files of other versions are refused.
pub const VERSION: u32 = 3;

/// All results of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// [`VERSION`].
    pub version: u32,
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
    /// Scenarios that were skipped.
    pub skipped: Vec<Skip>,
    /// Scenarios that failed.
    pub failed: Vec<Failure>,
}

/// A scenario that a switch does not support.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skip {
    /// Name of the scenario.
    pub scenario: String,
    /// Name of the switch.
    pub switch: String,
    /// The reason.
    pub why: String,
}

/// A scenario that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Name of the scenario.
    pub scenario: String,
    /// Name of the switch.
    pub switch: String,
    /// From 0.
    pub round: u32,
    /// The error.
    pub why: String,
}

impl Results {
    /// The names of scenarios, in the order of first measurements.
    pub fn scenarios(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for measured in &self.measurements {
            if !names.contains(&&*measured.scenario) {
                names.push(&measured.scenario);
            }
        }
        names
    }

    /// No results yet, of this command line.
    pub fn new(machine: Machine, bounds: Bounds, settings: String, switches: Vec<String>) -> Self {
        Self {
            version: VERSION,
            arguments: std::env::args().collect(),
            settings,
            machine,
            bounds,
            switches,
            measurements: Vec::new(),
            skipped: Vec::new(),
            failed: Vec::new(),
        }
    }

    /// Reads a file that was written by [`super::write`].
    ///
    /// # Errors
    /// A system error, or an error that it is not such a file.
    pub fn read(path: &Path) -> Result<Self, BenchError> {
        let name = || path.display().to_string();
        let text = fs::read_to_string(path).map_err(BenchError::io(name()))?;
        Self::parse(&text).map_err(|why| BenchError::Usage(format!("{}: {why}", name())))
    }

    fn parse(text: &str) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let versioned: Versioned = serde_json::from_str(text).map_err(|why| why.to_string())?;
        if versioned.version != VERSION {
            let found = versioned.version;
            return Err(format!("version {found}, where {VERSION} is understood"));
        }
        serde_json::from_str(text).map_err(|why| why.to_string())
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::lab::machine;
    use crate::lab::placement::Placement;

    use crate::search::goal::{Goal, PDR};
    use crate::search::latency::{LatencyPlan, PARTS, Times, latency};
    use crate::search::search;
    use crate::search::simulated::{Knows, Simulated};
    use crate::search::trials::{Judge, Limits, MAXIMUM, SearchTrial};
    use std::time::Duration;

    fn measurement(scenario: &str, switch: &str, round: u32, simulated: &Simulated) -> Measurement {
        let mut judge = Knows(simulated.clone());
        let limits = Limits::default();
        let mut load = simulated.clone();
        let found = search(&mut load, &mut judge, &Goal::usual(0.1, 0.5), &limits).unwrap();
        let plan = LatencyPlan {
            of: found.goal(PDR).and_then(|goal| goal.conditional_throughput),
            trial: Duration::from_millis(100),
            trials: 1,
        };
        let limits = Limits {
            placement: found.placement,
            ..limits
        };
        let mut points = latency(&mut load, &mut judge, &limits, plan).unwrap();
        for (i, point) in points.iter_mut().enumerate() {
            let ns = 1e9 / simulated.capacity * 40.0 * (i + 1) as f64;
            let at = |nines: u32| (ns * f64::from(nines * nines + 1)) as u64;
            point.times = Some(Times {
                count: 1000,
                p50: at(0),
                p90: at(1),
                p99: at(2),
                p99_9: at(3),
                max: at(6),
            });
            point.turns = Some(Times {
                count: 1000,
                p50: 80,
                p90: 90,
                p99: 200,
                p99_9: 300,
                max: 12_000,
            });
            point.curve = vec![
                (0.0, at(0) / 2),
                (50.0, at(0)),
                (99.0, at(2)),
                (100.0, at(6)),
            ];
        }
        let maxima = (0..3).map(|_| {
            let time = Duration::from_millis(100);
            let judged = judge.trial(&mut load, None, time).unwrap();
            SearchTrial::of(MAXIMUM, None, time, &judged)
        });
        Measurement {
            scenario: scenario.into(),
            switch: switch.into(),
            round,
            maxima: maxima.collect(),
            search: Some(found),
            latency: points,
        }
    }

    /// A small run with made-up values.
    pub fn made_up() -> Results {
        let mut measurements = Vec::new();
        for round in 0..2 {
            let near = |mpps: f64| Simulated {
                noise: 0.02,
                seed: round.into(),
                ..Simulated::of_capacity(mpps * 1e6)
            };
            let far = |mpps: f64| Simulated {
                placement_lasts: Some(1000),
                trials: 1000,
                ..near(mpps)
            };
            let disturbed = Simulated {
                disturbed: 0.1,
                bursts: 0.1,
                burst_loss: 1e-4,
                ..near(9.5)
            };
            for (scenario, switch, simulated) in [
                ("pair-64", "crosspoint", near(20.0)),
                ("pair-64", "ovs <3.5>", disturbed),
                ("pair-1518", "crosspoint", far(8.0)),
                ("pair-1518", "ovs <3.5>", near(3.0)),
            ] {
                measurements.push(measurement(scenario, switch, round, &simulated));
            }
        }
        Results {
            version: VERSION,
            arguments: vec!["crosspoint-bench".into(), "suite".into(), "--search".into()],
            machine: machine::tests::made_up(),
            bounds: Bounds {
                near_ns: 150.0,
                far_ns: 250.0,
                wait_max: 2.0,
            },
            settings: "workers on [1], generators on [0]".into(),
            switches: vec!["crosspoint".into(), "ovs <3.5>".into()],
            measurements,
            skipped: vec![Skip {
                scenario: "chain4-64".into(),
                switch: "ovs <3.5>".into(),
                why: "forwards between pairs of ports only".into(),
            }],
            failed: vec![Failure {
                scenario: "pair-64".into(),
                switch: "ovs <3.5>".into(),
                round: 1,
                why: "no\nports".into(),
            }],
        }
    }

    #[test]
    fn another_version_is_refused_by_its_number() {
        let why = Results::parse("{\"version\": 1, \"else\": 1}").unwrap_err();
        assert!(why.contains("version 1"), "{why}");
        assert!(Results::parse("[]").is_err());
    }

    #[test]
    fn every_part_of_the_rate_has_a_point() {
        let results = made_up();
        for measured in &results.measurements {
            let parts: Vec<f64> = measured.latency.iter().map(|point| point.part).collect();
            assert_eq!(parts, PARTS);
            let placement = measured.search.as_ref().unwrap().placement;
            assert!(placement != Some(Placement::Mixed));
        }
    }
}
