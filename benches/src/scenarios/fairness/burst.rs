//! `fairness --burst`: how long the bursts of each attack hold the worker, and how much work they cause.
//!
//! The worker has only the attacker's ports. So a poll iteration is one burst of the attack, with its calls. Iterations that
//! find nothing are short, and left out.

use super::attacker::{Attack, Program};

use super::options::{FairnessOptions, Victim};
use crate::error::BenchError;
use crate::interrupt;
use crate::lab::crosspoint::Crosspoint;
use crate::lab::schedule::{REALTIME, on_core};
use crate::lab::threads::{PRIORITY_MEASURE, PRIORITY_POLL};
use crate::report::table::Table;
use crate::report::write_files;
use crosspoint_frame::Work;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

/// A poll iteration that takes no longer has found nothing.
const IDLE_NS: u64 = 1_000;
const NAME: &str = "the control socket";

/// The bursts of one attack.
#[derive(Debug, Serialize)]
struct Bursts {
    attack: String,
    /// Poll iterations that were longer than idle ones.
    turns: u64,
    /// Half of them took less, microseconds.
    p50_us: f64,
    /// 99 in 100 took less.
    p99_us: f64,
    /// 999 in 1000 took less. Beyond that, the core was sometimes taken away.
    p999_us: f64,
    /// The longest, whatever its cause.
    max_us: f64,
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
        let row = match measure(options, program, attack) {
            Err(BenchError::Interrupted) => return Err(BenchError::Interrupted),
            Err(why) => failed(attack, &why),
            Ok(row) => row,
        };
        rows.push(row);
        if let Some(directory) = &options.out {
            write_files(directory, &rows, &table(&rows))?;
        }
    }
    print!("{}", table(&rows));
    match rows.iter().filter(|row| row.failed.is_some()).count() {
        0 => Ok(()),
        count => Err(BenchError::Usage(format!("{count} rows failed: see above"))),
    }
}

fn failed(attack: &Attack, why: &BenchError) -> Bursts {
    Bursts {
        failed: Some(why.to_string()),
        ..bursts(&attack.name, &BTreeMap::new(), 0)
    }
}

fn measure(
    options: &FairnessOptions,
    program: &Program,
    attack: &Attack,
) -> Result<Bursts, BenchError> {
    // The victim's ports exist, but no guest is attached to them.
    let victim = Victim::Guest;
    let started = victim.start_switch(options, attack)?;
    if options.realtime {
        let set = started.worker.set_fifo(PRIORITY_POLL);
        set.map_err(BenchError::io(REALTIME))?;
    }
    on_core(options.generator_core, false, || {
        let sockets = victim.attackers_sockets(options, &started);
        let mut attacker =
            program.start(attack, options.generator_core, PRIORITY_MEASURE, sockets)?;
        let before = Seen::of(&started)?;
        attacker.attack()?;
        for _ in 0..options.rounds() {
            interrupt::check()?;
            std::thread::sleep(options.time());
        }
        attacker.hold()?;
        let after = Seen::of(&started)?;
        attacker.end()?;
        let mut turns = after.turns;
        for (ns, count) in before.turns {
            let left = turns.entry(ns).or_default();
            *left = left.saturating_sub(count);
        }
        Ok(bursts(&attack.name, &turns, after.work))
    })
}

/// Readings of the switch's worker.
struct Seen {
    /// Number of poll iterations, by their length in nanoseconds.
    turns: BTreeMap<u64, u64>,
    work: u64,
}

impl Seen {
    fn of(started: &Crosspoint) -> Result<Self, BenchError> {
        #[derive(Deserialize)]
        struct Answer {
            ok: Snapshot,
        }
        #[derive(Deserialize)]
        struct Snapshot {
            status: Status,
        }
        #[derive(Deserialize)]
        struct Status {
            workers: Vec<Worker>,
        }
        #[derive(Deserialize)]
        struct Worker {
            turns: Turns,
            burst_work_max: u64,
        }
        #[derive(Deserialize)]
        struct Turns {
            buckets_ns: Vec<(u64, u64)>,
        }
        let io = || BenchError::io(NAME);
        let mut socket = UnixStream::connect(&started.control).map_err(io())?;
        socket.write_all(b"{\"snapshot\":{}}\n").map_err(io())?;
        let mut line = String::new();
        BufReader::new(socket).read_line(&mut line).map_err(io())?;
        let answer: Answer = serde_json::from_str(&line)
            .map_err(|why| BenchError::backend(NAME, format!("answers {line:.100}: {why}")))?;
        let workers = answer.ok.status.workers.into_iter();
        let worker = workers.take(1).next();
        let worker = worker.ok_or_else(|| BenchError::backend(NAME, "shows no worker"))?;
        Ok(Self {
            turns: worker.turns.buckets_ns.into_iter().collect(),
            work: worker.burst_work_max,
        })
    }
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
        p50_us: us(0.5),
        p99_us: us(0.99),
        p999_us: us(0.999),
        max_us: us(1.0),
        work,
        failed: None,
    }
}

fn table(rows: &[Bursts]) -> String {
    let mut table = Table::new(
        "attack | >turns | >p50 us | >p99 us | >p99.9 us | >max us | >work, units | \
         >of its bound",
    );
    for row in rows.iter().filter(|row| row.failed.is_none()) {
        let times = [row.p50_us, row.p99_us, row.p999_us, row.max_us];
        let times = times.map(|us| format!("{us:.0}")).join(" | ");
        let (attack, turns, work) = (&row.attack, row.turns, row.work);
        let part = work as f64 * 100.0 / f64::from(Work::MOST);
        table.row(format_args!(
            "{attack} | {turns} | {times} | {work} | {part:.0} %"
        ));
    }
    let failed = rows.iter().filter_map(|row| {
        let why = row.failed.as_ref()?;
        Some(format!("\n{} failed: {why}\n", row.attack))
    });
    table.to_string() + &failed.collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_that_found_nothing_are_no_bursts() {
        let turns = [(100, 1_000_000), (5_000, 998), (90_000, 1), (800_000, 1)];
        let bursts = bursts("tso-32", &turns.into_iter().collect(), 214_236);
        assert_eq!(bursts.turns, 1000);
        let times = (bursts.p50_us, bursts.p999_us, bursts.max_us);
        assert_eq!(times, (5.0, 90.0, 800.0));
        let line = "| tso-32 | 1000 | 5 | 5 | 90 | 800 | 214236 | 50 % |";
        assert!(table(&[bursts]).contains(line));
    }
}
