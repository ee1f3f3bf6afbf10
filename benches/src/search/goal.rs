//! The goals of a search.

use serde::{Deserialize, Serialize};

/// Name of the goal of no loss.
pub const NDR: &str = "NDR";
/// Name of the goal of little loss.
pub const PDR: &str = "PDR";

/// A goal of a search: the highest load at which at most this much is lost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Goal {
    /// Its name in tables.
    pub name: String,
    /// Part of the frames that a trial may lose: 0 to 1.
    pub loss_ratio: f64,
    /// Part of the trials, by duration, that may lose more: 0 to below 1.
    pub exceed_ratio: f64,
    /// The goal is reached if (upper bound - lower bound) / upper bound is at most this.
    pub width: f64,
    /// Length of the first phase's trials, seconds.
    pub initial_trial: f64,
    /// Length of the last phase's trials, seconds.
    pub final_trial: f64,
    /// Total length of such trials at one load, seconds, if they do not decide earlier.
    pub duration_sum: f64,
}

impl Goal {
    /// Non-drop rate and partial-drop rate (0.5 %), within 1 %, by five trials of `final_trial` seconds.
    pub fn usual(initial_trial: f64, final_trial: f64) -> Vec<Self> {
        let goal = |name: &str, loss_ratio| Self {
            name: name.into(),
            loss_ratio,
            exceed_ratio: 0.5,
            width: 0.01,
            initial_trial,
            final_trial,
            duration_sum: 5.0 * final_trial,
        };
        vec![goal(NDR, 0.0), goal(PDR, 0.005)]
    }
}
