//! Watches workers from outside: frees them from calls that a front end has made to block, detects those that make no
//! progress, and puts those back that are off their cores.
//!
//! It runs on its own thread and takes no lock: a thread that changes the port table holds its lock until every worker
//! has reached a quiescent point, which a stuck worker never does.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};

use crossbeam::queue::ArrayQueue;
use crosspoint_config::Cpus;
use crosspoint_engine::MAX_PORTS;
use crosspoint_engine::worker::WorkerLink;
use rustix::thread::Pid;

use super::pinning::{self, PinWatch};
use super::stall::{LOOK, StallWatch, Stalls};
use crate::service::progress::Beat;
use crate::service::{interrupt, threads};

/// The watch thread.
pub(super) struct Watch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// By worker: its thread and its stall state.
    workers: Vec<(Pid, Arc<Stalls>)>,
}

struct Shared {
    stop: AtomicBool,
    /// Ports whose calls have blocked, until they are quarantined.
    stuck: ArrayQueue<u16>,
}

/// One worker, as the watch thread knows it.
struct Watched {
    link: Arc<WorkerLink>,
    id: Pid,
    /// The call that it was in at the last check.
    call: Option<Call>,
    stall: StallWatch,
    pin: PinWatch,
}

/// A call of a worker: the poll iteration, and the port.
type Call = (u64, u16);

impl Watch {
    /// Starts to watch these workers; each has a core and a thread.
    pub(super) fn start(
        cores: &[usize],
        links: &[Arc<WorkerLink>],
        ids: &[Pid],
    ) -> io::Result<Watch> {
        interrupt::prepare()?;
        let workers: Vec<_> = ids
            .iter()
            .map(|id| (*id, Arc::<Stalls>::default()))
            .collect();
        let mut watched: Vec<Watched> = (0..)
            .zip(cores)
            .zip(links.iter().zip(&workers))
            .map(|((worker, core), (link, (id, stalls)))| Watched {
                link: link.clone(),
                id: *id,
                call: None,
                stall: StallWatch::new(worker, *core, link.clone(), *id, stalls.clone()),
                pin: PinWatch::new(worker, *core, *id),
            })
            .collect();
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            stuck: ArrayQueue::new(MAX_PORTS),
        });
        let watching = shared.clone();
        let thread = Builder::new().name("cp-watch".to_owned()).spawn(move || {
            let beat = Beat::new("the thread that monitors workers");
            while !watching.stop.load(Ordering::Relaxed) {
                beat.begin();
                for worker in &mut watched {
                    worker.call = look(&worker.link, worker.id, worker.call, &watching.stuck);
                    worker.stall.look();
                    worker.pin.look();
                }
                std::thread::park_timeout(LOOK);
            }
        })?;
        Ok(Watch {
            shared,
            thread: Some(thread),
            workers,
        })
    }

    /// Whether a worker is stalled now, and how often it has been.
    pub(super) fn stalls(&self, worker: usize) -> (bool, u64) {
        let known = self.workers.get(worker);
        known.map_or((false, 0), |(_, stalls)| {
            (stalls.is_stalled(), stalls.count())
        })
    }

    /// A worker's involuntary context switches.
    pub(super) fn involuntary_switches(&self, worker: usize) -> u64 {
        let known = self.workers.get(worker);
        let switches = known.and_then(|(id, _)| threads::involuntary_switches(*id));
        switches.unwrap_or(0)
    }

    /// The cores on which a worker's thread may run, and the last one on which it ran.
    pub(super) fn cores(&self, worker: usize) -> (Cpus, Option<usize>) {
        let known = self.workers.get(worker);
        known.map_or((Cpus::default(), None), |(id, _)| {
            let allowed = pinning::allowed(*id).unwrap_or_default();
            (allowed, threads::last_core(*id))
        })
    }

    /// Removes and returns the next port whose calls have blocked.
    pub(super) fn next_stuck(&self) -> Option<u16> {
        self.shared.stuck.pop()
    }
}

/// Returns the call that a worker is in. If it was in that call before, and sleeps, it is interrupted.
fn look(link: &WorkerLink, id: Pid, before: Option<Call>, stuck: &ArrayQueue<u16>) -> Option<Call> {
    let now = link
        .calling
        .port()
        .map(|port| (link.counters.turns.count(), port));
    if let Some((_, port)) = now
        && now == before
        // A worker that only lacks its core is not blocked by the call.
        && threads::activity(id).sleeps()
    {
        interrupt::interrupt(id);
        // If the list is full, the port is in it already, or is added at a later check.
        let _ = stuck.push(port);
    }
    now
}

impl Drop for Watch {
    /// Dropped after the workers have ended, since a stuck worker cannot end without the watch.
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}
