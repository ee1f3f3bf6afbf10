//! What one trial measured, and all of a run.

use super::scenario::Scenario;
use crate::error::BenchError;
use crate::load::Offered;
use crate::trial::{Discard, Observed};
use crosspoint_frame::Clock;
use serde::Serialize;
use std::path::Path;

/// One trial at the rate that the switch takes.
#[derive(Clone, Debug, Serialize)]
pub struct Record {
    /// Name of the scenario.
    pub scenario: String,
    /// Name of the switch.
    pub switch: String,
    /// From 0.
    pub round: u32,
    /// Length of the trial.
    pub seconds: f64,
    /// Frames that the switch was given.
    pub sent: u64,
    /// Frames that arrived, those after the end of the trial included.
    pub arrived: u64,
    /// Millions of frames per second that arrived within the trial.
    pub mpps: f64,
    /// Part of the frames that did not arrive: 0 to 1.
    pub loss: f64,
    /// Part of the generators' polls that found the transmit ring full: 0 to 1.
    pub ring_full: f64,
    /// Median time from guest to guest.
    pub p50_us: Option<f64>,
    /// 99 in 100 frames took less.
    pub p99_us: Option<f64>,
    /// Most frames lost in a row, where the load can tell: at full rate it does not look.
    pub loss_run_max: Option<u64>,
    /// TSC cycles of all the switch's cores for each time that it handled a frame that arrived, idle turns included; none
    /// when nothing arrived within the trial.
    pub core_cycles: Option<f64>,
    /// What was observed around it.
    #[serde(flatten)]
    pub observed: Observed,
    /// Why the trial does not count.
    pub discarded: Option<Discard>,
}

impl Record {
    /// Of a trial of the scenario, with so many workers; whose it is, the caller fills in.
    pub fn new(
        (scenario, workers): (&Scenario, usize),
        offered: &Offered,
        observed: Observed,
        discarded: Option<Discard>,
        clock: Clock,
    ) -> Self {
        let latency = |part| {
            let ns = offered.latency_ns.value_at_quantile(part);
            (!offered.latency_ns.is_empty()).then_some(ns as f64 / 1000.0)
        };
        let handled_per_s = offered.mpps() * 1e6 * scenario.passes() as f64;
        Self {
            scenario: scenario.to_string(),
            switch: String::new(),
            round: 0,
            seconds: offered.seconds,
            sent: offered.sent,
            arrived: offered.arrived,
            mpps: offered.mpps(),
            loss: offered.loss(),
            ring_full: offered.ring_full,
            p50_us: latency(0.5),
            p99_us: latency(0.99),
            loss_run_max: Some(offered.loss_runs.max()).filter(|run| *run > 0),
            core_cycles: (handled_per_s > 0.0).then(|| clock.hz() * workers as f64 / handled_per_s),
            observed,
            discarded,
        }
    }
}

/// A scenario that a switch cannot do.
#[derive(Clone, Debug, Serialize)]
pub struct Skip {
    /// Name of the scenario.
    pub scenario: String,
    /// Name of the switch.
    pub switch: String,
    /// Why not.
    pub why: String,
}

/// A scenario that did not work.
#[derive(Clone, Debug, Serialize)]
pub struct Failure {
    /// Name of the scenario.
    pub scenario: String,
    /// Name of the switch.
    pub switch: String,
    /// From 0.
    pub round: u32,
    /// What went wrong.
    pub why: String,
}

/// All of a run, as in the file of `--json`.
#[derive(Clone, Debug, Serialize)]
pub struct Results {
    /// The command line.
    pub arguments: Vec<String>,
    /// TSC cycles per second.
    pub tsc_hz: f64,
    /// What was not tried.
    pub skipped: Vec<Skip>,
    /// What did not work.
    pub failed: Vec<Failure>,
    /// All trials, the discarded ones too.
    pub trials: Vec<Record>,
}

impl Results {
    /// None yet.
    pub fn new(clock: Clock) -> Self {
        Self {
            arguments: std::env::args().collect(),
            tsc_hz: clock.hz(),
            skipped: Vec::new(),
            failed: Vec::new(),
            trials: Vec::new(),
        }
    }

    /// Writes the file of `--json`.
    pub fn write(&self, path: &Path) -> Result<(), BenchError> {
        let written = serde_json::to_string_pretty(self)
            .map_err(std::io::Error::from)
            .and_then(|text| std::fs::write(path, text + "\n"));
        written.map_err(BenchError::io(path.display().to_string()))
    }
}
