//! Observations around each trial.

use crate::error::BenchError;
use crate::lab::{
    Bounds, Counters, Observed, PRIORITY_POLL, Placement, Probe, REALTIME, Thread, on_core, probe,
};
use crosspoint_frame::Clock;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// After this time the worker has ended the poll iteration whose cycles it is counting.
const SETTLE: Duration = Duration::from_millis(2);

/// Pause before each trial, for threads that real-time ones have kept off their cores.
const BREAK: Duration = Duration::from_millis(10);

/// All polling threads of a trial, each with its core, and how to observe them.
pub struct Crew {
    /// The bounds of near and far.
    pub bounds: Bounds,
    /// `SCHED_FIFO` during trials.
    pub realtime: bool,
    /// The time stamp counter's rate.
    pub clock: Clock,
    /// The switch's metrics, if it is crosspoint.
    pub metrics: Option<SocketAddr>,
    /// The threads that generate.
    pub generators: Vec<(usize, Thread)>,
    /// The switch's threads, as far as known.
    pub workers: Vec<(usize, Option<Thread>)>,
}

impl Crew {
    /// Runs `traffic` and returns the observations around it. Call on the first generator's core.
    pub fn observe<T>(
        &self,
        traffic: impl FnOnce() -> Result<T, BenchError>,
    ) -> Result<(T, Observed), BenchError> {
        std::thread::sleep(BREAK);
        let before = self.probes();
        let counted = self.counters()?;
        let generators = || self.generators.iter().map(|(_, thread)| *thread);
        let workers = || self.workers.iter().filter_map(|(_, thread)| *thread);
        let others = generators().filter(|thread| *thread != Thread::current());
        let realtime = self
            .realtime
            .then(|| Realtime::start(others.chain(workers()).collect()))
            .transpose()?;
        let waits = [Wait::start(generators()), Wait::start(workers())];
        let traffic = traffic();
        let [generator_wait, switch_wait] = waits.map(|wait| wait.percent());
        drop(realtime);
        let traffic = traffic?;
        std::thread::sleep(SETTLE);
        let busy_cycles = match (counted, self.counters()?) {
            (Some(before), Some(after)) => after.since(before).cycles_per_frame(),
            _ => None,
        };
        let after = self.probes();
        let (round_trips_ns, placement) = self.placement(&before, &after);
        let observed = Observed {
            round_trips_ns,
            placement,
            generator_wait,
            switch_wait,
            busy_cycles,
            shares: None,
            clock_ghz: slowest_ghz(before.iter().chain(&after)),
        };
        Ok((traffic, observed))
    }

    /// Probes between generators and workers, in pairs that include all of both.
    fn probes(&self) -> Vec<Probe> {
        let (generators, workers) = (&self.generators, &self.workers);
        let pairs = (0..generators.len().max(workers.len())).map(|i| {
            (
                generators[i % generators.len()].0,
                workers[i % workers.len()].0,
            )
        });
        let first = generators[0].0;
        let of = |(generator, worker)| match generator == first {
            true => probe(worker, self.clock),
            false => on_core(generator, self.realtime, || Ok(probe(worker, self.clock)))
                .unwrap_or_default(),
        };
        pairs.map(of).collect()
    }

    /// The longest round trips before and after, and the placement: known only if all probes agree.
    fn placement(&self, before: &[Probe], after: &[Probe]) -> ([Option<f64>; 2], Placement) {
        let classify = |(before, after): (&Probe, &Probe)| {
            Placement::classify([before.round_trip_ns, after.round_trip_ns], &self.bounds)
        };
        let mut placements = before.iter().zip(after).map(classify);
        let first = placements.next().unwrap_or(Placement::Mixed);
        let placement = match placements.all(|placement| placement == first) {
            true => first,
            false => Placement::Mixed,
        };
        let longest = |all: &[Probe]| {
            let known: Option<Vec<f64>> = all.iter().map(|probe| probe.round_trip_ns).collect();
            known?.into_iter().reduce(f64::max)
        };
        ([longest(before), longest(after)], placement)
    }

    fn counters(&self) -> Result<Option<Counters>, BenchError> {
        let Some(address) = self.metrics else {
            return Ok(None);
        };
        let counters = Counters::read(address);
        counters
            .map(Some)
            .map_err(BenchError::io(format!("metrics of http://{address}")))
    }
}

/// The clock of the slowest core.
fn slowest_ghz<'a>(probes: impl Iterator<Item = &'a Probe>) -> Option<f64> {
    probes
        .flat_map(|probe| probe.clocks_ghz)
        .filter(|ghz| *ghz > 0.0)
        .reduce(f64::min)
}

/// Measures how long threads wait for their core.
pub struct Wait {
    start: Instant,
    /// The threads, each with its waiting time so far, nanoseconds.
    threads: Vec<(Thread, Option<u64>)>,
}

impl Wait {
    /// Measures from now on.
    pub fn start(threads: impl IntoIterator<Item = Thread>) -> Self {
        let threads = threads.into_iter();
        Self {
            start: Instant::now(),
            threads: threads.map(|thread| (thread, thread.waited_ns())).collect(),
        }
    }

    /// Percent of the time since then that the longest-waiting thread waited; `None` if there is no thread, or all have
    /// ended.
    pub fn percent(&self) -> Option<f64> {
        let elapsed_ns = self.start.elapsed().as_nanos() as f64;
        let of_thread = |(thread, before_ns): &(Thread, Option<u64>)| {
            let waited_ns = thread.waited_ns()?.saturating_sub((*before_ns)?);
            Some(waited_ns as f64 * 100.0 / elapsed_ns)
        };
        self.threads.iter().filter_map(of_thread).reduce(f64::max)
    }
}

/// `SCHED_FIFO` for polling threads, until dropped. The thread that measures always has it.
struct Realtime(Vec<Thread>);

impl Realtime {
    fn start(threads: Vec<Thread>) -> Result<Self, BenchError> {
        let guard = Self(threads); // from here on, every change is undone
        for thread in &guard.0 {
            let set = thread.set_fifo(PRIORITY_POLL);
            set.map_err(BenchError::io(REALTIME))?;
        }
        Ok(guard)
    }
}

impl Drop for Realtime {
    fn drop(&mut self) {
        for thread in &self.0 {
            let _ = thread.set_normal(); // it has ended meanwhile
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_pairs_of_cores_are_somewhere_only_when_all_are_there() {
        let crew = Crew {
            bounds: crate::options::tests::parse(&[]),
            realtime: false,
            clock: Clock::calibrate(),
            metrics: None,
            generators: Vec::new(),
            workers: Vec::new(),
        };
        let probes = |round_trips: [f64; 2]| {
            round_trips.map(|ns| Probe {
                round_trip_ns: Some(ns),
                ..Probe::default()
            })
        };
        let (near, both) = (probes([80.0, 110.0]), probes([80.0, 400.0]));
        let of = |before, after| crew.placement(before, after);
        assert_eq!(of(&near, &near), ([Some(110.0); 2], Placement::Near));
        assert_eq!(of(&both, &both), ([Some(400.0); 2], Placement::Mixed));
        let unknown = of(&near, &[near[0], Probe::default()]);
        assert_eq!(unknown, ([Some(110.0), None], Placement::Mixed));
    }
}
