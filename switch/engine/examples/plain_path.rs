//! What the plain path costs by itself: a worker and the two guests that it serves, by turns in one thread, so that no
//! cache line crosses between cores.
//!
//! `plain_path [REPEATS] [ADDRESSES]` prints cycles a frame; with several addresses, of senders and of receivers, they are
//! taken in turn, so that no frame is like the one before it. Under `valgrind --tool=callgrind --collect-atstart=no
//! --toggle-collect='plain_path::turn*'`, with `plain_path 600 1 counted`, instructions: 256 frames a repeat.
#![allow(
    missing_docs,
    dead_code,
    unreachable_pub,
    reason = "shares its guests with the tests"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8};

use crossbeam::queue::ArrayQueue;
use crosspoint_engine::fdb::Fdb;
use crosspoint_engine::sleep::Waker;
use crosspoint_engine::view::View;
use crosspoint_engine::worker::{Idle, Shared, Times, Update, Worker, WorkerLink};
use crosspoint_frame::{BURST, tsc};
use crosspoint_guest::{Buffer, VirtioNetHdr};
use crosspoint_packet::{FlowHasher, Mac};

#[path = "../tests/switch/ports.rs"]
mod ports;
#[path = "../../vring/tests/device/world.rs"]
mod world;

use ports::{Driver, PortOptions, port};

/// Frames on the ring at the start of a repeat: all of it.
const FRAMES: usize = 256;
/// Where a frame's header begins, so that it ends with a cache line, as with DPDK; and from one frame to the next.
const OFFSET: usize = 52;
const STRIDE: usize = 128;
const FRAME_LEN: usize = 60;
/// Repeats until everything is in the caches.
const WARMUP: usize = 100;

#[inline(never)]
fn turn(worker: &mut Worker, times: &mut Times) {
    worker.turn(times);
}

/// Address `number` of the hosts at `port`.
fn host(port: u8, number: usize) -> [u8; 6] {
    let [high, middle, low] = [16, 8, 0].map(|bits| (number >> bits) as u8);
    [2, 0, port, high, middle, low]
}

/// Writes the frames that are sent next, `sent` having been: from and to one of so many addresses each.
fn write_frames(driver: &Driver, sent: usize, addresses: usize) {
    for i in 0..FRAMES {
        let number = (sent + i) % addresses;
        let (to, from) = (host(1, number), host(0, number));
        let frame = [&to[..], &from, &[8, 0], &[0; FRAME_LEN - 14]].concat();
        let bytes = [&VirtioNetHdr::default().to_bytes()[..], &frame].concat();
        let area = driver.transmit.area().view();
        area.write(i * STRIDE + OFFSET, &bytes);
    }
}

fn send_all(driver: &mut Driver) {
    let area = driver.transmit.area().guest_address();
    for i in 0..FRAMES {
        let buffer = Buffer {
            address: area + (i * STRIDE + OFFSET) as u64,
            len: (12 + FRAME_LEN) as u32,
            device_writes: false,
        };
        let added = driver.transmit.ring().add(&[buffer]);
        assert!(added.is_some(), "the ring is empty");
    }
    let _ = driver.transmit.ring().publish();
}

/// A worker with two ports, with so many known addresses at each.
fn start(quantum_cycles: u64, addresses: usize) -> (Worker, Driver, Driver) {
    let shared = Arc::new(Shared {
        stop: AtomicBool::new(false),
        tick: AtomicU8::new(0),
        faults: ArrayQueue::new(8),
        quantum_cycles,
    });
    let (from, sender) = port(0, &PortOptions::default(), 1);
    let (to, receiver) = port(1, &PortOptions::default(), 1);
    let fdb = Arc::new(Fdb::new(65_536, [1, 2]));
    let ports = vec![Some(sender.view), Some(receiver.view)];
    let flows = FlowHasher::new(3);
    let view = Arc::new(View::new(ports.into(), fdb.clone(), flows, Box::new([])));
    for (port, number) in (0..2).flat_map(|port| (0..addresses).map(move |n| (port, n))) {
        let key = fdb.key(Mac::new(host(port as u8, number)), 0);
        fdb.learn(key, port, 0, |port| {
            view.port(port).map(|port| &*port.quota)
        });
    }
    let link = Arc::new(WorkerLink::new(Waker::new().expect("an eventfd")));
    let worker = Worker::new(0, shared, link.clone(), view.clone(), Idle::Spin);
    let mut update = Update::new(view, 2);
    update.add = vec![sender.stream, receiver.stream];
    assert!(link.mailbox.publish(update).is_ok());
    (worker, from, to)
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default| {
        let given = args.get(at).and_then(|text| text.parse().ok());
        given.unwrap_or(default)
    };
    let (repeats, addresses) = (number(0, 5000), number(1, 1));
    let is_counted = args.get(2).is_some();
    // Under valgrind bursts take a hundred times as long, and would be made shorter.
    let quantum = if is_counted { u64::MAX >> 16 } else { 61_000 };
    let (mut worker, mut from, mut to) = start(quantum, addresses);
    to.post_all();
    write_frames(&from, 0, addresses);
    let mut costs = Vec::with_capacity(repeats);
    for repeat in 0..repeats {
        if addresses > 1 {
            write_frames(&from, repeat * FRAMES, addresses);
        }
        send_all(&mut from);
        let mut times = Times::begin();
        let began = tsc();
        for _ in 0..FRAMES / BURST {
            turn(&mut worker, &mut times);
        }
        costs.push(tsc() - began);
        let mut got = 0;
        // A burst that was interrupted makes the next ones shorter: frames may be left.
        while got < FRAMES {
            turn(&mut worker, &mut times);
            got += to.received()[0].len();
        }
        let sent = from.transmit.ring();
        while sent.pop_used().expect("a sound ring").is_some() {}
        if repeat == WARMUP {
            costs.clear();
        }
    }
    costs.sort_unstable();
    let part = |percent: usize| costs[costs.len() * percent / 100] as f64 / FRAMES as f64;
    println!(
        "cycles a frame: {:.1} (1 %), {:.1} (median)",
        part(1),
        part(50)
    );
}
