//! `idle`: the cost of a worker with little to do, how soon it wakes, and whether a wakeup is ever lost.

use crate::error::BenchError;
use crate::interrupt;
use crate::lab::metrics::read_sum;
use crate::lab::{Crosspoint, Setup, on_core};
use crate::load::{Floor, Gaps, Pair, Times, WakeTimes, pause, wake_worker};
use crate::options::{CoreOptions, CrosspointOptions, FCS_LEN};
use crate::random::Random;
use crate::report::Table;
use clap::Args;
use crosspoint_frame::Clock;
use crosspoint_guest::GuestOptions;
use crosspoint_guest::net::features;
use serde::Serialize;
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
    #[command(flatten)]
    pub cores: CoreOptions,
    #[command(flatten)]
    pub crosspoint: CrosspointOptions,
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
}

/// Runs `crosspoint-bench idle`.
pub fn run(options: &IdleOptions) -> Result<(), BenchError> {
    options.cores.check()?;
    interrupt::catch()?;
    let clock = Clock::calibrate();
    if let Some(sleeps) = options.wakeups {
        return count_lost(options, sleeps, clock);
    }
    let started = options.start(options.idle_spin_us)?;
    let (shares, wakes) = options.on_generator(|| {
        let mut pair = connect(&started, RINGS[0])?;
        let shares = shares(options, &started, &mut pair)?;
        Ok((shares, time_wakes(options, &mut pair, clock)?))
    })?;
    let text = format!("{}\n{}", share_table(&shares), wake_table(&wakes));
    let machine = options.cores.machine(clock);
    let output = &options.crosspoint.output;
    output.finish(&machine, &text, &(shares, wakes))
}

impl IdleOptions {
    fn start(&self, idle_spin_us: u32) -> Result<Crosspoint, BenchError> {
        self.crosspoint.start_realtime(&Setup {
            workers: format!("poll = \"adaptive\"\nidle_spin = \"{idle_spin_us}us\"\n"),
            interfaces: self.interface.clone(),
            ..Setup::busy(self.cores.switch_core)
        })
    }

    fn on_generator<T: Send>(
        &self,
        work: impl FnOnce() -> Result<T, BenchError> + Send,
    ) -> Result<T, BenchError> {
        on_core(self.cores.generator_core, self.crosspoint.realtime, work)
    }
}

/// Layouts of the rings, and how they ask for kicks: name, packed, event index.
type Rings = (&'static str, bool, bool);
const RINGS: [Rings; 4] = [
    ("split", false, false),
    ("split, event index", false, true),
    ("packed", true, false),
    ("packed, event index", true, true),
];

fn connect(started: &Crosspoint, (_, packed, event_index): Rings) -> Result<Pair, BenchError> {
    let mut guest = GuestOptions {
        packed,
        ..GuestOptions::default()
    };
    if event_index {
        guest.features |= features::EVENT_IDX;
    }
    Pair::connect(&started.ports.sockets, &guest, usize::from(64 - FCS_LEN))
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

fn shares(
    options: &IdleOptions,
    started: &Crosspoint,
    pair: &mut Pair,
) -> Result<Vec<Share>, BenchError> {
    let no_worker =
        || BenchError::backend("crosspoint", "its worker has ended, or has no schedstat");
    let ran = || started.worker.ran_ns().ok_or_else(no_worker);
    let one = |rate: &u32| {
        std::thread::sleep(SETTLE);
        let (ran_before, slept_before) = (ran()?, sleeps(started)?);
        let start = Instant::now();
        let frames = trickle(pair, *rate, Duration::from_secs(options.seconds))?;
        Ok(Share {
            rate: *rate,
            seconds: start.elapsed().as_secs_f64(),
            frames,
            ran_ns: ran()? - ran_before,
            sleeps: sleeps(started)? - slept_before,
        })
    };
    options.rates.iter().map(one).collect()
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
        let percent = share.ran_ns as f64 / share.seconds / 1e7;
        let (rate, sleeps) = (share.rate, share.sleeps / share.seconds);
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
    state: &'static str,
    /// "crosspoint", or "floor".
    woken: &'static str,
    #[serde(flatten)]
    times: Times,
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
    let realtime = options.crosspoint.realtime;
    let mut floor = Floor::start(options.cores.switch_core, realtime, clock)?;
    let mut random = Random(1);
    let (mut ours, mut least) = (WakeTimes::new(gaps), WakeTimes::new(gaps));
    for _ in 0..options.wakes.div_ceil(BLOCK) {
        ours.fill(BLOCK, &mut random, clock, || wake_worker(pair, clock))?;
        least.fill(BLOCK, &mut random, clock, || floor.wake())?;
    }
    let mut rows = Vec::new();
    for (woken, times) in [("crosspoint", &ours), ("floor", &least)] {
        if times.lost > 0 {
            let what = format!("{} wakes did not arrive", times.lost);
            return Err(BenchError::backend(woken, what));
        }
        rows.extend(times.rows().map(|(state, times)| WakeRow {
            state,
            woken,
            times,
        }));
    }
    Ok(rows)
}

fn us(ns: u64) -> f64 {
    ns as f64 / 1e3
}

fn wake_table(rows: &[WakeRow]) -> Table {
    let mut table =
        Table::new("worker was |  | >wakes | >p50 us | >p99 us | >p99.9 us | >longest us");
    for WakeRow {
        state,
        woken,
        times,
    } in rows
    {
        let [p50, p99, p999, max] = [times.p50, times.p99, times.p99_9, times.max].map(us);
        table.row(format_args!(
            "{state} | {woken} | {} | {p50:.1} | {p99:.1} | {p999:.1} | {max:.0}",
            times.count
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
    times: Times,
}

fn count_lost(options: &IdleOptions, sleeps: u64, clock: Clock) -> Result<(), BenchError> {
    let started = options.start(SPIN_SHORTEST_US)?;
    let each = sleeps.div_ceil(RINGS.len() as u64);
    let rows = options.on_generator(|| {
        let mut edge = Edge {
            estimate: f64::from(SPIN_SHORTEST_US) / 1e6,
            random: Random(1),
        };
        let mut of_kind = |rings: Rings| {
            eprintln!("{}: {each} sleeps", rings.0);
            sleep_often(&started, rings, each, &mut edge, clock)
        };
        let rows = RINGS.into_iter().map(&mut of_kind);
        rows.collect::<Result<Vec<_>, _>>()
    })?;
    let machine = options.cores.machine(clock);
    let text = lost_table(&rows).to_string();
    options.crosspoint.output.finish(&machine, &text, &rows)?;
    let lost = rows.iter().map(|row| row.lost_wakeups + row.lost_frames);
    match lost.sum::<u64>() {
        0 => Ok(()),
        lost => {
            let what = format!("{lost} wakeups or frames were lost");
            Err(BenchError::backend("crosspoint", what))
        }
    }
}

fn sleep_often(
    started: &Crosspoint,
    rings: Rings,
    target: u64,
    edge: &mut Edge,
    clock: Clock,
) -> Result<LostRow, BenchError> {
    let mut pair = connect(started, rings)?;
    let (begun, slept_before) = (Instant::now(), sleeps(started)?);
    let mut times = WakeTimes::new(Gaps {
        spin: Edge::LONG,
        longest: Edge::LONG,
    });
    let mut row = LostRow {
        rings: rings.0,
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
    row.times = times.asked();
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
            ..0.9 => {
                let later = self.random.between(0.0, Self::WINDOW);
                (self.estimate + later, false)
            }
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
    times: &mut WakeTimes,
    edge: &mut Edge,
    clock: Clock,
) -> Result<(), BenchError> {
    let (gap, is_trial) = edge.next();
    pause(gap, clock);
    let wake = wake_worker(pair, clock)?;
    if is_trial {
        edge.learn(wake.asked);
    }
    row.frames += 1;
    row.asked += u64::from(wake.asked);
    times.note(gap, wake);
    if wake.ns.is_none() {
        let (frame, gap, kicked) = (row.frames, gap * 1e6, wake.asked);
        eprintln!("frame {frame}: nothing arrives; pause {gap:.2} us, kicked: {kicked}");
        pair.kick()?;
        match pair.settle()? {
            0 => row.lost_frames += 1,
            _ => row.lost_wakeups += 1,
        }
    }
    Ok(())
}

fn lost_table(rows: &[LostRow]) -> Table {
    let mut table = Table::new(
        "rings | >frames | >asked for a kick | >before it slept | >sleeps counted by the switch | \
         >lost wakeups | >lost frames | >s | >p50 us | >longest us",
    );
    for row in rows {
        let counts = [
            row.frames,
            row.asked,
            row.found,
            row.sleeps,
            row.lost_wakeups,
            row.lost_frames,
        ];
        let counts = counts.map(|count| count.to_string()).join(" | ");
        let (rings, seconds) = (row.rings, row.seconds);
        let [p50, max] = [row.times.p50, row.times.max].map(us);
        table.row(format_args!(
            "{rings} | {counts} | {seconds:.0} | {p50:.1} | {max:.0}"
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
}
