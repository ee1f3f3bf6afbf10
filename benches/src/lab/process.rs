//! A child process that ends with the bench.

use crate::error::BenchError;
use rustix::process::{Pid, Signal, kill_process_group};
use std::fs::File;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Longest wait for a switch to start.
pub const START_MAX: Duration = Duration::from_secs(60);
/// Longest wait for a switch to stop.
pub const STOP_MAX: Duration = Duration::from_secs(20);
/// Time between two checks, while waiting.
const LOOK: Duration = Duration::from_millis(20);

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

/// Calls `ready` repeatedly, until it returns a value or `longest` has passed.
pub fn wait_until<T>(
    longest: Duration,
    mut ready: impl FnMut() -> Result<Option<T>, BenchError>,
) -> Result<Option<T>, BenchError> {
    let deadline = Instant::now() + longest;
    loop {
        if let Some(value) = ready()? {
            return Ok(Some(value));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        std::thread::sleep(LOOK);
    }
}

/// Whether there is a socket at `path`.
pub fn is_socket(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|metadata| metadata.file_type().is_socket())
}

/// A shell that runs `line`.
pub fn shell(line: &str) -> Command {
    let mut command = Command::new("sh");
    command.arg("-c").arg(line);
    command
}

/// Runs a command that must succeed.
pub fn run(command: &mut Command, name: &str) -> Result<(), BenchError> {
    let output = command.output().map_err(BenchError::io(name))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let what = format!("{}: {}", output.status, said.trim());
    Err(BenchError::backend(name, what))
}
