//! Starts, pins and names worker threads.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8};
use std::sync::{Arc, mpsc};
use std::thread::{Builder, JoinHandle};

use core_affinity::CoreId;
use crossbeam::queue::ArrayQueue;
use crosspoint_engine::snapshot::Snapshot;
use crosspoint_engine::sync::sleep::Waker;
use crosspoint_engine::worker::Idle;
use crosspoint_engine::worker::QUANTUM;
use crosspoint_engine::worker::Shared;
use crosspoint_engine::worker::Worker;
use crosspoint_engine::worker::WorkerLink;
use crosspoint_frame::Clock;
use rustix::thread::{Pid, gettid};
use thiserror::Error;

use super::Placed;
use crate::service::sandbox;

/// The most faults that wait for the control thread. Further ones are dropped: their ports are already known.
const FAULTS: usize = 256;

pub(super) type Links = Vec<Arc<WorkerLink>>;
pub(super) type Threads = Vec<JoinHandle<()>>;
pub(super) type ThreadIds = Vec<Pid>;

/// Why a worker could not be started.
#[derive(Debug, Error)]
pub enum WorkerError {
    /// The kernel refused a thread or a descriptor.
    #[error("worker-{worker} cannot be started: {why}")]
    Start {
        /// The worker's number.
        worker: usize,
        /// The kernel's error.
        why: io::Error,
    },
    /// The core does not exist, or the process may not use it.
    #[error(
        "worker-{worker} cannot be pinned to core {core}: the process may not run there \
         (see `taskset -cp {pid}`); name other `[workers] cores`"
    )]
    Pin {
        /// The worker's number.
        worker: usize,
        /// The core.
        core: usize,
        /// This process's id.
        pid: u32,
    },
}

pub(super) fn shared(clock: &Clock) -> Arc<Shared> {
    Arc::new(Shared {
        stop: AtomicBool::new(false),
        tick: AtomicU8::new(0),
        faults: ArrayQueue::new(FAULTS),
        quantum_cycles: clock.cycles(QUANTUM),
    })
}

/// Starts one worker per core.
pub(super) fn spawn_all(
    cores: &[usize],
    shared: &Arc<Shared>,
    view: &Arc<Snapshot>,
    idle: Idle,
) -> Result<(Links, Threads, ThreadIds), WorkerError> {
    let (mut links, mut threads, mut ids) = (Vec::new(), Vec::new(), Vec::new());
    for (worker, core) in cores.iter().enumerate() {
        let fail = |why| WorkerError::Start { worker, why };
        let waker = Waker::new().map_err(fail)?;
        let link = Arc::new(WorkerLink::new(waker));
        let (pinned, result) = mpsc::channel();
        let thread = {
            let (shared, link, view, core) = (shared.clone(), link.clone(), view.clone(), *core);
            let body = move || {
                let ok = core_affinity::set_for_current(CoreId { id: core });
                let _ = pinned.send(ok.then(gettid));
                if ok {
                    sandbox::enter_worker();
                    Worker::new(worker, shared, link, view, idle).run();
                }
            };
            Builder::new()
                .name(format!("worker-{worker}"))
                .spawn(body)
                .map_err(fail)?
        };
        threads.push(thread);
        links.push(link);
        match result.recv() {
            Ok(Some(id)) => ids.push(id),
            _ => {
                return Err(WorkerError::Pin {
                    worker,
                    core: *core,
                    pid: std::process::id(),
                });
            }
        }
    }
    Ok((links, threads, ids))
}

/// Removes a stream's descriptors from a worker's epoll set. Call it before they are closed.
pub(super) fn unregister(link: &WorkerLink, placed: &Placed) {
    if let Some(kick) = placed.kick.as_ref().filter(|_| placed.has_wakeup) {
        let _ = link.waker.unregister(kick);
    }
    if let Some(socket) = &placed.socket {
        let _ = link.waker.unregister(&**socket);
    }
}
