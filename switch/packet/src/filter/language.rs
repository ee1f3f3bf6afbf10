//! Parses a filter's text to operations: by recursive descent, with one word of lookahead.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::fields::Side;
use super::{Family, Filter, FilterError, Operation, Test, Version};
use crate::Mac;
use crate::parse::ETHERTYPE_ARP;
use crate::parse::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, PROTO_TCP, PROTO_UDP};

/// Greatest nesting of parentheses and `not`.
const NESTING_MAX: usize = 32;
const PROTO_ICMP: u8 = 1;
const PROTO_ICMP6: u8 = 58;

const PRIMITIVE: &str =
    "a condition such as `host 10.0.0.1`, `tcp port 80`, `ether host MAC`, `vlan 100` or `arp`";
const ADDRESS: &str = "an IPv4 or IPv6 address";
const ADDRESS4: &str = "an IPv4 address, which the words before it need";
const ADDRESS6: &str = "an IPv6 address, which the words before it need";
const NET: &str = "a network such as 10.0.0.0/8 or fd00::/8, with no bits set behind its length";
const PORT: &str = "a port, 0 to 65535";
const RANGE: &str = "two ports with the first not above the second, such as 8000-8080";
const MAC: &str = "a MAC address such as 52:54:00:00:00:01";
const VLAN: &str = "a VLAN, 0 to 4095";
const LENGTH: &str = "a length in bytes";
const KIND: &str = "`host`, `net`, `port`, `portrange` or an address";
const KIND_OF_IP: &str = "`host`, `net` or an address behind `ip`, `ip6` and `arp`";
const KIND_OF_PORT: &str = "`port` or `portrange` behind `tcp` and `udp`";
const ETHER: &str = "`host`, `src`, `dst`, `broadcast`, `multicast` or a MAC address";
const JOINT: &str = "`and`, `or` or the end";
const CLOSING: &str = "`and`, `or` or `)`";
const SHALLOWER: &str = "at most 32 parentheses and `not` within each other";
const SHORTER: &str = "a shorter filter: it may have 64 conditions, `and`, `or` and `not` together";

/// Meaning of a value: from the words before it, or from those of the previous value.
#[derive(Clone, Copy)]
struct Words {
    protocol: Option<Protocol>,
    side: Side,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ether,
    Host,
    Net,
    Port,
    PortRange,
    Vlan,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Ip,
    Ip6,
    Arp,
    Transport(u8),
}

/// A word or operator of the text.
#[derive(Clone, Copy)]
struct Word<'t> {
    text: &'t str,
    /// Byte offset of its start.
    at: usize,
}

struct Parser<'t> {
    text: &'t str,
    /// Byte offset of the rest.
    at: usize,
    /// The next word; empty at the end.
    next: Word<'t>,
    filter: Filter,
    words: Option<Words>,
    depth: usize,
}

type Result<T> = std::result::Result<T, FilterError>;

pub(super) fn parse(text: &str) -> Result<Filter> {
    let mut parser = Parser {
        text,
        at: 0,
        next: Word { text: "", at: 0 },
        filter: Filter::ALL,
        words: None,
        depth: 0,
    };
    parser.advance();
    if parser.next.text.is_empty() {
        return Ok(parser.filter);
    }
    parser.expression()?;
    match parser.next.text {
        "" => Ok(parser.filter),
        _ => Err(parser.wrong(JOINT)),
    }
}

impl<'t> Parser<'t> {
    /// Reads the next word, and returns the current one.
    fn advance(&mut self) -> Word<'t> {
        let rest = self.text.get(self.at..).unwrap_or("");
        let trimmed = rest.trim_start();
        let at = self.text.len() - trimmed.len();
        let is_sign = |c: char| "()!&|".contains(c);
        let len = match trimmed.chars().next() {
            None => 0,
            Some(c) if is_sign(c) => {
                let doubled = trimmed.starts_with("&&") || trimmed.starts_with("||");
                if doubled { 2 } else { 1 }
            }
            Some(_) => trimmed
                .find(|c: char| c.is_whitespace() || is_sign(c))
                .unwrap_or(trimmed.len()),
        };
        let text = trimmed.get(..len).unwrap_or("");
        self.at = at + len;
        std::mem::replace(&mut self.next, Word { text, at })
    }

    /// Takes the next word if it is one of these.
    fn take(&mut self, any: &[&str]) -> bool {
        let found = any.contains(&self.next.text);
        if found {
            self.advance();
        }
        found
    }

    /// Returns the error that the next word is not the expected one.
    fn wrong(&self, expected: &'static str) -> FilterError {
        self.wrong_at(self.next, expected)
    }

    fn wrong_at(&self, word: Word<'_>, expected: &'static str) -> FilterError {
        let before = self.text.get(..word.at).unwrap_or("");
        FilterError {
            column: before.chars().count() + 1,
            width: word.text.chars().count().max(1),
            expected,
        }
    }

    fn push(&mut self, operation: Operation) -> Result<()> {
        match self.filter.push(operation) {
            true => Ok(()),
            false => Err(self.wrong(SHORTER)),
        }
    }

    fn expression(&mut self) -> Result<()> {
        self.term()?;
        loop {
            let joint = match self.next.text {
                "and" | "&&" => Operation::And,
                "or" | "||" => Operation::Or,
                _ => return Ok(()),
            };
            self.advance();
            self.term()?;
            self.push(joint)?;
        }
    }

    fn term(&mut self) -> Result<()> {
        if !matches!(self.next.text, "not" | "!" | "(") {
            return self.primitive();
        }
        if self.depth == NESTING_MAX {
            return Err(self.wrong(SHALLOWER));
        }
        self.depth += 1;
        if self.advance().text == "(" {
            self.expression()?;
            if !self.take(&[")"]) {
                return Err(self.wrong(CLOSING));
            }
        } else {
            self.term()?;
            self.push(Operation::Not)?;
        }
        self.depth -= 1;
        Ok(())
    }

    fn primitive(&mut self) -> Result<()> {
        let first = self.next;
        if let Some(test) = self.lone_word() {
            return self.push(Operation::Test(test));
        }
        let protocol = match first.text {
            "ether" => {
                self.advance();
                return self.ether();
            }
            "vlan" => {
                self.advance();
                return self.vlan();
            }
            "less" | "greater" => {
                self.advance();
                return self.length(first.text == "less");
            }
            "ip" => Some(Protocol::Ip),
            "ip6" => Some(Protocol::Ip6),
            "arp" => Some(Protocol::Arp),
            "tcp" => Some(Protocol::Transport(PROTO_TCP)),
            "udp" => Some(Protocol::Transport(PROTO_UDP)),
            _ => None,
        };
        if protocol.is_some() {
            self.advance();
        }
        // Flags mean the same without `tcp`.
        if protocol == Some(Protocol::Transport(PROTO_TCP))
            && let Some(flags) = flag(self.next.text)
        {
            self.advance();
            return self.push(Operation::Test(Test::Flags(flags)));
        }
        let side = self.side();
        match (self.kind(protocol, side)?, protocol) {
            (Some(kind), _) => {
                let words = Words {
                    protocol,
                    side: side.unwrap_or(Side::Either),
                    kind,
                };
                self.words = Some(words);
                self.value(words)
            }
            (None, Some(protocol)) => self.push(Operation::Test(of_protocol(protocol))),
            // No protocol, direction or kind: a value with the words of the previous one.
            (None, None) => match self.words {
                Some(words) if is_value(first.text) => self.value(words),
                _ => Err(self.wrong(PRIMITIVE)),
            },
        }
    }

    /// Parses a condition of one word.
    fn lone_word(&mut self) -> Option<Test> {
        let test = match self.next.text {
            "broadcast" => Test::Broadcast,
            "multicast" => Test::Multicast,
            "icmp" => Test::Protocol(Version::V4, PROTO_ICMP),
            "icmp6" => Test::Protocol(Version::V6, PROTO_ICMP6),
            word => Test::Flags(flag(word)?),
        };
        self.advance();
        Some(test)
    }

    fn side(&mut self) -> Option<Side> {
        let side = match self.next.text {
            "src" => Side::Source,
            "dst" => Side::Destination,
            _ => return None,
        };
        self.advance();
        Some(side)
    }

    /// Parses the kind of the next value, if it is named or implied by a direction before it.
    fn kind(&mut self, protocol: Option<Protocol>, side: Option<Side>) -> Result<Option<Kind>> {
        let kind = match self.next.text {
            "host" => Kind::Host,
            "net" => Kind::Net,
            "port" => Kind::Port,
            "portrange" => Kind::PortRange,
            text if side.is_some() && is_value(text) => Kind::Host,
            _ if side.is_some() => return Err(self.wrong(KIND)),
            _ => return Ok(None),
        };
        let is_port = matches!(kind, Kind::Port | Kind::PortRange);
        match protocol {
            Some(Protocol::Transport(_)) if !is_port => return Err(self.wrong(KIND_OF_PORT)),
            Some(Protocol::Ip | Protocol::Ip6 | Protocol::Arp) if is_port => {
                return Err(self.wrong(KIND_OF_IP));
            }
            _ => {}
        }
        if !is_value(self.next.text) {
            self.advance();
        }
        Ok(Some(kind))
    }

    fn ether(&mut self) -> Result<()> {
        let side = match self.next.text {
            "broadcast" | "multicast" => {
                let test = match self.advance().text {
                    "broadcast" => Test::Broadcast,
                    _ => Test::Multicast,
                };
                return self.push(Operation::Test(test));
            }
            "host" => {
                self.advance();
                Side::Either
            }
            _ => {
                let side = self.side();
                if side.is_some() {
                    self.take(&["host"]);
                } else if !is_value(self.next.text) {
                    return Err(self.wrong(ETHER));
                }
                side.unwrap_or(Side::Either)
            }
        };
        let words = Words {
            protocol: None,
            side,
            kind: Kind::Ether,
        };
        self.words = Some(words);
        self.value(words)
    }

    fn vlan(&mut self) -> Result<()> {
        let words = Words {
            protocol: None,
            side: Side::Either,
            kind: Kind::Vlan,
        };
        self.words = Some(words);
        match is_value(self.next.text) {
            true => self.value(words),
            false => self.push(Operation::Test(Test::Vlan(None))),
        }
    }

    fn length(&mut self, less: bool) -> Result<()> {
        let len = number(self.next.text).ok_or_else(|| self.wrong(LENGTH))?;
        self.advance();
        let test = if less { Test::Less } else { Test::Greater };
        self.push(Operation::Test(test(len)))
    }

    /// Parses the value that the words before it need.
    fn value(&mut self, words: Words) -> Result<()> {
        let word = self.next;
        let test = test(words, word.text).map_err(|expected| self.wrong_at(word, expected))?;
        self.advance();
        self.push(Operation::Test(test))
    }
}

fn flag(word: &str) -> Option<u8> {
    Some(match word {
        "fin" => 1,
        "syn" => 2,
        "rst" => 4,
        "psh" => 8,
        "ack" => 16,
        "urg" => 32,
        _ => return None,
    })
}

/// Returns whether a word can be a number or an address: no keyword begins with a digit or contains a colon.
fn is_value(word: &str) -> bool {
    word.contains(':') || word.starts_with(|c: char| c.is_ascii_digit())
}

fn of_protocol(protocol: Protocol) -> Test {
    match protocol {
        Protocol::Ip => Test::EtherType(ETHERTYPE_IPV4),
        Protocol::Ip6 => Test::EtherType(ETHERTYPE_IPV6),
        Protocol::Arp => Test::EtherType(ETHERTYPE_ARP),
        Protocol::Transport(number) => Test::Protocol(Version::Any, number),
    }
}

/// Parses a decimal number, or a hexadecimal one after `0x`.
fn number(word: &str) -> Option<u32> {
    match word.strip_prefix("0x") {
        Some(digits) if !digits.starts_with('+') => u32::from_str_radix(digits, 16).ok(),
        None if word.starts_with(|c: char| c.is_ascii_digit()) => word.parse().ok(),
        _ => None,
    }
}

fn small(word: &str, max: u16) -> Option<u16> {
    u16::try_from(number(word)?).ok().filter(|n| *n <= max)
}

/// Returns the condition of a value with the words before it, or what was expected.
fn test(words: Words, value: &str) -> std::result::Result<Test, &'static str> {
    let side = words.side;
    match words.kind {
        Kind::Ether => Ok(Test::Ether(side, mac(value).ok_or(MAC)?)),
        Kind::Vlan => Ok(Test::Vlan(Some(small(value, 4095).ok_or(VLAN)?))),
        Kind::Host => {
            let address: IpAddr = value.parse().map_err(|_| ADDRESS)?;
            let len = if address.is_ipv4() { 32 } else { 128 };
            net(words.protocol, side, address, len)
        }
        Kind::Net => {
            let (address, len) = value.split_once('/').ok_or(NET)?;
            let address = address.parse().map_err(|_| NET)?;
            net(words.protocol, side, address, number(len).ok_or(NET)?)
        }
        Kind::Port | Kind::PortRange => {
            let (first, last) = match words.kind {
                Kind::Port => (value, value),
                _ => value.split_once('-').ok_or(RANGE)?,
            };
            let expected = if words.kind == Kind::Port {
                PORT
            } else {
                RANGE
            };
            let first = small(first, u16::MAX).ok_or(expected)?;
            let last = small(last, u16::MAX).ok_or(expected)?;
            if first > last {
                return Err(expected);
            }
            let protocol = match words.protocol {
                Some(Protocol::Transport(number)) => Some(number),
                _ => None,
            };
            Ok(Test::Ports(protocol, side, first, last))
        }
    }
}

fn net(
    protocol: Option<Protocol>,
    side: Side,
    address: IpAddr,
    len: u32,
) -> std::result::Result<Test, &'static str> {
    match address {
        IpAddr::V4(address) => {
            let family = match protocol {
                None => Family::Any,
                Some(Protocol::Ip) => Family::Ip,
                Some(Protocol::Arp) => Family::Arp,
                Some(Protocol::Ip6 | Protocol::Transport(_)) => return Err(ADDRESS6),
            };
            let bits = Ipv4Addr::to_bits(address);
            let mask = leading(len, 32).ok_or(NET)? as u32;
            let is_clean = bits & mask == bits;
            is_clean
                .then_some(Test::Net4(family, side, bits, mask))
                .ok_or(NET)
        }
        IpAddr::V6(address) => {
            if !matches!(protocol, None | Some(Protocol::Ip6)) {
                return Err(ADDRESS4);
            }
            let bits = Ipv6Addr::to_bits(address);
            let mask = leading(len, 128).ok_or(NET)?;
            let is_clean = bits & mask == bits;
            is_clean.then_some(Test::Net6(side, bits, mask)).ok_or(NET)
        }
    }
}

/// Returns a mask of `len` leading ones in `width` bits.
fn leading(len: u32, width: u32) -> Option<u128> {
    let behind = width.checked_sub(len)?;
    let all = u128::MAX >> (128 - width);
    Some(all & all.checked_shl(behind).unwrap_or(0))
}

fn mac(word: &str) -> Option<Mac> {
    let mut parts = word.split(':');
    let mut bytes = [0; 6];
    for byte in &mut bytes {
        let part = parts.next()?;
        let is_hex = part.bytes().all(|b| b.is_ascii_hexdigit());
        *byte = u8::from_str_radix(part, 16).ok().filter(|_| is_hex)?;
    }
    parts.next().is_none().then(|| Mac::new(bytes))
}
