//! Explains what the switch does with a frame, and why. Nothing is sent or learned.
//!
//! The frame goes through the same stages as one on the data path, and the same functions choose its ports, queues and
//! tags. What is only known when a frame is sent stays open: whether a ring has room, and what a NIC's interface takes.

use crosspoint_frame::{Burst, Decision, DerivedBurst, Frame, HeaderOp, Offload, Verdict};
use crosspoint_packet::checksum::Partial;
use crosspoint_packet::segment::{GsoRequest, HEADERS_MAX, Segmentation, Whole};
use crosspoint_packet::{DropReason, Mac};

use crate::bridge::fdb::Learned;
use crate::bridge::multicast;
use crate::bridge::several::DEFAULT_BRIDGE;
use crate::bridge::suppress;
use crate::bridge::vlan::NO_VLAN;
use crate::bridge::vlan::VlanPolicy;
use crate::egress::deliver::unicast;
use crate::egress::queue::is_one_segment;
use crate::groups::stage as groups;
use crate::groups::{Direction, Judgement};
use crate::observe::tap::Fate;
use crate::snapshot::Egress;
use crate::snapshot::PortSnapshot;
use crate::snapshot::Snapshot;
use crate::stages::admit;
use crate::stages::destination;
use crate::stages::parse;

/// A frame to be explained.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'b> {
    /// The ingress port.
    pub ingress: u16,
    /// Its first bytes. For a large frame, those of all its headers.
    pub bytes: &'b [u8],
    /// Its length, bytes.
    pub len: u32,
    /// Offloads still to be done.
    pub offload: Offload,
    /// Its result, if a tap captured it. Its source has been learned since then, and the tables may have changed.
    pub fate: Option<Fate>,
}

/// Result of a frame, stage by stage. Stages that it does not reach are `None` or empty.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Explained {
    /// Its parsed link header.
    pub link: Option<Link>,
    /// The VLAN that it is placed in; 0 for none.
    pub vlan: Option<u16>,
    /// The number of the bridge that it is placed in.
    pub bridge: u8,
    /// What the ingress port's groups decide on it, if it has groups.
    pub judgement: Option<Judgement>,
    /// Result of learning its source, and how many ticks ago the source was last seen, if ever.
    pub source: Option<(Learned, Option<u8>)>,
    /// Its destination.
    pub destination: Option<Destination>,
    /// Why it is dropped as a whole.
    pub dropped: Option<DropReason>,
    /// Its copies, with an entry also for each port that gets none.
    pub copies: Vec<EgressDecision>,
}

/// A link header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Link {
    /// Destination address.
    pub dst: Mac,
    /// Source address.
    pub src: Mac,
    /// Tag control information as received, if there is a tag.
    pub tci: Option<u16>,
    /// Whether there is another tag behind it.
    pub stacked: bool,
}

/// Destination of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Destination {
    /// The port where its destination was last seen, and how many ticks ago.
    Port(u16, u8),
    /// The port that the requested IP address is bound to.
    BoundPort(u16),
    /// All ports of the VLAN: a broadcast or multicast.
    Group,
    /// All ports of the VLAN: the address was not seen in this VLAN.
    Unknown,
    /// None: a link-local control frame.
    LinkLocal,
}

/// One copy, for one port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EgressDecision {
    /// The port.
    pub port: u16,
    /// Tag operation. `None` if the port does not carry the VLAN or the tag cannot be removed, so that there is no copy.
    pub tag: Option<HeaderOp>,
    /// The port's queue.
    pub queue: u16,
    /// Number of queues to choose from.
    pub queues: u16,
    /// The flow's hash. Its high bits choose the queue.
    pub hash: u32,
    /// How a large frame is handled.
    pub large: Large,
    /// What the port's groups decide on it, if it has groups.
    pub judgement: Option<Judgement>,
    /// Why the copy is dropped, if that is known before it is made.
    pub dropped: Option<DropReason>,
}

/// How a large frame is handled for one port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Large {
    /// Not a large frame.
    No,
    /// The guest takes such frames.
    Whole,
    /// It is cut into this many segments.
    Cut(usize),
    /// It would have to be cut, but its headers and its request contradict each other.
    Uncuttable,
    /// The NIC port's interface decides.
    Interface,
}

/// Explains a frame in the switch described by `view`, at `tick`.
pub fn explain(specimen: Packet<'_>, view: &Snapshot, tick: u8) -> Explained {
    let mut explained = Explained {
        link: None,
        vlan: None,
        bridge: DEFAULT_BRIDGE,
        judgement: None,
        source: None,
        destination: None,
        dropped: None,
        copies: Vec::new(),
    };
    let mut parts = DerivedBurst::default();
    let burst = burst_of(specimen, view, &mut parts);
    parse(burst);
    let has_link = specimen.len as usize >= crosspoint_packet::ETHERNET_LEN;
    if let (true, Some(frame)) = (has_link, burst.frames().first()) {
        explained.link = Some(Link {
            dst: frame.dst,
            src: frame.src,
            tci: frame.tagged.then_some(frame.tci),
            stacked: frame.stacked,
        });
    }
    // On an unaware port `admit` also places dropped frames, so check first that `parse` has not dropped it.
    if pending(burst) {
        admit(burst, specimen.ingress, view);
    }
    // What groups decided on a frame that was captured is not known: connections have changed since.
    let is_new = specimen.fate.is_none();
    if is_new && pending(burst) {
        let sent = groups::explain(burst, specimen.ingress, view, Direction::Out);
        explained.judgement = sent;
        if let (Some(Judgement::Denied(reason)), Some(frame)) =
            (sent, burst.frames_mut().first_mut())
        {
            frame.drop_for(reason);
        }
    }
    let is_pending = pending(burst);
    if let Some(frame) = burst.frames_mut().first_mut() {
        if specimen.fate.is_some() {
            frame.offload = specimen.offload;
        }
        if is_pending {
            look_up(frame, specimen, view, tick, &mut explained);
        }
    }
    if is_new && view.suppresses {
        suppress::suppress(burst, specimen.ingress, view);
    }
    // A request whose flood was suppressed.
    if let Some(frame) = burst.frames().first()
        && let (Decision::Port(port), true) = (frame.verdict.decision(), frame.dst.is_group())
    {
        explained.destination = Some(Destination::BoundPort(port));
    }
    let reports = match view.snooping {
        Some(_) => multicast::listen(burst, specimen.ingress, view, |_| ()),
        None => 0,
    };
    if let Some(frame) = burst.frames().first() {
        decide(frame, specimen, view, reports != 0, &mut explained);
    }
    if is_new {
        for copy in explained
            .copies
            .iter_mut()
            .filter(|copy| copy.tag.is_some())
        {
            copy.judgement = groups::explain(burst, copy.port, view, Direction::In);
            if let (Some(Judgement::Denied(reason)), None) = (copy.judgement, copy.dropped) {
                copy.dropped = Some(reason);
            }
        }
    }
    explained
}

/// Returns a burst with this frame alone, without its payload: no stage reads that.
fn burst_of<'p>(
    specimen: Packet<'_>,
    view: &Snapshot,
    parts: &'p mut DerivedBurst,
) -> &'p mut Burst {
    let headers = specimen.bytes.len().min(HEADERS_MAX);
    // The offload request of a frame that was forwarded was already checked with all of its headers.
    let was_checked = specimen
        .fate
        .is_some_and(|fate| fate != Fate::Dropped(DropReason::BadOffload));
    let offload = match was_checked {
        true => Offload::default(),
        false => specimen.offload,
    };
    parts.push_own(specimen.bytes.get(..headers).unwrap_or(&[]), offload);
    let burst = parts.burst_mut();
    if let Some(frame) = burst.frames_mut().first_mut() {
        frame.len = specimen.len;
        take_back_placement(frame, specimen, view);
    }
    burst
}

/// Restores a priority tag. Once a frame is placed, its priority tag carries its VLAN; an access port admits no other
/// tag.
fn take_back_placement(frame: &mut Frame, specimen: Packet<'_>, view: &Snapshot) {
    let turned_away = Some(Fate::Dropped(DropReason::VlanNotCarried));
    let is_in = specimen.fate.is_some() && specimen.fate != turned_away;
    let policy = view.port(specimen.ingress).map(|port| &*port.vlan);
    // There, a tag may be another bridge's.
    let has_tags = view
        .port(specimen.ingress)
        .is_some_and(|port| port.tags.is_some());
    if is_in
        && !has_tags
        && matches!(policy, Some(VlanPolicy::Access(_)))
        && frame.head[12..14] == [0x81, 0]
    {
        frame.head[14] &= 0xf0;
        frame.head[15] = 0;
    }
}

fn pending(burst: &Burst) -> bool {
    let frame = burst.frames().first();
    frame.is_some_and(|frame| frame.verdict == Verdict::PENDING)
}

/// Like the lookup stage, but nothing is learned.
fn look_up(
    frame: &mut Frame,
    specimen: Packet<'_>,
    view: &Snapshot,
    tick: u8,
    explained: &mut Explained,
) {
    let ingress = specimen.ingress;
    explained.vlan = Some(frame.vlan);
    explained.bridge = frame.bridge;
    let Some(fdb) = view.fdb_of(frame.bridge) else {
        return;
    };
    let (src, dst) = (
        fdb.key(frame.src, frame.vlan),
        fdb.key(frame.dst, frame.vlan),
    );
    let quotas = |port| view.port(port).map(|port| &*port.quota);
    let is_aware = view.port(ingress).is_some_and(PortSnapshot::is_vlan_aware);
    let is_aware = is_aware && !frame.has_bridge_tag;
    let learned = match view.is_free_for(frame.src, (frame.bridge, frame.vlan), ingress) {
        true if is_aware && frame.vlan == NO_VLAN => Learned::Known,
        true => fdb.would_learn(src, ingress, quotas),
        false => Learned::NotAllowed,
    };
    let age = |key| fdb.last_seen(key, tick).map(|(_, age)| age);
    explained.source = Some((learned, age(src)));
    // The source is learned before the destination is looked up, and they may be equal.
    let is_learned = matches!(learned, Learned::Known | Learned::New | Learned::Moved(_));
    frame.verdict = match specimen.fate {
        Some(Fate::Port(port)) => Verdict::port(port),
        Some(Fate::Flood) => Verdict::FLOOD,
        Some(Fate::Dropped(reason)) => Verdict::drop(reason),
        _ if learned == Learned::NotAllowed => Verdict::drop(DropReason::SourceNotAllowed),
        _ if learned == Learned::Refused && view.drops_beyond_limit(ingress) => {
            Verdict::drop(DropReason::MacLimit)
        }
        _ if frame.src == frame.dst && is_learned => Verdict::drop(DropReason::Hairpin),
        _ => destination((view, fdb), dst, frame, ingress),
    };
    explained.destination = match frame.verdict.decision() {
        Decision::Port(port) => Some(Destination::Port(port, age(dst).unwrap_or(0))),
        Decision::Drop(DropReason::LinkLocal) => Some(Destination::LinkLocal),
        Decision::Drop(DropReason::Hairpin) => {
            Some(Destination::Port(ingress, age(dst).unwrap_or(0)))
        }
        Decision::Drop(_) | Decision::Pending => None,
        Decision::Flood if frame.dst.is_group() => Some(Destination::Group),
        Decision::Flood => Some(Destination::Unknown),
    };
}

/// Like `deliver`.
fn decide(
    frame: &Frame,
    specimen: Packet<'_>,
    view: &Snapshot,
    is_report: bool,
    explained: &mut Explained,
) {
    match frame.verdict.decision() {
        Decision::Drop(reason) => explained.dropped = Some(reason),
        Decision::Pending => explained.dropped = Some(DropReason::NoDestination),
        Decision::Port(number) => {
            explained.dropped = unicast(frame, (view.port(specimen.ingress), number), view).err();
            if let Some(port) = view.port(number) {
                let outlook = outlook(frame, specimen, (number, port), view);
                explained.copies.push(outlook);
            }
        }
        Decision::Flood => {
            let ports = view.flood_members(frame).iter();
            let others = ports.filter_map(|number| Some((*number, view.port(*number)?)));
            let others = others.filter(|(number, _)| *number != specimen.ingress);
            let source = view.port(specimen.ingress);
            let others =
                others.filter(|(_, port)| source.is_none_or(|source| source.reaches(port)));
            let list = view.snooping.as_ref().and_then(|snooping| {
                let list = snooping.multicast.targets(frame, is_report)?;
                Some((&snooping.multicast, list))
            });
            let others = others.filter(|(number, _)| {
                list.is_none_or(|(multicast, list)| multicast.has(list, *number))
            });
            let outlooks = others.map(|port| outlook(frame, specimen, port, view));
            explained.copies.extend(outlooks);
            if explained.copies.iter().all(|copy| copy.tag.is_none()) {
                explained.dropped = Some(match list {
                    Some(_) => DropReason::NoListener,
                    None => DropReason::NoDestination,
                });
            }
        }
    }
}

fn outlook(
    frame: &Frame,
    specimen: Packet<'_>,
    (number, port): (u16, &PortSnapshot),
    view: &Snapshot,
) -> EgressDecision {
    let hash = view.flows.hash(frame.headers());
    let queue = port
        .spreads()
        .map_or(0, |queues| queues.spread().queue(hash));
    let queues = match &port.egress {
        Egress::Guest(queues) => queues.len(),
        _ => 1,
    };
    let large = large(frame, specimen, port, queue);
    let dropped = match &port.egress {
        Egress::Down => Some(DropReason::PortDown),
        Egress::Quarantined => Some(DropReason::GuestQuarantined),
        Egress::Disabled => Some(DropReason::PortDisabled),
        Egress::Guest(queues) if usize::from(queue) >= queues.len() => Some(DropReason::PortDown),
        _ if large == Large::Uncuttable => Some(DropReason::BadOffload),
        _ => None,
    };
    let tag = match view.has_bridges {
        true => port.tag_op_of_bridge(frame),
        false => port.tag_op(frame),
    };
    EgressDecision {
        port: number,
        tag,
        queue,
        queues: queues as u16,
        hash,
        large,
        judgement: None,
        dropped: dropped.filter(|_| tag.is_some()),
    }
}

fn large(frame: &Frame, specimen: Packet<'_>, port: &PortSnapshot, queue: u16) -> Large {
    let offload = frame.offload;
    if offload.gso_type == 0 {
        return Large::No;
    }
    let is_one = is_one_segment(frame);
    match &port.egress {
        Egress::Guest(_) if is_one => cut(offload, specimen),
        Egress::Guest(queues) => match queues.get(usize::from(queue)) {
            Some(guest) if !guest.takes(offload.gso_type) => cut(offload, specimen),
            _ => Large::Whole,
        },
        Egress::Nic => Large::Interface,
        Egress::Down | Egress::Quarantined | Egress::Disabled => Large::Whole,
    }
}

fn cut(offload: Offload, specimen: Packet<'_>) -> Large {
    let request = GsoRequest {
        gso_type: offload.gso_type,
        gso_size: offload.gso_size,
        checksum: offload.needs_csum.then_some(Partial {
            start: offload.csum_start,
            offset: offload.csum_offset,
        }),
    };
    // The values written into the segments do not affect their number.
    let whole = || Whole {
        checksum: 0,
        identification: 0,
    };
    match Segmentation::new(specimen.bytes, specimen.len as usize, request, whole) {
        Ok(plan) => Large::Cut(plan.count()),
        Err(_) => Large::Uncuttable,
    }
}
