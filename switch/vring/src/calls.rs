//! What calls may cost the worker that makes them, and who makes those that cost more.
//!
//! A write to an eventfd wakes all that wait for it, in the writer's time: a front end that has a million epoll entries
//! wait makes one call last 60 ms. So the worker takes the time of each. A call above [`CALL_TIME_MAX`] puts its port under
//! observation: from then on it is told apart, call by call, what the call used or slept, and what the worker lost because
//! its core was taken from it meanwhile. The next call that uses, or sleeps through, more than that leaves all calls of the
//! port to its caller thread, for good. So a port can stop a worker twice, and never again.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::time::{ClockId, clock_gettime};

/// The longest that a call may take of a worker. A write to an eventfd takes 0.3 to 3 us, with an interrupt for a guest.
pub const CALL_TIME_MAX: Duration = Duration::from_micros(50);
/// The largest share of a worker's time that a port's calls may take, in thousandths, if they are slow on average:
const SHARE_PERMILLE_MAX: u64 = 250;
/// slower than this each.
const SLOW_CALL: Duration = Duration::from_micros(5);

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
    /// [`CALL_TIME_MAX`] in cycles.
    cycles_max: u64,
    by_caller: AtomicBool,
    is_observed: AtomicBool,
    /// Of calls while not observed: how long they took.
    cycles: AtomicU64,
    /// Of observed calls: processor time, in nanoseconds.
    used_ns: AtomicU64,
    calls: AtomicU64,
    longest_ns: AtomicU64,
}

/// What a port's calls had cost when it was last looked at.
#[derive(Clone, Copy, Default, Debug)]
pub struct Spent {
    cycles: u64,
    used_ns: u64,
    calls: u64,
}

impl CallBudget {
    /// A budget of which nothing is used; [`CALL_TIME_MAX`] is so many cycles.
    pub fn new(call_cycles_max: u64) -> Arc<CallBudget> {
        Arc::new(CallBudget {
            cycles_max: call_cycles_max,
            by_caller: AtomicBool::new(false),
            is_observed: AtomicBool::new(false),
            cycles: AtomicU64::new(0),
            used_ns: AtomicU64::new(0),
            calls: AtomicU64::new(0),
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
        add(&self.cycles, cycles);
        add(&self.calls, 1);
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
        add(&self.used_ns, used_ns);
        add(&self.calls, 1);
        // A write to an eventfd that does not block never sleeps.
        if has_slept || u128::from(used_ns) > CALL_TIME_MAX.as_nanos() {
            self.longest_ns.fetch_max(used_ns, Ordering::Relaxed);
            self.leave_to_caller();
        }
        done
    }

    /// Control: looks at what was spent since `before`, a time of `window` ago. A port whose calls are slow and take more
    /// than a quarter of a worker is put under observation, or, if it is, has its calls left to its caller thread.
    /// `cycles_ns` is the length of a cycle.
    pub fn review(&self, before: &mut Spent, window: Duration, cycles_ns: f64) {
        let now = Spent {
            cycles: self.cycles.load(Ordering::Relaxed),
            used_ns: self.used_ns.load(Ordering::Relaxed),
            calls: self.calls.load(Ordering::Relaxed),
        };
        let calls = now.calls.wrapping_sub(before.calls);
        let took_ns = now.cycles.wrapping_sub(before.cycles) as f64 * cycles_ns;
        let used_ns = now.used_ns.wrapping_sub(before.used_ns);
        *before = now;
        if is_too_much(took_ns as u64, calls, window) {
            self.is_observed.store(true, Ordering::Relaxed);
        }
        if is_too_much(used_ns, calls, window) {
            self.leave_to_caller();
        }
    }
}

/// Whether `calls` calls are too slow for the share of `window` that they took.
fn is_too_much(ns: u64, calls: u64, window: Duration) -> bool {
    let (ns, window_ns) = (u128::from(ns), window.as_nanos());
    ns * 1000 > window_ns * u128::from(SHARE_PERMILLE_MAX)
        && ns > u128::from(calls) * SLOW_CALL.as_nanos()
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

    #[test]
    fn the_second_call_that_is_too_long_is_the_last_that_a_worker_makes() {
        let budget = CallBudget::new(1000);
        budget.charge(999);
        assert!(!budget.is_observed());
        budget.charge(1001);
        assert!(budget.is_observed() && !budget.is_by_caller());
        budget.observe(|| ());
        assert!(!budget.is_by_caller(), "a short call harms nothing");
        budget.observe(|| spin(2 * CALL_TIME_MAX));
        assert!(budget.is_by_caller() && budget.longest_ns() >= 100_000);
        assert!(!budget.leave_to_caller(), "it is so already");
    }

    #[test]
    fn a_call_that_sleeps_is_too_long_however_little_it_uses() {
        let budget = CallBudget::new(1000);
        budget.observe(|| std::thread::sleep(Duration::from_micros(60)));
        assert!(budget.is_by_caller());
    }

    #[test]
    fn a_worker_whose_core_is_taken_away_blames_no_port() {
        let budget = CallBudget::new(1000);
        // As `charge` sees a call in which the core was gone: long, and nothing follows but observation.
        (0..100).for_each(|_| budget.charge(1_000_000));
        (0..100).for_each(|_| budget.observe(|| ()));
        assert!(budget.is_observed() && !budget.is_by_caller());
    }

    #[test]
    fn many_calls_are_too_much_only_if_they_are_slow() {
        let window = Duration::from_millis(100);
        // A quarter of a worker: 25 ms.
        assert!(is_too_much(26_000_000, 1000, window));
        assert!(!is_too_much(24_000_000, 1000, window));
        // 100000 quick calls may take more than that.
        assert!(!is_too_much(60_000_000, 100_000, window));
        let (budget, mut spent) = (CallBudget::new(100_000), Spent::default());
        (0..1000).for_each(|_| budget.charge(40_000));
        budget.review(&mut spent, window, 1.0);
        assert!(budget.is_observed() && !budget.is_by_caller());
        budget.review(&mut spent, window, 1.0);
        assert!(!budget.is_by_caller(), "nothing was spent since");
        (0..1000).for_each(|_| budget.observe(|| spin(Duration::from_micros(30))));
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
