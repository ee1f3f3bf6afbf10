//! Calls and kicks are made when requested, and only then.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use std::time::{Duration, Instant};

use crosspoint_frame::{BURST, Burst};
use crosspoint_guest::packed::{EVENT_DESCRIPTOR, EVENT_DISABLE, EVENT_ENABLE, EventArea};
use crosspoint_guest::queue::{ReceiveQueue, TransmitQueue};
use crosspoint_guest::{
    Buffer, ChainSplit, EventFd, PackedRing, Position, SplitRing, VirtioNetHdr, Virtqueue,
};
use crosspoint_vring::{Features, GuestRx, GuestTx, Notifier, RxScratch, feature};
use proptest::prelude::*;

use crate::world::{Guest, LAYOUTS, MODERN, Random, all, bounded, call, start_of};

/// The specification: a call is wanted when the used index passed `event` since the last decision.
fn passed(event: u16, old: u16, count: usize) -> bool {
    (0..count).any(|i| old.wrapping_add(i as u16) == event)
}

/// What the driver requests before an iteration: nothing, everything, or (event index) a call at some distance from the
/// used index.
#[derive(Clone, Copy, Debug)]
enum Wish {
    Off,
    On,
    At(i8),
}

fn wish() -> impl Strategy<Value = Wish> {
    prop_oneof![
        Just(Wish::Off),
        Just(Wish::On),
        any::<i8>().prop_map(Wish::At)
    ]
}

/// Writes the request; returns whether `count` more used entries require a call.
fn ask(queue: &mut Virtqueue, event_idx: bool, wish: Wish, count: usize) -> bool {
    match queue {
        Virtqueue::Split(ring) => ask_split(ring, event_idx, wish, count),
        Virtqueue::Packed(ring) => ask_packed(ring, event_idx, wish, count),
    }
}

fn ask_split(ring: &SplitRing, event_idx: bool, wish: Wish, count: usize) -> bool {
    let used = ring.used_idx();
    match (event_idx, wish) {
        (true, wish) => {
            let event = match wish {
                Wish::Off => used.wrapping_sub(1),
                Wish::On => used,
                Wish::At(distance) => used.wrapping_add_signed(distance.into()),
            };
            ring.set_used_event(event);
            passed(event, used, count)
        }
        (false, wish) => {
            let off = matches!(wish, Wish::Off);
            ring.set_avail_flags(off.into());
            !off && count > 0
        }
    }
}

/// Enable, disable, or a position with its wrap counter: the same position is reached again after two laps.
fn ask_packed(ring: &PackedRing, event_idx: bool, wish: Wish, count: usize) -> bool {
    let (used, size) = (ring.device_position(), ring.layout().size);
    let ask = |flags, position: Position| {
        let position = position.to_bits();
        ring.set_driver_event(EventArea { position, flags });
    };
    match (event_idx, wish) {
        (_, Wish::Off) => {
            ask(EVENT_DISABLE, used);
            false
        }
        (true, Wish::At(distance)) => {
            let two_laps = 2 * i32::from(size);
            let ahead = i32::from(distance).rem_euclid(two_laps) as u16;
            let event = used
                .advance(ahead.min(size), size)
                .advance(ahead.saturating_sub(size), size);
            ask(EVENT_DESCRIPTOR, event);
            let mut at = used;
            let mut passes = || {
                let here = at == event;
                at = at.advance(1, size);
                here
            };
            // After a whole lap the device need not compare positions.
            count >= usize::from(size) || (0..count).any(|_| passes())
        }
        _ => {
            ask(EVENT_ENABLE, used);
            count > 0
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Both queues, several iterations: exactly one write to the eventfd for each flush that the driver requested a
    /// call for, and none otherwise.
    #[test]
    fn a_call_is_made_if_and_only_if_the_driver_asked(
        event_idx: bool,
        layout in proptest::sample::select(&LAYOUTS[..]),
        base in prop_oneof![any::<u16>(), 65_500u16..],
        turns in proptest::collection::vec((0..=BURST, 0..=BURST, wish(), wish()), 1..40),
    ) {
        let features = MODERN | layout | if event_idx { feature::EVENT_IDX } else { 0 };
        let mut guest = Guest::for_queues(64, 200, 2048);
        let ((sent, tx_call), (received, rx_call)) = (call(), call());
        let (mut sender, _) = guest.transmit(64, base, features, 200);
        let device = guest.device_side(sender.virtqueue().layout(), features);
        let start = start_of(64, base, features);
        let mut tx = GuestTx::new(device, Features::new(features), tx_call, start).unwrap();
        let (mut receiver, rx) = guest.receive((64, base), features, 2048, ChainSplit::Single, 1, rx_call);
        let (mut burst, mut scratch) = (Burst::new(), RxScratch::default());
        let (mut tx_called, mut rx_called) = (false, false);
        for (frames, buffers, tx_wish, rx_wish) in turns {
            for _ in 0..frames {
                assert!(sender.send(&VirtioNetHdr::default(), &[7; 60]).unwrap());
            }
            let posted = receiver.post(buffers as u16).unwrap();
            let _ = (sender.virtqueue().publish(), receiver.virtqueue().publish());
            prop_assert_eq!(tx.receive(&mut burst), frames);
            let free = usize::from(receiver.virtqueue().outstanding()).min(frames);
            prop_assert!(free <= 64 && posted <= 64);
            let tx_wanted = ask(sender.virtqueue(), event_idx, tx_wish, frames);
            let rx_wanted = ask(receiver.virtqueue(), event_idx, rx_wish, free);
            // The first call is always made: a predecessor may have published without it.
            let tx_wanted = tx_wanted || (frames > 0 && !tx_called);
            let rx_wanted = rx_wanted || (free > 0 && !rx_called);
            (tx_called, rx_called) = (tx_called || frames > 0, rx_called || free > 0);
            // Two deliveries, one decision.
            let picks = all(&burst);
            let (first, second) = picks.split_at(frames / 2);
            let a = rx.deliver(0, &burst, first, &mut scratch);
            let b = rx.deliver(0, &burst, second, &mut scratch);
            prop_assert_eq!((a.frames + b.frames) as usize, free);
            prop_assert_eq!(a.touched || b.touched, free > 0);
            prop_assert!(!(a.touched && b.touched));
            tx.complete();
            burst.clear();
            prop_assert_eq!(rx.flush(0), rx_wanted);
            prop_assert_eq!(tx.flush(), tx_wanted);
            prop_assert_eq!(received.take().unwrap(), u64::from(rx_wanted));
            prop_assert_eq!(sent.take().unwrap(), u64::from(tx_wanted));
            // Nothing new: no call.
            prop_assert!(!rx.flush(0) && !tx.flush());
            receiver.set_repost(false);
            receiver.receive().unwrap();
            sender.reap().unwrap();
        }
    }
}

/// A device that sleeps when the ring is empty, and a driver that sends at any moment, also while the device goes to
/// sleep.
fn kicks(features: u64) {
    const ROUNDS: u32 = 50_000;
    let mut guest = Guest::for_queues(8, 64, 64);
    let (mut sender, mut tx) = guest.transmit(8, 65_000, features, 64);
    let kick = Arc::new(EventFd::new().unwrap());
    let done = Arc::new(AtomicBool::new(false));
    let driver = std::thread::spawn({
        let (kick, done) = (kick.clone(), done.clone());
        move || {
            let mut random = Random(3);
            for _ in 0..ROUNDS {
                while !sender.send(&VirtioNetHdr::default(), &[0; 14]).unwrap() {
                    std::thread::yield_now();
                }
                if sender.virtqueue().publish() {
                    kick.signal().unwrap();
                }
                for _ in 0..random.below(200) {
                    std::hint::spin_loop();
                }
            }
            done.store(true, Ordering::Release);
            kick.signal().unwrap();
            sender
        }
    });
    let (mut burst, mut received, mut sleeps) = (Burst::new(), 0, 0);
    while received < ROUNDS {
        let n = tx.receive(&mut burst);
        tx.complete();
        burst.clear();
        received += n as u32;
        if n == 0 && !tx.set_kicks(true) {
            sleeps += 1;
            let woken = kick.wait(Duration::from_secs(5)).unwrap();
            assert!(
                woken > 0,
                "asleep for ever after {received} frames, done: {}",
                done.load(Ordering::Acquire)
            );
        }
        tx.set_kicks(false);
    }
    let mut sender = driver.join().unwrap();
    sender.reap().unwrap();
    assert_eq!(sender.completed(), u64::from(ROUNDS));
    println!("{sleeps} sleeps");
}

#[test]
fn no_kick_is_lost_on_the_way_to_sleep() {
    bounded(120, || {
        for layout in [0, feature::RING_PACKED] {
            kicks(MODERN | layout);
            kicks(MODERN | layout | feature::EVENT_IDX);
        }
    });
}

/// The same without system calls, so that the two sides meet far more often in the critical nanoseconds.
fn kicks_by_memory(features: u64) {
    const ROUNDS: u32 = 40_000;
    let mut guest = Guest::for_queues(8, 64, 64);
    let (mut ring, device) = guest.virtqueue(8, 65_000, features);
    let base = start_of(8, 65_000, features);
    let mut tx = GuestTx::new(device, Features::new(features), Arc::default(), base).unwrap();
    let buffer = Buffer {
        address: guest.take(64),
        len: 64,
        device_writes: false,
    };
    let kicked = Arc::new(AtomicU32::new(0));
    let driver = std::thread::spawn({
        let kicked = kicked.clone();
        move || {
            let mut random = Random(4);
            for _ in 0..ROUNDS {
                ring.add(&[buffer]).unwrap();
                if ring.publish() {
                    kicked.fetch_add(1, Ordering::Release);
                }
                while ring.pop_used().unwrap().is_none() {
                    std::thread::yield_now();
                }
                for _ in 0..random.below(16) {
                    std::hint::spin_loop();
                }
            }
        }
    });
    let (mut burst, mut received, mut seen) = (Burst::new(), 0, 0);
    while received < ROUNDS {
        let n = tx.receive(&mut burst);
        tx.complete();
        burst.clear();
        received += n as u32;
        if n == 0 && !tx.set_kicks(true) {
            let asleep = Instant::now();
            while kicked.load(Ordering::Acquire) == seen {
                assert!(
                    asleep.elapsed() < Duration::from_secs(5),
                    "asleep for ever after {received} frames"
                );
                std::thread::yield_now();
            }
        }
        tx.set_kicks(false);
        seen = kicked.load(Ordering::Acquire);
    }
    driver.join().unwrap();
}

#[test]
fn no_kick_is_lost_when_it_meets_the_wish_for_it() {
    bounded(120, || {
        for layout in [0, feature::RING_PACKED] {
            kicks_by_memory(MODERN | layout);
            kicks_by_memory(MODERN | layout | feature::EVENT_IDX);
        }
    });
}

/// A driver that sleeps when its ring is full, and a device that completes at any moment.
fn completions(features: u64) {
    const FRAMES: u64 = 50_000;
    let mut guest = Guest::for_queues(8, 64, 64);
    let (event, notifier) = call();
    let (mut sender, _) = guest.transmit(8, 65_000, features, 64);
    let device = guest.device_side(sender.virtqueue().layout(), features);
    let base = start_of(8, 65_000, features);
    let mut tx = GuestTx::new(device, Features::new(features), notifier, base).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let worker = std::thread::spawn({
        let stop = stop.clone();
        move || {
            let (mut burst, mut random) = (Burst::new(), Random(5));
            while !stop.load(Ordering::Acquire) {
                let frames = tx.receive(&mut burst);
                tx.complete();
                burst.clear();
                // As the engine's loop does, once for all rings: see `flush`.
                fence(Ordering::SeqCst);
                tx.flush();
                if frames == 0 {
                    std::thread::yield_now();
                }
                for _ in 0..random.below(100) {
                    std::hint::spin_loop();
                }
            }
        }
    });
    sender.virtqueue().disable_calls();
    while sender.completed() < FRAMES {
        if sender.send(&VirtioNetHdr::default(), &[0; 14]).unwrap() {
            continue;
        }
        let _ = sender.virtqueue().publish();
        if !sender.virtqueue().enable_calls().unwrap() {
            let called = event.wait(Duration::from_secs(5)).unwrap();
            let completed = sender.completed();
            assert!(called > 0, "asleep for ever after {completed} frames");
        }
        sender.virtqueue().disable_calls();
    }
    stop.store(true, Ordering::Release);
    worker.join().unwrap();
}

#[test]
fn a_sleeping_sender_is_woken() {
    bounded(120, || {
        for layout in LAYOUTS {
            completions(MODERN | layout);
            completions(MODERN | layout | feature::EVENT_IDX);
        }
    });
}

#[test]
fn a_polling_device_is_not_kicked() {
    for features in LAYOUTS
        .map(|layout| [layout, layout | feature::EVENT_IDX])
        .concat()
    {
        let features = MODERN | features;
        let mut guest = Guest::for_queues(64, 64, 64);
        let (mut sender, mut tx) = guest.transmit(64, 65_530, features, 64);
        let mut burst = Burst::new();
        for _ in 0..200 {
            for _ in 0..7 {
                assert!(sender.send(&VirtioNetHdr::default(), &[0; 14]).unwrap());
            }
            assert!(!sender.virtqueue().publish(), "kicks are off");
            assert_eq!(tx.receive(&mut burst), 7);
            tx.complete();
            burst.clear();
        }
        tx.set_kicks(true);
        assert!(sender.send(&VirtioNetHdr::default(), &[0; 14]).unwrap());
        assert!(sender.virtqueue().publish(), "kicks are on");
        assert!(tx.set_kicks(true), "and there is work");
    }
}

/// One worker pauses between publishing and flushing, while another fills and the driver empties the ring for a whole
/// cycle of the 16-bit index. Then it continues, delivers once more, and must wake the driver, which has slept since.
#[test]
fn a_call_is_not_lost_when_the_index_has_gone_round_since_the_last_flush() {
    LAYOUTS.into_iter().for_each(gone_round);
}

fn gone_round(layout: u64) {
    let features = MODERN | feature::EVENT_IDX | layout;
    let mut guest = Guest::for_queues(256, 64, 256);
    let (event, notifier) = call();
    let (mut queue, rx) = guest.receive((256, 0), features, 256, ChainSplit::Single, 2, notifier);
    let (mut sender, mut tx) = guest_sender();
    let mut scratch = RxScratch::default();
    let mut deliver = |worker: usize, count: usize, queue: &mut ReceiveQueue| {
        let mut burst = Burst::new();
        for _ in 0..count {
            assert!(sender.send(&VirtioNetHdr::default(), &[0; 60]).unwrap());
        }
        let _ = sender.virtqueue().publish();
        queue.post(u16::MAX).unwrap();
        let _ = queue.virtqueue().publish();
        assert_eq!(tx.receive(&mut burst), count);
        assert_eq!(
            rx.deliver(worker, &burst, &all(&burst), &mut scratch)
                .frames as usize,
            count
        );
        tx.complete();
        queue.receive().unwrap();
    };
    queue.virtqueue().disable_calls();
    deliver(0, 1, &mut queue);
    let mut left = 65_536 - 2;
    while left > 0 {
        let count = left.min(BURST);
        deliver(1, count, &mut queue);
        rx.flush(1);
        left -= count;
    }
    event.take().unwrap();
    assert!(!queue.virtqueue().enable_calls().unwrap());
    deliver(0, 1, &mut queue);
    rx.flush(0);
    assert_eq!(
        event.take().unwrap(),
        1,
        "the driver asked to hear of the next entry, and sleeps"
    );
}

fn guest_sender() -> (TransmitQueue, GuestTx) {
    Guest::for_queues(64, 64, 64).transmit(64, 0, MODERN, 64)
}

/// The front end chooses the eventfd: here a blocking one that is full.
#[test]
fn a_call_never_blocks_the_worker() {
    use rustix::event::{EventfdFlags, eventfd};
    bounded(5, || {
        let fd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        rustix::io::write(&fd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        let notifier = Notifier::new(Some(fd.as_fd().try_clone_to_owned().unwrap()));
        notifier.call();
    });
}

/// A worker or the whole switch ends between returning entries and calling. The driver sleeps; the successor must call
/// it (Linux's vhost and DPDK make the first call after a start unconditionally).
#[test]
fn a_call_that_a_predecessor_owed_is_made() {
    LAYOUTS.into_iter().for_each(predecessor_owed);
}

fn predecessor_owed(layout: u64) {
    let features = MODERN | feature::EVENT_IDX | layout;
    let mut guest = Guest::for_queues(64, 64, 256);
    let ((sent, tx_call), (received, rx_call)) = (call(), call());
    let (mut sender, mut tx) = guest.transmit(64, 0, features, 64);
    let (mut receiver, rx) = guest.receive(
        (64, 0),
        features,
        256,
        ChainSplit::Single,
        1,
        Arc::default(),
    );
    receiver.post(u16::MAX).unwrap();
    let _ = receiver.virtqueue().publish();
    assert!(!sender.virtqueue().enable_calls().unwrap());
    assert!(!receiver.virtqueue().enable_calls().unwrap());
    let (mut burst, mut scratch) = (Burst::new(), RxScratch::default());
    let mut turn = |tx: &mut GuestTx, rx: &GuestRx| {
        assert!(sender.send(&VirtioNetHdr::default(), &[0; 60]).unwrap());
        let _ = sender.virtqueue().publish();
        assert_eq!(tx.receive(&mut burst), 1);
        assert_eq!(rx.deliver(0, &burst, &all(&burst), &mut scratch).frames, 1);
        tx.complete();
        burst.clear();
        sender.virtqueue().layout()
    };
    let layout = turn(&mut tx, &rx);
    let negotiated = Features::new(features);
    let mut next_tx = GuestTx::new(
        guest.device_side(layout, features),
        negotiated,
        tx_call,
        tx.base(),
    )
    .unwrap();
    let next_rx = GuestRx::new(
        guest.device_side(receiver.virtqueue().layout(), features),
        negotiated,
        rx_call,
        rx.base(),
        1,
    )
    .unwrap();
    drop((tx, rx));
    turn(&mut next_tx, &next_rx);
    next_tx.flush();
    next_rx.flush(0);
    assert!(
        sent.take().unwrap() > 0,
        "the transmit queue's driver sleeps for ever"
    );
    assert!(
        received.take().unwrap() > 0,
        "the receive queue's driver sleeps for ever"
    );
}
