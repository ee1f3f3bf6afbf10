//! The values in a rule of a `[[group]]`: protocols, ports, and the other side.

use std::ops::RangeInclusive;

use crosspoint_packet::IpNet;
use serde_json::{Value, json};

use super::addresses::{self, prefix_text};
use super::check::Checker;
use super::field::{FromToml as _, Item, Span};
use super::key::{Definitions, ListKeys, Reader, Rule, table_reference};
use super::limits::{GROUP_PORT_RANGES_MAX, PEER_ADDRESSES_MAX};
use super::rules::{Nested, table};
use super::suggest::nearest;
use super::table::PeerKeys;

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const SCTP: u8 = 132;
pub(super) const ICMP: u8 = 1;
pub(super) const ICMPV6: u8 = 58;

/// The protocols with names.
const PROTOCOLS: [(&str, u8); 5] = [
    ("tcp", TCP),
    ("udp", UDP),
    ("sctp", SCTP),
    ("icmp", ICMP),
    ("icmpv6", ICMPV6),
];

/// The other side of a rule: the sources of what comes in, or the destinations of what goes out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Peer {
    /// Any address.
    #[default]
    Any,
    /// These addresses and prefixes.
    Addresses(Vec<IpNet>),
    /// The addresses of this `[[set]]`.
    Set(String),
    /// The IP addresses of the ports with this `[[group]]`.
    Group(String),
}

impl Peer {
    /// The peer in one line.
    pub(super) fn text(&self) -> String {
        match self {
            Peer::Any => "any".to_owned(),
            Peer::Addresses(all) => Vec::from_iter(all.iter().map(prefix_text)).join(","),
            Peer::Set(name) => format!("set {name}"),
            Peer::Group(name) => format!("group {name}"),
        }
    }
}

/// The name of a protocol, or its number.
pub fn protocol_text(protocol: u8) -> String {
    let known = PROTOCOLS.iter().find(|(_, number)| *number == protocol);
    known.map_or(protocol.to_string(), |(name, _)| (*name).to_owned())
}

/// A range as text; a single port as a number.
pub(super) fn range_text(range: &RangeInclusive<u16>) -> String {
    match range.start() == range.end() {
        true => range.start().to_string(),
        false => format!("{}-{}", range.start(), range.end()),
    }
}

/// The protocol of a rule: a name or a number.
pub(super) struct Protocol;

impl Rule for Protocol {
    type Value = u8;

    fn read<'a>(&self, reader: &mut Reader<'a>, key: &str, item: &'a Item<'a>) -> Option<u8> {
        let names = PROTOCOLS.map(|(name, _)| name);
        let text = item.get_ref().as_str();
        let named = PROTOCOLS.iter().find(|(name, _)| text == Some(name));
        let number = i64::from_toml(item.get_ref()).and_then(|number| u8::try_from(number).ok());
        let value = named.map(|(_, number)| *number).or(number);
        if value.is_none() {
            let near = text.and_then(|text| nearest(text, &names));
            let help = match near {
                Some(name) => format!("did you mean {name:?}?"),
                None => format!("for example: {key} = \"tcp\"; without it: any protocol"),
            };
            let message = format!(
                "`{key}` must be \"tcp\", \"udp\", \"sctp\", \"icmp\", \"icmpv6\", or a number from 0 to 255"
            );
            reader
                .checker
                .problem(item.span(), message, "none of these", help);
        }
        value
    }

    fn write(&self, value: &u8) -> Value {
        match PROTOCOLS.iter().find(|(_, number)| number == value) {
            Some((name, _)) => json!(name),
            None => json!(value),
        }
    }

    fn schema(&self, _: &mut Definitions) -> Value {
        let names = PROTOCOLS.map(|(name, _)| name);
        json!({"oneOf": [{"enum": names}, {"type": "integer", "minimum": 0, "maximum": 255}]})
    }
}

/// The version of IP of a rule.
pub(super) struct IpVersion;

impl Rule for IpVersion {
    type Value = u8;

    fn read<'a>(&self, reader: &mut Reader<'a>, key: &str, item: &'a Item<'a>) -> Option<u8> {
        match i64::from_toml(item.get_ref()) {
            Some(4) => Some(4),
            Some(6) => Some(6),
            _ => {
                let message = format!("`{key}` must be 4 or 6");
                let help = format!("for example: {key} = 4; without it: both");
                reader
                    .checker
                    .problem(item.span(), message, "not a version of IP", help);
                None
            }
        }
    }

    fn write(&self, value: &u8) -> Value {
        json!(value)
    }

    fn schema(&self, _: &mut Definitions) -> Value {
        json!({"type": "integer", "enum": [4, 6]})
    }
}

/// A port, or a range of ports as text.
fn port_range(checker: &mut Checker, key: &str, item: &Item<'_>) -> Option<RangeInclusive<u16>> {
    let number = |text: &str| text.trim().parse::<u16>().ok();
    let text = item.get_ref().as_str();
    let range = match text {
        Some(text) => match text.split_once('-') {
            Some((first, last)) => number(first).zip(number(last)),
            None => number(text).map(|port| (port, port)),
        },
        None => i64::from_toml(item.get_ref())
            .and_then(|port| u16::try_from(port).ok())
            .map(|port| (port, port)),
    };
    let (label, help) = match range {
        Some((first, last)) if first <= last => return Some(first..=last),
        Some((first, last)) => (
            "the wrong way round",
            format!("write the smaller one first: \"{last}-{first}\""),
        ),
        None => (
            "neither",
            format!("for example: {key} = 22, or {key} = \"8000-8080\""),
        ),
    };
    let message = format!("a port in `{key}` must be a number from 0 to 65535, or a range of them");
    checker.problem(item.span(), message, label, help);
    None
}

fn port_value(range: &RangeInclusive<u16>) -> Value {
    match range.start() == range.end() {
        true => json!(range.start()),
        false => json!(range_text(range)),
    }
}

fn port_schema() -> Value {
    json!({"oneOf": [
        {"type": "integer", "minimum": 0, "maximum": 65535},
        {"type": "string", "pattern": "^[0-9]{1,5}(-[0-9]{1,5})?$"},
    ]})
}

/// A port or a range of ports.
pub(super) struct OnePort;

impl Rule for OnePort {
    type Value = RangeInclusive<u16>;

    fn read<'a>(
        &self,
        reader: &mut Reader<'a>,
        key: &str,
        item: &'a Item<'a>,
    ) -> Option<RangeInclusive<u16>> {
        port_range(reader.checker, key, item)
    }

    fn write(&self, value: &RangeInclusive<u16>) -> Value {
        port_value(value)
    }

    fn schema(&self, _: &mut Definitions) -> Value {
        port_schema()
    }
}

/// A list of ports and ranges of ports.
pub(super) struct PortRanges;

impl Rule for PortRanges {
    type Value = Vec<RangeInclusive<u16>>;

    fn read<'a>(
        &self,
        reader: &mut Reader<'a>,
        key: &str,
        item: &'a Item<'a>,
    ) -> Option<Self::Value> {
        let checker = &mut *reader.checker;
        let help = format!("for example: {key} = [80, 443, \"8000-8080\"]");
        let must = format!("a list of 1 to {GROUP_PORT_RANGES_MAX} ports and ranges of ports");
        let (list, span) = checker.value::<&[Item<'_>]>(item, key, &must, &help)?;
        if !bounded(
            checker,
            key,
            (list.len(), GROUP_PORT_RANGES_MAX),
            span,
            &must,
            &help,
        ) {
            return None;
        }
        let ranges = list
            .iter()
            .filter_map(|item| port_range(checker, key, item));
        Some(ranges.collect())
    }

    fn write(&self, value: &Self::Value) -> Value {
        Vec::from_iter(value.iter().map(port_value)).into()
    }

    fn schema(&self, _: &mut Definitions) -> Value {
        json!({
            "type": "array", "minItems": 1, "maxItems": GROUP_PORT_RANGES_MAX,
            "items": port_schema(),
        })
    }
}

/// Whether a list has at least one item, and not too many.
fn bounded(
    checker: &mut Checker,
    key: &str,
    (len, most): (usize, usize),
    span: Span,
    must: &str,
    help: &str,
) -> bool {
    let label = match len {
        0 => "nothing in it",
        len if len > most => "too many",
        _ => return true,
    };
    checker.problem(span, format!("`{key}` must be {must}"), label, help);
    false
}

/// The other side of a rule: `from` or `to`.
pub(super) struct PeerRule;

impl PeerRule {
    fn help(key: &str) -> String {
        format!(
            "for example: {key} = \"any\", \"192.0.2.0/24\", a list of such prefixes, {{ set = \"admins\" }} or {{ group = \"web\" }}"
        )
    }

    /// An address or a prefix of a text.
    fn prefix(checker: &mut Checker, key: &str, item: &Item<'_>) -> Option<IpNet> {
        let text = item.get_ref().as_str().unwrap_or_default();
        let (label, help) = match addresses::parse_prefix(text) {
            Ok(net) => return Some(net),
            Err((label, help)) => (label, help.unwrap_or_else(|| Self::help(key))),
        };
        let message = format!("an address in `{key}` must be {}", addresses::IP);
        checker.problem(item.span(), message, label, help);
        None
    }
}

impl Rule for PeerRule {
    type Value = Peer;

    fn read<'a>(&self, reader: &mut Reader<'a>, key: &str, item: &'a Item<'a>) -> Option<Peer> {
        let help = Self::help(key);
        let value = item.get_ref();
        if value.as_str() == Some("any") {
            return Some(Peer::Any);
        }
        if value.as_str().is_some() {
            return Self::prefix(reader.checker, key, item).map(|net| Peer::Addresses(vec![net]));
        }
        if let Some(list) = <&[Item<'_>]>::from_toml(value) {
            let must = format!("a list of 1 to {PEER_ADDRESSES_MAX} addresses and prefixes");
            let count = (list.len(), PEER_ADDRESSES_MAX);
            if !bounded(reader.checker, key, count, item.span(), &must, &help) {
                return None;
            }
            let each = list
                .iter()
                .filter_map(|item| Self::prefix(reader.checker, key, item));
            return Some(Peer::Addresses(each.collect()));
        }
        if value.as_table().is_some() {
            return table::<Peer>().read(reader, key, item);
        }
        let label = reader.checker.kind_at(&item.span());
        let message = format!("`{key}` must be addresses, a set or a group");
        reader.checker.problem(item.span(), message, label, help);
        None
    }

    fn write(&self, peer: &Peer) -> Value {
        match peer {
            Peer::Any => json!("any"),
            Peer::Addresses(all) => match &all[..] {
                [one] => json!(prefix_text(one)),
                all => Vec::from_iter(all.iter().map(prefix_text)).into(),
            },
            Peer::Set(name) => json!({"set": name}),
            Peer::Group(name) => json!({"group": name}),
        }
    }

    fn schema(&self, definitions: &mut Definitions) -> Value {
        let address = json!({"type": "string"});
        json!({"oneOf": [
            address,
            {"type": "array", "minItems": 1, "maxItems": PEER_ADDRESSES_MAX, "items": address},
            table_reference::<PeerKeys>(definitions),
        ]})
    }

    fn keys(&self) -> Option<ListKeys> {
        table::<Peer>().keys()
    }
}

impl Nested for Peer {
    type Keys = PeerKeys;
    const MUST: &'static str = "a table with `set` or `group`";
    const HELP: &'static str = "for example: from = { set = \"admins\" }";

    fn check(reader: &mut Reader<'_>, keys: PeerKeys) -> Option<Self> {
        match (keys.set, keys.group) {
            (Some(set), None) => Some(Peer::Set(set)),
            (None, Some(group)) => Some(Peer::Group(group)),
            (set, _) => {
                // A wrong value or a misspelt key has been reported already.
                if !reader.checker.has_problem_in(&reader.place) {
                    let label = match set {
                        Some(_) => "both",
                        None => "neither",
                    };
                    let message = "the table must have either `set` or `group`".to_owned();
                    reader.problem(message, label, Self::HELP);
                }
                None
            }
        }
    }

    fn to_keys(&self) -> Option<PeerKeys> {
        match self {
            Peer::Set(name) => Some(PeerKeys {
                set: Some(name.clone()),
                group: None,
            }),
            Peer::Group(name) => Some(PeerKeys {
                set: None,
                group: Some(name.clone()),
            }),
            Peer::Any | Peer::Addresses(_) => None,
        }
    }
}
