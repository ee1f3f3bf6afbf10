//! Classification of loads by their trials.

use super::goal::Goal;

/// Phases of a search. Each phase's intervals are twice as wide as the next one's.
pub const PHASES: usize = 3;

/// A value may exceed a bound by this much, because of rounding.
const ROUNDING: f64 = 1e-9;

/// A goal in one phase.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    /// Part of the frames that a trial may lose.
    pub loss_ratio: f64,
    /// Part of the trials that may lose more.
    pub exceed_ratio: f64,
    /// Width of the interval, relative to the upper bound.
    pub width: f64,
    /// Length of a full-length trial, seconds.
    pub trial: f64,
    /// Total length of the full-length trials that decide, seconds.
    pub sum: f64,
}

impl Target {
    /// The phases from single short trials to the values of `goal`: lengths and sums grow by a constant ratio.
    pub fn phases(goal: &Goal) -> Vec<Self> {
        let last = PHASES - 1;
        let at = |phase: usize, first: f64, end: f64| match first {
            first if first < end => first * (end / first).powf(phase as f64 / last as f64),
            _ => end,
        };
        let target = |phase| Self {
            loss_ratio: goal.loss_ratio,
            exceed_ratio: goal.exceed_ratio,
            width: (goal.width * f64::from(1 << (last - phase))).min(0.5),
            trial: at(phase, goal.initial_trial, goal.final_trial),
            sum: at(phase, goal.initial_trial, goal.duration_sum),
        };
        (0..PHASES).map(target).collect()
    }
}

/// Class of a load with respect to a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// It loses no more than allowed.
    Lower,
    /// It loses more.
    Upper,
    /// More trials are needed.
    Undecided,
}

/// All trials that count, by load.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// The loads, lowest first.
    loads: Vec<At>,
}

#[derive(Clone, Debug)]
struct At {
    rate: f64,
    trials: Vec<Trial>,
}

#[derive(Clone, Copy, Debug)]
struct Trial {
    seconds: f64,
    loss: f64,
}

impl Known {
    /// Adds a trial at `rate` of `seconds` that lost this part.
    pub fn add(&mut self, rate: f64, seconds: f64, loss: f64) {
        let place = self
            .loads
            .binary_search_by(|load| load.rate.total_cmp(&rate));
        let place = place.unwrap_or_else(|place| {
            let trials = Vec::new();
            self.loads.insert(place, At { rate, trials });
            place
        });
        self.loads[place].trials.push(Trial { seconds, loss });
    }

    /// The class of the load `rate` with respect to `target`.
    pub fn class(&self, rate: f64, target: &Target) -> Class {
        let load = self.loads.iter().find(|load| load.rate == rate);
        load.map_or(Class::Undecided, |load| load.class(target))
    }

    /// The highest lower bound below the lowest upper bound, and the latter.
    pub fn bounds(&self, target: &Target) -> (Option<f64>, Option<f64>) {
        let (mut lower, mut upper) = (None, None);
        for load in &self.loads {
            match load.class(target) {
                Class::Lower => lower = Some(load.rate),
                Class::Upper => {
                    upper = Some(load.rate);
                    break;
                }
                Class::Undecided => {}
            }
        }
        (lower, upper)
    }

    /// The number of loads of this class.
    pub fn count(&self, class: Class, target: &Target) -> usize {
        let of_class = self.loads.iter().filter(|load| load.class(target) == class);
        of_class.count()
    }

    /// Conditional throughput of the load `rate`: `rate` reduced by the loss ratio that only the exceed ratio's part of the
    /// full-length trials exceeds.
    pub fn throughput(&self, rate: f64, target: &Target) -> Option<f64> {
        let load = self.loads.iter().find(|load| load.rate == rate)?;
        let mut trials: Vec<Trial> = load.full_length(target).collect();
        trials.sort_by(|a, b| a.loss.total_cmp(&b.loss));
        let whole: f64 = trials.iter().map(|trial| trial.seconds).sum();
        let mut left = whole * (1.0 - target.exceed_ratio);
        let mut loss = 1.0;
        for trial in trials {
            if left <= whole * ROUNDING {
                break;
            }
            loss = trial.loss;
            left -= trial.seconds;
        }
        Some(rate * (1.0 - loss))
    }
}

impl At {
    fn full_length(&self, target: &Target) -> impl Iterator<Item = Trial> {
        let length = target.trial * (1.0 - ROUNDING);
        let trials = self.trials.iter().copied();
        trials.filter(move |trial| trial.seconds >= length)
    }

    /// Short trials that lose too much count: a longer one would have lost too much as well. Short trials that do not lose
    /// too much only compensate for such.
    fn class(&self, target: &Target) -> Class {
        let length = target.trial * (1.0 - ROUNDING);
        let sum = |full: bool, high: bool| -> f64 {
            let these = self.trials.iter().filter(|trial| {
                (trial.seconds >= length) == full && (trial.loss > target.loss_ratio) == high
            });
            these.map(|trial| trial.seconds).sum()
        };
        let exceed = target.exceed_ratio;
        let made_up_for = sum(false, false) * exceed / (1.0 - exceed);
        let high = sum(true, true) + (sum(false, true) - made_up_for).max(0.0);
        let measured = high + sum(true, false);
        let whole = measured.max(target.sum);
        let missing = whole - measured;
        if high / whole > exceed + ROUNDING {
            Class::Upper
        } else if (high + missing) / whole <= exceed + ROUNDING {
            Class::Lower
        } else {
            Class::Undecided
        }
    }
}
