//! Which load to try next.

use super::bounds::{Class, Known, Target};

/// What an earlier phase took for the bounds: taken for granted until the interval is narrow, then measured.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Hint {
    lower: Option<f64>,
    upper: Option<f64>,
}

impl Hint {
    /// Lower and upper bound.
    pub fn of((lower, upper): (Option<f64>, Option<f64>)) -> Self {
        Self { lower, upper }
    }
}

/// The loads that a search may offer.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    /// Tried first.
    pub first: f64,
    /// No less.
    pub min: f64,
    /// No more.
    pub max: f64,
}

/// How a phase goes on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Next {
    /// With a trial at this load.
    Measure(f64),
    /// Not: the bounds are near enough.
    Reached,
    /// Not: the least load is an upper bound.
    NoLowerBound,
    /// Not: the highest load is a lower bound.
    NoUpperBound,
}

/// A search outside of what is bounded goes no further in one step, as a part of the load.
const STEP_MAX: f64 = 0.5;

/// How the phase `target` goes on.
pub fn next(known: &Known, target: &Target, hint: Hint, range: Range) -> Next {
    let (proven_lower, proven_upper) = known.bounds(target);
    let open = |rate: &f64| known.class(*rate, target) == Class::Undecided;
    let hint_upper = hint.upper.filter(open);
    let hint_upper = hint_upper.filter(|rate| proven_lower.is_none_or(|lower| lower < *rate));
    let upper = least(proven_upper, hint_upper);
    let hint_lower = hint.lower.filter(open);
    let hint_lower = hint_lower.filter(|rate| upper.is_none_or(|upper| *rate < upper));
    let lower = greatest(proven_lower, hint_lower);
    match (lower, upper) {
        (Some(lower), Some(upper)) if upper - lower > target.width * upper => {
            Next::Measure((lower * upper).sqrt())
        }
        (Some(lower), _) if open(&lower) => Next::Measure(lower),
        (_, Some(upper)) if open(&upper) => Next::Measure(upper),
        (Some(_), Some(_)) => Next::Reached,
        (Some(lower), None) if lower >= range.max => Next::NoUpperBound,
        (Some(lower), None) => {
            let step = step(known.count(Class::Lower, target), target);
            Next::Measure((lower / (1.0 - step)).min(range.max))
        }
        (None, Some(upper)) if upper <= range.min => Next::NoLowerBound,
        (None, Some(upper)) => {
            let step = step(known.count(Class::Upper, target), target);
            Next::Measure((upper * (1.0 - step)).max(range.min))
        }
        (None, None) => Next::Measure(range.first.clamp(range.min, range.max)),
    }
}

/// Twice as far with each load that was on the same side, beginning with the target's width.
fn step(same_side: usize, target: &Target) -> f64 {
    let doublings = same_side.saturating_sub(1).min(16) as i32;
    (target.width * 2.0_f64.powi(doublings)).min(STEP_MAX)
}

fn least(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    a.into_iter().chain(b).reduce(f64::min)
}

fn greatest(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    a.into_iter().chain(b).reduce(f64::max)
}
