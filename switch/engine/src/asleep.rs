//! Whether a worker sleeps: it says so before it looks for work once more, and whoever leaves it something looks after.
//!
//! Each side stores, and then loads what the other stores: the shape of Dekker's algorithm, as in vring's `arming.rs`.

#[cfg(not(loom))]
use std::sync::atomic::{AtomicBool, Ordering, fence};

#[cfg(loom)]
use loom::sync::atomic::{AtomicBool, Ordering, fence};

/// Set while the worker sleeps, or is about to.
#[derive(Debug, Default)]
pub(crate) struct Asleep(AtomicBool);

impl Asleep {
    /// Worker: says that it is about to sleep. To be followed by a look for work.
    pub(crate) fn announce(&self) {
        self.0.store(true, Ordering::Relaxed);
        // LOAD-BEARING: that it sleeps is visible before it looks for what was left.
        fence(Ordering::SeqCst);
    }

    /// Worker: says that it is awake.
    pub(crate) fn retract(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// Others, after they have left the worker something: whether it has to be woken.
    #[inline(always)]
    pub(crate) fn must_be_woken(&self) -> bool {
        // LOAD-BEARING: what was left is visible before we look whether it sleeps.
        fence(Ordering::SeqCst);
        self.0.load(Ordering::Relaxed)
    }

    /// Whether the worker has said so. Orders nothing: whoever looks, looks again later.
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

    /// A worker goes to sleep, wakes and goes to sleep again, while another leaves it something. Under every interleaving
    /// that is found by a look, or the other has seen that the worker is to be woken.
    #[test]
    fn who_leaves_something_and_who_goes_to_sleep_do_not_miss_each_other() {
        loom::model(|| {
            let asleep = Arc::new(Asleep::default());
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
            // It sleeps from here on, if neither look found anything.
            let found = first || look();
            let woken = other.join().unwrap();
            assert!(found || woken, "asleep, with work, and nobody wakes it");
        });
    }
}
