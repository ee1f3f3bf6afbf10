//! Finds unknown keys in the whole file before serde reads it, since serde stops at the first one.

use std::mem;

use serde::de::{DeserializeOwned, Deserializer, Error as _, Visitor, value::Error as ValueError};
use serde::forward_to_deserialize_any;
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::check::Checker;
use super::raw::{
    RawAddresses, RawConfig, RawControl, RawDirect, RawLog, RawLoopProtect, RawMetrics,
    RawOffloads, RawPort, RawSlo, RawStorm, RawSwitch, RawVlan, RawWorkers,
};
use super::suggest::{list, nearest};

type Names = &'static [&'static str];

/// The field names of a struct, or the variant names of an enum, as serde knows them.
pub(super) fn names_of<T: DeserializeOwned>() -> Names {
    let mut names: Names = &[];
    // It always fails: the probe has no value to give.
    let _ = T::deserialize(NameProbe(&mut names));
    names
}

/// A deserializer that only records the names that the requested type knows.
struct NameProbe<'a>(&'a mut Names);

impl<'de> Deserializer<'de> for NameProbe<'_> {
    type Error = ValueError;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, ValueError> {
        Err(ValueError::custom("a probe has no value"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        names: Names,
        _: V,
    ) -> Result<V::Value, ValueError> {
        *self.0 = names;
        Err(ValueError::custom("a probe has no value"))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        names: Names,
        _: V,
    ) -> Result<V::Value, ValueError> {
        *self.0 = names;
        Err(ValueError::custom("a probe has no value"))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map identifier ignored_any
    }
}

/// The tables of the format: their names in messages, and their keys.
struct KnownTables([(&'static str, Names); 14]);

const TOP: usize = 0;
const PORT: usize = 6;
const VLAN: usize = 7;
const DIRECT: usize = 8;
const SLO: usize = 9;
const STORM: usize = 10;
const ADDRESSES: usize = 11;
const OFFLOADS: usize = 12;
const LOOP_PROTECT: usize = 13;

impl KnownTables {
    fn new() -> Self {
        Self([
            ("at the top level", names_of::<RawConfig>()),
            ("in [workers]", names_of::<RawWorkers>()),
            ("in [switch]", names_of::<RawSwitch>()),
            ("in [metrics]", names_of::<RawMetrics>()),
            ("in [control]", names_of::<RawControl>()),
            ("in [log]", names_of::<RawLog>()),
            ("in [[port]]", names_of::<RawPort>()),
            ("in vlan", names_of::<RawVlan>()),
            ("in direct", names_of::<RawDirect>()),
            ("in slo", names_of::<RawSlo>()),
            ("in storm", names_of::<RawStorm>()),
            ("in addresses", names_of::<RawAddresses>()),
            ("in offloads", names_of::<RawOffloads>()),
            ("in loop_protect", names_of::<RawLoopProtect>()),
        ])
    }

    /// The tables of a file of `ports_dir`.
    fn of_drop_in() -> Self {
        let mut known = Self::new();
        known.0[TOP] = (
            "at the top level of a file of `ports_dir`",
            &["version", "port"],
        );
        known
    }

    /// How to fix a key that table `at` does not have.
    fn help(&self, at: usize, key: &str) -> String {
        let (place, names) = self.0[at];
        if let Some((place, _)) = self.0.iter().find(|(_, names)| names.contains(&key)) {
            return format!("`{key}` belongs {place}");
        }
        // Only a file of `ports_dir` has fewer keys at its top level.
        if names_of::<RawConfig>().contains(&key) {
            return format!("`{key}` belongs in the main file; here are only [[port]] tables");
        }
        match nearest(key, names) {
            Some(name) => format!("did you mean `{name}`?"),
            None => format!("the keys {place} are {}", list(names)),
        }
    }

    /// Reports and removes the unknown keys of one table.
    fn sift(&self, checker: &mut Checker, at: usize, table: &mut DeTable<'_>) {
        let (place, names) = self.0[at];
        let is_known = |key: &Spanned<DeString<'_>>| names.contains(&key.get_ref().as_ref());
        let (known, unknown): (DeTable<'_>, DeTable<'_>) = mem::take(table)
            .into_iter()
            .partition(|(key, _)| is_known(key));
        *table = known;
        let mut unknown: Vec<_> = unknown
            .into_iter()
            .map(|(key, _)| (key.span(), key.into_inner()))
            .collect();
        unknown.sort_by_key(|(span, _)| span.start);
        for (span, key) in unknown {
            if checker.is_full() {
                // Suggestions for a million keys would take a second, and are not shown.
                checker.count_unlisted();
                continue;
            }
            let message = format!("unknown key `{}` {place}", shorten(&key));
            checker.problem(span, message, "not a known key", self.help(at, &key));
        }
    }
}

/// A key as messages show it: a key in a file may have a million bytes.
fn shorten(key: &str) -> String {
    match key.char_indices().nth(40) {
        Some((end, _)) => format!("{}...", key[..end].escape_debug()),
        None => key.escape_debug().to_string(),
    }
}

/// Reports and removes every unknown key of the main file, so that it hides no other mistake.
pub(super) fn sift_unknown(checker: &mut Checker, document: &mut DeTable<'_>) {
    sift(KnownTables::new(), checker, document);
}

/// Like [`sift_unknown`], for a file of `ports_dir`, which has a `version` and ports.
pub(super) fn sift_unknown_of_drop_in(checker: &mut Checker, document: &mut DeTable<'_>) {
    sift(KnownTables::of_drop_in(), checker, document);
}

fn sift(known: KnownTables, checker: &mut Checker, document: &mut DeTable<'_>) {
    known.sift(checker, TOP, document);
    for (at, section) in [
        (1, "workers"),
        (2, "switch"),
        (3, "metrics"),
        (4, "control"),
        (5, "log"),
    ] {
        if let Some(DeValue::Table(table)) = document.get_mut(section).map(|value| value.get_mut())
        {
            known.sift(checker, at, table);
        }
    }
    let Some(DeValue::Array(ports)) = document.get_mut("port").map(|value| value.get_mut()) else {
        return;
    };
    for port in ports.iter_mut() {
        let DeValue::Table(port) = port.get_mut() else {
            continue;
        };
        known.sift(checker, PORT, port);
        for (at, key) in [
            (VLAN, "vlan"),
            (DIRECT, "direct"),
            (SLO, "slo"),
            (STORM, "storm"),
            (ADDRESSES, "addresses"),
            (OFFLOADS, "offloads"),
            (LOOP_PROTECT, "loop_protect"),
        ] {
            if let Some(DeValue::Table(table)) = port.get_mut(key).map(|value| value.get_mut()) {
                known.sift(checker, at, table);
            }
        }
    }
}
