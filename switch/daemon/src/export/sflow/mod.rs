//! sFlow version 5: samples of frames, and ports' counters, for a collector.
//!
//! The engine's [`Sampler`](crosspoint_engine::observe::sample::Sampler) copies the first bytes of chosen frames. A thread
//! takes them from its slots, encodes them and sends datagrams. A collector that is gone, a full send buffer or a slow
//! thread costs samples, which are counted, and never a frame.

mod encode;
mod exporter;
mod interfaces;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use crosspoint_config::Sflow;
use crosspoint_model::status::SflowStatus;

use crate::dataplane::Dataplane;
use exporter::{Exporter, SHORT_PAUSE};

/// Pause between two rounds. The slots have room for what one of 4096 frames is at 800 million frames per second.
const PAUSE: Duration = Duration::from_millis(20);

/// The export and its status. The thread starts with the first collector and then stays, so that ports keep their
/// interface numbers when the export is turned off and on.
#[derive(Debug, Default)]
pub(crate) struct SflowExport {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Shared with the thread.
#[derive(Debug, Default)]
struct Shared {
    wanted: Mutex<Wanted>,
    changed: Condvar,
    status: Mutex<SflowStatus>,
}

/// What the thread is to do.
#[derive(Debug, Default)]
struct Wanted {
    /// `None`: to export nothing.
    options: Option<(SocketAddr, Sflow)>,
    /// Whether it has not taken the options yet.
    is_new: bool,
    /// Whether it is to end.
    ends: bool,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The daemon aborts on panic, so a poisoned lock is only ever seen by tests.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SflowExport {
    /// Begins, changes or ends the export. A change loses no sample; the end sends those that are there.
    pub(crate) fn set(&self, dataplane: &Arc<Dataplane>, options: &Sflow) -> io::Result<()> {
        let mut thread = locked(&self.thread);
        let options = options.collector.map(|to| (to, options.clone()));
        if thread.is_none() {
            if options.is_none() {
                return Ok(());
            }
            let (shared, dataplane) = (self.shared.clone(), dataplane.clone());
            let spawned = Builder::new()
                .name("cp-sflow".to_owned())
                .spawn(move || run(&shared, &dataplane))?;
            *thread = Some(spawned);
        }
        let mut wanted = locked(&self.shared.wanted);
        if wanted.options != options {
            (wanted.options, wanted.is_new) = (options, true);
            self.shared.changed.notify_all();
        }
        Ok(())
    }

    /// Sends what is there, and ends the thread.
    pub(crate) fn stop(&self) {
        let Some(thread) = locked(&self.thread).take() else {
            return;
        };
        *locked(&self.shared.wanted) = Wanted {
            options: None,
            is_new: true,
            ends: true,
        };
        self.shared.changed.notify_all();
        let _ = thread.join();
    }

    /// What is exported, and what was counted since the daemon's start.
    pub(crate) fn status(&self) -> SflowStatus {
        locked(&self.shared.status).clone()
    }
}

/// The thread.
fn run(shared: &Shared, dataplane: &Dataplane) {
    let mut exporter = Exporter::new(dataplane);
    let (mut ends, mut pause) = (false, PAUSE);
    while !ends {
        let mut wanted = locked(&shared.wanted);
        if !wanted.is_new {
            wanted = match exporter.is_idle() {
                true => shared.changed.wait(wanted),
                false => {
                    let waited = shared.changed.wait_timeout(wanted, pause);
                    Ok(waited.unwrap_or_else(PoisonError::into_inner).0)
                }
            }
            .unwrap_or_else(PoisonError::into_inner);
        }
        let is_new = std::mem::take(&mut wanted.is_new);
        let options = is_new.then(|| wanted.options.clone());
        ends = wanted.ends;
        drop(wanted);
        pause = match exporter.round() {
            true => SHORT_PAUSE,
            false => PAUSE,
        };
        if let Some(options) = options {
            exporter.set(options);
        }
        if is_new || exporter.note_status() {
            *locked(&shared.status) = exporter.status();
        }
    }
}
