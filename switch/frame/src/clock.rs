use std::time::{Duration, Instant};

/// The time-stamp counter: cycles of a clock that runs at a constant rate on every core (`constant_tsc`,
/// `nonstop_tsc`). On other architectures, nanoseconds.
#[inline(always)]
pub fn tsc() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: RDTSC has no preconditions; Linux lets user space execute it.
    return unsafe { core::arch::x86_64::_rdtsc() };
    #[cfg(not(target_arch = "x86_64"))]
    return monotonic_ns();
}

#[cfg(not(target_arch = "x86_64"))]
fn monotonic_ns() -> u64 {
    use std::sync::OnceLock;
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

/// Converts cycles to time with the counter's rate, measured once at start.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    hz: f64,
}

impl Clock {
    /// Measures the counter against the monotonic clock for 20 ms.
    pub fn calibrate() -> Clock {
        let (t0, c0) = (Instant::now(), tsc());
        std::thread::sleep(Duration::from_millis(20));
        let (elapsed, cycles) = (t0.elapsed(), tsc().wrapping_sub(c0));
        Clock {
            hz: cycles as f64 / elapsed.as_secs_f64(),
        }
    }

    /// Cycles per second.
    pub fn hz(&self) -> f64 {
        self.hz
    }

    /// Number of cycles in `time`.
    pub fn cycles(&self, time: Duration) -> u64 {
        (time.as_secs_f64() * self.hz) as u64
    }

    /// Nanoseconds that `cycles` take.
    pub fn ns(&self, cycles: u64) -> f64 {
        cycles as f64 * 1e9 / self.hz
    }
}
