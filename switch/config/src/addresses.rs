//! Checks a port's `addresses = { ... }`, and those of all ports against each other.

use std::collections::HashMap;

use crosspoint_packet::Mac;
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

/// The addresses of the ports so far, each with its port's VLANs and its place.
pub(super) type Bound = HashMap<Mac, Vec<(Vlan, Place)>>;

impl Nested for Vec<Mac> {
    type Keys = AddressKeys;
    const MUST: &'static str = "a table with `mac`";
    const HELP: &'static str = HELP;

    fn check(reader: &mut Reader<'_>, keys: AddressKeys) -> Option<Self> {
        if reader.is_without(&["mac"]) {
            let message = "`addresses` has no `mac`".to_owned();
            reader.problem(message, "allows no address", HELP);
        }
        Some(keys.mac)
    }

    fn to_keys(&self) -> Option<AddressKeys> {
        let mac = self.clone();
        (!mac.is_empty()).then_some(AddressKeys { mac })
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

/// Checks that each of the port's addresses is bound only here, among the ports with which it shares a VLAN.
pub(super) fn unique(reader: &mut Reader<'_>, vlan: &Vlan, bound: &mut Bound) {
    let table = reader
        .item("addresses")
        .and_then(|item| item.get_ref().as_table());
    let list = table.and_then(|table| table.get("mac")?.get_ref().as_array());
    let list = list.filter(|list| list.len() <= ADDRESSES_MAX);
    let mut own: Vec<Mac> = Vec::new();
    for item in list.into_iter().flatten() {
        let text = item.get_ref().as_str().unwrap_or_default();
        let Ok(mac) = station(text) else {
            continue;
        };
        if let Some(first) = first_use(bound, mac, vlan) {
            let (message, help) = match own.contains(&mac) {
                true => (format!("{mac} is in `mac` twice"), "remove one of them"),
                false => (
                    format!("{mac} is bound to two ports that share a VLAN"),
                    "remove it from one of them, or give the ports VLANs of their own: an address is on one port of a VLAN",
                ),
            };
            reader
                .checker
                .clash(item.span(), Some(first), message, help);
            continue;
        }
        let place = reader.checker.place(item.span());
        bound.entry(mac).or_default().push((vlan.clone(), place));
        own.push(mac);
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
fn first_use(bound: &Bound, mac: Mac, vlan: &Vlan) -> Option<Place> {
    let mut uses = bound.get(&mac)?.iter();
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
