//! `idle`: the cost of a worker with little to do, how soon it wakes, and whether a wakeup is ever lost.

use crate::error::BenchError;
use crate::interrupt;
use crate::lab::crosspoint::{self, Crosspoint, Setup};
use crate::lab::machine::Machine;
use crate::lab::metrics::read_sum;
use crate::lab::schedule::{REALTIME, on_core};
use crate::lab::threads::PRIORITY_POLL;
use crate::load::pair::Pair;
use crate::load::wakes::{Figures, Floor, Frames, Gaps, Met, Times, Wakeable, pause, wake_often};
use crate::options::{FCS_LEN, check_cores};
use crate::random::Random;
use crate::report::table::Table;
use crate::report::write_json;
use clap::Args;
use crosspoint_frame::Clock;
use crosspoint_guest::GuestOptions;
use crosspoint_guest::net::features;
use serde::Serialize;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// `idle_spin` for `--wakeups`: the shortest that crosspoint accepts.
const SPIN_SHORTEST_US: u32 = 1;
/// Wakes of the worker in a block; as many of the floor follow.
const BLOCK: u64 = 100;
/// Wakes between two readings of the switch's counters.
const CHUNK: u64 = 20_000;
/// A sleeping worker does not respond sooner than this. One that does had announced that it would sleep, but did not sleep
/// yet.
const FOUND: Duration = Duration::from_micros(5);
/// After this many lost wakeups, the run stops.
const LOST_MAX: u64 = 10;
/// Time before the first measured second.
const SETTLE: Duration = Duration::from_secs(1);
const SLEEPS: &str = "crosspoint_worker_sleeps_total";
const WORKER: &str = "worker=\"0\"";

/// Options of `idle`.
#[derive(Args, Clone, Debug)]
pub struct IdleOptions {
    /// The crosspoint binary; default: beside this one
    #[arg(long, value_name = "PATH")]
    pub switch: Option<PathBuf>,
    /// The core of crosspoint's worker
    #[arg(long, default_value_t = 1)]
    pub switch_core: usize,
    /// Core of generator and sink
    #[arg(long, default_value_t = 0)]
    pub generator_core: usize,
    /// How long the worker polls without work before it sleeps, microseconds
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub idle_spin_us: u32,
    /// Frames per second at which the worker's time is measured
    #[arg(long, value_delimiter = ',', default_value = "0,10,100,1000")]
    pub rates: Vec<u32>,
    /// Seconds at each of these rates
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    pub seconds: u64,
    /// Number of wakes to time; the same number for the floor
    #[arg(long, default_value_t = 5000)]
    pub wakes: u64,
    /// The longest pause before a wake, milliseconds
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub pause_ms: u32,
    /// Only test for lost wakeups: this many sleeps, as fast as possible, with pauses that end while the worker goes to
    /// sleep. Fails if a wakeup is lost
    #[arg(long, value_name = "SLEEPS")]
    pub wakeups: Option<u64>,
    /// An interface that is a port too; may be repeated
    #[arg(long, value_name = "NAME")]
    pub interface: Vec<String>,
    /// SCHED_FIFO for worker, floor and generator
    #[arg(long)]
    pub realtime: bool,
    /// Seed of the random pauses
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Write every value to this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

impl IdleOptions {
    fn machine(&self, clock: Clock) -> Machine {
        Machine::here(self.generator_core, self.switch_core, clock)
    }
}

/// Runs `crosspoint-bench idle`.
pub fn run(options: &IdleOptions) -> Result<(), BenchError> {
    check_cores(options.switch_core, options.generator_core)?;
    interrupt::catch()?;
    let clock = Clock::calibrate();
    if let Some(sleeps) = options.wakeups {
        return count_lost(options, sleeps, clock);
    }
    let started = start(options, options.idle_spin_us)?;
    let (shares, wakes) = on_core(options.generator_core, options.realtime, || {
        let mut pair = connect(&started, RingKind::ALL[0])?;
        let shares = shares(options, &started, &mut pair)?;
        Ok((shares, time_wakes(options, &mut pair, clock)?))
    })?;
    let machine = options.machine(clock);
    let (shares_text, wakes_text) = (share_table(&shares), wake_table(&wakes));
    print!("{machine}.\n\n{shares_text}\n{wakes_text}");
    write_json(options.json.as_ref(), &machine, &(shares, wakes))
}

fn start(options: &IdleOptions, idle_spin_us: u32) -> Result<Crosspoint, BenchError> {
    let setup = Setup {
        workers: format!("poll = \"adaptive\"\nidle_spin = \"{idle_spin_us}us\"\n"),
        interfaces: options.interface.clone(),
        ..Setup::busy(options.switch_core)
    };
    let started = crosspoint::start(&crosspoint::binary(options.switch.as_ref()), &setup)?;
    if options.realtime {
        let set = started.worker.set_fifo(PRIORITY_POLL);
        set.map_err(BenchError::io(REALTIME))?;
    }
    Ok(started)
}

/// Layout of the rings, and how they ask for kicks.
#[derive(Clone, Copy, Debug)]
struct RingKind {
    name: &'static str,
    packed: bool,
    event_index: bool,
}

impl RingKind {
    const fn new(name: &'static str, packed: bool, event_index: bool) -> Self {
        Self {
            name,
            packed,
            event_index,
        }
    }

    const ALL: [Self; 4] = [
        Self::new("split", false, false),
        Self::new("split, event index", false, true),
        Self::new("packed", true, false),
        Self::new("packed, event index", true, true),
    ];
}

fn connect(started: &Crosspoint, kind: RingKind) -> Result<Pair, BenchError> {
    let mut guest = GuestOptions {
        packed: kind.packed,
        ..GuestOptions::default()
    };
    if kind.event_index {
        guest.features |= features::EVENT_IDX;
    }
    let [a, b] = [0, 1].map(|number: usize| started.ports.sockets[number].as_path());
    Pair::connect([a, b], [&guest, &guest], usize::from(64 - FCS_LEN))
}

/// A worker's use of its core at one rate.
#[derive(Clone, Debug, Serialize)]
struct Share {
    /// Frames per second.
    rate: u32,
    seconds: f64,
    /// Frames sent.
    frames: u64,
    /// Nanoseconds that the worker's thread ran.
    ran_ns: u64,
    /// Number of times that it slept.
    sleeps: f64,
}

impl Share {
    fn percent(&self) -> f64 {
        self.ran_ns as f64 / self.seconds / 1e7
    }
}

fn shares(
    options: &IdleOptions,
    started: &Crosspoint,
    pair: &mut Pair,
) -> Result<Vec<Share>, BenchError> {
    let ran = || started.worker.ran_ns().ok_or_else(no_worker);
    let one = |rate: &u32| {
        std::thread::sleep(SETTLE);
        let (ran_before, slept_before) = (ran()?, sleeps(started)?);
        let start = Instant::now();
        let frames = trickle(pair, *rate, Duration::from_secs(options.seconds))?;
        let seconds = start.elapsed().as_secs_f64();
        Ok(Share {
            rate: *rate,
            seconds,
            frames,
            ran_ns: ran()? - ran_before,
            sleeps: sleeps(started)? - slept_before,
        })
    };
    options.rates.iter().map(one).collect()
}

fn no_worker() -> BenchError {
    BenchError::backend("crosspoint", "its worker has ended, or has no schedstat")
}

/// Sends single frames, and sleeps in between. Returns the number of frames.
fn trickle(pair: &mut Pair, rate: u32, time: Duration) -> Result<u64, BenchError> {
    let start = Instant::now();
    if rate == 0 {
        std::thread::sleep(time);
        return Ok(0);
    }
    let mut frames = 0_u32;
    loop {
        interrupt::check()?;
        let due = Duration::from_secs(1) * frames / rate;
        if due >= time {
            return Ok(frames.into());
        }
        std::thread::sleep(due.saturating_sub(start.elapsed()));
        pair.receive(|_| ())?;
        pair.send(1, 0)?;
        frames += 1;
    }
}

fn sleeps(started: &Crosspoint) -> Result<f64, BenchError> {
    read_sum(started.metrics, SLEEPS, WORKER).map_err(BenchError::io("metrics"))
}

fn share_table(shares: &[Share]) -> Table {
    let mut table =
        Table::new(">frames/s | >worker's share of its core | >sleeps/s | >us per sleep");
    for share in shares {
        let each = match share.sleeps {
            0.0 => String::new(),
            sleeps => format!("{:.1}", share.ran_ns as f64 / 1e3 / sleeps),
        };
        let (rate, percent, sleeps) = (share.rate, share.percent(), share.sleeps / share.seconds);
        table.row(format_args!(
            "{rate} | {percent:.2} % | {sleeps:.1} | {each}"
        ));
    }
    table
}

/// Times of wakes of one kind.
#[derive(Clone, Debug, Serialize)]
struct WakeRow {
    /// The worker's state at the wake.
    met: &'static str,
    /// "crosspoint", or "floor".
    who: &'static str,
    #[serde(flatten)]
    figures: Figures,
}

fn time_wakes(
    options: &IdleOptions,
    pair: &mut Pair,
    clock: Clock,
) -> Result<Vec<WakeRow>, BenchError> {
    let gaps = Gaps {
        spin: f64::from(options.idle_spin_us) / 1e6,
        longest: f64::from(options.pause_ms) / 1e3,
    };
    let mut floor = Floor::start(options.switch_core, options.realtime, clock)?;
    let mut random = Random(options.seed);
    let (mut ours, mut least) = (Times::new(clock), Times::new(clock));
    let blocks = options.wakes.div_ceil(BLOCK);
    for _ in 0..blocks {
        let mut frames = Frames { pair, clock };
        wake_often(&mut frames, BLOCK, gaps, &mut random, &mut ours)?;
        wake_often(&mut floor, BLOCK, gaps, &mut random, &mut least)?;
    }
    drop(floor);
    for (who, times) in [("crosspoint", &ours), ("floor", &least)] {
        if times.lost > 0 {
            let what = format!("{} of {} did not arrive", times.lost, blocks * BLOCK);
            return Err(BenchError::backend(who, what));
        }
    }
    let mut rows = Vec::new();
    for met in Met::ALL {
        for (who, times) in [("crosspoint", &ours), ("floor", &least)] {
            let row = |figures| WakeRow {
                met: met.name(),
                who,
                figures,
            };
            rows.extend(times.figures(met).map(row));
        }
    }
    Ok(rows)
}

fn wake_table(rows: &[WakeRow]) -> Table {
    let mut table =
        Table::new("worker was |  | >wakes | >p50 us | >p99 us | >p99.9 us | >longest us");
    for row in rows {
        let of = &row.figures;
        table.row(format_args!(
            "{} | {} | {} | {:.1} | {:.1} | {:.1} | {:.0}",
            row.met, row.who, of.count, of.p50_us, of.p99_us, of.p999_us, of.max_us,
        ));
    }
    table
}

/// Many sleeps with one kind of rings.
#[derive(Clone, Debug, Default, Serialize)]
struct LostRow {
    rings: &'static str,
    frames: u64,
    /// Of these, the number that had to kick.
    asked: u64,
    /// Of these, the number that found the worker between its request to be kicked and its sleep.
    found: u64,
    /// The switch's count of sleeps.
    sleeps: u64,
    /// Frames that arrived only after the worker was kicked once more.
    lost_wakeups: u64,
    /// Frames that did not arrive even then.
    lost_frames: u64,
    seconds: f64,
    p50_us: f64,
    max_us: f64,
}

fn count_lost(options: &IdleOptions, sleeps: u64, clock: Clock) -> Result<(), BenchError> {
    let started = start(options, SPIN_SHORTEST_US)?;
    let each = sleeps.div_ceil(RingKind::ALL.len() as u64);
    let rows = on_core(options.generator_core, options.realtime, || {
        let mut edge = Edge {
            estimate: f64::from(SPIN_SHORTEST_US) / 1e6,
            random: Random(options.seed),
        };
        let mut of_kind = |kind: &RingKind| {
            eprintln!("{}: {each} sleeps", kind.name);
            sleep_often(&started, *kind, each, &mut edge, clock)
        };
        RingKind::ALL
            .iter()
            .map(&mut of_kind)
            .collect::<Result<Vec<_>, _>>()
    })?;
    let machine = options.machine(clock);
    print!("{machine}.\n\n{}", lost_table(&rows));
    write_json(options.json.as_ref(), &machine, &rows)?;
    let lost: u64 = rows
        .iter()
        .map(|row| row.lost_wakeups + row.lost_frames)
        .sum();
    if lost > 0 {
        let what = format!("{lost} wakeups or frames were lost");
        return Err(BenchError::backend("crosspoint", what));
    }
    Ok(())
}

fn sleep_often(
    started: &Crosspoint,
    kind: RingKind,
    target: u64,
    edge: &mut Edge,
    clock: Clock,
) -> Result<LostRow, BenchError> {
    let mut pair = connect(started, kind)?;
    let (begun, slept_before) = (Instant::now(), sleeps(started)?);
    let mut times = Times::new(clock);
    let mut row = LostRow {
        rings: kind.name,
        ..LostRow::default()
    };
    // The switch counts more sleeps: a kick before the worker sleeps ends its next sleep at once.
    while row.asked - row.found < target && row.lost_wakeups + row.lost_frames < LOST_MAX {
        for _ in 0..CHUNK {
            meet(&mut pair, &mut row, &mut times, edge, clock)?;
        }
        interrupt::check()?;
        row.found = times.asked_within(FOUND);
    }
    row.sleeps = (sleeps(started)? - slept_before) as u64;
    row.seconds = begun.elapsed().as_secs_f64();
    if let Some(Figures { p50_us, max_us, .. }) = times.figures(Met::Asked) {
        (row.p50_us, row.max_us) = (p50_us, max_us);
    }
    Ok(row)
}

/// The time after its last frame at which a worker announces that it will sleep, found by trial.
struct Edge {
    /// Seconds: by then it has announced it in half of the cases.
    estimate: f64,
    random: Random,
}

impl Edge {
    /// How far one trial moves the estimate, seconds.
    const STEP: f64 = 20e-9;
    /// Time from the announcement until it sleeps: at most this, seconds.
    const WINDOW: f64 = 800e-9;
    /// A pause after which it sleeps certainly, seconds.
    const LONG: f64 = 40e-6;

    /// Returns the pause before a frame, seconds, and whether it is a trial of the estimate.
    fn next(&mut self) -> (f64, bool) {
        match self.random.part() {
            ..0.2 => (self.estimate, true),
            ..0.9 => (
                self.estimate + self.random.between(0.0, Self::WINDOW),
                false,
            ),
            _ => (self.random.between(0.0, Self::LONG), false),
        }
    }

    /// Adjusts the estimate after a trial; `asked`: whether the worker had announced its sleep.
    fn learn(&mut self, asked: bool) {
        let step = if asked { -Self::STEP } else { Self::STEP };
        self.estimate = (self.estimate + step).clamp(0.0, Self::LONG);
    }
}

/// Sends one frame, after a pause that ends at about the time when the worker goes to sleep.
fn meet(
    pair: &mut Pair,
    row: &mut LostRow,
    times: &mut Times,
    edge: &mut Edge,
    clock: Clock,
) -> Result<(), BenchError> {
    let (gap, is_trial) = edge.next();
    pause(gap, clock);
    let wake = Frames { pair, clock }.wake()?;
    if is_trial {
        edge.learn(wake.asked);
    }
    row.frames += 1;
    row.asked += u64::from(wake.asked);
    let met = if wake.asked { Met::Near } else { Met::Polling };
    times.note(met, wake);
    if wake.cycles.is_none() {
        eprintln!(
            "frame {}: nothing arrives; pause {:.2} us, kicked: {}",
            row.frames,
            gap * 1e6,
            wake.asked
        );
        pair.kick()?;
        match pair.settle(&mut |_| ())? {
            0 => row.lost_frames += 1,
            _ => row.lost_wakeups += 1,
        }
    }
    Ok(())
}

fn lost_table(rows: &[LostRow]) -> Table {
    let mut table = Table::new(
        "rings | >frames | >asked for a kick | >before it slept | \
         >sleeps counted by the switch | >lost wakeups | >lost frames | >s | >p50 us | \
         >longest us",
    );
    for row in rows {
        table.row(format_args!(
            "{} | {} | {} | {} | {} | {} | {} | {:.0} | {:.1} | {:.0}",
            row.rings,
            row.frames,
            row.asked,
            row.found,
            row.sleeps,
            row.lost_wakeups,
            row.lost_frames,
            row.seconds,
            row.p50_us,
            row.max_us,
        ));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_edge_is_found_by_trying() {
        let mut edge = Edge {
            estimate: 1e-6,
            random: Random(5),
        };
        let is_at = 3.3e-6;
        let mut met = 0;
        for _ in 0..10_000 {
            let (gap, is_trial) = edge.next();
            if is_trial {
                edge.learn(gap > is_at);
            }
            met += u32::from(gap > is_at && gap < is_at + Edge::WINDOW);
        }
        assert!((edge.estimate - is_at).abs() < 2.0 * Edge::STEP);
        assert!(met > 6000, "{met}");
    }

    #[test]
    fn a_share_is_of_one_core() {
        let share = Share {
            rate: 10,
            seconds: 2.0,
            frames: 20,
            ran_ns: 40_000_000,
            sleeps: 40.0,
        };
        assert_eq!(share.percent(), 2.0);
        let table = share_table(&[share]).to_string();
        let row = "| 10 | 2.00 % | 20.0 | 1000.0 |";
        assert!(table.lines().any(|line| line == row), "{table}");
    }
}
