//! Port security for IP: which IP addresses the frames of a port may have as their source, and which addresses they may
//! claim by ARP and by neighbour discovery.
//!
//! A port with `addresses.ip` may claim nothing else; and no other port of its VLANs may claim a single address of that
//! list, whether it has a list or not: a guest cannot take its neighbour's address, nor the gateway's.
//!
//! What is decided on is what is delivered: the frame's head, and for neighbour discovery the whole frame, which is then
//! held ([`Burst::hold`]). A packet whose headers hide whether it is neighbour discovery is dropped if a receiver would
//! take it as that: receivers require a hop limit of 255 (RFC 4861, 7.1).

use std::net::{IpAddr, Ipv6Addr};

use crosspoint_frame::{Burst, Frame, Offload, Verdict};
use crosspoint_packet::checksum::Partial;
use crosspoint_packet::headers::{Fragment, Headers, Stop};
use crosspoint_packet::offload::is_checksum_place;
use crosspoint_packet::{DropReason, IpNet, Mac};

pub(crate) const ARP: u16 = 0x0806;
const TCP: u8 = 6;
const UDP: u8 = 17;
pub(crate) const ICMPV6: u8 = 58;
const HOP_BY_HOP: u8 = 0;
/// Types of neighbour discovery (RFC 4861, 4.1 to 4.5).
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
pub(crate) const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;
/// The hop limit that receivers require of neighbour discovery.
const HOPS: u8 = 255;
/// Options with the link-layer address of the source and of the target (RFC 4861, 4.6.1).
const LINK_ADDRESS_OPTIONS: [u8; 2] = [1, 2];

/// The IP addresses that frames of a port may claim.
#[derive(Clone, Debug)]
pub struct IpGuard {
    /// Address and mask.
    v4: Box<[(u32, u32)]>,
    v6: Box<[(u128, u128)]>,
    /// As given.
    prefixes: Box<[IpNet]>,
    link_locals: Box<[Ipv6Addr]>,
}

impl IpGuard {
    /// Creates a guard that allows these addresses, and the link-local addresses that stations make of their MAC addresses
    /// (RFC 4291, appendix A).
    pub fn new(prefixes: &[IpNet], macs: &[Mac]) -> IpGuard {
        let v4 = prefixes.iter().filter_map(|prefix| match prefix {
            IpNet::V4(net) => Some((net.network().to_bits(), net.netmask().to_bits())),
            IpNet::V6(_) => None,
        });
        let v6 = prefixes.iter().filter_map(|prefix| match prefix {
            IpNet::V4(_) => None,
            IpNet::V6(net) => Some((net.network().to_bits(), net.netmask().to_bits())),
        });
        let link_locals: Box<[Ipv6Addr]> = macs.iter().copied().map(Mac::link_local).collect();
        let own = link_locals.iter().map(|own| (own.to_bits(), u128::MAX));
        IpGuard {
            v4: v4.collect(),
            v6: v6.chain(own).collect(),
            prefixes: prefixes.into(),
            link_locals,
        }
    }

    /// Returns the addresses, as given.
    pub fn prefixes(&self) -> &[IpNet] {
        &self.prefixes
    }

    #[inline(always)]
    fn allows_v4(&self, address: u32) -> bool {
        self.v4.iter().any(|(net, mask)| address & mask == *net)
    }

    fn allows_v6(&self, address: u128) -> bool {
        self.v6.iter().any(|(net, mask)| address & mask == *net)
    }

    fn allows(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.allows_v4(address.to_bits()),
            IpAddr::V6(address) => self.allows_v6(address.to_bits()),
        }
    }

    /// Drops frames that claim another address than these, or whose ARP or neighbour discovery names another station than
    /// those in `macs`. A frame that is already dropped keeps its reason.
    pub(crate) fn enforce(&self, burst: &mut Burst, has_mac: impl Fn(Mac) -> bool) {
        // Nearly all frames: untagged IPv4 with the source of the frame before.
        let mut before = None;
        for index in 0..burst.len() {
            let Some(frame) = burst.frames().get(index) else {
                return;
            };
            if frame.verdict != Verdict::PENDING {
                continue;
            }
            if frame.head[12..14] == [0x08, 0x00] && frame.len >= 34 {
                let source = be32(&frame.head, 26);
                if before == source || source.is_some_and(|source| self.allows_v4(source)) {
                    before = source;
                    continue;
                }
            }
            let claim = claim(burst, index);
            let refused = self.refusal(&claim, &has_mac);
            if let (Some(reason), Some(frame)) = (refused, burst.frames_mut().get_mut(index)) {
                frame.drop_for(reason);
            }
        }
    }

    fn refusal(&self, claim: &Claim, has_mac: impl Fn(Mac) -> bool) -> Option<DropReason> {
        let is_source_ok = match claim.source() {
            None => true,
            Some((source, is_unspecified_ok)) => {
                self.allows(source) || (source.is_unspecified() && is_unspecified_ok)
            }
        };
        if !is_source_ok {
            return Some(DropReason::IpNotAllowed);
        }
        let is_claim_ok = match claim {
            Claim::Arp {
                mac,
                sender,
                target,
            } => {
                // A sender without an address asks whether it may have the target's (RFC 5227, 2.1.1).
                let claimed = if *sender == 0 { *target } else { *sender };
                has_mac(*mac) && self.allows_v4(claimed)
            }
            Claim::Neighbor { claimed, mac, .. } => {
                claimed.is_none_or(|claimed| self.allows_v6(claimed)) && mac.is_none_or(&has_mac)
            }
            Claim::Nothing | Claim::Source { .. } => true,
            Claim::Malformed | Claim::Hidden => false,
        };
        (!is_claim_ok).then_some(DropReason::NeighborNotAllowed)
    }
}

/// What a frame says of its sender.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Claim {
    /// Nothing: it is neither IP nor ARP.
    Nothing,
    /// It comes from this address. A sender that has none yet may send some packets without one.
    Source {
        source: IpAddr,
        is_unspecified_ok: bool,
    },
    /// ARP over Ethernet (RFC 826): this station has `sender`. 0 is no address.
    Arp { mac: Mac, sender: u32, target: u32 },
    /// Neighbour discovery: this station has `claimed`, if it says so.
    Neighbor {
        source: u128,
        claimed: Option<u128>,
        mac: Option<Mac>,
    },
    /// ARP that is not for Ethernet and IPv4, malformed neighbour discovery, or too many tags: receivers may differ in what
    /// they take from it.
    Malformed,
    /// It cannot be seen whether the packet is neighbour discovery.
    Hidden,
}

impl Claim {
    /// The IP header's source, and whether it may be unspecified.
    fn source(&self) -> Option<(IpAddr, bool)> {
        match *self {
            Claim::Source {
                source,
                is_unspecified_ok,
            } => Some((source, is_unspecified_ok)),
            Claim::Neighbor { source, .. } => Some((IpAddr::V6(Ipv6Addr::from_bits(source)), true)),
            Claim::Nothing | Claim::Arp { .. } | Claim::Malformed | Claim::Hidden => None,
        }
    }

    /// The address that other stations will send to this one after the frame.
    fn taken(&self) -> Option<IpAddr> {
        match *self {
            Claim::Arp { sender, target, .. } => {
                let claimed = if sender == 0 { target } else { sender };
                Some(IpAddr::V4(claimed.into()))
            }
            Claim::Neighbor { claimed, .. } => Some(IpAddr::V6(Ipv6Addr::from_bits(claimed?))),
            Claim::Nothing | Claim::Source { .. } | Claim::Malformed | Claim::Hidden => None,
        }
    }
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk::<N>().copied()
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes_at(bytes, at).map(u32::from_be_bytes)
}

fn be128(bytes: &[u8], at: usize) -> Option<u128> {
    bytes_at(bytes, at).map(u128::from_be_bytes)
}

/// Reads what frame `index` claims. A frame that may be neighbour discovery is held.
#[inline(never)]
fn claim(burst: &mut Burst, index: usize) -> Claim {
    let Some(frame) = burst.frames().get(index) else {
        return Claim::Nothing;
    };
    let bytes = frame.headers();
    let headers = Headers::parse(bytes);
    if headers.ethertype == ARP {
        return arp(bytes, headers.network);
    }
    match headers.ip_version {
        4 => ipv4(frame, &headers),
        6 => ipv6(burst, index, &headers),
        _ if is_hidden(bytes, &headers) => Claim::Malformed,
        // A header that contradicts its protocol: no receiver takes it.
        _ => Claim::Nothing,
    }
}

/// Whether a receiver may find IP or ARP in a frame in which the walk has found none: behind more tags than are read, in a
/// frame that a NIC pads, or behind a length and a SNAP header (RFC 1042, IEEE 802.1H).
pub(crate) fn is_hidden(bytes: &[u8], headers: &Headers) -> bool {
    const LLC_SNAP: [u8; 2] = [0xaa, 0xaa];
    const ETHERTYPE_MIN: u16 = 0x600;
    match headers.stop {
        Stop::TooManyTags => true,
        Stop::CutShort => headers.ip_version == 0,
        Stop::Unknown => {
            headers.ethertype < ETHERTYPE_MIN
                && bytes_at(bytes, headers.network) == Some(LLC_SNAP)
                && {
                    // The organizations whose number is followed by an Ethernet type.
                    let organization = bytes_at(bytes, headers.network + 3);
                    matches!(organization, Some([0, 0, 0] | [0, 0, 0xf8]) | None)
                }
        }
        _ => false,
    }
}

fn arp(bytes: &[u8], at: usize) -> Claim {
    // Hardware Ethernet or IEEE 802, which receivers take as the same (RFC 826; Linux, arp_process()), protocol IPv4, and the
    // lengths of their addresses.
    const KINDS: [[u8; 6]; 2] = [[0, 1, 8, 0, 6, 4], [0, 6, 8, 0, 6, 4]];
    let is_known = bytes_at(bytes, at).is_some_and(|kind| KINDS.contains(&kind));
    let mac = bytes_at(bytes, at + 8).map(Mac::new);
    match (mac, be32(bytes, at + 14), be32(bytes, at + 24)) {
        (Some(mac), Some(sender), Some(target)) if is_known => Claim::Arp {
            mac,
            sender,
            target,
        },
        _ => Claim::Malformed,
    }
}

fn ipv4(frame: &Frame, headers: &Headers) -> Claim {
    let bytes = frame.headers();
    let Some(source) = be32(bytes, headers.network + 12) else {
        return Claim::Nothing;
    };
    // DHCP (RFC 2131, 4.1): a client that has no address sends from port 68 to port 67.
    let ports = bytes_at(bytes, headers.offset);
    let is_dhcp =
        headers.protocol == UDP && headers.stop == Stop::Layer4 && ports == Some([0, 68, 0, 67]);
    Claim::Source {
        source: IpAddr::V4(source.into()),
        is_unspecified_ok: is_dhcp,
    }
}

fn ipv6(burst: &mut Burst, index: usize, headers: &Headers) -> Claim {
    let Some(frame) = burst.frames().get(index) else {
        return Claim::Nothing;
    };
    let (bytes, network) = (frame.headers(), headers.network);
    let (Some(source), Some(hops)) = (be128(bytes, network + 8), bytes.get(network + 7)) else {
        return Claim::Nothing;
    };
    let is_icmp = headers.stop == Stop::Layer4 && headers.protocol == ICMPV6;
    let is_known = matches!(headers.stop, Stop::Layer4 | Stop::BadHeader) && !is_icmp;
    // Reports of groups (RFC 3590), whose options may end beyond the head, and solicitations of routers (RFC 4861, 4.1) may
    // come before there is an address.
    let is_report = *hops == 1 && bytes.get(network + 6) == Some(&HOP_BY_HOP);
    let plain = Claim::Source {
        source: IpAddr::V6(Ipv6Addr::from_bits(source)),
        is_unspecified_ok: is_icmp || is_report,
    };
    if is_known || *hops != HOPS {
        return plain;
    }
    if let Some((bytes, len)) = burst.hold(index) {
        let bytes = bytes.get(..len).unwrap_or(&[]);
        // What was checked may have been read from the guest's memory before the bytes that are held.
        let offload = burst.frames().get(index).map(|frame| frame.offload);
        let is_place = |offload: Offload| {
            let place = Partial {
                start: offload.csum_start,
                offset: offload.csum_offset,
            };
            !offload.needs_csum || is_checksum_place(bytes, len, place) == Some(true)
        };
        return match offload.is_some_and(is_place) {
            true => neighbor(bytes, source, plain),
            false => Claim::Hidden,
        };
    }
    // A longer frame: its type may be in the head all the same.
    let frame = burst.frames().get(index);
    let kind = frame.and_then(|frame| frame.headers().get(headers.offset).copied());
    match kind.filter(|_| is_icmp && !is_fragment(headers)) {
        Some(ROUTER_SOLICITATION..=REDIRECT) => Claim::Hidden,
        Some(_) => plain,
        None if headers.stop == Stop::LaterFragment && headers.protocol != ICMPV6 => plain,
        None => Claim::Hidden,
    }
}

/// Whether the packet is one of several fragments. Neighbour discovery is not fragmented (RFC 6980).
fn is_fragment(headers: &Headers) -> bool {
    headers.fragment > Fragment::Atomic
}

/// Reads a whole frame that may be neighbour discovery.
fn neighbor(bytes: &[u8], source: u128, plain: Claim) -> Claim {
    let headers = Headers::parse(bytes);
    match (headers.stop, headers.protocol) {
        (Stop::Layer4, ICMPV6) if !is_fragment(&headers) => {}
        (Stop::Layer4 | Stop::LaterFragment | Stop::BadHeader, protocol) if protocol != ICMPV6 => {
            return plain;
        }
        _ => return Claim::Hidden,
    }
    let Some(kind) = bytes.get(headers.offset) else {
        return Claim::Hidden;
    };
    let at = headers.offset;
    // Where the options begin; and which address a receiver will send to the link-layer address in them.
    let target = be128(bytes, at + 8);
    let (options, bound) = match *kind {
        ROUTER_SOLICITATION => (at + 8, Some(source)),
        ROUTER_ADVERTISEMENT => (at + 16, Some(source)),
        SOLICITATION => (at + 24, Some(source)),
        ADVERTISEMENT => (at + 24, target),
        REDIRECT => (at + 40, target),
        _ => return plain,
    };
    let (Some(mac), Some(bound)) = (link_address(bytes, options), bound) else {
        return Claim::Malformed;
    };
    let claimed = match *kind {
        // A sender without an address asks whether it may have this one (RFC 4862, 5.4.2).
        SOLICITATION if source == 0 => target,
        ADVERTISEMENT => target,
        _ => mac.map(|_| bound),
    };
    Claim::Neighbor {
        source,
        claimed,
        mac,
    }
}

/// The link-layer address among the options at `at`, if there is one; `None` if the options are malformed.
fn link_address(bytes: &[u8], mut at: usize) -> Option<Option<Mac>> {
    let mut found = None;
    // Each step takes 8 bytes at least.
    while at + 8 <= bytes.len() {
        let [kind, words] = bytes_at(bytes, at)?;
        if words == 0 {
            return None;
        }
        if LINK_ADDRESS_OPTIONS.contains(&kind) && words == 1 {
            let mac = Mac::new(bytes_at(bytes, at + 2)?);
            // Two options with different addresses: receivers differ in which they take.
            if found.is_some_and(|other| other != mac) {
                return None;
            }
            found = Some(mac);
        }
        at += usize::from(words) * 8;
    }
    Some(found)
}

/// The single IP addresses of all guards, and the ports that they are bound to. A prefix is allowed at its port, and not
/// bound to it: several ports may have `fe80::/64`.
#[derive(Default)]
pub(crate) struct BoundIps {
    /// Ascending; IPv4 addresses as IPv6 has them (RFC 4291, 2.5.5.2).
    hosts: Box<[(u128, u16)]>,
}

/// The address as IPv6 has it.
fn mapped(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

impl BoundIps {
    /// Returns the addresses of these guards, each with its port's number.
    pub(crate) fn new<'g>(guards: impl Iterator<Item = (u16, &'g IpGuard)>) -> BoundIps {
        let mut hosts = Vec::new();
        for (port, guard) in guards {
            let single = |net: &&IpNet| net.prefix_len() == net.max_prefix_len();
            let given = guard.prefixes.iter().filter(single);
            hosts.extend(given.map(|net| (mapped(net.addr()), port)));
            let own = guard.link_locals.iter();
            hosts.extend(own.map(|address| (address.to_bits(), port)));
        }
        hosts.sort_unstable();
        BoundIps {
            hosts: hosts.into(),
        }
    }

    /// Returns whether no address is bound.
    #[inline(always)]
    pub(crate) fn is_empty(&self) -> bool {
        self.hosts.is_empty()
    }

    /// Returns the ports that the address is bound to.
    pub(crate) fn owners(&self, address: IpAddr) -> impl Iterator<Item = u16> + '_ {
        let key = mapped(address);
        let first = self.hosts.partition_point(|(host, _)| *host < key);
        let from_first = self.hosts.get(first..).unwrap_or(&[]).iter();
        let owners = from_first.take_while(move |(host, _)| *host == key);
        owners.map(|(_, port)| *port)
    }
}

/// Drops frames of a port that claim an IP address which is bound to another port. `is_bound` returns whether the address
/// is bound to another port that shares the frame's bridge and VLAN, and not to this one.
pub(crate) fn refuse_claims(burst: &mut Burst, is_bound: impl Fn(IpAddr, (u8, u16)) -> bool) {
    for index in 0..burst.len() {
        let Some(frame) = burst.frames().get(index) else {
            return;
        };
        // Nearly all frames: plain IPv4, or another frame without such claims.
        let is_plain = frame.head[12..14] == [0x08, 0x00] || !may_claim(frame);
        if frame.verdict != Verdict::PENDING || is_plain {
            continue;
        }
        let at = (frame.bridge, frame.vlan);
        let claim = claim(burst, index);
        let taken = claim.taken();
        let is_refused = matches!(claim, Claim::Malformed | Claim::Hidden)
            || taken.is_some_and(|address| is_bound(address, at));
        if let (true, Some(frame)) = (is_refused, burst.frames_mut().get_mut(index)) {
            frame.drop_for(DropReason::NeighborNotAllowed);
        }
    }
}

/// Whether a frame may be ARP or neighbour discovery. Tags, and a length in place of the type, hide that: then it may be.
/// TCP and UDP directly behind an IPv6 header are neither.
#[inline(always)]
fn may_claim(frame: &Frame) -> bool {
    if [frame.head[12], frame.head[13]] == [0x86, 0xdd] {
        return frame.len < 54 || !matches!(frame.head[20], TCP | UDP);
    }
    matches!(
        [frame.head[12], frame.head[13]],
        [0x08, 0x06] | [0x81, 0x00] | [0x88, 0xa8] | [0..0x06, _]
    )
}
