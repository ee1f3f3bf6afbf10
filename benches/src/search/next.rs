//! The choice of the next load.

use super::bounds::{Class, Known, Target};

/// The bounds of an earlier phase: assumed until the interval is narrow, then measured.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Hint {
    lower: Option<f64>,
    upper: Option<f64>,
}

impl Hint {
    /// A hint of a lower and an upper bound.
    pub fn of((lower, upper): (Option<f64>, Option<f64>)) -> Self {
        Self { lower, upper }
    }
}

/// The loads that a search may offer.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    /// The first load.
    pub first: f64,
    /// The lowest load.
    pub min: f64,
    /// The highest load.
    pub max: f64,
}

/// The next step of a phase.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Next {
    /// A trial at this load.
    Measure(f64),
    /// None: the bounds are close enough.
    Reached,
    /// None: the lowest load is an upper bound.
    NoLowerBound,
    /// None: the highest load is a lower bound.
    NoUpperBound,
}

/// Largest step of a search outside the bounds, as a part of the load.
const STEP_MAX: f64 = 0.5;

/// The next step of the phase `target`.
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

/// The step doubles with each load on the same side, beginning with the target's width.
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
