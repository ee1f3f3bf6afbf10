//! Checks a port's `addresses = { ... }`, and those of all ports against each other.

use std::collections::HashMap;
use std::fmt::Display;
use std::hash::Hash;
use std::net::IpAddr;

use crosspoint_packet::{IpNet, Mac};
use serde_json::{Value, json};

use super::Vlan;
use super::check::Place;
use super::field::Item;
use super::key::{Definitions, Reader, Rule};
use super::limits::ADDRESSES_MAX;
use super::rules::Nested;
use super::table::AddressKeys;
use super::texts::{MAC_PATTERN, STATION, station};

const HELP: &str = "for example: addresses = { mac = [\"52:54:00:12:34:56\"] }";

const IP_HELP: &str = "for example: addresses = { mac = [\"52:54:00:12:34:56\"], ip = [\"192.0.2.10\", \"2001:db8::/64\"] }";
const IP: &str = "an IP address such as \"192.0.2.10\", or a prefix such as \"2001:db8::/64\"";

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

/// The addresses of the ports so far, each with its port's VLANs and its place.
#[derive(Default)]
pub(super) struct Bound {
    mac: Uses<Mac>,
    ip: Uses<IpNet>,
}

type Uses<A> = HashMap<A, Vec<(Vlan, Place)>>;

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

/// A list of IP addresses and prefixes.
pub(super) struct PrefixList;

/// Reads an address or a prefix. A prefix whose address has bits beyond its length is a mistake.
fn prefix(text: &str) -> Option<IpNet> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(IpNet::from(address));
    }
    let net: IpNet = text.parse().ok()?;
    (net.trunc() == net).then_some(net)
}

/// As it is written in a file: a single address without its length.
fn prefix_text(net: &IpNet) -> String {
    match net.prefix_len() == net.max_prefix_len() {
        true => net.addr().to_string(),
        false => net.to_string(),
    }
}

impl Rule for PrefixList {
    type Value = Vec<IpNet>;

    fn read<'a>(
        &self,
        reader: &mut Reader<'a>,
        key: &str,
        item: &'a Item<'a>,
    ) -> Option<Vec<IpNet>> {
        let checker = &mut *reader.checker;
        let must = "a list of IP addresses and prefixes";
        let (list, span): (&[Item<'_>], _) = checker.value(item, key, must, IP_HELP)?;
        if list.is_empty() || list.len() > ADDRESSES_MAX {
            let message =
                format!("`{key}` must be a list of 1 to {ADDRESSES_MAX} IP addresses and prefixes");
            let (label, help) = match list.is_empty() {
                true => ("allows no address", "remove `ip` to allow any IP address"),
                false => ("too many", "write prefixes in place of single addresses"),
            };
            checker.problem(span, message, label, help);
            return None;
        }
        let subject = format!("an address in `{key}`");
        let mut prefixes = Vec::with_capacity(list.len());
        for item in list {
            let text = checker.typed::<&str>(item, &subject, IP, IP_HELP);
            match text.map(|(text, _)| prefix(text)) {
                Some(Some(net)) => prefixes.push(net),
                Some(None) => {
                    let message = format!("{subject} must be {IP}");
                    let text = item.get_ref().as_str().unwrap_or_default();
                    let (label, help) = match text.parse::<IpNet>() {
                        Ok(net) => (
                            "has bits beyond its length",
                            format!("write \"{}\"", net.trunc()),
                        ),
                        Err(_) => ("no IP address", IP_HELP.to_owned()),
                    };
                    checker.problem(item.span(), message, label, help);
                }
                None => {}
            }
        }
        Some(prefixes)
    }

    fn write(&self, prefixes: &Vec<IpNet>) -> Value {
        json!(prefixes.iter().map(prefix_text).collect::<Vec<_>>())
    }

    fn schema(&self, _: &mut Definitions) -> Value {
        json!({
            "type": "array", "minItems": 1, "maxItems": ADDRESSES_MAX, "uniqueItems": true,
            "items": {"type": "string", "pattern": "^[0-9a-fA-F:.]+(/[0-9]{1,3})?$"},
        })
    }
}

/// A list of stations' addresses.
pub(super) struct StationList;

impl Rule for StationList {
    type Value = Vec<Mac>;

    fn read<'a>(&self, reader: &mut Reader<'a>, key: &str, item: &'a Item<'a>) -> Option<Vec<Mac>> {
        let must = "a list of MAC addresses";
        let checker = &mut *reader.checker;
        let (list, span): (&[Item<'_>], _) = checker.value(item, key, must, HELP)?;
        if list.is_empty() || list.len() > ADDRESSES_MAX {
            let message = format!("`{key}` must be a list of 1 to {ADDRESSES_MAX} MAC addresses");
            let (label, help) = match list.is_empty() {
                true => (
                    "allows no address",
                    "remove `addresses` to allow any address",
                ),
                false => (
                    "too many",
                    "remove `addresses` to allow any address, and limit their number with `mac_limit`",
                ),
            };
            checker.problem(span, message, label, help);
            return None;
        }
        let subject = format!("an address in `{key}`");
        let mut stations = Vec::with_capacity(list.len());
        for item in list {
            let text = checker.typed::<&str>(item, &subject, STATION, HELP);
            match text.map(|(text, _)| station(text)) {
                Some(Ok(mac)) => stations.push(mac),
                Some(Err(label)) => {
                    let message = format!("{subject} must be {STATION}");
                    checker.problem(item.span(), message, label, HELP);
                }
                None => {}
            }
        }
        Some(stations)
    }

    fn write(&self, stations: &Vec<Mac>) -> Value {
        json!(stations.iter().map(Mac::to_string).collect::<Vec<_>>())
    }

    fn schema(&self, _: &mut Definitions) -> Value {
        json!({
            "type": "array", "minItems": 1, "maxItems": ADDRESSES_MAX, "uniqueItems": true,
            "items": {"type": "string", "pattern": MAC_PATTERN},
        })
    }
}

/// Checks that each of the port's addresses is bound only here, among the ports with which it shares a VLAN. Prefixes of IP
/// addresses may overlap.
pub(super) fn unique(reader: &mut Reader<'_>, vlan: &Vlan, bound: &mut Bound) {
    let single = |net: &IpNet| net.prefix_len() == net.max_prefix_len();
    unique_of(reader, ("mac", vlan), &mut bound.mac, |text| {
        station(text).ok()
    });
    unique_of(reader, ("ip", vlan), &mut bound.ip, |text| {
        prefix(text).filter(single)
    });
}

fn unique_of<A: Copy + Eq + Hash + Display>(
    reader: &mut Reader<'_>,
    (key, vlan): (&str, &Vlan),
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
        if let Some(first) = first_use(bound, address, vlan) {
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
            .push((vlan.clone(), place));
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

/// The place where the address is already bound, to this port or to one that shares a VLAN with `vlan`.
fn first_use<A: Eq + Hash>(bound: &Uses<A>, address: A, vlan: &Vlan) -> Option<Place> {
    let mut uses = bound.get(&address)?.iter();
    uses.find(|(other, _)| share(other, vlan))
        .map(|(_, place)| place.clone())
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
