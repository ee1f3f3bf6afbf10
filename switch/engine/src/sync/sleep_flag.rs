//! Sleep flag of a worker. The worker sets it and then checks for work once more; another thread leaves work and then
//! checks the flag.
//!
//! Each side stores, then loads what the other side stores: the pattern of Dekker's algorithm, as in vring's `arming.rs`.

#[cfg(not(loom))]
use std::sync::atomic::{AtomicBool, Ordering, fence};

#[cfg(loom)]
use loom::sync::atomic::{AtomicBool, Ordering, fence};

/// Set while the worker sleeps, or is about to.
#[derive(Debug, Default)]
pub(crate) struct SleepFlag(AtomicBool);

impl SleepFlag {
    /// Worker: announces that it is about to sleep. Must be followed by a check for work.
    pub(crate) fn announce(&self) {
        self.0.store(true, Ordering::Relaxed);
        // LOAD-BEARING: the flag is visible before the worker checks for work.
        fence(Ordering::SeqCst);
    }

    /// Worker: announces that it is awake.
    pub(crate) fn retract(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// Other threads, after they have left work: returns whether the worker must be woken.
    #[inline(always)]
    pub(crate) fn must_be_woken(&self) -> bool {
        // LOAD-BEARING: the work is visible before the flag is read.
        fence(Ordering::SeqCst);
        self.0.load(Ordering::Relaxed)
    }

    /// Returns the flag. Orders nothing: the caller checks again later.
    #[cfg(not(loom))]
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(all(test, loom))]
mod tests {
    use super::*;
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicU8;

    /// A worker goes to sleep, wakes and goes to sleep again, while another thread leaves work for it. In every
    /// interleaving, either a check finds the work, or the other thread sees that the worker must be woken.
    #[test]
    fn who_leaves_something_and_who_goes_to_sleep_do_not_miss_each_other() {
        loom::model(|| {
            let asleep = Arc::new(SleepFlag::default());
            let left = Arc::new(AtomicU8::new(0));
            let other = loom::thread::spawn({
                let (asleep, left) = (asleep.clone(), left.clone());
                move || {
                    left.store(1, Ordering::Relaxed);
                    asleep.must_be_woken()
                }
            });
            let look = || left.load(Ordering::Relaxed) == 1;
            asleep.announce();
            let first = look();
            asleep.retract();
            asleep.announce();
            // It sleeps from here on if neither check found work.
            let found = first || look();
            let woken = other.join().unwrap();
            assert!(found || woken, "asleep, with work, and no thread wakes it");
        });
    }
}
