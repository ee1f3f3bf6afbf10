//! Another switch, started and stopped by commands.

use crate::error::BenchError;
use crate::interrupt;
use crate::lab::{Process as Child, START_MAX, STOP_MAX, Thread, shell, wait_until};
use tempfile::TempDir;

/// A switch that is started and stopped by commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its name in tables.
    pub name: String,
    /// Shell command that starts it, and ends when it is ready.
    pub start: String,
    /// Shell command that stops it.
    pub stop: String,
    /// Start of its polling thread's name; empty: it has none.
    pub thread: String,
}

/// The running switch. When dropped, it is stopped: first by its command, then, if its processes are still running, by
/// signals.
pub struct Process {
    peer: Peer,
    child: Child,
    directory: TempDir,
}

impl Peer {
    /// Starts it. Its polling thread, if it has one, is bound to `core`.
    pub fn start(&self, core: usize) -> Result<(Option<Thread>, Process), BenchError> {
        let directory = TempDir::new().map_err(BenchError::io("temporary directory"))?;
        let child = Child::spawn(&mut shell(&self.start), directory.path().join("start.log"))?;
        let mut process = Process {
            peer: self.clone(),
            child,
            directory,
        };
        let status = wait_until(START_MAX, || {
            interrupt::check()?;
            Ok(process.child.ended())
        })?;
        match status {
            Some(status) if status.success() => {}
            Some(_) => return Err(process.failed("the start command failed")),
            None => return Err(process.failed("is not ready in time")),
        }
        if self.thread.is_empty() {
            return Ok((None, process));
        }
        let worker = wait_until(START_MAX, || {
            interrupt::check()?;
            Ok(Thread::named_on_core(&self.thread, core))
        })?;
        let missing = || format!("no thread {}* on core {core} in time", self.thread);
        let worker = worker.ok_or_else(|| process.failed(&missing()))?;
        Ok((Some(worker), process))
    }
}

impl Process {
    fn failed(&self, what: &str) -> BenchError {
        let what = format!("{what}\n{}", self.child.log_tail());
        BenchError::backend(&self.peer.name, what)
    }

    fn stop(&self) -> Result<bool, BenchError> {
        let log = self.directory.path().join("stop.log");
        let mut stop = Child::spawn(&mut shell(&self.peer.stop), log)?;
        Ok(wait_until(STOP_MAX, || Ok(stop.ended()))?.is_some())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !matches!(self.stop(), Ok(true)) {
            eprintln!("{}: the stop command does not end", self.peer.name);
        }
    }
}
