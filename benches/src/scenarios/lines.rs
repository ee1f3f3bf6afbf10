//! `lines`: cache lines that cross between a guest's core and the switch's, counted by a model; what one costs on this
//! machine; and what the switch needs besides. The README explains the model.

use crate::error::BenchError;
use crate::interrupt;
use crate::lab::{CLOCK_MIN, Crew, Crosspoint, Discard, Placement, Setup, on_core, pin, placement};
use crate::load::{GuestSet, GuestSetOptions, Load, Scenario};
use crate::options::{CoreOptions, CrosspointOptions, RoundOptions};
use crate::report::{Table, number};
use crate::stats::median;
use clap::Args;
use crosspoint_frame::{Clock, tsc};
use serde::Serialize;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// Lines of one measurement: as many as a ring has frames, and few enough for every core's own cache.
const LINES: usize = 256;
/// Distance between two lines, in lines, like that of buffers: the processor's prefetchers do not predict it.
const STRIDE: usize = 5;
/// Measurements of each kind in each placement probe.
const PASSES: usize = 40;
/// Placement probes.
const PROBES: usize = 12;
/// Frames that a sender makes available at once.
const BURST: f64 = 32.0;
/// Repeats of the example that measures the switch alone.
const REPEATS: &str = "3000";

/// Number of runs of the example.
const TIMES: u32 = 4;

/// Options of `lines`.
#[derive(Args, Clone, Debug)]
pub struct LinesOptions {
    #[command(flatten)]
    pub rounds: RoundOptions,
    #[command(flatten)]
    pub cores: CoreOptions,
    #[command(flatten)]
    pub crosspoint: CrosspointOptions,
    /// Length of a trial, milliseconds
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    pub trial_ms: u64,
    /// The example by_turns of crosspoint-engine, which measures what the switch needs if no line crosses; default: in
    /// examples next to this binary, if it exists
    #[arg(long, value_name = "PATH")]
    pub by_turns: Option<PathBuf>,
}

/// Cache lines that the switch's core must fetch, or take away from the guest's core, for 64-byte frames in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Crossing {
    /// Per frame: lines that the guest wrote last, and the switch reads; and lines that the guest read last, and the switch
    /// writes.
    pub frame: [f64; 2],
    /// The same per burst.
    pub burst: [f64; 2],
}

impl Crossing {
    /// The counts, by virtio's ring layouts and by what drivers write and read.
    pub fn of(packed: bool, mergeable: bool) -> Self {
        // A line holds four descriptors; drivers write those of both rings again and again.
        let descriptors = 2.0 / 4.0;
        // The first line of a frame. A driver writes the header's line only if it differs from the one before.
        let frame_sent = 1.0;
        // The header's line and the frame's. Without mergeable buffers, drivers do not read the header.
        let frame_received = if mergeable { 2.0 } else { 1.0 };
        if packed {
            // The switch writes used entries into the descriptors.
            return Self {
                frame: [descriptors + frame_sent, descriptors + frame_received],
                burst: [0.0; 2],
            };
        }
        // A line holds 32 available entries or 8 used ones, in both rings. In addition, each ring has an available and a
        // used index.
        let available = 2.0 / 32.0;
        let used = 2.0 / 8.0;
        Self {
            frame: [descriptors + frame_sent + available, frame_received + used],
            burst: [2.0; 2],
        }
    }

    /// Cycles per frame, if a line read and a line written have these costs.
    fn cycles(&self, costs: [f64; 2]) -> f64 {
        let of = |i: usize| (self.frame[i] + self.burst[i] / BURST) * costs[i];
        of(0) + of(1)
    }
}

/// The cost of a line to the core that needs it, cycles.
#[derive(Clone, Copy, Debug, Serialize)]
struct Cost {
    placement: Placement,
    /// Clock of the slower core.
    ghz: f64,
    /// Lines written by the other core; many independent reads.
    read: f64,
    /// Lines read by the other core; many writes.
    write: f64,
    /// Lines written by the other core; each holds the number of the next one.
    alone: f64,
}

/// A cache line.
#[repr(align(64))]
#[derive(Default)]
struct Line(AtomicU64);

/// The data that both threads use.
struct Shared {
    lines: Vec<Line>,
    /// Whose step it is: even numbers are the generator's.
    turn: AtomicU32,
}

impl Shared {
    fn new() -> Self {
        Self {
            lines: (0..LINES * STRIDE).map(|_| Line::default()).collect(),
            turn: AtomicU32::new(0),
        }
    }

    fn line(&self, number: usize) -> &AtomicU64 {
        &self.lines[number * STRIDE].0
    }

    /// Each line holds the number of the next, in an order different from that in memory.
    fn write_all(&self) {
        for number in 0..LINES {
            let next = (number + 97) % LINES;
            self.line(number).store(next as u64, Ordering::Relaxed);
        }
    }

    fn read_all(&self) -> u64 {
        (0..LINES).fold(0, |sum, n| sum + self.line(n).load(Ordering::Relaxed))
    }

    fn follow(&self) -> u64 {
        (0..LINES).fold(0, |at, _| self.line(at as usize).load(Ordering::Relaxed))
    }

    /// Waits for a step; false after the deadline.
    fn wait(&self, turn: u32, deadline: u64) -> bool {
        let mut looks = 0_u32;
        while self.turn.load(Ordering::Acquire) != turn {
            looks = looks.wrapping_add(1);
            if looks.is_multiple_of(1024) && tsc() > deadline {
                return false;
            }
        }
        true
    }

    fn pass(&self, turn: u32) {
        self.turn.store(turn + 1, Ordering::Release);
    }
}

/// Time limit for all passes of a probe.
const PROBE_MAX: Duration = Duration::from_millis(200);

/// The cost of lines to the switch's core, or `None` if a core was busy or moved. Call on the generator's core.
fn probe(options: &LinesOptions, clock: Clock) -> Option<Cost> {
    let core = options.cores.switch_core;
    let before = placement::probe(core, clock);
    let shared = Shared::new();
    let deadline = tsc() + clock.cycles(PROBE_MAX);
    let cycles = std::thread::scope(|scope| {
        let there = scope.spawn(|| {
            pin(core).ok()?;
            want(&shared, deadline)
        });
        give(&shared, deadline);
        there.join().ok().flatten()
    });
    let after = placement::probe(core, clock);
    let clocks = [before.clocks_ghz, after.clocks_ghz].concat();
    let round_trips = [before.round_trip_ns, after.round_trip_ns];
    let [read, write, alone] = cycles?;
    Some(Cost {
        placement: Placement::classify(round_trips, &options.rounds.bounds),
        ghz: clocks.into_iter().fold(f64::INFINITY, f64::min),
        read,
        write,
        alone,
    })
}

/// The generator's part: writes, reads, writes.
fn give(shared: &Shared, deadline: u64) {
    for pass in 0..PASSES as u32 {
        for step in 0..3 {
            let turn = 2 * (3 * pass + step);
            if !shared.wait(turn, deadline) {
                return;
            }
            match step {
                1 => _ = std::hint::black_box(shared.read_all()),
                _ => shared.write_all(),
            }
            shared.pass(turn);
        }
    }
}

/// The switch's part, timed: medians of cycles per line.
fn want(shared: &Shared, deadline: u64) -> Option<[f64; 3]> {
    let mut cycles = [const { Vec::new() }; 3];
    for pass in 0..PASSES as u32 {
        for step in 0..3 {
            let turn = 2 * (3 * pass + step) + 1;
            if !shared.wait(turn, deadline) {
                return None;
            }
            let began = tsc();
            match step {
                0 => _ = std::hint::black_box(shared.read_all()),
                1 => shared.write_all(),
                _ => _ = std::hint::black_box(shared.follow()),
            }
            // Until the stores are done too.
            std::sync::atomic::fence(Ordering::SeqCst);
            cycles[step as usize].push((tsc() - began) as f64 / LINES as f64);
            shared.pass(turn);
        }
    }
    let [read, write, alone] = cycles.map(median);
    Some([read?, write?, alone?])
}

/// One kind of rings, in one placement.
#[derive(Clone, Debug, Serialize)]
struct Row {
    scenario: &'static str,
    placement: Placement,
    crossing: Crossing,
    /// The switch's cost if no line crosses, cycles per frame.
    by_itself: Option<f64>,
    /// Cycles per frame for the lines, if none is waited for, and if each is.
    predicted: [f64; 2],
    /// Busy cycles per frame.
    measured: f64,
    trials: usize,
}

/// Runs `crosspoint-bench lines`.
pub fn run(options: &LinesOptions) -> Result<(), BenchError> {
    options.cores.check()?;
    options.rounds.bounds.check()?;
    interrupt::catch()?;
    let clock = Clock::calibrate();
    let machine = options.cores.machine(clock);
    let costs = costs(options, clock)?;
    let rows = rows(options, clock, &costs)?;
    let text = format!("{}\n{}", cost_table(&costs), row_table(&rows));
    let output = &options.crosspoint.output;
    output.finish(&machine, &text, &(costs, rows))
}

/// Medians of probes, by placement.
fn costs(options: &LinesOptions, clock: Clock) -> Result<Vec<Cost>, BenchError> {
    let probes = on_core(options.cores.generator_core, false, || {
        let probes = (0..PROBES).filter_map(|_| probe(options, clock));
        Ok(probes.collect::<Vec<_>>())
    })?;
    let fastest = probes.iter().map(|probe| probe.ghz).fold(0.0, f64::max);
    let of = |placement: &Placement| {
        let fast = probes.iter().filter(|p| p.ghz > fastest * CLOCK_MIN);
        let here: Vec<_> = fast.filter(|p| p.placement == *placement).collect();
        let middle = |of: fn(&Cost) -> f64| median(here.iter().map(|probe| of(probe)));
        Some(Cost {
            placement: *placement,
            ghz: middle(|probe| probe.ghz)?,
            read: middle(|probe| probe.read)?,
            write: middle(|probe| probe.write)?,
            alone: middle(|probe| probe.alone)?,
        })
    };
    Ok(Placement::ALL.iter().filter_map(of).collect())
}

/// The measurements: a scenario of the suite, and arguments for by_turns.
const KINDS: [(&str, &[&str]); 4] = [
    ("pair-64", &[]),
    ("pair-64-unmerged", &["unmerged"]),
    ("pair-64-packed", &["packed"]),
    ("pair-64-packed-unmerged", &["packed", "unmerged"]),
];

fn rows(options: &LinesOptions, clock: Clock, costs: &[Cost]) -> Result<Vec<Row>, BenchError> {
    let setup = Setup::busy(options.cores.switch_core);
    let started = options.crosspoint.start(&setup)?;
    let (core, realtime) = (options.cores.generator_core, options.crosspoint.realtime);
    let mut measured = Vec::new();
    for (name, _) in KINDS {
        measured.push(on_core(core, realtime, || {
            trials(options, clock, &started, name)
        })?);
    }
    drop(started); // the example needs the core
    let mut rows = Vec::new();
    for ((name, words), trials) in KINDS.into_iter().zip(measured) {
        let scenario: Scenario = name.parse().map_err(BenchError::Usage)?;
        let crossing = Crossing::of(scenario.packed, scenario.mergeable);
        let by_itself = by_itself(options, words);
        for cost in costs {
            let here = trials.iter().filter(|(place, _)| *place == cost.placement);
            let here: Vec<f64> = here.map(|(_, cycles)| *cycles).collect();
            let Some(measured) = median(here.iter().copied()) else {
                continue;
            };
            rows.push(Row {
                scenario: name,
                placement: cost.placement,
                crossing,
                by_itself,
                predicted: [
                    crossing.cycles([cost.read, cost.write]),
                    crossing.cycles([cost.alone, cost.alone]),
                ],
                measured,
                trials: here.len(),
            });
        }
    }
    Ok(rows)
}

/// Busy cycles of the trials that count, each with its placement. Call on the generator's core.
fn trials(
    options: &LinesOptions,
    clock: Clock,
    started: &Crosspoint,
    name: &str,
) -> Result<Vec<(Placement, f64)>, BenchError> {
    let (cores, rounds) = (&options.cores, &options.rounds);
    let scenario: Scenario = name.parse().map_err(BenchError::Usage)?;
    let settings = GuestSetOptions::on(cores.generator_core);
    let mut guests = GuestSet::connect(&started.ports, &scenario, &settings, clock)?;
    let crew = Crew {
        bounds: rounds.bounds,
        realtime: options.crosspoint.realtime,
        clock,
        metrics: Some(started.metrics),
        generators: guests.threads(),
        workers: vec![(cores.switch_core, Some(started.worker))],
    };
    let mut found = Vec::new();
    for _ in 0..rounds.rounds * rounds.trials {
        interrupt::check()?;
        let time = Duration::from_millis(options.trial_ms);
        let (offered, observed) = crew.observe(|| guests.offer(None, time))?;
        let discarded = Discard::of(offered.arrived, &observed, rounds.bounds.wait_max);
        if matches!(discarded, None | Some(Discard::Placement)) {
            let cycles = observed.busy_cycles;
            found.extend(cycles.map(|cycles| (observed.placement, cycles)));
        }
    }
    Ok(found)
}

/// The output of the example, if it exists.
fn by_itself(options: &LinesOptions, words: &[&str]) -> Option<f64> {
    let beside = || {
        let binary = std::env::current_exe().ok()?;
        Some(binary.parent()?.join("examples/by_turns"))
    };
    let path = options.by_turns.clone().or_else(beside)?;
    let once = |_| {
        let output = Command::new(&path).arg(REPEATS).args(words).output().ok()?;
        median_of(&String::from_utf8_lossy(&output.stdout))
    };
    // The core may be slow at times: the lowest value is that of a fast one.
    (0..TIMES).filter_map(once).reduce(f64::min)
}

/// The median in a line of the example: `cycles a frame: 86.4 (1 %), 87.9 (median)`.
fn median_of(text: &str) -> Option<f64> {
    let (before, _) = text.split_once(" (median)")?;
    before.rsplit(' ').next()?.parse().ok()
}

fn cost_table(costs: &[Cost]) -> Table {
    let mut table = Table::new(
        "placement | >clock, GHz | >a line that the other core wrote, read with others | \
         >that it read, written with others | >that it wrote, each read alone",
    );
    for cost in costs {
        let cells = [cost.ghz, cost.read, cost.write, cost.alone].map(number);
        let (name, cells) = (cost.placement.name(), cells.join(" | "));
        table.row(format_args!("{name} | {cells}"));
    }
    table
}

fn row_table(rows: &[Row]) -> Table {
    let mut table = Table::new(
        "scenario | placement | >lines read, a frame | >written | >read, a burst | >written | \
         >by itself | >lines, none waited for | >lines, each waited for | >measured | >trials",
    );
    for row in rows {
        let Crossing { frame, burst } = row.crossing;
        let cycles = [row.predicted[0], row.predicted[1], row.measured].map(number);
        table.row(format_args!(
            "{} | {} | {:.2} | {:.2} | {} | {} | {} | {} | {}",
            row.scenario,
            row.placement.name(),
            frame[0],
            frame[1],
            burst[0],
            burst[1],
            row.by_itself.map_or("-".into(), number),
            cycles.join(" | "),
            row.trials,
        ));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_followed_through_all_of_them() {
        let table = Shared::new();
        table.write_all();
        let sum: u64 = (0..LINES as u64).sum();
        assert_eq!(table.read_all(), sum);
        assert_eq!(table.follow(), 0, "a circle of all lines");
    }

    #[test]
    fn the_examples_line_is_understood() {
        let line = "cycles a frame: 86.4 (1 %), 87.9 (median)\n";
        assert_eq!(median_of(line), Some(87.9));
        assert_eq!(median_of("error"), None);
    }
}
