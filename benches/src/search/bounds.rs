//! What trials at a load say of it.

use super::Goal;

/// Phases of a search. Each has intervals twice as wide as the next.
pub const PHASES: usize = 3;

/// So much more than a bound is rounding.
const ROUNDING: f64 = 1e-9;

/// A goal in one phase.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    /// Part of the frames that a trial may lose.
    pub loss_ratio: f64,
    /// Part of the trials that may lose more.
    pub exceed_ratio: f64,
    /// Relative, of the upper bound.
    pub width: f64,
    /// Length of a full-length trial, seconds.
    pub trial: f64,
    /// Of full-length trials that decide, seconds.
    pub sum: f64,
}

impl Target {
    /// From single short trials to what `goal` asks for: lengths and sums grow in equal steps of their ratio.
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

/// What a load is to a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// It loses no more than allowed.
    Lower,
    /// It loses more.
    Upper,
    /// More trials have to tell.
    Undecided,
}

/// All trials that count, by load.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// The least first.
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
    /// A trial at `rate` of `seconds` lost so much.
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

    /// What the load `rate` is to `target`.
    pub fn class(&self, rate: f64, target: &Target) -> Class {
        let load = self.loads.iter().find(|load| load.rate == rate);
        load.map_or(Class::Undecided, |load| load.class(target))
    }

    /// The highest lower bound below the lowest upper bound, and that.
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

    /// How many loads are of this class.
    pub fn count(&self, class: Class, target: &Target) -> usize {
        let of_class = self.loads.iter().filter(|load| load.class(target) == class);
        of_class.count()
    }

    /// Conditional throughput of the load `rate`: `rate` less the loss ratio that the exceed ratio's part of the full-length trials
    /// exceeds.
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

    /// Short trials that lose too much count: a longer one would have lost it too. Those that do not, only make up for such.
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
