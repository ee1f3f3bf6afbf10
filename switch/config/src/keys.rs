//! Finds unknown keys.

use std::mem;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::check::Checker;
use super::key::{Key, Keys as _};
use super::lists;
use super::suggest::{list, nearest};
use super::table::Top;

/// A table of the format: its name in messages, its keys, and the tables in it by their keys.
struct Known {
    place: String,
    names: Vec<&'static str>,
    inner: Vec<(&'static str, Known)>,
}

impl Known {
    fn new(place: String, keys: Vec<Key>) -> Self {
        let names = keys.iter().map(|key| key.name.key).collect();
        let inner = keys.into_iter().filter_map(|key| {
            let (inner, keys) = key.table?;
            Some((key.name.key, Self::new(inner_place(&place, inner), keys())))
        });
        let inner = inner.collect();
        Self {
            place,
            names,
            inner,
        }
    }

    /// The places of the tables that have a key: those of the outermost one, and of others beside it.
    fn having(&self, key: &str) -> Vec<&str> {
        if self.names.contains(&key) {
            return vec![&self.place];
        }
        let found = self.inner.iter().map(|(_, table)| table.having(key));
        let mut found = found.filter(|places| !places.is_empty());
        let mut places = found.next().unwrap_or_default();
        // Tables of one table, such as `in` and `out` of `limit`, have equal keys: none of them is meant more than the other.
        let parent = |place: &str| place.rsplit_once('.').map(|(parent, _)| parent.to_owned());
        let first = places.first().and_then(|place| parent(place));
        let beside = found.flatten();
        places.extend(beside.filter(|place| first.is_some() && parent(place) == first));
        places
    }

    /// How to fix a key that this table, in `root`, does not have.
    fn help(&self, root: &Known, key: &str) -> String {
        // A table in this one is nearer than one elsewhere.
        let mut places = self.having(key);
        if places.is_empty() {
            places = root.having(key);
        }
        if !places.is_empty() {
            return format!("`{key}` belongs {}", places.join(" or "));
        }
        // Only a file of `ports_dir` has fewer keys at its top level.
        if Top::keys().iter().any(|known| known.name.key == key) {
            let lists = lists::OF_PORTS_DIR
                .map(|list| format!(" and [[{list}]]"))
                .concat();
            return format!(
                "`{key}` belongs in the main file; here are only [[port]]{lists} tables"
            );
        }
        match nearest(key, &self.names) {
            Some(name) => format!("did you mean `{name}`?"),
            None => format!("the keys {} are {}", self.place, list(&self.names)),
        }
    }

    /// Reports and removes the unknown keys of a table and of those in it.
    fn sift(&self, root: &Known, checker: &mut Checker, table: &mut DeTable<'_>) {
        let is_known = |key: &Spanned<DeString<'_>>| self.names.contains(&key.get_ref().as_ref());
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
            let message = format!("unknown key `{}` {}", shorten(&key), self.place);
            checker.problem(span, message, "not a known key", self.help(root, &key));
        }
        for (key, inner) in &self.inner {
            match table.get_mut(*key).map(Spanned::get_mut) {
                Some(DeValue::Table(table)) => inner.sift(root, checker, table),
                Some(DeValue::Array(list)) => {
                    for item in list.iter_mut() {
                        if let DeValue::Table(table) = item.get_mut() {
                            inner.sift(root, checker, table);
                        }
                    }
                }
                _ => {}
            }
        }
    }
}

/// The place of a table in another one, by its keys from the outermost: "in limit.out". A section or a list is named by itself.
fn inner_place(outer: &str, inner: String) -> String {
    let keys = outer
        .strip_prefix("in ")
        .filter(|keys| !keys.contains([' ', '[']));
    match (keys, inner.strip_prefix("in ")) {
        (Some(keys), Some(key)) => format!("in {keys}.{key}"),
        _ => inner,
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
    let known = Known::new("at the top level".to_owned(), Top::keys());
    known.sift(&known, checker, document);
}

/// Like [`sift_unknown`], for a file of `ports_dir`, which has a `version`, ports, and some lists of tables.
pub(super) fn sift_unknown_of_drop_in(checker: &mut Checker, document: &mut DeTable<'_>) {
    let place = "at the top level of a file of `ports_dir`".to_owned();
    let mut keys = Top::keys();
    let is_of_drop_in =
        |key: &str| ["version", "port"].contains(&key) || lists::OF_PORTS_DIR.contains(&key);
    keys.retain(|key| is_of_drop_in(key.name.key));
    let known = Known::new(place, keys);
    known.sift(&known, checker, document);
}
