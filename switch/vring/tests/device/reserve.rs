//! Reserve and publish without filling, to run the index arithmetic at its fastest.

use std::sync::atomic::{AtomicBool, AtomicU16, Ordering, fence};
use std::time::{Duration, Instant};

use crosspoint_vring::reserve::Reserve;

use crate::world::bounded;

/// A driver makes each entry available again as soon as the used index allows it. It is never found to have made too
/// many available, whatever the workers are doing.
#[test]
fn a_driver_that_keeps_the_rules_is_never_at_fault() {
    const SIZE: u16 = 4;
    const WORKERS: usize = 3;
    bounded(30, || {
        let ring = Reserve::new(SIZE, 0, WORKERS);
        let (used, avail, stop) = (
            AtomicU16::new(0),
            AtomicU16::new(SIZE),
            AtomicBool::new(false),
        );
        let work = |worker: usize| {
            while !stop.load(Ordering::Relaxed) {
                let head = ring.head();
                let offered = avail.load(Ordering::Acquire);
                let available = ring.available(head, offered);
                // As in `GuestRx::deliver`: results from an old head are discarded.
                fence(Ordering::Acquire);
                if ring.head() != head {
                    continue;
                }
                let Some(available) = available else {
                    stop.store(true, Ordering::Relaxed);
                    panic!("head {head}, offered up to {offered}, used {used:?}, {ring:?}");
                };
                if available == 0 {
                    std::thread::yield_now();
                } else if let Some(run) = ring.try_reserve(worker, head, available.min(1 + worker))
                {
                    ring.publish(worker, run, &used);
                }
            }
        };
        std::thread::scope(|scope| {
            (0..WORKERS).for_each(|worker| _ = scope.spawn(move || work(worker)));
            let start = Instant::now();
            while start.elapsed() < Duration::from_secs(2) && !stop.load(Ordering::Relaxed) {
                let offered = used.load(Ordering::Acquire).wrapping_add(SIZE);
                if offered == avail.load(Ordering::Relaxed) {
                    std::thread::yield_now();
                }
                avail.store(offered, Ordering::Release);
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert_eq!(ring.published(), ring.head());
        println!("{} entries", ring.head());
    });
}
