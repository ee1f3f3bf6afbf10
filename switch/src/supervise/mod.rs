//! `crosspoint supervise`: runs the switch as a process of its own, and keeps what guests need while that process is replaced.
//!
//! The supervisor reads nothing that a guest or a front end has written. It holds copies of descriptors, in [`Store`]; closes
//! them on a thread of their own, since a close can block; and starts processes of the switch.

mod process;
mod reexec;
mod request;
mod upgrade;

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crosspoint_daemon::handover::Closer;
use crosspoint_daemon::service::notify;
use crosspoint_handover::{
    Adopted, Adoption, AdoptionSocket, BYTES_MAX, Begin, Kind, Link, Message, Orphan, RECORDS_MAX,
    Start, Store, adopt,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR2};

use crate::run::raise_open_files;
use process::{End, Process, Program, Status};
use request::Requests;
use request::Upgrade;
pub(crate) use request::UpgradeCommand;

/// A process whose main loop or a worker makes no progress for so long is ended; systemd's watchdog would end the supervisor
/// too, after 30 s.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// The same of a process that was started after a crash and is not ready yet.
const SILENCE_AT_START_MAX: Duration = Duration::from_secs(60);
/// How long the switch may take to end in order: systemd gives the service 20 s.
const STOP_TIME_MAX: Duration = Duration::from_secs(12);
/// How long a process whose connection has ended may take to end.
const END_TIME_MAX: Duration = Duration::from_secs(1);
/// The longest time between two looks.
const LOOK: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};
/// How long a process that another supervisor has left may take to answer.
const ADOPTION_TIME_MAX: Duration = Duration::from_secs(10);
/// Crashes within this time are counted together.
const CRASHES_WITHIN: Duration = Duration::from_secs(60);
/// From this many on, the supervisor gives up, and leaves the restart to the service manager.
const CRASHES_MAX: usize = 6;
/// A crash so soon after an upgrade brings the former program back.
const PROBATION: Duration = Duration::from_secs(10);

/// Run the switch under a supervisor: guests stay connected through upgrades and crashes
///
/// It starts `crosspoint run` as a process of its own, and holds copies of the sockets and of the guests' memory. When that
/// process crashes, a new one goes on with the guests, whose front ends see no disconnection. `crosspoint upgrade` replaces it by
/// the program that is installed now. SIGTERM and SIGHUP are passed on; SIGUSR2 upgrades.
#[derive(clap::Args)]
#[command(after_long_help = crate::help::SUPERVISE)]
pub(crate) struct Supervise {
    /// The configuration (TOML)
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    #[command(flatten)]
    socket: request::Socket,
    /// How long the switch goes on when the supervisor dies, and waits for another one
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(0..=86_400))]
    without_supervisor: u64,
}

impl Supervise {
    pub(crate) fn run(self) -> ExitCode {
        match supervise(&self) {
            Ok(code) => code,
            Err(why) => {
                say(&format!("error: {why}"));
                ExitCode::FAILURE
            }
        }
    }
}

/// Prints a line of the supervisor's own, unless the log takes none: on a full disk `eprintln!` would end the supervisor, and a
/// reader of the log that stands still would hold it up.
fn say(text: &str) {
    let (line, mut log) = (format!("supervisor: {text}\n"), io::stderr());
    let mut polled = [PollFd::new(&log, PollFlags::OUT)];
    // A pipe or socket that is ready has room for a line.
    if poll(&mut polled, Some(&Timespec::default())) == Ok(1) {
        let _ = io::Write::write_all(&mut log, line.as_bytes());
    }
}

/// Flags that signals set, and what they make readable.
struct Signals {
    stop: Arc<AtomicBool>,
    reload: Arc<AtomicBool>,
    upgrade: Arc<AtomicBool>,
    woken: UnixStream,
}

impl Signals {
    fn new() -> io::Result<Signals> {
        let (woken, wakes) = UnixStream::pair()?;
        woken.set_nonblocking(true)?;
        wakes.set_nonblocking(true)?;
        let flag = |signals: &[i32]| {
            let flag = Arc::new(AtomicBool::new(false));
            for signal in signals {
                signal_hook::flag::register(*signal, flag.clone())?;
                // After the flag, so that the loop, once woken, sees it.
                signal_hook::low_level::pipe::register(*signal, wakes.try_clone()?)?;
            }
            io::Result::Ok(flag)
        };
        Ok(Signals {
            stop: flag(&[SIGTERM, SIGINT])?,
            reload: flag(&[SIGHUP])?,
            upgrade: flag(&[SIGUSR2])?,
            woken,
        })
    }

    fn drain(&self) {
        let mut bytes = [0; 64];
        while io::Read::read(&mut &self.woken, &mut bytes).is_ok_and(|read| read > 0) {}
    }
}

/// The supervisor.
struct Supervisor {
    config: PathBuf,
    /// The installed program, by its path: after an update it is another one.
    program: Program,
    /// The program of the process before the current one.
    former: Option<Program>,
    current: Process,
    /// Where the current process waits for another supervisor if this one dies.
    adoption_socket: AdoptionSocket,
    unsupervised_s_max: u64,
    /// The records of the current process.
    store: Store,
    closer: Closer,
    signals: Signals,
    upgraded_at: Option<Instant>,
    upgrades: u64,
    crashes_total: u64,
    /// The recent ones.
    crashes: Vec<Instant>,
}

fn supervise(options: &Supervise) -> io::Result<ExitCode> {
    raise_open_files();
    let signals = Signals::new()?;
    let program = Program::Path(installed_program()?);
    let requests = Requests::listen(&options.socket.supervisor_socket)?;
    let begin = Begin {
        start: Start::Fresh,
        upgrades: 0,
        crashes: 0,
        unsupervised_s_max: options.without_supervisor,
    };
    let place = adoption_path(&options.socket.supervisor_socket);
    let former = reexec::former();
    let left = match adopted(&place)? {
        Some(left) => left,
        None => {
            let adoption_socket =
                AdoptionSocket::bind(&place).map_err(|why| explained(&place, why))?;
            let fds = [adoption_socket.as_fd()];
            let store = Store::default();
            let current = Process::start(&program, &options.config, (begin, &fds), &store)?;
            Adoptee {
                current,
                adopted: Adopted::default(),
                adoption_socket,
                store,
            }
        }
    };
    let Adoptee {
        current,
        adopted,
        adoption_socket,
        store,
    } = left;
    let supervisor = Supervisor {
        config: options.config.clone(),
        program,
        former,
        current,
        adoption_socket,
        unsupervised_s_max: options.without_supervisor,
        store,
        closer: Closer::start()?,
        signals,
        upgraded_at: None,
        upgrades: adopted.upgrades,
        crashes_total: adopted.crashes,
        crashes: Vec::new(),
    };
    let code = supervisor.run(&requests)?;
    // The switch has ended: no other supervisor finds it.
    let _ = std::fs::remove_file(&place);
    Ok(code)
}

/// The file of the socket at which the switch waits for another supervisor.
fn adoption_path(supervisor_socket: &Path) -> PathBuf {
    let mut path = supervisor_socket.as_os_str().to_owned();
    path.push(".switch");
    path.into()
}

/// An error of a supervisor's socket, with its path.
fn explained(path: &Path, why: io::Error) -> io::Error {
    let path = path.display();
    let text = format!("cannot listen on {path}: {why}; --supervisor-socket names another");
    io::Error::new(why.kind(), text)
}

/// The process of the switch that a supervisor before this one has left, and what it gives.
struct Adoptee {
    current: Process,
    adopted: Adopted,
    adoption_socket: AdoptionSocket,
    store: Store,
}

/// Finds the process that a supervisor before this one has left, if there is one.
fn adopted(path: &Path) -> io::Result<Option<Adoptee>> {
    let found = adopt(path, ADOPTION_TIME_MAX).map_err(|why| {
        let path = path.display();
        io::Error::other(format!("the switch that waits at {path}: {why}"))
    })?;
    let Some(Orphan { pid, given }) = found else {
        return Ok(None);
    };
    match given {
        Ok(Adoption {
            link,
            adopted,
            adoption_socket,
            store,
        }) => {
            let mut current = Process::of(pid, link)?;
            current.is_ready = true;
            say(&format!(
                "goes on with the switch that another supervisor has left (process {pid})"
            ));
            Ok(Some(Adoptee {
                current,
                adopted,
                adoption_socket,
                store,
            }))
        }
        Err(why) => {
            // It has ended, or is ended: a new one is started.
            say(&format!(
                "error: the switch that another supervisor has left (process {pid}) is not understood, and is ended: {why}"
            ));
            if let Ok(mut process) = Process::of(pid, Link::pair()?.0) {
                process.kill();
            }
            Ok(None)
        }
    }
}

/// The path of this program, as it was started by: a symbolic link may lead to another version later.
fn installed_program() -> io::Result<PathBuf> {
    let resolved = std::env::current_exe()?;
    let named = std::env::args_os().next().map(PathBuf::from);
    let named = named.and_then(|path| std::path::absolute(path).ok());
    let is_it = |path: &PathBuf| std::fs::canonicalize(path).is_ok_and(|to| to == resolved);
    Ok(named.filter(is_it).unwrap_or(resolved))
}

impl Supervisor {
    fn run(mut self, requests: &Requests) -> io::Result<ExitCode> {
        loop {
            let [signalled, spoken, asked] = wait([
                self.signals.woken.as_fd(),
                self.current.link.as_fd(),
                requests.as_fd(),
            ])?;
            // Not while it has said something that was not heard yet.
            if !spoken
                && self.end_if_hung()
                && let Some(code) = self.after_end()?
            {
                return Ok(code);
            }
            if signalled {
                self.signals.drain();
                if self.is_stopping() {
                    return Ok(self.stop());
                }
                if self.signals.reload.swap(false, Ordering::Relaxed) {
                    self.current.signal(Signal::HUP);
                }
                if self.signals.upgrade.swap(false, Ordering::Relaxed) {
                    let _ = self.upgrade(Upgrade::default());
                }
            }
            if spoken && let Some(code) = self.hear()? {
                return Ok(code);
            }
            if asked {
                let switch = self.current.pid();
                requests.answer(switch, |upgrade| self.upgrade(upgrade));
            }
            if !(signalled || spoken || asked) {
                self.reexec();
            }
        }
    }

    fn begin(&self, start: Start) -> Begin {
        let is_upgrade = start == Start::Prepare;
        Begin {
            start,
            upgrades: self.upgrades + u64::from(is_upgrade),
            crashes: self.crashes_total,
            unsupervised_s_max: self.unsupervised_s_max,
        }
    }

    /// Ends the current process if it hangs: its end is then like a crash. Returns whether it did.
    fn end_if_hung(&mut self) -> bool {
        let silence_max = match self.current.is_ready {
            true => SILENCE_MAX,
            false => SILENCE_AT_START_MAX,
        };
        // A first start is the service manager's to judge.
        let is_judged = self.current.is_ready || self.crashes_total > 0;
        if is_judged && self.current.heartbeat_at.elapsed() > silence_max {
            say(&format!(
                "error: no heartbeat of the switch for {} s: it is ended",
                silence_max.as_secs()
            ));
            self.current.heartbeat_at = Instant::now();
            self.current.kill();
            return true;
        }
        false
    }

    fn is_stopping(&self) -> bool {
        self.signals.stop.load(Ordering::Relaxed)
    }

    /// Ends the current process in order.
    fn stop(&mut self) -> ExitCode {
        self.current.signal(Signal::TERM);
        let deadline = Instant::now() + STOP_TIME_MAX;
        loop {
            // What it still says must not block it.
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            match self.current.link.receive_within(left) {
                Ok(Some(message)) => self.take(message),
                Ok(None) | Err(_) => break,
            }
        }
        match self.current.wait_until(deadline) {
            // Of a process that another supervisor has started the status is not known.
            End::Ended(status) => status.map_or(ExitCode::SUCCESS, |status| code_of(Some(status))),
            End::Runs => {
                say("error: the switch does not end, and is killed: interfaces keep its settings");
                self.current.kill();
                ExitCode::FAILURE
            }
        }
    }

    /// Hears the current process. Returns the exit status if the supervisor is to end too.
    fn hear(&mut self) -> io::Result<Option<ExitCode>> {
        match self.current.link.receive() {
            Ok(Some(message)) => {
                self.take(message);
                Ok(None)
            }
            Ok(None) => self.after_end(),
            Err(why) => {
                say(&format!(
                    "error: the switch's process cannot be heard, and is ended: {why}"
                ));
                self.current.kill();
                self.after_end()
            }
        }
    }

    fn take(&mut self, message: Message) {
        match message.kind {
            Kind::Record | Kind::Forget => {
                let (name, refused) = (message.name.clone(), self.store.refused());
                self.closer.close_some(self.store.take(message));
                // Once: each further one would say the same.
                if refused == 0 && self.store.refused() > 0 {
                    say(&format!(
                        "error: the store of records is full ({RECORDS_MAX} records, {} MiB): {name:?} is not kept, and others may not be; \
                         after a crash the next process starts without them, or with older ones",
                        BYTES_MAX >> 20
                    ));
                }
            }
            Kind::Ready => {
                self.current.is_ready = true;
                self.current.heartbeat_at = Instant::now();
            }
            Kind::Heartbeat => {
                self.current.heartbeat_at = Instant::now();
                self.tell_manager("WATCHDOG=1\n");
            }
            Kind::Notify => self.tell_manager(&message.text()),
            _ => self.closer.close(message),
        }
    }

    /// Tells the service manager `lines`, as sd_notify(3) has them.
    fn tell_manager(&self, lines: &str) {
        if let Err(why) = notify::forward(lines.as_bytes()) {
            say(&format!(
                "the service manager is not told of the switch's status: {why}"
            ));
        }
    }

    /// The current process has ended: restarts it, unless it ended in order.
    fn after_end(&mut self) -> io::Result<Option<ExitCode>> {
        let status = match self.current.wait_until(Instant::now() + END_TIME_MAX) {
            End::Ended(status) => status,
            End::Runs if self.current.kill() => None,
            End::Runs => {
                say("error: the switch's process does not end");
                return Ok(Some(ExitCode::FAILURE));
            }
        };
        let is_in_order = status.is_some_and(Status::is_success);
        if is_in_order || (!self.current.is_ready && self.crashes.is_empty()) {
            return Ok(Some(code_of(status)));
        }
        let now = Instant::now();
        self.crashes
            .retain(|at| now.duration_since(*at) < CRASHES_WITHIN);
        self.crashes.push(now);
        self.crashes_total += 1;
        let how = status.map_or("it is gone".to_owned(), |status| status.to_string());
        if self.crashes.len() >= CRASHES_MAX {
            say(&format!(
                "error: the switch has ended {} times within a minute ({how}): giving up",
                self.crashes.len()
            ));
            return Ok(Some(ExitCode::FAILURE));
        }
        if self.crashes.len() >= 2 {
            self.drop_tables();
        }
        let program = self.program_after_crash(now);
        let sessions = self
            .store
            .names()
            .filter(|name| name.starts_with("session/"))
            .count();
        say(&format!(
            "error: the switch has ended ({how}): it is started again, with {sessions} connected guest(s)"
        ));
        self.tell_manager("WATCHDOG=1\n");
        let begin = self.begin(Start::AfterCrash);
        let fds = &[self.adoption_socket.as_fd()];
        self.current = match Process::start(&program, &self.config, (begin, fds), &self.store) {
            Ok(process) => process,
            Err(why) => {
                say(&format!(
                    "error: it cannot be started: {why}; trying what is installed"
                ));
                Process::start(&self.program, &self.config, (begin, fds), &self.store)?
            }
        };
        Ok(None)
    }

    /// Drops the tables, which may be what the switch dies of.
    fn drop_tables(&mut self) {
        const TABLES: [&str; 3] = ["addresses", "counters", "connections"];
        say(
            "the switch crashes again and again: learned addresses, counters and connections are dropped",
        );
        let tables = self.store.remove_where(|name| TABLES.contains(&name));
        for record in tables {
            self.closer.close(record);
        }
    }

    /// The program that is started after a crash: the one that ran, and not what is at its path by now, which has not been tried
    /// yet; or the former one, if the one that ran is new.
    fn program_after_crash(&mut self, now: Instant) -> Program {
        let running = self.current.program();
        let running = running.unwrap_or_else(|| self.program.clone());
        let age = self.upgraded_at.map(|at| now.duration_since(at));
        let is_new = age.is_some_and(|age| age < PROBATION);
        match self.former.clone().filter(|_| is_new) {
            Some(former) => {
                say("the former program is started again, since the new one has ended so soon");
                (self.former, self.upgraded_at) = (Some(running), None);
                former
            }
            None => running,
        }
    }
}

/// Waits until some of `fds` are readable.
fn wait<const N: usize>(fds: [std::os::fd::BorrowedFd<'_>; N]) -> io::Result<[bool; N]> {
    let mut polled = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
    match poll(&mut polled, Some(&LOOK)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(errno) => return Err(errno.into()),
    }
    Ok(polled.map(|fd| !fd.revents().is_empty()))
}

fn code_of(status: Option<Status>) -> ExitCode {
    ExitCode::from(status.and_then(Status::code).unwrap_or(1))
}
