//! Writes the addresses of sets, in the main file or in files of their own.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use crosspoint_packet::IpNet;
use serde_json::json;

use super::replace::Prepared;
use super::{FileChanges, KeepError, text};
use crate::addresses::{parse_prefix, prefix_text};
use crate::files;
use crate::limits::SET_FILE_BYTES_MAX;
use crate::plan::KeyDiff;
use crate::{Config, Set};

/// The list of tables.
pub(super) const SET: &str = "set";

/// Adds addresses to a set of the files, or removes them from it: in the set's file if it has one, else in the main file.
/// Other lines stay as they are. The file is written completely or not at all, even after a power cut. Returns its path.
///
/// `main` is the main file, `running` the configuration of the running switch.
///
/// # Errors
///
/// If the files have a mistake or no such set, or cannot be written.
pub fn write_set(
    main: &Path,
    running: &Config,
    set: &Set,
    change: &[IpNet],
    is_added: bool,
) -> Result<PathBuf, KeepError> {
    let Some(path) = &set.file else {
        let mut changes = FileChanges::begin(main, running)?;
        changes.set_addresses(&set.name, change, is_added)?;
        changes.prepare()?.commit()?;
        return Ok(main.to_owned());
    };
    let before = files::read_up_to(path, SET_FILE_BYTES_MAX).map_err(|unread| {
        let message = unread.message_of(&path.display().to_string(), SET_FILE_BYTES_MAX);
        KeepError::io("read", path, io::Error::other(message))
    })?;
    let after = match is_added {
        true => with(&before, change),
        false => without(&before, change),
    };
    Prepared::new(path, Some(&after))?.commit()?;
    Ok(path.clone())
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
