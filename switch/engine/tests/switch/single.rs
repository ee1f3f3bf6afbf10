//! One worker that the test itself runs, iteration by iteration, and its guests.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8};

use crossbeam::queue::ArrayQueue;
use crosspoint_engine::bridge::fdb::Fdb;
use crosspoint_engine::observe::tap::Tap;
use crosspoint_engine::snapshot::{PortSnapshot, Snapshot};
use crosspoint_engine::sync::sleep::Waker;
use crosspoint_engine::worker::{Idle, Injected, Shared, Times, Update, Worker, WorkerLink};
use crosspoint_packet::{FlowHasher, Mac};

use crate::bridge::Ledger;
use crate::checks::{assert_balanced, ledger_of};
use crate::floor::QUANTUM_CYCLES;
use crate::frames::host;
use crate::ports::{Driver, Port};

pub struct Single {
    worker: Worker,
    link: Arc<WorkerLink>,
    times: Times,
    pub view: Arc<Snapshot>,
    pub drivers: Vec<Driver>,
}

impl Single {
    /// A worker with these ports, numbered in this order. Their buffers are posted and their addresses ([`host`]) known.
    pub fn start(made: Vec<(Driver, Port)>, taps: Box<[Arc<Tap>]>) -> Single {
        Single::start_with(made, taps, |_| ())
    }

    /// The same, after `change` has changed the snapshot.
    pub fn start_with(
        made: Vec<(Driver, Port)>,
        taps: Box<[Arc<Tap>]>,
        change: impl FnOnce(&mut Snapshot),
    ) -> Single {
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            tick: AtomicU8::new(0),
            faults: ArrayQueue::new(8),
            quantum_cycles: QUANTUM_CYCLES,
        });
        let (mut drivers, mut views, mut streams) = (Vec::new(), Vec::new(), Vec::new());
        for (mut driver, made) in made {
            driver.post_all();
            drivers.push(driver);
            views.push(Some(made.view));
            streams.push(made.stream);
        }
        let fdb = Arc::new(Fdb::new(0, [1, 2]));
        let mut view = Snapshot::new(views.into(), fdb.clone(), FlowHasher::new(3), taps);
        change(&mut view);
        let view = Arc::new(view);
        for number in 0..drivers.len() as u16 {
            let key = fdb.key(Mac::new(host(number as u8)), 0);
            fdb.learn(key, number, 0, |port| view.port(port).map(|of| &*of.quota));
        }
        let link = Arc::new(WorkerLink::new(Waker::new().expect("an eventfd")));
        let worker = Worker::new(0, shared, link.clone(), view.clone(), Idle::Spin);
        let single = Single {
            worker,
            link,
            times: Times::begin(),
            view,
            drivers,
        };
        let mut update = Update::new(single.view.clone(), single.drivers.len());
        update.add = streams;
        assert!(single.link.mailbox.publish(update).is_ok());
        single
    }

    /// Runs one poll iteration.
    pub fn turn(&mut self) {
        self.worker.turn(&mut self.times);
    }

    /// Publishes what driver 0 has sent, and runs the worker until it has taken all of it.
    pub fn drain(&mut self) {
        self.drain_of(0);
    }

    /// The same for any driver.
    pub fn drain_of(&mut self, driver: usize) {
        let _ = self.drivers[driver].transmit.ring().publish();
        while self.drivers[driver].transmit.reap().unwrap() > 0
            || self.drivers[driver].transmit.ring().outstanding() > 0
        {
            self.turn();
        }
    }

    /// Publishes a changed snapshot, which the worker uses from its next iteration on.
    pub fn change(&mut self, change: impl FnOnce(&mut [Option<PortSnapshot>])) {
        let mut ports = self.view.ports.clone();
        change(&mut ports);
        let fdb = self.view.fdb.clone();
        let view = Snapshot::new(ports, fdb, self.view.flows, self.view.taps.clone());
        self.view = Arc::new(view.with_connections(self.view.connections.clone()));
        let update = Update::new(self.view.clone(), self.drivers.len());
        let _before = self.link.mailbox.retired();
        assert!(self.link.mailbox.publish(update).is_ok());
        self.turn();
    }

    /// Has the worker handle a frame of the control thread's, in its first iteration: it looks for such frames when its
    /// mailbox has news.
    pub fn inject(&mut self, injected: Injected) {
        assert!(self.link.injected.push(injected).is_ok());
        self.turn();
    }

    /// Returns the ports' ledgers, which balance.
    pub fn ledgers(&self) -> Vec<Ledger> {
        let ports = self.view.ports.iter().flatten();
        let ledgers: Vec<_> = ports.map(|port| ledger_of(&port.counters)).collect();
        assert_balanced(&ledgers);
        ledgers
    }
}
