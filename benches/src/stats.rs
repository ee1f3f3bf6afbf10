//! Medians and quartiles.

use serde::Serialize;
use std::collections::BTreeSet;
use std::fmt;

/// Median and quartiles of some values.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Half of the values are below.
    pub median: f64,
    /// A quarter of them are below.
    pub lower: f64,
    /// Three quarters of them are below.
    pub upper: f64,
}

impl Spread {
    /// The spread of `values`; `None` if there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let at = |part| quantile(&values, part);
        Some(Self {
            median: at(0.5)?,
            lower: at(0.25)?,
            upper: at(0.75)?,
        })
    }
}

/// The median of `values`.
pub fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    Spread::of(values).map(|spread| spread.median)
}

/// The ratio of one switch's values to another's.
pub struct Ratio {
    /// Ratio of the medians.
    pub of_medians: f64,
    /// Ratios of the rounds in which both have values.
    pub by_round: Vec<f64>,
}

impl Ratio {
    /// The ratio of `first` to `second`, both with their rounds; `None` without values, or without a divisor.
    pub fn of(first: &[(u32, f64)], second: &[(u32, f64)]) -> Option<Self> {
        let ratio = |round: Option<u32>| {
            let of = |values: &[(u32, f64)]| {
                let these = values.iter();
                let these = these.filter(|(other, _)| round.is_none_or(|round| round == *other));
                median(these.map(|(_, value)| *value))
            };
            Some(of(first)? / of(second)?)
        };
        let rounds: BTreeSet<u32> = first.iter().map(|(round, _)| *round).collect();
        Some(Self {
            of_medians: ratio(None).filter(|ratio| ratio.is_finite())?,
            by_round: rounds.into_iter().filter_map(|r| ratio(Some(r))).collect(),
        })
    }

    /// The quartiles over rounds, as text.
    pub fn iqr(&self) -> String {
        Spread::of(self.by_round.iter().copied()).map_or(String::new(), |spread| {
            format!("{:.2}-{:.2}", spread.lower, spread.upper)
        })
    }
}

impl fmt::Display for Ratio {
    /// Cells of a table: the ratio of the medians, the quartiles over rounds, the number of rounds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rounds = self.by_round.len();
        write!(f, "{:.2} | {} | {rounds}", self.of_medians, self.iqr())
    }
}

/// The interpolated value below which this part of `sorted` lies.
fn quantile(sorted: &[f64], part: f64) -> Option<f64> {
    let place = part * sorted.len().checked_sub(1)? as f64;
    let (below, above) = (place.floor() as usize, place.ceil() as usize);
    let weight = place - place.floor();
    Some(sorted[below] * (1.0 - weight) + sorted[above] * weight)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_are_interpolated() {
        let spread = Spread::of([4.0, 1.0, 3.0, 2.0]).unwrap();
        let quartiles = (spread.lower, spread.median, spread.upper);
        assert_eq!(quartiles, (1.75, 2.5, 3.25));
        assert_eq!((median([7.0]), median([])), (Some(7.0), None));
    }
}
