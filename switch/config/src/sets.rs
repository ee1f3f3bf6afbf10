//! `[[set]]`: sets of addresses for rules of security groups. Reads their files, and checks and changes them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use crosspoint_packet::IpNet;
use serde_json::{Value, json};

use super::addresses::{IP, PREFIX_PATTERN, parse_prefix, prefix_text};
use super::check::{Checker, Place};
use super::error::{Problem, SourceFile};
use super::field::Span;
use super::files::{self, Unread};
use super::limits::{SET_ADDRESSES_MAX, SET_FILE_BYTES_MAX, SETS_ADDRESSES_MAX, SETS_MAX};
use super::lists::{self, Element, Placed, unique};
use super::plan::{EntryDiff, KeyDiff};
use super::set_cache;
use super::suggest::nearest;
use super::text_list::TextList;
use super::{Config, ConfigError};

pub(super) use super::table::Set;

/// What helps against too many addresses.
const PREFIXES: &str = "write prefixes in place of single addresses";
/// The most addresses that a plan lists for a file that has changed.
const LISTED_MAX: usize = 4;

impl Element for Set {
    const LIST: &'static str = "set";
    const IDENTITY: &'static [&'static str] = &["name"];
    const MAX: usize = SETS_MAX;
}

impl Set {
    /// The set as a `[[set]]` table in TOML.
    pub fn to_toml(&self) -> String {
        lists::to_toml(self)
    }
}

/// A list of addresses and prefixes, perhaps empty.
pub(super) fn addresses() -> TextList<IpNet> {
    TextList {
        items: "IP addresses and prefixes",
        item: "an address",
        must: IP,
        items_max: SET_ADDRESSES_MAX,
        empty: None,
        too_many: "write prefixes in place of single addresses",
        help: "for example: addresses = [\"192.0.2.0/24\", \"2001:db8::/48\"]",
        parse: parse_prefix,
        write: prefix_text,
        pattern: PREFIX_PATTERN,
    }
}

/// Reports sets with both `addresses` and `file`, or with neither, and names that are there twice.
pub(super) fn check(checker: &mut Checker, all: &[Placed<Set>]) {
    for placed in all {
        let set = &placed.value;
        let (place, label, help) = match (placed.has("addresses"), placed.has("file")) {
            (true, true) => (placed.place("file"), "both", "keep one of them"),
            (false, false) => (
                placed.table.clone(),
                "neither",
                "add a line such as: addresses = [\"192.0.2.0/24\"], or: file = \"admins.txt\"",
            ),
            _ => continue,
        };
        let message = format!("set {:?} must have either `addresses` or `file`", set.name);
        checker.problem_at(place, message, label, help);
    }
    unique(checker, all, |set| Some(set.name.clone()));
}

/// Makes the paths of all files absolute, with `folder` as the folder of the configuration, and reads the files. Mistakes in
/// them are recorded.
pub(super) fn read_files(
    checker: &mut Checker,
    all: &mut [Placed<Set>],
    folder: &Path,
) -> BTreeMap<String, Arc<[IpNet]>> {
    let mut found: BTreeMap<String, Arc<[IpNet]>> = BTreeMap::new();
    let written = all
        .iter()
        .filter_map(|placed| placed.value.addresses.as_ref());
    let mut total: usize = written.map(Vec::len).sum();
    for placed in all {
        let is_alone = placed.value.addresses.is_none();
        let Some(file) = placed.value.file.as_mut().filter(|_| is_alone) else {
            continue;
        };
        *file = folder.join(&*file);
        let path = file.clone();
        // Later files are not read: they may be as long.
        if total > SETS_ADDRESSES_MAX {
            continue;
        }
        if let Some(addresses) = read_file(checker, &path, placed.place("file")) {
            total += addresses.len();
            if total > SETS_ADDRESSES_MAX {
                let message = format!(
                    "with {} all sets together have more than {SETS_ADDRESSES_MAX} addresses",
                    path.display()
                );
                let place = placed.place("file");
                checker.problem_at(place, message, "too many", PREFIXES);
            }
            found.insert(placed.value.name.clone(), addresses);
        }
    }
    found
}

/// The addresses of a file, sorted; `None` after recording what is wrong. `place` is where the configuration names it.
fn read_file(checker: &mut Checker, path: &Path, place: Place) -> Option<Arc<[IpNet]>> {
    let name = path.display().to_string();
    let known = set_cache::known(path);
    let stamp = known.as_ref().map(|(stamp, _)| *stamp);
    let (text, stamp) = match files::read_if_changed(path, SET_FILE_BYTES_MAX, stamp) {
        Ok(Some(read)) => read,
        Ok(None) => return known.map(|(_, addresses)| addresses),
        Err(unread) => {
            let message = unread.message_of(&name, SET_FILE_BYTES_MAX);
            let help = match unread {
                Unread::TooLong => PREFIXES,
                Unread::TooMuch | Unread::NotUtf8 { .. } => {
                    "the file has an IP address or a prefix on each line, and comments after #"
                }
                unread => unread.help_of_named(),
            };
            checker.problem_at(place, message, "this file", help);
            return None;
        }
    };
    let source = SourceFile::new(&name, &text).at(place.file.order, place.file.rank);
    let mut addresses = BTreeSet::new();
    let mut is_right = true;
    for (word, span) in words(&text) {
        match parse_prefix(word) {
            Ok(net) => drop(addresses.insert(net)),
            Err((label, help)) => {
                is_right = false;
                let place = Place {
                    file: source.clone(),
                    span,
                };
                let message = format!("a line must be {IP}");
                let help = help.unwrap_or_else(|| "a comment begins with #".to_owned());
                checker.problem_at(place, message, label, help.replace('"', ""));
            }
        }
    }
    if addresses.len() > SET_ADDRESSES_MAX {
        let count = addresses.len();
        let message = format!("{name} has {count} addresses, and may have {SET_ADDRESSES_MAX}");
        checker.problem_at(place, message, "too many", PREFIXES);
        return None;
    }
    let addresses: Arc<[IpNet]> = addresses.into_iter().collect();
    if !is_right {
        return None;
    }
    set_cache::remember(path, stamp, &addresses);
    Some(addresses)
}

/// The text of each line without comments and blanks, and its place.
fn words(text: &str) -> impl Iterator<Item = (&str, Span)> {
    let mut start = 0;
    let lines = text.split_inclusive('\n').map(move |line| {
        let at = start;
        start += line.len();
        let line = line.split('#').next().unwrap_or_default();
        let word = line.trim();
        let begin = at + (line.len() - line.trim_start().len());
        (word, begin..begin + word.len())
    });
    lines.filter(|(word, _)| !word.is_empty())
}

/// The differences of the sets' files, of sets that differ in nothing else.
pub(super) fn file_diffs(running: &Config, wanted: &Config, known: &[EntryDiff]) -> Vec<EntryDiff> {
    let is_known = |name: &str| {
        let mut known = known.iter().filter(|diff| diff.list == Set::LIST);
        known.any(|diff| diff.name == name)
    };
    let diff = |set: &Set| {
        let before = running.set_files.get(&set.name)?;
        let after = wanted.set_files.get(&set.name)?;
        if before == after || is_known(&set.name) {
            return None;
        }
        Some(EntryDiff {
            list: Set::LIST,
            name: set.name.clone(),
            before: Some(lists::table_of(set)),
            after: Some(lists::table_of(set)),
            keys: vec![KeyDiff {
                key: "addresses",
                before: Some(only_in(before, after)),
                after: Some(only_in(after, before)),
            }],
        })
    };
    wanted.sets.iter().filter_map(diff).collect()
}

/// The addresses that `one` has and `other` has not: the first few, and how many there are. Both are sorted.
fn only_in(one: &[IpNet], other: &[IpNet]) -> Value {
    let is_own = |net: &&IpNet| other.binary_search(net).is_err();
    let own: Vec<String> = one.iter().filter(is_own).map(prefix_text).collect();
    let more = own.len().saturating_sub(LISTED_MAX);
    let mut shown: Vec<String> = own.into_iter().take(LISTED_MAX).collect();
    if more > 0 {
        shown.push(format!("and {more} more"));
    }
    json!(shown)
}

impl Config {
    /// The addresses of a set, from the configuration or from its file.
    pub fn set_addresses<'a>(&'a self, set: &'a Set) -> &'a [IpNet] {
        match (&set.addresses, self.set_files.get(&set.name)) {
            (Some(addresses), _) => addresses,
            (None, file) => file.map_or(&[], |file| file),
        }
    }

    /// Adds addresses to a set, or removes them from it. Those that it has already, or has not, change nothing. Returns the
    /// configuration, and how many addresses were added or removed.
    ///
    /// # Errors
    ///
    /// If there is no such set, or it would have too many addresses.
    pub fn with_set_changed(
        &self,
        name: &str,
        change: &[IpNet],
        is_added: bool,
    ) -> Result<(Config, usize), ConfigError> {
        let mut config = self.clone();
        let Some(set) = config.sets.iter_mut().find(|set| set.name == name) else {
            return Err(self.no_set(name));
        };
        let before = self.set_addresses(set);
        let mut after: Vec<IpNet> = before.to_vec();
        let known: BTreeSet<&IpNet> = before.iter().collect();
        let wanted: BTreeSet<&IpNet> = change.iter().collect();
        match is_added {
            true => after.extend(wanted.iter().filter(|net| !known.contains(*net)).copied()),
            false => after.retain(|net| !wanted.contains(net)),
        }
        if after.len() > SET_ADDRESSES_MAX {
            let message = format!("set {name:?} would have {} addresses", after.len());
            let help = "a set has room for 65536: write prefixes in place of single addresses";
            return Err(ConfigError::one(Problem::unplaced(name, message, help)));
        }
        let others = self.sets.iter().filter(|other| other.name != name);
        let others: usize = others.map(|set| self.set_addresses(set).len()).sum();
        if is_added && others + after.len() > SETS_ADDRESSES_MAX {
            let message = format!("all sets would have {} addresses", others + after.len());
            let help = "all sets together have room for 1048576: write prefixes in place of single addresses";
            return Err(ConfigError::one(Problem::unplaced(name, message, help)));
        }
        let changed = after.len().abs_diff(before.len());
        match &mut set.addresses {
            Some(addresses) => *addresses = after,
            None => {
                after.sort_unstable();
                config.set_files.insert(name.to_owned(), after.into());
            }
        }
        Ok((config, changed))
    }

    fn no_set(&self, name: &str) -> ConfigError {
        let names: Vec<&str> = self.sets.iter().map(|set| set.name.as_str()).collect();
        let message = format!("no set is named {name:?}");
        let help = match nearest(name, &names) {
            Some(meant) => format!("did you mean {meant:?}?"),
            None if names.is_empty() => {
                "the configuration has no [[set]] tables: add one, and then: crosspoint reload"
                    .to_owned()
            }
            None => "`crosspoint show sets` lists the names".to_owned(),
        };
        ConfigError::one(Problem::unplaced("the running sets", message, help))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_a_file_is_read_without_its_comment() {
        let text = "# admins\n192.0.2.1\n\n  2001:db8::/48 # office\n";
        let found: Vec<(&str, &str)> = words(text)
            .map(|(word, span)| (word, &text[span]))
            .collect();
        let both = |text| (text, text);
        assert_eq!(found, [both("192.0.2.1"), both("2001:db8::/48")]);
    }
}
