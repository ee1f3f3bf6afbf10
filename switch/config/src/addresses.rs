//! Checks a port's `addresses = { ... }`, and those of all ports against each other.

use std::collections::HashMap;

use crosspoint_packet::Mac;

use super::Vlan;
use super::check::{Checker, Place};
use super::field::{Field, Span, Table};
use super::limits::ADDRESSES_MAX;
use super::raw::RawAddresses;

const HELP: &str = "for example: addresses = { mac = [\"52:54:00:12:34:56\"] }";

/// The addresses of the ports so far, each with its port's VLANs and its place.
pub(super) type Bound = HashMap<Mac, Vec<(Vlan, Place)>>;

/// The source addresses that a port's frames may have; empty without `addresses`, and then any is allowed.
pub(super) fn addresses(
    checker: &mut Checker,
    field: Field<Table<RawAddresses>>,
    vlan: &Vlan,
    bound: &mut Bound,
) -> Vec<Mac> {
    let Some((Table(raw), span)) = checker.value(field, "addresses", "a table with `mac`", HELP)
    else {
        return Vec::new();
    };
    // A misspelt key has been reported already.
    if raw.mac.span().is_none() && !checker.has_problem_in(&span) {
        let message = "`addresses` has no `mac`".to_owned();
        checker.problem(span, message, "allows no address", HELP);
        return Vec::new();
    }
    let must = "a list of MAC addresses";
    let Some((list, span)) = checker.value(raw.mac, "mac", must, HELP) else {
        return Vec::new();
    };
    if list.is_empty() || list.len() > ADDRESSES_MAX {
        let message = format!("`mac` must be a list of 1 to {ADDRESSES_MAX} MAC addresses");
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
        return Vec::new();
    }
    let mut addresses: Vec<Mac> = Vec::with_capacity(list.len());
    for item in list {
        let span = item.span().unwrap_or_default();
        let Some(mac) = checker.station(item, "an address in `mac`", HELP) else {
            continue;
        };
        let place = checker.place(span.clone());
        if let Some(first) = first_use(bound, mac, vlan) {
            let (message, help) = match addresses.contains(&mac) {
                true => (format!("{mac} is in `mac` twice"), "remove one of them"),
                false => (
                    format!("{mac} is bound to two ports that share a VLAN"),
                    "remove it from one of them, or give the ports VLANs of their own: an address is on one port of a VLAN",
                ),
            };
            checker.clash(span, Some(first), message, help);
            continue;
        }
        bound.entry(mac).or_default().push((vlan.clone(), place));
        addresses.push(mac);
    }
    addresses
}

/// Reports a guest's configured `mac` whose frames would be dropped.
pub(super) fn with_own(checker: &mut Checker, mac: Option<Mac>, span: Span, addresses: &[Mac]) {
    if let Some(mac) = mac
        && !addresses.is_empty()
        && !addresses.contains(&mac)
    {
        let message = "`mac` is not in the port's `addresses`".to_owned();
        let label = "frames from this address would be dropped";
        checker.problem(
            span,
            message,
            label,
            "add it to `addresses`, or remove `mac`",
        );
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
