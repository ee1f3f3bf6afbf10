//! The options of `fairness`.

use super::attacker::Attack;
use crate::error::BenchError;
use crate::lab::Bounds;
use crate::load::scenario::matches;
use crate::options::{CoreOptions, CrosspointOptions, usage};
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
    /// The victims whose loss is measured
    #[arg(long, value_enum, value_delimiter = ',', default_value = "guest,nic")]
    pub victim: Vec<Victim>,
    /// Guests of the victim, in pairs: two send to each other; of more, one of each pair sends to the other
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(2..=512))]
    pub guests: u16,
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
    /// Cores of the worker, and of the victim's generator and the attacker
    #[command(flatten)]
    pub cores: CoreOptions,
    /// A line's round trip below this is `near`
    #[arg(long, default_value_t = 150.0, value_name = "NS")]
    pub near_ns: f64,
    /// A line's round trip above this is `far`
    #[arg(long, default_value_t = 250.0, value_name = "NS")]
    pub far_ns: f64,
    #[command(flatten)]
    pub crosspoint: CrosspointOptions,
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
    /// Two of DPDK's guests that exchange frames, in one testpmd; at full load only.
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

impl FairnessOptions {
    /// Number of rounds.
    pub fn rounds(&self) -> u32 {
        self.rounds.unwrap_or(if self.quick { 2 } else { 5 })
    }

    /// Length of a measurement.
    pub fn time(&self) -> Duration {
        let default = if self.quick { 0.3 } else { 1.0 };
        Duration::from_secs_f64(self.seconds.unwrap_or(default))
    }

    /// Checks combinations of options.
    pub fn check(&self) -> Result<(), BenchError> {
        if !(0.01..=60.0).contains(&self.seconds.unwrap_or(1.0)) {
            return usage("--seconds: from 0.01 to 60");
        }
        if !self.guests.is_multiple_of(2) {
            return usage(format!("--guests {}: they come in pairs", self.guests));
        }
        self.cores.check()?;
        self.bounds().check()
    }

    /// The bounds of near and far. No phase is discarded since a thread waited.
    pub fn bounds(&self) -> Bounds {
        Bounds {
            near_ns: self.near_ns,
            far_ns: self.far_ns,
            wait_max: 100.0,
        }
    }

    /// The settings of a run, as text.
    pub fn settings(&self) -> String {
        format!(
            "Worker on {}, generator and attacker on {}, {} guests, {} rounds of {} s, realtime {}, near below {} ns, far above {} ns.",
            self.cores.switch_core,
            self.cores.generator_core,
            self.guests,
            self.rounds(),
            self.time().as_secs_f64(),
            self.crosspoint.realtime,
            self.near_ns,
            self.far_ns,
        )
    }

    /// The wanted attacks among `all`, in order.
    pub fn choose(&self, mut all: Vec<Attack>) -> Result<Vec<Attack>, BenchError> {
        let is_named = |attack: &Attack| self.rows.iter().any(|row| matches(row, &attack.name));
        all.retain(|attack| !attack.is_once && is_named(attack));
        match all.is_empty() {
            true => usage(format!("--rows {:?}: no attack has such a name", self.rows)),
            false => Ok(all),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::tests::parse;

    #[test]
    fn what_is_asked_for_goes_before_what_quick_means() {
        let options: FairnessOptions = parse(&["--quick", "--rounds", "4"]);
        let quick = Duration::from_millis(300);
        assert_eq!((options.rounds(), options.time()), (4, quick));
        let wrong = ["--seconds=0", "--guests=3", "--switch-core=0"];
        for wrong in wrong {
            assert!(parse::<FairnessOptions>(&[wrong]).check().is_err());
        }
    }
}
