//! Walks a frame's headers from the link header to layer 4. Everything that asks where the transport header is, or whether
//! there is one, asks this walker: the flow hash, segmentation, joining, the check of offload requests, and filters. So a
//! frame cannot have one protocol for one of them and another for the next.
//!
//! [`Headers::parse`] never reads past the given bytes, takes at most [`EXTENSIONS_MAX`] steps after the IP header, and
//! reads 8 bytes in each (20 for IPv4, 40 for IPv6). It reports where it stopped, and why: see [`Stop`]. An access list must
//! not treat a frame as if it had no ports if the walk stopped for a reason other than [`Stop::Layer4`]: the receiver may
//! find some.
//!
//! Decisions, and their sources:
//!
//! - **Tags.** 802.1Q and 802.1ad, up to [`TAGS_MAX`] (IEEE 802.1Q, 9.5: the two types that are assigned). [`Tags::Any`] is
//!   for filters, which also accept the type 0x9100 from before 802.1ad, and up to [`Tags::MOST`] tags, like libpcap and
//!   etherparse. Linux does not know 0x9100 as a tag, so segments behind it may be neither joined nor cut.
//! - **IPv4.** Version 4 and a header length of 20 bytes or more (RFC 1122, 3.2.1.1; RFC 1812, 5.2.2). Options are skipped
//!   by the header length.
//! - **Lengths in IP headers are not read.** Large frames may have 0 there, and padding follows short packets. [`parse_l4`]
//!   reads them, for callers that need the packet's end.
//! - **IPv6 extension headers** are those that IANA lists, except ESP, whose content is encrypted: hop-by-hop options,
//!   routing, fragment, AH, destination options, mobility, HIP, shim6. Any number and any order is accepted (RFC 8200,
//!   4.1), but hop-by-hop options only directly after the IPv6 header: a receiver discards the packet otherwise (RFC 8200,
//!   4). A header with an unknown number is layer 4: nothing tells where it ends.
//! - **AH** has its length in words of 4 bytes, and at least 12 bytes (RFC 4302, 2.2). It is skipped behind IPv4 too,
//!   where it is the only such header. The packet is authenticated, so it can be neither cut nor joined; and a receiver
//!   checks the order of an association's packets (RFC 4302, 3.4.3), so the flow hash does not use the ports behind it.
//! - **Fragments.** Only the first fragment has the transport header; the walk ends at the fragment header of a later one,
//!   whose next-header field need not be right (RFC 8200, 4.5). A fragment header with offset 0 and no more fragments
//!   makes an *atomic fragment*, a whole packet (RFC 6946). With several fragment headers, the worst counts.

use crate::parse::{
    ETHERNET_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_QINQ, ETHERTYPE_QINQ_OLD,
    ETHERTYPE_VLAN, PROTO_TCP, PROTO_UDP, TAG_LEN, TAGS_MAX, be16,
};

/// Most extension headers that are parsed. RFC 8200, 4.1 recommends an order with seven.
pub const EXTENSIONS_MAX: usize = 8;

pub(crate) const IPV4_HEADER_MIN: usize = 20;
pub(crate) const IPV6_HEADER: usize = 40;

/// Numbers of IPv6 extension headers (RFC 8200, 4; the IANA registry of them).
pub(crate) const HOP_BY_HOP: u8 = 0;
pub(crate) const ROUTING: u8 = 43;
pub(crate) const FRAGMENT: u8 = 44;
pub(crate) const AUTHENTICATION: u8 = 51;
pub(crate) const DESTINATION_OPTIONS: u8 = 60;
const MOBILITY: u8 = 135;
const HIP: u8 = 139;
const SHIM6: u8 = 140;

/// More-fragments bit, and offset, of an IPv4 header (RFC 791, 3.1).
const IPV4_MORE: u16 = 0x2000;
const IPV4_OFFSET: u16 = 0x1fff;
/// The same of an IPv6 fragment header (RFC 8200, 4.5).
const IPV6_MORE: u16 = 1;
const IPV6_OFFSET: u16 = 0xfff8;

/// Tags that are skipped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tags {
    /// Up to [`TAGS_MAX`] of 802.1Q and 802.1ad.
    Standard,
    /// Up to [`Tags::MOST`], also of the type 0x9100.
    Any,
}

impl Tags {
    /// Most tags that are skipped with [`Tags::Any`].
    pub const MOST: usize = 4;

    fn includes(self, ethertype: u16) -> bool {
        match ethertype {
            ETHERTYPE_VLAN | ETHERTYPE_QINQ => true,
            ETHERTYPE_QINQ_OLD => self == Tags::Any,
            _ => false,
        }
    }

    fn most(self) -> u8 {
        match self {
            Tags::Standard => TAGS_MAX,
            Tags::Any => Tags::MOST as u8,
        }
    }
}

/// Reason for which a walk ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// The header at [`Headers::offset`] is no extension header: a transport header, or another protocol. The offset may be
    /// beyond the given bytes, since only the first bytes of each header before it must be there.
    Layer4,
    /// A fragment that is not the first: it has no transport header. [`Headers::protocol`] is what it claims to continue.
    LaterFragment,
    /// The given bytes end within the header that comes next.
    CutShort,
    /// Neither IPv4 nor IPv6.
    Unknown,
    /// Another tag follows as many as are skipped.
    TooManyTags,
    /// Another extension header follows [`EXTENSIONS_MAX`] of them.
    TooManyExtensions,
    /// A header contradicts its protocol: another IP version, a length that is too small, or hop-by-hop options that are
    /// not directly after the IPv6 header.
    BadHeader,
}

/// Whether a packet is a fragment.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Fragment {
    /// No fragment.
    No,
    /// A whole packet with an IPv6 fragment header (RFC 6946).
    Atomic,
    /// The first of several fragments.
    First,
    /// Another one.
    Later,
}

/// A frame's headers as far as layer 4: the result of a walk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Headers {
    /// Type after the tags that were skipped; 0 if the frame is too short for one.
    pub ethertype: u16,
    /// Number of tags that were skipped.
    pub tags: u8,
    /// Offset of the header after the tags, bytes.
    pub network: usize,
    /// 4 or 6; 0 if there is no IP header, or the walk stopped at it. The addresses are within the bytes otherwise.
    pub ip_version: u8,
    /// Number of the protocol or extension header at `offset`. Meaningless if `ip_version` is 0.
    pub protocol: u8,
    /// Offset of the header at which the walk stopped, bytes. Meaningless if `ip_version` is 0.
    pub offset: usize,
    /// Whether the packet is a fragment.
    pub fragment: Fragment,
    /// Number of extension headers that were skipped.
    pub extensions: u8,
    /// Whether all of these are hop-by-hop options, routing and destination options: those that every segment of a large
    /// frame can repeat. It is false after an AH.
    pub repeatable: bool,
    /// Why the walk ended.
    pub stop: Stop,
}

impl Headers {
    /// Walks the headers of the frame that begins with `bytes`.
    #[inline(always)]
    pub fn parse(bytes: &[u8]) -> Headers {
        Headers::parse_behind(bytes, Tags::Standard)
    }

    /// The same with a choice of the tags that are skipped.
    #[inline(always)]
    pub fn parse_behind(bytes: &[u8], tags: Tags) -> Headers {
        let mut headers = Headers {
            ethertype: 0,
            tags: 0,
            network: ETHERNET_LEN,
            ip_version: 0,
            protocol: 0,
            offset: 0,
            fragment: Fragment::No,
            extensions: 0,
            repeatable: true,
            stop: Stop::CutShort,
        };
        let Some(ethertype) = be16(bytes, ETHERNET_LEN - 2) else {
            return headers;
        };
        headers.ethertype = ethertype;
        while tags.includes(headers.ethertype) {
            if headers.tags == tags.most() {
                headers.stop = Stop::TooManyTags;
                return headers;
            }
            let Some(ethertype) = be16(bytes, headers.network + 2) else {
                return headers;
            };
            headers.ethertype = ethertype;
            headers.tags += 1;
            headers.network += TAG_LEN;
        }
        headers.stop = match headers.ethertype {
            ETHERTYPE_IPV4 => match Walk::behind_ipv4(bytes, headers.network) {
                Ok(walk) => return headers.with(4, walk),
                Err(stop) => stop,
            },
            ETHERTYPE_IPV6 => match Walk::behind_ipv6(bytes, headers.network) {
                Ok(walk) => return headers.with(6, walk),
                Err(stop) => stop,
            },
            _ => Stop::Unknown,
        };
        headers
    }

    #[inline(always)]
    fn with(self, ip_version: u8, walk: Walk) -> Headers {
        Headers {
            ip_version,
            protocol: walk.protocol,
            offset: walk.offset,
            fragment: walk.fragment,
            extensions: walk.extensions,
            repeatable: walk.repeatable,
            stop: walk.stop,
            ..self
        }
    }

    /// Returns whether the packet certainly has no layer-4 header of this protocol.
    pub(crate) fn is_certainly_not(&self, protocol: u8) -> bool {
        match self.stop {
            Stop::Unknown => true,
            Stop::Layer4 => self.protocol != protocol,
            // What a later fragment continues may begin with an extension header.
            Stop::LaterFragment => self.protocol != protocol && !is_extension(self.protocol, 6),
            _ => false,
        }
    }

    /// Returns the place where the walk stopped as a layer-4 header, which has `len` bytes with its payload.
    pub(crate) fn l4(&self, len: usize) -> L4 {
        L4 {
            protocol: self.protocol,
            offset: self.offset,
            ip_offset: self.network,
            ip_version: self.ip_version,
            len,
            fragment: self.fragment != Fragment::No,
            repeatable: self.repeatable,
        }
    }
}

/// The part of a walk after an IP header. It is a value of its own, and its rare steps take single values, so that the
/// headers of a plain packet stay in registers.
struct Walk {
    offset: usize,
    protocol: u8,
    fragment: Fragment,
    extensions: u8,
    repeatable: bool,
    stop: Stop,
}

impl Walk {
    #[inline(always)]
    fn new(protocol: u8, offset: usize) -> Walk {
        Walk {
            offset,
            protocol,
            fragment: Fragment::No,
            extensions: 0,
            repeatable: true,
            stop: Stop::Layer4,
        }
    }

    #[inline(always)]
    fn behind_ipv4(bytes: &[u8], ip: usize) -> Result<Walk, Stop> {
        let header = chunk::<IPV4_HEADER_MIN>(bytes, ip).ok_or(Stop::CutShort)?;
        let len = usize::from(header[0] & 0xf) * 4;
        if header[0] >> 4 != 4 || len < IPV4_HEADER_MIN {
            return Err(Stop::BadHeader);
        }
        let (protocol, offset) = (header[9], ip + len);
        let place = u16::from_be_bytes([header[6], header[7]]);
        Ok(match place & (IPV4_OFFSET | IPV4_MORE) {
            0 if protocol != AUTHENTICATION => Walk::new(protocol, offset),
            place => Walk::behind_unusual_ipv4(bytes, protocol, offset, place),
        })
    }

    /// The same for a fragment, or with an AH.
    #[cold]
    #[inline(never)]
    fn behind_unusual_ipv4(bytes: &[u8], protocol: u8, offset: usize, place: u16) -> Walk {
        if place & IPV4_OFFSET != 0 {
            return Walk {
                fragment: Fragment::Later,
                stop: Stop::LaterFragment,
                ..Walk::new(protocol, offset)
            };
        }
        let fragment = match place & IPV4_MORE {
            0 => Fragment::No,
            _ => Fragment::First,
        };
        Walk {
            fragment,
            ..Walk::behind_extensions(bytes, 4, protocol, offset)
        }
    }

    #[inline(always)]
    fn behind_ipv6(bytes: &[u8], ip: usize) -> Result<Walk, Stop> {
        let header = chunk::<IPV6_HEADER>(bytes, ip).ok_or(Stop::CutShort)?;
        if header[0] >> 4 != 6 {
            return Err(Stop::BadHeader);
        }
        let (protocol, offset) = (header[6], ip + IPV6_HEADER);
        Ok(match protocol {
            PROTO_TCP | PROTO_UDP => Walk::new(protocol, offset),
            _ => Walk::behind_extensions(bytes, 6, protocol, offset),
        })
    }

    /// Walks the extension headers at `offset`, of which the first is a `protocol`.
    #[cold]
    #[inline(never)]
    fn behind_extensions(bytes: &[u8], ip_version: u8, protocol: u8, offset: usize) -> Walk {
        let mut walk = Walk::new(protocol, offset);
        while is_extension(walk.protocol, ip_version) && walk.stop == Stop::Layer4 {
            walk.stop = walk.step(bytes);
        }
        walk
    }

    /// Skips an extension header. Returns [`Stop::Layer4`] if the walk goes on.
    fn step(&mut self, bytes: &[u8]) -> Stop {
        if usize::from(self.extensions) == EXTENSIONS_MAX {
            return Stop::TooManyExtensions;
        }
        if self.protocol == HOP_BY_HOP && self.extensions > 0 {
            return Stop::BadHeader;
        }
        let Some(header) = chunk::<8>(bytes, self.offset) else {
            return Stop::CutShort;
        };
        let len = match self.protocol {
            AUTHENTICATION if header[1] == 0 => return Stop::BadHeader,
            AUTHENTICATION => (usize::from(header[1]) + 2) * 4,
            // Its second byte is reserved.
            FRAGMENT => 8,
            _ => (usize::from(header[1]) + 1) * 8,
        };
        if self.protocol == FRAGMENT {
            let place = u16::from_be_bytes([header[2], header[3]]);
            self.fragment = self.fragment.max(fragment_of_ipv6(place));
        }
        self.repeatable &= matches!(self.protocol, HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS);
        self.protocol = header[0];
        self.offset += len;
        self.extensions += 1;
        match self.fragment {
            Fragment::Later => Stop::LaterFragment,
            _ => Stop::Layer4,
        }
    }
}

fn fragment_of_ipv6(place: u16) -> Fragment {
    match (place & IPV6_OFFSET, place & IPV6_MORE) {
        (0, 0) => Fragment::Atomic,
        (0, _) => Fragment::First,
        _ => Fragment::Later,
    }
}

fn chunk<const N: usize>(bytes: &[u8], at: usize) -> Option<&[u8; N]> {
    bytes.get(at..)?.first_chunk()
}

/// Returns whether `kind` is an extension header after an IP header of this version.
fn is_extension(kind: u8, ip_version: u8) -> bool {
    match kind {
        AUTHENTICATION => true,
        HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS | MOBILITY | HIP | SHIM6 => {
            ip_version == 6
        }
        _ => false,
    }
}

/// Returns protocol and offset of the header after the hop-by-hop, routing or destination options header at `at`.
pub(crate) fn extension(headers: &[u8], at: usize) -> Option<(u8, usize)> {
    let header = headers.get(at..at + 2)?;
    Some((header[0], at + (usize::from(header[1]) + 1) * 8))
}

/// Position of a frame's transport header, and fields of its flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct L4 {
    /// IP protocol: 6 TCP, 17 UDP, others.
    pub protocol: u8,
    /// Offset of the transport header from the frame's first byte.
    pub offset: usize,
    /// Offset of the IP header.
    pub ip_offset: usize,
    /// 4 or 6.
    pub ip_version: u8,
    /// Length of transport header and payload, bytes.
    pub len: usize,
    /// Whether it is a fragment, or has a fragment header. Port numbers are not used then: only the first fragment has
    /// them, and all fragments must go to the same queue.
    pub fragment: bool,
    /// Whether every segment can repeat the headers before it: see [`Headers::repeatable`].
    pub repeatable: bool,
}

impl L4 {
    /// Returns the offset of the checksum field within the transport header, for protocols whose checksum a NIC or virtio
    /// may be asked to fill.
    pub fn checksum_offset(&self) -> Option<usize> {
        match self.protocol {
            PROTO_TCP => Some(16),
            PROTO_UDP => Some(6),
            _ => None,
        }
    }
}

/// Finds the transport header of an IPv4 or IPv6 frame within `bytes` (the frame or its beginning), or the place where a
/// later fragment's payload begins. Its length is what the IP header's length leaves. `None` if the walk stops before it
/// (see [`Headers`]), or the IP header's length ends before it.
pub fn parse_l4(bytes: &[u8]) -> Option<L4> {
    let headers = Headers::parse(bytes);
    if !matches!(headers.stop, Stop::Layer4 | Stop::LaterFragment) {
        return None;
    }
    let ip = headers.network;
    let end = match headers.ip_version {
        4 => ip + usize::from(be16(bytes, ip + 2)?),
        _ => ip + IPV6_HEADER + usize::from(be16(bytes, ip + 4)?),
    };
    Some(headers.l4(end.checked_sub(headers.offset)?))
}
