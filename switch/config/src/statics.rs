//! `[[fdb]]`: addresses that stay on their ports. Checks them against each other and against the ports.

use std::collections::HashMap;

use crosspoint_packet::Mac;

use super::check::{Checker, Place};
use super::limits::{DEFAULT_BRIDGE, STATICS_MAX};
use super::lists::{self, Element, KnownPorts, Placed, unique};
use super::suggest::nearest;
use super::{Config, ConfigError, Port, Vlan};

pub(super) use super::table::StaticEntry;

impl Element for StaticEntry {
    const LIST: &'static str = "fdb";
    const IDENTITY: &'static [&'static str] = &["mac", "vlan", "bridge"];
    const MAX: usize = STATICS_MAX;
}

impl StaticEntry {
    /// The address, and its VLAN if the entry names it: "52:54:00:00:00:01 vlan 100".
    pub fn name(&self) -> String {
        lists::name(self)
    }

    /// The entry as a `[[fdb]]` table in TOML.
    pub fn to_toml(&self) -> String {
        lists::to_toml(self)
    }

    /// The entry's VLAN on its port: its own, or that of the port's untagged frames. 0 for none; `None` if the port has no
    /// VLAN for untagged frames.
    pub fn vlan_on(&self, port: &Port) -> Option<u16> {
        let untagged = || match self.bridge_on(port) == port.bridge {
            true => port.vlan.untagged(),
            false => Some(0),
        };
        self.vlan.or_else(untagged)
    }

    /// The entry's bridge on its port.
    fn bridge_on<'a>(&'a self, port: &'a Port) -> &'a str {
        self.bridge.as_deref().unwrap_or(&port.bridge)
    }
}

impl Config {
    /// The bridge and the VLAN of a static address, 0 for none; `None` if they are not known, because the port is not there.
    pub fn place_of(&self, entry: &StaticEntry) -> Option<(String, u16)> {
        let port = self.ports.iter().find(|port| port.name == entry.port);
        let bridge = match port {
            Some(port) => entry.bridge_on(port),
            None => entry.bridge.as_deref().unwrap_or(DEFAULT_BRIDGE),
        };
        let vlan = entry.vlan.or_else(|| entry.vlan_on(port?))?;
        Some((bridge.to_owned(), vlan))
    }

    /// Whether a static address is this one, in this bridge or in any, in this VLAN or in any.
    pub fn is_for(
        &self,
        entry: &StaticEntry,
        mac: Mac,
        (bridge, vlan): (Option<&str>, Option<u16>),
    ) -> bool {
        if entry.mac != mac {
            return false;
        }
        let place = self.place_of(entry);
        let place = place.as_ref();
        bridge.is_none_or(|wanted| place.is_some_and(|(bridge, _)| bridge == wanted))
            && vlan.is_none_or(|wanted| place.is_some_and(|(_, vlan)| *vlan == wanted))
    }

    /// Checks an entry that is not part of the configuration against its ports.
    ///
    /// # Errors
    ///
    /// As [`Config::load`], for a contradiction with a port. That the port does not exist is no error.
    pub fn check_static(&self, entry: &StaticEntry) -> Result<(), ConfigError> {
        let others = Config {
            fdb: Vec::new(),
            ..self.clone()
        };
        others.with_text("the static address", entry.to_toml())?;
        Ok(())
    }

    /// The static addresses whose ports are not in this configuration.
    pub fn waiting_statics(&self) -> impl Iterator<Item = &StaticEntry> {
        let is_there = |name: &str| self.ports.iter().any(|port| port.name == name);
        self.fdb.iter().filter(move |entry| !is_there(&entry.port))
    }
}

impl Vlan {
    /// The VLAN of untagged frames, 0 for none; `None` if such frames are dropped.
    pub fn untagged(&self) -> Option<u16> {
        match self {
            Vlan::Unaware => Some(0),
            Vlan::Access(id) => Some(*id),
            Vlan::Trunk { native, .. } => *native,
        }
    }

    /// Whether the port has frames of this VLAN; 0: of none.
    pub fn carries(&self, vlan: u16) -> bool {
        match self {
            Vlan::Unaware => true,
            Vlan::Access(id) => *id == vlan,
            Vlan::Trunk { ids, native } => ids.contains(&vlan) || *native == Some(vlan),
        }
    }
}

/// Reports wrong entries: those of unknown ports, of VLANs that the port does not carry, of addresses that are bound to another
/// port, and those that are there twice.
///
/// If an entry and a port contradict each other, the report is at the entry, and the file of higher rank is to blame.
pub(super) fn check(checker: &mut Checker, all: &[Placed<StaticEntry>], known: &KnownPorts<'_>) {
    let mut bound: HashMap<Mac, Vec<&Port>> = HashMap::new();
    for port in known.ports.values() {
        for mac in &port.addresses.mac {
            bound.entry(*mac).or_default().push(port);
        }
    }
    for placed in all {
        let entry = &placed.value;
        match known.ports.get(entry.port.as_str()) {
            Some(port) => on_port(checker, placed, port, known),
            None if known.names.contains_key(&entry.port) || known.may_come => continue,
            None => {
                unknown_port(checker, placed, known);
                continue;
            }
        }
        let of_others = bound.get(&entry.mac).into_iter().flatten();
        let place = known.place_of(entry);
        let binds = |port: &&&Port| {
            let is_there = |(bridge, vlan): (&str, u16)| {
                port.bridge == bridge && port.carries_in(bridge, vlan)
            };
            port.name != entry.port && place.is_some_and(is_there)
        };
        if let Some(other) = of_others.copied().find(|port| binds(&port)) {
            let message = format!("{} is bound to port {:?}", entry.mac, other.name);
            let help = "remove it here, or from `addresses` of that port: an address is on one port of a VLAN";
            let blamed = known.blamed(&placed.table, &other.name);
            checker.problem_by(
                &blamed,
                placed.place("mac"),
                message,
                "another port's",
                help,
            );
        }
    }
    unique(checker, all, |entry| {
        let (bridge, vlan) = known.place_of(entry)?;
        Some((entry.mac, bridge.to_owned(), vlan))
    });
}

/// Reports an entry whose VLAN its port does not carry.
fn on_port(
    checker: &mut Checker,
    placed: &Placed<StaticEntry>,
    port: &Port,
    known: &KnownPorts<'_>,
) {
    let entry = &placed.value;
    let bridge = entry.bridge_on(port);
    let (place, message, label, help) = match entry.vlan_on(port) {
        _ if !port.is_in_bridge(bridge) => (
            placed.place("bridge"),
            format!("port {:?} has no frames of bridge {bridge:?}", port.name),
            "neither the port's `bridge` nor in its `bridges`",
            "name a bridge of the port, or remove `bridge` for the port's own",
        ),
        Some(vlan) if port.carries_in(bridge, vlan) => return,
        Some(0) => (
            placed.place("vlan"),
            format!("port {:?} has no frames without a VLAN", port.name),
            "0 is for ports without `vlan`",
            "remove `vlan` for the VLAN of the port's untagged frames, or name one that it carries",
        ),
        Some(vlan) => (
            placed.place("vlan"),
            format!("port {:?} does not carry VLAN {vlan}", port.name),
            "not in the port's `vlan`",
            "name a VLAN that the port carries, or add this one to the port's `vlan`",
        ),
        None => (
            placed.place("port"),
            format!("port {:?} has no VLAN for untagged frames", port.name),
            "a trunk without `native`",
            "add the address's VLAN, for example: vlan = 100",
        ),
    };
    let blamed = known.blamed(&placed.table, &port.name);
    checker.problem_by(&blamed, place, message, label, help);
}

fn unknown_port(checker: &mut Checker, placed: &Placed<StaticEntry>, known: &KnownPorts<'_>) {
    let port = &placed.value.port;
    let mut names: Vec<&str> = known.names.keys().map(String::as_str).collect();
    names.sort_unstable();
    let help = match nearest(port, &names) {
        Some(name) => format!("did you mean {name:?}?"),
        None => "name a port of this configuration; with `ports_dir`, it may come later".to_owned(),
    };
    let message = format!("no port is named {port:?}");
    checker.problem_at(placed.place("port"), message, "no such port", help);
}

impl KnownPorts<'_> {
    /// The bridge and the VLAN of an entry whose port is known.
    fn place_of<'a>(&'a self, entry: &'a StaticEntry) -> Option<(&'a str, u16)> {
        let port = self.ports.get(entry.port.as_str())?;
        Some((entry.bridge_on(port), entry.vlan_on(port)?))
    }

    /// The file that is to blame if what is at `place` contradicts a port: the one of higher rank.
    pub(super) fn blamed(&self, place: &Place, port: &str) -> super::error::SourceFile {
        let other = self.names.get(port).map(|place| &place.file);
        let blamed = other.filter(|other| other.rank > place.file.rank);
        blamed.unwrap_or(&place.file).clone()
    }
}
