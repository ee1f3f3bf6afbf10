//! Rules of security groups, compiled for one look-up a packet whatever their number is.
//!
//! A rule allows; what no rule allows is dropped. Two searches give two sets of rules as bits: those that allow the other
//! side's address, and those that allow protocol and port. The first bit in both is the rule that decides (the bit vectors
//! of Lakshman and Stiliadis, SIGCOMM '98). So the cost does not depend on which rules there are: a guest cannot choose
//! packets that are slow to decide on.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crosspoint_packet::{IpNet, Mac};

use super::links::{self, ExtraParts, LinkFrame, LinkParts, LinkRules};
use super::numbers::{ICMP, ICMPV6};
use super::ranges::{Bits, Pieces};

/// Most rules of one list of groups, both directions together.
pub const RULES_MAX: usize = 4096;
/// Most memory of a compiled list, bytes.
pub const RULES_BYTES_MAX: usize = 64 << 20;

/// Direction of a packet, as seen from the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// To the guest.
    In,
    /// From the guest.
    Out,
}

/// One rule. It allows packets for which all of it is true.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Its group and its text, for explanations.
    pub name: String,
    /// Direction of a connection's first packet, or of a stateless rule's packets.
    pub direction: Direction,
    /// IP version, 4 or 6; `None` for both.
    pub ip_version: Option<u8>,
    /// IP protocol number; `None` for any.
    pub protocol: Option<u8>,
    /// Destination ports, for protocols that have ports; empty for any.
    pub ports: Box<[RangeInclusive<u16>]>,
    /// ICMP type, and code if only one is meant.
    pub icmp: Option<(u8, Option<u8>)>,
    /// Addresses of the other side; `None` for any, an empty list for none.
    pub remote: Option<Arc<[IpNet]>>,
    /// MAC addresses, VLANs, TCP flags, Ethernet type.
    pub link: LinkParts,
    /// Whether the answers to what it allows pass too.
    pub stateful: bool,
}

impl Rule {
    /// Whether it allows any protocol. Ports or an ICMP type without a protocol are no rule: it allows nothing.
    fn is_any(&self) -> bool {
        self.protocol.is_none() && self.ports.is_empty() && self.icmp.is_none()
    }
}

/// Why a list of rules cannot be compiled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TooComplex {
    /// It has more than [`RULES_MAX`] rules.
    Rules(usize),
    /// It would need this many bytes, more than [`RULES_BYTES_MAX`].
    Bytes(usize),
}

/// What rules are asked about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Question {
    pub(super) direction: Direction,
    /// Address of the other side; IPv4 addresses as IPv6 has them (RFC 4291, 2.5.5.2).
    pub(super) remote: u128,
    pub(super) protocol: u8,
    /// Destination port; type and code of ICMP; 0 for protocols without.
    pub(super) service: u16,
    /// MAC address of the other side.
    pub(super) mac: Mac,
    pub(super) vlan: u16,
    /// Flags of TCP; `None` if those of the packet are not known, and rules are not to compare them.
    pub(super) flags: Option<u8>,
}

/// The compiled rules of one list of groups.
pub struct RuleTable {
    inwards: Side,
    outwards: Side,
    stateful: Box<[bool]>,
    names: Box<[String]>,
    /// Whether any rule is stateful.
    tracks: bool,
    /// By worker, then by rule: each worker writes its own.
    hits: Box<[Box<[AtomicU64]>]>,
}

/// The rules of one direction.
struct Side {
    v4: Pieces<u32>,
    v6: Pieces<u128>,
    /// By protocol: its place in the list below; [`OTHER`] if no rule names it.
    protocols: Box<[u16; 256]>,
    /// Rules by service.
    named: Box<[Pieces<u16>]>,
    /// Rules for any protocol.
    any: Bits,
    /// What else some rules compare; `None` if none does.
    extra: Option<Box<ExtraParts>>,
    /// The rules for what is not IP; `None` if there are none.
    link: Option<Box<LinkRules>>,
}

/// No rule names the protocol.
const OTHER: u16 = u16::MAX;

impl RuleTable {
    /// Compiles rules, for this number of workers. Takes milliseconds.
    ///
    /// # Errors
    ///
    /// If there are too many rules, or they would need too much memory.
    pub fn compile(rules: Vec<Rule>, workers: usize) -> Result<RuleTable, TooComplex> {
        if rules.len() > RULES_MAX {
            return Err(TooComplex::Rules(rules.len()));
        }
        let inwards = Side::new(&rules, Direction::In)?;
        let outwards = Side::new(&rules, Direction::Out)?;
        let counters = || rules.iter().map(|_| AtomicU64::new(0)).collect();
        Ok(RuleTable {
            inwards,
            outwards,
            stateful: rules.iter().map(|rule| rule.stateful).collect(),
            names: rules.iter().map(|rule| rule.name.clone()).collect(),
            tracks: rules.iter().any(|rule| rule.stateful),
            hits: (0..workers.max(1)).map(|_| counters()).collect(),
        })
    }

    /// Returns how many connections a rule has allowed, or frames if it is stateless; by its index in the list.
    pub fn hits(&self, rule: usize) -> u64 {
        let of = |worker: &[AtomicU64]| {
            worker
                .get(rule)
                .map_or(0, |hits| hits.load(Ordering::Relaxed))
        };
        self.hits.iter().map(|worker| of(worker)).sum()
    }

    /// Returns the first rule that allows it, by its index.
    #[inline(always)]
    pub(super) fn allows(&self, question: &Question) -> Option<usize> {
        match question.direction {
            Direction::In => self.inwards.first(question),
            Direction::Out => self.outwards.first(question),
        }
    }

    /// Returns the first rule that allows a frame which is not IP, by its index.
    pub(super) fn allows_link(&self, direction: Direction, frame: &LinkFrame) -> Option<usize> {
        let side = match direction {
            Direction::In => &self.inwards,
            Direction::Out => &self.outwards,
        };
        side.link.as_ref()?.first(frame)
    }

    /// Returns a rule's name.
    pub fn name(&self, rule: usize) -> &str {
        self.names.get(rule).map_or("", |name| name)
    }

    /// Returns whether a packet's MAC address may decide.
    #[inline(always)]
    pub(super) fn compares_mac(&self, direction: Direction) -> bool {
        match direction {
            Direction::In => self.inwards.extra.is_some(),
            Direction::Out => self.outwards.extra.is_some(),
        }
    }

    /// Returns whether there are stateful rules.
    pub(super) fn tracks(&self) -> bool {
        self.tracks
    }

    /// Returns whether a rule's answers pass too.
    pub(super) fn is_stateful(&self, rule: usize) -> bool {
        self.stateful.get(rule).copied().unwrap_or(false)
    }

    /// Counts that a rule has decided, on worker `worker`.
    pub(super) fn count(&self, rule: usize, worker: usize) {
        let counters = self.hits.get(worker).or(self.hits.first());
        if let Some(hits) = counters.and_then(|counters| counters.get(rule)) {
            // No other worker writes it.
            hits.store(hits.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        }
    }
}

impl Side {
    fn new(rules: &[Rule], direction: Direction) -> Result<Side, TooComplex> {
        let words = rules.len().div_ceil(64);
        let all = || {
            rules
                .iter()
                .enumerate()
                .filter(|(_, rule)| rule.direction == direction)
        };
        let numbered = || all().filter(|(_, rule)| rule.link.ethertype.is_none());
        let remotes = Remotes::new(numbered());
        let fill = |is_v4: bool| {
            let version = if is_v4 { 4 } else { 6 };
            let rules: Vec<_> = numbered()
                .filter(|(_, rule)| rule.ip_version.is_none_or(|only| only == version))
                .map(|(index, _)| (index, remotes.of_rule(index)))
                .collect();
            move |set: &[u64]| {
                let allowed = rules.iter().filter(|(_, remote)| match remote {
                    None => true,
                    Some(list) => is_set(set, *list),
                });
                bits(words, allowed.map(|(index, _)| *index))
            }
        };
        let v4 = Pieces::<u32>::new(remotes.lists.len(), remotes.v4());
        let v6 = Pieces::<u128>::new(remotes.lists.len(), remotes.v6());
        let classes = v4.class_count() + v6.class_count() + links::sets_of(all());
        let bytes = classes * words * 8;
        if bytes > RULES_BYTES_MAX {
            return Err(TooComplex::Bytes(bytes));
        }
        let any = bits(
            words,
            numbered()
                .filter(|(_, rule)| rule.is_any())
                .map(|(index, _)| index),
        );
        let mut protocols = Box::new([OTHER; 256]);
        let mut named = Vec::new();
        let of_protocols: Vec<u8> = numbered().filter_map(|(_, rule)| rule.protocol).collect();
        for protocol in of_protocols {
            let place = &mut protocols[usize::from(protocol)];
            if *place == OTHER {
                // There are at most 256 protocols.
                *place = named.len() as u16;
                named.push(services(rules.len(), numbered(), protocol));
            }
        }
        Ok(Side {
            v4: v4.map(fill(true)),
            v6: v6.map(fill(false)),
            protocols,
            named: named.into(),
            any,
            extra: ExtraParts::new(rules.len(), numbered()).map(Box::new),
            link: LinkRules::new(rules.len(), all()).map(Box::new),
        })
    }

    #[inline(always)]
    fn first(&self, question: &Question) -> Option<usize> {
        let remote = match question.remote >> 32 {
            0xffff => self.v4.of(question.remote as u32),
            _ => self.v6.of(question.remote),
        };
        let protocol = self.protocols[usize::from(question.protocol)];
        let service = match self.named.get(usize::from(protocol)) {
            Some(pieces) => pieces.of(question.service),
            None => &self.any,
        };
        if let Some(extra) = &self.extra {
            return extra.first(remote, service, question);
        }
        for (word, (a, b)) in remote.iter().zip(service).enumerate() {
            if a & b != 0 {
                return Some(word * 64 + (a & b).trailing_zeros() as usize);
            }
        }
        None
    }
}

/// The rules that allow each service of a protocol, those for any protocol included.
fn services<'r>(
    count: usize,
    rules: impl Iterator<Item = (usize, &'r Rule)>,
    protocol: u8,
) -> Pieces<u16> {
    let mut ranges = Vec::new();
    for (index, rule) in rules {
        match (rule.protocol, rule.icmp) {
            (None, _) if rule.is_any() => ranges.push((0..=u16::MAX, index)),
            (None, _) => {}
            (Some(only), _) if only != protocol => {}
            (_, Some((kind, code))) if matches!(protocol, ICMP | ICMPV6) => {
                let service = |code: u8| u16::from_be_bytes([kind, code]);
                let range = match code {
                    Some(code) => service(code)..=service(code),
                    None => service(0)..=service(u8::MAX),
                };
                ranges.push((range, index));
            }
            _ if rule.ports.is_empty() => ranges.push((0..=u16::MAX, index)),
            _ => ranges.extend(rule.ports.iter().map(|range| (range.clone(), index))),
        }
    }
    Pieces::new(count, ranges.into_iter())
}

/// The different lists of addresses of rules: many rules have the same.
struct Remotes<'r> {
    lists: Vec<&'r Arc<[IpNet]>>,
    /// By rule: the number of its list.
    of_rules: BTreeMap<usize, usize>,
}

impl<'r> Remotes<'r> {
    fn new(rules: impl Iterator<Item = (usize, &'r Rule)>) -> Remotes<'r> {
        let mut remotes = Remotes {
            lists: Vec::new(),
            of_rules: BTreeMap::new(),
        };
        for (index, rule) in rules {
            let Some(remote) = &rule.remote else { continue };
            let same = |list: &&Arc<[IpNet]>| Arc::ptr_eq(list, remote) || list == &remote;
            let number = remotes.lists.iter().position(same).unwrap_or_else(|| {
                remotes.lists.push(remote);
                remotes.lists.len() - 1
            });
            remotes.of_rules.insert(index, number);
        }
        remotes
    }

    /// The list of a rule; `None` for any address.
    fn of_rule(&self, index: usize) -> Option<usize> {
        self.of_rules.get(&index).copied()
    }

    fn nets(&self) -> impl Iterator<Item = (&IpNet, usize)> {
        let numbered = self.lists.iter().enumerate();
        numbered.flat_map(|(number, list)| list.iter().map(move |net| (net, number)))
    }

    fn v4(&self) -> impl Iterator<Item = (RangeInclusive<u32>, usize)> {
        self.nets().filter_map(|(net, number)| match net {
            IpNet::V4(net) => Some((net.network().to_bits()..=net.broadcast().to_bits(), number)),
            IpNet::V6(_) => None,
        })
    }

    fn v6(&self) -> impl Iterator<Item = (RangeInclusive<u128>, usize)> {
        self.nets().filter_map(|(net, number)| match net {
            IpNet::V4(_) => None,
            IpNet::V6(net) => Some((net.network().to_bits()..=net.broadcast().to_bits(), number)),
        })
    }
}

fn is_set(set: &[u64], index: usize) -> bool {
    set.get(index / 64)
        .is_some_and(|word| word >> (index % 64) & 1 != 0)
}

pub(super) fn bits(words: usize, indices: impl Iterator<Item = usize>) -> Bits {
    let mut set: Bits = vec![0; words].into();
    for index in indices {
        if let Some(word) = set.get_mut(index / 64) {
            *word |= 1 << (index % 64);
        }
    }
    set
}
