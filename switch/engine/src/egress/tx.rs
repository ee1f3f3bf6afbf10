//! A worker's egress side: its egress queues to ports, and the copies of a burst, grouped by queue.

use std::ops::Range;
use std::sync::Arc;

use crosspoint_frame::{BURST, Burst, HeaderOp, TxEntry, Work, tsc};
use crosspoint_packet::DropReason;
use crosspoint_vring::{RingFault, RxScratch};
use crosspoint_xsk::{Flushed, Handoff, XskTx};

use crate::MAX_PORTS;
use crate::bridge::flood::FloodScratch;
use crate::egress::deliver::TxResult;
use crate::egress::direct::Direct;
use crate::egress::gro::Gro;
use crate::egress::gso::Gso;
use crate::egress::guest_queues::GuestQueues;
use crate::egress::guest_queues::Spread;
use crate::egress::uplink::NicUse;
use crate::groups::stage::Packets;
use crate::shares::Account;
use crate::shares::Shares;
use crate::snapshot::Egress;
use crate::snapshot::PortSnapshot;
use crate::snapshot::Snapshot;
use crate::sync::call_guard::CallGuard;
use crate::sync::sleep::Waker;

/// A worker's egress queue to a NIC port.
pub enum NicTx {
    /// The worker's own queue of the NIC.
    Own(XskTx),
    /// Handoff to another worker's queue, and that worker's waker.
    Remote(Arc<Handoff>, Arc<Waker>),
}

/// Position of a worker's egress queue to a NIC port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NicPosition {
    /// Own queue: how many descriptors the kernel was given, and how many of those it has completed.
    Own {
        /// The port.
        port: u16,
        /// Descriptors submitted since the queue was opened.
        submitted: u64,
        /// Descriptors completed.
        completed: u64,
    },
    /// Handoff to another worker's queue.
    Remote {
        /// The port.
        port: u16,
        /// Descriptors handed off to that worker since the handoff was created.
        pushed: u64,
        /// Descriptors that it has taken.
        taken: u64,
    },
}

/// A guest queue that got frames in this iteration, and the source port of the first of these frames.
pub(crate) struct Touched {
    pub(crate) port: u16,
    pub(crate) queue: u16,
    pub(crate) by: u16,
}

/// Copies of one burst for one queue of one port.
pub(crate) struct Group {
    pub(crate) port: u16,
    pub(crate) queue: u16,
    pub(crate) picks: Vec<TxEntry>,
}

/// Copies of one burst, grouped by queue. Allocated once, with room for a burst in which each frame goes to another
/// queue.
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

    /// Returns the groups in use. A group is empty if its copies were sent together with flooded frames.
    #[inline(always)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Group> + Clone {
        self.list.iter().take(self.used)
    }

    /// Removes all copies.
    #[inline(always)]
    pub(crate) fn clear(&mut self) {
        self.used = 0;
    }

    /// Returns the group of copies for a queue, and begins one if there is none.
    #[inline(always)]
    fn of(&mut self, port: u16, queue: u16) -> Option<&mut Group> {
        let is_it = |group: &Group| (group.port, group.queue) == (port, queue);
        let known = self.list.iter().take(self.used).position(is_it);
        if let Some(index) = known {
            return self.list.get_mut(index);
        }
        // There are as many groups as a burst has frames.
        let group = self.list.get_mut(self.used)?;
        (group.port, group.queue) = (port, queue);
        group.picks.clear();
        self.used += 1;
        Some(group)
    }

    /// Adds a copy for a queue.
    #[inline(always)]
    pub(crate) fn push(&mut self, port: u16, queue: u16, pick: TxEntry) {
        // At most one copy of each frame goes to a queue, so there is room: no allocation.
        if let Some(group) = self.of(port, queue) {
            group.picks.push(pick);
        }
    }

    /// Returns whether there are copies for a port.
    pub(crate) fn has(&self, port: u16) -> bool {
        self.iter()
            .any(|group| group.port == port && !group.picks.is_empty())
    }

    /// Returns whether there are copies for a queue.
    fn has_for(&self, port: u16, queue: u16) -> bool {
        self.iter()
            .any(|group| (group.port, group.queue) == (port, queue) && !group.picks.is_empty())
    }

    /// Removes the copies for a port.
    pub(crate) fn discard(&mut self, port: u16) {
        let groups = self.list.iter_mut().take(self.used);
        groups
            .filter(|group| group.port == port)
            .for_each(|group| group.picks.clear());
    }
}

/// Cost of one burst beyond reading it and one copy of each frame into plain buffers: units of [`Work`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Asked {
    /// Flooded copies and segments.
    pub made: u32,
    /// Cost of receive buffers that are not plain: the part within each copy's allowance,
    pub own: u32,
    /// and beyond it.
    pub excess: u32,
}

impl Asked {
    /// Returns the sum.
    pub fn sum(self) -> u32 {
        self.made + self.own + self.excess
    }
}

/// A worker's egress side.
pub struct Tx {
    pub(crate) worker: usize,
    pub(crate) scratch: RxScratch,
    /// Egress queues to NIC ports, by port number.
    pub(crate) nics: Vec<Option<Box<NicTx>>>,
    /// Ports that have such an egress queue.
    pub(crate) nic_ports: Vec<u16>,
    /// Ports whose bursts had copies for NICs in this iteration, and how many; recorded only while ports compete.
    pub(crate) nic_users: Vec<(u16, u32)>,
    pub(crate) groups: Groups,
    /// Copies of flooded frames, for one port at a time.
    pub(crate) flood_groups: Groups,
    pub(crate) flood: FloodScratch,
    /// Remaining cost budget of the burst.
    pub(crate) work: Work,
    /// Accounts of the worker's time, by port.
    pub(crate) shares: Shares,
    /// Cost of the last burst.
    pub(crate) asked: Asked,
    /// Cycles that its flooded frames took.
    pub(crate) flood_cycles: u64,
    /// Whether the last burst was plain: frames in one piece, each sent unchanged to one port with plain buffers.
    pub(crate) is_plain: bool,
    /// Frames of the burst, by bits, that go to one port and exceed its rate.
    pub(crate) over_rate: u64,
    /// What the burst's frames are, for security groups, and which of them are not allowed.
    pub(crate) packets: Packets,
    /// Guest queues that got frames in this iteration: they may need a call.
    pub(crate) touched: Vec<Touched>,
    /// Rings found broken since the last report to the control thread.
    pub(crate) faults: Vec<(u16, RingFault)>,
    pub(crate) segmenter: Gso,
    pub(crate) joiner: Gro,
    /// The NIC queue of the guest whose burst is being delivered, if it has its own.
    pub(crate) direct: Option<Box<Direct>>,
    /// What the last burst sent to NICs.
    pub(crate) nic_use: NicUse,
    /// What its mirrors sent to NICs.
    pub(crate) mirror_use: NicUse,
    /// Serial number of the burst's first frame, for taps.
    pub(crate) serial: u64,
    /// How the burst is spread over the queues of each port, fixed with its first frame,
    pub(crate) spreads: Vec<(u16, Option<Spread>)>,
    /// and how often that was determined.
    pub(crate) looks: usize,
}

impl Tx {
    /// Creates the egress side of `worker`, with all the memory that it will ever need. A port may use the worker for
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
            over_rate: 0,
            packets: Packets::default(),
            touched: Vec::with_capacity(MAX_PORTS * usize::from(crosspoint_vring::MAX_QUEUE_PAIRS)),
            faults: Vec::with_capacity(MAX_PORTS),
            segmenter: Gso::default(),
            joiner: Gro::default(),
            direct: None,
            nic_use: NicUse::default(),
            mirror_use: NicUse::default(),
            serial: 0,
            spreads: Vec::with_capacity(BURST),
            looks: 0,
        }
    }

    /// Returns why frame `index` of the burst, which goes to one port, is refused there: by the port's groups, or for its rate.
    pub(crate) fn refusal(&self, index: usize) -> Option<DropReason> {
        let is_over = self.over_rate >> (index % BURST) & 1 == 1;
        let denied = self.packets.refusal(index);
        denied.or(is_over.then_some(DropReason::RateExceeded))
    }

    /// Forgets which frames of the burst before were refused.
    pub(crate) fn forget_refused(&mut self) {
        self.over_rate = 0;
        self.packets.forget();
    }

    /// Exchanges the egress queue to NIC port `port`.
    pub fn swap_nic(&mut self, port: u16, nic: &mut Option<Box<NicTx>>) {
        if let Some(slot) = self.nics.get_mut(usize::from(port)) {
            std::mem::swap(slot, nic);
            self.nic_ports.retain(|known| *known != port);
            if slot.is_some() {
                self.nic_ports.push(port);
            }
        }
    }

    /// Appends the position of each egress queue to a NIC, as far as there is room.
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

    /// Takes the own NIC queue, if any, of the guest whose burst is delivered next.
    #[inline(always)]
    pub fn lend_direct(&mut self, direct: Option<Box<Direct>>) {
        self.direct = direct;
    }

    /// Returns that queue.
    #[inline(always)]
    pub fn return_direct(&mut self) -> Option<Box<Direct>> {
        self.direct.take()
    }

    /// Returns the next ring that was found broken, if any: its port and the fault.
    pub fn take_fault(&mut self) -> Option<(u16, RingFault)> {
        self.faults.pop()
    }

    /// Calls the guests that got frames, once per iteration.
    pub fn call_guests(&mut self, view: &Snapshot, calling: &CallGuard) {
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

    /// Rings NIC doorbells and sends what other workers have handed off, once per iteration.
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

    /// Prefetches the receive buffers for the next `count` frames, assuming that they go where the last burst of this
    /// stream went.
    #[inline(always)]
    pub fn prefetch(&mut self, view: &Snapshot, last: Option<(u16, u16)>, count: usize) {
        if let Some((port, queue)) = last
            && let Some(port) = view.port(port)
            && let Egress::Guest(queues) = &port.egress
            && let Some(guest) = queues.get(usize::from(queue))
        {
            guest.look(count, &mut self.scratch);
        }
    }

    /// Returns the port and queue that the first copies of the last burst went to.
    pub fn last_destination(&self) -> Option<(u16, u16)> {
        let group = self.groups.iter().next()?;
        Some((group.port, group.queue))
    }

    /// Charges the destination ports of the last burst, of `count` frames from a NIC, with its cycles. This does not make
    /// them compete: it is not known whether further frames of the NIC are for them.
    pub(crate) fn charge_destinations(
        &mut self,
        view: &Snapshot,
        count: usize,
        cycles: u64,
        now: u64,
    ) {
        let Tx { groups, shares, .. } = self;
        let each = cycles / (count as u64).max(1);
        for group in groups.iter().filter(|group| !group.picks.is_empty()) {
            let account = Account::To(group.port);
            let weight = view.port(group.port).map_or(1, |port| port.weight);
            shares.charge(account, weight, each * group.picks.len() as u64, now);
        }
    }

    /// Returns whether copies of the last burst went to a NIC.
    pub fn used_nics(&self) -> bool {
        self.nic_use.is_used
    }

    /// Returns how many frames this worker's queue to a NIC port has room for, and for how many it has when it is empty.
    pub(crate) fn nic_room(&mut self, port: u16) -> (usize, usize) {
        let nic = self.nics.get_mut(usize::from(port));
        match nic.and_then(Option::as_deref_mut) {
            Some(NicTx::Own(nic)) => nic.room(),
            Some(NicTx::Remote(way, _)) => way.room(),
            None => (BURST, BURST),
        }
    }

    /// Returns the cost of the last burst beyond what every burst costs.
    pub fn asked(&self) -> Asked {
        self.asked
    }

    /// Adds what mirrors' copies cost to the cost of the last burst.
    pub(crate) fn note_mirrored(&mut self, tally: &TxResult) {
        self.asked.made += tally.made;
        self.asked.own += tally.work;
        self.asked.excess += tally.excess;
        self.is_plain = false;
    }

    /// Returns whether other workers have handed off frames for this worker's NIC queues.
    pub fn has_handoffs(&self) -> bool {
        self.nics
            .iter()
            .flatten()
            .any(|nic| matches!(&**nic, NicTx::Own(nic) if nic.has_handoffs()))
    }

    /// Adds copies of consecutive frames of the burst, for one port.
    #[inline(always)]
    pub(crate) fn push_run(
        &mut self,
        number: u16,
        port: &PortSnapshot,
        tag: HeaderOp,
        run: Range<usize>,
        burst: &Burst,
        view: &Snapshot,
    ) {
        let pick = |index: usize| TxEntry {
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

    /// Returns the queues of a guest that this worker spreads flows over; `None` while each flow must be
    /// [placed](GuestQueues::place) individually. Checks for newly used queues once per burst.
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
        // Full only if frames are flooded, which goes port by port, so the last entry can be replaced: no allocation.
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
