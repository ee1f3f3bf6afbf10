//! Looks at workers from outside: frees them from calls that a front end has made to block, notices those that do not
//! come round, and puts back those that are off their cores.
//!
//! On a thread of its own, which takes no lock: whoever changes the port table holds its lock
//! until every worker has come round, and the stuck one never would.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use crossbeam::queue::ArrayQueue;
use crosspoint_engine::MAX_PORTS;
use crosspoint_engine::worker::WorkerLink;
use rustix::thread::Pid;

use super::pinning::{self, PinWatch};
use super::stall::{StallWatch, Stalls};
use crate::doctor::Cpus;
use crate::progress::Beat;
use crate::{interrupt, threads};

/// Between two looks. A worker that is in one call at two looks is freed from it.
pub(super) const LOOK: Duration = Duration::from_millis(50);

/// The thread that looks.
pub(super) struct Watch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// By worker: its thread, and how it has stalled.
    workers: Vec<(Pid, Arc<Stalls>)>,
}

struct Shared {
    stop: AtomicBool,
    /// Ports whose calls have blocked, until somebody quarantines them.
    stuck: ArrayQueue<u16>,
}

/// One worker, as the thread that looks knows it.
struct Watched {
    link: Arc<WorkerLink>,
    id: Pid,
    /// The call that it was in at the last look.
    call: Option<Call>,
    stall: StallWatch,
    pin: PinWatch,
}

/// One call of one worker: the turn of its loop, and the port.
type Call = (u64, u16);

impl Watch {
    /// Watches these workers: each has a core and a thread.
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
            let beat = Beat::new("the thread that looks at workers");
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

    /// How often a worker lost its core without wanting to.
    pub(super) fn involuntary_switches(&self, worker: usize) -> u64 {
        let known = self.workers.get(worker);
        let switches = known.and_then(|(id, _)| threads::involuntary_switches(*id));
        switches.unwrap_or(0)
    }

    /// Where a worker's thread may run, and where it last did.
    pub(super) fn cores(&self, worker: usize) -> (Cpus, Option<usize>) {
        let known = self.workers.get(worker);
        known.map_or((Cpus::default(), None), |(id, _)| {
            let allowed = pinning::allowed(*id).unwrap_or_default();
            (allowed, threads::last_core(*id))
        })
    }

    /// The next port whose calls have blocked, if there is one.
    pub(super) fn next_stuck(&self) -> Option<u16> {
        self.shared.stuck.pop()
    }
}

/// The call that a worker is in. If it was in it before, and sleeps, it is freed.
fn look(link: &WorkerLink, id: Pid, before: Option<Call>, stuck: &ArrayQueue<u16>) -> Option<Call> {
    let now = link
        .calling
        .port()
        .map(|port| (link.counters.turns.count(), port));
    if let Some((_, port)) = now
        && now == before
        // One that just does not get its core is nobody's fault.
        && threads::activity(id).sleeps()
    {
        interrupt::interrupt(id);
        // A full list has the port already, or will be told again.
        let _ = stuck.push(port);
    }
    now
}

impl Drop for Watch {
    /// After the workers have ended: one that is stuck cannot.
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}
