//! Options that several subcommands have.

use crate::error::BenchError;
use crate::lab::machine::Machine;
use crate::lab::placement::Bounds;
use clap::{Args, ValueEnum};
use crosspoint_frame::Clock;
use std::path::PathBuf;

/// Bytes of the frame check sequence: in a frame's size by convention, never on a virtio ring.
pub const FCS_LEN: u16 = 4;

/// Options of subcommands that measure switches in turn, with one worker and one generator.
#[derive(Args, Clone, Debug)]
pub struct PlanOptions {
    /// Rounds: in each, every switch is started, measured and stopped
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// Trials of each configuration in each round
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub trials: u32,
    /// The core of crosspoint's worker; peers must poll on the same one
    #[arg(long, default_value_t = 1)]
    pub switch_core: usize,
    /// Core of generator and sink
    #[arg(long, default_value_t = 0)]
    pub generator_core: usize,
    #[command(flatten)]
    pub bounds: Bounds,
    /// Write every trial to this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

impl PlanOptions {
    /// This machine, with the round trip between the two cores.
    pub fn machine(&self, clock: Clock) -> Machine {
        Machine::here(self.generator_core, self.switch_core, clock)
    }

    /// Checks combinations of options.
    pub fn check(&self) -> Result<(), BenchError> {
        check_cores(self.switch_core, self.generator_core)?;
        check_bounds(&self.bounds)
    }
}

/// Worker and generator need a core each.
pub fn check_cores(switch_core: usize, generator_core: usize) -> Result<(), BenchError> {
    match switch_core == generator_core {
        true => usage("--switch-core and --generator-core have to differ"),
        false => Ok(()),
    }
}

/// What is far must not be near.
pub fn check_bounds(bounds: &Bounds) -> Result<(), BenchError> {
    match bounds.near_ns > bounds.far_ns {
        true => usage("--near-ns is more than --far-ns"),
        false => Ok(()),
    }
}

/// An error of options that cannot be combined.
pub fn usage<T>(what: &str) -> Result<T, BenchError> {
    Err(BenchError::Usage(what.into()))
}

/// Options that describe one thing together must be given equally often.
pub fn check_equally_often(names: &str, counts: &[usize]) -> Result<(), BenchError> {
    match counts.windows(2).all(|pair| pair[0] == pair[1]) {
        true => Ok(()),
        false => usage(&format!(
            "{names} go together: give each of them equally often"
        )),
    }
}

/// Direction of the traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Direction {
    /// From the first guest to the second.
    OneWay,
    /// In both directions at the same time.
    Both,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Toggle {
    /// On.
    On,
    /// Off.
    Off,
}

impl Toggle {
    /// As a `bool`.
    pub fn is_on(self) -> bool {
        self == Self::On
    }
}

/// Parses the size of a virtqueue.
pub fn ring_size(text: &str) -> Result<u16, String> {
    match text.parse::<u16>() {
        Ok(size) if size.is_power_of_two() && (2..=32768).contains(&size) => Ok(size),
        _ => Err("a power of two from 2 to 32768".into()),
    }
}

/// Parses two paths with a comma between them.
pub fn socket_pair(text: &str) -> Result<[PathBuf; 2], String> {
    match text.split_once(',') {
        Some((a, b)) if !a.is_empty() && !b.is_empty() && !b.contains(',') => {
            Ok([a.into(), b.into()])
        }
        _ => Err("two paths with a comma between".into()),
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Options as parsed from a command line.
    pub fn parse<T: Args>(arguments: &[&str]) -> T {
        let command = T::augment_args(clap::Command::new("bench"));
        let all = ["bench"].iter().chain(arguments);
        let matches = command.try_get_matches_from(all).unwrap();
        T::from_arg_matches(&matches).unwrap()
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(ring_size("255").is_err());
        assert!(socket_pair("/a").is_err() && socket_pair("/a,/b,/c").is_err());
        let check = |arguments: &[&str]| parse::<PlanOptions>(arguments).check();
        assert!(check(&[]).is_ok());
        assert!(check(&["--generator-core", "1"]).is_err());
        assert!(check(&["--near-ns", "300"]).is_err());
    }
}
