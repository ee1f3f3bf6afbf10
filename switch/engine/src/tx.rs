//! A worker's outgoing side: its ways to ports, and the copies of a burst, by queue.

use std::ops::Range;
use std::sync::Arc;

use crosspoint_frame::{BURST, Burst, Pick, TagOp, Work, tsc};
use crosspoint_vring::{RingFault, RxScratch};
use crosspoint_xsk::{Flushed, Handover, XskTx};

use crate::MAX_PORTS;
use crate::calling::Calling;
use crate::direct::Direct;
use crate::flood::FloodScratch;
use crate::joins::Joiner;
use crate::queues::{GuestQueues, Spread};
use crate::segments::Segmenter;
use crate::shares::{Account, Shares};
use crate::sleep::Waker;
use crate::view::{Egress, PortView, View};

/// A worker's way to a NIC port.
pub enum NicTx {
    /// A queue of its own.
    Own(XskTx),
    /// Through another worker's queue, and how to wake it.
    Remote(Arc<Handover>, Arc<Waker>),
}

/// How far a worker's way to a NIC port has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NicPosition {
    /// A queue of its own: how many descriptors the kernel was given, and how many of those it is done with.
    Own {
        /// The port.
        port: u16,
        /// Given, since the queue was opened.
        submitted: u64,
        /// Done.
        completed: u64,
    },
    /// Another worker's queue.
    Remote {
        /// The port.
        port: u16,
        /// Descriptors handed over to that worker, since the way was made.
        pushed: u64,
        /// Taken by it.
        taken: u64,
    },
}

/// A guest's queue that was delivered to in this iteration, and the port that the first of these frames came from.
pub(crate) struct Touched {
    pub(crate) port: u16,
    pub(crate) queue: u16,
    pub(crate) by: u16,
}

/// Copies of one burst that go to one queue of one port.
pub(crate) struct Group {
    pub(crate) port: u16,
    pub(crate) queue: u16,
    pub(crate) picks: Vec<Pick>,
}

/// Copies of one burst, by queue. Made once, with room for a burst of which each frame goes elsewhere.
#[derive(Default)]
pub(crate) struct Groups {
    list: Vec<Group>,
    used: usize,
}

impl Groups {
    fn new() -> Groups {
        let group = || Group {
            port: 0,
            queue: 0,
            picks: Vec::with_capacity(BURST),
        };
        Groups {
            list: (0..BURST).map(|_| group()).collect(),
            used: 0,
        }
    }

    /// Those with copies, and those whose copies went with others.
    #[inline(always)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Group> + Clone {
        self.list.iter().take(self.used)
    }

    /// Forgets all copies.
    #[inline(always)]
    pub(crate) fn clear(&mut self) {
        self.used = 0;
    }

    /// The group of copies for a queue, made if there is none.
    #[inline(always)]
    fn of(&mut self, port: u16, queue: u16) -> Option<&mut Group> {
        let is_it = |group: &Group| (group.port, group.queue) == (port, queue);
        let known = self.list.iter().take(self.used).position(is_it);
        if let Some(index) = known {
            return self.list.get_mut(index);
        }
        // A burst has no more frames than there are groups.
        let group = self.list.get_mut(self.used)?;
        (group.port, group.queue) = (port, queue);
        group.picks.clear();
        self.used += 1;
        Some(group)
    }

    /// Adds a copy for a queue.
    #[inline(always)]
    pub(crate) fn push(&mut self, port: u16, queue: u16, pick: Pick) {
        // At most one copy of each frame goes to a queue, so there is room: no allocation.
        if let Some(group) = self.of(port, queue) {
            group.picks.push(pick);
        }
    }

    /// Whether there are copies for a port.
    pub(crate) fn has(&self, port: u16) -> bool {
        self.iter()
            .any(|group| group.port == port && !group.picks.is_empty())
    }

    /// Whether there are copies for a queue.
    fn has_for(&self, port: u16, queue: u16) -> bool {
        self.iter()
            .any(|group| (group.port, group.queue) == (port, queue) && !group.picks.is_empty())
    }

    /// Forgets the copies for a port.
    pub(crate) fn discard(&mut self, port: u16) {
        let groups = self.list.iter_mut().take(self.used);
        groups
            .filter(|group| group.port == port)
            .for_each(|group| group.picks.clear());
    }
}

/// What one burst has asked for after it was read, beyond one copy of each frame into plain buffers: units of [`Work`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Asked {
    /// Flooded copies and segments.
    pub made: u32,
    /// Receive buffers that are not plain: of each copy's own,
    pub own: u32,
    /// and beyond it.
    pub excess: u32,
}

impl Asked {
    /// All of it.
    pub fn sum(self) -> u32 {
        self.made + self.own + self.excess
    }
}

/// A worker's outgoing side.
pub struct Tx {
    pub(crate) worker: usize,
    pub(crate) scratch: RxScratch,
    /// Ways to NIC ports, by port number.
    pub(crate) nics: Vec<Option<Box<NicTx>>>,
    /// Ports that have such a way.
    pub(crate) nic_ports: Vec<u16>,
    /// Ports whose bursts had copies for NICs in this iteration, and how many; noted while ports compete.
    pub(crate) nic_users: Vec<(u16, u32)>,
    pub(crate) groups: Groups,
    /// Copies of flooded frames, for one port at a time.
    pub(crate) flood_groups: Groups,
    pub(crate) flood: FloodScratch,
    /// What the burst may still cost.
    pub(crate) work: Work,
    /// The worker's time, by port.
    pub(crate) shares: Shares,
    /// What the last burst has asked for.
    pub(crate) asked: Asked,
    /// What its flooded frames took, cycles.
    pub(crate) flood_cycles: u64,
    /// Whether the last burst was of frames in one piece, that went as they were to one port each, whose buffers were plain.
    pub(crate) is_plain: bool,
    /// Guest queues delivered to in this iteration: they may want a call.
    pub(crate) touched: Vec<Touched>,
    /// Rings found broken since the control thread last looked.
    pub(crate) faults: Vec<(u16, RingFault)>,
    pub(crate) segmenter: Segmenter,
    pub(crate) joiner: Joiner,
    /// Of the guest whose burst is delivered, if it has a NIC's queue of its own.
    pub(crate) direct: Option<Box<Direct>>,
    /// Whether copies of the last burst went to a NIC; and how many to those whose doorbells this worker rings.
    pub(crate) used_nics: bool,
    pub(crate) nic_copies: u32,
    /// The number of the burst's first frame, for taps.
    pub(crate) serial: u64,
    /// How the burst is spread over the queues of each port, from its first frame on.
    pub(crate) spreads: Vec<(u16, Option<Spread>)>,
    /// and how often that was done.
    pub(crate) looks: usize,
}

impl Tx {
    /// The outgoing side of `worker`, with all the memory that it will ever need. A port may have the worker for
    /// `quantum_cycles` while others want it too.
    pub fn new(worker: usize, quantum_cycles: u64) -> Tx {
        Tx {
            worker,
            scratch: RxScratch::default(),
            nics: (0..MAX_PORTS).map(|_| None).collect(),
            nic_ports: Vec::with_capacity(MAX_PORTS),
            nic_users: Vec::with_capacity(MAX_PORTS),
            groups: Groups::new(),
            flood_groups: Groups::new(),
            flood: FloodScratch::default(),
            work: Work::default(),
            shares: Shares::new(quantum_cycles),
            asked: Asked::default(),
            flood_cycles: 0,
            is_plain: false,
            touched: Vec::with_capacity(MAX_PORTS * usize::from(crosspoint_vring::MAX_QUEUE_PAIRS)),
            faults: Vec::with_capacity(MAX_PORTS),
            segmenter: Segmenter::default(),
            joiner: Joiner::default(),
            direct: None,
            used_nics: false,
            nic_copies: 0,
            serial: 0,
            spreads: Vec::with_capacity(BURST),
            looks: 0,
        }
    }

    /// Exchanges the way to NIC port `port`.
    pub fn swap_nic(&mut self, port: u16, nic: &mut Option<Box<NicTx>>) {
        if let Some(slot) = self.nics.get_mut(usize::from(port)) {
            std::mem::swap(slot, nic);
            self.nic_ports.retain(|known| *known != port);
            if slot.is_some() {
                self.nic_ports.push(port);
            }
        }
    }

    /// Notes how far each way has come, as far as there is room.
    pub fn note_positions(&mut self, positions: &mut Vec<NicPosition>) {
        let room = positions.capacity() - positions.len();
        for port in self.nic_ports.iter().take(room) {
            let way = self.nics.get_mut(usize::from(*port));
            positions.extend(way.and_then(Option::as_deref_mut).map(|way| match way {
                NicTx::Own(nic) => {
                    let (submitted, completed) = nic.position();
                    NicPosition::Own {
                        port: *port,
                        submitted,
                        completed,
                    }
                }
                NicTx::Remote(way, _) => {
                    let (pushed, taken) = way.position();
                    NicPosition::Remote {
                        port: *port,
                        pushed,
                        taken,
                    }
                }
            }));
        }
    }

    /// Lends the queue that is the own one of the guest whose burst is delivered next, or none.
    #[inline(always)]
    pub fn lend_direct(&mut self, direct: Option<Box<Direct>>) {
        self.direct = direct;
    }

    /// Gives it back.
    #[inline(always)]
    pub fn return_direct(&mut self) -> Option<Box<Direct>> {
        self.direct.take()
    }

    /// The next ring that was found broken, if any: its port, and what the guest did.
    pub fn take_fault(&mut self) -> Option<(u16, RingFault)> {
        self.faults.pop()
    }

    /// Calls the guests that were delivered to, once per iteration.
    pub fn call_guests(&mut self, view: &View, calling: &Calling) {
        let mut before = tsc();
        for Touched { port, queue, by } in self.touched.drain(..) {
            let number = port;
            if let Some(port) = view.port(number)
                && let Egress::Guest(queues) = &port.egress
                && let Some(guest) = queues.get(usize::from(queue))
            {
                guest.prefetch_descriptors(BURST);
                calling.enter(number);
                if guest.flush(self.worker) {
                    port.counters.at(self.worker, queue).calls.add(1);
                    let weight = view.port(by).map_or(1, |port| port.weight);
                    let now = tsc();
                    let cycles = now.wrapping_sub(std::mem::replace(&mut before, now));
                    self.shares.charge_aside(by, weight, cycles);
                }
            }
        }
    }

    /// NIC doorbells, and what other workers have handed over, once per iteration.
    pub fn flush_nics(&mut self) -> Flushed {
        let mut flushed = Flushed::default();
        for port in &self.nic_ports {
            match self
                .nics
                .get_mut(usize::from(*port))
                .and_then(Option::as_deref_mut)
            {
                Some(NicTx::Own(nic)) => flushed.add(nic.flush()),
                Some(NicTx::Remote(way, owner)) if way.has_work() => owner.wake_if_asleep(),
                _ => {}
            }
        }
        flushed
    }

    /// Asks for the receive buffers that the next `count` frames will go to, if they go where
    /// the last burst of this stream went.
    #[inline(always)]
    pub fn prefetch(&mut self, view: &View, last: Option<(u16, u16)>, count: usize) {
        if let Some((port, queue)) = last
            && let Some(port) = view.port(port)
            && let Egress::Guest(queues) = &port.egress
            && let Some(guest) = queues.get(usize::from(queue))
        {
            guest.look(count, &mut self.scratch);
        }
    }

    /// Where the first copies of the last burst went.
    pub fn last_destination(&self) -> Option<(u16, u16)> {
        let group = self.groups.iter().next()?;
        Some((group.port, group.queue))
    }

    /// Charges the ports that the last burst, of `count` frames and from a NIC, was for with its cycles. They do not
    /// compete for that: what a NIC has more is not known to be theirs.
    pub(crate) fn charge_destinations(&mut self, view: &View, count: usize, cycles: u64, now: u64) {
        let Tx { groups, shares, .. } = self;
        let each = cycles / (count as u64).max(1);
        for group in groups.iter().filter(|group| !group.picks.is_empty()) {
            let account = Account::To(group.port);
            let weight = view.port(group.port).map_or(1, |port| port.weight);
            shares.charge(account, weight, each * group.picks.len() as u64, now);
        }
    }

    /// Whether copies of the last burst went to a NIC.
    pub fn used_nics(&self) -> bool {
        self.used_nics
    }

    /// What the last burst has asked for beyond what every burst costs.
    pub fn asked(&self) -> Asked {
        self.asked
    }

    /// Whether other workers have left frames for this one's NIC queues.
    pub fn has_handovers(&self) -> bool {
        self.nics
            .iter()
            .flatten()
            .any(|nic| matches!(&**nic, NicTx::Own(nic) if nic.has_handovers()))
    }

    /// Adds copies of frames that follow each other in the burst, for one port.
    #[inline(always)]
    pub(crate) fn push_run(
        &mut self,
        number: u16,
        port: &PortView,
        tag: TagOp,
        run: Range<usize>,
        burst: &Burst,
        view: &View,
    ) {
        let pick = |index: usize| Pick {
            frame: index as u8,
            tag,
        };
        if let Some(queues) = port.spreads() {
            let spread = self.spread(number, queues);
            for index in run {
                if let Some(frame) = burst.frames().get(index) {
                    let hash = view.flows.hash(frame.headers());
                    let queue = match spread {
                        Some(spread) => spread.queue(hash),
                        None => queues.place(hash),
                    };
                    self.groups.push(number, queue, pick(index));
                }
            }
            return;
        }
        // At most one copy of each frame goes to a queue, so there is room: no allocation.
        if let Some(group) = self.groups.of(number, 0) {
            group.picks.extend(run.map(pick));
        }
    }

    /// The queues of a guest that this worker spreads flows over; `None` while each is to be [placed](GuestQueues::place) by itself.
    /// Once for each burst it is looked whether there are others.
    #[inline(always)]
    pub(crate) fn spread(&mut self, number: u16, queues: &GuestQueues) -> Option<Spread> {
        let mut known = self.spreads.iter().rev();
        if let Some((_, spread)) = known.find(|(port, _)| *port == number) {
            return *spread;
        }
        self.looks = self.looks.wrapping_add(1);
        let spread = match queues.settled(self.worker) {
            Some(spread) if !queues.look(self.looks) => Some(spread),
            _ => self.respread(number, queues),
        };
        // Full only where frames are flooded, to one port after the other: no allocation.
        if self.spreads.len() == BURST {
            self.spreads.pop();
        }
        self.spreads.push((number, spread));
        spread
    }

    #[cold]
    fn respread(&self, number: u16, queues: &GuestQueues) -> Option<Spread> {
        queues.look(self.looks);
        queues.advance(self.worker, |queue| {
            let all = [&self.groups, &self.flood_groups];
            all.iter().any(|groups| groups.has_for(number, queue))
        });
        queues.settled(self.worker)
    }
}
