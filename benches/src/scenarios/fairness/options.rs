//! The options of `fairness`.

use super::attacker::Attack;
use crate::error::BenchError;
use crate::lab::placement::Bounds;
use crate::load::scenario::matches;
use crate::options::{Direction, check_bounds, check_cores, usage};
use clap::{Args, ValueEnum};
use serde::Serialize;
use std::path::PathBuf;
use std::time::Duration;

/// Options of `fairness`.
#[derive(Args, Clone, Debug)]
pub struct FairnessOptions {
    /// Names of attacks, or globs over the list: see --list
    #[arg(long, value_delimiter = ',', default_value = "*", value_name = "GLOB")]
    pub rows: Vec<String>,
    /// Print all attacks, and exit
    #[arg(long)]
    pub list: bool,
    /// Measure how long the attacker's bursts hold a worker that serves only the attacker; no victim is measured
    #[arg(long)]
    pub burst: bool,
    /// The victim whose loss is measured
    #[arg(long, value_enum, default_value = "both")]
    pub victim: Victims,
    /// Guests of the victim, in pairs: one sends to the other. With more than 2, frames go one way
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(2..=512))]
    pub guests: u16,
    /// Direction of the traffic between two guests
    #[arg(long, value_enum, default_value = "both")]
    pub direction: Direction,
    /// Rounds of each row, alone and under attack; 5 without --quick
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: Option<u32>,
    /// Length of each measurement, of which a round has up to four; 1 without --quick
    #[arg(long)]
    pub seconds: Option<f64>,
    /// 2 rounds of 0.3 s, unless other values are given: for a first impression, not for figures
    #[arg(long)]
    pub quick: bool,
    /// Frames per second at which times and losses are measured
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub rate: u64,
    /// The core of crosspoint's worker
    #[arg(long, default_value_t = 1)]
    pub switch_core: usize,
    /// The core of the victim's generator, and of the attacker
    #[arg(long, default_value_t = 0)]
    pub generator_core: usize,
    /// A line's round trip below this is `near`
    #[arg(long, default_value_t = 150.0, value_name = "NS")]
    pub near_ns: f64,
    /// A line's round trip above this is `far`
    #[arg(long, default_value_t = 250.0, value_name = "NS")]
    pub far_ns: f64,
    /// SCHED_FIFO for generator and worker during measurements
    #[arg(long)]
    pub realtime: bool,
    /// The crosspoint binary; default: beside this one
    #[arg(long, value_name = "PATH")]
    pub switch: Option<PathBuf>,
    /// The folder of the attacker's sources; default: switch/tests/attacker of the repository that this was built in
    #[arg(long, value_name = "DIR")]
    pub attacker: Option<PathBuf>,
    /// Write report.md and results.json to this directory, after each row
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// A kind of victim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Victim {
    /// Guests that exchange frames, in pairs.
    Guest,
    /// An interface whose frames go to a guest.
    Nic,
    /// Two of DPDK's guests that exchange frames.
    Dpdk,
}

impl Victim {
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Guest => "guest",
            Self::Nic => "nic",
            Self::Dpdk => "dpdk",
        }
    }
}

/// Victims whose loss is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Victims {
    /// Two guests.
    Guest,
    /// An interface.
    Nic,
    /// Two of DPDK's guests, in one testpmd; at full load only.
    Dpdk,
    /// Two guests, and an interface.
    Both,
}

impl Victims {
    pub fn list(self) -> &'static [Victim] {
        match self {
            Self::Guest => &[Victim::Guest],
            Self::Nic => &[Victim::Nic],
            Self::Dpdk => &[Victim::Dpdk],
            Self::Both => &[Victim::Guest, Victim::Nic],
        }
    }
}

impl FairnessOptions {
    pub fn rounds(&self) -> u32 {
        self.rounds.unwrap_or(if self.quick { 2 } else { 5 })
    }

    /// Length of a measurement.
    pub fn time(&self) -> Duration {
        let default = if self.quick { 0.3 } else { 1.0 };
        Duration::from_secs_f64(self.seconds.unwrap_or(default))
    }

    pub fn check(&self) -> Result<(), BenchError> {
        let seconds = self.seconds.unwrap_or(1.0);
        if !(0.01..=60.0).contains(&seconds) {
            return usage("--seconds: from 0.01 to 60");
        }
        if !self.guests.is_multiple_of(2) {
            let what = format!("--guests {}: they come in pairs", self.guests);
            return Err(BenchError::Usage(what));
        }
        check_cores(self.switch_core, self.generator_core)?;
        check_bounds(&self.bounds())
    }

    /// Direction of the guests' traffic.
    pub fn direction(&self) -> Direction {
        match self.guests {
            2 => self.direction,
            _ => Direction::OneWay,
        }
    }

    /// The bounds of near and far. No phase is discarded since a thread waited.
    pub fn bounds(&self) -> Bounds {
        Bounds {
            near_ns: self.near_ns,
            far_ns: self.far_ns,
            wait_max: 100.0,
        }
    }

    pub fn settings(&self) -> String {
        format!(
            "Worker on {}, generator and attacker on {}, {} guests, their frames {}, {} rounds of {} s, realtime {}.",
            self.switch_core,
            self.generator_core,
            self.guests,
            match self.direction() {
                Direction::OneWay => "one way",
                Direction::Both => "both ways",
            },
            self.rounds(),
            self.time().as_secs_f64(),
            self.realtime,
        )
    }

    /// The wanted attacks among `all`, in order.
    pub fn choose(&self, all: &[Attack]) -> Result<Vec<Attack>, BenchError> {
        let is_wanted = |attack: &&Attack| {
            !attack.is_once && self.rows.iter().any(|row| matches(row, &attack.name))
        };
        let chosen: Vec<Attack> = all.iter().filter(is_wanted).cloned().collect();
        if chosen.is_empty() {
            let what = format!("--rows {:?}: no attack has such a name", self.rows);
            return Err(BenchError::Usage(what));
        }
        Ok(chosen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::tests::parse;

    #[test]
    fn what_is_asked_for_goes_before_what_quick_means() {
        let options: FairnessOptions = parse(&["--quick", "--rounds", "4"]);
        assert_eq!(
            (options.rounds(), options.time()),
            (4, Duration::from_millis(300))
        );
        assert_eq!(
            (
                parse::<FairnessOptions>(&[]).rounds(),
                parse::<FairnessOptions>(&[]).time()
            ),
            (5, Duration::from_secs(1))
        );
        assert!(
            parse::<FairnessOptions>(&["--seconds", "0"])
                .check()
                .is_err()
        );
        assert!(
            parse::<FairnessOptions>(&["--guests", "3"])
                .check()
                .is_err()
        );
        assert!(
            parse::<FairnessOptions>(&["--switch-core", "0"])
                .check()
                .is_err()
        );
    }

    #[test]
    fn rows_are_chosen_by_globs_in_the_order_of_the_list() {
        let attack = |name: &str| Attack {
            name: name.into(),
            queue_pairs: 1,
            sinks: 1,
            sink_queue_pairs: 1,
            is_beside_victim: false,
            is_once: false,
            about: String::new(),
        };
        let all = ["plain-60", "tso-32", "tso-1448"].map(attack);
        let names = |rows: &str| {
            let chosen = parse::<FairnessOptions>(&["--rows", rows])
                .choose(&all)
                .unwrap();
            chosen.into_iter().map(|a| a.name).collect::<Vec<_>>()
        };
        assert_eq!(names("*").len(), 3);
        assert_eq!(names("tso-*,plain-60"), ["plain-60", "tso-32", "tso-1448"]);
        assert!(
            parse::<FairnessOptions>(&["--rows", "nothing"])
                .choose(&all)
                .is_err()
        );
    }
}
