//! Mirrors: copies of passing frames for a port of the switch, behind which a guest inspects them, or for a VLAN of an
//! uplink.
//!
//! A mirror copies the frames that are forwarded: those of a burst that has been looked up, less the dropped ones. The
//! copies are made after the burst is delivered, by the worker that has it, with what is left of the burst's budget of work.
//! What the mirror's port has no room for is dropped there and counted as missed.
//!
//! Without mirrors the cost is one check of an empty list per burst.

use std::sync::Arc;

use crosspoint_frame::{Burst, Decision, Frame, HeaderOp, TxEntry, Work};
use crosspoint_packet::DropReason;
use crosspoint_packet::filter::{BYTES_WANTED, Filter};

use crate::MAX_PORTS;
use crate::bridge::flood;
use crate::bridge::vlan::{NO_VLAN, VID_MASK, VlanPolicy};
use crate::egress::deliver::Destinations;
use crate::egress::deliver::TxResult;
use crate::egress::deliver::deliver;
use crate::egress::deliver::send_groups;
use crate::egress::deliver::unicast;
use crate::egress::tx::Tx;
use crate::observe::counters::Counter;
use crate::observe::counters::QueueCounters;
use crate::observe::tap;
use crate::snapshot::PortSnapshot;
use crate::snapshot::Snapshot;

/// Most mirrors of a switch.
pub const MIRRORS_MAX: usize = 4;
/// VLAN numbers, 0 included.
const VLANS: usize = 4096;

/// A set of port numbers.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PortSet([u64; MAX_PORTS / 64]);

impl PortSet {
    /// Adds a port.
    pub fn add(&mut self, port: u16) {
        if let Some(word) = self.0.get_mut(usize::from(port) / 64) {
            *word |= 1 << (port % 64);
        }
    }

    /// Returns whether the port is in the set.
    #[inline(always)]
    pub fn has(&self, port: u16) -> bool {
        let word = self.0.get(usize::from(port) / 64);
        word.is_some_and(|word| word >> (port % 64) & 1 == 1)
    }
}

/// What a mirror copies, and for which port.
#[derive(Clone)]
pub struct MirrorOptions {
    /// Frames from these ports,
    pub received: PortSet,
    /// and frames for these.
    pub sent: PortSet,
    /// Only frames of these VLANs, a bit for each.
    pub vlans: Option<Box<[u64; VLANS / 64]>>,
    /// Only frames that this filter accepts.
    pub filter: Option<Filter>,
    /// The port that gets the copies.
    pub output: u16,
    /// The VLAN of the copies, in a tag. `None`: a copy of a frame in a VLAN has that VLAN's tag.
    pub vlan: Option<u16>,
}

/// One worker's counters of a mirror.
#[derive(Debug, Default)]
#[repr(align(128))]
struct ByWorker {
    copied: Counter,
    missed: Counter,
}

/// A mirror's counters.
#[derive(Debug)]
pub struct MirrorCounters(Box<[ByWorker]>);

impl MirrorCounters {
    /// Creates the counters for a switch with `workers` workers.
    pub fn new(workers: usize) -> Arc<MirrorCounters> {
        Arc::new(MirrorCounters(
            (0..workers).map(|_| ByWorker::default()).collect(),
        ))
    }

    /// Returns how many copies were delivered, and how many were not.
    pub fn get(&self) -> (u64, u64) {
        let sum = |of: fn(&ByWorker) -> &Counter| self.0.iter().map(|w| of(w).get()).sum();
        (sum(|worker| &worker.copied), sum(|worker| &worker.missed))
    }
}

/// A mirror, as workers see it.
pub struct Mirror {
    options: MirrorOptions,
    counters: Arc<MirrorCounters>,
    /// By VLAN: how many of the ports in `sent` carry it; and how many of those are uplinks, which are all that an isolated
    /// port reaches.
    carriers: Box<[u16]>,
    uplinks: Box<[u16]>,
}

impl Mirror {
    /// Creates the mirror for these ports, by number.
    pub fn new(
        options: MirrorOptions,
        ports: &[Option<PortSnapshot>],
        counters: Arc<MirrorCounters>,
    ) -> Mirror {
        let (mut carriers, mut uplinks) = (vec![0u16; VLANS], vec![0u16; VLANS]);
        for (number, port) in (0u16..).zip(ports) {
            let Some(port) = port.as_ref().filter(|_| options.sent.has(number)) else {
                continue;
            };
            let mut count = |vlan: usize| {
                carriers[vlan] += 1;
                uplinks[vlan] += u16::from(port.is_uplink);
            };
            match &*port.vlan {
                VlanPolicy::Access(vlan) => count(usize::from(*vlan) % VLANS),
                policy => (0..VLANS)
                    .filter(|vlan| policy.carries(*vlan as u16))
                    .for_each(count),
            }
        }
        Mirror {
            options,
            counters,
            carriers: carriers.into(),
            uplinks: uplinks.into(),
        }
    }

    /// Returns the port that gets the copies.
    pub fn output(&self) -> u16 {
        self.options.output
    }

    /// Returns whether a frame from port `ingress` is copied.
    fn wants(&self, burst: &Burst, frame: &Frame, ingress: u16, view: &Snapshot) -> bool {
        let options = &self.options;
        let source = view.port(ingress);
        let is_sent = match frame.verdict.decision() {
            // The port gets such a frame itself.
            Decision::Port(port) if port == options.output => return false,
            Decision::Port(port) if unicast(frame, (source, port), view).is_err() => return false,
            Decision::Port(port) => options.sent.has(port),
            Decision::Flood => self.is_flooded_to_one(frame, (ingress, source), view),
            Decision::Drop(_) | Decision::Pending => return false,
        };
        let in_vlan = |vlans: &[u64; VLANS / 64]| {
            let word = vlans.get(usize::from(frame.vlan) / 64);
            word.is_some_and(|word| word >> (frame.vlan % 64) & 1 == 1)
        };
        (is_sent || options.received.has(ingress))
            && options.vlans.as_deref().is_none_or(in_vlan)
            && options.filter.as_ref().is_none_or(|filter| {
                let mut headers = [0; BYTES_WANTED];
                let len = burst.read_beginning(frame, &mut headers);
                filter.matches_beginning(headers.get(..len).unwrap_or(&[]), frame.len as usize)
            })
    }

    /// Returns whether a port in `sent` gets a copy of this flooded frame.
    fn is_flooded_to_one(
        &self,
        frame: &Frame,
        (ingress, source): (u16, Option<&PortSnapshot>),
        view: &Snapshot,
    ) -> bool {
        let Some(source) = source else {
            return false;
        };
        if view.has_bridges || view.snooping.is_some() {
            // The counts are of all bridges together, and of whole VLANs.
            let list = view.snooping.as_ref().and_then(|snooping| {
                let list = snooping.multicast.targets(frame, false)?;
                Some((&snooping.multicast, list))
            });
            let listens = |port| list.is_none_or(|(multicast, list)| multicast.has(list, port));
            let mut ports = view.flooded_to(ingress, (frame.bridge, frame.vlan));
            return ports.any(|port| self.options.sent.has(port) && listens(port));
        }
        let counts = match source.is_isolated {
            true => &self.uplinks,
            false => &self.carriers,
        };
        let count = counts.get(usize::from(frame.vlan)).copied().unwrap_or(0);
        let is_counted = self.options.sent.has(ingress)
            && source.vlan.carries(frame.vlan)
            && (source.is_uplink || !source.is_isolated);
        count > u16::from(is_counted)
    }

    /// Returns the tag operation for a copy of the frame.
    fn tag_op(&self, frame: &Frame) -> HeaderOp {
        let is_in_vlan = self.options.vlan.is_some() || frame.vlan != NO_VLAN;
        match is_in_vlan && !frame.tagged && !frame.has_bridge_tag {
            true => HeaderOp::Push,
            false => HeaderOp::Keep,
        }
    }

    /// Places the chosen frames in the mirror's own VLAN, if it has one, with their priority.
    fn place(&self, burst: &mut Burst, frames: u64) {
        let Some(vlan) = self.options.vlan else {
            return;
        };
        for (index, frame) in burst.frames_mut().iter_mut().enumerate() {
            if frames >> index & 1 == 0 {
                continue;
            }
            frame.tci = (frame.tci & !VID_MASK) | vlan;
            // `parse` has checked that there is a tag, so the head has 18 bytes.
            if frame.has_bridge_tag {
                frame.head[12..14].copy_from_slice(&[0x81, 0x00]);
            }
            if frame.tagged || frame.has_bridge_tag {
                frame.head[14..16].copy_from_slice(&frame.tci.to_be_bytes());
            }
        }
    }

    fn count(&self, worker: usize, of: impl Fn(&ByWorker) -> &Counter, copies: u64) {
        if let Some(worker) = self.counters.0.get(worker) {
            of(worker).add(copies);
        }
    }
}

/// The frames of a burst that each mirror copies, by bits.
type Chosen = [u64; MIRRORS_MAX];

/// Delivers a burst that has been looked up, then sends the mirrors' copies: they use what is left of its budget of work.
#[cold]
#[inline(never)]
pub(crate) fn deliver_with_copies(
    burst: &mut Burst,
    ingress: u16,
    view: &Snapshot,
    tx: &mut Tx,
    from: &QueueCounters,
) {
    let chosen = choose(burst, ingress, view);
    deliver(burst, ingress, view, tx, from);
    // What a mirror sends through an uplink is policed there: the sender neither waits nor pays for it. Its own NIC queue
    // does not take it either, since its buffers would wait for that.
    tx.mirror_use.begin();
    std::mem::swap(&mut tx.nic_use, &mut tx.mirror_use);
    let direct = tx.direct.take();
    let to = Destinations {
        view,
        joins: view.port(ingress).is_some_and(|port| port.joins),
        ingress,
    };
    let mut tally = TxResult::default();
    // Mirrors with a VLAN of their own change the frames' tags, so they come last.
    for has_vlan in [false, true] {
        let mirrors = chosen.into_iter().zip(&view.mirrors);
        let mirrors = mirrors.filter(|(_, mirror)| mirror.options.vlan.is_some() == has_vlan);
        for (frames, mirror) in mirrors {
            let port = view.port(mirror.output()).filter(|_| frames != 0);
            if let Some(port) = port {
                mirror.place(burst, frames);
                send_one(burst, (frames, mirror, port), to, tx, from, &mut tally);
            }
        }
    }
    tx.direct = direct;
    std::mem::swap(&mut tx.nic_use, &mut tx.mirror_use);
    tx.nic_use.copies += tx.mirror_use.copies;
    tx.nic_use.is_used |= tx.mirror_use.is_used;
    tx.note_mirrored(&tally);
    from.drop(DropReason::BadOffload, tally.refused);
    from.delivered_copies.add(tally.delivered);
    from.dropped_copies.add(tally.dropped);
}

/// Chooses the frames that mirrors copy. Their memory stays where it is: it is needed twice.
fn choose(burst: &Burst, ingress: u16, view: &Snapshot) -> Chosen {
    let mut chosen = [0; MIRRORS_MAX];
    for (frames, mirror) in chosen.iter_mut().zip(&view.mirrors) {
        if mirror.output() == ingress || view.port(mirror.output()).is_none() {
            continue;
        }
        for (index, frame) in burst.frames().iter().enumerate() {
            if mirror.wants(burst, frame, ingress, view) {
                burst.lease().close_frame(index);
                // A burst has no more frames than the mask has bits.
                *frames |= 1 << index;
            }
        }
    }
    chosen
}

/// Sends one mirror's copies.
fn send_one(
    burst: &Burst,
    (frames, mirror, port): (u64, &Mirror, &PortSnapshot),
    to: Destinations<'_>,
    tx: &mut Tx,
    from: &QueueCounters,
    tally: &mut TxResult,
) {
    let (copies, cost) = collect(burst, (frames, mirror, port), to, tx);
    from.mirror_copies.add(u64::from(frames.count_ones()));
    let before = (tally.delivered, tally.dropped);
    let left = frames.count_ones() - copies;
    from.drop(DropReason::BurstBudget, left);
    tally.dropped += u64::from(left);
    let number = mirror.output();
    let picks = || {
        let groups = tx.flood_groups.iter();
        groups.flat_map(|group| &group.picks).copied()
    };
    match flood::refusal(burst, picks(), (number, port), false, tx) {
        Some(reason) => {
            port.counters.at(tx.worker, 0).drop(reason, copies);
            tally.dropped += u64::from(copies);
            if !to.view.taps.is_empty() {
                tap::refused(burst, (picks(), reason), number, to.view, tx);
            }
        }
        None => {
            tx.work.spend(cost);
            tally.made += cost;
            let groups = std::mem::take(&mut tx.flood_groups);
            let work = tally.work;
            send_groups(burst, &groups, to, tx, from, tally);
            tx.flood_groups = groups;
            tx.work.spend(tally.work - work);
        }
    }
    let worker = tx.worker;
    mirror.count(worker, |of| &of.copied, tally.delivered - before.0);
    mirror.count(worker, |of| &of.missed, tally.dropped - before.1);
}

/// Collects the chosen frames, as many as the burst's budget allows. Returns their number and the cost of the copies.
fn collect(
    burst: &Burst,
    (frames, mirror, port): (u64, &Mirror, &PortSnapshot),
    to: Destinations<'_>,
    tx: &mut Tx,
) -> (u32, u32) {
    tx.flood_groups.clear();
    let (mut copies, mut cost) = (0, Work::PORT);
    let chosen = burst.frames().iter().enumerate();
    for (index, frame) in chosen.filter(|(index, _)| frames >> index & 1 == 1) {
        let more = cost + Work::TRIED + flood::cost_of(burst, frame);
        if tx.work.left() < more {
            break;
        }
        cost = more;
        let mut queue = 0;
        if let Some(queues) = port.spreads() {
            let hash = to.view.flows.hash(frame.headers());
            queue = match tx.spread(mirror.output(), queues) {
                Some(spread) => spread.queue(hash),
                None => queues.place(hash),
            };
        }
        let pick = TxEntry {
            frame: index as u8,
            tag: mirror.tag_op(frame),
        };
        tx.flood_groups.push(mirror.output(), queue, pick);
        copies += 1;
    }
    (copies, cost)
}
