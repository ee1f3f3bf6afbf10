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
use crate::lab::{PRIORITY_MEASURE, on_core, wire};
use crate::options::check_failed;
use crate::report::write_files;
use attacker::{Attack, Attacker, Program};
use crosspoint_frame::Clock;
use options::{FairnessOptions, Victim};
use std::time::{Duration, Instant};
use table::{Round, Row, report};
use victim::Connected;

/// Time after each change until rates are stable.
const SETTLE: Duration = Duration::from_millis(200);

/// Runs `crosspoint-bench fairness`.
pub fn run(options: &FairnessOptions) -> Result<(), BenchError> {
    options.check()?;
    interrupt::catch()?;
    let program = Program::build(options.attacker.as_ref())?;
    let attacks = program.attacks()?;
    if options.list {
        for attack in &attacks {
            println!("{}: {}", attack.name, attack.about);
        }
        return Ok(());
    }
    let attacks = options.choose(attacks)?;
    if options.burst {
        return burst::run(options, &program, &attacks);
    }
    if options.victim.contains(&Victim::Nic) {
        wire::enter_namespace()?;
    }
    let clock = Clock::calibrate();
    let machine = options.cores.machine(clock);
    let mut rows = Vec::new();
    for attack in &attacks {
        for victim in &options.victim {
            eprintln!("{} on {}", attack.name, victim.name());
            let mut row = Row::new(attack, *victim, victim.fair_part(options));
            match measure(options, &program, attack, clock, &mut row) {
                Err(BenchError::Interrupted) => return Err(BenchError::Interrupted),
                measured => row.failed = measured.err().map(|why| why.to_string()),
            }
            rows.push(row);
            if let Some(directory) = &options.out {
                let report = format!("{machine}.\n\n{}", report(options, &rows));
                write_files(directory, &(&machine, &rows), &report)?;
            }
        }
    }
    let output = &options.crosspoint.output;
    output.finish(&machine, &report(options, &rows), &rows)?;
    check_failed(rows.iter().filter(|row| row.failed.is_some()).count())
}

/// Measures one row.
fn measure(
    options: &FairnessOptions,
    program: &Program,
    attack: &Attack,
    clock: Clock,
    row: &mut Row,
) -> Result<(), BenchError> {
    let setup = row.victim.setup(options, attack)?;
    let started = options.crosspoint.start(&setup)?;
    let core = options.cores.generator_core;
    // The generator's thread has ordinary priority: `--realtime` is for the measurements.
    on_core(core, false, || {
        let mut connected = row.victim.connect(options, &started, clock)?;
        let sockets = row.victim.attackers_sockets(options, &started);
        // With higher priority than the generator, which polls: the attacker's checks of the ring are short.
        let mut attacker = program.start(attack, core, PRIORITY_MEASURE, sockets)?;
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
    let mut observe = || {
        std::thread::sleep(SETTLE);
        connected.observe(options)
    };
    let is_first = number.is_multiple_of(2);
    let before = is_first.then(&mut observe).transpose()?;
    attacker.attack()?;
    let begun = Instant::now();
    let attacked = observe();
    attacker.hold()?;
    row.attack_seconds += begun.elapsed().as_secs_f64();
    let attacked = attacked?;
    let alone = match before {
        Some(alone) => alone,
        None => observe()?,
    };
    let lost = attacked.loss() * 100.0;
    eprintln!(
        "  {:.3} Mpps alone, {:.3} under attack, {lost:.2} % lost",
        alone.mpps, attacked.mpps
    );
    row.rounds.push(Round { alone, attacked });
    Ok(())
}
