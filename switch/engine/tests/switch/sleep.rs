//! Workers that sleep when idle: no event is missed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crosspoint_engine::sync::sleep::Sleeper;
use crosspoint_engine::sync::sleep::Waker;
use crosspoint_engine::worker::Idle;
use crosspoint_guest::EventFd;
use crosspoint_vring::feature;

use crate::floor::{Change, Floor, publish, wait_for};
use crate::frames::{Flow, host};
use crate::ports::{Driver, PortOptions, port};
use crate::world::Random;

const ROUNDS: u64 = 100_000;
/// So short that a worker is falling asleep or waking up nearly all the time.
const SPIN: u64 = 3_000;

/// A worker that sleeps, and two guests, the first with a kick.
fn floor(features: u64) -> (Floor, Driver, Driver, EventFd) {
    let mut floor = Floor::start(1, Idle::SleepAfter(SPIN), 16, |run| run());
    let (kick, options) = (EventFd::new().unwrap(), PortOptions::default());
    let options = PortOptions {
        features: options.features | features,
        ..options
    };
    floor.links[0].waker.register_kick((0, 0), &kick).unwrap();
    let [a, b] = [0, 1].map(|number| {
        let (mut driver, port) = port(number, &options, 1);
        driver.post_all();
        floor.change(Change {
            port: Some((number, port.view)),
            add: vec![(0, port.stream)],
            ..Change::default()
        });
        driver
    });
    floor.learn(host(0), 0);
    floor.learn(host(1), 1);
    (floor, a, b, kick)
}

fn pause(random: &mut Random) {
    let turns = if random.one_in(4) {
        0
    } else {
        random.below(8000)
    };
    (0..turns).for_each(|_| std::hint::spin_loop());
}

/// Sends one frame at a time, with occasional pauses, and the next one only when the last has arrived.
fn frames_one_by_one(features: u64) {
    let (floor, mut a, mut b, kick) = floor(features);
    let mut random = Random(features);
    let frame = Flow::plain(host(0), host(1)).frame(80, 0, 0, 0);
    for round in 0..ROUNDS / 2 {
        a.send(&frame);
        publish(&mut a, &kick);
        wait_for(&format!("frame {round}"), || {
            !b.received().concat().is_empty()
        });
        pause(&mut random);
    }
    let counters = &floor.links[0].counters;
    let kicks = floor.view.port(0).unwrap().counters.sum(0, |c| &c.kicks);
    // Bursts are counted when the iteration ends, after the frame has arrived.
    wait_for("the count", || counters.bursts.get() >= ROUNDS / 2);
    let (sleeps, bursts) = (counters.sleeps.get(), counters.bursts.get());
    assert_eq!(bursts, ROUNDS / 2);
    // Otherwise the test has tested nothing.
    assert!(
        sleeps > 1000 && kicks > 1000,
        "{sleeps} sleeps, {kicks} kicks"
    );
    floor.stop();
}

#[test]
fn a_kick_is_never_missed() {
    frames_one_by_one(0);
}

#[test]
fn a_kick_is_never_missed_with_the_event_index() {
    frames_one_by_one(feature::EVENT_IDX);
}

/// A guest without a kick, or one that wants to be polled: a sleeping worker polls it from time to time.
#[test]
fn a_stream_that_nothing_wakes_a_worker_for_is_served_by_one_that_sleeps() {
    let mut floor = Floor::start(1, Idle::SleepAfter(SPIN), 16, |run| run());
    let [mut a, mut b] = [0, 1].map(|number| {
        let (mut driver, mut port) = port(number, &PortOptions::default(), 1);
        port.stream.has_wakeup = number != 0;
        driver.post_all();
        floor.change(Change {
            port: Some((number, port.view)),
            add: vec![(0, port.stream)],
            ..Change::default()
        });
        driver
    });
    floor.learn(host(0), 0);
    floor.learn(host(1), 1);
    let frame = Flow::plain(host(0), host(1)).frame(80, 0, 0, 0);
    let unheard = EventFd::new().unwrap();
    let sleeps = &floor.links[0].counters.sleeps;
    for round in 0..50 {
        // It naps repeatedly.
        let before = sleeps.get();
        wait_for("naps", || sleeps.get() > before + 3);
        a.send(&frame);
        // No kick reaches the worker.
        publish(&mut a, &unheard);
        wait_for(&format!("frame {round}"), || {
            !b.received().concat().is_empty()
        });
    }
    floor.stop();
}

/// Updates are taken by a worker that sleeps, or is about to.
#[test]
fn a_wake_for_an_update_is_never_missed() {
    let (mut floor, ..) = floor(0);
    let mut random = Random(7);
    for _ in 0..ROUNDS / 10 {
        let (back, replaced) = floor.change(Change::default());
        assert_eq!(back.len(), 1);
        drop(back);
        assert!(Arc::try_unwrap(replaced).is_ok());
        pause(&mut random);
    }
    assert!(floor.links[0].counters.sleeps.get() > 1000);
    floor.stop();
}

/// Work that one worker leaves for another is found: by the check before sleeping, or by a wakeup.
#[test]
fn a_wake_if_asleep_is_never_missed() {
    let waker = Waker::new().unwrap();
    let (left, taken) = (AtomicU64::new(0), AtomicU64::new(0));
    let (stop, sleeps) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut sleeper = Sleeper::new(waker.clone());
            while !stop.load(Ordering::SeqCst) {
                let now = left.load(Ordering::Relaxed);
                taken.store(now, Ordering::Release);
                sleeper.announce();
                let work = left.load(Ordering::Relaxed) != now || stop.load(Ordering::SeqCst);
                if !work {
                    sleeps.fetch_add(1, Ordering::Relaxed);
                    sleeper.sleep(None, |_| ());
                }
                sleeper.retract();
            }
        });
        let mut random = Random(8);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for round in 1..=ROUNDS {
                left.store(round, Ordering::Relaxed);
                waker.wake_if_asleep();
                wait_for("what was left", || taken.load(Ordering::Acquire) == round);
                (0..random.below(300)).for_each(|_| std::hint::spin_loop());
            }
        }));
        stop.store(true, Ordering::SeqCst);
        waker.wake();
        assert!(result.is_ok());
    });
    assert!(sleeps.load(Ordering::Relaxed) > 1000);
}

/// Repeated race of two threads: one leaves work and checks whether the other sleeps; the other announces its sleep and
/// checks for work. One of them must see the other.
#[test]
fn who_leaves_something_and_who_goes_to_sleep_do_not_miss_each_other() {
    const MEETINGS: u64 = 250_000;
    /// On a busy machine a ready thread may wait for its core for seconds.
    const TOO_LONG: Duration = Duration::from_secs(20);
    let waker = Waker::new().unwrap();
    let [left, here, there] = [0, 0, 0].map(AtomicU64::new);
    let meet = |me: &AtomicU64, other: &AtomicU64, round| {
        me.store(round, Ordering::Release);
        let mut turns = 0u32;
        while other.load(Ordering::Acquire) < round {
            turns += 1;
            if turns.is_multiple_of(1000) {
                std::thread::yield_now();
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1..=MEETINGS {
                meet(&here, &there, round);
                left.store(round, Ordering::Relaxed);
                waker.wake_if_asleep();
            }
        });
        let mut sleeper = Sleeper::new(waker.clone());
        let mut missed = 0;
        for round in 1..=MEETINGS {
            meet(&there, &here, round);
            sleeper.announce();
            // A leftover wakeup of an earlier round ends a sleep at once.
            while missed == 0 && left.load(Ordering::Relaxed) < round {
                let start = std::time::Instant::now();
                sleeper.sleep(Some(TOO_LONG), |_| ());
                missed += u64::from(start.elapsed() >= TOO_LONG);
            }
            sleeper.retract();
        }
        assert_eq!(missed, 0, "no thread woke it");
    });
}

/// Workers that sleep without a timeout are asked to end.
#[test]
fn a_worker_that_sleeps_stops_at_once() {
    for _ in 0..20 {
        let (floor, ..) = floor(0);
        let counters = &floor.links[0].counters;
        let (sleeps, turns) = (&counters.sleeps, &counters.turns);
        wait_for("sleep", || sleeps.get() > 0);
        // Its iteration count stays the same: it is asleep.
        wait_for("quiet", || {
            let before = turns.count();
            std::thread::sleep(Duration::from_millis(2));
            turns.count() == before
        });
        let took = floor.stop();
        assert!(took < Duration::from_secs(1), "{took:?}");
    }
}
