//! Limits what calls may cost a worker, and moves expensive calls to another thread.
//!
//! A write to an eventfd wakes all its waiters, in the writer's time: a front end with a million waiting epoll entries
//! makes one call last 60 ms. So the port's thread makes the first call to each new eventfd; if that is too slow, no
//! worker ever writes to the eventfd. Waiters may be added later, so the worker measures the time of each call. A call
//! longer than [`CALL_TIME_MAX`], or too many slow ones, put the port under observation: from then on, each call is
//! measured separately for the processor time that it used, whether it slept, and the time that the worker lost because
//! its core was taken away. If the calls are the cause, the port's caller thread makes them from then on, permanently.
//! So a port whose waiters are added later can stop a worker twice at most.
//!
//! The limits are far above what honest calls take, since a slow call need not be the front end's fault: 0.3 to 3 us on
//! a dedicated host, with an interrupt for a guest; in a virtual machine with loaded neighbours about 20 us, and one in
//! thousands 60 us.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::time::{ClockId, clock_gettime};

/// Maximum time of one call by a worker.
pub const CALL_TIME_MAX: Duration = Duration::from_micros(250);
/// A call longer than this is slow.
const SLOW_CALL: Duration = Duration::from_micros(50);
/// Maximum share of a worker's time, in thousandths, for a port's slow calls.
const SLOW_PERMILLE_MAX: u64 = 50;
/// Maximum share of a worker's time, in thousandths, for all calls of a port whose mean time is above [`MEAN_MAX`].
const SHARE_PERMILLE_MAX: u64 = 500;
/// Mean time of a port's calls above which [`SHARE_PERMILLE_MAX`] applies.
const MEAN_MAX: Duration = Duration::from_micros(20);

/// Wakes a caller thread through an eventfd that no front end has. Ringing never waits.
#[derive(Debug)]
pub struct Bell(OwnedFd);

impl Bell {
    /// Creates a bell that has not rung.
    pub fn new() -> std::io::Result<Arc<Bell>> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Arc::new(Bell(event)))
    }

    /// Rings the bell. The ring is kept until [`hear`](Self::hear).
    pub fn ring(&self) {
        // The write fails only when the counter is full, and then the bell is ringing already.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Waits until the bell rings or a signal arrives. For one thread.
    pub fn hear(&self) {
        use rustix::event::{PollFd, PollFlags, poll};
        let _ = poll(
            &mut [PollFd::from_borrowed_fd(self.0.as_fd(), PollFlags::IN)],
            None,
        );
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

/// Cost of one port's calls, and which thread makes them. It stays with the port across front ends. Workers write to
/// it; the sums are not exact if several write at once.
#[derive(Debug)]
pub struct CallBudget {
    /// [`CALL_TIME_MAX`] and [`SLOW_CALL`] in cycles.
    cycles_max: u64,
    cycles_slow: u64,
    by_caller: AtomicBool,
    is_observed: AtomicBool,
    /// Cycles of calls that were not observed.
    took: Sums,
    /// Processor time of observed calls, in nanoseconds.
    used: Sums,
    longest_ns: AtomicU64,
}

/// Number of calls, their cost, and the cost of the slow calls among them.
#[derive(Debug, Default)]
struct Sums {
    calls: AtomicU64,
    all: AtomicU64,
    slow: AtomicU64,
}

/// A port's sums at the last review.
#[derive(Clone, Copy, Default, Debug)]
pub struct Spent {
    took: Sum,
    used: Sum,
}

#[derive(Clone, Copy, Default, Debug)]
struct Sum {
    calls: u64,
    all: u64,
    slow: u64,
}

impl CallBudget {
    /// Creates an unused budget; `hz` is the number of cycles per second.
    pub fn new(hz: f64) -> Arc<CallBudget> {
        let cycles = |time: Duration| (time.as_secs_f64() * hz) as u64;
        Arc::new(CallBudget {
            cycles_max: cycles(CALL_TIME_MAX),
            cycles_slow: cycles(SLOW_CALL),
            by_caller: AtomicBool::new(false),
            is_observed: AtomicBool::new(false),
            took: Sums::default(),
            used: Sums::default(),
            longest_ns: AtomicU64::new(0),
        })
    }

    /// Whether the port's caller thread makes its calls.
    #[inline(always)]
    pub fn is_by_caller(&self) -> bool {
        self.by_caller.load(Ordering::Relaxed)
    }

    /// Leaves the port's calls to its caller thread permanently. Returns whether that is a change.
    pub fn leave_to_caller(&self) -> bool {
        !self.by_caller.swap(true, Ordering::Relaxed)
    }

    /// Duration of the longest call that was too long, in nanoseconds; 0 if none was.
    pub fn longest_ns(&self) -> u64 {
        self.longest_ns.load(Ordering::Relaxed)
    }

    #[inline(always)]
    pub(crate) fn is_observed(&self) -> bool {
        self.is_observed.load(Ordering::Relaxed)
    }

    /// Records the cycles of a worker's call.
    #[inline(always)]
    pub(crate) fn charge(&self, cycles: u64) {
        self.took.add(cycles, cycles > self.cycles_slow);
        if cycles > self.cycles_max {
            self.is_observed.store(true, Ordering::Relaxed);
        }
    }

    /// Makes a worker's call for an observed port. Costs two more system calls before and after the call, for such
    /// ports only.
    #[cold]
    pub(crate) fn observe<T>(&self, call: impl FnOnce() -> T) -> T {
        let before = Usage::now();
        let done = call();
        let (used_ns, has_slept) = Usage::now().since(&before);
        let used = Duration::from_nanos(used_ns);
        self.used.add(used_ns, used > SLOW_CALL);
        // A write to an eventfd that does not block never sleeps.
        if has_slept || used > CALL_TIME_MAX {
            self.longest_ns.fetch_max(used_ns, Ordering::Relaxed);
            self.leave_to_caller();
        }
        done
    }

    /// Makes the first call to a descriptor, on the port's thread. A call that is too long is repeated, since an
    /// interrupt may have hit it. If it is too long again, the port's calls are left to its caller thread.
    pub(crate) fn try_out(&self, call: impl Fn() -> bool) {
        let before = Usage::now();
        call();
        let (used_ns, has_slept) = Usage::now().since(&before);
        if has_slept || Duration::from_nanos(used_ns) > CALL_TIME_MAX {
            self.observe(call);
        }
    }

    /// Reviews the costs since `before`, which was taken `window` ago; called by the control thread. A port whose calls
    /// took too much is put under observation; if it is under observation already, its calls are left to its caller
    /// thread. `cycle_ns` is the length of a cycle.
    pub fn review(&self, before: &mut Spent, window: Duration, cycle_ns: f64) {
        let now = Spent {
            took: self.took.read(),
            used: self.used.read(),
        };
        let took = now.took.since(&before.took);
        let used = now.used.since(&before.used);
        *before = now;
        let in_ns = |cycles: u64| (cycles as f64 * cycle_ns) as u64;
        let took = Sum {
            all: in_ns(took.all),
            slow: in_ns(took.slow),
            ..took
        };
        if took.is_too_much(window) {
            self.is_observed.store(true, Ordering::Relaxed);
        }
        if used.is_too_much(window) {
            self.leave_to_caller();
        }
    }
}

impl Sums {
    #[inline(always)]
    fn add(&self, cost: u64, is_slow: bool) {
        add(&self.calls, 1);
        add(&self.all, cost);
        if is_slow {
            add(&self.slow, cost);
        }
    }

    fn read(&self) -> Sum {
        Sum {
            calls: self.calls.load(Ordering::Relaxed),
            all: self.all.load(Ordering::Relaxed),
            slow: self.slow.load(Ordering::Relaxed),
        }
    }
}

impl Sum {
    fn since(&self, before: &Sum) -> Sum {
        Sum {
            calls: self.calls.wrapping_sub(before.calls),
            all: self.all.wrapping_sub(before.all),
            slow: self.slow.wrapping_sub(before.slow),
        }
    }

    /// Whether these nanoseconds are too much of `window`.
    fn is_too_much(&self, window: Duration) -> bool {
        let share = |ns: u64| u128::from(ns) * 1000 / window.as_nanos().max(1);
        let mean_ns = u128::from(self.all) / u128::from(self.calls.max(1));
        share(self.slow) > u128::from(SLOW_PERMILLE_MAX)
            || (share(self.all) > u128::from(SHARE_PERMILLE_MAX) && mean_ns > MEAN_MAX.as_nanos())
    }
}

/// Adds without a locked instruction: concurrent additions of two workers may be lost.
#[inline(always)]
fn add(sum: &AtomicU64, more: u64) {
    sum.store(
        sum.load(Ordering::Relaxed).wrapping_add(more),
        Ordering::Relaxed,
    );
}

/// This thread's resource usage.
struct Usage {
    processor_ns: u64,
    sleeps: i64,
}

impl Usage {
    fn now() -> Usage {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        // SAFETY: all zero is a valid `rusage`, which has plain integers only; `getrusage` writes at most one `rusage`,
        // to a value that lives through the call.
        let usage = unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            libc::getrusage(libc::RUSAGE_THREAD, &mut usage);
            usage
        };
        Usage {
            processor_ns: (time.tv_sec as u64)
                .wrapping_mul(1_000_000_000)
                .wrapping_add(time.tv_nsec as u64),
            sleeps: usage.ru_nvcsw,
        }
    }

    /// Processor time since `before`, and whether the thread has slept voluntarily.
    fn since(&self, before: &Usage) -> (u64, bool) {
        (
            self.processor_ns.wrapping_sub(before.processor_ns),
            self.sleeps != before.sleeps,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spin(time: Duration) {
        let usage = Usage::now();
        while u128::from(Usage::now().since(&usage).0) < time.as_nanos() {}
    }

    /// One cycle is one nanosecond here.
    const HZ: f64 = 1e9;

    #[test]
    fn the_second_call_that_is_too_long_is_the_last_that_a_worker_makes() {
        let budget = CallBudget::new(HZ);
        budget.charge(CALL_TIME_MAX.as_nanos() as u64);
        assert!(!budget.is_observed());
        budget.charge(CALL_TIME_MAX.as_nanos() as u64 + 1);
        assert!(budget.is_observed() && !budget.is_by_caller());
        budget.observe(|| ());
        assert!(!budget.is_by_caller(), "a short call harms nothing");
        budget.observe(|| spin(2 * CALL_TIME_MAX));
        assert!(budget.is_by_caller() && budget.longest_ns() >= 500_000);
        assert!(!budget.leave_to_caller(), "it is so already");
    }

    #[test]
    fn a_call_that_sleeps_is_too_long_however_little_it_uses() {
        let budget = CallBudget::new(HZ);
        budget.observe(|| std::thread::sleep(Duration::from_micros(60)));
        assert!(budget.is_by_caller());
    }

    #[test]
    fn a_worker_whose_core_is_taken_away_blames_no_port() {
        let (budget, mut spent) = (CallBudget::new(HZ), Spent::default());
        // As `charge` sees calls that were preempted: they are long, and the only result is observation.
        (0..100).for_each(|_| budget.charge(1_000_000));
        (0..100).for_each(|_| budget.observe(|| ()));
        budget.review(&mut spent, Duration::from_secs(1), 1.0);
        assert!(budget.is_observed() && !budget.is_by_caller());
    }

    #[test]
    fn many_calls_are_too_much_only_if_they_are_slow() {
        let window = Duration::from_millis(100);
        let is_too_much = |calls, all, slow| Sum { calls, all, slow }.is_too_much(window);
        // Slow ones: more than 5 ms. All: more than 50 ms, and 20 us each.
        assert!(is_too_much(10_000, 6_000_000, 6_000_000));
        assert!(!is_too_much(10_000, 40_000_000, 5_000_000));
        assert!(is_too_much(2000, 60_000_000, 0));
        assert!(!is_too_much(4000, 60_000_000, 0) && !is_too_much(0, 0, 0));
    }

    #[test]
    fn a_port_with_slow_calls_is_observed_and_then_called_by_its_thread() {
        let (budget, mut spent) = (CallBudget::new(HZ), Spent::default());
        let window = Duration::from_millis(1);
        budget.charge(60_000);
        budget.review(&mut spent, window, 1.0);
        assert!(budget.is_observed() && !budget.is_by_caller());
        budget.review(&mut spent, window, 1.0);
        assert!(!budget.is_by_caller(), "nothing was spent since");
        budget.observe(|| spin(2 * SLOW_CALL));
        budget.review(&mut spent, window, 1.0);
        assert!(budget.is_by_caller());
    }

    #[test]
    fn a_bell_that_has_rung_is_heard_later() {
        let bell = Bell::new().unwrap();
        bell.ring();
        bell.ring();
        bell.hear();
    }
}
