//! What is observed around each trial.

use crate::backend::Backend;
use crate::error::BenchError;
use crate::options::PlanOptions;
use crate::placement::{Placement, round_trip_ns};
use crate::scrape::Counters;
use crate::threads::{PRIORITY_POLL, Thread};
use crate::trial::Observed;
use crosspoint_frame::Clock;
use std::time::{Duration, Instant};

/// By then the worker has ended the turn that it counts cycles for.
const SETTLE: Duration = Duration::from_millis(2);

/// Before each trial, for threads that real-time ones have kept off their cores.
const BREAK: Duration = Duration::from_millis(10);

/// What fails without the right to.
pub const REALTIME: &str = "--realtime needs CAP_SYS_NICE";

/// Observes the trials of one switch.
pub struct Watch<'a> {
    /// Bounds and cores.
    pub plan: &'a PlanOptions,
    /// `SCHED_FIFO` during trials.
    pub realtime: bool,
    /// The time stamp counter's rate.
    pub clock: Clock,
    /// The switch.
    pub backend: &'a Backend,
    /// The thread that generates.
    pub generator: Thread,
}

impl Watch<'_> {
    /// Runs `traffic` and says what happened around it. Call on the generator's core.
    pub fn observe<T>(
        &self,
        traffic: impl FnOnce() -> Result<T, BenchError>,
    ) -> Result<(T, Observed), BenchError> {
        std::thread::sleep(BREAK);
        let before = self.round_trip();
        let counted = self.counters()?;
        let others_generator = Some(self.generator).filter(|thread| *thread != Thread::current());
        let realtime = self
            .realtime
            .then(|| Realtime::start([others_generator, self.backend.worker]))
            .transpose()?;
        let wait = Wait::start([Some(self.generator), self.backend.worker]);
        let traffic = traffic();
        let [generator_wait, switch_wait] = wait.percent();
        drop(realtime);
        let traffic = traffic?;
        std::thread::sleep(SETTLE);
        let busy_cycles = match (counted, self.counters()?) {
            (Some(before), Some(after)) => after.since(before).cycles_per_frame(),
            _ => None,
        };
        let round_trips_ns = [before, self.round_trip()];
        let plan = self.plan;
        let observed = Observed {
            round_trips_ns,
            placement: Placement::classify(round_trips_ns, plan.near_ns, plan.far_ns),
            generator_wait,
            switch_wait,
            busy_cycles,
        };
        Ok((traffic, observed))
    }

    fn round_trip(&self) -> Option<f64> {
        round_trip_ns(self.plan.switch_core, self.clock)
    }

    fn counters(&self) -> Result<Option<Counters>, BenchError> {
        let Some(address) = self.backend.metrics else {
            return Ok(None);
        };
        let counters = Counters::read(address);
        counters
            .map(Some)
            .map_err(BenchError::io(format!("metrics of http://{address}")))
    }
}

/// How long threads wait for their core.
pub struct Wait {
    start: Instant,
    threads: [Option<Thread>; 2],
    before_ns: [Option<u64>; 2],
}

impl Wait {
    /// From now on.
    pub fn start(threads: [Option<Thread>; 2]) -> Self {
        Self {
            start: Instant::now(),
            threads,
            before_ns: waited_ns(threads),
        }
    }

    /// Of the time since then, by thread; `None` where there is no thread, or it has ended.
    pub fn percent(&self) -> [Option<f64>; 2] {
        let elapsed_ns = self.start.elapsed().as_nanos() as f64;
        let after_ns = waited_ns(self.threads);
        [0, 1].map(|i| {
            let waited_ns = after_ns[i]?.saturating_sub(self.before_ns[i]?);
            Some(waited_ns as f64 * 100.0 / elapsed_ns)
        })
    }
}

fn waited_ns(threads: [Option<Thread>; 2]) -> [Option<u64>; 2] {
    threads.map(|thread| thread.and_then(Thread::waited_ns))
}

/// `SCHED_FIFO` for threads that poll, until dropped. The thread that measures has it all the time.
struct Realtime([Option<Thread>; 2]);

impl Realtime {
    fn start(threads: [Option<Thread>; 2]) -> Result<Self, BenchError> {
        let guard = Self(threads); // from here on, whatever was set is undone
        for thread in guard.0.iter().flatten() {
            let set = thread.set_fifo(PRIORITY_POLL);
            set.map_err(BenchError::io(REALTIME))?;
        }
        Ok(guard)
    }
}

impl Drop for Realtime {
    fn drop(&mut self) {
        for thread in self.0.iter().flatten() {
            let _ = thread.set_normal(); // it ended meanwhile
        }
    }
}
