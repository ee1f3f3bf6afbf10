//! A frame's headers for filters, found in one walk of bounded length.

use crate::Mac;
use crate::parse::{
    ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_QINQ, ETHERTYPE_QINQ_OLD,
    ETHERTYPE_VLAN, PROTO_IPV6_FRAGMENT, PROTO_TCP, PROTO_UDP, be16,
};

/// Most tags that are parsed.
pub const TAGS_MAX: usize = 4;
/// Most IPv6 extension headers that are parsed.
pub const EXTENSIONS_MAX: usize = 8;

const ETHERTYPE_RARP: u16 = 0x8035;
/// Tags of 802.1Q, 802.1ad, and the type used before 802.1ad.
const TAG_TYPES: [u16; 3] = [ETHERTYPE_VLAN, ETHERTYPE_QINQ, ETHERTYPE_QINQ_OLD];
const PROTO_SCTP: u8 = 132;
const PROTO_AUTHENTICATION: u8 = 51;
/// IPv6 extension headers with a length in units of 8 bytes after the first 8: hop-by-hop options, routing, destination
/// options, mobility, HIP, shim6 (RFC 8200, 4; the IANA registry of them).
const PROTO_EXTENSIONS: [u8; 6] = [0, 43, 60, 135, 139, 140];

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

/// A frame's headers.
pub(super) struct Headers<'b> {
    bytes: &'b [u8],
    /// The whole frame's length.
    pub(super) len: usize,
    vlans: [u16; TAGS_MAX],
    tags: usize,
    /// Type after the tags.
    pub(super) ethertype: Option<u16>,
    /// Offset of the network header.
    network: usize,
    /// IP protocol, after extension headers.
    pub(super) protocol: Option<u8>,
    /// Offset of the transport header; only the first fragment has one.
    transport: Option<usize>,
}

impl<'b> Headers<'b> {
    pub(super) fn new(bytes: &'b [u8], len: usize) -> Headers<'b> {
        let mut headers = Headers {
            bytes,
            len,
            vlans: [0; TAGS_MAX],
            tags: 0,
            ethertype: None,
            network: 14,
            protocol: None,
            transport: None,
        };
        headers.walk_link();
        match headers.ethertype {
            Some(ETHERTYPE_IPV4) => headers.walk_v4(),
            Some(ETHERTYPE_IPV6) => headers.walk_v6(),
            _ => None,
        };
        headers
    }

    fn walk_link(&mut self) {
        self.ethertype = be16(self.bytes, 12);
        for vlan in &mut self.vlans {
            let is_tag = self.ethertype.is_some_and(|kind| TAG_TYPES.contains(&kind));
            let Some(tci) = be16(self.bytes, self.network).filter(|_| is_tag) else {
                return;
            };
            *vlan = tci & 0x0fff;
            self.tags += 1;
            self.ethertype = be16(self.bytes, self.network + 2);
            self.network += 4;
        }
    }

    fn walk_v4(&mut self) -> Option<()> {
        let ip = self.network;
        self.protocol = Some(*self.bytes.get(ip + 9)?);
        let header = usize::from(*self.bytes.get(ip)? & 0xf) * 4;
        let is_first = be16(self.bytes, ip + 6)? & 0x1fff == 0;
        self.transport = (is_first && header >= 20).then_some(ip + header);
        Some(())
    }

    fn walk_v6(&mut self) -> Option<()> {
        let mut next = *self.bytes.get(self.network + 6)?;
        let (mut at, mut is_first) = (self.network + 40, true);
        for _ in 0..EXTENSIONS_MAX {
            self.protocol = Some(next);
            let len = match next {
                PROTO_IPV6_FRAGMENT => {
                    is_first &= be16(self.bytes, at + 2)? & 0xfff8 == 0;
                    8
                }
                PROTO_AUTHENTICATION => (usize::from(*self.bytes.get(at + 1)?) + 2) * 4,
                kind if PROTO_EXTENSIONS.contains(&kind) => {
                    (usize::from(*self.bytes.get(at + 1)?) + 1) * 8
                }
                _ => break,
            };
            next = *self.bytes.get(at)?;
            at += len;
            if !is_first {
                break;
            }
        }
        self.protocol = Some(next);
        self.transport = is_first.then_some(at);
        Some(())
    }

    pub(super) fn vlans(&self) -> &[u16] {
        self.vlans.get(..self.tags).unwrap_or(&[])
    }

    pub(super) fn is_v4(&self) -> bool {
        self.ethertype == Some(ETHERTYPE_IPV4)
    }

    pub(super) fn is_v6(&self) -> bool {
        self.ethertype == Some(ETHERTYPE_IPV6)
    }

    pub(super) fn mac(&self, source: bool) -> Option<Mac> {
        Some(Mac::new(self.array(if source { 6 } else { 0 })?))
    }

    pub(super) fn ip4(&self, source: bool) -> Option<u32> {
        let at = self.network + if source { 12 } else { 16 };
        self.array(at)
            .filter(|_| self.is_v4())
            .map(u32::from_be_bytes)
    }

    /// Returns the IPv4 address of an ARP message's sender or target (RFC 826).
    pub(super) fn arp(&self, source: bool) -> Option<u32> {
        let is_arp = self.ethertype == Some(ETHERTYPE_ARP);
        self.resolved(source).filter(|_| is_arp)
    }

    /// The same for a RARP message (RFC 903).
    pub(super) fn rarp(&self, source: bool) -> Option<u32> {
        let is_rarp = self.ethertype == Some(ETHERTYPE_RARP);
        self.resolved(source).filter(|_| is_rarp)
    }

    fn resolved(&self, source: bool) -> Option<u32> {
        let at = self.network + if source { 14 } else { 24 };
        self.array(at).map(u32::from_be_bytes)
    }

    pub(super) fn ip6(&self, source: bool) -> Option<u128> {
        let at = self.network + if source { 8 } else { 24 };
        self.array(at)
            .filter(|_| self.is_v6())
            .map(u128::from_be_bytes)
    }

    pub(super) fn port(&self, source: bool) -> Option<u16> {
        let has_ports = matches!(self.protocol, Some(PROTO_TCP | PROTO_UDP | PROTO_SCTP));
        let at = self.transport.filter(|_| has_ports)?;
        be16(self.bytes, if source { at } else { at + 2 })
    }

    pub(super) fn tcp_flags(&self) -> Option<u8> {
        let at = self
            .transport
            .filter(|_| self.protocol == Some(PROTO_TCP))?;
        self.bytes.get(at + 13).copied()
    }

    fn array<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.bytes.get(at..at + N)?.try_into().ok()
    }
}
