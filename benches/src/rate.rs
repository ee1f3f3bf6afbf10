//! `rate`: how much two guests can send each other without loss and with little, and how long frames take below that.

use crate::backend::{Backend, Switch};
use crate::bench_guests::BenchGuests;
use crate::error::BenchError;
use crate::interrupt;
use crate::latency::{LatencyPlan, LatencyPoint, latency};
use crate::options::{Direction, PairOptions, PlanOptions, RunOptions};
use crate::placement::Placement;
use crate::results::{Machine, Measurement, Results, VERSION};
use crate::search::{Goal, Limits, PDR, SearchResult, search};
use crate::summary;
use crate::threads::Thread;
use crate::trial::Configuration;
use crate::turns;
use crate::watch::Watch;
use clap::{Args, ValueEnum};
use crosspoint_frame::Clock;
use std::path::PathBuf;
use std::time::Duration;

/// Options of `rate`.
#[derive(Args, Clone, Debug)]
pub struct RateOptions {
    #[command(flatten)]
    #[allow(missing_docs, reason = "would become the help's heading")]
    pub plan: PlanOptions,
    #[command(flatten)]
    #[allow(missing_docs, reason = "would become the help's heading")]
    pub run: RunOptions,
    #[command(flatten)]
    #[allow(missing_docs, reason = "would become the help's heading")]
    pub pair: PairOptions,
    #[command(flatten)]
    #[allow(missing_docs, reason = "would become the help's heading")]
    pub search: SearchOptions,
    /// Where to write report.md, results.json and plots
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// Options of a search. Its last trials are as long as all others (`--trial-ms`).
#[derive(Args, Clone, Debug)]
pub struct SearchOptions {
    /// Length of a search's first trials
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    pub initial_trial_ms: u64,
    /// Length of all trials at one load together, when they do not decide earlier; default: five trials
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=600_000))]
    pub duration_sum_ms: Option<u64>,
    /// Partial-drop rate: percent of the frames that may be lost
    #[arg(long, default_value_t = 0.5, value_name = "PERCENT", value_parser = percent)]
    pub partial_drop: f64,
    /// Percent of the trials at a load that may lose more
    #[arg(long, default_value_t = 50.0, value_name = "PERCENT", value_parser = percent)]
    pub exceed: f64,
    /// Bounds are near enough when they differ by so much
    #[arg(long, default_value_t = 1.0, value_name = "PERCENT", value_parser = width)]
    pub width: f64,
    /// Trials of a search at most
    #[arg(long, default_value_t = 400)]
    pub trials_max: usize,
    /// A trial that is disturbed is repeated so often
    #[arg(long, default_value_t = 20)]
    pub repeats: usize,
    /// So many trials in a row of the other placement are set aside
    #[arg(long, default_value_t = 200)]
    pub patience: usize,
    /// The placement to search in; default: that of a search's first trial that counts
    #[arg(long, value_enum)]
    pub placement: Option<AskedPlacement>,
}

/// A placement that a search can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AskedPlacement {
    /// Cores that share a cache.
    Near,
    /// Cores that do not.
    Far,
}

impl SearchOptions {
    /// Non-drop and partial-drop rate, by last trials of this length.
    pub fn goals(&self, trial: Duration) -> Vec<Goal> {
        let initial = Duration::from_millis(self.initial_trial_ms);
        let mut goals = Goal::usual(initial.as_secs_f64(), trial.as_secs_f64());
        for goal in &mut goals {
            goal.exceed_ratio = self.exceed / 100.0;
            goal.width = self.width / 100.0;
            if goal.loss_ratio > 0.0 {
                goal.loss_ratio = self.partial_drop / 100.0;
            }
            if let Some(sum) = self.duration_sum_ms {
                goal.duration_sum = Duration::from_millis(sum).as_secs_f64();
            }
        }
        goals
    }

    /// How long a search goes on.
    pub fn limits(&self) -> Limits {
        Limits {
            trials_max: self.trials_max,
            repeats_max: self.repeats,
            patience: self.patience,
            placement: self.placement.map(|asked| match asked {
                AskedPlacement::Near => Placement::Near,
                AskedPlacement::Far => Placement::Far,
            }),
            ..Limits::default()
        }
    }
}

fn percent(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(percent) if (0.0..100.0).contains(&percent) => Ok(percent),
        _ => Err("a number from 0 to below 100".into()),
    }
}

/// Nearer than a thousandth, trials that long cannot tell.
fn width(text: &str) -> Result<f64, String> {
    match percent(text) {
        Ok(width) if (0.1..=50.0).contains(&width) => Ok(width),
        _ => Err("a number from 0.1 to 50".into()),
    }
}

/// Options of `report`.
#[derive(Args, Clone, Debug)]
pub struct ReportOptions {
    /// What `--out` has written
    #[arg(value_name = "results.json")]
    pub results: PathBuf,
    /// Where to write report.md, results.json and plots
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

/// Runs `crosspoint-bench report`.
pub fn report(options: &ReportOptions) -> Result<(), BenchError> {
    Results::read(&options.results)?.write(&options.out)
}

/// Runs `crosspoint-bench rate`.
pub fn run(options: &RateOptions) -> Result<(), BenchError> {
    options.plan.check()?;
    options.run.check()?;
    interrupt::catch()?;
    let (plan, run) = (&options.plan, &options.run);
    let switches = turns::switches(run)?;
    let clock = Clock::calibrate();
    let mut results = Results {
        version: VERSION,
        arguments: std::env::args().collect(),
        machine: Machine::here(plan, clock),
        switches: switches.iter().map(Switch::name).collect(),
        measurements: Vec::new(),
    };
    for round in 0..plan.rounds {
        for switch in turns::in_turn(&switches, round) {
            eprintln!("round {round}: {}", switch.name());
            let backend = switch.start(plan, run)?;
            for configuration in options.pair.configurations() {
                let (search, latency) = turns::on_generator_core(plan, run.realtime, || {
                    measure(options, clock, &backend, &configuration)
                })?;
                results.measurements.push(Measurement {
                    scenario: scenario(&configuration, options.pair.direction),
                    switch: switch.name(),
                    round,
                    search,
                    latency,
                });
            }
        }
        // After each round: a run takes long, and what it has found so far is of use.
        if let Some(directory) = &options.out {
            results.write(directory)?;
        }
    }
    print!("{}", summary::report(&results, &[]));
    turns::write_json(plan, clock, &results.measurements)
}

fn scenario(configuration: &Configuration, direction: Direction) -> String {
    let Configuration { size, flows } = configuration;
    let flows = match flows {
        1 => "1 flow".into(),
        flows => format!("{flows} flows"),
    };
    match direction {
        Direction::OneWay => format!("{size} B, {flows}"),
        Direction::Both => format!("{size} B, {flows}, both ways"),
    }
}

type Measured = (SearchResult, Vec<LatencyPoint>);

/// One configuration with one switch in one round, on the generator's thread.
fn measure(
    options: &RateOptions,
    clock: Clock,
    backend: &Backend,
    configuration: &Configuration,
) -> Result<Measured, BenchError> {
    let mut guests = BenchGuests::connect(&backend.ports, configuration, &options.pair, clock)?;
    let mut watch = Watch {
        plan: &options.plan,
        realtime: options.run.realtime,
        clock,
        backend,
        generator: Thread::current(),
    };
    let goals = options.search.goals(options.run.trial());
    let limits = options.search.limits();
    let found = search(&mut guests, &mut watch, &goals, &limits)?;
    let partial_drop = found.goal(PDR);
    let plan = LatencyPlan {
        of: partial_drop.and_then(|goal| goal.conditional_throughput),
        trial: options.run.trial(),
        trials: options.plan.trials,
    };
    let limits = Limits {
        placement: found.placement,
        ..limits
    };
    let turns = guests.turns();
    let latency = latency(&mut guests, &mut watch, &limits, plan, Some(&turns))?;
    Ok((found, latency))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{Cli, Command};
    use clap::Parser;

    fn parse(arguments: &[&str]) -> RateOptions {
        let all = ["crosspoint-bench", "rate"].iter().chain(arguments);
        match Cli::try_parse_from(all).unwrap().command {
            Command::Rate(options) => *options,
            _ => unreachable!("asked for rate"),
        }
    }

    #[test]
    fn goals_are_those_of_the_readme_unless_asked_otherwise() {
        let trial = Duration::from_millis(300);
        assert_eq!(parse(&[]).search.goals(trial), Goal::usual(0.06, 0.3));
        let asked = ["--partial-drop", "0.1", "--width", "2", "--exceed", "25"];
        let goals = parse(&asked).search.goals(trial);
        assert_eq!((goals[0].loss_ratio, goals[1].loss_ratio), (0.0, 0.001));
        assert!(goals.iter().all(|goal| goal.width == 0.02));
        assert!(goals.iter().all(|goal| goal.exceed_ratio == 0.25));
    }

    #[test]
    fn a_search_may_be_asked_for_a_placement() {
        assert_eq!(parse(&[]).search.limits().placement, None);
        let far = parse(&["--placement", "far"]).search.limits();
        assert_eq!(far.placement, Some(Placement::Far));
    }

    #[test]
    fn a_scenario_says_what_was_measured() {
        let configuration = Configuration { size: 64, flows: 1 };
        let name = scenario(&configuration, Direction::Both);
        assert_eq!(name, "64 B, 1 flow, both ways");
    }
}
