//! The fields of a frame that filters test, at the places that [`crate::headers`] finds.

use crate::Mac;
use crate::headers::{Headers, Stop, Tags};
use crate::parse::{
    ETHERNET_LEN, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, PROTO_TCP, PROTO_UDP, TAG_LEN,
    be16,
};

/// Most tags that are parsed.
pub const TAGS_MAX: usize = Tags::MOST;

const ETHERTYPE_RARP: u16 = 0x8035;
const PROTO_SCTP: u8 = 132;

/// An end of a frame, packet or connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Side {
    Source,
    Destination,
    Either,
}

/// Returns whether `holds` is true for an end in `side`. Its argument is `true` for the source.
pub(super) fn either(side: Side, holds: impl Fn(bool) -> bool) -> bool {
    (side != Side::Destination && holds(true)) || (side != Side::Source && holds(false))
}

/// A frame's fields.
pub(super) struct Fields<'b> {
    bytes: &'b [u8],
    /// The whole frame's length.
    pub(super) len: usize,
    headers: Headers,
}

impl<'b> Fields<'b> {
    pub(super) fn new(bytes: &'b [u8], len: usize) -> Fields<'b> {
        let headers = Headers::parse_behind(bytes, Tags::Any);
        Fields {
            bytes,
            len,
            headers,
        }
    }

    /// Returns the VLANs of the tags, from the outermost on.
    pub(super) fn vlans(&self) -> impl Iterator<Item = u16> {
        let at = |number: u8| ETHERNET_LEN + TAG_LEN * usize::from(number);
        let tags = (0..self.headers.tags).filter_map(move |number| be16(self.bytes, at(number)));
        tags.map(|tci| tci & 0x0fff)
    }

    /// Returns the type after the tags.
    pub(super) fn ethertype(&self) -> u16 {
        self.headers.ethertype
    }

    /// Returns the IP protocol, after extension headers.
    pub(super) fn protocol(&self) -> Option<u8> {
        let is_known = self.headers.ip_version != 0;
        is_known.then_some(self.headers.protocol)
    }

    /// Returns the offset of the transport header; only the first fragment has one.
    fn transport(&self) -> Option<usize> {
        (self.headers.stop == Stop::Layer4).then_some(self.headers.offset)
    }

    pub(super) fn is_v4(&self) -> bool {
        self.ethertype() == ETHERTYPE_IPV4
    }

    pub(super) fn is_v6(&self) -> bool {
        self.ethertype() == ETHERTYPE_IPV6
    }

    pub(super) fn mac(&self, source: bool) -> Option<Mac> {
        Some(Mac::new(self.array(if source { 6 } else { 0 })?))
    }

    pub(super) fn ip4(&self, source: bool) -> Option<u32> {
        let at = self.headers.network + if source { 12 } else { 16 };
        self.array(at)
            .filter(|_| self.is_v4())
            .map(u32::from_be_bytes)
    }

    /// Returns the IPv4 address of an ARP message's sender or target (RFC 826).
    pub(super) fn arp(&self, source: bool) -> Option<u32> {
        let is_arp = self.ethertype() == ETHERTYPE_ARP;
        self.resolved(source).filter(|_| is_arp)
    }

    /// The same for a RARP message (RFC 903).
    pub(super) fn rarp(&self, source: bool) -> Option<u32> {
        let is_rarp = self.ethertype() == ETHERTYPE_RARP;
        self.resolved(source).filter(|_| is_rarp)
    }

    fn resolved(&self, source: bool) -> Option<u32> {
        let at = self.headers.network + if source { 14 } else { 24 };
        self.array(at).map(u32::from_be_bytes)
    }

    pub(super) fn ip6(&self, source: bool) -> Option<u128> {
        let at = self.headers.network + if source { 8 } else { 24 };
        self.array(at)
            .filter(|_| self.is_v6())
            .map(u128::from_be_bytes)
    }

    pub(super) fn port(&self, source: bool) -> Option<u16> {
        let has_ports = matches!(self.protocol(), Some(PROTO_TCP | PROTO_UDP | PROTO_SCTP));
        let at = self.transport().filter(|_| has_ports)?;
        be16(self.bytes, if source { at } else { at + 2 })
    }

    pub(super) fn tcp_flags(&self) -> Option<u8> {
        let at = self
            .transport()
            .filter(|_| self.protocol() == Some(PROTO_TCP))?;
        self.bytes.get(at + 13).copied()
    }

    fn array<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.bytes.get(at..at + N)?.try_into().ok()
    }
}
