//! `idle`: the cost of a worker with little to do, and how soon it wakes.

use crate::error::BenchError;
use crate::interrupt;
use crate::lab::metrics::read_sum;
use crate::lab::{Crosspoint, Setup, on_core};
use crate::load::{Floor, Gaps, Pair, Times, WakeTimes, wake_worker};
use crate::options::{CoreOptions, CrosspointOptions, FCS_LEN};
use crate::random::Random;
use crate::report::Table;
use clap::Args;
use crosspoint_frame::Clock;
use serde::Serialize;
use std::time::{Duration, Instant};

/// Wakes of the worker in a block; as many of the floor follow.
const BLOCK: u64 = 100;
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
    /// An interface that is a port too; may be repeated
    #[arg(long, value_name = "NAME")]
    pub interface: Vec<String>,
}

/// Runs `crosspoint-bench idle`.
pub fn run(options: &IdleOptions) -> Result<(), BenchError> {
    options.cores.check()?;
    interrupt::catch()?;
    let clock = Clock::calibrate();
    let idle_spin_us = options.idle_spin_us;
    let (core, realtime) = (options.cores.generator_core, options.crosspoint.realtime);
    let started = options.crosspoint.start_realtime(&Setup {
        workers: format!("poll = \"adaptive\"\nidle_spin = \"{idle_spin_us}us\"\n"),
        interfaces: options.interface.clone(),
        ..Setup::busy(options.cores.switch_core)
    })?;
    let (shares, wakes) = on_core(core, realtime, || {
        let sockets = &started.ports.sockets;
        let mut pair = Pair::connect(sockets, usize::from(64 - FCS_LEN))?;
        let shares = shares(options, &started, &mut pair)?;
        Ok((shares, time_wakes(options, &mut pair, clock)?))
    })?;
    let text = format!("{}\n{}", share_table(&shares), wake_table(&wakes));
    let machine = options.cores.machine(clock);
    let output = &options.crosspoint.output;
    output.finish(&machine, &text, &(shares, wakes))
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
