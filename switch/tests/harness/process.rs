//! Processes that end when the test does.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// A process with its output in a file. When dropped, it is asked to end, then killed.
pub struct Process {
    name: String,
    log: PathBuf,
    child: Child,
    stdin: ChildStdin,
    /// The exit status, once known: a process can be waited for only once.
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts `command`; its output goes to `NAME.log` in `dir`. It dies with this thread, however that ends.
    pub fn start(dir: &Path, name: &str, command: &Command) -> Self {
        let log = dir.join(format!("{name}.log"));
        let output = File::create(&log).expect("a log file");
        let mut tied = Command::new("setpriv");
        tied.args(["--pdeathsig", "KILL", "--"])
            .arg(command.get_program())
            .args(command.get_args());
        for (key, value) in command.get_envs() {
            tied.env(key, value.unwrap_or_default());
        }
        let mut child = tied
            .stdin(Stdio::piped())
            .stdout(output.try_clone().expect("a second descriptor"))
            .stderr(output)
            .spawn()
            .expect("setpriv starts: apt install util-linux");
        let stdin = child.stdin.take().expect("a pipe");
        Self {
            name: name.to_owned(),
            log,
            child,
            stdin,
            ended: None,
        }
    }

    /// What it has printed so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).replace('\r', "")
    }

    /// Its process ID, which is that of the command: setpriv becomes the command.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Types a line.
    pub fn type_line(&mut self, line: &str) {
        writeln!(self.stdin, "{line}").expect("the process reads");
    }

    /// Sends a signal to this process, by its id.
    pub fn signal(&self, signal: Signal) {
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }

    /// Its exit status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("a child to wait for");
        }
        self.ended
    }

    /// Waits for its end.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + limit;
        while self.ended().is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        self.ended()
    }

    /// Waits until it has printed `text`.
    pub fn wait_for(&mut self, text: &str, limit: Duration) {
        let deadline = Instant::now() + limit;
        while !self.log().contains(text) {
            let over = self.ended().is_some() || Instant::now() >= deadline;
            // One more check: it may have printed the text and ended since.
            assert!(
                !over || self.log().contains(text),
                "{}: no {text:?}\n{}",
                self.name,
                self.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Kills it, as a crash would, and waits until it has ended.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        assert!(
            self.wait(Duration::from_secs(20)).is_some(),
            "{} outlives SIGKILL",
            self.name
        );
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended().is_none() {
            self.signal(Signal::TERM);
            if self.wait(Duration::from_secs(3)).is_none() {
                self.signal(Signal::KILL);
                self.wait(Duration::from_secs(3));
            }
        }
        if std::thread::panicking() {
            eprintln!("--- {} ({:?}) said:\n{}", self.name, self.ended, self.log());
        }
    }
}

/// Runs `command` to its end. Returns its exit status and all its output.
pub fn run(dir: &Path, command: &Command, limit: Duration) -> (ExitStatus, String) {
    let name = Path::new(command.get_program())
        .file_name()
        .unwrap_or_default();
    let name = format!(
        "run-{}-{:?}",
        name.to_string_lossy(),
        std::thread::current().id()
    );
    let mut process = Process::start(dir, &name, command);
    let status = process.wait(limit);
    let status = status.unwrap_or_else(|| panic!("{command:?}: not within {limit:?}"));
    (status, process.log())
}
