//! A process of the switch: `crosspoint run`, with the connection to its supervisor as its standard input.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::Builder;
use std::time::{Duration, Instant};

use crosspoint_handover::{Begin, Kind, Link, LinkError, SUPERVISED, Store};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};

/// Environment variable of a supervisor that is the successor of one: its standard input is the former program of the switch.
pub(super) const FORMER: &str = "CROSSPOINT_FORMER_PROGRAM";
/// How long a killed process may take to end.
const KILL_TIME_MAX: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(1);
const THREAD_STACK: usize = 32 << 10;

/// Former processes that have not ended yet, and are waited for.
static REAPING: AtomicUsize = AtomicUsize::new(0);

/// Whether a former process is still waited for.
pub(super) fn is_reaping() -> bool {
    REAPING.load(Ordering::SeqCst) > 0
}

/// A program that can be started.
#[derive(Clone)]
pub(super) enum Program {
    /// What is at this path then.
    Path(PathBuf),
    /// This file, even if its path is another file's by now.
    File(Arc<File>),
}

/// What tells one file from another, and from itself after a change.
pub(super) type Identity = (u64, u64, i64, u64);

pub(super) fn identity(file: &fs::Metadata) -> Identity {
    (file.dev(), file.ino(), file.mtime(), file.size())
}

impl Program {
    pub(super) fn identity(&self) -> Option<Identity> {
        let found = match self {
            Program::Path(path) => fs::metadata(path),
            Program::File(file) => file.metadata(),
        };
        found.ok().map(|file| identity(&file))
    }

    fn command(&self) -> Command {
        match self {
            Program::Path(path) => Command::new(path),
            Program::File(file) => Command::new(format!("/proc/self/fd/{}", file.as_raw_fd())),
        }
    }
}

/// A running process.
pub(super) struct Process {
    pid: Pid,
    /// Names it for as long as it is open, even when its number is another process's by then.
    pidfd: OwnedFd,
    pub(super) link: Link,
    /// The file of its program.
    file: Option<Arc<File>>,
    pub(super) is_ready: bool,
    /// When its last heartbeat came.
    pub(super) heartbeat_at: Instant,
    is_killed: bool,
}

impl Process {
    /// Starts a process, and sends it all records, and the descriptors of `begin`.
    pub(super) fn start(
        program: &Program,
        config: &Path,
        (begin, fds): (Begin, &[BorrowedFd<'_>]),
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
        command.env_remove(FORMER);
        // Dropped without a wait: `pidfd` is waited for.
        let pid = Pid::from_child(&command.spawn()?);
        let mut process = Process::of(pid, link)?;
        if let Err(why) = process.send_records(begin, fds, store) {
            process.kill();
            return Err(io::Error::other(why));
        }
        Ok(process)
    }

    /// A process that runs, and the connection to it.
    pub(super) fn of(pid: Pid, link: Link) -> io::Result<Process> {
        let file = File::open(format!("/proc/{pid}/exe"));
        Ok(Process {
            pid,
            pidfd: pidfd_open(pid, PidfdFlags::empty())?,
            link,
            file: file.ok().map(Arc::new),
            is_ready: false,
            heartbeat_at: Instant::now(),
            is_killed: false,
        })
    }

    fn send_records(
        &self,
        begin: Begin,
        fds: &[BorrowedFd<'_>],
        store: &Store,
    ) -> Result<(), LinkError> {
        store.send_all(&self.link)?;
        let body = serde_json::to_vec(&begin).map_err(io::Error::from)?;
        self.link.send(Kind::Begin, "", &body, fds)
    }

    pub(super) fn signal(&self, signal: Signal) {
        // It may have ended.
        let _ = pidfd_send_signal(&self.pidfd, signal);
    }

    /// Whether it has ended, and its exit status (that of a shell if a signal ended it), which is known only of a child.
    fn ended(&self) -> Option<Option<Status>> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        match waitid(WaitId::PidFd(self.pidfd.as_fd()), options) {
            Ok(None) => None,
            Ok(Some(status)) => Some(Some(Status {
                code: status.exit_status(),
                signal: status.terminating_signal(),
            })),
            // The process of another supervisor, which has died.
            Err(_) => {
                let mut polled = [PollFd::new(&self.pidfd, PollFlags::IN)];
                let ended = poll(&mut polled, Some(&Timespec::default())) != Ok(0);
                ended.then_some(None)
            }
        }
    }

    /// Whether it has ended, and how; waits for that until `deadline`.
    ///
    /// A front end can hold a thread of the process in uninterruptible sleep, through a descriptor that it gave. The process then
    /// does not end, not even by SIGKILL. It is as good as ended once none of its workers is left.
    pub(super) fn wait_until(&mut self, deadline: Instant) -> End {
        loop {
            if let Some(status) = self.ended() {
                return End::Ended(status);
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
        let Ok(tasks) = fs::read_dir(format!("/proc/{}/task", self.pid)) else {
            return false;
        };
        let name = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm"));
        let names = tasks.flatten().flat_map(name);
        names.into_iter().any(|name| name.starts_with("worker-"))
    }

    /// Its process ID.
    pub(super) fn pid(&self) -> Pid {
        self.pid
    }

    /// Whether the file of `program` is the one that it runs.
    pub(super) fn runs(&self, program: &Program) -> bool {
        let own = self.file.as_ref().and_then(|file| file.metadata().ok());
        own.map(|file| identity(&file)) == program.identity()
    }

    /// The program that it runs, even if another one is at its path by now.
    pub(super) fn program(&self) -> Option<Program> {
        self.file.clone().map(Program::File)
    }
}

impl Drop for Process {
    /// A killed process may take its time to end, and must not stay as a zombie after that.
    fn drop(&mut self) {
        if self.ended().is_some() {
            return;
        }
        let Ok(pidfd) = self.pidfd.try_clone() else {
            return;
        };
        REAPING.fetch_add(1, Ordering::SeqCst);
        let reap = move || {
            let _ = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
            REAPING.fetch_sub(1, Ordering::SeqCst);
        };
        let thread = Builder::new().name("cp-reap".to_owned());
        if thread.stack_size(THREAD_STACK).spawn(reap).is_err() {
            REAPING.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// How a process has ended.
#[derive(Clone, Copy)]
pub(super) struct Status {
    code: Option<i32>,
    signal: Option<i32>,
}

impl Status {
    pub(super) fn is_success(self) -> bool {
        self.code == Some(0)
    }

    /// Its exit status, if it has one.
    pub(super) fn code(self) -> Option<u8> {
        self.code.and_then(|code| u8::try_from(code).ok())
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code, self.signal) {
            (Some(code), _) => write!(f, "exit status {code}"),
            (_, Some(signal)) => write!(f, "signal {signal}"),
            _ => f.write_str("it is gone"),
        }
    }
}

/// What is known of a process.
pub(super) enum End {
    /// It runs.
    Runs,
    /// It has ended, with this status if it is known.
    Ended(Option<Status>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_ends_late_leaves_no_zombie() {
        let mut command = Command::new("sleep");
        let pid = Pid::from_child(&command.arg("0.2").spawn().expect("it starts"));
        let entry = format!("/proc/{pid}");
        let link = Link::pair().expect("a pair").0;
        drop(Process::of(pid, link).expect("it runs"));
        assert!(fs::exists(&entry).expect("/proc"), "it runs on");
        let deadline = Instant::now() + Duration::from_secs(10);
        while fs::exists(&entry).expect("/proc") {
            assert!(Instant::now() < deadline, "{entry} is a zombie");
            std::thread::sleep(PAUSE);
        }
    }
}
