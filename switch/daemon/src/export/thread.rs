//! The thread of an export: it takes what workers leave, and sends it. It starts with the first collector and then stays.

use std::fmt::Debug;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use crate::dataplane::Dataplane;

/// Pause between two rounds. What workers leave has room for what comes in that time.
const PAUSE: Duration = Duration::from_millis(20);
/// Pause between rounds while more waits, in which the collector can read.
pub(super) const SHORT_PAUSE: Duration = Duration::from_millis(2);

/// The longest time for what is left when an export ends.
const FINISH_MAX: Duration = Duration::from_secs(1);

/// A kind of export.
pub(crate) trait Kind {
    /// The name of its thread.
    const THREAD: &'static str;
    /// What the configuration says of it, with the collector.
    type Options: Clone + PartialEq + Debug + Send + 'static;
    /// What `show` says of it.
    type Status: Clone + Default + Debug + Send + 'static;
    /// What its thread has.
    type Exporter<'d>: Exporter<Options = Self::Options, Status = Self::Status>;

    /// Creates an exporter that exports nothing yet.
    fn exporter(dataplane: &Dataplane) -> Self::Exporter<'_>;
}

/// What the thread does.
pub(crate) trait Exporter {
    type Options;
    type Status;

    /// Changes the options; `None`: to export nothing. What is left may take as long as `within` to be sent.
    fn set(&mut self, options: Option<Self::Options>, within: Duration);
    /// Whether there is nothing to do until the options change.
    fn is_idle(&self) -> bool;
    /// Takes what is there, and sends what is due. Returns whether more may be there.
    fn round(&mut self) -> bool;
    /// Brings the status up to date if it is old. Returns whether it was.
    fn note_status(&mut self) -> bool;
    /// The status, as of the last round.
    fn status(&self) -> Self::Status;
}

/// An export and its status. The thread stays when the export is turned off, so that what it knows stays.
#[derive(Debug)]
pub(crate) struct Export<K: Kind> {
    shared: Arc<Shared<K>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Shared with the thread.
#[derive(Debug)]
struct Shared<K: Kind> {
    wanted: Mutex<Wanted<K::Options>>,
    changed: Condvar,
    status: Mutex<K::Status>,
}

/// What the thread is to do.
#[derive(Debug)]
struct Wanted<O> {
    /// `None`: to export nothing.
    options: Option<O>,
    /// Whether it has not taken the options yet.
    is_new: bool,
    /// Whether it is to end.
    ends: bool,
    /// The longest time for what is left at the end.
    within: Duration,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The daemon aborts on panic, so a poisoned lock is only ever seen by tests.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K: Kind> Default for Export<K> {
    fn default() -> Self {
        let wanted = Wanted {
            options: None,
            is_new: false,
            ends: false,
            within: FINISH_MAX,
        };
        Export {
            shared: Arc::new(Shared {
                wanted: Mutex::new(wanted),
                changed: Condvar::new(),
                status: Mutex::default(),
            }),
            thread: Mutex::new(None),
        }
    }
}

impl<K: Kind + 'static> Export<K> {
    /// Begins, changes or ends the export. A change loses nothing; the end sends what is there.
    pub(super) fn set_options(
        &self,
        dataplane: &Arc<Dataplane>,
        options: Option<K::Options>,
    ) -> io::Result<()> {
        let mut thread = locked(&self.thread);
        if thread.is_none() {
            if options.is_none() {
                return Ok(());
            }
            let (shared, dataplane) = (self.shared.clone(), dataplane.clone());
            let spawned = Builder::new()
                .name(K::THREAD.to_owned())
                .spawn(move || run::<K>(&shared, &dataplane))?;
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
        self.stop_within(FINISH_MAX);
    }

    /// The same, in this time.
    pub(crate) fn stop_within(&self, within: Duration) {
        let Some(thread) = locked(&self.thread).take() else {
            return;
        };
        *locked(&self.shared.wanted) = Wanted {
            options: None,
            is_new: true,
            ends: true,
            within,
        };
        self.shared.changed.notify_all();
        let _ = thread.join();
    }

    /// What is exported, and what was counted since the daemon's start.
    pub(crate) fn status(&self) -> K::Status {
        locked(&self.shared.status).clone()
    }
}

/// The thread.
fn run<K: Kind>(shared: &Shared<K>, dataplane: &Dataplane) {
    let mut exporter = K::exporter(dataplane);
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
        let within = wanted.within;
        ends = wanted.ends;
        drop(wanted);
        pause = match exporter.round() {
            true => SHORT_PAUSE,
            false => PAUSE,
        };
        if let Some(options) = options {
            exporter.set(options, within);
        }
        if is_new || exporter.note_status() {
            *locked(&shared.status) = exporter.status();
        }
    }
}
