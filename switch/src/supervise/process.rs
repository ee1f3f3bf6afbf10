//! A process of the switch: `crosspoint run`, with the connection to its supervisor as its standard input.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread::Builder;
use std::time::{Duration, Instant};

use crosspoint_handover::{Begin, Kind, Link, LinkError, SUPERVISED, Store};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

/// How long a killed process may take to end.
const KILL_TIME_MAX: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(1);
const THREAD_STACK: usize = 32 << 10;

/// A program that can be started.
#[derive(Clone)]
pub(super) enum Program {
    /// What is at this path then.
    Path(PathBuf),
    /// This file, even if its path is another file's by now.
    File(Arc<File>),
}

impl Program {
    fn command(&self) -> Command {
        match self {
            Program::Path(path) => Command::new(path),
            Program::File(file) => Command::new(format!("/proc/self/fd/{}", file.as_raw_fd())),
        }
    }
}

/// A running process.
pub(super) struct Process {
    child: Child,
    pub(super) link: Link,
    /// The file of its program.
    file: Option<Arc<File>>,
    pub(super) is_ready: bool,
    /// When its last heartbeat came.
    pub(super) heartbeat_at: Instant,
    is_killed: bool,
}

impl Process {
    /// Starts a process, and sends it all records.
    pub(super) fn start(
        program: &Program,
        config: &Path,
        begin: Begin,
        store: &Store,
    ) -> io::Result<Process> {
        let (link, its) = Link::pair()?;
        let mut command = program.command();
        command
            .arg0("crosspoint")
            .arg("run")
            .arg("--config")
            .arg(config);
        command.env(SUPERVISED, "1").stdin(Stdio::from(its));
        // It tells the service manager's watchdog that it is alive, though it is not the main process.
        command.env_remove("WATCHDOG_PID");
        let child = command.spawn()?;
        let file = File::open(format!("/proc/{}/exe", child.id()))
            .ok()
            .map(Arc::new);
        let mut process = Process {
            child,
            link,
            file,
            is_ready: false,
            heartbeat_at: Instant::now(),
            is_killed: false,
        };
        if let Err(why) = process.send_records(begin, store) {
            process.kill();
            return Err(io::Error::other(why));
        }
        Ok(process)
    }

    fn send_records(&self, begin: Begin, store: &Store) -> Result<(), LinkError> {
        store.send_all(&self.link)?;
        let body = serde_json::to_vec(&begin).map_err(io::Error::from)?;
        self.link.send(Kind::Begin, "", &body, &[])
    }

    pub(super) fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // It may have ended; its number is not used again before `wait`.
            let _ = kill_process(pid, signal);
        }
    }

    /// Whether it has ended, and how; waits for that until `deadline`.
    ///
    /// A front end can hold a thread of the process in uninterruptible sleep, through a descriptor that it gave. The process then
    /// does not end, not even by SIGKILL. It is as good as ended once none of its workers is left.
    pub(super) fn wait_until(&mut self, deadline: Instant) -> End {
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return End::Ended(Some(status)),
                Err(_) => return End::Ended(None),
                Ok(None) => {}
            }
            if Instant::now() >= deadline {
                let is_killed = self.is_killed && !self.has_workers();
                return if is_killed {
                    End::Ended(None)
                } else {
                    End::Runs
                };
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Ends it at once. Returns whether none of its workers is left.
    pub(super) fn kill(&mut self) -> bool {
        self.signal(Signal::KILL);
        self.is_killed = true;
        matches!(
            self.wait_until(Instant::now() + KILL_TIME_MAX),
            End::Ended(_)
        )
    }

    fn has_workers(&self) -> bool {
        let Ok(tasks) = fs::read_dir(format!("/proc/{}/task", self.child.id())) else {
            return false;
        };
        let name = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm"));
        let names = tasks.flatten().flat_map(name);
        names.into_iter().any(|name| name.starts_with("worker-"))
    }

    /// Its process ID.
    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether the file of `program` is the one that it runs.
    pub(super) fn runs(&self, program: &Program) -> bool {
        let found = match program {
            Program::Path(path) => fs::metadata(path),
            Program::File(file) => file.metadata(),
        };
        let own = self.file.as_ref().and_then(|file| file.metadata().ok());
        let identity = |file: fs::Metadata| (file.dev(), file.ino(), file.mtime(), file.size());
        own.map(identity) == found.ok().map(identity)
    }

    /// The program that it runs, even if another one is at its path by now.
    pub(super) fn program(&self) -> Option<Program> {
        self.file.clone().map(Program::File)
    }
}

impl Drop for Process {
    /// A killed process may take its time to end, and must not stay as a zombie after that.
    fn drop(&mut self) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let (Some(pid), Ok(None)) = (pid, self.child.try_wait()) {
            let thread = Builder::new().name("cp-reap".to_owned());
            let reap = move || {
                let _ = waitpid(Some(pid), WaitOptions::empty());
            };
            let _ = thread.stack_size(THREAD_STACK).spawn(reap);
        }
    }
}

/// What is known of a process.
pub(super) enum End {
    /// It runs.
    Runs,
    /// It has ended, with this status if it is known.
    Ended(Option<ExitStatus>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_ends_late_leaves_no_zombie() {
        let child = Command::new("sleep").arg("0.2").spawn().expect("it starts");
        let entry = format!("/proc/{}", child.id());
        drop(Process {
            child,
            link: Link::pair().expect("a pair").0,
            file: None,
            is_ready: true,
            heartbeat_at: Instant::now(),
            is_killed: true,
        });
        assert!(fs::exists(&entry).expect("/proc"), "it runs on");
        let deadline = Instant::now() + Duration::from_secs(10);
        while fs::exists(&entry).expect("/proc") {
            assert!(Instant::now() < deadline, "{entry} is a zombie");
            std::thread::sleep(PAUSE);
        }
    }
}
