//! Lists of tables at the top level of a file, such as `[[fdb]]`: how they are read, written and compared. `[[port]]` is not
//! one of them: `ports` reads it.
//!
//! A new list has a line in `table::Top`, its keys as another table there with an implementation of [`Element`], and its
//! place in [`Lists`] and in [`Config`].

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::marker::PhantomData;
use std::path::Path;
use std::sync::Arc;

use crosspoint_packet::IpNet;
use serde_json::{Map, Value, json};
use toml::de::DeTable;

use super::bridges::{Bridge, PortBridges};
use super::check::{Checker, Place};
use super::field::{Item, Span};
use super::groups::{Group, PortGroups, Reference};
use super::key::{Definitions, Key, Keys, Name, Reader, Slot, Written, table_reference};
use super::mirrors::Mirror;
use super::plan::{EntryDiff, key_diffs};
use super::sets::Set;
use super::statics::StaticEntry;
use super::types::PortType;
use super::{Config, Port};

/// A table of such a list.
pub(super) trait Element: Keys + Clone + PartialEq {
    /// The list's key at the top level: "fdb".
    const LIST: &'static str;
    /// The keys that tell a table from the others of its list. Plans and messages name a table by their values.
    const IDENTITY: &'static [&'static str];
    /// The most tables in all files.
    const MAX: usize;

    /// The names of other tables that the table refers to, with their places.
    fn references(_: &Reader<'_>) -> Vec<(Reference, Span)> {
        Vec::new()
    }
}

/// Keys and values of a table, without absent ones.
fn given<T: Element>(element: &T) -> Vec<Written> {
    let mut keys = Vec::new();
    element.write(&mut keys);
    keys.retain(|(_, value)| !value.is_null());
    keys
}

/// The name of a table in plans and messages: the values of its identity, as in "52:54:00:00:00:01 vlan 100".
pub(super) fn name<T: Element>(element: &T) -> String {
    let keys = given(element);
    let text = |key: &&str| {
        let (_, value) = keys.iter().find(|(other, _)| other == key)?;
        let value = value.as_str().map_or(value.to_string(), str::to_owned);
        let is_first = T::IDENTITY.first() == Some(key);
        Some(match is_first {
            true => value,
            false => format!("{key} {value}"),
        })
    };
    Vec::from_iter(T::IDENTITY.iter().filter_map(text)).join(" ")
}

/// Keys and values of a table as a map.
pub(super) fn table_of<T: Element>(element: &T) -> Map<String, Value> {
    let keys = given(element).into_iter();
    keys.map(|(key, value)| (key.to_owned(), value)).collect()
}

/// The table in TOML. Each table of a list in it has a line of its own.
pub(super) fn to_toml<T: Element>(element: &T) -> String {
    let mut text = format!("[[{}]]\n", T::LIST);
    for (key, value) in given(element) {
        match toml::Value::try_from(&value) {
            Ok(toml::Value::Array(items)) if items.iter().any(toml::Value::is_table) => {
                let lines = items.iter().map(|item| format!("    {item},\n"));
                let lines: String = lines.collect();
                text.push_str(&format!("{key} = [\n{lines}]\n"));
            }
            Ok(value) => text.push_str(&format!("{key} = {value}\n")),
            Err(_) => {}
        }
    }
    text
}

/// The differences of a list: what is removed, then what changes or is added in the order of `after`.
pub(super) fn diffs<T: Element>(before: &[T], after: &[T]) -> Vec<EntryDiff> {
    let by_name = |list: &[T]| -> HashMap<String, Vec<Written>> {
        list.iter().map(|one| (name(one), given(one))).collect()
    };
    let (old, new) = (by_name(before), by_name(after));
    let table = |keys: &[Written]| -> Map<String, Value> {
        let keys = keys.iter().cloned();
        keys.map(|(key, value)| (key.to_owned(), value)).collect()
    };
    let diff = |name: String| {
        let (before, after) = (old.get(&name), new.get(&name));
        let keys = key_diffs(
            before.cloned().unwrap_or_default(),
            after.cloned().unwrap_or_default(),
        );
        EntryDiff {
            list: T::LIST,
            before: before.map(|keys| table(keys)),
            after: after.map(|keys| table(keys)),
            keys,
            name,
        }
    };
    let gone = before
        .iter()
        .map(name)
        .filter(|name| !new.contains_key(name));
    let diffs = gone.chain(after.iter().map(name)).map(diff);
    diffs.filter(|diff| !diff.keys.is_empty()).collect()
}

/// A table with the places of its parts.
pub(super) struct Placed<T> {
    pub value: T,
    /// Of the table's header.
    pub table: Place,
    /// Of the values of its keys.
    keys: BTreeMap<&'static str, Place>,
    /// What it refers to.
    pub references: Vec<(Reference, Place)>,
}

impl<T> Placed<T> {
    /// The place of a key's value, or of the table if the key is absent.
    pub(super) fn place(&self, key: &str) -> Place {
        self.keys.get(key).unwrap_or(&self.table).clone()
    }

    /// Whether the table has this key, with a right or a wrong value.
    pub(super) fn has(&self, key: &str) -> bool {
        self.keys.contains_key(key)
    }
}

/// Reads the list of the file that the checker entered last. Tables with a required key that is missing or wrong are left
/// out, since they are reported.
fn read<T: Element>(checker: &mut Checker, document: &DeTable<'_>, all: &mut Vec<Placed<T>>) {
    let list = T::LIST;
    let help = format!("write each of them below a line [[{list}]], with two brackets");
    let Some(item) = document.get(list) else {
        return;
    };
    let tables: Option<(&[Item<'_>], Span)> = checker.value(item, list, "a list of tables", &help);
    for item in tables.map(|(tables, _)| tables).into_iter().flatten() {
        let table = checker.value::<&DeTable<'_>>(item, list, "a list of tables", &help);
        let Some((table, span)) = table else {
            continue;
        };
        if all.len() == T::MAX {
            let message = format!("more than {} tables [[{list}]]", T::MAX);
            checker.problem(span, message, "one too many", "remove some");
            return;
        }
        let mut reader = Reader::of_list(checker, table, span, list);
        let value = T::read(&mut reader);
        if !reader.is_whole {
            continue;
        }
        let place = |key: &Key| Some((key.name.key, reader.span(key.name.key)?));
        let spans: Vec<_> = T::keys().iter().filter_map(place).collect();
        let table = reader.place.clone();
        let references = T::references(&reader).into_iter();
        let references: Vec<_> = references
            .map(|(reference, span)| (reference, reader.checker.place(span)))
            .collect();
        all.push(Placed {
            value,
            references,
            table: checker.place(table),
            keys: spans
                .into_iter()
                .map(|(key, span)| (key, checker.place(span)))
                .collect(),
        });
    }
}

/// Reports each table whose identity, as `identity` tells it, another one has. `None` is not compared. The report is at
/// the first key of the identity.
pub(super) fn unique<T: Element, I: Hash + Eq>(
    checker: &mut Checker,
    all: &[Placed<T>],
    identity: impl Fn(&T) -> Option<I>,
) {
    let mut seen: HashMap<I, Place> = HashMap::new();
    for one in all {
        let Some(own) = identity(&one.value) else {
            continue;
        };
        let place = one.place(T::IDENTITY.first().unwrap_or(&""));
        if let Some(first) = seen.get(&own).cloned() {
            let keys = T::IDENTITY.iter().map(|key| format!("`{key}`"));
            let (list, keys) = (T::LIST, Vec::from_iter(keys).join(" and "));
            let message = format!(
                "two tables [[{list}]] have the same {keys}: {}",
                name(&one.value)
            );
            checker.clash_at(place, Some(first), message, "remove one of them");
            continue;
        }
        seen.insert(own, place);
    }
}

/// Every list of tables, as it is read.
#[derive(Default)]
pub(super) struct Lists {
    bridges: Vec<Placed<Bridge>>,
    fdb: Vec<Placed<StaticEntry>>,
    mirrors: Vec<Placed<Mirror>>,
    groups: Vec<Placed<Group>>,
    sets: Vec<Placed<Set>>,
    set_files: BTreeMap<String, Arc<[IpNet]>>,
}

/// Lists that files of `ports_dir` may have, too.
pub(super) const OF_PORTS_DIR: [&str; 1] = [StaticEntry::LIST];

impl Lists {
    /// Reads the lists of the main file.
    pub(super) fn read(&mut self, checker: &mut Checker, document: &DeTable<'_>) {
        self.read_drop_in(checker, document);
        read(checker, document, &mut self.bridges);
        read(checker, document, &mut self.mirrors);
        read(checker, document, &mut self.groups);
        read(checker, document, &mut self.sets);
    }

    /// Reads the files of sets. Relative paths begin at `folder`.
    pub(super) fn read_set_files(&mut self, checker: &mut Checker, folder: &Path) {
        self.set_files = super::sets::read_files(checker, &mut self.sets, folder);
    }

    /// Takes the addresses of files of sets as they were read before.
    pub(super) fn keep_set_files(&mut self, known: &BTreeMap<String, Arc<[IpNet]>>) {
        self.set_files.clone_from(known);
    }

    /// Reads the lists of a file of `ports_dir`.
    pub(super) fn read_drop_in(&mut self, checker: &mut Checker, document: &DeTable<'_>) {
        read(checker, document, &mut self.fdb);
    }

    /// Checks the lists by themselves and against the ports, once all are known.
    pub(super) fn check(&self, checker: &mut Checker, known: &KnownPorts<'_>) {
        super::bridges::check(checker, &self.bridges, known.bridges);
        super::statics::check(checker, &self.fdb, known);
        super::mirrors::check(checker, &self.mirrors, known);
        super::sets::check(checker, &self.sets);
        super::groups::check(checker, &self.groups, &self.sets, known.groups);
    }

    /// Puts the lists into a configuration, in the order of the files.
    pub(super) fn put_into(self, config: &mut Config) {
        config.bridges = in_order(self.bridges);
        config.fdb = in_order(self.fdb);
        config.mirrors = in_order(self.mirrors);
        config.groups = in_order(self.groups);
        config.sets = in_order(self.sets);
        config.set_files = self.set_files;
    }
}

fn in_order<T>(mut all: Vec<Placed<T>>) -> Vec<T> {
    all.sort_by_key(|one| one.table.file.order);
    all.into_iter().map(|one| one.value).collect()
}

/// The ports that lists are checked against.
pub(super) struct KnownPorts<'a> {
    /// Those without mistakes.
    pub ports: HashMap<&'a str, &'a Port>,
    /// The places of all names, including those of ports with mistakes.
    pub names: &'a HashMap<String, Place>,
    /// The ports' `bridge` and `bridges`.
    pub bridges: &'a [PortBridges],
    /// The ports' `groups`.
    pub groups: &'a [PortGroups],
    /// Whether a port may come later: from a file that cannot be read now, from the folder `ports_dir`, or by a command.
    pub may_come: bool,
}

/// A list of tables in the list of keys.
pub(super) struct Tables<T>(PhantomData<T>);

/// A list of tables with the keys of `T`.
pub(super) fn tables<T: Element>() -> Tables<T> {
    Tables(PhantomData)
}

impl<T: Element> Slot for Tables<T> {
    type Value = ();

    fn list(self, name: Name, all: &mut Vec<Key>) {
        let schema = |definitions: &mut Definitions| {
            let items = table_reference::<T>(definitions);
            json!({"type": "array", "items": items, "maxItems": T::MAX})
        };
        all.push(Key {
            table: Some((format!("in [[{}]]", T::LIST), T::keys)),
            ..Key::new(name, schema)
        });
    }

    /// [`Lists`] reads them, together with those of other files.
    fn read(&self, _: Name, _: &mut Reader<'_>) {}

    fn write(&self, _: Name, (): &(), _: &mut Vec<Written>) {}

    fn default(&self, _: PortType) {}
}
