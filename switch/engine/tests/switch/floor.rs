//! Real workers, and the minimal control that tests need.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::queue::ArrayQueue;
use crosspoint_engine::bridge::fdb::Fdb;
use crosspoint_engine::snapshot::PortSnapshot;
use crosspoint_engine::snapshot::Snapshot;
use crosspoint_engine::stream::Stream;
use crosspoint_engine::stream::StreamId;
use crosspoint_engine::sync::sleep::Waker;
use crosspoint_engine::worker::Idle;
use crosspoint_engine::worker::Shared;
use crosspoint_engine::worker::Update;
use crosspoint_engine::worker::Worker;
use crosspoint_engine::worker::WorkerLink;
use crosspoint_guest::EventFd;
use crosspoint_packet::{FlowHasher, Mac};

use crate::ports::Driver;

/// Longer than any step takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Workers and their snapshot.
pub struct Floor {
    pub shared: Arc<Shared>,
    pub links: Vec<Arc<WorkerLink>>,
    pub view: Arc<Snapshot>,
    threads: Vec<JoinHandle<()>>,
    streams: Vec<usize>,
}

/// A change: new ports, and streams, each with its worker.
#[derive(Default)]
pub struct Change {
    pub port: Option<(u16, PortSnapshot)>,
    pub add: Vec<(usize, Stream)>,
    pub remove: Vec<(usize, StreamId)>,
}

/// The quantum of its workers.
pub const QUANTUM_CYCLES: u64 = 65_000;

impl Floor {
    /// Starts the workers. `around` runs on each worker's thread and must call its argument: the worker's loop.
    pub fn start(workers: usize, idle: Idle, faults: usize, around: fn(&mut dyn FnMut())) -> Floor {
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            tick: AtomicU8::new(0),
            faults: ArrayQueue::new(faults),
            quantum_cycles: QUANTUM_CYCLES,
        });
        let view = Arc::new(Snapshot::new(
            (0..8).map(|_| None).collect(),
            Arc::new(Fdb::new(0, [1, 2])),
            FlowHasher::new(3),
            Box::new([]),
        ));
        let link = || WorkerLink::new(Waker::new().unwrap());
        let links: Vec<_> = (0..workers).map(|_| Arc::new(link())).collect();
        let threads = links.iter().enumerate().map(|(index, link)| {
            let (shared, link, view) = (shared.clone(), link.clone(), view.clone());
            std::thread::spawn(move || {
                let mut worker = Some(Worker::new(index, shared, link, view, idle));
                around(&mut || worker.take().unwrap().run());
            })
        });
        Floor {
            threads: threads.collect(),
            shared,
            links,
            view,
            streams: vec![0; workers],
        }
    }

    /// Makes a change, as the control thread does, and waits until all workers use it. Returns the returned update of
    /// each worker, and the replaced snapshot.
    pub fn change(&mut self, change: Change) -> (Vec<Update>, Arc<Snapshot>) {
        let mut ports = self.view.ports.clone();
        if let Some((number, port)) = change.port {
            ports[usize::from(number)] = Some(port);
        }
        let fdb = self.view.fdb.clone();
        let view = Snapshot::new(ports, fdb, self.view.flows, Box::new([]));
        let replaced = std::mem::replace(&mut self.view, Arc::new(view));
        let mut updates: Vec<Update> = self
            .streams
            .iter()
            .map(|streams| Update::new(self.view.clone(), streams + change.add.len()))
            .collect();
        for (worker, stream) in change.add {
            updates[worker].add.push(stream);
            self.streams[worker] += 1;
        }
        for (worker, id) in change.remove {
            updates[worker].remove.push(id);
            updates[worker].removed.reserve(1);
            self.streams[worker] -= 1;
        }
        for (link, update) in self.links.iter().zip(updates) {
            assert!(link.mailbox.publish(update).is_ok());
            link.waker.wake();
        }
        let back = self.links.iter().map(|link| {
            let back = link.mailbox.wait_retired(PATIENCE, || ());
            back.expect("a worker makes no progress")
        });
        (back.collect(), replaced)
    }

    /// Learns `mac` on `port`, outside every VLAN.
    pub fn learn(&self, mac: [u8; 6], port: u16) {
        let key = self.view.fdb.key(Mac::new(mac), 0);
        self.view.fdb.learn(key, port, 0, |port| {
            self.view.port(port).map(|port| &*port.quota)
        });
    }

    /// Stops the workers; returns how long that took.
    pub fn stop(mut self) -> Duration {
        let start = Instant::now();
        self.end();
        start.elapsed()
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.links.iter().for_each(|link| link.waker.wake());
        for thread in self.threads.drain(..) {
            if thread.join().is_err() && !std::thread::panicking() {
                panic!("a worker panicked");
            }
        }
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        self.end();
    }
}

/// Publishes what was sent to the switch, with a kick if it asks for one.
pub fn publish(driver: &mut Driver, kick: &EventFd) {
    if driver.transmit.ring().publish() {
        kick.signal().unwrap();
    }
}

/// Waits until `done` returns `true`; panics after too long.
pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::yield_now();
    }
}
