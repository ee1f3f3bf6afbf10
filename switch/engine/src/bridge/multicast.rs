//! Snooping of IGMP and MLD (RFC 4541): multicast goes to the ports that have asked for its group, and to routers.
//!
//! A worker passes on what it hears: it writes the groups that a station joins and leaves, and the queries of routers, into a
//! bounded queue. The control thread keeps the memberships, and publishes the ports of each group with the next snapshot. So a worker
//! holds no state, and nothing that a guest sends makes it wait.
//!
//! Frames are flooded as before where no querier asks for reports, and for groups whose scope is
//! the link (224.0.0.0/24 and ff02::/16): not every station reports those.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use crossbeam::queue::ArrayQueue;
use crosspoint_frame::{Burst, Frame, Verdict};
use crosspoint_packet::{DropReason, ETHERNET_LEN, TAG_LEN};

use crate::MAX_PORTS;
use crate::snapshot::Snapshot;

/// Most messages that wait for the control thread. Further ones are counted, and lost: stations report again.
pub const HEARD_MAX: usize = 1024;
/// Most of them from one port until the control thread looks, so that one guest leaves room for others.
pub const HEARD_OF_PORT_MAX: u16 = 64;
/// Bytes of a frame that are looked at; a report with more groups is cut off there.
const BYTES_MAX: usize = 1024;
/// Most tags before the IP header.
const TAGS_MAX: usize = 3;

const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
const IGMP: u8 = 2;
const PIM: u8 = 103;
const ICMPV6: u8 = 58;
const FRAGMENT: u8 = 44;

/// A place where groups have members: a bridge's number, and a VLAN there.
pub type Place = (u8, u16);

/// The version of IP, of a querier or a group.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Family {
    /// IGMP.
    V4,
    /// MLD.
    V6,
}

impl Family {
    /// The family of an address.
    pub fn of(address: IpAddr) -> Family {
        match address {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        }
    }
}

/// What a station or a router has said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Said {
    /// It wants a group.
    Join(IpAddr),
    /// It wants it no longer.
    Leave(IpAddr),
    /// A querier asks for reports; the address is unspecified for one that only stands in for a router.
    Query(IpAddr),
    /// A multicast router is there (PIM).
    Router(Family),
}

/// A message, and where it came in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Heard {
    /// The port.
    pub port: u16,
    /// The bridge and the VLAN.
    pub place: Place,
    /// The message.
    pub said: Said,
}

/// Messages on their way to the control thread.
pub struct Messages {
    queue: ArrayQueue<Heard>,
    /// What routers say, so that stations' reports leave room for it.
    routers: ArrayQueue<Heard>,
    /// By port: how many wait.
    waiting: Box<[AtomicU16]>,
    missed: AtomicU64,
}

impl Default for Messages {
    fn default() -> Messages {
        Messages {
            queue: ArrayQueue::new(HEARD_MAX),
            routers: ArrayQueue::new(HEARD_MAX),
            waiting: (0..MAX_PORTS).map(|_| AtomicU16::new(0)).collect(),
            missed: AtomicU64::new(0),
        }
    }
}

impl Messages {
    pub(crate) fn push(&self, heard: Heard) {
        let Some(waiting) = self.waiting.get(usize::from(heard.port)) else {
            return;
        };
        if matches!(heard.said, Said::Query(_) | Said::Router(_)) {
            if self.routers.push(heard).is_err() {
                self.missed.fetch_add(1, Ordering::Relaxed);
            }
            return;
        }
        // Two workers may both pass this and exceed the limit by one.
        let has_room = waiting.load(Ordering::Relaxed) < HEARD_OF_PORT_MAX;
        if has_room && self.queue.push(heard).is_ok() {
            waiting.fetch_add(1, Ordering::Relaxed);
        } else {
            self.missed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns the messages since the last call: at most [`HEARD_MAX`] of routers, and as many of stations.
    pub fn take(&self) -> Vec<Heard> {
        for waiting in &self.waiting {
            waiting.store(0, Ordering::Relaxed);
        }
        let all = |queue: &ArrayQueue<Heard>| -> Vec<Heard> {
            std::iter::from_fn(|| queue.pop()).take(HEARD_MAX).collect()
        };
        let mut messages = all(&self.routers);
        messages.extend(all(&self.queue));
        messages
    }

    /// Returns the number of messages that were lost.
    pub fn missed(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }
}

/// The ports of each multicast group, as workers see them; immutable.
#[derive(Default)]
pub struct Multicast {
    /// By place and family: the number of the list of ports with routers. Only places with a querier are here.
    routers: HashMap<(Place, Family), u32>,
    /// By place and group: the number of the list of ports with members and those with routers.
    members: HashMap<(Place, IpAddr), u32>,
    /// Ports, ascending.
    lists: Vec<Box<[u16]>>,
    /// Whether a group without members is dropped. Otherwise it is flooded.
    drops_unknown: bool,
}

impl Multicast {
    /// Nothing is known yet, and so all multicast is flooded. `drops_unknown`: what becomes of a group without members where
    /// there is a querier.
    pub fn new(drops_unknown: bool) -> Multicast {
        Multicast {
            drops_unknown,
            ..Multicast::default()
        }
    }

    fn list(&mut self, mut ports: Vec<u16>) -> u32 {
        ports.sort_unstable();
        ports.dedup();
        self.lists.push(ports.into());
        // There are fewer lists than memberships and queriers, which are bounded.
        self.lists.len() as u32 - 1
    }

    /// Adds a place with a querier, and its ports with routers.
    pub fn add_querier(&mut self, place: Place, family: Family, routers: Vec<u16>) {
        let list = self.list(routers);
        self.routers.insert((place, family), list);
    }

    /// Adds a group, with the ports of its members and of routers.
    pub fn add_group(&mut self, place: Place, group: IpAddr, ports: Vec<u16>) {
        let list = self.list(ports);
        self.members.insert((place, group), list);
    }

    /// Returns the ports of a group; `None` if it has no members, or no querier asks for them.
    pub fn ports_of(&self, place: Place, group: IpAddr) -> Option<&[u16]> {
        self.routers.get(&(place, Family::of(group)))?;
        self.ports(*self.members.get(&(place, group))?)
    }

    fn ports(&self, list: u32) -> Option<&[u16]> {
        self.lists.get(list as usize).map(|ports| &**ports)
    }

    /// Returns the number of ports of list `list`.
    pub(crate) fn len(&self, list: u32) -> usize {
        self.ports(list).map_or(0, <[u16]>::len)
    }

    /// Returns whether list `list` has the port.
    pub(crate) fn has(&self, list: u32, port: u16) -> bool {
        self.ports(list)
            .is_some_and(|ports| ports.binary_search(&port).is_ok())
    }

    /// Returns the number of the list of ports that a flooded frame goes to; `None`: to all of its VLAN. `is_report`: it is a
    /// station's report, which only routers get, since a station that hears another's may keep silent.
    pub(crate) fn targets(&self, frame: &Frame, is_report: bool) -> Option<u32> {
        // An unknown station's frame may carry a group's packet.
        if !frame.dst.is_group() {
            return None;
        }
        let place = (frame.bridge, frame.vlan);
        let group = match is_report {
            true => match ip_at(frame.headers())? {
                (IPV4, _) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                _ => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            },
            false => group_of(frame)?,
        };
        let routers = *self.routers.get(&(place, Family::of(group)))?;
        if is_report {
            return Some(routers);
        }
        match self.members.get(&(place, group)) {
            Some(list) => Some(*list),
            None => self.drops_unknown.then_some(routers),
        }
    }
}

/// Returns the type and the place of the IP header behind a frame's tags; `None` for anything else.
fn ip_at(bytes: &[u8]) -> Option<([u8; 2], usize)> {
    let mut at = ETHERNET_LEN - 2;
    for _ in 0..=TAGS_MAX {
        match *bytes.get(at..at + 2)?.first_chunk()? {
            kind @ (IPV4 | IPV6) => return Some((kind, at + 2)),
            [0x81, 0x00] | [0x88, 0xa8] => at += TAG_LEN,
            _ => return None,
        }
    }
    None
}

/// Returns the group that an IP multicast frame is for, if its scope is wider than the link.
fn group_of(frame: &Frame) -> Option<IpAddr> {
    let bytes = frame.headers();
    let address = match ip_at(bytes)? {
        (IPV4, at) => IpAddr::from(*bytes.get(at + 16..)?.first_chunk::<4>()?),
        (_, at) => IpAddr::from(*bytes.get(at + 24..)?.first_chunk::<16>()?),
    };
    is_wide(address).then_some(address)
}

/// Returns whether an address is a multicast group that is tracked: its scope is wider than the link (RFC 4541, 2.1.2 and 3).
pub fn is_wide(group: IpAddr) -> bool {
    match group {
        IpAddr::V4(group) => group.is_multicast() && group.octets()[..3] != [224, 0, 0],
        IpAddr::V6(group) => group.is_multicast() && group.octets()[1] & 0x0f > 2,
    }
}

/// Passes on what a burst's flooded frames say about groups. Returns a bit for each station's report.
#[cold]
#[inline(never)]
pub(crate) fn listen(
    burst: &mut Burst,
    ingress: u16,
    view: &Snapshot,
    hear: impl Fn(Heard),
) -> u64 {
    let mut reports = 0;
    let mut bytes = [0; BYTES_MAX];
    for index in 0..burst.len() {
        let Some(frame) = burst.frames().get(index) else {
            break;
        };
        if frame.verdict != Verdict::FLOOD || !frame.dst.is_group() {
            continue;
        }
        let place = (frame.bridge, frame.vlan);
        let Some(message) = message_at(frame.headers()) else {
            continue;
        };
        let len = burst.read_beginning(frame, &mut bytes);
        let all = bytes.get(..len).unwrap_or(&[]);
        let may_ask = view.port(ingress).is_some_and(|port| port.is_server);
        each(message, all, |said| {
            let is_query = matches!(said, Said::Query(_) | Said::Router(_));
            if !is_query {
                reports |= 1 << index;
            }
            let is_kept = match said {
                Said::Join(group) | Said::Leave(group) => is_wide(group),
                Said::Query(_) | Said::Router(_) => may_ask,
            };
            if is_kept {
                hear(Heard {
                    port: ingress,
                    place,
                    said,
                });
            }
        });
    }
    reports
}

/// Drops what routers send of a port that may not send it, to any address: queries and PIM; and what may hide such a message,
/// fragments of these protocols and headers longer than what is looked at.
#[inline(never)]
pub(crate) fn refuse_routers(burst: &mut Burst) {
    let mut bytes = [0; BYTES_MAX];
    for index in 0..burst.len() {
        let Some(frame) = burst.frames().get(index) else {
            return;
        };
        let is_pending = frame.verdict == Verdict::PENDING;
        let Some((kind, ip)) = ip_at(frame.headers()).filter(|_| is_pending) else {
            continue;
        };
        let head = frame.headers();
        let next = head.get(if kind == IPV4 { ip + 9 } else { ip + 6 });
        // Nearly all packets are of other protocols.
        let may_be = match kind {
            IPV4 => matches!(next, Some(&(IGMP | PIM))),
            _ => matches!(next, Some(&(0 | PIM))),
        };
        if !may_be {
            continue;
        }
        let len = burst.read_beginning(frame, &mut bytes);
        let is_refused = match message_at(head) {
            Some(message) => {
                let all = bytes.get(..len).unwrap_or(&[]);
                let is_hidden = message.at >= len;
                let mut is_router = is_hidden;
                each(message, all, |said| {
                    is_router |= matches!(said, Said::Query(_) | Said::Router(_));
                });
                is_router
            }
            // A fragment, of what only routers or reports may be.
            None => kind == IPV4 || head.get(ip + 40) == Some(&FRAGMENT),
        };
        if let (true, Some(frame)) = (is_refused, burst.frames_mut().get_mut(index)) {
            frame.drop_for(DropReason::ServerNotAllowed);
        }
    }
}

/// Snooping, as workers have it.
#[derive(Clone)]
pub struct Snooping {
    /// Where they put what they hear.
    pub messages: Arc<Messages>,
    /// The ports of each group.
    pub multicast: Arc<Multicast>,
}

/// Where a message of a protocol begins.
#[derive(Clone, Copy)]
struct Message {
    protocol: u8,
    /// Of the IP header, and of the message, from the frame's start.
    ip: usize,
    at: usize,
}

/// Returns the message that a frame with this beginning has, as far as its headers tell. MLD is behind a hop-by-hop header
/// (RFC 3810, 5); a fragment is none.
fn message_at(bytes: &[u8]) -> Option<Message> {
    let (kind, ip) = ip_at(bytes)?;
    if kind == IPV4 {
        let protocol = *bytes.get(ip + 9)?;
        let len = usize::from(bytes.get(ip)? & 0x0f) * 4;
        let fragment = u16::from_be_bytes(*bytes.get(ip + 6..)?.first_chunk()?);
        let is_whole = fragment & 0x3fff == 0;
        let at = ip + len;
        return (matches!(protocol, IGMP | PIM) && is_whole && len >= 20).then_some(Message {
            protocol,
            ip,
            at,
        });
    }
    let (next, behind) = (*bytes.get(ip + 6)?, ip + 40);
    if next == PIM {
        return Some(Message {
            protocol: PIM,
            ip,
            at: behind,
        });
    }
    let protocol = *bytes.get(behind)?;
    let len = usize::from(*bytes.get(behind + 1)?) * 8 + 8;
    (next == 0 && matches!(protocol, ICMPV6 | PIM)).then_some(Message {
        protocol,
        ip,
        at: behind + len,
    })
}

/// Calls `hear` for all that a message says.
fn each(message: Message, bytes: &[u8], hear: impl FnMut(Said)) {
    let Message { protocol, ip, at } = message;
    let is_v4 = protocol == IGMP || bytes.get(ip).is_some_and(|first| first >> 4 == 4);
    let Some(text) = bytes.get(at..) else {
        return;
    };
    let mut hear = hear;
    match (protocol, is_v4) {
        (PIM, true) => hear(Said::Router(Family::V4)),
        (PIM, false) => hear(Said::Router(Family::V6)),
        (_, true) => {
            let source = address::<4>(bytes, ip + 12);
            igmp(
                text,
                source.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
                hear,
            );
        }
        (_, false) => {
            let source = address::<16>(bytes, ip + 8);
            mld(
                text,
                source.unwrap_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
                hear,
            );
        }
    }
}

fn address<const N: usize>(bytes: &[u8], at: usize) -> Option<IpAddr>
where
    IpAddr: From<[u8; N]>,
{
    Some(IpAddr::from(*bytes.get(at..)?.first_chunk::<N>()?))
}

/// IGMP versions 1 to 3 (RFC 1112, 2236, 3376).
fn igmp(text: &[u8], source: IpAddr, mut hear: impl FnMut(Said)) {
    let group = address::<4>(text, 4);
    match (text.first(), group) {
        (Some(0x11), _) => hear(Said::Query(source)),
        (Some(0x12 | 0x16), Some(group)) => hear(Said::Join(group)),
        (Some(0x17), Some(group)) => hear(Said::Leave(group)),
        (Some(0x22), _) => records::<4>(text, hear),
        _ => {}
    }
}

/// MLD versions 1 and 2 (RFC 2710, 3810).
fn mld(text: &[u8], source: IpAddr, mut hear: impl FnMut(Said)) {
    let group = address::<16>(text, 8);
    match (text.first(), group) {
        (Some(130), _) => hear(Said::Query(source)),
        (Some(131), Some(group)) => hear(Said::Join(group)),
        (Some(132), Some(group)) => hear(Said::Leave(group)),
        (Some(143), _) => records::<16>(text, hear),
        _ => {}
    }
}

/// The records of a report of IGMPv3 (RFC 3376, 4.2.4) or MLDv2 (RFC 3810, 5.2.5), with addresses of `N` bytes. Sources are
/// not told apart: a port that wants a group from some source gets all of it.
fn records<const N: usize>(text: &[u8], mut hear: impl FnMut(Said))
where
    IpAddr: From<[u8; N]>,
{
    let Some(count) = text.get(6..8) else {
        return;
    };
    let count = u16::from_be_bytes([count[0], count[1]]);
    let mut rest = text.get(8..).unwrap_or(&[]);
    // Each record takes at least its header, so the bytes bound the loop.
    for _ in 0..count {
        let (Some(head), Some(group)) = (rest.get(..4), address::<N>(rest, 4)) else {
            return;
        };
        let sources = usize::from(u16::from_be_bytes([head[2], head[3]]));
        let len = 4 + N + sources * N + usize::from(head[1]) * 4;
        match (head[0], sources) {
            // "Include no source".
            (1 | 3, 0) => hear(Said::Leave(group)),
            (1..=5, _) => hear(Said::Join(group)),
            _ => {}
        }
        rest = rest.get(len..).unwrap_or(&[]);
    }
}
