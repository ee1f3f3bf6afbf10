//! The environment of a test.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{Process, run, s};

/// A network and mount namespace that a process holds. It ends with the process, and has no name that could be left behind.
pub struct Namespace {
    holder: Process,
}

impl Namespace {
    /// It has a loopback, its own /sys, and no IPv6, so that every frame on a wire was sent by a test.
    pub fn new(dir: &Path, name: &str) -> Self {
        let script = "mount -t sysfs sysfs /sys && ip link set lo up && \
            for v in all default; do echo 1 > /proc/sys/net/ipv6/conf/$v/disable_ipv6; done; \
            echo NAMESPACE-READY; exec sleep infinity";
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount", "sh", "-c", script]);
        let mut holder = Process::start(dir, &format!("namespace-{name}"), &command);
        holder.wait_for("NAMESPACE-READY", s(10));
        Self { holder }
    }

    /// The ID of a process in it, by which `ip link` refers to it.
    pub fn id(&self) -> u32 {
        self.holder.id()
    }

    /// A command to run inside.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.id().to_string(), "--net", "--mount", "--"])
            .arg(program);
        command
    }

    /// Moves this thread into the network namespace.
    pub fn enter(&self) {
        let file = File::open(format!("/proc/{}/ns/net", self.id())).expect("the holder lives");
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).expect("root");
    }
}

/// One test at a time, also if they are threads of one process (`cargo test`): they need the machine's cores.
static MACHINE: Mutex<()> = Mutex::new(());

/// A network namespace in which the switch runs and this thread is, with a directory and a time limit.
pub struct Lab {
    over: Arc<AtomicBool>,
    namespace: Namespace,
    dir: tempfile::TempDir,
    _machine: MutexGuard<'static, ()>,
}

impl Lab {
    /// A lab for a test that takes at most `limit`. After that everything ends at once: processes and namespaces end with
    /// this process, and the directory stays for examination.
    pub fn new(limit: Duration) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "end-to-end tests make network namespaces: run them as root"
        );
        let machine = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = tempfile::Builder::new()
            .prefix("cp-e2e-")
            .tempdir()
            .expect("a temporary directory");
        let over = Arc::new(AtomicBool::new(false));
        watch(Arc::clone(&over), limit, dir.path().to_owned());
        let namespace = Namespace::new(dir.path(), "lab");
        namespace.enter();
        Self {
            over,
            namespace,
            dir,
            _machine: machine,
        }
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The path of the socket of guest port `name`.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.dir().join(format!("{name}.sock"))
    }

    /// A command to run in the switch's namespace, with its /sys.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.namespace.command(program)
    }

    /// Runs `ip` with these words in the switch's namespace; it must succeed.
    pub fn ip(&self, words: &str) -> String {
        let mut command = self.command("ip");
        command.args(words.split_whitespace());
        let (status, text) = run(self.dir(), &command, s(10));
        assert!(status.success(), "ip {words}: {text}");
        text
    }
}

/// Free huge pages of 2 MiB. Those that were added are removed when this is dropped, however the test ends.
pub struct HugePages {
    keeper: Child,
}

impl HugePages {
    /// Adds to the machine's huge pages until `count` are free.
    pub fn new(count: u64) -> Self {
        // The keeper lives until its standard input ends, which also happens if this process is aborted.
        let script = "pool=/proc/sys/vm/nr_hugepages; trap '' TERM INT HUP; \
            free=$(awk '/^HugePages_Free/ { print $2 }' /proc/meminfo); \
            more=$(($1 > free ? $1 - free : 0)); echo $(($(cat $pool) + more)) > $pool; echo; \
            read -r _; echo $(($(cat $pool) - more)) > $pool";
        let mut command = Command::new("setsid");
        command.args(["sh", "-c", script, "sh", &count.to_string()]);
        let mut keeper = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("setsid starts: apt install util-linux");
        let reserved = keeper.stdout.as_mut().expect("a pipe").read_exact(&mut [0]);
        reserved.expect("the pages are there");
        let free = fs::read_to_string("/proc/meminfo").expect("the kernel's own file");
        let free = free
            .lines()
            .find_map(|line| line.strip_prefix("HugePages_Free:"));
        let free = free
            .and_then(|value| value.trim().parse().ok())
            .unwrap_or(0_u64);
        assert!(free >= count, "{free} huge pages are free, not {count}");
        Self { keeper }
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

fn watch(over: Arc<AtomicBool>, limit: Duration, dir: PathBuf) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    std::thread::spawn(move || {
        let deadline = Instant::now() + limit;
        while !over.load(Ordering::Relaxed) {
            if Instant::now() > deadline {
                eprintln!(
                    "{test} takes longer than {limit:?}; its logs are in {}",
                    dir.display()
                );
                std::process::abort();
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    });
}
