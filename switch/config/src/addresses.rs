//! Checks a port's `addresses = { ... }`, and those of all ports against each other.

use std::collections::HashMap;
use std::fmt::Display;
use std::hash::Hash;
use std::net::IpAddr;

use crosspoint_packet::{IpNet, Mac};

use super::Vlan;
use super::check::Place;
use super::key::Reader;
use super::limits::ADDRESSES_MAX;
use super::rules::Nested;
use super::table::AddressKeys;
use super::text_list::{TextList, Wrong};
use super::texts::{MAC_PATTERN, STATION, station};

const HELP: &str = "for example: addresses = { mac = [\"52:54:00:12:34:56\"] }";

const IP_HELP: &str = "for example: addresses = { mac = [\"52:54:00:12:34:56\"], ip = [\"192.0.2.10\", \"2001:db8::/64\"] }";
pub(super) const PREFIX_PATTERN: &str = "^[0-9a-fA-F:.]+(/[0-9]{1,3})?$";
/// What [`parse_prefix`] accepts.
pub(super) const IP: &str =
    "an IP address such as \"192.0.2.10\", or a prefix such as \"2001:db8::/64\"";

/// The only addresses that a port may claim; no MAC address: it may claim any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// MAC addresses.
    pub mac: Vec<Mac>,
    /// IP addresses and prefixes; empty: any.
    pub ip: Vec<IpNet>,
}

impl Addresses {
    /// The IP addresses and prefixes as they are written in a file.
    pub fn ip_texts(&self) -> Vec<String> {
        self.ip.iter().map(prefix_text).collect()
    }
}

/// The addresses of the ports so far, each with its port's bridge and VLANs, and its place.
#[derive(Default)]
pub(super) struct Bound {
    mac: Uses<Mac>,
    ip: Uses<IpNet>,
}

type Uses<A> = HashMap<A, Vec<(String, Vlan, Place)>>;

impl Nested for Addresses {
    type Keys = AddressKeys;
    const MUST: &'static str = "a table with `mac`";
    const HELP: &'static str = HELP;

    fn check(reader: &mut Reader<'_>, keys: AddressKeys) -> Option<Self> {
        if reader.is_without(&["mac"]) {
            let message = "`addresses` has no `mac`".to_owned();
            reader.problem(message, "allows no address", HELP);
        }
        Some(Addresses {
            mac: keys.mac,
            ip: keys.ip.unwrap_or_default(),
        })
    }

    fn to_keys(&self) -> Option<AddressKeys> {
        let Addresses { mac, ip } = self.clone();
        let ip = (!ip.is_empty()).then_some(ip);
        (!mac.is_empty()).then_some(AddressKeys { mac, ip })
    }
}

/// Reads an address or a prefix. A prefix whose address has bits beyond its length is a mistake.
fn prefix(text: &str) -> Option<IpNet> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(IpNet::from(address));
    }
    let net: IpNet = text.parse().ok()?;
    (net.trunc() == net).then_some(net)
}

/// Reads an address or a prefix, or tells what is wrong with the text.
pub(super) fn parse_prefix(text: &str) -> Result<IpNet, Wrong> {
    prefix(text).ok_or_else(|| match text.parse::<IpNet>() {
        Ok(net) => {
            let help = format!("write \"{}\"", net.trunc());
            ("has bits beyond its length", Some(help))
        }
        Err(_) => ("no IP address", None),
    })
}

/// Reads an IP address or a prefix, as in a file.
///
/// # Errors
///
/// What is wrong with the text, and how to fix it.
pub fn parse_address(text: &str) -> Result<IpNet, String> {
    parse_prefix(text).map_err(|(label, help)| {
        let help = help.unwrap_or_else(|| format!("it must be {IP}"));
        format!("{text:?}: {label}; {help}")
    })
}

/// As it is written in a file: a single address without its length.
pub fn prefix_text(net: &IpNet) -> String {
    match net.prefix_len() == net.max_prefix_len() {
        true => net.addr().to_string(),
        false => net.to_string(),
    }
}

/// A list of IP addresses and prefixes.
pub(super) fn prefixes() -> TextList<IpNet> {
    TextList {
        items: "IP addresses and prefixes",
        item: "an address",
        must: IP,
        items_max: ADDRESSES_MAX,
        empty: Some(("allows no address", "remove `ip` to allow any IP address")),
        too_many: "write prefixes in place of single addresses",
        help: IP_HELP,
        parse: parse_prefix,
        write: prefix_text,
        pattern: PREFIX_PATTERN,
    }
}

/// A list of stations' addresses.
pub(super) fn stations() -> TextList<Mac> {
    TextList {
        items: "MAC addresses",
        item: "an address",
        must: STATION,
        items_max: ADDRESSES_MAX,
        empty: Some((
            "allows no address",
            "remove `addresses` to allow any address",
        )),
        too_many: "remove `addresses` to allow any address, and limit their number with `mac_limit`",
        help: HELP,
        parse: |text| station(text).map_err(|label| (label, None)),
        write: Mac::to_string,
        pattern: MAC_PATTERN,
    }
}

/// Checks that each of the port's addresses is bound only here, among the ports with which it shares a VLAN of a bridge. Prefixes of IP
/// addresses may overlap.
pub(super) fn unique(reader: &mut Reader<'_>, at: (&str, &Vlan), bound: &mut Bound) {
    let single = |net: &IpNet| net.prefix_len() == net.max_prefix_len();
    unique_of(reader, ("mac", at), &mut bound.mac, |text| {
        station(text).ok()
    });
    unique_of(reader, ("ip", at), &mut bound.ip, |text| {
        prefix(text).filter(single)
    });
}

fn unique_of<A: Copy + Eq + Hash + Display>(
    reader: &mut Reader<'_>,
    (key, (bridge, vlan)): (&str, (&str, &Vlan)),
    bound: &mut Uses<A>,
    parse: impl Fn(&str) -> Option<A>,
) {
    let table = reader
        .item("addresses")
        .and_then(|item| item.get_ref().as_table());
    let list = table.and_then(|table| table.get(key)?.get_ref().as_array());
    let list = list.filter(|list| list.len() <= ADDRESSES_MAX);
    let mut own: Vec<A> = Vec::new();
    for item in list.into_iter().flatten() {
        let text = item.get_ref().as_str().unwrap_or_default();
        let Some(address) = parse(text) else {
            continue;
        };
        if let Some(first) = first_use(bound, address, (bridge, vlan)) {
            let (message, help) = match own.contains(&address) {
                true => (format!("{text} is in `{key}` twice"), "remove one of them"),
                false => (
                    format!("{text} is bound to two ports that share a VLAN"),
                    "remove it from one of them, or give the ports VLANs of their own: an address is on one port of a VLAN",
                ),
            };
            reader
                .checker
                .clash(item.span(), Some(first), message, help);
            continue;
        }
        let place = reader.checker.place(item.span());
        bound
            .entry(address)
            .or_default()
            .push((bridge.to_owned(), vlan.clone(), place));
        own.push(address);
    }
}

/// Reports a guest's configured `mac` whose frames would be dropped.
pub(super) fn with_own(reader: &mut Reader<'_>, mac: Option<Mac>, addresses: &[Mac]) {
    if let (Some(mac), Some(span)) = (mac, reader.span("mac"))
        && !addresses.is_empty()
        && !addresses.contains(&mac)
    {
        let message = "`mac` is not in the port's `addresses`".to_owned();
        let label = "frames from this address would be dropped";
        let help = "add it to `addresses`, or remove `mac`";
        reader.checker.problem(span, message, label, help);
    }
}

/// The place where the address is already bound, to this port or to one that shares a VLAN of its bridge.
fn first_use<A: Eq + Hash>(
    bound: &Uses<A>,
    address: A,
    (bridge, vlan): (&str, &Vlan),
) -> Option<Place> {
    let mut uses = bound.get(&address)?.iter();
    uses.find(|(other, vlans, _)| other == bridge && share(vlans, vlan))
        .map(|(_, _, place)| place.clone())
}

/// Whether two ports share a VLAN. A VLAN-unaware port carries all VLANs, and untagged frames.
fn share(one: &Vlan, other: &Vlan) -> bool {
    let has = |id: &u16| match other {
        Vlan::Unaware => true,
        Vlan::Access(own) => own == id,
        Vlan::Trunk { ids, native } => ids.contains(id) || native.as_ref() == Some(id),
    };
    match one {
        Vlan::Unaware => true,
        Vlan::Access(id) => has(id),
        Vlan::Trunk { ids, native } => ids.iter().chain(native).any(has),
    }
}
