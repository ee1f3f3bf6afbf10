//! The parts of a core's time spent in the kernel and in the program.

use crate::lab::Thread;
use std::fs;

/// Ticks per second in /proc (USER_HZ, the same on all machines that Linux runs on today).
const TICKS_HZ: f64 = 100.0;

/// Times since some moment, seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CoreTimes {
    /// The thread's time in its program; none without a thread.
    pub user: Option<f64>,
    /// The thread's time in the kernel, including softirqs that interrupted it. Without a thread, the core's system, irq and
    /// softirq time.
    pub kernel: f64,
    /// The core's softirq time.
    pub softirq: f64,
}

impl CoreTimes {
    /// Times until now, of `thread`, if there is one, and of `core`.
    pub fn now(thread: Option<Thread>, core: usize) -> Option<Self> {
        let of_core = core_times(&fs::read_to_string("/proc/stat").ok()?, core)?;
        let Some(thread) = thread else {
            return Some(of_core);
        };
        let [user, kernel] = thread_times(&thread.stat().ok()?)?;
        Some(Self {
            user: Some(user),
            kernel,
            ..of_core
        })
    }

    /// The difference from `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            user: self.user.zip(earlier.user).map(|(now, then)| now - then),
            kernel: self.kernel - earlier.kernel,
            softirq: self.softirq - earlier.softirq,
        }
    }
}

/// The times of a core, without those of programs. /proc/stat has: user, nice, system, idle, iowait, irq, softirq.
fn core_times(stat: &str, core: usize) -> Option<CoreTimes> {
    let name = format!("cpu{core} ");
    let line = stat.lines().find_map(|line| line.strip_prefix(&name))?;
    let ticks: Vec<f64> = line
        .split_whitespace()
        .map_while(|ticks| ticks.parse().ok())
        .collect();
    let [_user, _nice, system, _idle, _iowait, irq, softirq, ..] = ticks[..] else {
        return None;
    };
    Some(CoreTimes {
        user: None,
        kernel: (system + irq + softirq) / TICKS_HZ,
        softirq: softirq / TICKS_HZ,
    })
}

/// utime and stime of /proc/PID/task/TID/stat: fields 14 and 15. The name, field 2, may contain any character.
fn thread_times(stat: &str) -> Option<[f64; 2]> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let mut next = || Some(fields.next()?.parse::<f64>().ok()? / TICKS_HZ);
    Some([next()?, next()?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_core_and_of_the_thread() {
        let stat = "cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\ncpu1 100 200 300 400 500 600 700 1 0 0\n";
        let times = core_times(stat, 1).unwrap();
        assert_eq!((times.kernel, times.softirq), (16.0, 7.0));
        assert_eq!(core_times(stat, 2), None);
        let stat = "17 (a) b) R 1 17 17 0 -1 4194368 1 2 3 4 250 125 0 0 20 0 5 0 99";
        assert_eq!(thread_times(stat), Some([2.5, 1.25]));
    }
}
