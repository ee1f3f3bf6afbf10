//! Loom test of reserve, fill, publish in addition to the crate's own models. Run with `RUSTFLAGS="--cfg loom" cargo
//! test -p crosspoint-vring --release --target-dir target/loom --test reserve_loom`.
#![allow(missing_docs)]
#![cfg(loom)]

use crosspoint_vring::reserve::Reserve;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU16, Ordering, fence};
use loom::thread;

/// One worker publishes; the driver makes the returned entries available again; another worker reads. Under no
/// interleaving does that worker find more entries available than the ring holds.
#[test]
fn a_driver_that_keeps_the_rules_is_never_at_fault() {
    const SIZE: u16 = 2;
    loom::model(|| {
        let ring = Arc::new(Reserve::new(SIZE, 0, 2));
        let (used, avail) = (Arc::new(AtomicU16::new(0)), Arc::new(AtomicU16::new(SIZE)));
        let worker = thread::spawn({
            let (ring, used) = (ring.clone(), used.clone());
            move || {
                let run = ring.try_reserve(0, 0, 1).expect("no other worker reserves");
                ring.publish(0, run, &used);
            }
        });
        let driver = thread::spawn({
            let (used, avail) = (used.clone(), avail.clone());
            move || avail.store(used.load(Ordering::Acquire) + SIZE, Ordering::Release)
        });
        let head = ring.head();
        let available = ring.available(head, avail.load(Ordering::Acquire));
        fence(Ordering::Acquire);
        if ring.head() == head {
            assert!(available.is_some(), "at fault");
        }
        worker.join().unwrap();
        driver.join().unwrap();
    });
}
