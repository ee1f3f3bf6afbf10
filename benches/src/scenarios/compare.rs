//! Compares any switches with any measuring command: starts each switch in turn, runs the command, and makes tables of the
//! lines `RESULT name=number` that it prints.

use crate::error::BenchError;
use crate::interrupt;
use crate::lab::{Discard, Peer, Placement, Process, Thread, Wait, in_turn, on_core, probe, shell};
use crate::options::{CoreOptions, OutputOptions, RoundOptions, usage};
use crate::report::{Sample, tables};
use clap::Args;
use crosspoint_frame::Clock;
use std::time::Duration;
use tempfile::TempDir;

/// Time between two checks of the measuring command.
const LOOK: Duration = Duration::from_millis(50);

/// Options of `compare`.
#[derive(Args, Clone, Debug)]
pub struct CompareOptions {
    #[command(flatten)]
    pub rounds: RoundOptions,
    #[command(flatten)]
    pub cores: CoreOptions,
    #[command(flatten)]
    pub output: OutputOptions,
    /// Name of a switch; ratios are the first switch's to each other one. Repeat all four options for each switch
    #[arg(long, required = true)]
    pub name: Vec<String>,
    /// Shell command that starts it, and ends when it is ready
    #[arg(long, value_name = "COMMAND", required = true)]
    pub start: Vec<String>,
    /// Shell command that stops it
    #[arg(long, value_name = "COMMAND", required = true)]
    pub stop: Vec<String>,
    /// Start of the name of its polling thread, to measure whether it waited for its core; "" if it has none
    #[arg(long, value_name = "PREFIX", required = true)]
    pub thread: Vec<String>,
    /// Shell command that measures: prints lines "RESULT name=number". $SWITCH is the switch's name. Repeat for more: the
    /// distance between the cores is probed for each
    #[arg(long, value_name = "COMMAND", required = true)]
    pub measure: Vec<String>,
}

/// Runs `crosspoint-bench compare`.
pub fn run(options: &CompareOptions) -> Result<(), BenchError> {
    options.cores.check()?;
    options.rounds.bounds.check()?;
    let switches = options.switches()?;
    let names: Vec<String> = switches.iter().map(|switch| switch.name.clone()).collect();
    interrupt::catch()?;
    let clock = Clock::calibrate();
    let mut samples = Vec::new();
    for round in 0..options.rounds.rounds {
        for switch in in_turn(&switches, round) {
            eprintln!("round {round}: {}", switch.name);
            let (worker, _running) = switch.start(options.cores.switch_core)?;
            for _ in 0..options.rounds.trials {
                for command in &options.measure {
                    let of = Of {
                        switch,
                        worker,
                        round,
                    };
                    samples.extend(trial(options, clock, &of, command)?);
                }
            }
        }
    }
    let machine = options.cores.machine(clock);
    let tables = tables(&samples, &names);
    options.output.finish(&machine, &tables, &samples)
}

impl CompareOptions {
    fn switches(&self) -> Result<Vec<Peer>, BenchError> {
        let counts = [&self.start, &self.stop, &self.thread].map(Vec::len);
        if counts != [self.name.len(); 3] {
            return usage("give --name, --start, --stop and --thread equally often");
        }
        let switch = |i: usize| Peer {
            name: self.name[i].clone(),
            start: self.start[i].clone(),
            stop: self.stop[i].clone(),
            thread: self.thread[i].clone(),
        };
        Ok((0..self.name.len()).map(switch).collect())
    }
}

/// A running switch, in one round.
struct Of<'a> {
    switch: &'a Peer,
    worker: Option<Thread>,
    round: u32,
}

fn trial(
    options: &CompareOptions,
    clock: Clock,
    of: &Of,
    command: &str,
) -> Result<Vec<Sample<f64>>, BenchError> {
    interrupt::check()?;
    let (cores, bounds) = (&options.cores, &options.rounds.bounds);
    let probe = || {
        on_core(cores.generator_core, false, || {
            Ok(probe(cores.switch_core, clock).round_trip_ns)
        })
    };
    let before = probe()?;
    let wait = Wait::start(of.worker);
    let results = measure(command, of.switch)?;
    let waited = wait.percent();
    let placement = Placement::classify([before, probe()?], bounds);
    // Trials are long here, and cores move during them: mixed placements get rows of their own.
    let waited = waited.is_some_and(|percent| percent > bounds.wait_max);
    let discarded = waited.then_some(Discard::Waited);
    let sample = |(what, value)| Sample {
        switch: of.switch.name.clone(),
        round: of.round,
        what,
        value,
        placement,
        discarded,
    };
    Ok(results.into_iter().map(sample).collect())
}

/// The output of the measuring command.
fn measure(line: &str, switch: &Peer) -> Result<Vec<(String, f64)>, BenchError> {
    let directory = TempDir::new().map_err(BenchError::io("temporary directory"))?;
    let log = directory.path().join("measure.log");
    let mut command = shell(line);
    let mut child = Process::spawn(command.env("SWITCH", &switch.name), log.clone())?;
    let failed = |what: &str, child: &Process| {
        let what = format!("the measuring command {what}\n{}", child.log_tail());
        BenchError::backend(&switch.name, what)
    };
    let status = loop {
        interrupt::check()?;
        if let Some(status) = child.ended() {
            break status;
        }
        std::thread::sleep(LOOK);
    };
    if !status.success() {
        return Err(failed("failed", &child));
    }
    let output = std::fs::read(&log).map_err(BenchError::io("the measuring command's output"))?;
    let results = results(&String::from_utf8_lossy(&output));
    if results.is_empty() {
        return Err(failed("printed no RESULT", &child));
    }
    Ok(results)
}

/// The results that are numbers.
fn results(output: &str) -> Vec<(String, f64)> {
    let result = |line: &str| {
        let (name, value) = line.strip_prefix("RESULT ")?.split_once('=')?;
        Some((name.to_owned(), value.trim().parse().ok()?))
    };
    output.lines().filter_map(result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_numbers_are_results() {
        let output = "GUEST-UP 1.0\nRESULT ping=ok\nRESULT iperf3_mbps=2334\r\nRESULT x=0.5\n";
        let expected = [("iperf3_mbps".to_owned(), 2334.0), ("x".to_owned(), 0.5)];
        assert_eq!(results(output), expected);
    }
}
