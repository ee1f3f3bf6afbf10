//! Workers neither allocate nor free memory, from their first poll iteration to the last. Counted on their threads.
#![allow(missing_docs)]
#![cfg(not(loom))]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

use crosspoint_engine::worker::Idle;
use crosspoint_guest::EventFd;

#[allow(dead_code, reason = "each test binary uses its own part")]
#[path = "switch/floor.rs"]
mod floor;
#[allow(dead_code, reason = "each test binary uses its own part")]
#[path = "switch/frames.rs"]
mod frames;
#[allow(dead_code, reason = "each test binary uses its own part")]
#[path = "switch/ports.rs"]
mod ports;
#[path = "../../vring/tests/device/world.rs"]
mod world;

use floor::{Change, Floor, publish};
use frames::{Flow, Ip, host};
use ports::{Driver, PortOptions, port};
use world::Random;

const FRAMES: u64 = 1_000_000;
/// Frames sent so that `FRAMES` are taken: the last ones may still be in queues.
const SENT: u64 = FRAMES + 10_000;
const GUESTS: u16 = 4;

static COUNT: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static IS_COUNTED: Cell<bool> = const { Cell::new(false) };
}

struct Counting;

fn count() {
    // The thread-local no longer exists while a thread ends.
    if IS_COUNTED.try_with(Cell::get).unwrap_or(false) {
        COUNT.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: all calls are passed to the system's allocator; the thread-local is const-initialised and has no destructor, so
// reading it allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's contract is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count();
        // SAFETY: the caller's contract is the same.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's contract is the same.
        unsafe { System.realloc(at, layout, len) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn counted(run: &mut dyn FnMut()) {
    IS_COUNTED.set(true);
    run();
    IS_COUNTED.set(false);
}

/// A frame of one guest: mostly for another guest, sometimes from a new address, a broadcast, or one to be dropped.
fn frame(random: &mut Random, me: u16, number: u64) -> Vec<u8> {
    let ip = Ip {
        v6: random.one_in(2),
        from: (1, random.below(100) as u16),
        to: (2, 80),
        fragment: false,
    };
    let other = host(random.below(GUESTS.into()) as u8);
    let mut flow = Flow {
        ip: Some(ip),
        ..Flow::plain(host(me as u8), other)
    };
    let len = match random.below(64) {
        0 => random.below(14),
        1 => 9000,
        _ => 80 + random.below(100),
    };
    match random.below(64) {
        0 => flow.src[1..].copy_from_slice(&random.next().to_le_bytes()[..5]),
        1 => flow.dst = [0xff; 6],
        2 => flow.dst = host(200),
        3 => flow.src = [0; 6],
        4 => flow.tag = Some(100),
        _ => {}
    }
    flow.frame(len, me.into(), 0, number)
}

fn attach(floor: &mut Floor, number: u16, kick: &EventFd) -> Driver {
    let options = PortOptions {
        queues: 1 + usize::from(number % 3),
        frame_len_max: 9000,
        receive_size: [256, 1024][usize::from(number % 2)],
        ..PortOptions::default()
    };
    let (mut driver, port) = port(number, &options, 2);
    driver.post_all();
    let worker = usize::from(number % 2);
    floor.links[worker]
        .waker
        .register_kick((number, 0), kick)
        .unwrap();
    floor.change(Change {
        port: Some((number, port.view)),
        add: vec![(worker, port.stream)],
        ..Change::default()
    });
    driver
}

/// The control thread takes a stream from its worker and gives it back.
fn replace_stream(floor: &mut Floor) {
    let change = Change {
        remove: vec![(0, (0, 0))],
        ..Change::default()
    };
    let (mut back, _) = floor.change(change);
    let stream = back[0].removed.pop().unwrap();
    let change = Change {
        add: vec![(0, stream)],
        ..Change::default()
    };
    floor.change(change);
}

#[test]
fn a_million_frames_and_many_updates_allocate_and_free_nothing() {
    let mut floor = Floor::start(2, Idle::SleepAfter(50_000), 16, counted);
    let mut guests: Vec<_> = (0..GUESTS)
        .map(|number| {
            let kick = EventFd::new().unwrap();
            (attach(&mut floor, number, &kick), kick)
        })
        .collect();
    let (mut random, mut number, mut received) = (Random(1), 0, 0);
    // Made in advance, so that the switch is the busy part.
    let made: Vec<Vec<Vec<u8>>> = (0..GUESTS)
        .map(|me| (0..20_000).map(|i| frame(&mut random, me, i)).collect())
        .collect();
    for round in 0u64.. {
        for ((driver, kick), frames) in guests.iter_mut().zip(&made) {
            driver.transmit.reap().unwrap();
            let room = driver.transmit.ring().free_descriptors().min(128);
            for _ in 0..room {
                driver.send(&frames[number as usize / 4 % frames.len()]);
                number += 1;
            }
            publish(driver, kick);
            received += driver.received().concat().len();
        }
        if round % 256 == 0 {
            replace_stream(&mut floor);
        }
        if number >= SENT {
            break;
        }
    }
    let sum = |pick: fn(&crosspoint_engine::observe::counters::QueueCounters) -> u64| -> u64 {
        let ports = floor.view.ports.iter().flatten();
        let all = ports.flat_map(|port| {
            (0..port.counters.queues()).flat_map(|queue| port.counters.of_queue(queue))
        });
        all.map(pick).sum()
    };
    let (taken, delivered) = (sum(|c| c.rx_frames.get()), sum(|c| c.tx_frames.get()));
    let (flooded, dropped) = (
        sum(|c| c.flood_copies.get()),
        sum(|c| c.dropped_copies.get()),
    );
    assert_eq!(COUNT.load(Ordering::Relaxed), 0);
    let stations = floor.view.fdb.dump(0).len();
    let all = [
        taken,
        delivered,
        flooded,
        dropped,
        stations as u64,
        received as u64,
    ];
    assert!(
        taken >= FRAMES && delivered > FRAMES / 4,
        "taken, delivered, flooded, dropped, stations, received: {all:?}"
    );
    assert!(
        flooded > 1000 && dropped > 1000 && stations > 500,
        "{all:?}"
    );
}
