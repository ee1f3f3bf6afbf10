//! A child process that ends with the bench.

use super::{STOP_MAX, wait_until};
use crate::error::BenchError;
use rustix::process::{Pid, Signal, kill_process_group};
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};

/// Lines of a log that an error message shows.
const LOG_LINES: usize = 8;

/// A child, the leader of its own process group. When dropped, the group gets SIGTERM, and then SIGKILL if necessary.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`, with its output in `log`.
    pub fn spawn(command: &mut Command, log: PathBuf) -> Result<Self, BenchError> {
        let program = command.get_program().display().to_string();
        let file = File::create(&log).and_then(|file| Ok((file.try_clone()?, file)));
        let (out, err) = file.map_err(BenchError::io(log.display().to_string()))?;
        let command = command.stdin(Stdio::null()).stdout(out).stderr(err);
        let child = command
            .process_group(0)
            .spawn()
            .map_err(BenchError::io(program))?;
        Ok(Self { child, log })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its exit status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// The end of its output.
    pub fn log_tail(&self) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }

    fn signal(&self, signal: Signal) {
        let _ = kill_process_group(Pid::from_child(&self.child), signal); // gone already
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended().is_some() {
            return; // its ID may belong to another process by now
        }
        self.signal(Signal::TERM);
        if !matches!(wait_until(STOP_MAX, || Ok(self.ended())), Ok(Some(_))) {
            self.signal(Signal::KILL);
            let _ = self.child.wait();
        }
    }
}
