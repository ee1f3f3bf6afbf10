//! `fairness`: how much hostile guests take from other guests of their worker.
//!
//! One worker on one core. The victim's generator and the attacker share the other core. The attacker offers its rings'
//! entries again and again, which takes little of it. Rounds "alone" and "under attack" alternate.
//!
//! | module | what |
//! |---|---|
//! | [`attacker`] | the attacker, a separate program |
//! | [`burst`] | the longest bursts that attacks make |
//! | [`dpdk`] | DPDK's guests as the victim |
//! | [`victim`] | the victims, and their results |
//! | [`table`] | the rows |

mod attacker;
mod burst;
mod dpdk;
mod table;
mod victim;

use crate::error::BenchError;
use crate::interrupt;
use crate::machine::Machine;
use crate::nic::wire;
use crate::options::{Direction, PlanOptions};
use crate::results::Bounds;
use crate::suite::scenario::matches;
use crate::threads::PRIORITY_MEASURE;
use crate::turns::on_core;
use attacker::{Attack, Attacker, Program};
use clap::{Args, ValueEnum};
use crosspoint_frame::Clock;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use table::{Results, Round, Row, report};
use victim::{Connected, Victim};

/// Time after each change until rates are stable.
const SETTLE: Duration = Duration::from_millis(200);

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
    fn list(self) -> &'static [Victim] {
        match self {
            Self::Guest => &[Victim::Guest],
            Self::Nic => &[Victim::Nic],
            Self::Dpdk => &[Victim::Dpdk],
            Self::Both => &[Victim::Guest, Victim::Nic],
        }
    }
}

impl FairnessOptions {
    fn rounds(&self) -> u32 {
        self.rounds.unwrap_or(if self.quick { 2 } else { 5 })
    }

    /// Length of a measurement.
    pub fn time(&self) -> Duration {
        let default = if self.quick { 0.3 } else { 1.0 };
        Duration::from_secs_f64(self.seconds.unwrap_or(default))
    }

    fn check(&self) -> Result<(), BenchError> {
        let seconds = self.seconds.unwrap_or(1.0);
        if !(0.01..=60.0).contains(&seconds) {
            return Err(BenchError::Usage("--seconds: from 0.01 to 60".into()));
        }
        if !self.guests.is_multiple_of(2) {
            let what = format!("--guests {}: they come in pairs", self.guests);
            return Err(BenchError::Usage(what));
        }
        self.plan().check()
    }

    /// Direction of the guests' traffic.
    pub fn direction(&self) -> Direction {
        match self.guests {
            2 => self.direction,
            _ => Direction::OneWay,
        }
    }

    /// Options for callers that need a whole plan.
    fn plan(&self) -> PlanOptions {
        PlanOptions {
            rounds: self.rounds(),
            trials: 1,
            switch_core: self.switch_core,
            generator_core: self.generator_core,
            near_ns: self.near_ns,
            far_ns: self.far_ns,
            wait_max: 100.0,
            json: None,
        }
    }

    fn settings(&self) -> String {
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
    fn choose(&self, all: &[Attack]) -> Result<Vec<Attack>, BenchError> {
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

/// The folder of the attacker's sources.
fn attacker_source(given: Option<&PathBuf>) -> PathBuf {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../switch/tests/attacker");
    given.cloned().unwrap_or(beside)
}

/// Runs `crosspoint-bench fairness`.
pub fn run(options: &FairnessOptions) -> Result<(), BenchError> {
    options.check()?;
    interrupt::catch()?;
    let program = Program::build(&attacker_source(options.attacker.as_ref()))?;
    let attacks = program.attacks()?;
    if options.list {
        for attack in &attacks {
            println!("{}: {}", attack.name, attack.about);
        }
        return Ok(());
    }
    let attacks = options.choose(&attacks)?;
    if options.burst {
        return burst::run(options, &program, &attacks);
    }
    if options.victim.list().contains(&Victim::Nic) {
        wire::enter_namespace()?;
    }
    let clock = Clock::calibrate();
    let mut results = Results {
        arguments: std::env::args().collect(),
        settings: options.settings(),
        machine: Machine::here(options.generator_core, options.switch_core, clock),
        bounds: Bounds::of(&options.plan()),
        rate: options.rate,
        rows: Vec::new(),
    };
    for attack in &attacks {
        for victim in options.victim.list() {
            eprintln!("{} on {}", attack.name, victim.name());
            results
                .rows
                .push(measure(options, &program, attack, *victim, clock)?);
            write(options, &results)?;
        }
    }
    print!("{}", report(&results));
    let failed = results.rows.iter().filter(|row| row.failed.is_some());
    match failed.count() {
        0 => Ok(()),
        count => Err(BenchError::Usage(format!("{count} rows failed: see above"))),
    }
}

fn write(options: &FairnessOptions, results: &Results) -> Result<(), BenchError> {
    let Some(directory) = &options.out else {
        return Ok(());
    };
    write_files(directory, results, &report(results))
}

/// Writes the results, and the tables made of them.
fn write_files<T: serde::Serialize + ?Sized>(
    directory: &std::path::Path,
    results: &T,
    report: &str,
) -> Result<(), BenchError> {
    let io = || BenchError::io(directory.display().to_string());
    let json = serde_json::to_string_pretty(results)
        .map_err(std::io::Error::from)
        .map_err(io())?;
    std::fs::create_dir_all(directory).map_err(io())?;
    std::fs::write(directory.join("results.json"), json + "\n").map_err(io())?;
    std::fs::write(directory.join("report.md"), report).map_err(io())
}

/// Measures one row. A failure is noted in it, except for an interruption.
fn measure(
    options: &FairnessOptions,
    program: &Program,
    attack: &Attack,
    victim: Victim,
    clock: Clock,
) -> Result<Row, BenchError> {
    let mut row = Row {
        attack: attack.name.clone(),
        about: attack.about.clone(),
        victim,
        fair_part: victim.fair_part(options),
        rounds: Vec::new(),
        attacker: None,
        attack_seconds: 0.0,
        failed: None,
    };
    match fill(options, program, attack, clock, &mut row) {
        Err(BenchError::Interrupted) => return Err(BenchError::Interrupted),
        Err(why) => {
            eprintln!("  failed: {why}");
            row.failed = Some(why.to_string());
        }
        Ok(()) => {}
    }
    Ok(row)
}

fn fill(
    options: &FairnessOptions,
    program: &Program,
    attack: &Attack,
    clock: Clock,
    row: &mut Row,
) -> Result<(), BenchError> {
    let started = row.victim.start_switch(options, attack)?;
    // The generator's thread has ordinary priority: `--realtime` is for the measurements.
    on_core(options.generator_core, false, || {
        let mut connected = row.victim.connect(options, &started, clock)?;
        let sockets = row.victim.attackers_sockets(options, &started);
        // With higher priority than the generator, which polls: the attacker's checks of the ring are short.
        let priority = PRIORITY_MEASURE;
        let mut attacker = program.start(attack, options.generator_core, priority, sockets)?;
        for number in 0..options.rounds() {
            interrupt::check()?;
            round(options, number, &mut attacker, &mut connected, row)?;
        }
        row.attacker = Some(attacker.end()?);
        Ok(())
    })
}

/// Measures alone and under attack: alone first in even rounds, last in odd ones.
fn round(
    options: &FairnessOptions,
    number: u32,
    attacker: &mut Attacker,
    connected: &mut Connected,
    row: &mut Row,
) -> Result<(), BenchError> {
    let mut alone = None;
    if number.is_multiple_of(2) {
        std::thread::sleep(SETTLE);
        alone = Some(connected.observe(options)?);
    }
    attacker.attack()?;
    let begun = Instant::now();
    std::thread::sleep(SETTLE);
    let attacked = connected.observe(options);
    attacker.hold()?;
    row.attack_seconds += begun.elapsed().as_secs_f64();
    let attacked = attacked?;
    let alone = match alone {
        Some(alone) => alone,
        None => {
            std::thread::sleep(SETTLE);
            connected.observe(options)?
        }
    };
    eprintln!(
        "  {:.3} Mpps alone, {:.3} under attack, {:.2} % lost, p99 {:?} and {:?} us",
        alone.mpps,
        attacked.mpps,
        attacked.loss() * 100.0,
        alone.p99_us,
        attacked.p99_us
    );
    row.rounds.push(Round { alone, attacked });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{Cli, Command};
    use clap::Parser;

    fn parse(arguments: &[&str]) -> FairnessOptions {
        let all = ["crosspoint-bench", "fairness"].iter().chain(arguments);
        match Cli::try_parse_from(all).unwrap().command {
            Command::Fairness(options) => *options,
            _ => unreachable!("asked for fairness"),
        }
    }

    #[test]
    fn what_is_asked_for_goes_before_what_quick_means() {
        let options = parse(&["--quick", "--rounds", "4"]);
        assert_eq!(
            (options.rounds(), options.time()),
            (4, Duration::from_millis(300))
        );
        assert_eq!(
            (parse(&[]).rounds(), parse(&[]).time()),
            (5, Duration::from_secs(1))
        );
        assert!(parse(&["--seconds", "0"]).check().is_err());
        assert!(parse(&["--guests", "3"]).check().is_err());
        assert!(parse(&["--switch-core", "0"]).check().is_err());
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
            let chosen = parse(&["--rows", rows]).choose(&all).unwrap();
            chosen.into_iter().map(|a| a.name).collect::<Vec<_>>()
        };
        assert_eq!(names("*").len(), 3);
        assert_eq!(names("tso-*,plain-60"), ["plain-60", "tso-32", "tso-1448"]);
        assert!(parse(&["--rows", "nothing"]).choose(&all).is_err());
    }
}
