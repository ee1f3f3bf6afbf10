//! What security groups decide on: a packet's addresses, protocol and ports.
//!
//! What is decided on is what is delivered. Bytes beyond the frame's head are held first ([`Burst::hold_beginning`]).

use std::net::Ipv4Addr;

use crosspoint_frame::{Burst, Frame, HEAD_LEN};
use crosspoint_packet::Mac;
use crosspoint_packet::headers::{Fragment, Headers, Stop};

use crate::groups::exempt;
use crate::groups::key::{Ends, Key};
use crate::groups::links::LinkFrame;
use crate::groups::numbers::{
    ECHO, ECHO_V6, EXTENSION_PROTOCOLS, ICMP, ICMPV6, SCTP, TCP, UDP, is_error,
};
use crate::groups::rules::Direction;
use crate::stages::checked_offload;
use crate::stages::port_security::is_hidden;

/// Bytes of a TCP header that are decided on: up to its flags. They must be in the first fragment (RFC 1858, 3).
const TCP_MIN: usize = 14;
/// Bytes of the beginning of a fragmented packet's payload that must be in its first fragment: the ports of all
/// protocols (RFC 1858, 3).
const FIRST_FRAGMENT_MIN: usize = 8;

/// A frame that is no plain packet of a flow, as far as groups are concerned.
#[derive(Clone, Copy, Debug)]
pub(super) enum Packet {
    /// It passes whatever the rules are: without it no station could use the network.
    Exempt,
    /// Not IP, and nothing that passes whatever the rules are.
    Link(LinkFrame),
    /// A packet whose headers contradict their protocol, or hide what they are.
    Other,
    /// An IP packet.
    Flow(Flow, Option<Fragments>),
    /// DHCP between a client and a server: the client's part passes in any case, the server's part by rules.
    Dhcp {
        to_server: bool,
        flow: Flow,
        first_of: Option<Fragments>,
    },
    /// An ICMP error: about a packet of this connection, which went the other way.
    Error {
        about: Flow,
        own: Flow,
        first_of: Option<Fragments>,
    },
    /// A fragment that is not the first.
    Later(Fragments),
}

/// The fields of a packet that rules and connections use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Flow {
    pub(super) ends: Ends,
    /// What rules compare: destination port, or type and code of ICMP.
    pub(super) service: u16,
    pub(super) vlan: u16,
    /// MAC address of the other side.
    pub(super) mac: Mac,
    pub(super) protocol: u8,
    /// Flags of TCP; 0 for others.
    pub(super) flags: u8,
    /// Whether it may belong to a connection. Of ICMP, only echo requests and replies do; nothing that is sent to a group of
    /// stations does: an answer comes from another address.
    pub(super) is_tracked: bool,
    /// Whether it may begin one: a reply to an echo request does not.
    pub(super) begins: bool,
}

impl Flow {
    pub(super) const NONE: Flow = Flow {
        ends: Ends {
            source: 0,
            destination: 0,
            source_port: 0,
            destination_port: 0,
        },
        service: 0,
        vlan: 0,
        mac: Mac::new([0; 6]),
        protocol: 0,
        flags: 0,
        is_tracked: false,
        begins: false,
    };
}

/// A datagram that is sent in fragments.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fragments {
    source: u128,
    destination: u128,
    id: u32,
    /// Of IPv4; 0 of IPv6.
    protocol: u8,
    vlan: u16,
}

impl Fragments {
    pub(super) fn key(&self, zone: u32) -> Key {
        let ends = Ends {
            source: self.source,
            destination: self.destination,
            source_port: (self.id >> 16) as u16,
            destination_port: self.id as u16,
        };
        Key::of_fragments(&ends, self.protocol, (self.vlan, zone))
    }
}

pub(super) fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk::<N>().copied()
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes_at(bytes, at).map(u16::from_be_bytes)
}

/// The IPv4 address as IPv6 has it (RFC 4291, 2.5.5.2).
#[inline(always)]
fn mapped(address: [u8; 4]) -> u128 {
    u128::from(u32::from_be_bytes(address)) | 0xffff << 32
}

/// All that rules and connections look at in a plain packet, but for the other side's MAC address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct PlainKey {
    /// Both addresses.
    pub(super) ends: u64,
    /// Both ports, protocol, VLAN, flags of TCP.
    pub(super) rest: u64,
}

/// Returns the key of a plain packet: untagged IPv4 without options, TCP or UDP, no fragment, from one station to one. All that
/// is read is in the head. DHCP is not plain.
#[inline(always)]
pub(super) fn plain_key(frame: &Frame) -> Option<PlainKey> {
    let head = &frame.head;
    // Few words in place of many bytes: type, version and header length; fragment and protocol.
    let first = u64_at(head, 12)?;
    let second = u64_at(head, 20)?;
    let protocol = (second >> 24) as u8;
    let is_plain = first & 0xff_ffff == IPV4_WITHOUT_OPTIONS
        && second & FRAGMENT == 0
        && (protocol == TCP || protocol == UDP)
        && frame.len >= 42
        // Multicast, reserved and broadcast addresses; and group addresses of Ethernet.
        && head[30] < 224
        && head[0] & 1 == 0;
    let destination_port = u16::from_be_bytes([head[36], head[37]]);
    let is_dhcp = protocol == UDP && matches!(destination_port, 67 | 68);
    if !is_plain || is_dhcp {
        return None;
    }
    let ports = u32::from_ne_bytes([head[34], head[35], head[36], head[37]]);
    Some(PlainKey {
        ends: u64_at(head, 26)?,
        rest: u64::from(ports)
            | u64::from(protocol) << 32
            | u64::from(frame.vlan) << 40
            | u64::from(plain_flags(frame)) << 56,
    })
}

/// The first three bytes of a word: type IPv4, version 4, five words of header.
const IPV4_WITHOUT_OPTIONS: u64 = 0x45_0008;
/// The offset of a fragment, and whether more follow, in the first two bytes of a word.
const FRAGMENT: u64 = 0xff3f;

/// The word of which the byte at `at` is the least.
#[inline(always)]
fn u64_at(head: &[u8; HEAD_LEN], at: usize) -> Option<u64> {
    bytes_at(head, at).map(u64::from_le_bytes)
}

#[inline(always)]
fn plain_flags(frame: &Frame) -> u8 {
    match frame.head[23] == TCP && frame.len >= 48 {
        true => frame.head[47],
        false => 0,
    }
}

/// Reads a packet that has a [`PlainKey`] into `flow`, field by field: a flow that is stored in parts and copied whole waits for
/// the stores.
#[inline(always)]
pub(super) fn read_plain(frame: &Frame, direction: Direction, flow: &mut Flow) {
    let head = &frame.head;
    let port = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
    let destination_port = port(36);
    flow.ends.source = mapped([head[26], head[27], head[28], head[29]]);
    flow.ends.destination = mapped([head[30], head[31], head[32], head[33]]);
    flow.ends.source_port = port(34);
    flow.ends.destination_port = destination_port;
    flow.service = destination_port;
    flow.vlan = frame.vlan;
    flow.mac = remote_mac(frame, direction);
    flow.protocol = head[23];
    flow.flags = plain_flags(frame);
    (flow.is_tracked, flow.begins) = (true, true);
}

/// The MAC address of the side that is not the guest.
#[inline(always)]
fn remote_mac(frame: &Frame, direction: Direction) -> Mac {
    match direction {
        Direction::In => frame.src,
        Direction::Out => frame.dst,
    }
}

/// Reads any frame.
#[inline(never)]
pub(super) fn read(burst: &mut Burst, index: usize, direction: Direction) -> Packet {
    let Some(frame) = burst.frames().get(index) else {
        return Packet::Other;
    };
    let headers = Headers::parse(frame.headers());
    if exempt::is_link_frame(frame, &headers) {
        return Packet::Exempt;
    }
    if is_beyond_head(frame, &headers) {
        return read_held(burst, index, direction).unwrap_or(Packet::Other);
    }
    Reading::new(frame, frame.headers(), headers, direction).packet()
}

/// Reads a frame whose beginning is held.
fn read_held(burst: &mut Burst, index: usize, direction: Direction) -> Option<Packet> {
    let (bytes, len) = burst.hold_beginning(index)?;
    let bytes = bytes.get(..len)?;
    let frame = burst.frames_mut().get_mut(index)?;
    if frame.offload.needs_csum {
        // What was checked may have been read from the guest's memory before the bytes that are held.
        frame.offload = checked_offload(frame, bytes)?;
    }
    Some(Reading::new(frame, bytes, Headers::parse(bytes), direction).packet())
}

/// Whether what is decided on lies beyond the frame's head: ports behind long headers, and what ICMP errors quote.
fn is_beyond_head(frame: &Frame, headers: &Headers) -> bool {
    if frame.len as usize <= HEAD_LEN {
        return false;
    }
    match headers.stop {
        Stop::CutShort => true,
        Stop::Layer4 => {
            let kind = frame.headers().get(headers.offset).copied();
            let needed = match headers.protocol {
                ICMP | ICMPV6 if kind.is_some_and(|kind| is_error(headers.protocol, kind)) => {
                    frame.len as usize
                }
                // Up to the target of neighbour discovery.
                ICMPV6 => 24,
                ICMP => 8,
                TCP => TCP_MIN,
                _ => 4,
            };
            headers.offset + needed > HEAD_LEN
        }
        _ => false,
    }
}

/// A frame while it is read: its first bytes and what the walk found in them.
struct Reading<'b> {
    bytes: &'b [u8],
    headers: Headers,
    /// Whether it is quoted by an ICMP error, which may have only the ports of it (RFC 792).
    is_quoted: bool,
    vlan: u16,
    mac: Mac,
    /// Whether it goes to a group of stations, by its Ethernet address.
    is_to_group: bool,
    /// Length of a frame that is cut into segments; its IP header need not have it.
    large_len: Option<usize>,
}

impl<'b> Reading<'b> {
    fn new(frame: &Frame, bytes: &'b [u8], headers: Headers, direction: Direction) -> Reading<'b> {
        Reading {
            bytes,
            headers,
            is_quoted: false,
            vlan: frame.vlan,
            mac: remote_mac(frame, direction),
            is_to_group: frame.dst.is_group(),
            large_len: (frame.offload.gso_type != 0).then_some(frame.len as usize),
        }
    }

    /// Reads the packet.
    fn packet(&self) -> Packet {
        let headers = &self.headers;
        if headers.stop == Stop::Unknown && !is_hidden(self.bytes, headers) {
            return Packet::Link(LinkFrame {
                ethertype: headers.ethertype,
                vlan: self.vlan,
                mac: self.mac,
            });
        }
        self.ip_packet().unwrap_or(Packet::Other)
    }

    fn ip_packet(&self) -> Option<Packet> {
        let (headers, bytes) = (&self.headers, self.bytes);
        if headers.ip_version == 0 || is_hidden(bytes, headers) {
            return None;
        }
        let ends = self.addresses()?;
        let fragments = match headers.fragment {
            Fragment::No | Fragment::Atomic => None,
            Fragment::First | Fragment::Later => Some(self.fragments(ends)?),
        };
        match headers.stop {
            // It would write over the flags that were decided on (RFC 3128).
            Stop::LaterFragment if self.overlaps_tcp_header() => return None,
            Stop::LaterFragment => return fragments.map(Packet::Later),
            Stop::Layer4 => {}
            _ => return None,
        }
        let flow = match self.extension_protocol() {
            Some(protocol) => self.portless(ends, protocol?),
            None => self.flow(ends, fragments.is_some())?,
        };
        if exempt::is_membership(bytes, headers) || exempt::is_discovery(bytes, headers) {
            return Some(Packet::Exempt);
        }
        Some(match flow.protocol {
            UDP => match exempt::dhcp(headers.ip_version, &flow.ends, self.is_to_group) {
                Some(to_server) => Packet::Dhcp {
                    to_server,
                    flow,
                    first_of: fragments,
                },
                None => Packet::Flow(flow, fragments),
            },
            ICMP | ICMPV6 if is_error(flow.protocol, (flow.service >> 8) as u8) => {
                match self.quoted() {
                    Some(about) => Packet::Error {
                        about,
                        own: flow,
                        first_of: fragments,
                    },
                    None => Packet::Flow(flow, fragments),
                }
            }
            _ => Packet::Flow(flow, fragments),
        })
    }

    /// Source and destination. An IPv6 packet with IPv4 addresses in it would be decided on as another packet.
    fn addresses(&self) -> Option<(u128, u128)> {
        let at = self.headers.network;
        let v4 = |at: usize| bytes_at(self.bytes, at).map(mapped);
        let v6 = |at: usize| bytes_at(self.bytes, at).map(u128::from_be_bytes);
        match self.headers.ip_version {
            4 => Some((v4(at + 12)?, v4(at + 16)?)),
            _ => {
                let ends = (v6(at + 8)?, v6(at + 24)?);
                let is_mapped = |address: u128| address >> 32 == 0xffff;
                (!is_mapped(ends.0) && !is_mapped(ends.1)).then_some(ends)
            }
        }
    }

    /// The datagram that a fragment belongs to.
    fn fragments(&self, ends: (u128, u128)) -> Option<Fragments> {
        let (headers, bytes) = (&self.headers, self.bytes);
        let mut protocol = 0;
        let id = match headers.ip_version {
            4 => {
                [protocol] = bytes_at(bytes, headers.network + 9)?;
                be16(bytes, headers.network + 4)?.into()
            }
            // The fragment header is the last one before layer 4, unless others follow it: then nothing tells where it is.
            _ => {
                let at = headers.offset.checked_sub(8)?;
                let is_only = headers.extensions == 1 && at == headers.network + 40;
                is_only
                    .then(|| bytes_at(bytes, at + 4).map(u32::from_be_bytes))
                    .flatten()?
            }
        };
        Some(Fragments {
            source: ends.0,
            destination: ends.1,
            id,
            protocol,
            vlan: self.vlan,
        })
    }

    /// Whether it is a later fragment that begins within a TCP header, 8 bytes behind its start. Of IPv6, only the first fragment
    /// tells the protocol (RFC 8200, 4.5); no sender cuts so early.
    fn overlaps_tcp_header(&self) -> bool {
        let (headers, bytes) = (&self.headers, self.bytes);
        // In units of 8 bytes.
        let place = match headers.ip_version {
            4 if bytes.get(headers.network + 9) != Some(&TCP) => return false,
            4 => be16(bytes, headers.network + 6).map(|field| field & 0x1fff),
            _ => be16(bytes, headers.offset.saturating_sub(6)).map(|field| field >> 3),
        };
        place.is_none_or(|place| place < 2)
    }

    /// The walk skips some headers that are protocols to rules: an authentication header, mobility, HIP, shim6. Returns that
    /// protocol if there is one; `None` within if nothing tells which.
    fn extension_protocol(&self) -> Option<Option<u8>> {
        let headers = &self.headers;
        if headers.repeatable || headers.fragment != Fragment::No {
            return None;
        }
        let at = if headers.ip_version == 4 { 9 } else { 6 };
        let first = self.bytes.get(headers.network + at).copied();
        Some(first.filter(|first| EXTENSION_PROTOCOLS.contains(first)))
    }

    fn portless(&self, (source, destination): (u128, u128), protocol: u8) -> Flow {
        let ends = Ends {
            source,
            destination,
            source_port: 0,
            destination_port: 0,
        };
        let is_tracked = !self.is_to_group && !is_group(destination);
        Flow {
            ends,
            service: 0,
            vlan: self.vlan,
            mac: self.mac,
            protocol,
            flags: 0,
            is_tracked,
            begins: is_tracked,
        }
    }

    /// Reads ports and flags of the layer-4 header at which the walk stopped. What the IP header says is there must be there:
    /// a receiver does not look at padding.
    fn flow(&self, ends: (u128, u128), is_fragment: bool) -> Option<Flow> {
        let (bytes, at) = (self.bytes, self.headers.offset);
        let flow = self.portless(ends, self.headers.protocol);
        let needed = match (is_fragment, flow.protocol) {
            (_, TCP) if !self.is_quoted => TCP_MIN,
            (true, _) => FIRST_FRAGMENT_MIN,
            (false, TCP | UDP | SCTP) => 4,
            (false, ICMP | ICMPV6) => 8,
            _ => 0,
        };
        if self.end()?.checked_sub(at)? < needed {
            return None;
        }
        match flow.protocol {
            TCP if !self.is_quoted => {
                let flags = *bytes.get(at + 13)?;
                Some(Flow {
                    flags,
                    ..with_ports(flow, bytes, at)?
                })
            }
            TCP | UDP | SCTP => with_ports(flow, bytes, at),
            ICMP | ICMPV6 => with_echo(flow, bytes, at),
            _ => Some(flow),
        }
    }

    /// The end of the packet as its IP header has it, as an offset in the frame.
    fn end(&self) -> Option<usize> {
        let at = self.headers.network;
        if let Some(len) = self.large_len {
            return Some(len);
        }
        Some(match self.headers.ip_version {
            4 => at + usize::from(be16(self.bytes, at + 2)?),
            // A jumbogram has 0; no receiver of Ethernet takes one.
            _ => at + 40 + usize::from(be16(self.bytes, at + 4)?),
        })
    }

    /// The packet that an ICMP error quotes, as a packet of its connection in the opposite direction: as if the error were
    /// its answer.
    fn quoted(&self) -> Option<Flow> {
        let version = self.headers.ip_version;
        // The walk begins at an Ethernet header, of which it only reads the type.
        let mut inner = [0; 14 + 128];
        let rest = self.bytes.get(self.headers.offset + 8..)?;
        let len = rest.len().min(128);
        inner
            .get_mut(14..14 + len)?
            .copy_from_slice(rest.get(..len)?);
        let kind: [u8; 2] = if version == 4 {
            [0x08, 0x00]
        } else {
            [0x86, 0xdd]
        };
        inner.get_mut(12..14)?.copy_from_slice(&kind);
        let inner = Reading {
            bytes: inner.get(..14 + len)?,
            headers: Headers::parse(inner.get(..14 + len)?),
            is_quoted: true,
            vlan: self.vlan,
            mac: self.mac,
            is_to_group: false,
            // The quoted header's length is that of the whole packet.
            large_len: Some(usize::MAX),
        };
        if inner.headers.stop != Stop::Layer4 || inner.headers.ip_version != version {
            return None;
        }
        let flow = inner.flow(inner.addresses()?, false)?;
        let ends = flow.ends.turned();
        flow.is_tracked.then_some(Flow { ends, ..flow })
    }
}

/// Whether an address is that of a group of stations, or of all.
fn is_group(address: u128) -> bool {
    match address >> 32 {
        0xffff => Ipv4Addr::from_bits(address as u32).octets()[0] >= 224,
        _ => address >> 120 == 0xff,
    }
}

fn with_ports(flow: Flow, bytes: &[u8], at: usize) -> Option<Flow> {
    let (source_port, destination_port) = (be16(bytes, at)?, be16(bytes, at + 2)?);
    let ends = Ends {
        source_port,
        destination_port,
        ..flow.ends
    };
    Some(Flow {
        ends,
        service: destination_port,
        ..flow
    })
}

/// ICMP: an echo request (RFC 792, RFC 4443) has its identifier as source port and its type as destination port, the reply
/// has them the other way. Other messages belong to no connection.
fn with_echo(flow: Flow, bytes: &[u8], at: usize) -> Option<Flow> {
    let service = be16(bytes, at)?;
    let (echo, reply) = match flow.protocol {
        ICMP => (ECHO, 0),
        _ => (ECHO_V6, ECHO_V6 + (1 << 8)),
    };
    let (is_request, is_reply) = (service == echo, service == reply);
    let id = be16(bytes, at + 4)?;
    let ports = if is_request { (id, echo) } else { (echo, id) };
    let is_tracked = flow.is_tracked && (is_request || is_reply);
    let ends = Ends {
        source_port: if is_tracked { ports.0 } else { 0 },
        destination_port: if is_tracked { ports.1 } else { 0 },
        ..flow.ends
    };
    Some(Flow {
        ends,
        service,
        is_tracked,
        begins: is_tracked && is_request,
        ..flow
    })
}
