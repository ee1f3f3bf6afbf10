//! Flooded frames: policing them, and sending their copies.

use crosspoint_frame::{BURST, Burst, Frame, TxEntry, Verdict, Work, tsc};
use crosspoint_packet::DropReason;

use crate::MAX_PORTS;
use crate::bridge::multicast;
use crate::bridge::storm::FloodKind;
use crate::bridge::suppress;
use crate::egress::deliver::Destinations;
use crate::egress::deliver::TxResult;
use crate::egress::deliver::send_groups;
use crate::egress::tx::Groups;
use crate::egress::tx::Tx;
use crate::groups::stage as groups;
use crate::observe::counters::QueueCounters;
use crate::observe::tap;
use crate::shares::Account;
use crate::snapshot::PortSnapshot;
use crate::snapshot::Snapshot;
use crate::stages::meter::{Policed, Size};

/// A worker's working memory for flooding, allocated once.
pub(crate) struct FloodScratch {
    /// Indices of the burst's flooded frames, ascending.
    frames: Vec<u8>,
    /// By frame: its number of copies, the cost of one, and its flow's hash if it was needed.
    copies: [u32; BURST],
    costs: [u32; BURST],
    hashes: [Option<u32>; BURST],
    /// By frame: the number of the list of ports that it goes to, if not to all of its VLAN.
    targets: [Option<u32>; BURST],
    /// The burst's reports of multicast groups: a bit for each.
    reports: u64,
    /// Ports that already have their copies: a bit for each.
    done: [u64; MAX_PORTS / 64],
    /// The VLAN member that the next flood begins with.
    first: usize,
}

impl Default for FloodScratch {
    fn default() -> FloodScratch {
        FloodScratch {
            frames: Vec::with_capacity(BURST),
            copies: [0; BURST],
            costs: [0; BURST],
            hashes: [None; BURST],
            targets: [None; BURST],
            reports: 0,
            done: [0; MAX_PORTS / 64],
            first: 0,
        }
    }
}

impl FloodScratch {
    /// Collects the flooded frames of a burst.
    fn begin(&mut self, burst: &Burst, view: &Snapshot) {
        self.frames.clear();
        self.done = [0; MAX_PORTS / 64];
        let floods = |frame: &Frame| frame.verdict == Verdict::FLOOD;
        for (index, frame) in burst.frames().iter().enumerate() {
            if floods(frame) {
                // The list has room for all frames of a burst: no allocation.
                self.frames.push(index as u8);
                self.copies[index] = 0;
                self.costs[index] = cost_of(burst, frame);
                self.hashes[index] = None;
                self.targets[index] = view.snooping.as_ref().and_then(|snooping| {
                    let is_report = self.reports >> index & 1 != 0;
                    snooping.multicast.targets(frame, is_report)
                });
                burst.lease().close_frame(index);
            }
        }
    }

    /// Marks a port as having its copies; `false` if it already had them.
    fn take(&mut self, port: u16) -> bool {
        let bit = 1 << (port % 64);
        match self.done.get_mut(usize::from(port) / 64) {
            Some(word) if *word & bit == 0 => {
                *word |= bit;
                true
            }
            _ => false,
        }
    }
}

/// Returns the cost of one copy of a frame.
pub(crate) fn cost_of(burst: &Burst, frame: &Frame) -> u32 {
    let pieces = burst.piece_count(frame) as u32;
    Work::COPY + Work::of_bytes(frame.len) + pieces * Work::PIECE
}

/// Drops frames of a burst that may not be flooded: returned loop probes; frames of a port that has used up its storm
/// limits; and frames of a NIC, which never waits, that has used more than its share of a busy worker.
#[cold]
pub fn police(burst: &mut Burst, ingress: u16, view: &Snapshot, tx: &mut Tx) {
    tx.flood.reports = match &view.snooping {
        Some(snooping) => {
            multicast::listen(burst, ingress, view, |heard| snooping.messages.push(heard))
        }
        None => 0,
    };
    if let Some(probes) = &view.probes {
        probes.take_flooded(burst, ingress);
    }
    let shares = &tx.shares;
    let Some(port) = view.port(ingress) else {
        return;
    };
    if view.suppresses && (view.has_bound_ips(Some(port)) || view.leases.is_some()) {
        let asked = suppress::suppress(burst, ingress, view);
        let counters = port.counters.at(tx.worker, 0);
        counters.neighbors_suppressed.add(asked);
    }
    let is_ahead = shares.is_contended() && shares.is_ahead(Account::From(ingress));
    if port.storm.is_none() && !is_ahead {
        return;
    }
    let now = tsc();
    for (index, frame) in burst.frames_mut().iter_mut().enumerate() {
        if frame.verdict != Verdict::FLOOD {
            continue;
        }
        let kind = FloodKind::of(frame.dst);
        let is_report = tx.flood.reports >> index & 1 != 0;
        let listeners = view.snooping.as_ref().and_then(|snooping| {
            let list = snooping.multicast.targets(frame, is_report)?;
            Some(snooping.multicast.len(list))
        });
        let members = || view.flood_members(frame).len();
        let copies = listeners.unwrap_or_else(members).saturating_sub(1);
        let allowed = port
            .storm
            .as_ref()
            .is_none_or(|storm| storm.allows(kind, copies, now));
        if is_ahead || !allowed {
            frame.verdict = Verdict::drop(kind.drop_reason());
        }
    }
}

/// Sends copies of a burst's flooded frames to every member of their VLAN, port by port. Unicast frames for the same port
/// are sent between them in arrival order, so that a flow whose destination becomes known in mid-burst keeps its order.
/// Copies beyond the burst's cost budget are not made; they count as one dropped copy per frame.
#[cold]
pub(crate) fn send(
    burst: &Burst,
    to: Destinations<'_>,
    tx: &mut Tx,
    from: &QueueCounters,
    tally: &mut TxResult,
) {
    tx.flood.begin(burst, to.view);
    let view = to.view;
    let source = view.port(to.ingress);
    let reaches = |port: &&PortSnapshot| source.is_none_or(|source| source.reaches(port));
    let mut is_whole = true;
    'members: for number in 0..tx.flood.frames.len() {
        let Some(frame) = first_of_vlan(burst, &tx.flood.frames, number) else {
            continue;
        };
        let members = view.flood_members(frame);
        // Begin where the last burst that exceeded its budget ended, so that under constant overload it is not always the
        // same ports that get no copies.
        let first = match members.len() {
            0 => 0,
            len => tx.flood.first % len,
        };
        let rotated = (first..members.len()).chain(0..first);
        for (position, member) in rotated.filter_map(|at| Some((at, members.get(at)?))) {
            if *member == to.ingress || !tx.flood.take(*member) {
                continue;
            }
            if let Some(port) = view.port(*member).filter(|port| reaches(port)) {
                is_whole = send_to(burst, (*member, port), to, tx, from, tally);
            }
            if !is_whole {
                tx.flood.first = position;
                break 'members;
            }
        }
    }
    count(burst, &mut tx.flood, is_whole, from, tally);
}

/// Counts each frame by its kind, its copies, and one dropped copy for all those that were not made.
fn count(
    burst: &Burst,
    flood: &mut FloodScratch,
    is_whole: bool,
    from: &QueueCounters,
    tally: &mut TxResult,
) {
    for index in &flood.frames {
        if let Some(frame) = burst.frames().get(usize::from(*index)) {
            let counter = match FloodKind::of(frame.dst) {
                FloodKind::Broadcast => &from.broadcasts,
                FloodKind::Multicast => &from.multicasts,
                FloodKind::UnknownUnicast => &from.unknown_unicasts,
            };
            counter.add(1);
        }
        let mut copies = u64::from(flood.copies[usize::from(*index) % BURST]);
        let reason = match (copies, is_whole) {
            (_, false) => Some(DropReason::BurstBudget),
            (0, true) if flood.targets[usize::from(*index) % BURST].is_some() => {
                Some(DropReason::NoListener)
            }
            (0, true) => Some(DropReason::NoDestination),
            _ => None,
        };
        if let Some(reason) = reason {
            from.drop(reason, 1);
            tally.dropped += 1;
            copies += 1;
        }
        from.flood_copies.add(copies - 1);
    }
}

/// Returns flooded frame `number`; `None` if an earlier one has the same VLAN, or both are control frames: then the
/// members have already been visited.
fn first_of_vlan<'b>(burst: &'b Burst, frames: &[u8], number: usize) -> Option<&'b Frame> {
    let frame = |index: &u8| burst.frames().get(usize::from(*index));
    let members = |frame: &Frame| match frame.dst.is_link_local_control() {
        true => (frame.bridge, None),
        false => (frame.bridge, Some(frame.vlan)),
    };
    let this = frame(frames.get(number)?)?;
    let mut before = frames.get(..number)?.iter().filter_map(frame);
    (!before.any(|other| members(other) == members(this))).then_some(this)
}

/// Sends one port's copies. Returns `false`, and sends none, if they cost more than is left of the burst's budget.
fn send_to(
    burst: &Burst,
    (number, port): (u16, &PortSnapshot),
    to: Destinations<'_>,
    tx: &mut Tx,
    from: &QueueCounters,
    tally: &mut TxResult,
) -> bool {
    let has_unicast = tx.groups.has(number);
    tx.flood_groups.clear();
    let (mut copies, mut tried) = (0, tx.flood.frames.len());
    // Paid before: copies that are refused cost it too.
    let judged = match port.groups.is_some() {
        true => Work::JUDGED * tried as u32,
        false => 0,
    };
    if tx.work.left() < judged {
        return false;
    }
    tx.work.spend(judged);
    tally.made += judged;
    match has_unicast {
        false => {
            for position in 0..tx.flood.frames.len() {
                let index = usize::from(tx.flood.frames[position]);
                copies += u32::from(add(burst, index, (number, port), to.view, tx, tally));
            }
        }
        true => {
            tried = burst.len();
            for (index, frame) in burst.frames().iter().enumerate() {
                let is_refused = port.is_policed() && tx.refusal(index).is_some();
                let is_its = frame.verdict == Verdict::port(number) && !is_refused;
                if is_its || frame.verdict == Verdict::FLOOD {
                    let added = add(burst, index, (number, port), to.view, tx, tally);
                    copies += u32::from(added && !is_its);
                }
            }
        }
    }
    let costs = flooded(burst, &tx.flood_groups).map(|pick| tx.flood.costs[index_of(pick)]);
    let cost = Work::PORT + Work::TRIED * tried as u32 + costs.sum::<u32>();
    // The rest of the budget stays for unicast frames.
    if tx.work.left() < cost {
        return false;
    }
    tx.work.spend(cost);
    tally.made += cost;
    if copies == 0 {
        return true;
    }
    for pick in flooded(burst, &tx.flood_groups) {
        tx.flood.copies[index_of(pick)] += 1;
    }
    let source = to.view.port(to.ingress);
    let waits = port.is_uplink && source.is_some_and(|source| !source.is_uplink);
    let picks = flooded(burst, &tx.flood_groups);
    let refused = refusal(burst, picks, (number, port), waits, tx);
    if let Some(reason) = refused {
        let counters = port.counters.at(tx.worker, 0);
        counters.drop(reason, copies);
        tally.dropped += u64::from(copies);
        if !to.view.taps.is_empty() {
            let picks = flooded(burst, &tx.flood_groups);
            tap::refused(burst, (picks, reason), number, to.view, tx);
        }
        return true;
    }
    tx.groups.discard(number);
    let groups = std::mem::take(&mut tx.flood_groups);
    let before = tally.work;
    send_groups(burst, &groups, to, tx, from, tally);
    tx.flood_groups = groups;
    tx.work.spend(tally.work - before);
    true
}

/// Returns why these copies, flooded or mirrored, are not sent to a port, if they are not: the port has used more than its
/// share of a busy worker, or its rate. `waits`: their sender waits for the rate, so they pass.
pub(crate) fn refusal(
    burst: &Burst,
    picks: impl Iterator<Item = TxEntry>,
    (number, port): (u16, &PortSnapshot),
    waits: bool,
    tx: &Tx,
) -> Option<DropReason> {
    if tx.shares.is_contended() && tx.shares.is_ahead(Account::To(number)) {
        return Some(DropReason::OverShare);
    }
    let meter = port.meter_in.as_ref().filter(|_| !waits)?;
    let frames = picks.filter_map(|pick| burst.frames().get(index_of(pick)));
    let size = frames.map(Size::of).sum();
    (meter.police(size, tsc()) == Policed::Drop).then_some(DropReason::RateExceeded)
}

/// Returns the picks of flooded frames in these groups.
fn flooded<'g>(burst: &'g Burst, groups: &'g Groups) -> impl Iterator<Item = TxEntry> + Clone + 'g {
    let picks = groups.iter().flat_map(|group| &group.picks);
    picks.copied().filter(|pick| {
        let frame = burst.frames().get(index_of(*pick));
        frame.is_some_and(|frame| frame.verdict == Verdict::FLOOD)
    })
}

/// Returns the index of a pick's frame, below [`BURST`].
fn index_of(pick: TxEntry) -> usize {
    usize::from(pick.frame) % BURST
}

/// Adds a copy of frame `index` for a port; `false` if the port does not carry its VLAN, or its groups refuse the copy.
fn add(
    burst: &Burst,
    index: usize,
    (number, port): (u16, &PortSnapshot),
    view: &Snapshot,
    tx: &mut Tx,
    tally: &mut TxResult,
) -> bool {
    let Some(frame) = burst.frames().get(index) else {
        return false;
    };
    if frame.verdict == Verdict::FLOOD
        && let (Some(list), Some(snooping)) = (tx.flood.targets[index % BURST], &view.snooping)
        && !snooping.multicast.has(list, number)
    {
        return false;
    }
    let tag = match frame.verdict {
        _ if view.has_bridges => port.tag_op_of_bridge(frame),
        Verdict::FLOOD => port.flooded_tag_op(frame),
        _ => port.tag_op(frame),
    };
    let Some(tag) = tag else {
        return false;
    };
    if port.groups.is_some()
        && frame.verdict == Verdict::FLOOD
        && let Some(reason) = groups::flooded((index, frame), port, view, tx.worker, &tx.packets)
    {
        port.counters.at(tx.worker, 0).drop(reason, 1);
        tx.flood.copies[index % BURST] += 1;
        tally.dropped += 1;
        let pick = TxEntry {
            frame: index as u8,
            tag,
        };
        tap::refused(burst, (std::iter::once(pick), reason), number, view, tx);
        return false;
    }
    let mut queue = 0;
    if let Some(queues) = port.spreads() {
        let known = &mut tx.flood.hashes[index % BURST];
        let hash = || view.flows.hash(frame.headers());
        let hash = match frame.verdict {
            Verdict::FLOOD => *known.get_or_insert_with(hash),
            _ => hash(),
        };
        queue = match tx.spread(number, queues) {
            Some(spread) => spread.queue(hash),
            None => queues.place(hash),
        };
    }
    let pick = TxEntry {
        frame: index as u8,
        tag,
    };
    tx.flood_groups.push(number, queue, pick);
    true
}
