//! Another switch, started and stopped by commands.

use super::process::{Process as Child, START_MAX, STOP_MAX, is_socket, shell, wait_until};
use super::threads::Thread;
use crate::error::BenchError;
use crate::interrupt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The sockets between guests and a switch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ports {
    /// One socket per port.
    pub sockets: Vec<PathBuf>,
    /// The guests listen, and the switch connects.
    pub guests_listen: bool,
}

/// A switch that is started and stopped by commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its name in tables.
    pub name: String,
    /// Shell command that starts it.
    pub start: String,
    /// Shell command that stops it.
    pub stop: String,
    /// Its ports; without any, it is ready when the start command has ended.
    pub ports: Option<Ports>,
    /// Start of its polling thread's name; empty: it has none.
    pub thread: String,
}

/// The running switch. When dropped, it is stopped: first by its command, then, if the start command is still running, by
/// signals.
pub struct Process {
    peer: Peer,
    child: Child,
    directory: TempDir,
}

/// Starts `peer`, whose polling thread, if it has one, is bound to `core`.
pub fn start(peer: &Peer, core: usize) -> Result<(Option<Thread>, Process), BenchError> {
    let directory = TempDir::new().map_err(BenchError::io("temporary directory"))?;
    let child = Child::spawn(&mut shell(&peer.start), directory.path().join("start.log"))?;
    let mut process = Process {
        peer: peer.clone(),
        child,
        directory,
    };
    let ready = wait_until(START_MAX, || {
        process.is_ready().map(|ready| ready.then_some(()))
    })?;
    ready.ok_or_else(|| process.failed("is not ready in time"))?;
    if peer.thread.is_empty() {
        return Ok((None, process));
    }
    let worker = wait_until(START_MAX, || {
        interrupt::check()?;
        Ok(Thread::named_on_core(&peer.thread, core))
    })?;
    let thread = &peer.thread;
    let worker = worker
        .ok_or_else(|| process.failed(&format!("no thread {thread}* on core {core} in time")))?;
    Ok((Some(worker), process))
}

impl Process {
    /// Whether the switch is ready: its sockets exist, or the start command has ended. Fails if that command has failed.
    fn is_ready(&mut self) -> Result<bool, BenchError> {
        interrupt::check()?;
        let ended = self.child.ended();
        if ended.is_some_and(|status| !status.success()) {
            return Err(self.failed("the start command failed"));
        }
        Ok(match &self.peer.ports {
            Some(ports) if !ports.guests_listen => ports.sockets.iter().all(|path| is_socket(path)),
            _ => ended.is_some(), // nothing else shows that it is ready
        })
    }

    fn failed(&self, what: &str) -> BenchError {
        BenchError::backend(
            &self.peer.name,
            format!("{what}\n{}", self.child.log_tail()),
        )
    }

    fn stop(&self, log: &Path) -> Result<bool, BenchError> {
        let mut stop = Child::spawn(&mut shell(&self.peer.stop), log.into())?;
        Ok(wait_until(STOP_MAX, || Ok(stop.ended()))?.is_some())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !matches!(self.stop(&self.directory.path().join("stop.log")), Ok(true)) {
            eprintln!("{}: the stop command does not end", self.peer.name);
        }
    }
}
