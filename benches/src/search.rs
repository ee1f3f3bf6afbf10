//! Several loss ratios' throughputs in one search, after MLRsearch (draft-ietf-bmwg-mlrsearch).
//!
//! A load, in frames per second, is a *lower bound* of a goal when no more than the goal's exceed ratio of its trials, by duration,
//! lost more than the goal allows, whatever trials still to come would show; an *upper bound* when more did. Each goal is approached in
//! phases: short trials and wide intervals first, then the goal's own. What one goal's trials say counts for all.

mod bounds;
mod next;
pub mod options;
mod trials;

#[cfg(test)]
pub mod simulated;
#[cfg(test)]
mod tests;

pub use trials::{Ended, Judge, Judged, Limits, SearchTrial, Trials};

use crate::error::BenchError;
use crate::load::Load;
use crate::placement::Placement;
use crate::stats::median;
use bounds::{Known, Target};
use next::{Hint, Next};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Name of the goal of no loss.
pub const NDR: &str = "NDR";
/// Name of the goal of little loss.
pub const PDR: &str = "PDR";

/// What a search looks for: the highest load at which so much is lost at most.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Goal {
    /// In tables.
    pub name: String,
    /// Part of the frames that a trial may lose: 0 to 1.
    pub loss_ratio: f64,
    /// Part of the trials, by duration, that may lose more: 0 to below 1.
    pub exceed_ratio: f64,
    /// Reached when (upper bound - lower bound) / upper bound is no more.
    pub width: f64,
    /// Length of the first phase's trials, seconds.
    pub initial_trial: f64,
    /// Length of the last phase's trials, seconds.
    pub final_trial: f64,
    /// Seconds of such trials at one load, when these do not decide earlier.
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

/// What a search found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SearchResult {
    /// Of all trials that count.
    pub placement: Option<Placement>,
    /// Frames per second that arrived when as many were offered as the switch took; the median of some trials.
    pub maximum_receive_rate: Option<f64>,
    /// In the order asked for.
    pub goals: Vec<GoalResult>,
    /// How the search ended.
    pub ended: Ended,
    /// Every trial, in order.
    pub trials: Vec<SearchTrial>,
}

impl SearchResult {
    /// What was found for the goal of this name.
    pub fn goal(&self, name: &str) -> Option<&GoalResult> {
        self.goals.iter().find(|result| result.goal.name == name)
    }
}

/// What a search found for one goal. Rates are frames per second.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GoalResult {
    /// What was looked for.
    pub goal: Goal,
    /// What arrives at the lower bound, in all but the worst trials that the exceed ratio leaves out.
    pub conditional_throughput: Option<f64>,
    /// The highest lower bound below the upper one.
    pub lower: Option<f64>,
    /// The lowest upper bound.
    pub upper: Option<f64>,
    /// Trials that counted and were for this goal.
    pub trials: usize,
    /// Why this is not what was asked for.
    pub irregular: Option<Irregular>,
}

/// Why a goal's result is not what was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Irregular {
    /// The least load loses too much.
    NoLowerBound,
    /// The highest load does not lose enough.
    NoUpperBound,
    /// The search ended before the bounds were as near as asked for.
    NotReached,
}

impl Irregular {
    /// In tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoLowerBound => "no lower bound",
            Self::NoUpperBound => "no upper bound",
            Self::NotReached => "not reached",
        }
    }
}

/// Trials without a rate; the first trial of all, before them, does not count.
const MAXIMUM_TRIALS: usize = 3;
/// Without a limit: no load beyond so many times the maximum receive rate.
const BEYOND_MAXIMUM: f64 = 4.0;

/// Searches for `goals` in the traffic of `load`, as `judge` sees it.
///
/// # Errors
/// What load or judge could not do. That trials do not count is no error: see [`SearchResult::ended`].
pub fn search(
    load: &mut dyn Load,
    judge: &mut dyn Judge,
    goals: &[Goal],
    limits: &Limits,
) -> Result<SearchResult, BenchError> {
    let mut trials = Trials::new(load, judge, limits);
    let mut seekers: Vec<Seeker> = goals.iter().map(Seeker::new).collect();
    let maximum = maximum_receive_rate(&mut trials, goals)?;
    let mut known = Known::default();
    if let Some(maximum) = maximum.filter(|rate| *rate > 0.0) {
        let range = next::Range {
            first: maximum,
            min: limits.rate_min,
            max: limits.rate_max.unwrap_or(maximum * BEYOND_MAXIMUM),
        };
        while let Some((goal, wanted)) = wanted(&mut seekers, &known, range) {
            let time = Duration::from_secs_f64(wanted.seconds);
            let name = &goals[goal].name;
            let Some(offered) = trials.run(name, Some(wanted.rate), time)? else {
                break;
            };
            known.add(wanted.rate, wanted.seconds, offered.loss());
            seekers[goal].trials += 1;
        }
    }
    Ok(SearchResult {
        placement: trials.placement(),
        maximum_receive_rate: maximum,
        goals: seekers.iter().map(|seeker| seeker.result(&known)).collect(),
        ended: trials.ended(),
        trials: trials.into_log(),
    })
}

/// The purpose of a trial that warms up.
pub const WARM_UP: &str = "warm-up";
/// The purpose of a trial without a rate.
pub const MAXIMUM: &str = "MRR";

fn maximum_receive_rate(trials: &mut Trials, goals: &[Goal]) -> Result<Option<f64>, BenchError> {
    let longest = goals
        .iter()
        .map(|goal| goal.final_trial)
        .fold(0.001, f64::max);
    let time = Duration::from_secs_f64(longest);
    trials.warm_up(time)?;
    let mut rates = Vec::new();
    for _ in 0..MAXIMUM_TRIALS {
        let Some(offered) = trials.run(MAXIMUM, None, time)? else {
            break;
        };
        rates.push(offered.mpps() * 1e6);
    }
    Ok(median(rates))
}

/// A goal on its way.
struct Seeker<'a> {
    goal: &'a Goal,
    targets: Vec<Target>,
    phase: usize,
    /// What the last phase left.
    hint: Hint,
    trials: usize,
    /// What the last of all phases came to, once it did.
    stopped: Option<Next>,
}

/// A trial that a goal asks for.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Wanted {
    rate: f64,
    seconds: f64,
}

impl<'a> Seeker<'a> {
    fn new(goal: &'a Goal) -> Self {
        Self {
            goal,
            targets: Target::phases(goal),
            phase: 0,
            hint: Hint::default(),
            trials: 0,
            stopped: None,
        }
    }

    /// The next trial of phase `phase`; none when that is over, and this goal is in the next one.
    fn wanted(&mut self, phase: usize, known: &Known, range: next::Range) -> Option<Wanted> {
        if self.phase != phase {
            return None;
        }
        let target = &self.targets[phase];
        match next::next(known, target, self.hint, range) {
            Next::Measure(rate) => {
                self.stopped = None;
                let seconds = target.trial;
                Some(Wanted { rate, seconds })
            }
            stopped => {
                self.hint = Hint::of(known.bounds(target));
                let last = self.targets.len() - 1;
                self.stopped = (phase == last).then_some(stopped);
                // The last phase may come back: another goal's trials can change what is known of a load.
                self.phase = (phase + 1).min(last);
                None
            }
        }
    }

    fn result(&self, known: &Known) -> GoalResult {
        let target = self.targets.last().expect("there are phases");
        let (lower, upper) = known.bounds(target);
        let irregular = match self.stopped {
            Some(Next::Reached) => None,
            Some(Next::NoLowerBound) => Some(Irregular::NoLowerBound),
            Some(Next::NoUpperBound) => Some(Irregular::NoUpperBound),
            _ => Some(Irregular::NotReached),
        };
        GoalResult {
            goal: self.goal.clone(),
            conditional_throughput: lower.and_then(|rate| known.throughput(rate, target)),
            lower,
            upper,
            trials: self.trials,
            irregular,
        }
    }
}

/// The next trial, and whose: all goals go through a phase before any goes through the next.
fn wanted(seekers: &mut [Seeker], known: &Known, range: next::Range) -> Option<(usize, Wanted)> {
    (0..bounds::PHASES).find_map(|phase| {
        let mut each = seekers.iter_mut().enumerate();
        each.find_map(|(i, seeker)| Some((i, seeker.wanted(phase, known, range)?)))
    })
}
