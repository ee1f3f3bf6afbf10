//! Several loss ratios' throughputs in one search, after MLRsearch (draft-ietf-bmwg-mlrsearch).
//!
//! A load, in frames per second, is a *lower bound* of a goal if, whatever further trials would show, at most the goal's
//! exceed ratio of its trials, by duration, lost more than the goal allows. It is an *upper bound* if more of them did. Each
//! goal is approached in phases: short trials and wide intervals first, then the goal's own. Trials for one goal count for
//! all goals.

mod bounds;
pub mod goal;
pub mod judge;
pub mod latency;
pub mod measure;
mod next;
pub mod options;
pub mod trials;

#[cfg(test)]
pub mod simulated;
#[cfg(test)]
mod tests;

use crate::error::BenchError;
use crate::lab::placement::Placement;
use crate::load::Load;
use crate::stats::median;
use bounds::{Known, Target};
use goal::Goal;
use next::{Hint, Next};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use trials::{Ended, Judge, Limits, MAXIMUM, SearchTrial, Trials};

/// The result of a search.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SearchResult {
    /// Placement of all trials that count.
    pub placement: Option<Placement>,
    /// Frames per second that arrived at full load; the median of some trials.
    pub maximum_receive_rate: Option<f64>,
    /// Results of goals, in the order of the request.
    pub goals: Vec<GoalResult>,
    /// How the search ended.
    pub ended: Ended,
    /// Every trial, in order.
    pub trials: Vec<SearchTrial>,
}

impl SearchResult {
    /// The result of the goal with this name.
    pub fn goal(&self, name: &str) -> Option<&GoalResult> {
        self.goals.iter().find(|result| result.goal.name == name)
    }
}

/// The result of a search for one goal. Rates are frames per second.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GoalResult {
    /// The goal.
    pub goal: Goal,
    /// Rate that arrives at the lower bound, in all but the worst trials, which the exceed ratio leaves out.
    pub conditional_throughput: Option<f64>,
    /// The highest lower bound below the upper one.
    pub lower: Option<f64>,
    /// The lowest upper bound.
    pub upper: Option<f64>,
    /// Trials that counted and were made for this goal.
    pub trials: usize,
    /// Why the result does not meet the request.
    pub irregular: Option<Irregular>,
}

/// Reason why a goal's result does not meet the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Irregular {
    /// The lowest load loses too much.
    NoLowerBound,
    /// The highest load loses too little.
    NoUpperBound,
    /// The search ended before the bounds were close enough.
    NotReached,
}

impl Irregular {
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoLowerBound => "no lower bound",
            Self::NoUpperBound => "no upper bound",
            Self::NotReached => "not reached",
        }
    }
}

/// Trials without a rate. The very first trial, before them, does not count.
const MAXIMUM_TRIALS: usize = 3;
/// Without a limit: the highest load, as a multiple of the maximum receive rate.
const BEYOND_MAXIMUM: f64 = 4.0;

/// Searches for `goals` in the traffic of `load`, judged by `judge`.
///
/// # Errors
/// An error of load or judge. Trials that do not count are no error: see [`SearchResult::ended`].
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

/// The state of the search for one goal.
struct Seeker<'a> {
    goal: &'a Goal,
    targets: Vec<Target>,
    phase: usize,
    /// The bounds of the last phase.
    hint: Hint,
    trials: usize,
    /// The result of the last phase, once it has ended.
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

    /// The next trial of phase `phase`; none if that phase is over, and this goal is in the next one.
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
                // The last phase may be repeated: another goal's trials can change the class of a load.
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

/// The next trial and its goal: all goals complete a phase before any goal begins the next.
fn wanted(seekers: &mut [Seeker], known: &Known, range: next::Range) -> Option<(usize, Wanted)> {
    (0..bounds::PHASES).find_map(|phase| {
        let mut each = seekers.iter_mut().enumerate();
        each.find_map(|(i, seeker)| Some((i, seeker.wanted(phase, known, range)?)))
    })
}
