//! Publication of a value to one worker, and proof that the worker has released the old one: a mailbox and two version
//! numbers (QSBR, quiescent-state-based reclamation: McKenney, Slingwine 1998).
//!
//! The control thread puts a value in and raises `published`. The worker reads `published` once per iteration, between
//! bursts, when it holds no references; if it changed, the worker takes the value, returns its old one, and sets `seen`
//! to `published`. This read is its quiescent point. The control thread frees nothing that a worker may use until that
//! worker's `seen` has reached `published`; the worker itself never frees anything.

#[cfg(not(loom))]
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

#[cfg(not(loom))]
use crossbeam::queue::ArrayQueue;
use crossbeam::utils::CachePadded;
#[cfg(loom)]
use loom::sync::atomic::{AtomicU64, Ordering};
#[cfg(loom)]
use tests::ArrayQueue;

/// Capacity for values to a worker. The control thread waits for each to be taken before the next, so one is enough; the
/// return path has the same bound.
const DEPTH: usize = 1;

/// The mailbox of one worker. One control thread at a time publishes; one worker takes.
pub struct Mailbox<T> {
    published: CachePadded<AtomicU64>,
    seen: CachePadded<AtomicU64>,
    there: ArrayQueue<T>,
    back: ArrayQueue<T>,
}

impl<T> Default for Mailbox<T> {
    fn default() -> Mailbox<T> {
        Mailbox {
            published: CachePadded::new(AtomicU64::new(0)),
            seen: CachePadded::new(AtomicU64::new(0)),
            there: ArrayQueue::new(DEPTH),
            back: ArrayQueue::new(DEPTH),
        }
    }
}

impl<T> Mailbox<T> {
    /// Control: publishes `value`, to be taken at the worker's next quiescent point. Returns it as an error if the last
    /// value was not taken yet, or the value that it replaced was not fetched.
    pub fn publish(&self, value: T) -> Result<(), T> {
        if !self.back.is_empty() {
            return Err(value);
        }
        self.there.push(value)?;
        let version = self.published.load(Ordering::Relaxed) + 1;
        self.published.store(version, Ordering::Release);
        Ok(())
    }

    /// Control: returns the old value if the worker has passed a quiescent point since the last `publish`.
    pub fn retired(&self) -> Option<T> {
        // LOAD-BEARING: Acquire, pairing with the worker's Release of `seen`: what the worker
        // did with the old value happened before we free it.
        if self.seen.load(Ordering::Acquire) != self.published.load(Ordering::Relaxed) {
            return None;
        }
        self.back.pop()
    }

    /// Control: waits for [`retired`](Self::retired), calling `nudge` (a worker may sleep) after each unsuccessful check.
    /// `None` if the worker reaches no quiescent point within `patience`.
    #[cfg(not(loom))]
    pub fn wait_retired(&self, patience: Duration, nudge: impl Fn()) -> Option<T> {
        let start = std::time::Instant::now();
        let mut pause = Duration::from_micros(5);
        loop {
            if let Some(old) = self.retired() {
                return Some(old);
            }
            if start.elapsed() > patience {
                return None;
            }
            nudge();
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(1));
        }
    }

    /// Worker, between iterations: its quiescent point. Passes a new value, if there is one, to `apply`, which returns
    /// the one it replaces. Returns whether there was a new value.
    #[inline(always)]
    pub fn quiesce(&self, apply: impl FnOnce(T) -> T) -> bool {
        // LOAD-BEARING: the only Acquire load of an iteration without a new value.
        let version = self.published.load(Ordering::Acquire);
        if version == self.seen.load(Ordering::Relaxed) {
            return false;
        }
        if let Some(new) = self.there.pop() {
            let old = apply(new);
            // `publish` has checked that there is room.
            let _ = self.back.push(old);
        }
        // LOAD-BEARING: Release, and last: from here on the old value is the control thread's.
        self.seen.store(version, Ordering::Release);
        true
    }

    /// Worker: returns whether a value waits. Checked before going to sleep.
    pub fn has_news(&self) -> bool {
        self.published.load(Ordering::SeqCst) != self.seen.load(Ordering::Relaxed)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn what_was_published_comes_back_after_the_next() {
        let mailbox = Mailbox::default();
        assert!(!mailbox.quiesce(|new: u32| new));
        let mut current = 1;
        mailbox.publish(2).unwrap();
        assert_eq!(mailbox.publish(3), Err(3));
        assert_eq!(mailbox.retired(), None);
        assert!(mailbox.has_news());
        assert!(mailbox.quiesce(|new| std::mem::replace(&mut current, new)));
        assert_eq!((mailbox.retired(), current), (Some(1), 2));
        assert_eq!(mailbox.retired(), None);
    }

    #[test]
    fn a_worker_that_makes_no_progress_is_reported_not_waited_for() {
        let mailbox = Mailbox::<u32>::default();
        mailbox.publish(1).unwrap();
        assert_eq!(mailbox.wait_retired(Duration::from_millis(5), || {}), None);
    }
}

#[cfg(all(test, loom))]
mod tests {
    use super::*;
    use loom::cell::UnsafeCell;
    use loom::sync::{Arc, Mutex};

    /// Replaces crossbeam's queue, which loom cannot model.
    pub struct ArrayQueue<T>(Mutex<Vec<T>>);

    impl<T> ArrayQueue<T> {
        pub fn new(_: usize) -> ArrayQueue<T> {
            ArrayQueue(Mutex::new(Vec::new()))
        }
        pub fn push(&self, value: T) -> Result<(), T> {
            self.0.lock().unwrap().push(value);
            Ok(())
        }
        pub fn pop(&self) -> Option<T> {
            self.0.lock().unwrap().pop()
        }
        pub fn is_empty(&self) -> bool {
            self.0.lock().unwrap().is_empty()
        }
    }

    /// The control thread replaces a value twice and "unmaps" what comes back by writing to it;
    /// the worker reads its current value in every iteration. Loom reports any interleaving in
    /// which the two touch one value at once.
    #[test]
    fn nothing_is_unmapped_while_a_worker_may_use_it() {
        loom::model(|| {
            let mailbox = Arc::new(Mailbox::default());
            let first = Arc::new(UnsafeCell::new(0));
            let worker = {
                let (mailbox, mut current) = (mailbox.clone(), first);
                loom::thread::spawn(move || {
                    for _ in 0..2 {
                        mailbox.quiesce(|new| std::mem::replace(&mut current, new));
                        current.with(|_| ());
                    }
                    current
                })
            };
            mailbox.publish(Arc::new(UnsafeCell::new(1))).ok().unwrap();
            loom::thread::yield_now();
            if let Some(old) = mailbox.retired() {
                old.with_mut(|_| ());
            }
            worker.join().unwrap();
        });
    }
}
