//! `[[bridge]]`, and the `bridge` and `bridges` of ports: checks them against each other.

use std::collections::HashMap;

use super::check::{Checker, Place};
use super::field::Span;
use super::group_rules::TableList;
use super::key::Reader;
use super::limits::{BRIDGES_MAX, DEFAULT_BRIDGE};
use super::lists::{self, Element, Placed, unique};
use super::rules::{Nested, table};
use super::suggest::nearest;
use super::table::BridgeTagKeys;
use super::types::TagProtocol;
use super::words::Words as _;
use super::{Config, Port, PortKind, Vlan};

pub(super) use super::table::Bridge;

const HELP: &str = "for example: { vlan = 100, bridge = \"tenant-a\" }";

impl Element for Bridge {
    const LIST: &'static str = "bridge";
    const IDENTITY: &'static [&'static str] = &["name"];
    const MAX: usize = BRIDGES_MAX - 1;
}

impl Bridge {
    /// The bridge as a `[[bridge]]` table in TOML.
    pub fn to_toml(&self) -> String {
        lists::to_toml(self)
    }
}

/// A bridge whose frames an uplink has behind a tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeTag {
    /// The tag's VLAN ID.
    pub vlan: u16,
    /// The bridge's name.
    pub bridge: String,
    /// The tag's type.
    pub protocol: TagProtocol,
}

impl BridgeTag {
    /// The tag, as in messages: "802.1Q tag 100".
    pub fn text(&self) -> String {
        format!("{} tag {}", self.protocol_word(), self.vlan)
    }

    /// The tag's type: "802.1Q" or "802.1ad".
    pub fn protocol_word(&self) -> &'static str {
        self.protocol.word()
    }
}

impl Nested for BridgeTag {
    type Keys = BridgeTagKeys;
    const MUST: &'static str = "a table with `vlan` and `bridge`";
    const HELP: &'static str = HELP;

    fn check(_: &mut Reader<'_>, keys: BridgeTagKeys) -> Option<Self> {
        Some(BridgeTag {
            vlan: keys.vlan,
            bridge: keys.bridge,
            protocol: keys.protocol,
        })
    }

    fn to_keys(&self) -> Option<BridgeTagKeys> {
        Some(BridgeTagKeys {
            vlan: self.vlan,
            bridge: self.bridge.clone(),
            protocol: self.protocol,
        })
    }
}

/// A list of bridges with their tags.
pub(super) fn tags() -> TableList<BridgeTag> {
    TableList {
        each: table(),
        item: "a bridge",
        items_max: BRIDGES_MAX - 1,
    }
}

impl Port {
    /// The other bridges whose frames the port has; a guest's port has none.
    pub fn bridge_tags(&self) -> &[BridgeTag] {
        match &self.kind {
            PortKind::Vhost(_) => &[],
            PortKind::Xdp(xdp) => &xdp.bridges,
        }
    }

    /// Whether frames of the bridge pass through the port.
    pub fn is_in_bridge(&self, bridge: &str) -> bool {
        self.bridge == bridge || self.bridge_tags().iter().any(|tag| tag.bridge == bridge)
    }

    /// Whether frames of this VLAN of the bridge pass through the port. Behind a bridge's tag are all its VLANs.
    pub fn carries_in(&self, bridge: &str, vlan: u16) -> bool {
        match (self.bridge == bridge, &self.vlan) {
            (false, _) => self.is_in_bridge(bridge),
            (true, Vlan::Unaware) if self.has_untagged_only() => vlan == 0,
            (true, vlans) => vlans.carries(vlan),
        }
    }

    /// Whether the port has only untagged frames of its own bridge, because it has tags of other bridges and no `vlan`.
    pub fn has_untagged_only(&self) -> bool {
        self.vlan == Vlan::Unaware && !self.bridge_tags().is_empty()
    }
}

impl Config {
    /// Bridges that no port is in. Each is one line.
    pub fn bridge_warnings(&self) -> Vec<String> {
        let is_empty = |bridge: &&str| !self.ports.iter().any(|port| port.is_in_bridge(bridge));
        let names = self.bridges.iter().map(|bridge| bridge.name.as_str());
        names
            .filter(is_empty)
            .map(|name| format!("[[bridge]] {name} has no port"))
            .collect()
    }
}

/// The `bridge` and the `bridges` of a port, with their places.
pub(super) struct PortBridges {
    own: String,
    own_place: Option<Place>,
    vlan: Vlan,
    tags: Vec<(BridgeTag, Place)>,
}

impl PortBridges {
    /// Those of the port that is read, if it names any.
    pub(super) fn new(reader: &Reader<'_>, port: &Port) -> Option<Self> {
        let place = |span: Span| reader.checker.place(span);
        let own_place = reader.span("bridge").map(place);
        let items = reader
            .item("bridges")
            .and_then(|item| item.get_ref().as_array());
        let spans = items.into_iter().flatten().map(|item| place(item.span()));
        // With a wrong item, which has been reported, the places are those of others; the file is refused anyway.
        let tags: Vec<_> = port.bridge_tags().iter().cloned().zip(spans).collect();
        (own_place.is_some() || !tags.is_empty()).then(|| Self {
            own: port.bridge.clone(),
            own_place,
            vlan: port.vlan.clone(),
            tags,
        })
    }
}

/// Reports names of unknown bridges, and tags that could be taken for another bridge's or VLAN's.
pub(super) fn check(checker: &mut Checker, bridges: &[Placed<Bridge>], ports: &[PortBridges]) {
    unique(checker, bridges, |bridge| Some(bridge.name.clone()));
    for placed in bridges {
        if placed.value.name == DEFAULT_BRIDGE {
            let message = format!("a bridge is named {DEFAULT_BRIDGE:?}");
            let help =
                "ports without `bridge` are in the bridge of this name: give this one another name";
            checker.problem_at(placed.place("name"), message, "a reserved name", help);
        }
    }
    let mut names: Vec<&str> = bridges.iter().map(|one| one.value.name.as_str()).collect();
    names.push(DEFAULT_BRIDGE);
    names.sort_unstable();
    for port in ports {
        if let Some(place) = &port.own_place {
            known(checker, &port.own, &names, place);
        }
        check_tags(checker, port, &names);
    }
    check_one_tag(checker, ports);
}

/// Reports what is wrong with the tags of one port.
fn check_tags(checker: &mut Checker, port: &PortBridges, names: &[&str]) {
    let mut tags: HashMap<(TagProtocol, u16), &Place> = HashMap::new();
    let mut seen: HashMap<&str, &Place> = HashMap::new();
    // A key that is missing has been reported.
    let is_whole = |(tag, _): &&(BridgeTag, Place)| !tag.bridge.is_empty() && tag.vlan > 0;
    for (tag, place) in port.tags.iter().filter(is_whole) {
        known(checker, &tag.bridge, names, place);
        let problem = |checker: &mut Checker, message: String, label: &str, help: &str| {
            checker.problem_at(place.clone(), message, label, help);
        };
        if let Some(first) = tags.insert((tag.protocol, tag.vlan), place).cloned() {
            let message = format!("two bridges have the {} on one port", tag.text());
            let help = "give each bridge a tag of its own";
            checker.clash_at(place.clone(), Some(first), message, help);
        } else if let Some(first) = seen.insert(&tag.bridge, place).cloned() {
            let message = format!("bridge {:?} is in `bridges` twice", tag.bridge);
            let help = "remove one of them: a bridge has one tag";
            checker.clash_at(place.clone(), Some(first), message, help);
        } else if tag.bridge == DEFAULT_BRIDGE {
            let message = format!("bridge {DEFAULT_BRIDGE:?} is in `bridges`");
            let help = "it has no tag: make a [[bridge]] for these ports, or leave `bridge` of this uplink out";
            problem(checker, message, "has no tag", help);
        } else if tag.bridge == port.own {
            let message = format!("bridge {:?} is the port's own", tag.bridge);
            let help = "remove it here, or put the port into another bridge with `bridge`";
            problem(checker, message, "has no tag on this port", help);
        } else if let Vlan::Trunk { ids, .. } = &port.vlan
            && tag.protocol == TagProtocol::Vlan
            && ids.contains(&tag.vlan)
        {
            let message = format!("VLAN {} is in the port's `vlan` and in `bridges`", tag.vlan);
            let help = "remove it from `trunk`, or give the bridge another tag";
            problem(
                checker,
                message,
                "the tag of a VLAN of the port's own bridge",
                help,
            );
        }
    }
}

/// Reports a bridge that has different tags on two ports: a frame that is flooded to both has one.
fn check_one_tag(checker: &mut Checker, ports: &[PortBridges]) {
    let mut first: HashMap<&str, (&BridgeTag, &Place)> = HashMap::new();
    for (tag, place) in ports.iter().flat_map(|port| &port.tags) {
        let (other, other_place) = *first.entry(&tag.bridge).or_insert((tag, place));
        if (other.protocol, other.vlan) != (tag.protocol, tag.vlan) {
            let message = format!(
                "bridge {:?} has the {} here and the {} elsewhere",
                tag.bridge,
                tag.text(),
                other.text()
            );
            let help = "give it the same tag on all uplinks";
            checker.clash_at(place.clone(), Some(other_place.clone()), message, help);
        }
    }
}

/// Reports a name that is none of `names`.
fn known(checker: &mut Checker, name: &str, names: &[&str], place: &Place) {
    if names.contains(&name) {
        return;
    }
    let help = match nearest(name, names) {
        Some(meant) => format!("did you mean {meant:?}?"),
        None => format!("add a table [[bridge]] with name = {name:?}"),
    };
    let message = format!("no bridge is named {name:?}");
    checker.problem_at(place.clone(), message, "no such bridge", help);
}
