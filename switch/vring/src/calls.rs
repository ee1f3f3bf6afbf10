//! What calls may cost the worker that makes them, and who makes those that cost more.
//!
//! A write to an eventfd wakes all that wait for it, in the writer's time: a front end that has a million epoll entries
//! wait makes one call last 60 ms. So the port's thread makes the first call to each eventfd that it is given: what is
//! crowded by then, no worker ever writes to. Waiters may come later, so the worker takes the time of each call. A call
//! above [`CALL_TIME_MAX`], or too many that are slow, put the port under observation: from then on it is told apart, call
//! by call, what the call used or slept, and what the worker lost because its core was taken from it meanwhile. If it is
//! the calls, they are left to the port's caller thread, for good. So a port whose waiters come later can stop a worker
//! twice, and never again.
//!
//! The limits are far above what honest calls take, since the other side is not all to blame: 0.3 to 3 us on hosts of their
//! own, with an interrupt for a guest; in a virtual machine with loaded neighbours some 20 us, one in thousands 60 us.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::time::{ClockId, clock_gettime};

/// The longest that a call may take of a worker.
pub const CALL_TIME_MAX: Duration = Duration::from_micros(250);
/// From here on a call is slow,
const SLOW_CALL: Duration = Duration::from_micros(50);
/// and this share of a worker's time, in thousandths, is the most that a port's slow calls may take.
const SLOW_PERMILLE_MAX: u64 = 50;
/// The largest share that all calls of a port may take,
const SHARE_PERMILLE_MAX: u64 = 500;
/// if they take more than this on average.
const MEAN_MAX: Duration = Duration::from_micros(20);

/// Rings for a caller thread: an eventfd that no front end has. Ringing never waits.
#[derive(Debug)]
pub struct Bell(OwnedFd);

impl Bell {
    /// A bell that has not rung.
    pub fn new() -> std::io::Result<Arc<Bell>> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Arc::new(Bell(event)))
    }

    /// Rings: kept until [`hear`](Self::hear).
    pub fn ring(&self) {
        // It fails only when the counter is full, and then it rings.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Waits until it rings, or a signal comes. For one thread.
    pub fn hear(&self) {
        use rustix::event::{PollFd, PollFlags, poll};
        let _ = poll(
            &mut [PollFd::from_borrowed_fd(self.0.as_fd(), PollFlags::IN)],
            None,
        );
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

/// What the calls of one port have cost, and who makes them. It stays with the port while front ends come and go.
/// Workers write to it; the sums are not exact where several do at once.
#[derive(Debug)]
pub struct CallBudget {
    /// [`CALL_TIME_MAX`] and [`SLOW_CALL`] in cycles.
    cycles_max: u64,
    cycles_slow: u64,
    by_caller: AtomicBool,
    is_observed: AtomicBool,
    /// Of calls while not observed: cycles that they took.
    took: Sums,
    /// Of observed calls: processor time, in nanoseconds.
    used: Sums,
    longest_ns: AtomicU64,
}

/// Calls, what they cost, and what the slow ones among them did.
#[derive(Debug, Default)]
struct Sums {
    calls: AtomicU64,
    all: AtomicU64,
    slow: AtomicU64,
}

/// What a port's calls had cost when it was last looked at.
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
    /// A budget of which nothing is used; `hz` cycles are a second.
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

    /// Whether the port's calls are left to its caller thread.
    #[inline(always)]
    pub fn is_by_caller(&self) -> bool {
        self.by_caller.load(Ordering::Relaxed)
    }

    /// Leaves the port's calls to its caller thread, for good. Returns whether that is new.
    pub fn leave_to_caller(&self) -> bool {
        !self.by_caller.swap(true, Ordering::Relaxed)
    }

    /// The longest call that was too long, in nanoseconds; 0 if none was.
    pub fn longest_ns(&self) -> u64 {
        self.longest_ns.load(Ordering::Relaxed)
    }

    #[inline(always)]
    pub(crate) fn is_observed(&self) -> bool {
        self.is_observed.load(Ordering::Relaxed)
    }

    /// Worker: a call took so many cycles.
    #[inline(always)]
    pub(crate) fn charge(&self, cycles: u64) {
        self.took.add(cycles, cycles > self.cycles_slow);
        if cycles > self.cycles_max {
            self.is_observed.store(true, Ordering::Relaxed);
        }
    }

    /// Worker: makes a call of a port that is observed. Two system calls before and after, for such ports alone.
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

    /// Port thread: makes the first call to a descriptor. One that is too long is made again: an interrupt may have fallen
    /// into it. If it is too long again, the port's calls are left to its caller thread.
    pub(crate) fn try_out(&self, call: impl Fn() -> bool) {
        let before = Usage::now();
        call();
        let (used_ns, has_slept) = Usage::now().since(&before);
        if has_slept || Duration::from_nanos(used_ns) > CALL_TIME_MAX {
            self.observe(call);
        }
    }

    /// Control: looks at what was spent since `before`, a time of `window` ago. A port whose calls took too much is put
    /// under observation, or, if it is that, has its calls left to its caller thread. `cycle_ns` is the length of a cycle.
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

    /// Whether calls that cost so many nanoseconds cost a worker too much of `window`.
    fn is_too_much(&self, window: Duration) -> bool {
        let share = |ns: u64| u128::from(ns) * 1000 / window.as_nanos().max(1);
        let mean_ns = u128::from(self.all) / u128::from(self.calls.max(1));
        share(self.slow) > u128::from(SLOW_PERMILLE_MAX)
            || (share(self.all) > u128::from(SHARE_PERMILLE_MAX) && mean_ns > MEAN_MAX.as_nanos())
    }
}

/// Adds without a locked instruction: what two workers add at once may be lost.
#[inline(always)]
fn add(sum: &AtomicU64, more: u64) {
    sum.store(
        sum.load(Ordering::Relaxed).wrapping_add(more),
        Ordering::Relaxed,
    );
}

/// What this thread has used.
struct Usage {
    processor_ns: u64,
    sleeps: i64,
}

impl Usage {
    fn now() -> Usage {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        // SAFETY: all zero is a valid `rusage`, plain integers; `getrusage` writes no more than that, to a value that
        // lives through the call.
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

    /// Processor time since `before`, and whether the thread has slept of its own accord.
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

    /// A cycle is a nanosecond here.
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
        // As `charge` sees calls in which the core was gone: long, and nothing follows but observation.
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
