//! `[[group]]`: security groups. Checks groups, the rules in them, and the `groups` of ports against each other.

use std::collections::{BTreeSet, HashMap};

use super::check::{Checker, Place};
use super::field::{Item, Span};
use super::group_rules::GroupRule;
use super::group_values::Peer;
use super::key::Reader;
use super::limits::{GROUP_RULES_MAX, GROUPS_MAX, PORT_GROUPS_MAX};
use super::lists::{self, Element, Placed, unique};
use super::sets::Set;
use super::suggest::nearest;
use super::text_list::TextList;
use super::texts::{NAME_PATTERN, wrong_name};
use super::types::RuleDirection;
use super::{Config, Port, PortKind};

pub(super) use super::table::Group;

impl Element for Group {
    const LIST: &'static str = "group";
    const IDENTITY: &'static [&'static str] = &["name"];
    const MAX: usize = GROUPS_MAX;

    fn references(reader: &Reader<'_>) -> Vec<(Reference, Span)> {
        let rules = reader
            .item("rules")
            .and_then(|rules| rules.get_ref().as_array());
        let rules = rules.map(|rules| &**rules).unwrap_or_default();
        let sides = rules
            .iter()
            .flat_map(|rule| ["from", "to"].map(|key| inner(rule, key)));
        sides
            .flatten()
            .flat_map(|side| {
                let set = named(side, "set").map(|(name, span)| (Reference::Set(name), span));
                let group = named(side, "group").map(|(name, span)| (Reference::Group(name), span));
                set.into_iter().chain(group)
            })
            .collect()
    }
}

fn inner<'a>(table: &'a Item<'a>, key: &str) -> Option<&'a Item<'a>> {
    table.get_ref().as_table()?.get(key)
}

fn named(table: &Item<'_>, key: &str) -> Option<(String, Span)> {
    let item = inner(table, key)?;
    Some((item.get_ref().as_str()?.to_owned(), item.span()))
}

/// The name of a table to which another one refers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reference {
    Set(String),
    Group(String),
}

impl Group {
    /// The group as a `[[group]]` table in TOML.
    pub fn to_toml(&self) -> String {
        lists::to_toml(self)
    }

    /// The group's rules; those that it has by default if it lists none.
    pub fn effective_rules(&self) -> Vec<GroupRule> {
        self.rules.clone().unwrap_or_else(|| {
            vec![
                GroupRule::all(RuleDirection::Out, Peer::Any),
                GroupRule::all(RuleDirection::In, Peer::Group(self.name.clone())),
            ]
        })
    }

    /// The number of its effective rules.
    fn rule_count(&self) -> usize {
        self.rules.as_ref().map_or(2, Vec::len)
    }
}

impl Port {
    /// The port's security groups; an uplink has none.
    pub fn groups(&self) -> &[String] {
        match &self.kind {
            PortKind::Vhost(guest) => &guest.groups,
            PortKind::Xdp(_) => &[],
        }
    }
}

impl Config {
    /// The names of groups that are the peer of a rule, of the groups that ports have.
    fn peers(&self) -> BTreeSet<String> {
        let used: BTreeSet<&String> = self.ports.iter().flat_map(Port::groups).collect();
        let groups = self
            .groups
            .iter()
            .filter(|group| used.contains(&group.name));
        let rules = groups.flat_map(Group::effective_rules);
        rules
            .filter_map(|rule| match rule.peer {
                Peer::Group(name) => Some(name),
                _ => None,
            })
            .collect()
    }

    /// What of the security groups has no effect: groups that no port has, and ports whose addresses are not known to rules
    /// for their groups. Each is one line.
    pub fn group_warnings(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for group in &self.groups {
            let name = &group.name;
            if !self.ports.iter().any(|port| port.groups().contains(name)) {
                lines.push(format!("[[group]] {name} is in `groups` of no port"));
            }
        }
        for peer in self.peers() {
            let is_unknown =
                |port: &&Port| port.groups().contains(&peer) && port.addresses.ip.is_empty();
            let unknown: Vec<&str> = self
                .ports
                .iter()
                .filter(is_unknown)
                .map(|port| port.name.as_str())
                .collect();
            if !unknown.is_empty() {
                lines.push(format!(
                    "rules for group {peer} do not match {}: the addresses are not known; add `addresses.ip`",
                    some_ports(&unknown)
                ));
            }
        }
        lines
    }
}

/// "port a", "ports a, b", or "ports a, b, c and 5 more".
fn some_ports(names: &[&str]) -> String {
    const SHOWN_MAX: usize = 5;
    let shown = names[..names.len().min(SHOWN_MAX)].join(", ");
    match names.len() {
        1 => format!("port {shown}"),
        len if len <= SHOWN_MAX => format!("ports {shown}"),
        len => format!("ports {shown} and {} more", len - SHOWN_MAX),
    }
}

/// A list of names of groups, perhaps empty.
pub(super) fn names() -> TextList<String> {
    TextList {
        items: "names of groups",
        item: "a name",
        must: "the name of a group",
        items_max: PORT_GROUPS_MAX,
        empty: None,
        too_many: "put the rules of several groups into one",
        help: "for example: groups = [\"web\", \"ssh\"]",
        parse: |text| match wrong_name(text) {
            None => Ok(text.to_owned()),
            Some(_) => Err(("no group has such a name", None)),
        },
        write: String::clone,
        pattern: NAME_PATTERN,
    }
}

/// The `groups` of a port, with their places.
pub(super) struct PortGroups {
    port: String,
    list: Place,
    groups: Vec<(String, Place)>,
}

impl PortGroups {
    /// Those of the port that is read, if it has such a list.
    pub(super) fn new(reader: &Reader<'_>, port: &str) -> Option<Self> {
        let item = reader.item("groups")?;
        let items = item.get_ref().as_array()?.iter();
        let place = |span: Span| reader.checker.place(span);
        let groups = items.filter_map(|item| {
            let name = item.get_ref().as_str()?.to_owned();
            Some((name, place(item.span())))
        });
        Some(Self {
            port: port.to_owned(),
            list: place(item.span()),
            groups: groups.collect(),
        })
    }
}

/// Reports references to unknown groups and sets, names that are there twice, and ports with too many rules.
pub(super) fn check(
    checker: &mut Checker,
    groups: &[Placed<Group>],
    sets: &[Placed<Set>],
    ports: &[PortGroups],
) {
    unique(checker, groups, |group| Some(group.name.clone()));
    let counts: HashMap<&str, usize> = groups
        .iter()
        .map(|placed| (placed.value.name.as_str(), placed.value.rule_count()))
        .collect();
    let mut group_names: Vec<&str> = counts.keys().copied().collect();
    group_names.sort_unstable();
    let set_names: Vec<&str> = sets.iter().map(|set| set.value.name.as_str()).collect();
    for (reference, place) in groups.iter().flat_map(|placed| &placed.references) {
        match reference {
            Reference::Group(name) => known(checker, ("group", name), &group_names, place),
            Reference::Set(name) => known(checker, ("set", name), &set_names, place),
        }
    }
    for port in ports {
        let mut seen: HashMap<&str, &Place> = HashMap::new();
        for (name, place) in &port.groups {
            if let Some(first) = seen.insert(name, place).cloned() {
                let message = format!("group {name:?} is in `groups` twice");
                checker.clash_at(place.clone(), Some(first), message, "remove one of them");
            } else if wrong_name(name).is_none() {
                known(checker, ("group", name), &group_names, place);
            }
        }
        let rules: usize = seen.keys().filter_map(|name| counts.get(name)).sum();
        if rules > GROUP_RULES_MAX {
            let message = format!(
                "the groups of port {:?} have {rules} rules, and may have {GROUP_RULES_MAX}",
                port.port
            );
            let help = "join rules with `ports`, lists of prefixes and sets";
            checker.problem_at(port.list.clone(), message, "too many rules", help);
        }
    }
}

/// Reports a name that is none of `names`. A misspelt table of that kind may be the reason.
fn known(checker: &mut Checker, (kind, name): (&str, &str), names: &[&str], place: &Place) {
    if names.contains(&name) {
        return;
    }
    let help = match nearest(name, names) {
        Some(meant) => format!("did you mean {meant:?}?"),
        None => format!("add a table [[{kind}]] with name = {name:?}"),
    };
    let (message, label) = (
        format!("no {kind} is named {name:?}"),
        format!("no such {kind}"),
    );
    checker.problem_at(place.clone(), message, &label, help);
}
