//! Detects workers that make no progress because they are preempted or stuck.
//!
//! The watch thread checks them, and takes no lock. A worker that is awake and begins no poll iteration for [`STALL`]
//! is stalled; its ports pass no frames.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crosspoint_engine::worker::WorkerLink;
use rustix::thread::Pid;

use crate::service::threads;
use crate::service::threads::Activity;

/// Interval between two checks. A worker that is in the same call at two checks is freed from it.
pub(super) const LOOK: Duration = Duration::from_millis(50);
/// The longest time that an awake worker may go without a new poll iteration.
const STALL: Duration = Duration::from_millis(100);
/// Shortest time between two log lines about a worker.
const SAID_AGAIN: Duration = Duration::from_secs(10);

/// Stall state of one worker. Written by the watch thread.
#[derive(Debug, Default)]
pub(super) struct Stalls {
    count: AtomicU64,
    now: AtomicBool,
}

impl Stalls {
    /// The number of times it has stalled.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Whether it is stalled now.
    pub fn is_stalled(&self) -> bool {
        self.now.load(Ordering::Relaxed)
    }
}

/// Checks one worker periodically.
pub(super) struct StallWatch {
    worker: usize,
    core: usize,
    link: Arc<WorkerLink>,
    id: Pid,
    stalls: Arc<Stalls>,
    still: Still,
    looked: Instant,
    /// Activity of its thread when it was first seen without progress.
    before: Activity,
    said: Option<Instant>,
    unsaid: u64,
}

impl StallWatch {
    /// For worker number `worker` on `core`, whose thread is `id`.
    pub fn new(
        worker: usize,
        core: usize,
        link: Arc<WorkerLink>,
        id: Pid,
        stalls: Arc<Stalls>,
    ) -> StallWatch {
        StallWatch {
            worker,
            core,
            link,
            id,
            stalls,
            still: Still::default(),
            looked: Instant::now(),
            before: Activity::default(),
            said: None,
            unsaid: 0,
        }
    }

    /// Checks the worker once.
    pub fn look(&mut self) {
        let now = Instant::now();
        let since = now - std::mem::replace(&mut self.looked, now);
        let iterations = self.link.counters.turns.count();
        // A worker that was woken but does not get its core still has its sleep flag set, while its thread is runnable.
        let sleeps = || self.link.waker.is_asleep() && threads::activity(self.id).may_sleep();
        match self.still.look(iterations, since, sleeps) {
            Found::Moves => self.stalls.now.store(false, Ordering::Relaxed),
            Found::Stands => self.before = threads::activity(self.id),
            Found::Stalls { begins } => {
                self.stalls.now.store(true, Ordering::Relaxed);
                if begins {
                    self.stalls.count.fetch_add(1, Ordering::Relaxed);
                    self.unsaid += 1;
                }
                if self.said.is_none_or(|said| now - said > SAID_AGAIN) {
                    self.say();
                    self.said = Some(now);
                    self.unsaid = 0;
                }
            }
        }
    }

    fn say(&self) {
        let activity = threads::activity(self.id);
        let times = match self.unsaid {
            0 | 1 => String::new(),
            n => format!(" ({n} times since the last such line)"),
        };
        tracing::warn!(
            worker = self.worker,
            core = self.core,
            "has made no progress for {} ms{times}, so its ports forward nothing: {}; {} involuntary context switches so far",
            self.still.time.as_millis(),
            activity.since(&self.before),
            threads::involuntary_switches(self.id).unwrap_or(0)
        );
    }
}

/// For how long a worker has made no progress.
#[derive(Default)]
struct Still {
    iterations: u64,
    time: Duration,
    stalls: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Found {
    /// It makes progress, or sleeps.
    Moves,
    /// No progress since the last check, which may be chance.
    Stands,
    /// No progress for too long.
    Stalls { begins: bool },
}

impl Still {
    /// `since` is the time since the last check. If a check is late, this thread was itself delayed, perhaps with the
    /// whole process, so the time is capped.
    fn look(&mut self, iterations: u64, since: Duration, sleeps: impl FnOnce() -> bool) -> Found {
        if iterations != self.iterations || sleeps() {
            *self = Still {
                iterations,
                ..Still::default()
            };
            return Found::Moves;
        }
        let first = self.time.is_zero();
        self.time += since.min(2 * LOOK);
        // At least two checks, so that there are two activities to compare.
        if first || self.time < STALL {
            return Found::Stands;
        }
        let begins = !std::mem::replace(&mut self.stalls, true);
        Found::Stalls { begins }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_worker_that_makes_no_turn_for_long_enough_is_stalled_once() {
        let mut still = Still::default();
        let mut look = |iterations| still.look(iterations, 50 * MS, || false);
        assert_eq!(look(7), Found::Moves);
        assert_eq!(look(7), Found::Stands);
        assert_eq!(look(7), Found::Stalls { begins: true });
        assert_eq!(look(7), Found::Stalls { begins: false });
        assert_eq!(look(8), Found::Moves);
        assert_eq!(look(8), Found::Stands);
        assert_eq!(look(9), Found::Moves);
    }

    #[test]
    fn a_worker_that_sleeps_is_not_stalled() {
        let mut still = Still::default();
        for _ in 0..100 {
            assert_eq!(still.look(7, 50 * MS, || true), Found::Moves);
        }
        // It was woken, but does not get its core.
        assert_eq!(still.look(7, 50 * MS, || false), Found::Stands);
        assert_eq!(
            still.look(7, 50 * MS, || false),
            Found::Stalls { begins: true }
        );
    }

    #[test]
    fn a_process_that_was_stopped_has_no_stalled_workers() {
        let mut still = Still::default();
        assert_eq!(still.look(7, 50 * MS, || false), Found::Moves);
        assert_eq!(
            still.look(7, Duration::from_secs(100), || false),
            Found::Stands
        );
        assert_eq!(still.look(8, 50 * MS, || false), Found::Moves);
    }
}
