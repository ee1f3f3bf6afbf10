//! What the control thread and a worker share: updates, injected frames, and what all workers have in common.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8};
use std::time::Duration;

use crossbeam::queue::ArrayQueue;
use crosspoint_vring::RingFault;

use crate::egress::tx::NicPosition;
use crate::egress::tx::NicTx;
use crate::observe::counters::WorkerCounters;
use crate::snapshot::Snapshot;
use crate::stream::Stream;
use crate::stream::StreamId;
use crate::sync::call_guard::CallGuard;
use crate::sync::publish::Mailbox;
use crate::sync::sleep::Waker;
use crate::walk::Walk;
use crate::worker::Idle;

/// Most injected frames that can wait for one worker.
pub(super) const INJECTED: usize = 64;
/// How long a port may use a worker while other ports want it too, over all its bursts since it was level with them. A
/// frame waits at most this long, plus one burst, because of one other port.
pub const QUANTUM: Duration = Duration::from_micros(25);

/// A change that a worker applies between two poll iterations. The worker returns it with the replaced objects.
pub struct Update {
    /// The new snapshot; the old one when returned.
    pub view: Arc<Snapshot>,
    /// Streams to add.
    pub add: Vec<Stream>,
    /// Streams to remove.
    pub remove: Vec<StreamId>,
    /// An empty list with room for all the streams that the worker will have: workers do not allocate. The old list,
    /// empty, when returned.
    pub streams: Vec<Stream>,
    /// Which streams are polled, with room for all. The old one when returned.
    pub(crate) walk: Walk,
    /// An empty list with room for the removed streams; it holds them when returned.
    pub removed: Vec<Stream>,
    /// Egress queues of NIC ports to exchange; the old ones when returned.
    pub nics: Vec<(u16, Option<Box<NicTx>>)>,
    /// When returned: the position of each egress queue to a NIC, as many as the list has room for.
    pub nic_positions: Vec<NicPosition>,
    /// What the worker does when it has nothing to do, if that changes.
    pub idle: Option<Idle>,
}

impl Update {
    /// Creates an update that changes only the snapshot, for a worker that will have `streams` streams.
    pub fn new(view: Arc<Snapshot>, streams: usize) -> Update {
        Update {
            view,
            add: Vec::new(),
            remove: Vec::new(),
            streams: Vec::with_capacity(streams),
            walk: Walk::new(streams),
            removed: Vec::new(),
            nics: Vec::new(),
            nic_positions: Vec::new(),
            idle: None,
        }
    }
}

/// State shared by the control thread and a worker.
pub struct WorkerLink {
    /// Carries updates, and the worker's quiescent points.
    pub mailbox: Mailbox<Update>,
    /// Wakes the worker.
    pub waker: Arc<Waker>,
    /// The worker's own counters.
    pub counters: WorkerCounters,
    /// Port whose call eventfd is being written. A front end can make this write block forever.
    pub calling: CallGuard,
    /// Frames to process as if a port had received them. Read when the mailbox has an update.
    pub injected: ArrayQueue<Injected>,
}

impl WorkerLink {
    /// Creates the link to the worker that `waker` wakes.
    pub fn new(waker: Arc<Waker>) -> WorkerLink {
        WorkerLink {
            mailbox: Mailbox::default(),
            waker,
            counters: WorkerCounters::default(),
            calling: CallGuard::default(),
            injected: ArrayQueue::new(INJECTED),
        }
    }
}

/// Longest frame that the control thread can make, bytes: a query of MLD version 2 has 90.
pub const INJECTED_LEN: usize = 96;

/// A short frame that the control thread makes. It counts as received on queue 0 of its port.
#[derive(Clone, Copy, Debug)]
pub struct Injected {
    /// The port that it comes in on.
    pub port: u16,
    /// `Some`: the frame leaves through `port` only, in this VLAN (0 for none), even if the port is blocked.
    pub out: Option<u16>,
    bytes: [u8; INJECTED_LEN],
    len: usize,
}

impl Injected {
    /// Returns the frame `bytes`, without its checksum; cut off behind [`INJECTED_LEN`] bytes.
    pub fn new(port: u16, out: Option<u16>, bytes: &[u8]) -> Injected {
        let len = bytes.len().min(INJECTED_LEN);
        let mut own = [0; INJECTED_LEN];
        own.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        Injected {
            port,
            out,
            bytes: own,
            len,
        }
    }

    /// The frame.
    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }
}

/// State shared by all threads of the switch.
pub struct Shared {
    /// Set to end the workers.
    pub stop: AtomicBool,
    /// The FDB's clock.
    pub tick: AtomicU8,
    /// Rings in which a guest broke the rules: port and fault. The control thread quarantines the port.
    pub faults: ArrayQueue<(u16, RingFault)>,
    /// [`QUANTUM`], in cycles.
    pub quantum_cycles: u64,
}

impl Shared {
    /// Returns the duration of so many cycles of the time stamp counter.
    pub(super) fn duration_of(&self, cycles: u64) -> Duration {
        let ns = u128::from(cycles) * QUANTUM.as_nanos() / u128::from(self.quantum_cycles.max(1));
        Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
    }
}
