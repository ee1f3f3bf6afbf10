//! Options that several subcommands have.

use crate::error::BenchError;
use crate::lab::{Bounds, Crosspoint, Machine, PRIORITY_POLL, REALTIME, Setup, crosspoint};
use clap::Args;
use crosspoint_frame::Clock;
use serde::Serialize;
use std::path::PathBuf;

/// Bytes of the frame check sequence: in a frame's size by convention, never on a virtio ring.
pub const FCS_LEN: u16 = 4;

/// The cores of one worker and one generator.
#[derive(Args, Clone, Copy, Debug)]
pub struct CoreOptions {
    /// The core of crosspoint's worker; peers must poll on the same one
    #[arg(long, default_value_t = 1)]
    pub switch_core: usize,
    /// Core of generator and sink
    #[arg(long, default_value_t = 0)]
    pub generator_core: usize,
}

/// How often switches are measured in turn, and which trials count.
#[derive(Args, Clone, Copy, Debug)]
pub struct RoundOptions {
    /// Rounds: in each, every switch is started, measured and stopped
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// Trials of each configuration in each round
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub trials: u32,
    #[command(flatten)]
    pub bounds: Bounds,
}

/// The crosspoint that is measured, and the file of the results.
#[derive(Args, Clone, Debug)]
pub struct CrosspointOptions {
    /// The crosspoint binary; default: beside this one
    #[arg(long, value_name = "PATH")]
    pub switch: Option<PathBuf>,
    /// SCHED_FIFO for generator and worker during trials
    #[arg(long)]
    pub realtime: bool,
    #[command(flatten)]
    pub output: OutputOptions,
}

/// The file of the results.
#[derive(Args, Clone, Debug)]
pub struct OutputOptions {
    /// Write every value to this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

impl CoreOptions {
    /// This machine, with the round trip between the two cores.
    pub fn machine(&self, clock: Clock) -> Machine {
        Machine::here(self.generator_core, self.switch_core, clock)
    }

    /// Checks combinations of options: worker and generator need a core each.
    pub fn check(&self) -> Result<(), BenchError> {
        match self.switch_core == self.generator_core {
            true => usage("--switch-core and --generator-core have to differ"),
            false => Ok(()),
        }
    }
}

impl CrosspointOptions {
    /// The crosspoint binary.
    pub fn binary(&self) -> PathBuf {
        crosspoint::binary(self.switch.as_ref())
    }

    /// Starts it.
    pub fn start(&self, setup: &Setup) -> Result<Crosspoint, BenchError> {
        crosspoint::start(&self.binary(), setup)
    }

    /// Starts it, with its first worker under `SCHED_FIFO` from now on if that was asked for.
    pub fn start_realtime(&self, setup: &Setup) -> Result<Crosspoint, BenchError> {
        let started = self.start(setup)?;
        if self.realtime {
            let set = started.worker.set_fifo(PRIORITY_POLL);
            set.map_err(BenchError::io(REALTIME))?;
        }
        Ok(started)
    }
}

impl OutputOptions {
    /// Prints the machine and `text`, and writes `values` to the file, if there is one.
    pub fn finish<T: Serialize + ?Sized>(
        &self,
        machine: &Machine,
        text: &str,
        values: &T,
    ) -> Result<(), BenchError> {
        print!("{machine}.\n\n{text}");
        match &self.json {
            Some(path) => crate::report::write_json(path, machine, values),
            None => Ok(()),
        }
    }
}

/// An error of options that cannot be combined.
pub fn usage<T>(what: impl Into<String>) -> Result<T, BenchError> {
    Err(BenchError::Usage(what.into()))
}

/// An error if rows or scenarios failed, whose reasons were shown.
pub fn check_failed(count: usize) -> Result<(), BenchError> {
    match count {
        0 => Ok(()),
        _ => usage(format!("{count} failed: see above")),
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
    fn worker_and_generator_need_a_core_each() {
        assert!(parse::<CoreOptions>(&[]).check().is_ok());
        let same: CoreOptions = parse(&["--generator-core", "1"]);
        assert!(same.check().is_err());
    }
}
