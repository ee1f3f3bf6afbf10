//! Reference model: a learning bridge with VLANs, written from IEEE 802.1Q and OPERATING.md ("VLANs"), not from the
//! engine, with maps, sets and vectors. It gives the expected bytes at each port and the expected counters.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crosspoint_packet::{DropReason, FlowHasher};

/// The longest untagged frame that the switch accepts; a tagged one may be 4 bytes longer.
pub const FRAME_LEN_MAX: usize = 65550;

/// A port's VLANs.
#[derive(Clone, Debug)]
pub enum Membership {
    /// All VLANs; tags stay unchanged.
    All,
    /// One VLAN, untagged.
    Access(u16),
    /// These VLANs tagged, and optionally one untagged.
    Trunk(BTreeSet<u16>, Option<u16>),
}

impl Membership {
    fn carries(&self, vlan: u16) -> bool {
        match self {
            Membership::All => true,
            Membership::Access(own) => *own == vlan,
            Membership::Trunk(tagged, native) => *native == Some(vlan) || tagged.contains(&vlan),
        }
    }

    fn is_untagged(&self, vlan: u16) -> bool {
        match self {
            Membership::All => false,
            Membership::Access(_) => true,
            Membership::Trunk(_, native) => *native == Some(vlan),
        }
    }

    /// Whether popping the tag would expose a second one that names another VLAN on a trunk.
    fn would_uncover(&self, vlan: u16, bytes: &[u8]) -> bool {
        matches!(self, Membership::Trunk(..))
            && vlan != 0
            && self.is_untagged(vlan)
            && tag_of(bytes).is_some()
            && bytes[16..18] == [0x81, 0]
    }

    fn place(&self, vid: u16) -> Result<u16, DropReason> {
        match (self, vid) {
            (Membership::All, _) => Ok(vid),
            (Membership::Access(own), 0) => Ok(*own),
            (Membership::Trunk(_, Some(native)), 0) => Ok(*native),
            (Membership::Trunk(_, None), 0) => Err(DropReason::UntaggedOnTrunk),
            (_, _) if matches!(self, Membership::Access(_)) => Err(DropReason::VlanNotCarried),
            (_, _) if self.carries(vid) => Ok(vid),
            _ => Err(DropReason::VlanNotCarried),
        }
    }
}

/// One receive queue's ring: when it runs out of buffers, the rest of the burst is lost.
#[derive(Clone, Debug)]
pub struct Ring {
    pub size: usize,
    pub free: usize,
    pub buffer_len: usize,
    pub mergeable: bool,
    pub header_len: usize,
}

impl Ring {
    fn take(&mut self, frame_len: usize) -> Result<(), DropReason> {
        let need = frame_len + self.header_len;
        let buffers = need.div_ceil(self.buffer_len);
        if self.mergeable && buffers <= self.free {
            self.free -= buffers;
            return Ok(());
        }
        if !self.mergeable && self.free > 0 && buffers == 1 {
            self.free -= 1;
            return Ok(());
        }
        // It would not fit with any number of buffers.
        let hopeless = if self.mergeable {
            self.free == self.size
        } else {
            self.free > 0
        };
        Err(if hopeless {
            DropReason::GuestBufferSmall
        } else {
            DropReason::GuestRingFull
        })
    }
}

/// State of a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Condition {
    Up,
    Down,
    Quarantined,
    Disabled,
    /// The switch does not have the port, or no longer.
    Gone,
}

/// One port's counters.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Ledger {
    pub rx: (u64, u64),
    /// Frames and bytes, by queue.
    pub tx: Vec<(u64, u64)>,
    pub flood_copies: u64,
    /// Segments of large frames that were cut.
    pub segment_copies: u64,
    /// Copies that mirrors made.
    pub mirror_copies: u64,
    /// Segments that were joined.
    pub joined_copies: u64,
    pub delivered: u64,
    pub dropped: u64,
    pub drops: BTreeMap<DropReason, u64>,
}

impl Ledger {
    fn drop(&mut self, reason: DropReason) {
        *self.drops.entry(reason).or_default() += 1;
    }
}

pub struct BridgePort {
    pub vlans: Membership,
    pub condition: Condition,
    pub rings: Vec<Ring>,
    /// Address limit; 0 for none.
    pub mac_limit: usize,
    /// Whether frames from addresses beyond it are dropped.
    pub drops_beyond: bool,
    pub ledger: Ledger,
    /// Expected output of each queue since the last comparison, in order.
    pub out: Vec<Vec<Copy>>,
}

/// A frame as it was sent.
#[derive(Clone, Debug)]
pub struct Sent {
    pub bytes: Vec<u8>,
    /// Length that the switch knows: of a chain that is too long, only that it is too long.
    pub known_len: usize,
    /// Partial checksum: start and offset.
    pub csum: Option<(u16, u16)>,
    pub gso: bool,
    /// Source port, flow and number, if the bytes contain them.
    pub identity: Option<(u32, u32, u64)>,
}

/// A frame as it arrives.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Copy {
    pub bytes: Vec<u8>,
    pub csum: Option<(u16, u16)>,
    pub identity: Option<(u32, u32, u64)>,
}

/// Whether a checksum's place is that of the UDP header after a link header of `link` bytes, or of one further inside.
fn is_udps(bytes: &[u8], link: usize, (start, offset): (u16, u16)) -> bool {
    let transport = match bytes.get(link - 2..link) {
        Some([0x08, 0]) if bytes.len() >= link + 20 && bytes[link + 7] == 0 => link + 20,
        Some([0x86, 0xdd]) if bytes.len() >= link + 40 && bytes[link + 6] == 17 => link + 40,
        // Another protocol may carry it further inside; a frame that ends within the IP header does not.
        Some([0x88, 0xb5]) => return usize::from(start) >= link,
        _ => return false,
    };
    let start = usize::from(start);
    start == transport && offset == 6 || start >= transport + 8
}

/// The bridge's decision on a frame.
enum Fate {
    Drop(DropReason),
    To { vlan: u16, ports: Vec<usize> },
}

pub struct Bridge {
    pub ports: Vec<BridgePort>,
    pub stations: HashMap<([u8; 6], u16), usize>,
    pub flows: FlowHasher,
}

fn tag_of(bytes: &[u8]) -> Option<u16> {
    (bytes.len() >= 18 && bytes[12..14] == [0x81, 0])
        .then(|| u16::from_be_bytes([bytes[14], bytes[15]]))
}

fn is_group(mac: &[u8]) -> bool {
    mac[0] & 1 == 1
}

impl Bridge {
    /// Processes a burst received on `ingress`.
    pub fn burst(&mut self, ingress: usize, burst: &[Sent]) {
        let mut queued: BTreeMap<(usize, usize), Vec<(u16, &Sent)>> = BTreeMap::new();
        for sent in burst {
            let fate = self.decide(ingress, sent);
            let from = &mut self.ports[ingress].ledger;
            from.rx.0 += 1;
            from.rx.1 += sent.known_len as u64;
            match fate {
                Fate::Drop(reason) => {
                    from.dropped += 1;
                    from.drop(reason);
                }
                Fate::To { vlan, ports } => {
                    from.flood_copies += ports.len() as u64 - 1;
                    for port in ports {
                        let queue = self.queue(port, &sent.bytes);
                        queued.entry((port, queue)).or_default().push((vlan, sent));
                    }
                }
            }
        }
        for ((port, queue), copies) in queued {
            let delivered = self.ports[port].take(queue, &copies);
            let from = &mut self.ports[ingress].ledger;
            from.delivered += delivered;
            from.dropped += copies.len() as u64 - delivered;
        }
    }

    /// The receive queue of a frame: any function of the flow would do, so the switch's is used.
    fn queue(&self, port: usize, bytes: &[u8]) -> usize {
        let bucket = self.flows.hash(&bytes[..bytes.len().min(64)]) >> 24;
        bucket as usize * self.ports[port].rings.len() / 256
    }

    fn decide(&mut self, ingress: usize, sent: &Sent) -> Fate {
        let len = sent.known_len;
        if len < 14 {
            return Fate::Drop(DropReason::Runt);
        }
        // A chain that is too long to be followed has no bytes here.
        if len > FRAME_LEN_MAX + 4 * usize::from(tag_of(&sent.bytes).is_some()) {
            return Fate::Drop(DropReason::Oversize);
        }
        let (dst, src) = (&sent.bytes[..6], &sent.bytes[6..12]);
        if is_group(src) || src == [0; 6] {
            return Fate::Drop(DropReason::BadSource);
        }
        let tag = tag_of(&sent.bytes);
        let link_len = if tag.is_some() { 18 } else { 14 };
        let inside = |(start, offset): (u16, u16)| {
            start >= link_len
                && start <= u16::MAX - 4
                && usize::from(start) + usize::from(offset) + 2 <= len
        };
        let allowed =
            |place: (u16, u16)| inside(place) && is_udps(&sent.bytes, link_len.into(), place);
        if sent.gso || !sent.csum.is_none_or(allowed) {
            return Fate::Drop(DropReason::BadOffload);
        }
        if self.ports[ingress].condition == Condition::Gone {
            return Fate::Drop(DropReason::NoDestination);
        }
        let vlan = match self.ports[ingress].vlans.place(tag.unwrap_or(0) & 0xfff) {
            Ok(vlan) => vlan,
            Err(reason) => return Fate::Drop(reason),
        };
        let is_known = self.learn(src.try_into().unwrap(), vlan, ingress);
        if !is_known && self.ports[ingress].drops_beyond {
            return Fate::Drop(DropReason::MacLimit);
        }
        if !is_group(dst)
            && let Some(&port) = self.stations.get(&(dst.try_into().unwrap(), vlan))
        {
            return self.unicast(ingress, port, vlan, &sent.bytes);
        }
        if dst[..5] == [1, 0x80, 0xc2, 0, 0] && dst[5] < 16 {
            return Fate::Drop(DropReason::LinkLocal);
        }
        let wants = |&port: &usize| {
            let candidate = &self.ports[port];
            port != ingress
                && candidate.condition != Condition::Gone
                && candidate.vlans.carries(vlan)
                && !candidate.vlans.would_uncover(vlan, &sent.bytes)
        };
        let ports: Vec<usize> = (0..self.ports.len()).filter(wants).collect();
        if ports.is_empty() {
            return Fate::Drop(DropReason::NoDestination);
        }
        Fate::To { vlan, ports }
    }

    fn unicast(&self, ingress: usize, port: usize, vlan: u16, bytes: &[u8]) -> Fate {
        if port == ingress {
            return Fate::Drop(DropReason::Hairpin);
        }
        if self.ports[port].condition == Condition::Gone {
            return Fate::Drop(DropReason::NoDestination);
        }
        if self.ports[port].vlans.would_uncover(vlan, bytes) {
            return Fate::Drop(DropReason::VlanNotCarried);
        }
        let ports = vec![port];
        Fate::To { vlan, ports }
    }

    /// Number of stations known on `port`.
    pub fn stations_on(&self, port: usize) -> usize {
        self.stations.values().filter(|on| **on == port).count()
    }

    /// Returns whether the station is known on the port afterwards.
    fn learn(&mut self, mac: [u8; 6], vlan: u16, port: usize) -> bool {
        let limit = self.ports[port].mac_limit;
        let known = self.stations.get(&(mac, vlan)) == Some(&port);
        let has_room = limit == 0 || self.stations_on(port) < limit;
        if !known && has_room {
            self.stations.insert((mac, vlan), port);
        }
        known || has_room
    }
}

impl BridgePort {
    /// Sends copies to one queue, in order; returns how many were delivered.
    fn take(&mut self, queue: usize, copies: &[(u16, &Sent)]) -> u64 {
        let mut full = false;
        let mut delivered = 0;
        for (vlan, sent) in copies {
            let copy = self.copy(*vlan, sent);
            let result = match self.condition {
                Condition::Up if full => Err(DropReason::GuestRingFull),
                Condition::Up => self.rings[queue].take(copy.bytes.len()),
                Condition::Quarantined => Err(DropReason::GuestQuarantined),
                Condition::Disabled => Err(DropReason::PortDisabled),
                Condition::Down | Condition::Gone => Err(DropReason::PortDown),
            };
            match result {
                Ok(()) => {
                    delivered += 1;
                    self.ledger.tx[queue].0 += 1;
                    self.ledger.tx[queue].1 += copy.bytes.len() as u64;
                    self.out[queue].push(copy);
                }
                Err(reason) => {
                    full |= reason == DropReason::GuestRingFull;
                    self.ledger.drop(reason);
                }
            }
        }
        delivered
    }

    /// Returns the frame as sent on this port in `vlan`.
    fn copy(&self, vlan: u16, sent: &Sent) -> Copy {
        let tag = tag_of(&sent.bytes);
        // In no VLAN: between unaware ports the tag stays unchanged.
        let out_tag = match vlan {
            0 => tag,
            _ if self.vlans.is_untagged(vlan) => None,
            _ => Some(tag.unwrap_or(0) & 0xf000 | vlan),
        };
        let rest = if tag.is_some() { 16 } else { 12 };
        let mut bytes = sent.bytes[..12].to_vec();
        if let Some(tci) = out_tag {
            bytes.extend([0x81, 0]);
            bytes.extend(tci.to_be_bytes());
        }
        bytes.extend(&sent.bytes[rest..]);
        let shift = bytes.len() as isize - sent.bytes.len() as isize;
        let csum = sent.csum.map(|(start, offset)| {
            let start = usize::from(start).checked_add_signed(shift).unwrap();
            (start as u16, offset)
        });
        let identity = sent.identity;
        Copy {
            bytes,
            csum,
            identity,
        }
    }
}
