//! A switch without threads: calls the stages one after the other, as a worker does.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use crosspoint_engine::bridge::fdb::Fdb;
use crosspoint_engine::bridge::flood::police;
use crosspoint_engine::egress::deliver::deliver;
use crosspoint_engine::egress::tx::Asked;
use crosspoint_engine::egress::tx::NicTx;
use crosspoint_engine::egress::tx::Tx;
use crosspoint_engine::observe;
use crosspoint_engine::snapshot::Egress;
use crosspoint_engine::snapshot::Snapshot;
use crosspoint_engine::stages::Keys;
use crosspoint_engine::stages::admit;
use crosspoint_engine::stages::lookup;
use crosspoint_engine::stages::parse;
use crosspoint_engine::stream::Stream;
use crosspoint_engine::sync::call_guard::CallGuard;
use crosspoint_frame::Burst;
use crosspoint_packet::FlowHasher;
use crosspoint_xsk::XskTx;

use crate::ports::{Driver, PortOptions, port};

pub struct Rig {
    pub view: Snapshot,
    pub drivers: Vec<Driver>,
    pub streams: Vec<Stream>,
    workers: Vec<Tx>,
    pub burst: Burst,
    keys: Keys,
}

impl Rig {
    /// Creates a switch with these ports and `workers` workers.
    pub fn new(options: &[PortOptions], workers: usize, seed: u64) -> Rig {
        let mut rig = Rig {
            view: Snapshot::new(
                Box::new([]),
                Arc::new(Fdb::new(0, [seed, !seed])),
                FlowHasher::new(seed),
                Box::new([]),
            ),
            drivers: Vec::new(),
            streams: Vec::new(),
            workers: (0..workers).map(|worker| Tx::new(worker, 65_000)).collect(),
            burst: Burst::new(),
            keys: Keys::default(),
        };
        let mut ports = Vec::new();
        for (number, options) in options.iter().enumerate() {
            let (driver, made) = port(number as u16, options, workers);
            ports.push(Some(made.view));
            rig.drivers.push(driver);
            rig.streams.push(made.stream);
        }
        rig.view.ports = ports.into();
        rig.view.renew_members();
        rig
    }

    /// Makes the first worker send frames for a port through a NIC's queue.
    pub fn lead_out(&mut self, number: u16, nic: XskTx) {
        if let Some(Some(port)) = self.view.ports.get_mut(usize::from(number)) {
            port.egress = Egress::Nic;
        }
        self.view.renew_members();
        let mut nic = Some(Box::new(NicTx::Own(nic)));
        self.workers[0].swap_nic(number, &mut nic);
    }

    /// Processes one burst from port `ingress` on worker `worker`. Returns its number of frames.
    pub fn turn(&mut self, worker: usize, ingress: usize) -> usize {
        self.turn_with(worker, ingress, |_, _, _| ())
    }

    /// The same, with a function called after all frames have been looked up.
    pub fn turn_with(
        &mut self,
        worker: usize,
        ingress: usize,
        meanwhile: impl FnOnce(&mut Burst, &Snapshot, &mut Keys),
    ) -> usize {
        let Rig {
            view,
            streams,
            workers,
            burst,
            keys,
            ..
        } = self;
        let (stream, tx) = (&mut streams[ingress], &mut workers[worker]);
        let count = stream.receive(burst);
        if count == 0 {
            return 0;
        }
        let ingress = ingress as u16;
        parse(burst);
        admit(burst, ingress, view);
        if lookup(burst, ingress, view, 0, keys) {
            police(burst, ingress, view, tx);
        }
        meanwhile(burst, view, keys);
        if view.is_observed() {
            observe::received(burst, stream.id, view, tx);
        }
        deliver(burst, ingress, view, tx, stream.counters(worker));
        stream.complete(burst, worker, 0);
        fence(Ordering::SeqCst);
        stream.flush(worker);
        tx.call_guests(view, &CallGuard::default());
        tx.flush_nics();
        count
    }

    /// Sends these frames from port `ingress` and processes them, in as many bursts as needed.
    pub fn pass(&mut self, ingress: usize, frames: &[Vec<u8>]) {
        for frame in frames {
            self.drivers[ingress].send(frame);
        }
        let _ = self.drivers[ingress].transmit.virtqueue().publish();
        while self.turn(0, ingress) > 0 {}
    }

    /// Returns the cost of the first worker's last burst.
    pub fn asked(&self) -> Asked {
        self.workers[0].asked()
    }

    /// Returns the number of workers.
    pub fn workers(&self) -> usize {
        self.workers.len()
    }
}
