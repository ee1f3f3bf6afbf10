//! Compares any switches with any measuring command: starts each switch in turn, runs the command, and makes tables of the
//! lines `RESULT name=number` that it prints.

use crate::backend::peer::{self, shell};
use crate::backend::process::Process;
use crate::error::BenchError;
use crate::interrupt;
use crate::options::{Peer, PlanOptions};
use crate::placement::{Placement, round_trip_ns};
use crate::samples::{Sample, tables};
use crate::threads::Thread;
use crate::trial::Discard;
use crate::turns;
use crate::watch::Wait;
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
    #[allow(missing_docs, reason = "would become the help's heading")]
    pub plan: PlanOptions,
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
    let plan = &options.plan;
    plan.check()?;
    let switches = switches(options)?;
    let names: Vec<String> = switches.iter().map(|switch| switch.name.clone()).collect();
    interrupt::catch()?;
    let clock = Clock::calibrate();
    let mut samples = Vec::new();
    for round in 0..plan.rounds {
        for switch in turns::in_turn(&switches, round) {
            eprintln!("round {round}: {}", switch.name);
            let (worker, _running) = peer::start(switch, plan.switch_core)?;
            for _ in 0..plan.trials {
                for command in &options.measure {
                    samples.extend(trial(plan, clock, (switch, worker, round), command)?);
                }
            }
        }
    }
    let machine = plan.machine(clock);
    print!("{machine}.\n\n{}", tables(&samples, &names));
    turns::write_json(plan, &machine, &samples)
}

fn switches(options: &CompareOptions) -> Result<Vec<Peer>, BenchError> {
    let count = options.name.len();
    let counts = [
        options.start.len(),
        options.stop.len(),
        options.thread.len(),
    ];
    if counts.iter().any(|other| *other != count) {
        let what =
            "--name, --start, --stop and --thread go together: give each of them equally often";
        return Err(BenchError::Usage(what.into()));
    }
    let switch = |i: usize| Peer {
        name: options.name[i].clone(),
        start: options.start[i].clone(),
        stop: options.stop[i].clone(),
        ports: None,
        thread: options.thread[i].clone(),
    };
    Ok((0..count).map(switch).collect())
}

fn trial(
    plan: &PlanOptions,
    clock: Clock,
    (switch, worker, round): (&Peer, Option<Thread>, u32),
    command: &str,
) -> Result<Vec<Sample>, BenchError> {
    interrupt::check()?;
    let probe =
        || turns::on_generator_core(plan, false, || Ok(round_trip_ns(plan.switch_core, clock)));
    let before = probe()?;
    let wait = Wait::start(worker);
    let results = measure(command, switch)?;
    let waited = wait.percent();
    let placement = Placement::classify([before, probe()?], plan.near_ns, plan.far_ns);
    // Trials are long here, and cores move during them: mixed placements get rows of their own.
    let waited = waited.is_some_and(|percent| percent > plan.wait_max);
    let discarded = waited.then_some(Discard::Waited);
    let sample = |(what, value)| Sample {
        switch: switch.name.clone(),
        round,
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
