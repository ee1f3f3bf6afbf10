//! `[[mirror]]`: copies of passing frames. Checks the mirrors against each other and against the ports.

use crosspoint_packet::filter::Filter;
use serde_json::json;

use super::Config;
use super::check::Checker;
use super::limits::{MIRROR_FILTER_BYTES_MAX, MIRRORS_MAX, PORT_PATTERNS_MAX};
use super::lists::{self, Element, KnownPorts, Placed, unique};
use super::pattern::matches;
use super::suggest::nearest;
use super::text_list::TextList;
use super::texts::{Refusal, Text};
use super::types::TagProtocol;

pub(super) use super::table::Mirror;

const PATTERNS_HELP: &str = "for example: ports = [\"web-*\", \"db-1\"]";

impl Element for Mirror {
    const LIST: &'static str = "mirror";
    const IDENTITY: &'static [&'static str] = &["name"];
    const MAX: usize = MIRRORS_MAX;
}

impl Mirror {
    /// The mirror as a `[[mirror]]` table in TOML.
    pub fn to_toml(&self) -> String {
        lists::to_toml(self)
    }
}

impl Config {
    /// What mirrors wait for: their ports that are not in this configuration, and patterns that no port's name matches. Each
    /// is one line.
    pub fn waiting_mirrors(&self) -> Vec<String> {
        let is_there = |wanted: &str| {
            let mut names = self.ports.iter().map(|port| &port.name);
            names.any(|name| matches(wanted, name))
        };
        let mut waiting = Vec::new();
        for mirror in &self.mirrors {
            let own = format!("[[mirror]] {}", mirror.name);
            if !is_there(&mirror.to) {
                let to = &mirror.to;
                waiting.push(format!("{own} waits for port {to:?}, which is in no file"));
            }
            for wanted in mirror.ports.iter().filter(|wanted| !is_there(wanted)) {
                waiting.push(format!(
                    "{own} copies from {wanted:?}, which matches no port of the files"
                ));
            }
        }
        waiting
    }
}

/// A filter in the language of `crosspoint capture`.
pub(super) fn filter() -> Text<String> {
    Text {
        must: "a filter",
        help: "for example: filter = \"tcp port 80\"; `crosspoint capture --help` has the language"
            .into(),
        parse: |text| {
            if text.len() > MIRROR_FILTER_BYTES_MAX {
                return Err("too long".into());
            }
            match Filter::parse(text) {
                Ok(_) => Ok(text.to_owned()),
                Err(error) => Err(Refusal {
                    message: Some(format!("`filter` cannot be read: {error}")),
                    label: "not a filter",
                }),
            }
        },
        write: String::clone,
        schema: json!({"maxLength": MIRROR_FILTER_BYTES_MAX}),
    }
}

/// A list of names of ports, and of patterns such as "web-*".
pub(super) fn patterns() -> TextList<String> {
    TextList {
        items: "names of ports and patterns",
        item: "an item",
        must: "a name or a pattern",
        items_max: PORT_PATTERNS_MAX,
        empty: Some(("chooses no port", "remove `ports` for all ports")),
        too_many: "write a pattern in place of names: \"web-*\"",
        help: PATTERNS_HELP,
        parse: |text| {
            let is_part = |c: char| c.is_ascii_alphanumeric() || ".-_*?".contains(c);
            match !text.is_empty() && text.chars().all(is_part) {
                true => Ok(text.to_owned()),
                false => Err(("no port has such a name", None)),
            }
        },
        write: String::clone,
        pattern: "^[A-Za-z0-9._*?-]+$",
    }
}

/// Reports mirrors to unknown ports, and names that are there twice.
pub(super) fn check(checker: &mut Checker, all: &[Placed<Mirror>], known: &KnownPorts<'_>) {
    for placed in all {
        let mirror = &placed.value;
        let is_known = known.names.contains_key(&mirror.to) || known.may_come;
        if !is_known {
            let mut names: Vec<&str> = known.names.keys().map(String::as_str).collect();
            names.sort_unstable();
            let help = match nearest(&mirror.to, &names) {
                Some(name) => format!("did you mean {name:?}?"),
                None => "name a port of this configuration".to_owned(),
            };
            let message = format!("no port is named {:?}", mirror.to);
            checker.problem_at(placed.place("to"), message, "no such port", help);
        }
        let tags = known.ports.get(mirror.to.as_str());
        let mut tags = tags.iter().flat_map(|port| port.bridge_tags());
        let tag =
            tags.find(|tag| tag.protocol == TagProtocol::Vlan && Some(tag.vlan) == mirror.to_vlan);
        if let Some(tag) = tag {
            let message = format!(
                "VLAN {} is the tag of bridge {:?} on port {:?}",
                tag.vlan, tag.bridge, mirror.to
            );
            let help = "take a VLAN that has no other use";
            checker.problem_at(placed.place("to_vlan"), message, "a bridge's", help);
        }
        if mirror.ports.contains(&mirror.to) {
            let message = format!("port {:?} cannot get copies of its own frames", mirror.to);
            let help = "remove it from `ports`; patterns never include it";
            checker.problem_at(placed.place("ports"), message, "has the port of `to`", help);
        }
    }
    unique(checker, all, |mirror| Some(mirror.name.clone()));
}
