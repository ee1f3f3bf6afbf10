//! Packet filters: small programs, compiled from the part of tcpdump's language (pcap-filter(7)) that operators use, and
//! run on a frame's first bytes.
//!
//! ```text
//! ether [host|src|dst] MAC   broadcast   multicast   vlan [ID]
//! ip   ip6   arp   icmp   icmp6   tcp   udp
//! [ip|ip6|arp] [src|dst] host ADDRESS      [src|dst] net ADDRESS/LENGTH
//! [tcp|udp] [src|dst] port N               [src|dst] portrange A-B
//! [tcp] syn|fin|rst|psh|ack|urg            less N   greater N
//! and && or || not ! ( )
//! ```
//!
//! As in libpcap, `and` and `or` have equal precedence and associate to the left, `not` binds closest, `host` may be
//! omitted after `src` and `dst`, and a value alone uses the words of the previous one: `port 80 or 443`. `less` and
//! `greater` include their number, which is compared with the whole frame's length. Differences from libpcap:
//!
//! - Protocols, addresses and ports match under any tags (802.1Q, 802.1ad), up to [`TAGS_MAX`] of them. `vlan` does not
//!   change the meaning of later words: `vlan 100` is true if any of the frame's tags names VLAN 100. It is never true
//!   for a frame without a tag, even one that belongs to that VLAN.
//! - TCP, UDP and ICMPv6 are found after IPv6 extension headers, up to [`EXTENSIONS_MAX`] of them, TCP, UDP and ICMP after
//!   an authentication header of IPv4, and ports in first fragments of IPv6 too.
//! - A frame whose IP header has another version than its type says, or is shorter than such a header must be, has no
//!   protocol and no ports ([`crate::headers`]).
//! - `syn` and the other flags mean `tcp[tcpflags] & tcp-syn != 0`, and match over IPv6 too.
//! - A test that would read beyond the available bytes is false, so its `not` is true.

mod fields;
mod language;
#[cfg(test)]
mod tests;

use std::fmt;

use crate::Mac;
pub use crate::headers::EXTENSIONS_MAX;
pub use fields::TAGS_MAX;
use fields::{Fields, Side, either};

/// Most operations of a filter: each test, `and`, `or` and `not` is one.
pub const OPERATIONS_MAX: usize = 64;
/// Number of first bytes that a filter should get of a frame: the link header, two tags, the longest IPv4 header or IPv6
/// with some extensions, and the TCP header.
pub const BYTES_WANTED: usize = 128;

/// A condition on one frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Test {
    Ether(Side, Mac),
    Broadcast,
    Multicast,
    /// Any tag, or a tag of this VLAN.
    Vlan(Option<u16>),
    /// The type after the tags.
    EtherType(u16),
    /// A protocol over IPv4, IPv6, or either.
    Protocol(Version, u8),
    /// Leading bits of an address, those of `mask`. Includes ARP if no version is named.
    Net4(Family, Side, u32, u32),
    Net6(Side, u128, u128),
    /// A range of ports, of one protocol or of any with ports.
    Ports(Option<u8>, Side, u16, u16),
    /// Any of these TCP flags.
    Flags(u8),
    /// The frame's length is at most this.
    Less(u32),
    /// The frame's length is at least this.
    Greater(u32),
}

/// IP version.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Version {
    Any,
    V4,
    V6,
}

/// Protocol of the IPv4 addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Family {
    Any,
    Ip,
    Arp,
}

/// An operation on a stack of results.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Operation {
    Test(Test),
    And,
    Or,
    Not,
}

/// A filter. It owns no heap memory, and neither parsing nor running allocates.
#[derive(Clone, PartialEq, Eq)]
pub struct Filter {
    operations: [Operation; OPERATIONS_MAX],
    len: usize,
}

/// Error in a filter's text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FilterError {
    /// Number of the character, from 1.
    pub column: usize,
    /// Number of characters concerned; at least 1.
    pub width: usize,
    /// What was expected there.
    pub expected: &'static str,
}

impl fmt::Display for FilterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "column {}: expected {}", self.column, self.expected)
    }
}

impl std::error::Error for FilterError {}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.operations()).finish()
    }
}

impl Filter {
    /// The filter that matches every frame.
    pub const ALL: Filter = Filter {
        operations: [Operation::Not; OPERATIONS_MAX],
        len: 0,
    };

    /// Parses a filter; see [the module](self) for the language. An empty text matches every frame.
    pub fn parse(text: &str) -> Result<Filter, FilterError> {
        language::parse(text)
    }

    /// Returns whether a whole frame matches.
    pub fn matches(&self, frame: &[u8]) -> bool {
        self.matches_beginning(frame, frame.len())
    }

    /// Returns whether a frame of `len` bytes that begins with `bytes` matches. [`BYTES_WANTED`] bytes are enough for
    /// nearly all frames.
    pub fn matches_beginning(&self, bytes: &[u8], len: usize) -> bool {
        if self.len == 0 {
            return true;
        }
        let fields = Fields::new(bytes, len);
        // Results, the last one in the lowest bit. There are at most as many as operations.
        let mut stack = 0u64;
        for operation in self.operations() {
            let top = stack & 1;
            stack = match operation {
                Operation::Test(test) => stack << 1 | u64::from(holds(test, &fields)),
                Operation::Not => stack ^ 1,
                Operation::And => (stack >> 1) & (top | !1),
                Operation::Or => (stack >> 1) | top,
            };
        }
        stack & 1 != 0
    }

    fn operations(&self) -> &[Operation] {
        self.operations.get(..self.len).unwrap_or(&[])
    }

    /// Adds an operation, if there is room.
    fn push(&mut self, operation: Operation) -> bool {
        let place = self.operations.get_mut(self.len);
        let Some(place) = place else { return false };
        *place = operation;
        self.len += 1;
        true
    }
}

fn holds(test: &Test, fields: &Fields<'_>) -> bool {
    match *test {
        Test::Ether(side, mac) => either(side, |from| fields.mac(from) == Some(mac)),
        Test::Broadcast => fields.mac(false) == Some(Mac::BROADCAST),
        Test::Multicast => fields.mac(false).is_some_and(Mac::is_group),
        Test::Vlan(None) => fields.vlans().next().is_some(),
        Test::Vlan(Some(id)) => fields.vlans().any(|vlan| vlan == id),
        Test::EtherType(wanted) => fields.ethertype() == wanted,
        Test::Protocol(version, wanted) => {
            fields.protocol() == Some(wanted)
                && match version {
                    Version::Any => true,
                    Version::V4 => fields.is_v4(),
                    Version::V6 => fields.is_v6(),
                }
        }
        Test::Net4(family, side, net, mask) => either(side, |from| {
            let address = match family {
                Family::Any => {
                    (fields.ip4(from).or_else(|| fields.arp(from))).or_else(|| fields.rarp(from))
                }
                Family::Ip => fields.ip4(from),
                Family::Arp => fields.arp(from),
            };
            address.is_some_and(|address| address & mask == net)
        }),
        Test::Net6(side, net, mask) => either(side, |from| {
            fields
                .ip6(from)
                .is_some_and(|address| address & mask == net)
        }),
        Test::Ports(protocol, side, first, last) => {
            protocol.is_none_or(|wanted| fields.protocol() == Some(wanted))
                && either(side, |from| {
                    fields
                        .port(from)
                        .is_some_and(|port| (first..=last).contains(&port))
                })
        }
        Test::Flags(flags) => fields.tcp_flags().is_some_and(|has| has & flags != 0),
        Test::Less(len) => fields.len <= len as usize,
        Test::Greater(len) => fields.len >= len as usize,
    }
}
