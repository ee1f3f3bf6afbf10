//! The last stage: every copy goes to its port, or is counted as dropped.

use std::sync::Arc;

use crosspoint_frame::{BURST, Burst, Pick, Verdict};
use crosspoint_packet::DropReason;
use crosspoint_vring::{GuestRx, Outcome, RingFault, RxScratch};
use crosspoint_xsk::{Handover, NicOutcome, XskTx};

use crate::MAX_PORTS;
use crate::counters::QueueCounters;
use crate::sleep::Waker;
use crate::view::{Egress, PortView, View};

/// A worker's way to a NIC port.
pub enum NicTx {
    /// A queue of its own.
    Own(XskTx),
    /// Through another worker's queue, and how to wake it.
    Remote(Arc<Handover>, Arc<Waker>),
}

/// Copies of one burst that go to one queue of one port.
struct Group {
    port: u16,
    queue: u16,
    picks: Vec<Pick>,
}

/// A worker's outgoing side.
pub struct Tx {
    worker: usize,
    scratch: RxScratch,
    /// Ways to NIC ports, by port number.
    nics: Vec<Option<Box<NicTx>>>,
    /// Ports that have such a way.
    nic_ports: Vec<u16>,
    groups: Vec<Group>,
    used_groups: usize,
    /// Guest queues delivered to in this iteration: they may want a call.
    touched: Vec<(u16, u16)>,
    /// Rings found broken since the control thread last looked.
    faults: Vec<(u16, RingFault)>,
}

/// What became of one burst's copies; all came from one queue.
#[derive(Clone, Copy, Default)]
struct Tally {
    delivered: u64,
    dropped: u64,
}

impl Tx {
    /// The outgoing side of `worker`, with all the memory that it will ever need.
    pub fn new(worker: usize) -> Tx {
        let group = || Group {
            port: 0,
            queue: 0,
            picks: Vec::with_capacity(BURST),
        };
        Tx {
            worker,
            scratch: RxScratch::default(),
            nics: (0..MAX_PORTS).map(|_| None).collect(),
            nic_ports: Vec::with_capacity(MAX_PORTS),
            groups: (0..BURST).map(|_| group()).collect(),
            used_groups: 0,
            touched: Vec::with_capacity(MAX_PORTS * usize::from(crosspoint_vring::MAX_QUEUE_PAIRS)),
            faults: Vec::with_capacity(MAX_PORTS),
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

    /// The next ring that was found broken, if any: its port, and what the guest did.
    pub fn take_fault(&mut self) -> Option<(u16, RingFault)> {
        self.faults.pop()
    }

    /// NIC doorbells and guest calls, once per iteration. Returns whether a NIC still has
    /// frames that it did not take.
    pub fn flush(&mut self, view: &View) -> bool {
        for (port, queue) in self.touched.drain(..) {
            if let Some(port) = view.port(port)
                && let Egress::Guest(queues) = &port.egress
                && let Some(guest) = queues.get(usize::from(queue))
            {
                guest.prefetch();
                if guest.flush(self.worker) {
                    port.counters.at(self.worker, queue).calls.add(1);
                }
            }
        }
        let mut pending = false;
        for port in &self.nic_ports {
            match self
                .nics
                .get_mut(usize::from(*port))
                .and_then(Option::as_deref_mut)
            {
                Some(NicTx::Own(nic)) => pending |= nic.flush(),
                Some(NicTx::Remote(way, owner)) if way.has_work() => owner.wake_if_asleep(),
                _ => {}
            }
        }
        pending
    }

    /// Whether other workers have left frames for this one's NIC queues.
    pub fn has_handovers(&self) -> bool {
        self.nics
            .iter()
            .flatten()
            .any(|nic| matches!(&**nic, NicTx::Own(nic) if nic.has_handovers()))
    }

    fn add(&mut self, port: u16, queue: u16, pick: Pick) {
        let known = self.groups.iter().take(self.used_groups);
        // The last group first: frames of a burst mostly go the same way.
        let found = known
            .rev()
            .position(|group| (group.port, group.queue) == (port, queue));
        let index = match found {
            Some(back) => self.used_groups - 1 - back,
            None => {
                let index = self.used_groups;
                let Some(group) = self.groups.get_mut(index) else {
                    return;
                };
                (group.port, group.queue) = (port, queue);
                group.picks.clear();
                self.used_groups += 1;
                index
            }
        };
        if let Some(group) = self.groups.get_mut(index) {
            group.picks.push(pick);
        }
    }
}

/// Delivers a burst that came in on `ingress`, whose counters are `from`: groups it by queue,
/// then makes one reservation, one run of copies and one publication per queue.
#[inline(always)]
pub fn deliver(burst: &Burst, ingress: u16, view: &View, tx: &mut Tx, from: &QueueCounters) {
    let (mut bytes, mut flood, mut dropped) = (0, false, 0);
    tx.used_groups = 0;
    for (index, frame) in burst.frames().iter().enumerate() {
        bytes += u64::from(frame.len);
        match frame.verdict {
            Verdict::Port(port) => add_unicast(burst, index, port, view, tx, from, &mut dropped),
            Verdict::Flood => flood = true,
            Verdict::Drop(reason) => {
                from.drop(reason, 1);
                dropped += 1;
            }
            Verdict::Pending => {}
        }
    }
    let mut tally = Tally {
        delivered: 0,
        dropped,
    };
    if flood {
        deliver_with_flood(burst, ingress, view, tx, from, &mut tally);
    } else {
        send_groups(burst, view, tx, &mut tally);
    }
    from.rx_frames.add(burst.len() as u64);
    from.rx_bytes.add(bytes);
    from.bursts.add(1);
    from.delivered_copies.add(tally.delivered);
    from.dropped_copies.add(tally.dropped);
}

#[inline(always)]
fn add_unicast(
    burst: &Burst,
    index: usize,
    number: u16,
    view: &View,
    tx: &mut Tx,
    from: &QueueCounters,
    dropped: &mut u64,
) {
    let (Some(frame), Some(port)) = (burst.frames().get(index), view.port(number)) else {
        // Learned on a port that is gone since; ageing takes the entry.
        from.drop(DropReason::NoDestination, 1);
        *dropped += 1;
        return;
    };
    if !port.vlan.carries(frame.vlan) {
        from.drop(DropReason::VlanNotCarried, 1);
        *dropped += 1;
        return;
    }
    let pick = Pick {
        frame: index as u8,
        tag: port.tag_op(frame.vlan, frame.tagged),
    };
    tx.add(number, queue_of(port, view, &frame.head), pick);
}

/// A guest's receive queue for a frame: by flow, whoever delivers it.
#[inline(always)]
fn queue_of(port: &PortView, view: &View, head: &[u8]) -> u16 {
    match &port.egress {
        Egress::Guest(queues) if queues.len() > 1 => {
            let hash = u64::from(view.flows.hash(head));
            // The high bits choose, without a division (Lemire 2016).
            ((hash * queues.len() as u64) >> 32) as u16
        }
        _ => 0,
    }
}

/// A burst with frames to flood: port by port, each port's frames in the order they came, so
/// that a flow whose destination becomes known in mid-burst keeps its order.
#[cold]
fn deliver_with_flood(
    burst: &Burst,
    ingress: u16,
    view: &View,
    tx: &mut Tx,
    from: &QueueCounters,
    tally: &mut Tally,
) {
    let mut copies = [0u64; BURST];
    for (number, port) in view.ports.iter().enumerate() {
        let (number, Some(port)) = (number as u16, port) else {
            continue;
        };
        tx.used_groups = 0;
        for (index, (frame, copies)) in burst.frames().iter().zip(&mut copies).enumerate() {
            let flooded = frame.verdict == Verdict::Flood && number != ingress;
            let wanted = flooded || frame.verdict == Verdict::Port(number);
            if wanted && port.vlan.carries(frame.vlan) {
                let pick = Pick {
                    frame: index as u8,
                    tag: port.tag_op(frame.vlan, frame.tagged),
                };
                tx.add(number, queue_of(port, view, &frame.head), pick);
                *copies += u64::from(flooded);
            }
        }
        send_groups(burst, view, tx, tally);
    }
    for (frame, copies) in burst.frames().iter().zip(copies) {
        match (frame.verdict, copies) {
            (Verdict::Flood, 0) => {
                from.drop(DropReason::NoDestination, 1);
                tally.dropped += 1;
            }
            (Verdict::Flood, copies) => from.flood_copies.add(copies - 1),
            _ => {}
        }
    }
}

#[inline(always)]
fn send_groups(burst: &Burst, view: &View, tx: &mut Tx, tally: &mut Tally) {
    for index in 0..tx.used_groups {
        let Tx {
            worker,
            scratch,
            nics,
            groups,
            touched,
            faults,
            ..
        } = tx;
        let Some(group) = groups.get(index) else {
            return;
        };
        let Some(port) = view.port(group.port) else {
            return;
        };
        let to = port.counters.at(*worker, group.queue);
        let all = group.picks.len() as u32;
        let delivered = match &port.egress {
            Egress::Guest(queues) => {
                let Some(guest) = queues.get(usize::from(group.queue)) else {
                    return;
                };
                let outcome = deliver_guest(guest, *worker, burst, group, scratch, faults);
                if outcome.touched {
                    touched.push((group.port, group.queue));
                }
                count_guest(&outcome, to)
            }
            Egress::Nic => {
                let outcome = match nics
                    .get_mut(usize::from(group.port))
                    .and_then(Option::as_mut)
                {
                    Some(nic) => deliver_nic(nic, burst, &group.picks, to),
                    None => NicOutcome::default(),
                };
                to.drop(
                    DropReason::PortDown,
                    all - outcome.frames - outcome.full - outcome.small,
                );
                to.tx_frames.add(u64::from(outcome.frames));
                to.tx_bytes.add(outcome.bytes);
                outcome.frames
            }
            Egress::Down => {
                to.drop(DropReason::PortDown, all);
                0
            }
            Egress::Quarantined => {
                to.drop(DropReason::GuestQuarantined, all);
                0
            }
        };
        tally.delivered += u64::from(delivered);
        tally.dropped += u64::from(all - delivered);
    }
}

#[inline(always)]
fn deliver_guest(
    guest: &GuestRx,
    worker: usize,
    burst: &Burst,
    group: &Group,
    scratch: &mut RxScratch,
    faults: &mut Vec<(u16, RingFault)>,
) -> Outcome {
    let outcome = guest.deliver(worker, burst, &group.picks, scratch);
    // A full list means that the control thread has enough to read already.
    if outcome.faulty > 0
        && let Some(fault) = scratch.take_fault()
        && faults.len() < faults.capacity()
    {
        faults.push((group.port, fault));
    }
    outcome
}

#[inline(always)]
fn count_guest(outcome: &Outcome, to: &QueueCounters) -> u32 {
    to.tx_frames.add(u64::from(outcome.frames));
    to.tx_bytes.add(outcome.bytes);
    to.drop(DropReason::GuestRingFull, outcome.full);
    to.drop(DropReason::GuestBufferSmall, outcome.small);
    to.drop(DropReason::GuestRingContended, outcome.contended);
    to.drop(DropReason::GuestQuarantined, outcome.faulty);
    outcome.frames
}

#[inline(always)]
fn deliver_nic(nic: &mut NicTx, burst: &Burst, picks: &[Pick], to: &QueueCounters) -> NicOutcome {
    let (outcome, full) = match nic {
        NicTx::Own(nic) => (nic.deliver(burst, picks), DropReason::NicRingFull),
        NicTx::Remote(way, _) => (way.deliver(burst, picks), DropReason::HandoverFull),
    };
    to.drop(full, outcome.full);
    to.drop(DropReason::NicFrameSmall, outcome.small);
    outcome
}
