//! Another switch, that commands start and stop.

use super::process::Process as Child;
use super::{Backend, Running, START_MAX, STOP_MAX, is_socket, wait_until};
use crate::error::BenchError;
use crate::interrupt;
use crate::options::Peer;
use crate::threads::Thread;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

/// The running switch. Dropped, it stops: first by its command, then, if the start command is still there, by signals.
pub struct Process {
    peer: Peer,
    child: Child,
    directory: TempDir,
}

/// Starts `peer`, whose polling thread is bound to `core`.
pub fn start(peer: &Peer, core: usize) -> Result<Backend, BenchError> {
    let directory = TempDir::new().map_err(BenchError::io("temporary directory"))?;
    let child = Child::spawn(&mut shell(&peer.start), directory.path().join("start.log"))?;
    let mut process = Process {
        peer: peer.clone(),
        child,
        directory,
    };
    let worker = wait_until(START_MAX, || process.worker(core))?;
    let worker = worker.ok_or_else(|| {
        let thread = &peer.thread;
        process.failed(&format!(
            "no two sockets and thread {thread}* on core {core} in time"
        ))
    })?;
    Ok(Backend {
        sockets: peer.sockets.clone(),
        worker: Some(worker),
        metrics: None,
        _running: Running::Peer { _process: process },
    })
}

impl Process {
    /// The polling thread, once the peer is ready.
    fn worker(&mut self, core: usize) -> Result<Option<Thread>, BenchError> {
        interrupt::check()?;
        let ended = self.child.ended();
        if ended.is_some_and(|status| !status.success()) {
            return Err(self.failed("the start command failed"));
        }
        if !self.peer.sockets.0.iter().all(|path| is_socket(path)) {
            return Ok(None);
        }
        Ok(Thread::named_on_core(&self.peer.thread, core))
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

fn shell(line: &str) -> Command {
    let mut command = Command::new("sh");
    command.arg("-c").arg(line);
    command
}
