//! What security groups decide on: a packet's addresses, protocol and ports.
//!
//! What is decided on is what is delivered. Bytes beyond the frame's head are held first ([`Burst::hold_beginning`]), with
//! one exception: the flags of a TCP header there are read once more than they are delivered. They do not decide which
//! packets pass, only how long a connection is remembered.

use std::net::{IpAddr, Ipv4Addr};

use crosspoint_frame::{Burst, Frame, HEAD_LEN};
use crosspoint_packet::headers::{Fragment, Headers, Stop};

use crate::groups::connections::{Ends, Key};
use crate::groups::numbers::{ICMP, ICMPV6, SCTP, TCP, UDP, address_of};
use crate::stages::port_security::is_hidden;

const ARP: u16 = 0x0806;
/// Bytes of the beginning of a fragmented packet's payload that must be in its first fragment: the ports of all
/// protocols (RFC 1858, 3).
const FIRST_FRAGMENT_MIN: usize = 8;
/// Hop limit that receivers require of neighbour discovery (RFC 4861, 7.1).
const HOPS: u8 = 255;

/// A frame, as far as groups are concerned.
#[derive(Clone, Copy, Debug)]
pub(super) enum Packet {
    /// It passes whatever the rules are: without it no station could use the network.
    Exempt,
    /// Neither IP nor anything that passes.
    Other,
    /// A packet whose headers contradict their protocol, or hide what they are.
    Invalid,
    /// DHCP between client and server. A client's part passes in any case; a server's part by rules.
    Dhcp { to_server: bool, flow: Flow },
    /// An IP packet.
    Flow(Flow),
    /// An ICMP error: about a packet of this connection, which went the other way.
    Error { about: Flow, own: Flow },
    /// A fragment that is not the first.
    Later(Fragments),
}

/// The fields of a packet that rules and connections use.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flow {
    pub(super) ends: Ends,
    pub(super) protocol: u8,
    /// What rules compare: destination port, or type and code of ICMP.
    pub(super) service: u16,
    /// Flags of TCP; 0 for others.
    pub(super) flags: u8,
    /// Whether its answers can be told from its fields: of ICMP, only those of echo requests can.
    pub(super) has_answers: bool,
    /// The datagram whose first fragment it is.
    pub(super) first_of: Option<Fragments>,
}

impl Flow {
    /// The address of the other side of a packet from (`is_out`) or to the guest.
    pub(super) fn remote(&self, is_out: bool) -> IpAddr {
        let address = match is_out {
            true => self.ends.destination,
            false => self.ends.source,
        };
        address_of(address)
    }
}

/// A datagram that is sent in fragments.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fragments {
    pub(super) source: u128,
    pub(super) destination: u128,
    pub(super) id: u32,
}

impl Fragments {
    pub(super) fn key(&self, zone: u32) -> Key {
        let ends = Ends {
            source: self.source,
            destination: self.destination,
            source_port: (self.id >> 16) as u16,
            destination_port: self.id as u16,
        };
        Key::of_fragments(&ends, zone)
    }
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk::<N>().copied()
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes_at(bytes, at).map(u16::from_be_bytes)
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes_at(bytes, at).map(u32::from_be_bytes)
}

/// Source and destination of the IP header at `at`.
fn addresses(bytes: &[u8], version: u8, at: usize) -> Option<(u128, u128)> {
    let v4 = |at: usize| {
        let address = bytes_at::<4>(bytes, at).map(Ipv4Addr::from);
        address.map(|address| address.to_ipv6_mapped().to_bits())
    };
    let v6 = |at: usize| bytes_at(bytes, at).map(u128::from_be_bytes);
    match version {
        4 => Some((v4(at + 12)?, v4(at + 16)?)),
        _ => Some((v6(at + 8)?, v6(at + 24)?)),
    }
}

/// Reads frame `index`, which goes to or comes from a guest.
#[inline(always)]
pub(super) fn read(burst: &mut Burst, index: usize) -> Packet {
    let Some(frame) = burst.frames().get(index) else {
        return Packet::Other;
    };
    // Nearly all frames: untagged IPv4 without options, TCP or UDP, no fragment. All that is read is in the head.
    let head = &frame.head;
    let is_plain = head[12..15] == [0x08, 0x00, 0x45]
        && (head[20] & 0x3f) | head[21] == 0
        && matches!(head[23], TCP | UDP)
        && frame.len >= 42;
    if is_plain && let Some((source, destination)) = addresses(head, 4, 14) {
        let port = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
        let (protocol, ends) = (
            head[23],
            Ends {
                source,
                destination,
                source_port: port(34),
                destination_port: port(36),
            },
        );
        let flow = Flow {
            ends,
            protocol,
            service: ends.destination_port,
            flags: if protocol == TCP { head[47] } else { 0 },
            has_answers: true,
            first_of: None,
        };
        return of_flow(4, flow);
    }
    read_any(burst, index)
}

/// The same for all others.
#[inline(never)]
fn read_any(burst: &mut Burst, index: usize) -> Packet {
    let Some(frame) = burst.frames().get(index) else {
        return Packet::Other;
    };
    if frame.dst.is_link_local_control() {
        return Packet::Exempt;
    }
    let headers = Headers::parse(frame.headers());
    if headers.ethertype == ARP {
        return Packet::Exempt;
    }
    if is_beyond_head(frame, &headers) {
        let Some((bytes, len)) = burst.hold_beginning(index) else {
            return Packet::Invalid;
        };
        let bytes = bytes.get(..len).unwrap_or(&[]);
        return of_bytes(bytes, &Headers::parse(bytes), None);
    }
    // Only the flags of TCP may lie beyond the head.
    let mut flags = None;
    if headers.protocol == TCP && headers.offset + 13 >= HEAD_LEN {
        let mut bytes = [0; HEAD_LEN + 32];
        let read = burst.read_beginning(frame, &mut bytes);
        flags = bytes
            .get(..read)
            .and_then(|bytes| bytes.get(headers.offset + 13))
            .copied();
    }
    of_bytes(frame.headers(), &headers, flags)
}

/// Whether what is decided on lies beyond the frame's head: ports behind long headers, and what ICMP errors quote.
fn is_beyond_head(frame: &Frame, headers: &Headers) -> bool {
    if frame.len as usize <= HEAD_LEN {
        return false;
    }
    match headers.stop {
        Stop::CutShort => true,
        Stop::Layer4 => {
            let is_icmp = matches!(headers.protocol, ICMP | ICMPV6);
            let kind = frame.headers().get(headers.offset).copied();
            let needed = match is_icmp {
                true if kind.is_some_and(|kind| is_error(headers.protocol, kind)) => {
                    frame.len as usize
                }
                true => 8,
                false => 4,
            };
            headers.offset + needed > HEAD_LEN
        }
        _ => false,
    }
}

/// Reads a packet from its first bytes.
fn of_bytes(bytes: &[u8], headers: &Headers, flags: Option<u8>) -> Packet {
    if headers.ip_version == 0 {
        return match is_hidden(bytes, headers) || headers.stop == Stop::BadHeader {
            true => Packet::Invalid,
            false => Packet::Other,
        };
    }
    let Some((source, destination)) = addresses(bytes, headers.ip_version, headers.network) else {
        return Packet::Invalid;
    };
    let fragments = match headers.fragment {
        Fragment::No | Fragment::Atomic => None,
        Fragment::First | Fragment::Later => match fragments(bytes, headers, (source, destination))
        {
            Some(fragments) => Some(fragments),
            None => return Packet::Invalid,
        },
    };
    match (headers.stop, fragments) {
        (Stop::LaterFragment, Some(fragments)) => return Packet::Later(fragments),
        (Stop::Layer4, _) => {}
        _ => return Packet::Invalid,
    }
    // What the IP header says is there: a receiver does not look at the padding behind it.
    let payload = end_of_packet(bytes, headers).and_then(|end| end.checked_sub(headers.offset));
    let needed = match (fragments.is_some(), headers.protocol) {
        (true, _) => FIRST_FRAGMENT_MIN,
        (false, TCP | UDP | SCTP) => 4,
        (false, ICMP | ICMPV6) => 8,
        _ => 0,
    };
    if payload.is_none_or(|payload| payload < needed) {
        return Packet::Invalid;
    }
    let Some(flow) = flow(bytes, headers, (source, destination), flags) else {
        return Packet::Invalid;
    };
    let flow = Flow {
        first_of: fragments,
        ..flow
    };
    let at = headers.offset;
    match headers.protocol {
        ICMPV6 if is_neighbor_discovery(bytes, headers) => Packet::Exempt,
        ICMP | ICMPV6 if is_error(headers.protocol, bytes.get(at).copied().unwrap_or(0)) => {
            match quoted(bytes, headers) {
                Some(about) => Packet::Error { about, own: flow },
                None => Packet::Flow(flow),
            }
        }
        _ => of_flow(headers.ip_version, flow),
    }
}

/// Ports and flags of the layer-4 header at which the walk stopped.
fn flow(
    bytes: &[u8],
    headers: &Headers,
    (source, destination): (u128, u128),
    flags: Option<u8>,
) -> Option<Flow> {
    let at = headers.offset;
    let (mut ports, mut service, mut has_answers) = ((0, 0), 0, true);
    match headers.protocol {
        TCP | UDP | SCTP => {
            ports = (be16(bytes, at)?, be16(bytes, at + 2)?);
            service = ports.1;
        }
        ICMP | ICMPV6 => {
            service = be16(bytes, at)?;
            let kind = bytes.get(at).copied()?;
            has_answers = match headers.protocol {
                // Echo request and reply (RFC 792, RFC 4443).
                ICMP => matches!(kind, 8 | 0),
                _ => matches!(kind, 128 | 129),
            };
            // The identifier.
            let id = if has_answers { be16(bytes, at + 4)? } else { 0 };
            ports = (id, id);
        }
        _ => {}
    }
    let flags = match headers.protocol {
        TCP => flags.or(bytes.get(at + 13).copied()).unwrap_or(0),
        _ => 0,
    };
    Some(Flow {
        ends: Ends {
            source,
            destination,
            source_port: ports.0,
            destination_port: ports.1,
        },
        protocol: headers.protocol,
        service,
        flags,
        has_answers,
        first_of: None,
    })
}

/// The end of the packet as its IP header has it, as an offset in the frame.
fn end_of_packet(bytes: &[u8], headers: &Headers) -> Option<usize> {
    let at = headers.network;
    Some(match headers.ip_version {
        4 => at + usize::from(be16(bytes, at + 2)?),
        // A jumbogram has 0; no receiver of Ethernet takes one.
        _ => at + 40 + usize::from(be16(bytes, at + 4)?),
    })
}

/// The datagram that a fragment belongs to.
fn fragments(bytes: &[u8], headers: &Headers, ends: (u128, u128)) -> Option<Fragments> {
    let id = match headers.ip_version {
        4 => be16(bytes, headers.network + 4)?.into(),
        // The fragment header is the last one before layer 4, unless others follow it: then nothing tells where it is.
        _ => {
            let at = headers.offset.checked_sub(8)?;
            let is_only = headers.extensions == 1 && at == headers.network + 40;
            is_only.then(|| be32(bytes, at + 4)).flatten()?
        }
    };
    Some(Fragments {
        source: ends.0,
        destination: ends.1,
        id,
    })
}

/// A packet with ports: DHCP (RFC 2131, 4.1; RFC 8415, 7.2), or another flow.
#[inline(always)]
fn of_flow(version: u8, flow: Flow) -> Packet {
    let ports = (flow.ends.source_port, flow.ends.destination_port);
    match (version, ports) {
        (4, (68, 67)) | (6, (546, 547)) if flow.protocol == UDP => Packet::Dhcp {
            to_server: true,
            flow,
        },
        (4, (67, 68)) | (6, (547, 546)) if flow.protocol == UDP => Packet::Dhcp {
            to_server: false,
            flow,
        },
        _ => Packet::Flow(flow),
    }
}

/// Neighbour discovery (RFC 4861, 4), which no router forwards, and multicast listener discovery (RFC 2710, RFC 3810), by
/// which switches learn where groups are needed.
fn is_neighbor_discovery(bytes: &[u8], headers: &Headers) -> bool {
    let hops = bytes.get(headers.network + 7).copied();
    match bytes.get(headers.offset) {
        Some(133..=137) => hops == Some(HOPS),
        Some(130..=132 | 143) => hops == Some(1),
        _ => false,
    }
}

/// ICMP messages that quote a packet: destination unreachable, source quench, time exceeded and parameter problem (RFC
/// 792); those and packet too big (RFC 4443).
fn is_error(protocol: u8, kind: u8) -> bool {
    match protocol {
        ICMP => matches!(kind, 3 | 4 | 11 | 12),
        _ => matches!(kind, 1..=4),
    }
}

/// The packet that an ICMP error quotes, as a packet of its connection in the opposite direction: as if the error were its
/// answer. The error's receiver is the quoted packet's sender, or no connection is found.
fn quoted(bytes: &[u8], headers: &Headers) -> Option<Flow> {
    let at = headers.offset + 8;
    // The walk begins at an Ethernet header, of which it only reads the type.
    let mut inner = [0; 14 + 128];
    let rest = bytes.get(at..)?;
    let len = rest.len().min(128);
    inner
        .get_mut(14..14 + len)?
        .copy_from_slice(rest.get(..len)?);
    let kind: [u8; 2] = if headers.ip_version == 4 {
        [0x08, 0x00]
    } else {
        [0x86, 0xdd]
    };
    inner.get_mut(12..14)?.copy_from_slice(&kind);
    let inner = inner.get(..14 + len)?;
    let walk = Headers::parse(inner);
    if walk.stop != Stop::Layer4 || walk.ip_version != headers.ip_version {
        return None;
    }
    let (source, destination) = addresses(inner, walk.ip_version, walk.network)?;
    let flow = flow(inner, &walk, (source, destination), Some(0))?;
    let ends = flow.ends;
    Some(Flow {
        ends: Ends {
            source: ends.destination,
            destination: ends.source,
            source_port: ends.destination_port,
            destination_port: ends.source_port,
        },
        ..flow
    })
}
