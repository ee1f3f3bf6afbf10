//! `fairness --burst`: how long the bursts of each attack hold the worker, and how much work they cause.
//!
//! The worker has only the attacker's ports. So a poll iteration is one burst of the attack, with its calls. Iterations that
//! find nothing are short, and left out.

use super::attacker::{Attack, Program};
use super::options::{FairnessOptions, Victim};
use crate::error::BenchError;
use crate::interrupt;
use crate::lab::{Crosspoint, PRIORITY_MEASURE, on_core};
use crate::options::check_failed;
use crate::report::{Table, write_files};
use crosspoint_frame::Work;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

/// A poll iteration that takes no longer has found nothing.
const IDLE_NS: u64 = 1_000;
const NAME: &str = "the control socket";
/// Quantiles in the table.
const PARTS: [f64; 4] = [0.5, 0.99, 0.999, 1.0];

/// The bursts of one attack.
#[derive(Debug, Default, Serialize)]
struct Bursts {
    attack: String,
    /// Poll iterations that were longer than idle ones.
    turns: u64,
    /// Quantiles of their lengths, microseconds: see [`PARTS`]. In the longest, the core was sometimes taken away.
    us: [f64; PARTS.len()],
    /// The most work of one burst, units.
    work: u64,
    failed: Option<String>,
}

/// Measures each attack, and prints a table.
pub fn run(
    options: &FairnessOptions,
    program: &Program,
    attacks: &[Attack],
) -> Result<(), BenchError> {
    let mut rows = Vec::new();
    for attack in attacks {
        eprintln!("{}", attack.name);
        rows.push(match measure(options, program, attack) {
            Err(BenchError::Interrupted) => return Err(BenchError::Interrupted),
            Err(why) => Bursts {
                attack: attack.name.clone(),
                failed: Some(why.to_string()),
                ..Bursts::default()
            },
            Ok(row) => row,
        });
        if let Some(directory) = &options.out {
            write_files(directory, &rows, &table(&rows))?;
        }
    }
    print!("{}", table(&rows));
    check_failed(rows.iter().filter(|row| row.failed.is_some()).count())
}

fn measure(
    options: &FairnessOptions,
    program: &Program,
    attack: &Attack,
) -> Result<Bursts, BenchError> {
    // The victim's ports exist, but no guest is attached to them.
    let victim = Victim::Guest;
    let setup = victim.setup(options, attack)?;
    let started = options.crosspoint.start_realtime(&setup)?;
    let core = options.cores.generator_core;
    on_core(core, false, || {
        let sockets = victim.attackers_sockets(options, &started);
        let mut attacker = program.start(attack, core, PRIORITY_MEASURE, sockets)?;
        let (before, _) = seen(&started)?;
        attacker.attack()?;
        for _ in 0..options.rounds() {
            interrupt::check()?;
            std::thread::sleep(options.time());
        }
        attacker.hold()?;
        let (mut turns, work) = seen(&started)?;
        attacker.end()?;
        for (ns, count) in before {
            let left = turns.entry(ns).or_default();
            *left = left.saturating_sub(count);
        }
        Ok(bursts(&attack.name, &turns, work))
    })
}

/// The worker's number of poll iterations by their length in nanoseconds, and the most work of one burst.
fn seen(started: &Crosspoint) -> Result<(BTreeMap<u64, u64>, u64), BenchError> {
    let io = || BenchError::io(NAME);
    let mut socket = UnixStream::connect(&started.control).map_err(io())?;
    socket.write_all(b"{\"snapshot\":{}}\n").map_err(io())?;
    let mut line = String::new();
    BufReader::new(socket).read_line(&mut line).map_err(io())?;
    let failed = |why| BenchError::backend(NAME, format!("answers {line:.100}: {why}"));
    let mut answer: serde_json::Value = serde_json::from_str(&line).map_err(failed)?;
    let mut take = |path: &str| {
        let value = answer.pointer_mut(&format!("/ok/status/workers/0/{path}"));
        value.map(serde_json::Value::take).unwrap_or_default()
    };
    let turns: Vec<(u64, u64)> =
        serde_json::from_value(take("turns/buckets_ns")).map_err(failed)?;
    let work = serde_json::from_value(take("burst_work_max")).map_err(failed)?;
    Ok((turns.into_iter().collect(), work))
}

/// The bursts, from poll iterations by their length.
fn bursts(attack: &str, turns: &BTreeMap<u64, u64>, work: u64) -> Bursts {
    let busy = || turns.range(IDLE_NS..).filter(|(_, count)| **count > 0);
    let all: u64 = busy().map(|(_, count)| count).sum();
    let us = |part: f64| {
        let (wanted, mut so_far) = (all as f64 * part, 0.0);
        let reached = busy().find(|(_, count)| {
            so_far += **count as f64;
            so_far >= wanted
        });
        reached.map_or(0.0, |(ns, _)| *ns as f64 / 1e3)
    };
    Bursts {
        attack: attack.into(),
        turns: all,
        us: PARTS.map(us),
        work,
        failed: None,
    }
}

fn table(rows: &[Bursts]) -> String {
    let mut table = Table::new(
        "attack | >turns | >p50 us | >p99 us | >p99.9 us | >max us | >work, units | >of its bound",
    );
    let mut failed = String::new();
    for row in rows {
        let (attack, turns, work) = (&row.attack, row.turns, row.work);
        if let Some(why) = &row.failed {
            failed += &format!("\n{attack} failed: {why}\n");
            continue;
        }
        let times = row.us.map(|us| format!("{us:.0}")).join(" | ");
        let part = work as f64 * 100.0 / f64::from(Work::MOST);
        table.row(format_args!(
            "{attack} | {turns} | {times} | {work} | {part:.0} %"
        ));
    }
    table.to_string() + &failed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_that_found_nothing_are_no_bursts() {
        let turns = [(100, 1_000_000), (5_000, 998), (90_000, 1), (800_000, 1)];
        let bursts = bursts("tso-32", &turns.into_iter().collect(), 214_236);
        let line = "| tso-32 | 1000 | 5 | 5 | 90 | 800 | 214236 | 50 % |";
        assert!(table(&[bursts]).contains(line));
    }
}
