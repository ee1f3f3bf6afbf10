//! The last stage: every copy goes to its port, or is counted as dropped.

use std::ops::Range;
use std::sync::Arc;

use crosspoint_frame::{BURST, Burst, Decision, Frame, Pick, TagOp, Verdict};
use crosspoint_packet::DropReason;
use crosspoint_packet::segment::{GSO_TCPV4, GSO_TCPV6};
use crosspoint_vring::{GuestRx, Outcome, RingFault, RxScratch};
use crosspoint_xsk::{Flushed, Handover, NicOutcome, XskTx};

use crate::MAX_PORTS;
use crate::calling::Calling;
use crate::counters::QueueCounters;
use crate::direct::Direct;
use crate::joins::{Joiner, Takes};
use crate::segments::Segmenter;
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
    segmenter: Segmenter,
    joiner: Joiner,
    /// Of the guest whose burst is delivered, if it has a NIC's queue of its own.
    direct: Option<Box<Direct>>,
    /// Whether copies of the last burst went to a NIC.
    used_nics: bool,
}

/// What became of one burst's copies; all came from one queue.
#[derive(Clone, Copy, Default)]
struct Tally {
    delivered: u64,
    dropped: u64,
    /// Of those: large frames that a NIC port's interface does not take, as they were when it had them.
    refused: u32,
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
            segmenter: Segmenter::default(),
            joiner: Joiner::default(),
            direct: None,
            used_nics: false,
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
        for (number, queue) in self.touched.drain(..) {
            if let Some(port) = view.port(number)
                && let Egress::Guest(queues) = &port.egress
                && let Some(guest) = queues.get(usize::from(queue))
            {
                guest.prefetch_descriptors(BURST);
                calling.enter(number);
                if guest.flush(self.worker) {
                    port.counters.at(self.worker, queue).calls.add(1);
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
        let group = self.groups.first()?;
        (self.used_groups > 0).then_some((group.port, group.queue))
    }

    /// Whether copies of the last burst went to a NIC.
    pub fn used_nics(&self) -> bool {
        self.used_nics
    }

    /// Whether other workers have left frames for this one's NIC queues.
    pub fn has_handovers(&self) -> bool {
        self.nics
            .iter()
            .flatten()
            .any(|nic| matches!(&**nic, NicTx::Own(nic) if nic.has_handovers()))
    }

    /// The group of copies for a queue, made if there is none.
    fn group(&mut self, port: u16, queue: u16) -> usize {
        let known = self.groups.iter().take(self.used_groups);
        let is_it = |group: &Group| (group.port, group.queue) == (port, queue);
        if let Some(index) = known.enumerate().find_map(|(i, g)| is_it(g).then_some(i)) {
            return index;
        }
        let index = self.used_groups;
        // A burst has no more frames than there are groups.
        if let Some(group) = self.groups.get_mut(index) {
            (group.port, group.queue) = (port, queue);
            group.picks.clear();
            self.used_groups += 1;
        }
        index
    }

    /// Adds copies of frames that follow each other in the burst, for one port.
    #[inline(always)]
    fn push_run(
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
        if port.spreads() {
            for index in run {
                if let Some(frame) = burst.frames().get(index) {
                    let group = self.group(number, queue_of(port, view, frame));
                    self.push(group, pick(index));
                }
            }
            return;
        }
        let group = self.group(number, 0);
        // At most one copy of each frame goes to a queue, so there is room: no allocation.
        if let Some(group) = self.groups.get_mut(group) {
            group.picks.extend(run.map(pick));
        }
    }

    #[inline(always)]
    fn push(&mut self, group: usize, pick: Pick) {
        // At most one copy of each frame goes to a queue, so there is room: no allocation.
        if let Some(group) = self.groups.get_mut(group) {
            group.picks.push(pick);
        }
    }
}

/// Delivers a burst that came in on `ingress`, whose counters are `from`: groups it by queue,
/// then makes one reservation, one run of copies and one publication per queue.
#[inline(always)]
pub fn deliver(burst: &Burst, ingress: u16, view: &View, tx: &mut Tx, from: &QueueCounters) {
    let (mut flood, mut dropped) = (false, 0);
    (tx.used_groups, tx.used_nics) = (0, false);
    let frames = burst.frames();
    let bytes: u64 = frames.iter().map(|frame| u64::from(frame.len)).sum();
    let mut rest = 0..frames.len();
    // Run by run: frames that follow each other and are the same in all that decides are decided on once.
    while let Some(first) = frames.get(rest.start) {
        let route = first.route();
        let same = frames.iter().skip(rest.start + 1);
        let len = 1 + same.take_while(|frame| frame.route() == route).count();
        let run = rest.start..rest.start + len;
        rest.start = run.end;
        let reason = match first.verdict.decision() {
            Decision::Port(number) => match unicast(first, number, view) {
                Ok((port, tag)) => {
                    tx.push_run(number, port, tag, run, burst, view);
                    continue;
                }
                Err(reason) => reason,
            },
            Decision::Flood => {
                flood = true;
                continue;
            }
            Decision::Drop(reason) => reason,
            // Nobody decided: `lookup` leaves none so.
            Decision::Pending => DropReason::NoDestination,
        };
        from.drop(reason, len as u32);
        dropped += len as u64;
    }
    let mut tally = Tally {
        dropped,
        ..Tally::default()
    };
    let joins = view.port(ingress).is_some_and(|port| port.joins);
    let to = Destinations { view, joins };
    if flood {
        deliver_with_flood(burst, ingress, to, tx, from, &mut tally);
    } else {
        send_groups(burst, to, tx, from, &mut tally);
    }
    from.drop(DropReason::BadOffload, tally.refused);
    from.rx_frames.add(burst.len() as u64);
    from.rx_bytes.add(bytes);
    from.bursts.add(1);
    from.delivered_copies.add(tally.delivered);
    from.dropped_copies.add(tally.dropped);
}

/// The port that a frame goes to, and what becomes of its tag.
#[inline(always)]
fn unicast<'v>(
    frame: &Frame,
    number: u16,
    view: &'v View,
) -> Result<(&'v PortView, TagOp), DropReason> {
    // Learned on a port that is gone since; ageing takes the entry.
    let port = view.port(number).ok_or(DropReason::NoDestination)?;
    let tag = port.tag_op(frame).ok_or(DropReason::VlanNotCarried)?;
    Ok((port, tag))
}

/// A guest's receive queue for a frame: by flow, whoever delivers it.
#[inline(always)]
fn queue_of(port: &PortView, view: &View, frame: &Frame) -> u16 {
    match &port.egress {
        Egress::Guest(queues) if queues.len() > 1 => {
            let hash = u64::from(view.flows.hash(frame.headers()));
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
    to: Destinations<'_>,
    tx: &mut Tx,
    from: &QueueCounters,
    tally: &mut Tally,
) {
    // Of some frames several copies are made, so the memory of none may be taken.
    burst.lease().close();
    let view = to.view;
    let mut copies = [0u64; BURST];
    for (number, port) in view.ports.iter().enumerate() {
        let (number, Some(port)) = (number as u16, port) else {
            continue;
        };
        tx.used_groups = 0;
        for (index, (frame, copies)) in burst.frames().iter().zip(&mut copies).enumerate() {
            let flooded = frame.verdict == Verdict::FLOOD && number != ingress;
            let wanted = flooded || frame.verdict == Verdict::port(number);
            if wanted && let Some(tag) = port.tag_op(frame) {
                let pick = Pick {
                    frame: index as u8,
                    tag,
                };
                let group = tx.group(number, queue_of(port, view, frame));
                tx.push(group, pick);
                *copies += u64::from(flooded);
            }
        }
        send_groups(burst, to, tx, from, tally);
    }
    for (frame, copies) in burst.frames().iter().zip(copies) {
        match (frame.verdict, copies) {
            (Verdict::FLOOD, 0) => {
                from.drop(DropReason::NoDestination, 1);
                tally.dropped += 1;
            }
            (Verdict::FLOOD, copies) => from.flood_copies.add(copies - 1),
            _ => {}
        }
    }
}

/// Where copies go, and whether segments are joined on the way.
#[derive(Clone, Copy)]
struct Destinations<'v> {
    view: &'v View,
    joins: bool,
}

#[inline(always)]
fn send_groups(
    burst: &Burst,
    to: Destinations<'_>,
    tx: &mut Tx,
    from: &QueueCounters,
    tally: &mut Tally,
) {
    for index in 0..tx.used_groups {
        let Tx {
            worker,
            scratch,
            nics,
            groups,
            touched,
            faults,
            segmenter,
            joiner,
            direct,
            used_nics,
            ..
        } = tx;
        let Some(group) = groups.get(index) else {
            return;
        };
        let Some(port) = to.view.port(group.port) else {
            return;
        };
        let mut way = Way {
            worker: *worker,
            port,
            number: group.port,
            queue: group.queue,
            to: port.counters.at(*worker, group.queue),
            scratch,
            nics,
            touched,
            faults,
            direct,
            used_nics,
        };
        if burst.has_large() {
            send_cut(&mut way, segmenter, burst, &group.picks, from, tally);
        } else if to.joins && group.picks.len() > 1 {
            send_joined(&mut way, joiner, burst, &group.picks, from, tally);
        } else {
            way.send(burst, &group.picks, tally);
        }
    }
}

/// Sends copies of segments that came off a wire, joined where the receiver takes that.
fn send_joined(
    way: &mut Way,
    joiner: &mut Joiner,
    burst: &Burst,
    picks: &[Pick],
    from: &QueueCounters,
    tally: &mut Tally,
) {
    let takes = way.takes_large();
    let joined = match takes.v4 || takes.v6 {
        true => joiner.join(burst, picks, takes),
        false => None,
    };
    match joined {
        None => way.send(burst, picks, tally),
        Some((large, fewer)) => {
            from.joined_copies.add((picks.len() - fewer.len()) as u64);
            way.send(large, fewer, tally);
        }
    }
}

/// Sends copies of which some may have to be cut, in the order they came.
#[cold]
fn send_cut(
    way: &mut Way,
    segmenter: &mut Segmenter,
    burst: &Burst,
    picks: &[Pick],
    from: &QueueCounters,
    tally: &mut Tally,
) {
    let mut whole = 0;
    for (index, pick) in picks.iter().enumerate() {
        let Some(frame) = burst.frames().get(usize::from(pick.frame)) else {
            continue;
        };
        if way.takes(burst, frame, pick.tag) {
            continue;
        }
        way.send(burst, picks.get(whole..index).unwrap_or(&[]), tally);
        whole = index + 1;
        let Ok(plan) = segmenter.begin(burst, frame) else {
            from.drop(DropReason::BadOffload, 1);
            tally.dropped += 1;
            continue;
        };
        let mut made = 0;
        while made < plan.count() {
            let (segments, picks) = segmenter.make(&plan, (burst, frame), pick.tag, made);
            if picks.is_empty() {
                break;
            }
            made += picks.len();
            way.send(segments, picks, tally);
        }
        from.segment_copies.add(plan.count() as u64 - 1);
        // A frame in thousands of pieces, of which the rest fits no burst.
        let rest = (plan.count() - made) as u32;
        from.drop(DropReason::BadOffload, rest);
        tally.dropped += u64::from(rest);
    }
    way.send(burst, picks.get(whole..).unwrap_or(&[]), tally);
}

/// The way to one queue of one port.
struct Way<'a> {
    worker: usize,
    port: &'a PortView,
    number: u16,
    queue: u16,
    to: &'a QueueCounters,
    scratch: &'a mut RxScratch,
    nics: &'a mut [Option<Box<NicTx>>],
    touched: &'a mut Vec<(u16, u16)>,
    faults: &'a mut Vec<(u16, RingFault)>,
    direct: &'a mut Option<Box<Direct>>,
    used_nics: &'a mut bool,
}

impl Way<'_> {
    /// Whether a frame can go there as it is; where nobody takes it, it need not be cut either.
    fn takes(&self, burst: &Burst, frame: &Frame, tag: TagOp) -> bool {
        let gso_type = frame.offload.gso_type;
        gso_type == 0
            || match &self.port.egress {
                Egress::Guest(queues) => queues
                    .get(usize::from(self.queue))
                    .is_none_or(|guest| guest.takes(gso_type)),
                Egress::Nic => self
                    .own_nic()
                    .is_some_and(|nic| nic.takes(burst, frame, tag)),
                Egress::Down | Egress::Quarantined => true,
            }
    }

    /// The worker's own queue of a NIC, if copies go there.
    fn own_nic(&self) -> Option<&XskTx> {
        let leads = |direct: &Direct| direct.leads_to(self.number);
        let nic = self.nics.get(usize::from(self.number))?;
        match nic.as_deref()? {
            NicTx::Own(nic) if !self.direct.as_deref().is_some_and(leads) => Some(nic),
            _ => None,
        }
    }

    /// Which large frames of TCP are taken there.
    fn takes_large(&self) -> Takes {
        if let Egress::Nic = &self.port.egress {
            let whole = self.own_nic().is_some_and(XskTx::sends_large);
            return Takes {
                v4: whole,
                v6: whole,
            };
        }
        let guest = match &self.port.egress {
            Egress::Guest(queues) => queues.get(usize::from(self.queue)),
            _ => None,
        };
        let takes = |gso_type| guest.is_some_and(|guest| guest.takes(gso_type));
        Takes {
            v4: takes(GSO_TCPV4),
            v6: takes(GSO_TCPV6),
        }
    }

    /// Sends copies, and counts them.
    #[inline(always)]
    fn send(&mut self, burst: &Burst, picks: &[Pick], tally: &mut Tally) {
        let (all, to) = (picks.len() as u32, self.to);
        let delivered = match &self.port.egress {
            Egress::Guest(queues) => match queues.get(usize::from(self.queue)) {
                Some(guest) => {
                    let outcome = self.deliver_guest(guest, burst, picks);
                    count_guest(&outcome, to)
                }
                None => {
                    to.drop(DropReason::PortDown, all);
                    0
                }
            },
            Egress::Nic => {
                *self.used_nics = true;
                let outcome = match self.direct.as_deref() {
                    Some(direct) if direct.leads_to(self.number) => {
                        self.deliver_direct(burst, picks)
                    }
                    _ => self.deliver_nic(burst, picks),
                };
                to.drop(
                    DropReason::PortDown,
                    all - outcome.frames - outcome.dropped(),
                );
                tally.refused += outcome.refused;
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

    #[inline(always)]
    fn deliver_nic(&mut self, burst: &Burst, picks: &[Pick]) -> NicOutcome {
        let nic = self.nics.get_mut(usize::from(self.number));
        match nic.and_then(Option::as_mut) {
            Some(nic) => deliver_nic(nic, burst, picks, self.to),
            None => NicOutcome::default(),
        }
    }

    /// Through the guest's own queue; what cannot go there, as everybody's.
    #[inline(never)]
    fn deliver_direct(&mut self, burst: &Burst, picks: &[Pick]) -> NicOutcome {
        let Some(mut direct) = self.direct.take() else {
            return NicOutcome::default();
        };
        let (sent, rest) = direct.deliver(burst, picks);
        self.to.drop(DropReason::NicRingFull, sent.full);
        self.to.drop(DropReason::MtuExceeded, sent.long);
        let mut outcome = match rest {
            [] => NicOutcome::default(),
            rest => self.deliver_nic(burst, rest),
        };
        *self.direct = Some(direct);
        outcome.add(sent);
        outcome
    }

    #[inline(always)]
    fn deliver_guest(&mut self, guest: &GuestRx, burst: &Burst, picks: &[Pick]) -> Outcome {
        let outcome = guest.deliver(self.worker, burst, picks, self.scratch);
        if outcome.touched {
            self.touched.push((self.number, self.queue));
        }
        // A full list means that the control thread has enough to read already.
        if outcome.faulty > 0
            && let Some(fault) = self.scratch.take_fault()
            && self.faults.len() < self.faults.capacity()
        {
            self.faults.push((self.number, fault));
        }
        outcome
    }
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
    to.drop(DropReason::MtuExceeded, outcome.long);
    outcome
}
