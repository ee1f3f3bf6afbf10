//! Parts that few rules have: the other side's MAC address, VLANs, TCP flags; and rules for frames that are not IP.
//!
//! Each part gives one more set of rules as bits. A direction without such rules has none of this, and a packet pays nothing.

use std::ops::RangeInclusive;
use std::sync::Arc;

use crosspoint_packet::Mac;

use super::numbers::TCP;
use super::ranges::{Bits, Pieces};
use super::rules::{Question, Rule, bits};

/// Number of sets by flags of TCP: rules name the six of RFC 9293, 3.1, the lowest bits.
const FLAG_SETS: usize = 64;

/// Flags of TCP that a rule names (RFC 9293, 3.1): bits as in the header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TcpFlags {
    /// Flags that must be set.
    pub set: u8,
    /// Flags that must not be.
    pub clear: u8,
}

impl TcpFlags {
    /// Returns whether a packet's flags are such.
    pub fn fit(self, flags: u8) -> bool {
        flags & self.set == self.set && flags & self.clear == 0
    }
}

/// MAC addresses, VLANs, TCP flags and Ethernet type of a rule.
#[derive(Clone, Debug, Default)]
pub struct LinkParts {
    /// MAC addresses of the other side; empty for any.
    pub macs: Arc<[Mac]>,
    /// VLANs of the guest's bridge, 0 for none; empty for any.
    pub vlans: Box<[RangeInclusive<u16>]>,
    /// Flags of TCP; only in rules for TCP.
    pub tcp_flags: Option<TcpFlags>,
    /// The rule is for frames of this type, which is not that of IP. Then it has no part that is of IP.
    pub ethertype: Option<u16>,
}

impl LinkParts {
    /// Whether packets of IP are also compared with the parts here.
    fn has_extra_parts(&self) -> bool {
        let has_link = !self.macs.is_empty() || !self.vlans.is_empty();
        has_link || self.tcp_flags.is_some()
    }
}

/// A frame that is not IP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct LinkFrame {
    pub(super) ethertype: u16,
    pub(super) vlan: u16,
    /// The other side's address.
    pub(super) mac: Mac,
}

/// The addresses that rules name, each with the rule's index; ascending, each pair once.
fn stations<'r>(rules: impl Iterator<Item = (usize, &'r Rule)>) -> Vec<(Mac, usize)> {
    let named = rules.flat_map(|(index, rule)| rule.link.macs.iter().map(move |mac| (*mac, index)));
    let mut named: Vec<(Mac, usize)> = named.collect();
    named.sort_unstable();
    named.dedup();
    named
}

/// Returns how many sets of rules are made of these rules here, at most.
pub(super) fn sets_of<'r>(rules: impl Iterator<Item = (usize, &'r Rule)> + Clone) -> usize {
    let named = stations(rules.clone());
    let macs = named.chunk_by(|(a, _), (b, _)| a == b).count();
    let has_parts = rules
        .clone()
        .any(|(_, rule)| rule.link.has_extra_parts() || rule.link.ethertype.is_some());
    // By address, flags, VLAN (two pieces for each range) and type; addresses and VLANs both for IP and for what is not.
    let vlans = 2 * rules
        .clone()
        .map(|(_, rule)| rule.link.vlans.len())
        .sum::<usize>();
    if has_parts {
        2 * macs + FLAG_SETS + 4 * vlans + rules.count()
    } else {
        0
    }
}

/// The sets of rules by MAC address and VLAN.
struct MacAndVlan {
    /// By address, ascending: the rules that name it, and those that name none.
    macs: Box<[(Mac, Bits)]>,
    /// The rules that name no address.
    any_mac: Bits,
    vlans: Pieces<u16>,
}

impl MacAndVlan {
    fn new<'r>(count: usize, rules: impl Iterator<Item = (usize, &'r Rule)> + Clone) -> MacAndVlan {
        let words = count.div_ceil(64);
        let is_any = |(_, rule): &(usize, &Rule)| rule.link.macs.is_empty();
        let anywhere = rules.clone().filter(is_any).map(|(index, _)| index);
        let any_mac = bits(words, anywhere);
        let named = stations(rules.clone());
        let of_one = named.chunk_by(|(a, _), (b, _)| a == b).filter_map(|same| {
            let (mac, _) = same.first()?;
            let mut set = any_mac.clone();
            let its = bits(words, same.iter().map(|(_, index)| *index));
            set.iter_mut().zip(&its).for_each(|(all, own)| *all |= own);
            Some((*mac, set))
        });
        let ranges = rules.clone().flat_map(|(index, rule)| {
            let own = match rule.link.vlans.is_empty() {
                true => vec![0..=u16::MAX],
                false => rule.link.vlans.to_vec(),
            };
            own.into_iter().map(move |range| (range, index))
        });
        MacAndVlan {
            macs: of_one.collect(),
            vlans: Pieces::new(count, ranges),
            any_mac,
        }
    }

    fn of_mac(&self, mac: Mac) -> &[u64] {
        let found = self.macs.binary_search_by_key(&mac, |(other, _)| *other);
        let found = found.ok().and_then(|index| self.macs.get(index));
        found.map_or(&self.any_mac, |(_, rules)| rules)
    }
}

/// The rules of one direction by what is around packets of IP.
pub(super) struct ExtraParts {
    around: MacAndVlan,
    /// By flags of TCP.
    flags: Box<[Bits]>,
    /// The rules without flags.
    without: Bits,
}

impl ExtraParts {
    /// Returns `None` if no rule has such parts.
    pub(super) fn new<'r>(
        count: usize,
        rules: impl Iterator<Item = (usize, &'r Rule)> + Clone,
    ) -> Option<ExtraParts> {
        if !rules.clone().any(|(_, rule)| rule.link.has_extra_parts()) {
            return None;
        }
        let words = count.div_ceil(64);
        let of = |flags: u8| {
            let fit = rules
                .clone()
                .filter(|(_, rule)| rule.link.tcp_flags.is_none_or(|parts| parts.fit(flags)));
            bits(words, fit.map(|(index, _)| index))
        };
        let without = rules
            .clone()
            .filter(|(_, rule)| rule.link.tcp_flags.is_none());
        let without = bits(words, without.map(|(index, _)| index));
        Some(ExtraParts {
            around: MacAndVlan::new(count, rules.clone()),
            flags: (0..FLAG_SETS as u8).map(of).collect(),
            without,
        })
    }

    /// Returns the first rule of `remote` and `service` that also fits what is around the packet.
    #[inline(never)]
    pub(super) fn first(
        &self,
        remote: &[u64],
        service: &[u64],
        question: &Question,
    ) -> Option<usize> {
        let flags = match (question.protocol, question.flags) {
            (TCP, Some(flags)) => self.flags.get(usize::from(flags) % FLAG_SETS),
            (TCP, None) => None,
            _ => Some(&self.without),
        };
        let flag_word =
            |word: usize| flags.map_or(u64::MAX, |set| set.get(word).copied().unwrap_or(0));
        let macs = self.around.of_mac(question.mac);
        let vlans = self.around.vlans.of(question.vlan);
        let all = remote.iter().zip(service).zip(macs).zip(vlans).enumerate();
        first(all.map(|(word, (((a, b), c), d))| a & b & c & d & flag_word(word)))
    }
}

/// The rules of one direction for what is not IP.
pub(super) struct LinkRules {
    /// By type, ascending.
    types: Box<[(u16, Bits)]>,
    around: MacAndVlan,
}

impl LinkRules {
    /// Returns `None` if there are none.
    pub(super) fn new<'r>(
        count: usize,
        rules: impl Iterator<Item = (usize, &'r Rule)> + Clone,
    ) -> Option<LinkRules> {
        let words = count.div_ceil(64);
        let typed = rules.filter(|(_, rule)| rule.link.ethertype.is_some());
        let named = typed.clone().filter_map(|(_, rule)| rule.link.ethertype);
        let mut types: Vec<u16> = named.collect();
        types.sort_unstable();
        types.dedup();
        let of = |kind: u16| {
            let its = typed
                .clone()
                .filter(|(_, rule)| rule.link.ethertype == Some(kind));
            (kind, bits(words, its.map(|(index, _)| index)))
        };
        (!types.is_empty()).then(|| LinkRules {
            types: types.iter().copied().map(of).collect(),
            around: MacAndVlan::new(count, typed.clone()),
        })
    }

    /// Returns the first rule that allows a frame.
    pub(super) fn first(&self, frame: &LinkFrame) -> Option<usize> {
        let found = self
            .types
            .binary_search_by_key(&frame.ethertype, |(kind, _)| *kind);
        let (_, its) = self.types.get(found.ok()?)?;
        let macs = self.around.of_mac(frame.mac);
        let vlans = self.around.vlans.of(frame.vlan);
        first(its.iter().zip(macs).zip(vlans).map(|((a, b), c)| a & b & c))
    }
}

/// The first bit of these words.
fn first(words: impl Iterator<Item = u64>) -> Option<usize> {
    let mut words = words.enumerate();
    let (word, set) = words.find(|(_, set)| *set != 0)?;
    Some(word * 64 + set.trailing_zeros() as usize)
}
