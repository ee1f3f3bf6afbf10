//! Keeps workers on their cores.
//!
//! A worker is pinned when it starts. But `taskset` can move it, and if the process loses a core (by its cpuset, or
//! because the core goes offline), the kernel runs the worker elsewhere and leaves it there when the core is back. The
//! watch thread checks this once a second, without a lock, and pins the worker again as soon as the kernel allows it.

use std::time::{Duration, Instant};

use crosspoint_config::Cpus;
use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};

use crate::service::threads;

/// Interval between two checks of a worker.
const INTERVAL: Duration = Duration::from_secs(1);
/// Shortest time between two log lines about a worker that was pinned again.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// Checks one worker periodically.
pub(super) struct PinWatch {
    worker: usize,
    core: usize,
    id: Pid,
    look_at: Instant,
    /// The cores where it may run while it cannot be pinned again; set once that is logged.
    astray: Option<Cpus>,
    /// When it was last logged that it was pinned again.
    said_at: Option<Instant>,
}

impl PinWatch {
    /// For worker number `worker` on `core`, whose thread is `id`.
    pub(super) fn new(worker: usize, core: usize, id: Pid) -> PinWatch {
        PinWatch {
            worker,
            core,
            id,
            look_at: Instant::now() + INTERVAL,
            astray: None,
            said_at: None,
        }
    }

    /// Checks the worker, if a check is due.
    pub(super) fn look(&mut self) {
        if Instant::now() < self.look_at {
            return;
        }
        self.look_at = Instant::now() + INTERVAL;
        let Some(allowed) = allowed(self.id) else {
            return;
        };
        let (worker, core) = (self.worker, self.core);
        if is_pinned(&allowed, core) {
            if self.astray.take().is_some() {
                tracing::info!(worker, core, "is on its core again");
            }
            return;
        }
        let mut own = CpuSet::new();
        own.set(core);
        match sched_setaffinity(Some(self.id), &own) {
            Ok(()) => {
                self.astray = None;
                // Limits the log if something moves it again and again.
                let has_said = self.said_at.is_some_and(|at| at.elapsed() < SAY_AGAIN);
                if has_said {
                    return;
                }
                self.said_at = Some(Instant::now());
                tracing::warn!(
                    worker,
                    core,
                    "was allowed on {} (taskset, a cpuset, or its core was offline): pinned to its core again",
                    allowed.named()
                );
            }
            Err(why) if self.astray.as_ref() != Some(&allowed) => {
                let last = threads::last_core(self.id);
                let last = last.map_or(String::new(), |last| format!(", last on {last}"));
                tracing::warn!(
                    worker,
                    core,
                    error = %why,
                    "runs on {}{last}, and cannot be pinned to its core, which the process has lost (a cpuset, or it is offline); it is tried again every second",
                    allowed.named()
                );
                self.astray = Some(allowed);
            }
            Err(_) => {}
        }
    }
}

/// The cores on which thread `id` may run.
pub(super) fn allowed(id: Pid) -> Option<Cpus> {
    let set = sched_getaffinity(Some(id)).ok()?;
    Some(
        (0..CpuSet::MAX_CPU)
            .filter(|core| set.is_set(*core))
            .collect(),
    )
}

/// Whether `allowed` is `core` alone.
pub(super) fn is_pinned(allowed: &Cpus, core: usize) -> bool {
    allowed.len() == 1 && allowed.has(core)
}
