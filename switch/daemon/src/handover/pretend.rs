//! Lets a debug build behave like another version of this program, so that tests can replace one version by another.
//! `CROSSPOINT_PRETEND` holds words: `reads=2-3`, the versions of the hand-over that it reads; `record=NAME` and `critical=NAME`, a
//! record that this version does not know.

use std::os::fd::OwnedFd;

use crosspoint_handover::{Link, VERSIONS, Versions};

/// The value of word `key`.
fn pretended(key: &str) -> Option<String> {
    if !cfg!(debug_assertions) {
        return None;
    }
    let words = std::env::var("CROSSPOINT_PRETEND").ok()?;
    let mut words = words.split_whitespace();
    words.find_map(|word| Some(word.strip_prefix(key)?.strip_prefix('=')?.to_owned()))
}

/// The connection by `socket`.
pub(super) fn link(socket: OwnedFd) -> Link {
    let versions = || -> Option<Versions> {
        let text = pretended("reads")?;
        let (low, high) = text.split_once('-')?;
        Some(low.parse().ok()?..=high.parse().ok()?)
    };
    Link::with_versions(socket, versions().unwrap_or(VERSIONS))
}

/// The names of records that this version does not know, and whether they are critical.
pub(super) fn records() -> impl Iterator<Item = (String, bool)> {
    let words = [("record", false), ("critical", true)].into_iter();
    words.filter_map(|(key, is_critical)| Some((pretended(key)?, is_critical)))
}
