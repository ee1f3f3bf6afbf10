//! MAC addresses, VLANs, TCP flags and Ethernet types in a rule of a `[[group]]`.

use crosspoint_engine::groups::TcpFlags;
use crosspoint_packet::Mac;
use serde_json::{Value, json};

use super::field::{FromToml as _, Item};
use super::group_rules::wrong;
use super::group_values::TCP;
use super::key::{Definitions, Reader, Rule};
use super::limits::PEER_ADDRESSES_MAX;
use super::text_list::TextList;
use super::texts::{MAC_PATTERN, STATION, Text, station};

/// Flags of TCP with their bits in the header (RFC 9293, 3.1).
const FLAGS: [(&str, u8); 6] = [
    ("fin", 0x01),
    ("syn", 0x02),
    ("rst", 0x04),
    ("psh", 0x08),
    ("ack", 0x10),
    ("urg", 0x20),
];

/// Types of frames that rules for IP and other settings decide on.
const TYPES: [(u16, &str); 7] = [
    (
        0x0800,
        "the type of IPv4: leave `ethertype` out, and add ip = 4",
    ),
    (
        0x86dd,
        "the type of IPv6: leave `ethertype` out, and add ip = 6",
    ),
    (
        0x0806,
        "the type of ARP, which needs no rule: see `addresses`",
    ),
    (0x8035, "the type of reverse ARP, which needs no rule"),
    (
        0x8100,
        "the type of a tag: give the type behind the tag, and its VLAN in `vlans`",
    ),
    (
        0x9100,
        "the type of a tag: give the type behind the tag, and its VLAN in `vlans`",
    ),
    (
        0x88a8,
        "the type of a tag: give the type behind the tag, and its VLAN in `vlans`",
    ),
];

/// The keys of a rule that only a rule for IP has.
const KEYS_OF_IP: [&str; 9] = [
    "ip",
    "protocol",
    "port",
    "ports",
    "icmp_type",
    "icmp_code",
    "from",
    "to",
    "tcp_flags",
];

/// MAC addresses of the other side.
pub(super) fn stations() -> TextList<Mac> {
    TextList {
        items: "MAC addresses",
        item: "an address",
        must: STATION,
        items_max: PEER_ADDRESSES_MAX,
        empty: Some(("would allow nothing", "remove `mac` to allow any address")),
        too_many: "leave `mac` out, or make several rules",
        help: "for example: mac = [\"52:54:00:12:34:56\"]",
        parse: |text| station(text).map_err(|label| (label, None)),
        write: Mac::to_string,
        pattern: MAC_PATTERN,
    }
}

/// Flags of TCP.
pub(super) fn tcp_flags() -> Text<TcpFlags> {
    Text {
        must: "TCP flags (fin, syn, rst, psh, ack, urg), with \"!\" before a flag that must be clear",
        help: "for example: tcp_flags = \"syn,!ack\", for a connection's first packet".into(),
        parse: |text| parse_flags(text).map_err(Into::into),
        write: flags_text,
        schema: json!({"pattern": "^!?(fin|syn|rst|psh|ack|urg)(,!?(fin|syn|rst|psh|ack|urg))*$"}),
    }
}

fn parse_flags(text: &str) -> Result<TcpFlags, &'static str> {
    let mut flags = TcpFlags { set: 0, clear: 0 };
    for word in text.split(',') {
        let name = word.trim();
        let (name, is_clear) = match name.strip_prefix('!') {
            Some(name) => (name, true),
            None => (name, false),
        };
        let Some((_, bit)) = FLAGS.iter().find(|(known, _)| *known == name) else {
            return Err("not a TCP flag");
        };
        if (flags.set | flags.clear) & bit != 0 {
            return Err("a flag is named twice");
        }
        match is_clear {
            true => flags.clear |= bit,
            false => flags.set |= bit,
        }
    }
    Ok(flags)
}

/// The flags as in the configuration.
pub(super) fn flags_text(flags: &TcpFlags) -> String {
    let named = FLAGS.iter().filter_map(|(name, bit)| {
        let is_set = flags.set & bit != 0;
        let is_clear = flags.clear & bit != 0;
        match (is_set, is_clear) {
            (true, _) => Some((*name).to_owned()),
            (_, true) => Some(format!("!{name}")),
            _ => None,
        }
    });
    Vec::from_iter(named).join(",")
}

/// The type of frames that are not IP.
pub(super) struct EtherType;

impl Rule for EtherType {
    type Value = u16;

    fn read<'a>(&self, reader: &mut Reader<'a>, key: &str, item: &'a Item<'a>) -> Option<u16> {
        let number = i64::from_toml(item.get_ref());
        let kind = number.and_then(|number| u16::try_from(number).ok());
        let Some(kind) = kind.filter(|kind| *kind >= 0x0600) else {
            let message = format!("`{key}` must be a number from 0x0600 to 0xffff");
            let help = format!("for example: {key} = 0x8863, for PPPoE");
            let label = "not an Ethernet type";
            reader.checker.problem(item.span(), message, label, help);
            return None;
        };
        if let Some((_, what)) = TYPES.iter().find(|(other, _)| *other == kind) {
            let message = format!("{kind:#06x} is {what}");
            let help = "`ethertype` is for frames that are neither IP nor ARP";
            reader
                .checker
                .problem(item.span(), message, "not allowed here", help);
            return None;
        }
        Some(kind)
    }

    fn write(&self, value: &u16) -> Value {
        json!(value)
    }

    fn schema(&self, _: &mut Definitions) -> Value {
        json!({"type": "integer", "minimum": 0x0600, "maximum": 0xffff})
    }
}

/// Records flags without TCP, and what is of IP beside a type that is not.
pub(super) fn check(reader: &mut Reader<'_>, protocol: Option<u8>, ethertype: Option<u16>) {
    // A wrong protocol has been reported.
    let is_known = protocol.is_some() || reader.item("protocol").is_none();
    if reader.item("tcp_flags").is_some() && is_known && protocol != Some(TCP) {
        let message = "`tcp_flags` goes with protocol = \"tcp\"";
        let help = "add protocol = \"tcp\" to this rule";
        wrong(
            reader,
            "tcp_flags",
            message,
            "`protocol` is not \"tcp\"",
            help,
        );
    }
    if ethertype.is_none() {
        return;
    }
    let others = KEYS_OF_IP.iter().find(|key| reader.item(key).is_some());
    if let Some(key) = others {
        let message = format!("`{key}` is for IP, and `ethertype` for what is not IP");
        let help = "make two rules, or remove one of the keys";
        wrong(reader, key, &message, "not beside `ethertype`", help);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_read_and_written_the_same() {
        let flags = parse_flags("syn, !ack").unwrap();
        assert_eq!(flags, TcpFlags { set: 2, clear: 16 });
        assert_eq!(flags_text(&flags), "syn,!ack");
        for text in ["", "syn,", "SYN", "syn,!syn", "ack,ack", "!"] {
            assert!(parse_flags(text).is_err(), "{text}");
        }
    }
}
