//! Service level objectives of a port.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::status::{ObjectiveStatus, SloStatus};

/// A port's service level objectives, and its results of the last minute over all its queues.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct SloRow {
    /// `met`, `missed` (at least one of them), or `no traffic`.
    pub state: String,
    /// Length of the time measured, seconds.
    pub window_s: f64,
    /// Descriptors of the guest that were completed in it.
    pub completions: u64,
    /// The objective for half of them, nanoseconds; null if there is none.
    pub completion_p50_objective_ns: Option<u64>,
    /// Half of them took no longer, to within an eighth, nanoseconds; null without traffic or objective.
    pub completion_p50_ns: Option<u64>,
    /// The objective for 99 of 100, nanoseconds; null if there is none.
    pub completion_p99_objective_ns: Option<u64>,
    /// 99 of 100 took no longer, to within an eighth, nanoseconds; null without traffic or objective.
    pub completion_p99_ns: Option<u64>,
}

/// The row of a status.
pub(super) fn row(status: &SloStatus) -> SloRow {
    let (p50, p99) = (&status.completion_p50, &status.completion_p99);
    let both = [p50, p99];
    let met = both.into_iter().flatten();
    let met: Vec<bool> = met.filter_map(ObjectiveStatus::is_met).collect();
    let state = match met.iter().all(|is_met| *is_met) {
        _ if met.is_empty() => "no traffic",
        true => "met",
        false => "missed",
    };
    let objective = |one: &Option<ObjectiveStatus>| Some(one.as_ref()?.objective_ns);
    let measured = |one: &Option<ObjectiveStatus>| one.as_ref()?.measured_ns;
    SloRow {
        state: state.to_owned(),
        window_s: status.window_s,
        completions: status.completions,
        completion_p50_objective_ns: objective(p50),
        completion_p50_ns: measured(p50),
        completion_p99_objective_ns: objective(p99),
        completion_p99_ns: measured(p99),
    }
}
