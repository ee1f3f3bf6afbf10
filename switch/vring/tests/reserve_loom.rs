//! What loom explores of reserve, fill, publish beside the crate's own models. Run with
//! `RUSTFLAGS="--cfg loom" cargo test -p crosspoint-vring --release --target-dir target/loom --test reserve_loom`.
#![allow(missing_docs)]
#![cfg(loom)]

use crosspoint_vring::reserve::Reserve;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU16, Ordering, fence};
use loom::thread;

/// One worker publishes; the driver offers again what the used index gives back to it; another worker looks. Under no
/// interleaving does it find the driver to have offered more than the ring holds.
#[test]
fn a_driver_that_keeps_the_rules_is_never_at_fault() {
    const SIZE: u16 = 2;
    loom::model(|| {
        let ring = Arc::new(Reserve::new(SIZE, 0, 2));
        let (used, avail) = (Arc::new(AtomicU16::new(0)), Arc::new(AtomicU16::new(SIZE)));
        let worker = thread::spawn({
            let (ring, used) = (ring.clone(), used.clone());
            move || {
                let run = ring.try_reserve(0, 0, 1).expect("nobody else reserves");
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
