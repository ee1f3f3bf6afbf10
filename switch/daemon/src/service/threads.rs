//! Thread state as the kernel reports it.

use std::fmt;
use std::fs;

use rustix::thread::Pid;

/// State and CPU time of a thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Activity {
    /// As in proc_pid_stat(5): `R` runs or waits for its core, `S` sleeps. `None` if the thread has ended.
    state: Option<char>,
    /// CPU time in clock ticks, user and system.
    ticks: u64,
}

/// The current activity of thread `id`.
pub(crate) fn activity(id: Pid) -> Activity {
    let stat = fs::read_to_string(path(id, "stat")).unwrap_or_default();
    activity_of(&stat).unwrap_or_default()
}

fn activity_of(stat: &str) -> Option<Activity> {
    // The name before it, in brackets, may contain any character.
    let (_, rest) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // Fields 3, 14 and 15, counted from one.
    let ticks = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    Some(Activity {
        state: rest.chars().next(),
        ticks: ticks(14)? + ticks(15)?,
    })
}

/// Involuntary context switches of thread `id`.
pub(crate) fn involuntary_switches(id: Pid) -> Option<u64> {
    let status = fs::read_to_string(path(id, "status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("nonvoluntary_ctxt_switches:"));
    line?.trim().parse().ok()
}

/// The core on which thread `id` runs or last ran.
pub(crate) fn last_core(id: Pid) -> Option<usize> {
    let stat = fs::read_to_string(path(id, "stat")).ok()?;
    let (_, rest) = stat.rsplit_once(") ")?;
    // Field 39, counted from one; the first of the rest is the third.
    rest.split_ascii_whitespace().nth(36)?.parse().ok()
}

fn path(id: Pid, file: &str) -> String {
    format!("/proc/self/task/{}/{file}", id.as_raw_nonzero())
}

impl Activity {
    /// Whether it sleeps in the kernel. A thread that runs or waits for its core does not.
    pub(crate) fn sleeps(&self) -> bool {
        self.state == Some('S')
    }

    /// Whether it may sleep in the kernel: `true` also if its state is unknown.
    pub(crate) fn may_sleep(&self) -> bool {
        self.state.is_none() || self.sleeps()
    }

    /// What it has done since `before`, as text. Meant for a thread that has made no progress.
    pub(crate) fn since(&self, before: &Activity) -> impl fmt::Display {
        match self.state {
            Some('R') if self.ticks == before.ticks => "preempted, it waits for its core",
            Some('R') => "busy, in one poll iteration that does not end",
            Some('S' | 'D') => "stuck in a system call",
            Some(_) => "stopped",
            None => "its thread is gone",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_read_whatever_its_name() {
        let stat = "17 (a) R (b)) S 1 17 17 0 -1 4194304 90 0 0 0 12 30 0 0 20 0 5 0 100 1000 7\n";
        let activity = activity_of(stat).expect("all fields");
        assert!(activity.sleeps());
        assert_eq!(activity.ticks, 42);
        assert_eq!(activity_of(""), None);
        assert!(activity.may_sleep());
        let runs = activity_of(&stat.replace(" S ", " R ")).expect("all fields");
        assert!(!runs.may_sleep());
        // Nothing is assumed about a thread whose state is unknown.
        let unknown = Activity::default();
        assert!(!unknown.sleeps() && unknown.may_sleep());
    }

    #[test]
    fn this_thread_runs_and_is_no_other() {
        let id = rustix::thread::gettid();
        let now = activity(id);
        assert!(!now.sleeps());
        assert!(involuntary_switches(id).is_some());
        let allowed = rustix::thread::sched_getaffinity(Some(id)).expect("an affinity");
        assert!(last_core(id).is_some_and(|core| allowed.is_set(core)));
        let text = now.since(&now).to_string();
        assert!(text.starts_with("preempted"), "{text}");
    }
}
