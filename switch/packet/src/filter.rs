//! Which frames are wanted: a small program, made from text in the part of tcpdump's language (pcap-filter(7)) that
//! operators use, and run on a frame's first bytes.
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
//! As in libpcap, `and` and `or` bind equally and from the left, `not` binds closest, `host` may be left out behind `src`
//! and `dst`, and a value alone has the words of the one before it: `port 80 or 443`. `less` and `greater` include their
//! number, which is compared with the whole frame's length. Other than there:
//!
//! - Protocols, addresses and ports match under any tags (802.1Q, 802.1ad), up to [`TAGS_MAX`] of them. `vlan` does not
//!   change what the words behind it mean: `vlan 100` is true where any of the frame's tags names VLAN 100, and nowhere
//!   that a frame without a tag belongs to that VLAN.
//! - TCP, UDP and ICMPv6 are found behind IPv6 extension headers, up to [`EXTENSIONS_MAX`] of them, and ports in first
//!   fragments of IPv6 too.
//! - `syn` and its like stand for `tcp[tcpflags] & tcp-syn != 0`, and match over IPv6 too.
//! - What would have to be read beyond the bytes that there are is not true; so its `not` is.

mod language;
#[cfg(test)]
mod tests;
mod walk;

use std::fmt;

use crate::Mac;
pub use walk::{EXTENSIONS_MAX, TAGS_MAX};
use walk::{Headers, Side, either};

/// The most operations that a filter may have: each test, `and`, `or` and `not` is one.
pub const OPERATIONS_MAX: usize = 64;
/// How many of a frame's first bytes a filter should get: the link header, two tags, the longest IPv4 header or IPv6 with
/// some extensions, and TCP's.
pub const BYTES_WANTED: usize = 128;

/// A condition on one frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Test {
    Ether(Side, Mac),
    Broadcast,
    Multicast,
    /// Any tag, or one that names this VLAN.
    Vlan(Option<u16>),
    /// The type behind the tags.
    EtherType(u16),
    /// A protocol of IPv4, of IPv6, or of either.
    Protocol(Version, u8),
    /// An address's leading bits: those of `mask`. Of ARP too, where no version is asked for.
    Net4(Family, Side, u32, u32),
    Net6(Side, u128, u128),
    /// Ports from one to another, of one protocol or of any that has ports.
    Ports(Option<u8>, Side, u16, u16),
    /// Any of these flags of TCP.
    Flags(u8),
    /// The frame's length is at most this.
    Less(u32),
    /// At least this.
    Greater(u32),
}

/// Which IP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Version {
    Any,
    V4,
    V6,
}

/// Whose IPv4 addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Family {
    Any,
    Ip,
    Arp,
}

/// An operation on a stack of answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Operation {
    Test(Test),
    And,
    Or,
    Not,
}

/// A filter. It holds no memory of its own, and neither running nor making it allocates any.
#[derive(Clone, PartialEq, Eq)]
pub struct Filter {
    operations: [Operation; OPERATIONS_MAX],
    len: usize,
}

/// What is wrong with a filter's text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FilterError {
    /// Where: the character's number, from 1.
    pub column: usize,
    /// How many characters it is about; at least 1.
    pub width: usize,
    /// What would be right there.
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
    /// The filter that takes every frame.
    pub const ALL: Filter = Filter {
        operations: [Operation::Not; OPERATIONS_MAX],
        len: 0,
    };

    /// Reads a filter; see [the module](self) for the language. No words at all take every frame.
    pub fn parse(text: &str) -> Result<Filter, FilterError> {
        language::parse(text)
    }

    /// Whether a whole frame is wanted.
    pub fn matches(&self, frame: &[u8]) -> bool {
        self.matches_beginning(frame, frame.len())
    }

    /// Whether a frame of `len` bytes that begins with `bytes` is wanted. [`BYTES_WANTED`] of them are enough for nearly all
    /// frames.
    pub fn matches_beginning(&self, bytes: &[u8], len: usize) -> bool {
        if self.len == 0 {
            return true;
        }
        let headers = Headers::new(bytes, len);
        // The answers, the last one lowest. There are at most as many as operations.
        let mut stack = 0u64;
        for operation in self.operations() {
            let top = stack & 1;
            stack = match operation {
                Operation::Test(test) => stack << 1 | u64::from(holds(test, &headers)),
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

fn holds(test: &Test, headers: &Headers<'_>) -> bool {
    match *test {
        Test::Ether(side, mac) => either(side, |from| headers.mac(from) == Some(mac)),
        Test::Broadcast => headers.mac(false) == Some(Mac::BROADCAST),
        Test::Multicast => headers.mac(false).is_some_and(Mac::is_group),
        Test::Vlan(None) => !headers.vlans().is_empty(),
        Test::Vlan(Some(id)) => headers.vlans().contains(&id),
        Test::EtherType(wanted) => headers.ethertype == Some(wanted),
        Test::Protocol(version, wanted) => {
            headers.protocol == Some(wanted)
                && match version {
                    Version::Any => true,
                    Version::V4 => headers.is_v4(),
                    Version::V6 => headers.is_v6(),
                }
        }
        Test::Net4(family, side, net, mask) => either(side, |from| {
            let address = match family {
                Family::Any => {
                    (headers.ip4(from).or_else(|| headers.arp(from))).or_else(|| headers.rarp(from))
                }
                Family::Ip => headers.ip4(from),
                Family::Arp => headers.arp(from),
            };
            address.is_some_and(|address| address & mask == net)
        }),
        Test::Net6(side, net, mask) => either(side, |from| {
            headers
                .ip6(from)
                .is_some_and(|address| address & mask == net)
        }),
        Test::Ports(protocol, side, first, last) => {
            protocol.is_none_or(|wanted| headers.protocol == Some(wanted))
                && either(side, |from| {
                    headers
                        .port(from)
                        .is_some_and(|port| (first..=last).contains(&port))
                })
        }
        Test::Flags(flags) => headers.tcp_flags().is_some_and(|has| has & flags != 0),
        Test::Less(len) => headers.len <= len as usize,
        Test::Greater(len) => headers.len >= len as usize,
    }
}
