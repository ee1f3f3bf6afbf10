//! A flag for a call that a worker leaves to another thread.

#[cfg(loom)]
use loom::sync::atomic::{AtomicBool, Ordering};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether a call waits to be made. Any number of workers set it, one thread takes it.
#[derive(Debug, Default)]
pub(crate) struct Pending(AtomicBool);

impl Pending {
    /// Leaves a call, on a worker. `ring` wakes the thread that makes it; its effect must last until that thread checks
    /// (as an eventfd's counter does). If a call is waiting already, another one costs nothing.
    #[inline(always)]
    pub(crate) fn set(&self, ring: impl FnOnce()) {
        // LOAD-BEARING: Release, so that the thread that takes the flag makes its call after what the worker has
        // published. The flag is set before the bell rings: a thread that hears the bell finds the flag.
        if !self.0.swap(true, Ordering::AcqRel) {
            ring();
        }
    }

    /// Returns whether a call is to be made, and takes it; for the thread that makes calls, after it has heard the
    /// bell. The call is made after this, so a worker that finds the flag still set may rely on it.
    pub(crate) fn take(&self) -> bool {
        // LOAD-BEARING: a swap, not a store: it reads the last `set` of all workers and orders the call after them.
        self.0.swap(false, Ordering::AcqRel)
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicU64;

    /// Two workers publish and each leaves a call, while a thread makes calls. Under every interleaving, a call is made
    /// after each published item. The bell is a counter that the thread takes, like an eventfd.
    #[test]
    fn no_call_that_is_left_to_a_thread_is_lost() {
        loom::model(|| {
            let pending = Arc::new(Pending::default());
            let published: Arc<[AtomicU64; 2]> = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
            let bell = Arc::new(AtomicU64::new(0));
            let workers: Vec<_> = (0..2usize)
                .map(|worker| {
                    let (pending, published, bell) =
                        (pending.clone(), published.clone(), bell.clone());
                    loom::thread::spawn(move || {
                        published[worker].store(1, Ordering::Relaxed);
                        pending.set(|| {
                            bell.fetch_add(1, Ordering::AcqRel);
                        });
                    })
                })
                .collect();
            // What a guest finds when the last call wakes it.
            let told = |last: [u64; 2]| match bell.swap(0, Ordering::AcqRel) > 0 && pending.take() {
                true => [0, 1].map(|worker| published[worker].load(Ordering::Relaxed)),
                false => last,
            };
            let first = told([0, 0]);
            for worker in workers {
                worker.join().unwrap();
            }
            // If not everything was seen, the bell is still ringing.
            assert_eq!(told(first), [1, 1]);
        });
    }
}
