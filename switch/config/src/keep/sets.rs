//! Writes the addresses of sets, in the main file or in files of their own.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use crosspoint_packet::IpNet;
use serde_json::json;

use super::replace::Prepared;
use super::{FileChanges, KeepError, PreparedChanges, text};
use crate::addresses::{IP, parse_prefix, prefix_text};
use crate::files;
use crate::limits::{SET_ADDRESSES_MAX, SET_FILE_BYTES_MAX};
use crate::plan::KeyDiff;
use crate::{Config, Set};

/// The list of tables.
pub(super) const SET: &str = "set";

/// A change of a set's addresses in the files, which is ready to take effect.
#[derive(Debug)]
pub struct PreparedSet {
    path: PathBuf,
    change: Change,
}

#[derive(Debug)]
enum Change {
    Main(PreparedChanges),
    Own(Prepared),
}

impl PreparedSet {
    /// Puts the file into its place, completely or not at all, even after a power cut. Returns its path.
    ///
    /// # Errors
    ///
    /// Errors of the file system.
    pub fn commit(self) -> Result<PathBuf, KeepError> {
        match self.change {
            Change::Main(changes) => changes.commit()?,
            Change::Own(file) => file.commit()?,
        }
        Ok(self.path)
    }
}

/// Adds addresses to a set of the files, or removes them from it: in the set's file if it has one, else in the main file.
/// Other lines stay as they are. Nothing is in place before [`PreparedSet::commit`].
///
/// `main` is the main file, `running` the configuration of the running switch.
///
/// # Errors
///
/// If the files have a mistake or no such set, would not be right afterwards, or cannot be written.
pub fn prepare_set(
    main: &Path,
    running: &Config,
    set: &Set,
    change: &[IpNet],
    is_added: bool,
) -> Result<PreparedSet, KeepError> {
    let Some(path) = &set.file else {
        let mut changes = FileChanges::begin(main, running)?;
        changes.set_addresses(&set.name, change, is_added)?;
        return Ok(PreparedSet {
            path: main.to_owned(),
            change: Change::Main(changes.prepare()?),
        });
    };
    let before = files::read_up_to(path, SET_FILE_BYTES_MAX).map_err(|unread| {
        let message = unread.message_of(&path.display().to_string(), SET_FILE_BYTES_MAX);
        KeepError::io("read", path, io::Error::other(message))
    })?;
    let after = match is_added {
        true => with(&before, change),
        false => without(&before, change),
    };
    check(path, &after).map_err(|problem| KeepError::Refused { problem })?;
    Ok(PreparedSet {
        path: path.clone(),
        change: Change::Own(Prepared::new(path, Some(&after))?),
    })
}

/// Whether the next start would read this text of a set's file.
fn check(path: &Path, text: &str) -> Result<(), String> {
    let path = path.display();
    if text.len() as u64 > SET_FILE_BYTES_MAX {
        return Err(format!(
            "{path} would be longer than {SET_FILE_BYTES_MAX} bytes"
        ));
    }
    let mut addresses = BTreeSet::new();
    for (number, line) in (1..).zip(text.lines()) {
        let word = line.split('#').next().unwrap_or_default().trim();
        match (word.is_empty(), parse_prefix(word)) {
            (true, _) => {}
            (false, Ok(net)) => drop(addresses.insert(net)),
            (false, Err((label, _))) => {
                return Err(format!("{path}:{number}: a line must be {IP}: {label}"));
            }
        }
    }
    match addresses.len() {
        0..=SET_ADDRESSES_MAX => Ok(()),
        count => Err(format!(
            "{path} would have {count} addresses, and may have {SET_ADDRESSES_MAX}"
        )),
    }
}

impl FileChanges<'_> {
    /// Makes the main file say that a set has these addresses more, or has them no longer.
    ///
    /// # Errors
    ///
    /// If the file has no such set, or its table cannot be changed alone.
    fn set_addresses(
        &mut self,
        name: &str,
        change: &[IpNet],
        is_added: bool,
    ) -> Result<(), KeepError> {
        let refused = |problem: String| KeepError::Refused { problem };
        let changed = self.wanted().with_set_changed(name, change, is_added);
        let (wanted, count) = changed.map_err(|error| refused(format!("set {name:?}: {error}")))?;
        if count == 0 {
            return Ok(());
        }
        let texts = |config: &Config| {
            let set = config.sets.iter().find(|set| set.name == name);
            let addresses = set.map(|set| config.set_addresses(set));
            let texts = addresses.unwrap_or_default().iter().map(prefix_text);
            Some(json!(texts.collect::<Vec<_>>()))
        };
        let keys = [KeyDiff {
            key: "addresses",
            before: texts(self.wanted()),
            after: texts(&wanted),
        }];
        let changed = |text: &str, index| text::set_keys(text, SET, index, &keys);
        self.change_named(SET, name, changed)?;
        self.want(wanted);
        Ok(())
    }
}

/// The address of a line.
fn address_of(line: &str) -> Option<IpNet> {
    let word = line.split('#').next().unwrap_or_default().trim();
    parse_prefix(word).ok()
}

fn with(text: &str, added: &[IpNet]) -> String {
    let known: BTreeSet<IpNet> = text.lines().filter_map(address_of).collect();
    let mut text = text.to_owned();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    for net in added.iter().filter(|net| !known.contains(net)) {
        text.push_str(&prefix_text(net));
        text.push('\n');
    }
    text
}

fn without(text: &str, removed: &[IpNet]) -> String {
    // Both may have tens of thousands.
    let removed: BTreeSet<IpNet> = removed.iter().copied().collect();
    let is_removed = |line: &str| address_of(line).is_some_and(|net| removed.contains(&net));
    let lines = text.split_inclusive('\n');
    lines.filter(|line| !is_removed(line)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_lines_and_comments_of_a_file_stay() {
        let net = |text: &str| parse_prefix(text).unwrap_or_else(|_| panic!("{text}"));
        let text = "# admins\n192.0.2.1 # office\n192.0.2.2";
        let more = with(text, &[net("192.0.2.2"), net("2001:db8::/32")]);
        assert_eq!(more, format!("{text}\n2001:db8::/32\n"));
        let less = without(&more, &[net("192.0.2.1"), net("192.0.2.9")]);
        assert_eq!(less, "# admins\n192.0.2.2\n2001:db8::/32\n");
    }
}
