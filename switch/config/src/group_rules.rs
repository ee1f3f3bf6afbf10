//! The rules of a `[[group]]`: how a rule is read, checked and written.

use std::ops::RangeInclusive;

use crosspoint_engine::groups::TcpFlags;
use crosspoint_packet::{IpNet, Mac};
use serde_json::{Value, json};

use super::field::Item;
use super::group_link::{self, flags_text};
use super::group_values::{ICMP, ICMPV6, Peer, SCTP, TCP, UDP, protocol_text, range_text};
use super::key::{Definitions, ListKeys, Reader, Rule};
use super::rules::{Nested, TableOf, table};
use super::table::RuleKeys;
use super::types::RuleDirection;
use super::vlan;

const HELP: &str =
    "for example: { direction = \"in\", protocol = \"tcp\", port = 22, from = \"192.0.2.0/24\" }";

/// A rule of a security group. It allows what fits all of its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupRule {
    /// The direction, as seen from the guest.
    pub direction: RuleDirection,
    /// 4 or 6; `None`: both.
    pub ip: Option<u8>,
    /// The number of the IP protocol; `None`: any.
    pub protocol: Option<u8>,
    /// Destination ports; empty: any.
    pub ports: Vec<RangeInclusive<u16>>,
    /// The type of ICMP messages, and their code.
    pub icmp: Option<(u8, Option<u8>)>,
    /// The other side.
    pub peer: Peer,
    /// MAC addresses of the other side; empty: any.
    pub mac: Vec<Mac>,
    /// VLANs; empty: any, and none.
    pub vlans: Vec<u16>,
    /// Flags of TCP; `None`: any.
    pub tcp_flags: Option<TcpFlags>,
    /// The type of frames that are not IP; `None`: the rule is for IP.
    pub ethertype: Option<u16>,
}

impl GroupRule {
    /// A rule that allows everything with this peer.
    pub fn all(direction: RuleDirection, peer: Peer) -> Self {
        Self {
            direction,
            ip: None,
            protocol: None,
            ports: Vec::new(),
            icmp: None,
            peer,
            mac: Vec::new(),
            vlans: Vec::new(),
            tcp_flags: None,
            ethertype: None,
        }
    }

    /// The rule in one line: "in tcp 80,443 from group web".
    pub fn text(&self) -> String {
        let (direction, side) = match self.direction {
            RuleDirection::In => ("in", "from"),
            RuleDirection::Out => ("out", "to"),
        };
        let ip = self.ip.filter(|_| self.implied_ip().is_none());
        let icmp = self.icmp.map(|(kind, code)| {
            let code = code.map_or(String::new(), |code| format!(" code {code}"));
            format!("type {kind}{code}")
        });
        let ports = Vec::from_iter(self.ports.iter().map(range_text)).join(",");
        let macs = Vec::from_iter(self.mac.iter().map(Mac::to_string)).join(",");
        let vlans = vlan::text(&self.sorted_vlans());
        let parts = [
            Some(direction.to_owned()),
            ip.map(|ip| format!("ip{ip}")),
            self.protocol.map(protocol_text),
            Some(ports).filter(|ports| !ports.is_empty()),
            icmp,
            self.tcp_flags
                .map(|flags| format!("flags {}", flags_text(&flags))),
            self.ethertype.map(|kind| format!("ethertype {kind:#06x}")),
            Some(format!("{side} {}", self.peer.text())),
            Some(format!("mac {macs}")).filter(|_| !self.mac.is_empty()),
            Some(format!("vlan {vlans}")).filter(|_| !self.vlans.is_empty()),
        ];
        Vec::from_iter(parts.into_iter().flatten()).join(" ")
    }

    fn sorted_vlans(&self) -> Vec<u16> {
        let mut vlans = self.vlans.clone();
        vlans.sort_unstable();
        vlans
    }

    /// Its VLANs as ranges, ascending.
    pub fn vlan_ranges(&self) -> Vec<RangeInclusive<u16>> {
        let runs = vlan::runs(&self.sorted_vlans()).into_iter();
        runs.map(|(first, last)| first..=last).collect()
    }

    /// The version of IP that the protocol has.
    fn implied_ip(&self) -> Option<u8> {
        implied_ip(self.protocol)
    }
}

fn implied_ip(protocol: Option<u8>) -> Option<u8> {
    match protocol {
        Some(ICMP) => Some(4),
        Some(ICMPV6) => Some(6),
        _ => None,
    }
}

impl Nested for GroupRule {
    type Keys = RuleKeys;
    const MUST: &'static str = "a table with `direction`";
    const HELP: &'static str = HELP;

    fn check(reader: &mut Reader<'_>, keys: RuleKeys) -> Option<Self> {
        if !reader.is_whole {
            return None;
        }
        check_ports(reader, &keys);
        check_icmp(reader, &keys);
        check_side(reader, keys.direction);
        group_link::check(reader, keys.protocol, keys.ethertype);
        let ip = check_ip(reader, &keys);
        let peer = keys.from.or(keys.to).unwrap_or_default();
        check_family(reader, &peer, ip);
        let port = keys.port.map(|range| vec![range]);
        Some(GroupRule {
            direction: keys.direction,
            ip,
            protocol: keys.protocol,
            ports: port.or(keys.ports).unwrap_or_default(),
            icmp: keys.icmp_type.map(|kind| (kind, keys.icmp_code)),
            peer,
            mac: keys.mac.unwrap_or_default(),
            vlans: keys.vlans.unwrap_or_default(),
            tcp_flags: keys.tcp_flags,
            ethertype: keys.ethertype,
        })
    }

    fn to_keys(&self) -> Option<RuleKeys> {
        let peer = Some(self.peer.clone()).filter(|peer| *peer != Peer::Any);
        let (from, to) = match self.direction {
            RuleDirection::In => (peer, None),
            RuleDirection::Out => (None, peer),
        };
        Some(RuleKeys {
            direction: self.direction,
            ip: self.ip.filter(|_| self.implied_ip().is_none()),
            protocol: self.protocol,
            port: None,
            ports: Some(self.ports.clone()).filter(|ports| !ports.is_empty()),
            icmp_type: self.icmp.map(|(kind, _)| kind),
            icmp_code: self.icmp.and_then(|(_, code)| code),
            from,
            to,
            mac: Some(self.mac.clone()).filter(|all| !all.is_empty()),
            vlans: Some(self.vlans.clone()).filter(|all| !all.is_empty()),
            tcp_flags: self.tcp_flags,
            ethertype: self.ethertype,
        })
    }
}

/// Records a problem at a key's value.
pub(super) fn wrong(reader: &mut Reader<'_>, key: &str, message: &str, label: &str, help: &str) {
    let span = reader.span(key).unwrap_or(reader.place.clone());
    reader
        .checker
        .problem(span, message.to_owned(), label, help);
}

fn check_ports(reader: &mut Reader<'_>, keys: &RuleKeys) {
    if reader.item("port").is_some() && reader.item("ports").is_some() {
        let message = "a rule has both `port` and `ports`";
        wrong(
            reader,
            "port",
            message,
            "two lists of ports",
            "keep one of them",
        );
    }
    let has_ports = matches!(keys.protocol, Some(TCP | UDP | SCTP));
    // A wrong protocol has been reported.
    let is_known = keys.protocol.is_some() || reader.item("protocol").is_none();
    for key in ["port", "ports"] {
        if reader.item(key).is_some() && is_known && !has_ports {
            let message = format!("`{key}` goes with a protocol that has ports");
            let help = "add protocol = \"tcp\", \"udp\" or \"sctp\" to this rule";
            wrong(reader, key, &message, "ports of no protocol", help);
        }
    }
}

fn check_icmp(reader: &mut Reader<'_>, keys: &RuleKeys) {
    let is_known = keys.protocol.is_some() || reader.item("protocol").is_none();
    let is_icmp = matches!(keys.protocol, Some(ICMP | ICMPV6));
    if reader.item("icmp_type").is_some() && is_known && !is_icmp {
        let help = "add protocol = \"icmp\" or \"icmpv6\" to this rule";
        let message = "`icmp_type` goes with a protocol that has such types";
        wrong(reader, "icmp_type", message, "a type of no protocol", help);
    }
    if reader.item("icmp_code").is_some() && reader.item("icmp_type").is_none() {
        let help = "add the type too, for example: icmp_type = 3, icmp_code = 4";
        let message = "`icmp_code` goes with `icmp_type`";
        wrong(reader, "icmp_code", message, "a code of no type", help);
    }
}

/// Records the key of the other direction.
fn check_side(reader: &mut Reader<'_>, direction: RuleDirection) {
    let (foreign, own, word) = match direction {
        RuleDirection::In => ("to", "from", "in"),
        RuleDirection::Out => ("from", "to", "out"),
    };
    if reader.item(foreign).is_some() {
        let message = format!("a rule with direction = {word:?} has `{own}`, and no `{foreign}`");
        let help = format!("write `{own}` in place of `{foreign}`, or change the direction");
        wrong(reader, foreign, &message, "of the other direction", &help);
    }
}

/// The rule's version of IP.
fn check_ip(reader: &mut Reader<'_>, keys: &RuleKeys) -> Option<u8> {
    let implied = implied_ip(keys.protocol);
    if let (Some(given), Some(own)) = (keys.ip, implied)
        && given != own
    {
        let name = keys.protocol.map(protocol_text).unwrap_or_default();
        let message = format!("protocol = {name:?} is of IP version {own}");
        let help = "remove `ip`, or take the protocol of the other version";
        wrong(reader, "ip", &message, "another version", help);
    }
    implied.or(keys.ip)
}

/// Records a list of addresses, none of which is of the rule's version of IP.
fn check_family(reader: &mut Reader<'_>, peer: &Peer, ip: Option<u8>) {
    let (Peer::Addresses(all), Some(ip)) = (peer, ip) else {
        return;
    };
    let is_own = |net: &IpNet| matches!(net, IpNet::V4(_)) == (ip == 4);
    if !all.is_empty() && !all.iter().any(is_own) {
        let key = match reader.item("from") {
            Some(_) => "from",
            None => "to",
        };
        let message = format!("`{key}` has no address of IP version {ip}, which this rule is for");
        let help = "the rule would allow nothing: change the addresses, `ip` or the protocol";
        wrong(reader, key, &message, "another version", help);
    }
}

/// A list of tables, each of which is a `T`. It may be empty.
pub(super) struct TableList<T> {
    pub each: TableOf<T>,
    /// What an item is, in messages: "a rule".
    pub item: &'static str,
    pub items_max: usize,
}

/// A list of at most `items_max` rules.
pub(super) fn rules(items_max: usize) -> TableList<GroupRule> {
    TableList {
        each: table(),
        item: "a rule",
        items_max,
    }
}

impl<T: Nested> Rule for TableList<T> {
    type Value = Vec<T>;

    fn read<'a>(&self, reader: &mut Reader<'a>, key: &str, item: &'a Item<'a>) -> Option<Vec<T>> {
        let (checker, most) = (&mut *reader.checker, self.items_max);
        let help = format!("for example: {key} = [ {} ]", example(T::HELP));
        let (list, span) =
            checker.value::<&[Item<'_>]>(item, key, "a list of tables in braces", &help)?;
        if list.len() > most {
            let message = format!("`{key}` has {} items, and may have {most}", list.len());
            checker.problem(span, message, "too many", format!("keep at most {most}"));
            return None;
        }
        let each = list
            .iter()
            .filter_map(|item| self.each.read_item(reader, self.item, item));
        Some(each.collect())
    }

    fn write(&self, all: &Vec<T>) -> Value {
        Vec::from_iter(all.iter().map(|one| self.each.write(one))).into()
    }

    fn schema(&self, definitions: &mut Definitions) -> Value {
        let items = self.each.schema(definitions);
        json!({"type": "array", "items": items, "maxItems": self.items_max})
    }

    fn keys(&self) -> Option<ListKeys> {
        self.each.keys()
    }
}

/// An example without the words before it.
fn example(help: &str) -> &str {
    help.strip_prefix("for example: ").unwrap_or(help)
}
