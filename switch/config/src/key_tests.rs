//! A key is written down once.

use std::collections::BTreeSet;
use std::path::Path;

use super::key::{Change, Key, Keys as _};
use super::plan::{how, when};
use super::schema_json;
use super::table::{Port, Top};

/// All keys: each with the key of the table that it is in, which is empty at the top.
fn all() -> Vec<(&'static str, Key)> {
    fn add(table: &'static str, keys: Vec<Key>, all: &mut Vec<(&'static str, Key)>) {
        for key in keys {
            if let Some((_, inner)) = &key.table {
                add(key.name.key, inner(), all);
            }
            all.push((table, key));
        }
    }
    let mut keys = Vec::new();
    add("", Top::keys(), &mut keys);
    keys
}

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(path).expect("a file of this repository")
}

#[test]
fn every_key_is_in_the_schema_the_references_and_the_plan() {
    let (schema, page) = (schema_json(), read("../docs/CONFIGURATION.md"));
    for (table, key) in all() {
        let (name, path) = (key.name.key, key.name.path);
        assert!(
            schema.contains(&format!("\"{name}\": {{")),
            "{path}: schema"
        );
        let row = format!("| `{name}` |");
        let heading = ["[", "[[", ""].map(|bracket| format!("\n## {bracket}{name}"));
        // Of a table inside a table of a port's: `limit.out of [[port]]`.
        let within = page.contains(&format!(".{name} of [["));
        let is_told = within || page.contains(&row) || heading.iter().any(|one| page.contains(one));
        assert!(is_told, "{path}: CONFIGURATION.md");
        let change = match table {
            "port" => how(name).is_some(),
            _ => when(path).is_some(),
        };
        let is_part = matches!(key.name.change, Change::Whole | Change::Never);
        // A part of a key may have the name of another key of the port.
        let has_namesake = is_part && Port::keys().iter().any(|own| own.name.key == name);
        assert!(change != is_part || has_namesake, "{path}: plan");
    }
}

/// Keys without a check of their own: a number, a time, words, and true or false.
const PLAIN: [&str; 8] = [
    "weight",
    "fdb_ageing",
    "idle_spin",
    "balance",
    "huge_pages",
    "rss",
    "busy_poll",
    "gro",
];

#[test]
fn a_key_without_a_check_of_its_own_stands_in_the_table_alone() {
    let known = all();
    let mut paths = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(path) = paths.pop() {
        if path.is_dir() {
            let entries = std::fs::read_dir(path).expect("a folder of this repository");
            paths.extend(entries.map(|entry| entry.expect("an entry").path()));
            continue;
        }
        if path.ends_with("table.rs") || path.ends_with("key_tests.rs") {
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("a file of this repository");
        let is_code = |line: &&str| !line.trim_start().starts_with("//");
        let of_word = |c: char| c.is_alphanumeric() || c == '_';
        let lines = text.lines().filter(is_code);
        let words: BTreeSet<&str> = lines.flat_map(|line| line.split(|c| !of_word(c))).collect();
        for key in PLAIN {
            assert!(known.iter().any(|(_, one)| one.name.key == key), "{key}");
            assert!(!words.contains(key), "`{key}` in {}", path.display());
        }
    }
}
