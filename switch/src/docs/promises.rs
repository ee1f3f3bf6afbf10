//! Checks that the tests named in `SPECIFICATION.md` exist.

use super::{read, repository};

#[test]
fn every_test_that_the_specification_names_is_there() {
    let text = read(&repository().join("switch/docs/SPECIFICATION.md"));
    let named: Vec<_> = text
        .split('`')
        .filter_map(|word| word.split_once(".rs::"))
        .collect();
    let is_there = |(file, name): &(&str, &str)| {
        // Some tests are made by macros, so this searches for the name alone.
        let path = repository().join(format!("{file}.rs"));
        path.exists() && read(&path).contains(name.rsplit("::").next().unwrap_or(name))
    };
    let missing: Vec<_> = named.iter().filter(|one| !is_there(one)).collect();
    assert!(missing.is_empty(), "{missing:#?}");
    assert!(named.len() > 300, "only {}", named.len());
}
