//! Checks of the documentation against the program: references are generated, commands are parsed, links are followed.
//!
//! `UPDATE_DOCS=1 cargo nextest run -p crosspoint docs` writes the generated parts; without it, they are compared.

mod additions;
mod blocks;
mod commands;
mod configuration;
mod drops;
mod links;
mod metrics;
mod promises;

use std::fs;
use std::path::{Path, PathBuf};

/// The generated part lies between these.
const BEGIN: &str = "<!-- generated -->\n";
const END: &str = "<!-- end -->";

/// The repository.
fn repository() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().expect("it is in the workspace").to_owned()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|why| panic!("{}: {why}", path.display()))
}

/// All documents, except in folders such as build outputs.
fn documents() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![repository()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let ours = !name.starts_with('.') && name != "target" && name != "artifacts";
            if path.is_dir() && !path.is_symlink() && ours {
                folders.push(path);
            } else if name.ends_with(".md") {
                found.push(path);
            }
        }
    }
    found.sort();
    assert!(found.len() > 10, "{found:?}");
    found
}

/// Compares the generated part of `switch/docs/NAME` with `text`, or writes it.
fn check_generated(name: &str, text: &str) {
    let path = repository().join("switch/docs").join(name);
    let old = read(&path);
    let (before, rest) = old.split_once(BEGIN).expect("a mark");
    let (_, after) = rest.split_once(END).expect("a mark");
    let new = format!("{before}{BEGIN}{text}{END}{after}");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &new).expect("docs/ can be written");
        return;
    }
    assert!(
        old == new,
        "switch/docs/{name} is stale; write it with: UPDATE_DOCS=1 cargo nextest run -p crosspoint docs"
    );
}

/// Text in a table's cell.
fn cell(text: &str) -> String {
    text.replace('\n', " ").replace('|', "\\|")
}
