//! Checks `ARCHITECTURE.md`: what it tells about adding a counter or a drop reason names all of the files.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::{read, repository};

fn switch() -> PathBuf {
    repository().join("switch")
}

/// The text below a heading.
fn section(heading: &str) -> String {
    let page = read(&switch().join("docs/ARCHITECTURE.md"));
    let (_, after) = page
        .split_once(&format!("\n## {heading}\n"))
        .expect("the heading");
    let (section, _) = after.split_once("\n## ").expect("it is not the last");
    section.to_owned()
}

/// The paths that a section names.
fn paths(section: &str) -> BTreeSet<String> {
    let words = section.split('`').skip(1).step_by(2);
    let paths = words.filter(|word| word.contains('/') && !word.contains([' ', '(']));
    paths
        .map(|path| path.trim_end_matches('/').to_owned())
        .collect()
}

/// Lines of code, without comments.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
}

/// The sources of the switch, other than tests, whose code has one of these words.
fn sources_with(words: &[&str]) -> BTreeSet<String> {
    let (mut found, mut folders) = (BTreeSet::new(), vec![switch()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let is_test = matches!(&*name, "tests" | "tests.rs" | "target" | "fuzz" | "docs");
            if is_test {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if name.ends_with(".rs") && has(&path, words) {
                let path = path.strip_prefix(switch()).expect("it is below");
                found.insert(path.to_string_lossy().into_owned());
            }
        }
    }
    found
}

fn has(path: &Path, words: &[&str]) -> bool {
    let text = read(path);
    let is_part = |c: char| !(c.is_alphanumeric() || c == '_');
    code(&text).any(|line| line.split(is_part).any(|word| words.contains(&word)))
}

const COUNTER: &str = "How to add a counter";
const REASON: &str = "How to add a drop reason";

#[test]
fn the_files_that_are_touched_are_there() {
    for heading in [COUNTER, REASON] {
        let paths = paths(&section(heading));
        assert!(paths.len() > 5, "{heading}: {paths:?}");
        for path in paths {
            assert!(switch().join(&path).exists(), "{heading}: {path}");
        }
    }
}

/// A counter that no table shows apart from the others is named in its list and where it is counted, and nowhere else.
#[test]
fn a_counter_is_one_entry_and_the_place_that_counts() {
    let named = paths(&section(COUNTER));
    let counters = [
        ("segment_copies", "engine/src/egress/deliver.rs"),
        ("joined_copies", "engine/src/egress/deliver.rs"),
        ("burst_work_max", "engine/src/worker/mod.rs"),
    ];
    for (counter, place) in counters {
        let files = ["engine/src/counter_lists.rs", place].map(str::to_owned);
        assert!(files.iter().all(|file| named.contains(file)), "{named:?}");
        assert_eq!(sources_with(&[counter]), files.into(), "{counter}");
    }
}

/// The same of drop reasons.
#[test]
fn a_drop_reason_is_one_entry_and_the_place_that_drops() {
    let named = paths(&section(REASON));
    for words in [
        ["NicFrameSmall", "nic_frame_small"],
        ["MtuExceeded", "mtu_exceeded"],
    ] {
        let files = ["packet/src/drop_reason.rs", "engine/src/egress/queue.rs"];
        let files = files.map(str::to_owned);
        assert!(files.iter().all(|file| named.contains(file)), "{named:?}");
        assert_eq!(sources_with(&words), files.into(), "{words:?}");
    }
}
