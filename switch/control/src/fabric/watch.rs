//! Frees workers from calls that a front end has made to block.
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

use crate::interrupt;

/// Between two looks. A worker that is in one call at two looks is freed from it.
const LOOK: Duration = Duration::from_millis(50);

/// The thread that looks.
pub(super) struct Watch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    stop: AtomicBool,
    /// Ports whose calls have blocked, until somebody quarantines them.
    stuck: ArrayQueue<u16>,
}

/// One call of one worker: the turn of its loop, and the port.
type Call = (u64, u16);

impl Watch {
    /// Watches these workers, each with its thread.
    pub(super) fn start(workers: Vec<(Arc<WorkerLink>, Pid)>) -> io::Result<Watch> {
        interrupt::prepare()?;
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            stuck: ArrayQueue::new(MAX_PORTS),
        });
        let watching = shared.clone();
        let thread = Builder::new().name("cp-watch".to_owned()).spawn(move || {
            let mut before = vec![None; workers.len()];
            while !watching.stop.load(Ordering::Relaxed) {
                for ((link, id), before) in workers.iter().zip(&mut before) {
                    *before = look(link, *id, *before, &watching.stuck);
                }
                std::thread::park_timeout(LOOK);
            }
        })?;
        Ok(Watch {
            shared,
            thread: Some(thread),
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
        .map(|port| (link.counters.iterations.get(), port));
    if let Some((_, port)) = now
        && now == before
        // One that just does not get its core is nobody's fault.
        && interrupt::sleeps(id)
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
