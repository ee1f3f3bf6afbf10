//! Rules without names: each with the addresses of its peer.

use std::collections::HashMap;
use std::sync::Arc;

use crosspoint_config::{Config, GroupRule, Peer, Port, RuleDirection};
use crosspoint_engine::groups::{Direction, LinkParts, Rule, TooComplex};
use crosspoint_packet::IpNet;

/// A rule of a group, with the addresses of its peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ResolvedRule {
    pub(super) group: String,
    pub(super) rule: GroupRule,
    stateful: bool,
    /// `None` for any.
    remote: Option<Arc<[IpNet]>>,
}

impl ResolvedRule {
    /// The rule as it is compiled.
    pub(super) fn for_engine(&self) -> Rule {
        let rule = &self.rule;
        Rule {
            name: format!("{} of group {}", rule.text(), self.group),
            direction: match rule.direction {
                RuleDirection::In => Direction::In,
                RuleDirection::Out => Direction::Out,
            },
            ip_version: rule.ip,
            protocol: rule.protocol,
            ports: rule.ports.clone().into(),
            icmp: rule.icmp,
            remote: self.remote.clone(),
            link: LinkParts {
                macs: rule.mac.clone().into(),
                vlans: rule.vlan_ranges().into(),
                tcp_flags: rule.tcp_flags,
                ethertype: rule.ethertype,
            },
            stateful: self.stateful,
        }
    }
}

/// The addresses of peers, each made once.
pub(super) struct Remotes<'a> {
    config: &'a Config,
    /// By bridge and peer.
    made: HashMap<(String, Peer), Option<Arc<[IpNet]>>>,
}

impl<'a> Remotes<'a> {
    pub(super) fn new(config: &'a Config) -> Self {
        let made = HashMap::new();
        Self { config, made }
    }

    /// The addresses of a peer in a bridge; `None` for any.
    fn of(&mut self, bridge: &str, peer: &Peer) -> Option<Arc<[IpNet]>> {
        let key = (bridge.to_owned(), peer.clone());
        if let Some(known) = self.made.get(&key) {
            return known.clone();
        }
        let config = self.config;
        let remote: Option<Arc<[IpNet]>> = match peer {
            Peer::Any => None,
            Peer::Addresses(all) => Some(all.as_slice().into()),
            Peer::Set(name) => {
                let set = config.sets.iter().find(|set| set.name == *name);
                Some(set.map_or(&[][..], |set| config.set_addresses(set)).into())
            }
            Peer::Group(name) => {
                let members = config.ports.iter();
                let is_member =
                    |port: &&Port| port.bridge == bridge && port.groups().contains(name);
                let members = members.filter(is_member);
                let addresses = members.flat_map(|port| port.addresses.ip.iter().copied());
                Some(addresses.collect())
            }
        };
        self.made.insert(key, remote.clone());
        remote
    }
}

/// The rules of a list of groups, in its order, for a port of a bridge.
pub(super) fn rules(
    config: &Config,
    (bridge, names): (&str, &[String]),
    remotes: &mut Remotes<'_>,
) -> Vec<ResolvedRule> {
    let groups = names
        .iter()
        .filter_map(|name| config.groups.iter().find(|group| group.name == *name));
    let mut all = Vec::new();
    for group in groups {
        for rule in group.effective_rules() {
            all.push(ResolvedRule {
                group: group.name.clone(),
                remote: remotes.of(bridge, &rule.peer),
                stateful: group.stateful,
                rule,
            });
        }
    }
    all
}

/// Why rules cannot be compiled, and what to do.
pub(super) fn describe(why: TooComplex) -> String {
    match why {
        TooComplex::Rules(count) => {
            format!("they have {count} rules, and may have 4096: join rules with lists and sets")
        }
        TooComplex::Bytes(bytes) => format!(
            "their rules would take {} MiB when they are compiled: join rules, and use prefixes in place of addresses",
            bytes >> 20
        ),
    }
}
