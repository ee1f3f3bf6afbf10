//! How far apart two cores are: the round trip of a cache line.
//!
//! The virtual cores of a shared host move over physical ones: within seconds they share a cache, or do not, and the
//! same program runs 1.5 to 2.5 times as fast or as slowly. Trials compare only where the cores were equally far apart.

use crate::threads::{PRIORITY_PROBE, Thread, pin};
use crosspoint_frame::{Clock, tsc};
use serde::Serialize;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

const ROUND_TRIPS: usize = 4000;
const ROUND_TRIPS_MIN: usize = 200;
const WORK_PIECES: usize = 500;
const WORK_STEPS: u64 = 1000;
/// Enough for [`ROUND_TRIPS`] even when other threads have both cores half of the time.
const TIME_MAX: Duration = Duration::from_millis(30);

/// How far apart two cores were before and after a trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Placement {
    /// They share a cache.
    Near,
    /// They do not.
    Far,
    /// Between the bounds, not the same before and after, or not known.
    Mixed,
}

impl Placement {
    /// By the round trips before and after, in nanoseconds.
    pub fn classify(round_trips_ns: [Option<f64>; 2], near_ns: f64, far_ns: f64) -> Self {
        match round_trips_ns {
            [Some(before), Some(after)] if before.max(after) < near_ns => Self::Near,
            [Some(before), Some(after)] if before.min(after) > far_ns => Self::Far,
            _ => Self::Mixed,
        }
    }

    /// In tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Near => "near",
            Self::Far => "far",
            Self::Mixed => "mixed",
        }
    }
}

/// A value that has its cache line, and the one that the CPU fetches with it, for itself.
#[repr(align(128))]
#[derive(Default)]
struct Line(AtomicU32);

#[derive(Default)]
struct Table {
    ball: Line,
    answer: Line,
    served: AtomicBool,
    over: AtomicBool,
}

/// What two cores are to each other at one moment.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Probe {
    /// Median round trip of a cache line.
    pub round_trip_ns: Option<f64>,
    /// Median time of a fixed piece of work while the other core does the same: nearly twice as long where the two
    /// share execution units, or where a stranger has the other half of a core.
    pub work_ns: Option<f64>,
}

/// Probes the calling thread's core and `core`; values are `None` when the other thread hardly got to run. That thread
/// takes the core from a switch that polls there where the system lets it (`SCHED_FIFO`), and has to share it
/// otherwise.
pub fn probe(core: usize, clock: Clock) -> Probe {
    let table = Table::default();
    let deadline = tsc() + clock.cycles(TIME_MAX);
    std::thread::scope(|scope| {
        scope.spawn(|| answer(&table, core, deadline));
        let round_trips = serve(&table, deadline);
        table.served.store(true, Ordering::Relaxed);
        let work = (0..WORK_PIECES).map(|_| work()).collect();
        table.over.store(true, Ordering::Relaxed);
        if round_trips.len() < ROUND_TRIPS_MIN {
            return Probe::default();
        }
        Probe {
            round_trip_ns: Some(clock.ns(middle(round_trips))),
            work_ns: Some(clock.ns(middle(work))),
        }
    })
}

fn middle(mut cycles: Vec<u64>) -> u64 {
    let middle = cycles.len() / 2;
    *cycles.select_nth_unstable(middle).1
}

fn serve(table: &Table, deadline: u64) -> Vec<u64> {
    let mut cycles = Vec::with_capacity(ROUND_TRIPS);
    for number in 1..=ROUND_TRIPS as u32 {
        let start = tsc();
        table.ball.0.store(number, Ordering::Release);
        while table.answer.0.load(Ordering::Acquire) != number {
            if tsc() > deadline {
                return cycles;
            }
        }
        cycles.push(tsc() - start);
    }
    cycles
}

fn answer(table: &Table, core: usize, deadline: u64) {
    if pin(core).is_err() {
        return;
    }
    let _ = Thread::current().set_fifo(PRIORITY_PROBE); // without the right to: shares the core
    let mut seen = 0;
    while !table.served.load(Ordering::Relaxed) && tsc() < deadline {
        let ball = table.ball.0.load(Ordering::Acquire);
        if ball != seen {
            seen = ball;
            table.answer.0.store(ball, Ordering::Release);
        }
    }
    while !table.over.load(Ordering::Relaxed) && tsc() < deadline {
        work();
    }
}

/// Some microseconds of arithmetic, as much of it at a time as a core can do. Returns the cycles that it took.
fn work() -> u64 {
    let mut sums: [u64; 8] = std::hint::black_box([1, 2, 3, 4, 5, 6, 7, 8]);
    let start = tsc();
    for step in 0..WORK_STEPS {
        for sum in &mut sums {
            *sum = sum.rotate_left(7) ^ step;
        }
    }
    std::hint::black_box(sums);
    tsc() - start
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classify(before: f64, after: f64) -> Placement {
        Placement::classify([Some(before), Some(after)], 150.0, 250.0)
    }

    #[test]
    fn both_probes_have_to_agree() {
        assert_eq!(classify(80.0, 110.0), Placement::Near);
        assert_eq!(classify(300.0, 470.0), Placement::Far);
        assert_eq!(classify(80.0, 300.0), Placement::Mixed);
        assert_eq!(classify(300.0, 80.0), Placement::Mixed);
        assert_eq!(classify(200.0, 200.0), Placement::Mixed);
    }

    #[test]
    fn an_unknown_round_trip_is_mixed() {
        let placement = Placement::classify([Some(80.0), None], 150.0, 250.0);
        assert_eq!(placement, Placement::Mixed);
    }
}
