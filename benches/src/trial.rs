//! The results of one trial, and why it is discarded.

use crate::load::Offered;
use crate::options::Direction;
use crate::placement::Placement;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU64, Ordering};

/// A configuration of frames.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Configuration {
    /// Frame size with FCS.
    pub size: u16,
    /// Flows.
    pub flows: u32,
}

/// The guests' measurements.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Traffic {
    /// Length of the trial.
    pub seconds: f64,
    /// Frames that were offered to the switch.
    pub sent: u64,
    /// Frames that arrived, including those after the end of the trial.
    pub arrived: u64,
    /// Millions of frames per second that arrived within the trial.
    pub mpps: f64,
    /// Median time from guest to guest; none with testpmd's guests.
    pub p50_us: Option<f64>,
    /// 99 in 100 frames took less.
    pub p99_us: Option<f64>,
}

impl Traffic {
    /// The traffic of an offer. Frames that a full ring kept from the switch count as sent here, and are lost.
    pub fn of(offered: &Offered) -> Self {
        let latency = &offered.latency_ns;
        let us =
            |part| (!latency.is_empty()).then(|| latency.value_at_quantile(part) as f64 / 1000.0);
        Self {
            seconds: offered.seconds,
            sent: offered.due,
            arrived: offered.arrived,
            mpps: offered.mpps(),
            p50_us: us(0.5),
            p99_us: us(0.99),
        }
    }

    /// Part of the offered frames that did not arrive.
    pub fn loss(&self) -> f64 {
        if self.sent == 0 {
            return 0.0;
        }
        self.sent.saturating_sub(self.arrived) as f64 / self.sent as f64
    }
}

/// Observations around the traffic.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_ghz: Option<f64>,
    /// Shares of the switch's core, in measurements of NICs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shares: Option<Shares>,
}

/// Cycles of the switch's core, by the time stamp counter, per frame that arrived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Shares {
    /// In the switch's program: with crosspoint, in poll iterations with work.
    pub user: Option<f64>,
    /// In the kernel for the switch's thread; without a thread, on its core.
    pub kernel: Option<f64>,
    /// In softirq on that core.
    pub softirq: Option<f64>,
}

impl Observed {
    /// Without observations.
    #[cfg(test)]
    pub fn nothing() -> Self {
        Self {
            round_trips_ns: [None, None],
            placement: Placement::Mixed,
            generator_wait: None,
            switch_wait: None,
            busy_cycles: None,
            clock_ghz: None,
            shares: None,
        }
    }

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

/// One trial.
#[derive(Clone, Debug, Serialize)]
pub struct Trial {
    /// Name of the switch.
    pub switch: String,
    /// From 0.
    pub round: u32,
    /// The configuration.
    #[serde(flatten)]
    pub configuration: Configuration,
    /// Direction of the traffic.
    pub direction: Direction,
    /// The guests' measurements.
    #[serde(flatten)]
    pub traffic: Traffic,
    /// Observations around it.
    #[serde(flatten)]
    pub observed: Observed,
    /// TSC cycles of the switch's core per frame that arrived, idle iterations included.
    pub core_cycles: f64,
    /// Why the trial does not count.
    pub discarded: Option<Discard>,
}

impl Discard {
    /// Why a trial does not count; `wait_max` is the allowed waiting time of a thread, in percent.
    pub fn judge(traffic: &Traffic, observed: &Observed, wait_max: f64) -> Option<Self> {
        Self::of(traffic.arrived, observed, wait_max)
    }

    /// The same for `arrived` frames.
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
pub mod tests {
    use super::*;

    /// A trial that counts.
    pub fn trial(switch: &str, round: u32, placement: Placement, mpps: f64) -> Trial {
        Trial {
            switch: switch.into(),
            round,
            configuration: Configuration { size: 64, flows: 1 },
            direction: Direction::OneWay,
            traffic: Traffic {
                seconds: 0.3,
                sent: 1000,
                arrived: 990,
                mpps,
                p50_us: Some(10.0),
                p99_us: Some(20.0),
            },
            observed: Observed {
                round_trips_ns: [Some(90.0), Some(91.0)],
                placement,
                generator_wait: Some(0.0),
                switch_wait: Some(0.1),
                busy_cycles: Some(100.0),
                clock_ghz: None,
                shares: None,
            },
            core_cycles: 2600.0 / mpps,
            discarded: None,
        }
    }

    #[test]
    fn a_trial_counts_unless_something_was_wrong() {
        let trial = trial("x", 0, Placement::Near, 10.0);
        let judge = |traffic: &Traffic, observed: &Observed| Discard::judge(traffic, observed, 2.0);
        assert_eq!(judge(&trial.traffic, &trial.observed), None);
        let waited = Observed {
            switch_wait: Some(2.5),
            ..trial.observed
        };
        assert_eq!(judge(&trial.traffic, &waited), Some(Discard::Waited));
        let unknown = Observed {
            switch_wait: None,
            ..trial.observed
        };
        assert_eq!(judge(&trial.traffic, &unknown), None);
        let mixed = Observed {
            placement: Placement::Mixed,
            ..trial.observed
        };
        assert_eq!(judge(&trial.traffic, &mixed), Some(Discard::Placement));
        assert_eq!(
            judge(&Traffic::default(), &trial.observed),
            Some(Discard::NoTraffic)
        );
    }

    #[test]
    fn loss_is_a_part_of_what_was_sent() {
        let trial = trial("x", 0, Placement::Near, 10.0);
        assert!((trial.traffic.loss() - 0.01).abs() < 1e-12);
        assert_eq!(Traffic::default().loss(), 0.0);
    }
}
