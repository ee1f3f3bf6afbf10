//! The distance between two cores, by the round trip of a cache line, and the speed of each.
//!
//! The virtual cores of a shared host move between physical ones: within seconds they may share a cache, or no longer share
//! one, and the same program becomes 1.5 to 2.5 times faster or slower. Trials can be compared only if the cores were
//! equally far apart.

use crate::error::BenchError;
use crate::lab::{PRIORITY_MEASURE, Thread, pin};
use clap::Args;
use crosspoint_frame::{Clock, tsc};
use serde::Serialize;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

const VOLLEYS: usize = 400;
const VOLLEYS_MIN: usize = 40;
/// Round trips in a volley.
const VOLLEY: u32 = 20;
/// Number of unsuccessful checks before the clock is read.
const LOOKS: u32 = 1024;
/// Enough for all [`VOLLEYS`], even if other threads have both cores half of the time.
const TIME_MAX: Duration = Duration::from_millis(30);

/// Chunks of [`clock_ghz`], of which the median counts, and the steps in each.
const CHUNKS: usize = 21;
const STEPS: u64 = 500;
/// Cycles of a step: a multiplication takes three, a shift and an exclusive or one each, on every x86-64 of the last ten years.
const STEP_CYCLES: f64 = 5.0;

/// The state of two cores at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Probe {
    /// Median round trip; none if the other thread hardly ran.
    pub round_trip_ns: Option<f64>,
    /// Clocks of this core and of the other one, which the time stamp counter does not show.
    pub clocks_ghz: [f64; 2],
}

/// The bounds within which trials are compared with each other.
#[derive(Args, Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Bounds {
    /// A line's round trip below this is `near`
    #[arg(long, default_value_t = 150.0, value_name = "NS")]
    pub near_ns: f64,
    /// A line's round trip above this is `far`
    #[arg(long, default_value_t = 250.0, value_name = "NS")]
    pub far_ns: f64,
    /// Discard trials in which a thread waited for its core for more than this part of the time
    #[arg(long, default_value_t = 2.0, value_name = "PERCENT")]
    pub wait_max: f64,
}

/// Distance of two cores before and after a trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Placement {
    /// They share a cache.
    Near,
    /// They do not share a cache.
    Far,
    /// Between the bounds, different before and after, or unknown.
    #[default]
    Mixed,
}

impl Bounds {
    /// What is far must not be near.
    pub fn check(&self) -> Result<(), BenchError> {
        match self.near_ns > self.far_ns {
            true => Err(BenchError::Usage("--near-ns is more than --far-ns".into())),
            false => Ok(()),
        }
    }
}

impl Placement {
    /// All placements, in the order of tables.
    pub const ALL: [Self; 3] = [Self::Near, Self::Far, Self::Mixed];

    /// Classifies the round trips before and after, in nanoseconds.
    pub fn classify(round_trips_ns: [Option<f64>; 2], bounds: &Bounds) -> Self {
        match round_trips_ns {
            [Some(before), Some(after)] if before.max(after) < bounds.near_ns => Self::Near,
            [Some(before), Some(after)] if before.min(after) > bounds.far_ns => Self::Far,
            _ => Self::Mixed,
        }
    }

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Near => "near",
            Self::Far => "far",
            Self::Mixed => "mixed",
        }
    }
}

/// A value with a cache line of its own, including the neighbouring line that the CPU fetches with it.
#[repr(align(128))]
#[derive(Default)]
struct Line(AtomicU32);

struct Table {
    /// Both threads are on their cores. They sleep until then: a polling thread could keep the other from its core.
    ready: Barrier,
    ball: Line,
    answer: Line,
    over: AtomicBool,
}

/// Probes the calling thread's core and `core`. The thread on the latter takes the core from a switch that polls there, if
/// the system allows it (`SCHED_FIFO`); otherwise it shares the core.
pub fn probe(core: usize, clock: Clock) -> Probe {
    let table = Table {
        ready: Barrier::new(2),
        ball: Line::default(),
        answer: Line::default(),
        over: AtomicBool::new(false),
    };
    let time_max = clock.cycles(TIME_MAX);
    std::thread::scope(|scope| {
        let there = scope.spawn(|| {
            answer(&table, core, time_max);
            clock_ghz(clock)
        });
        table.ready.wait();
        let mut cycles = serve(&table, tsc() + time_max);
        table.over.store(true, Ordering::Relaxed);
        let here_ghz = clock_ghz(clock);
        let middle = cycles.len() / 2;
        let is_known = cycles.len() >= VOLLEYS_MIN;
        let round_trip = is_known.then(|| clock.ns(*cycles.select_nth_unstable(middle).1));
        Probe {
            round_trip_ns: round_trip,
            clocks_ghz: [here_ghz, there.join().unwrap_or(0.0)],
        }
    })
}

/// This core's clock rate, measured by a chain of dependent instructions with known numbers of cycles.
fn clock_ghz(clock: Clock) -> f64 {
    let mut chunks = [0; CHUNKS];
    let mut x = std::hint::black_box(1_u64);
    for chunk in &mut chunks {
        let began = tsc();
        for _ in 0..STEPS {
            // Not linear: a compiler can merge several linear steps into one.
            x = (x ^ (x >> 32)).wrapping_mul(0x5851_f42d_4c95_7f2d);
        }
        x = std::hint::black_box(x);
        *chunk = tsc() - began;
    }
    let middle = *chunks.select_nth_unstable(CHUNKS / 2).1;
    STEPS as f64 * STEP_CYCLES / clock.ns(middle).max(1.0)
}

/// Cycles per round trip, one value per volley. The clock is read only between volleys: reading it takes 10 to 20 ns, which
/// would blur the 20 ns between two threads of one core.
fn serve(table: &Table, deadline: u64) -> Vec<u64> {
    let mut cycles = Vec::with_capacity(VOLLEYS);
    let mut number = 0;
    for _ in 0..VOLLEYS {
        let start = tsc();
        for _ in 0..VOLLEY {
            number += 1;
            table.ball.0.store(number, Ordering::Release);
            let mut looks = 0_u32;
            while table.answer.0.load(Ordering::Acquire) != number {
                looks += 1;
                if looks.is_multiple_of(LOOKS) && tsc() > deadline {
                    return cycles;
                }
            }
        }
        cycles.push((tsc() - start) / u64::from(VOLLEY));
    }
    cycles
}

fn answer(table: &Table, core: usize, time_max: u64) {
    let pinned = pin(core);
    let _ = Thread::current().set_fifo(PRIORITY_MEASURE); // without permission it shares the core
    table.ready.wait();
    if pinned.is_err() {
        return;
    }
    let deadline = tsc() + time_max;
    let (mut seen, mut looks) = (0, 0_u32);
    while !table.over.load(Ordering::Relaxed) {
        let ball = table.ball.0.load(Ordering::Acquire);
        if ball != seen {
            seen = ball;
            table.answer.0.store(ball, Ordering::Release);
        }
        looks = looks.wrapping_add(1);
        if looks.is_multiple_of(LOOKS) && tsc() > deadline {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::tests::parse;

    #[test]
    fn both_probes_have_to_agree() {
        let bounds: Bounds = parse(&[]);
        let classify = |before, after| Placement::classify([Some(before), after], &bounds);
        assert_eq!(classify(80.0, Some(110.0)), Placement::Near);
        assert_eq!(classify(300.0, Some(470.0)), Placement::Far);
        for (before, after) in [(80.0, Some(300.0)), (200.0, Some(200.0)), (80.0, None)] {
            assert_eq!(classify(before, after), Placement::Mixed);
        }
        let crossed: Bounds = parse(&["--near-ns", "300"]);
        assert!(bounds.check().is_ok() && crossed.check().is_err());
    }
}
