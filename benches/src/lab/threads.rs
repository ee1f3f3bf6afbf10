//! Threads: finding them, pinning them, scheduling them, and their waiting time for a core.

use rustix::thread::{CpuSet, sched_setaffinity};
use std::fs;
use std::io;

/// Priority under `--realtime` of the threads that poll: the switch's worker, testpmd's.
pub const PRIORITY_POLL: i32 = 1;
/// Priority of the threads that measure, if they share a core with one that polls.
pub const PRIORITY_MEASURE: i32 = 2;

/// Error text if the permission is missing.
pub const FAVOUR: &str = "--favour needs CAP_SYS_NICE";

/// One thread of any process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thread {
    process: i32,
    thread: i32,
}

impl Thread {
    /// The calling thread.
    pub fn current() -> Self {
        Self {
            process: rustix::process::getpid().as_raw_nonzero().get(),
            thread: rustix::thread::gettid().as_raw_nonzero().get(),
        }
    }

    /// The thread of `process` whose name starts with `prefix`.
    pub fn named(process: u32, prefix: &str) -> Option<Self> {
        Self::all(process.cast_signed()).find(|thread| thread.has_name(prefix))
    }

    /// The youngest thread of any process whose name starts with `prefix` and that is bound to `core`: other runs of the
    /// same peer may exist.
    pub fn named_on_core(prefix: &str, core: usize) -> Option<Self> {
        numbers("/proc")
            .flat_map(Self::all)
            .filter(|thread| thread.has_name(prefix) && thread.is_bound_to(core))
            .max_by_key(|thread| thread.thread)
    }

    fn all(process: i32) -> impl Iterator<Item = Self> {
        numbers(&format!("/proc/{process}/task")).map(move |thread| Self { process, thread })
    }

    fn read(self, file: &str) -> io::Result<String> {
        fs::read_to_string(format!(
            "/proc/{}/task/{}/{file}",
            self.process, self.thread
        ))
    }

    fn has_name(self, prefix: &str) -> bool {
        self.read("comm").is_ok_and(|name| name.starts_with(prefix))
    }

    fn is_bound_to(self, core: usize) -> bool {
        self.read("status")
            .is_ok_and(|status| allowed_cores(&status) == Some(&core.to_string()))
    }

    /// Nanoseconds that the thread was ready to run, but did not run.
    pub fn waited_ns(self) -> Option<u64> {
        self.schedstat(1)
    }

    /// Its line in /proc with times and other values (proc(5)).
    pub fn stat(self) -> io::Result<String> {
        self.read("stat")
    }

    /// Nanoseconds that the thread ran on a core.
    pub fn ran_ns(self) -> Option<u64> {
        self.schedstat(0)
    }

    /// A number of schedstat: time on a core, time waiting for one (both in ns), time slices.
    fn schedstat(self, index: usize) -> Option<u64> {
        let line = self.read("schedstat").ok()?;
        line.split_whitespace().nth(index)?.parse().ok()
    }

    /// `SCHED_FIFO`: only threads of a higher priority take the core. Threads that it starts have ordinary scheduling.
    pub fn set_fifo(self, priority: i32) -> io::Result<()> {
        let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
        set_scheduler(self.thread, policy, priority)
    }

    /// Sets the nice value; on Linux each thread has its own. Below 0 it runs before ordinary threads. Unlike a real-time
    /// thread, it does not lose its core to starved threads for 50 ms of each second.
    pub fn set_nice(self, nice: i32) -> io::Result<()> {
        let id = rustix::process::Pid::from_raw(self.thread);
        Ok(rustix::process::setpriority_process(id, nice)?)
    }

    /// Sets the scheduler's default.
    pub fn set_normal(self) -> io::Result<()> {
        set_scheduler(self.thread, libc::SCHED_OTHER, 0)
    }
}

/// Pins the calling thread to `core`.
pub fn pin(core: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    Ok(sched_setaffinity(None, &set)?)
}

fn set_scheduler(thread: i32, policy: i32, priority: i32) -> io::Result<()> {
    let parameters = libc::sched_param {
        sched_priority: priority,
    };
    // SAFETY: the kernel reads one `sched_param` at the pointer, which lives across the call; it checks the rest.
    match unsafe { libc::sched_setscheduler(thread, policy, &raw const parameters) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Entries of a directory that are numbers.
fn numbers(directory: &str) -> impl Iterator<Item = i32> + use<> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn allowed_cores(status: &str) -> Option<&str> {
    let line = status
        .lines()
        .find_map(|l| l.strip_prefix("Cpus_allowed_list:"));
    line.map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_finds_itself_and_its_times() {
        let name = "bench-finds-me";
        let find = || (Thread::current(), Thread::named(std::process::id(), name));
        let builder = std::thread::Builder::new().name(name.into());
        let found = builder.spawn(find).unwrap().join().unwrap();
        assert_eq!(found.1, Some(found.0));
        assert!(Thread::current().waited_ns().is_some());
        assert!(Thread::current().ran_ns() > Some(0));
        let status = "Name:\tx\nCpus_allowed_list:\t1\n";
        assert_eq!(allowed_cores(status), Some("1"));
    }
}
