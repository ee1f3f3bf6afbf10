//! `fairness`: how much hostile guests take from other guests of their worker.
//!
//! One worker on one core. The victim's generator and the attacker share the other core. The attacker offers its rings'
//! entries again and again, which takes little of it. Rounds "alone" and "under attack" alternate.
//!
//! | module | what |
//! |---|---|
//! | [`attacker`] | the attacker, a separate program |
//! | [`burst`] | the longest bursts that attacks make |
//! | [`options`] | the options |
//! | [`victim`] | the victims, and their results |
//! | [`table`] | the rows |

mod attacker;
mod burst;
pub mod options;
mod table;
mod victim;

use crate::error::BenchError;
use crate::interrupt;
use crate::lab::machine::Machine;
use crate::lab::schedule::on_core;
use crate::lab::threads::PRIORITY_MEASURE;
use crate::lab::wire;
use crate::report::write_files;
use attacker::{Attack, Attacker, Program};
use crosspoint_frame::Clock;
use options::{FairnessOptions, Victim};
use std::time::{Duration, Instant};
use table::{Results, Round, Row, report};
use victim::Connected;

/// Time after each change until rates are stable.
const SETTLE: Duration = Duration::from_millis(200);

/// Runs `crosspoint-bench fairness`.
pub fn run(options: &FairnessOptions) -> Result<(), BenchError> {
    options.check()?;
    interrupt::catch()?;
    let program = Program::build(&attacker::source(options.attacker.as_ref()))?;
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
        bounds: options.bounds(),
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
