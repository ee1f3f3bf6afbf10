//! The two places where one side writes that it wants a notification while the other side makes work available.
//!
//! Both are instances of Dekker's algorithm: each side stores, and then loads what the other side stores. Without a
//! sequentially consistent fence between the two, on both sides, each can miss the other's store: a kick or a call is
//! lost, and a thread sleeps forever. The driver has its own fences (virtio 1.2, 2.7.10 and 2.8.21); these are ours,
//! tested with loom.

#[cfg(loom)]
use loom::sync::atomic::{Ordering, fence};
#[cfg(not(loom))]
use std::sync::atomic::{Ordering, fence};

/// Before sleep: asks for a kick, then checks whether there is work already.
#[inline(always)]
pub fn arm(wish: impl FnOnce(), has_work: impl FnOnce() -> bool) -> bool {
    wish();
    // LOAD-BEARING: our request is visible before we read the ring; the driver adds an entry before it reads our
    // request. Without it a wakeup is lost.
    fence(Ordering::SeqCst);
    has_work()
}

/// Fence between publishing used entries and reading which of them the drivers wait for. One for all rings of a
/// worker's poll iteration, since it waits for every store.
#[inline(always)]
pub fn before_calls() {
    // LOAD-BEARING: the published used entries are visible before we read which of them the drivers wait for; drivers
    // do the reverse. Without it both sides can miss each other.
    fence(Ordering::SeqCst);
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicBool, AtomicU16};

    /// Under every interleaving: if a worker goes to sleep because it found nothing, the driver that added an entry has
    /// seen its request for a kick.
    #[test]
    fn no_kick_is_lost_when_it_meets_the_wish_for_it() {
        loom::model(|| {
            let avail = Arc::new(AtomicU16::new(0));
            let wanted = Arc::new(AtomicBool::new(false));
            let driver = loom::thread::spawn({
                let (avail, wanted) = (avail.clone(), wanted.clone());
                move || {
                    avail.store(1, Ordering::Release);
                    fence(Ordering::SeqCst);
                    wanted.load(Ordering::Relaxed)
                }
            });
            let found = arm(
                || wanted.store(true, Ordering::Relaxed),
                || avail.load(Ordering::Acquire) == 1,
            );
            let kicked = driver.join().unwrap();
            assert!(found || kicked, "asleep, with work, and no kick comes");
        });
    }

    /// Two rings are published before one fence: a driver that goes to sleep because it found nothing used is called.
    #[test]
    fn no_call_is_lost_when_it_meets_the_wish_for_it() {
        loom::model(|| {
            let rings: Arc<Vec<(AtomicU16, AtomicBool)>> = Arc::new(
                (0..2)
                    .map(|_| (AtomicU16::new(0), AtomicBool::new(false)))
                    .collect(),
            );
            let drivers: Vec<_> = (0..2)
                .map(|index: usize| {
                    let rings = rings.clone();
                    loom::thread::spawn(move || {
                        let (used, wanted) = &rings[index];
                        wanted.store(true, Ordering::Relaxed);
                        fence(Ordering::SeqCst);
                        used.load(Ordering::Acquire) == 1
                    })
                })
                .collect();
            for (used, _) in rings.iter() {
                used.store(1, Ordering::Release);
            }
            before_calls();
            let called: Vec<bool> = rings
                .iter()
                .map(|(_, wanted)| wanted.load(Ordering::Relaxed))
                .collect();
            for (driver, called) in drivers.into_iter().zip(called) {
                assert!(
                    driver.join().unwrap() || called,
                    "asleep, with frames, and uncalled"
                );
            }
        });
    }
}
