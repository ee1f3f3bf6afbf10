//! Workers that are kept on their cores.
//!
//! A worker is pinned when it starts; but `taskset` moves it, and a core that the process loses (its cpuset, or the core
//! itself goes offline) has the kernel run it elsewhere, where it stays when the core is back. Looked at by the watching
//! thread, which takes no lock, once a second; and put back as soon as the kernel allows it.

use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};

use crate::doctor::Cpus;
use crate::threads;

/// Between two looks at one worker.
const INTERVAL: Duration = Duration::from_secs(1);
/// The log says no more often that a worker was pinned again.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// Looks at one worker again and again.
pub(super) struct PinWatch {
    worker: usize,
    core: usize,
    id: Pid,
    look_at: Instant,
    /// Where it may run, if it may not be put back, and that has been said.
    astray: Option<Cpus>,
    /// When the log last said that it was pinned again.
    said_at: Option<Instant>,
}

impl PinWatch {
    /// Of worker number `worker` on `core`, whose thread is `id`.
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

    /// One look, if it is time.
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
                // Where something moves it again and again, once in a while.
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

/// Where thread `id` may run.
pub(super) fn allowed(id: Pid) -> Option<Cpus> {
    let set = sched_getaffinity(Some(id)).ok()?;
    Some(
        (0..CpuSet::MAX_CPU)
            .filter(|core| set.is_set(*core))
            .collect(),
    )
}

/// Whether that is `core` and no other.
pub(super) fn is_pinned(allowed: &Cpus, core: usize) -> bool {
    allowed.len() == 1 && allowed.has(core)
}
