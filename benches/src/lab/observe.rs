//! Observations around a trial, and why it is discarded.

use crate::lab::Placement;
use serde::Serialize;
use std::sync::atomic::{AtomicU64, Ordering};

/// Observations around the traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Observed {
    /// A line's round trip between the two cores, before and after.
    pub round_trips_ns: [Option<f64>; 2],
    /// The placement that follows from them.
    pub placement: Placement,
    /// Percent of the time that the generator's thread waited for its core.
    pub generator_wait: Option<f64>,
    /// Percent of the time that the switch's worker waited for its core.
    pub switch_wait: Option<f64>,
    /// Cycles per frame from a guest in poll iterations with work; crosspoint only.
    pub busy_cycles: Option<f64>,
    /// Clock of the slowest of the cores, before and after.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clock_ghz: Option<f64>,
    /// Shares of the switch's core, in measurements of NICs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shares: Option<Shares>,
}

/// Cycles of the switch's core, by the time stamp counter, per frame that arrived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Shares {
    /// In the switch's program: with crosspoint, in poll iterations with work.
    pub user: Option<f64>,
    /// In the kernel for the switch's thread; without a thread, on its core.
    pub kernel: Option<f64>,
    /// In softirq on that core.
    pub softirq: Option<f64>,
}

impl Observed {
    /// Whether the slowest core is much slower than the slowest one of another trial of this run: such trials cannot be
    /// compared.
    fn is_slow(&self) -> bool {
        let ghz = self.clock_ghz.unwrap_or(0.0);
        // The bits of positive numbers have the same order as the numbers.
        let fastest = FASTEST_GHZ.fetch_max(ghz.to_bits(), Ordering::Relaxed);
        self.clock_ghz.is_some() && ghz < f64::from_bits(fastest) * CLOCK_MIN
    }
}

/// The highest [`Observed::clock_ghz`] of all trials so far, as bits.
static FASTEST_GHZ: AtomicU64 = AtomicU64::new(0);
/// A trial counts if its clock reaches this part of the highest.
pub const CLOCK_MIN: f64 = 0.85;

/// Why a trial does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Discard {
    /// A thread waited for its core.
    Waited,
    /// Neither near nor far, before and after.
    Placement,
    /// A core was slower than in other trials.
    Clock,
    /// No frame arrived.
    NoTraffic,
}

impl Discard {
    /// Why a trial in which `arrived` frames arrived does not count; `wait_max` is the allowed waiting time of a thread, in
    /// percent.
    pub fn of(arrived: u64, observed: &Observed, wait_max: f64) -> Option<Self> {
        let is_slow = observed.is_slow();
        let waits = [observed.generator_wait, observed.switch_wait];
        if arrived == 0 {
            Some(Self::NoTraffic)
        } else if waits.into_iter().flatten().any(|wait| wait > wait_max) {
            Some(Self::Waited)
        } else if is_slow {
            Some(Self::Clock)
        } else if observed.placement == Placement::Mixed {
            Some(Self::Placement)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_counts_unless_something_was_wrong() {
        let near = Observed {
            placement: Placement::Near,
            switch_wait: Some(0.1),
            ..Observed::default()
        };
        let waited = Observed {
            switch_wait: Some(2.5),
            ..near
        };
        let of = |arrived, observed: &Observed| Discard::of(arrived, observed, 2.0);
        assert_eq!(of(990, &near), None);
        assert_eq!(of(990, &waited), Some(Discard::Waited));
        assert_eq!(of(990, &Observed::default()), Some(Discard::Placement));
        assert_eq!(of(0, &near), Some(Discard::NoTraffic));
    }
}
