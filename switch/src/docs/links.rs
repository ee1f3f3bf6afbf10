//! Checks that the documents' links lead to a file of the repository and to an existing heading.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::{documents, read};

/// Lines outside blocks of code.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut inside = false;
    (1..).zip(text.lines()).filter(move |(_, line)| {
        let fence = line.trim_start().starts_with("```");
        inside ^= fence;
        !inside && !fence
    })
}

/// The anchors that GitHub makes of headings.
fn anchors(text: &str) -> Vec<String> {
    let mut times: HashMap<String, usize> = HashMap::new();
    let headings = prose(text).filter_map(|(_, line)| {
        let heading = line.trim_start_matches('#');
        (heading.len() < line.len() && heading.starts_with(' ')).then(|| heading.trim())
    });
    let slug = |heading: &str| -> String {
        let kept = heading.chars().flat_map(char::to_lowercase);
        let kept = kept.filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    let mut anchors = Vec::new();
    for heading in headings {
        let slug = slug(heading);
        let before = times.entry(slug.clone()).or_default();
        anchors.push(match *before {
            0 => slug,
            n => format!("{slug}-{n}"),
        });
        *before += 1;
    }
    anchors
}

/// Targets of links on a line.
fn targets(line: &str) -> impl Iterator<Item = &str> {
    let after = line.split("](").skip(1);
    after.filter_map(|rest| rest.split_once(')').map(|(target, _)| target))
}

/// What is wrong with a link that leads nowhere.
fn dead(from: &Path, target: &str) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
    let to: PathBuf = match path {
        "" => from.to_owned(),
        path => from.parent().expect("it is a file").join(path),
    };
    if !to.exists() {
        return Some("there is no such file".to_owned());
    }
    let found = anchor.is_empty() || anchors(&read(&to)).iter().any(|one| one == anchor);
    (!found).then(|| "there is no such heading".to_owned())
}

#[test]
fn every_link_of_the_documents_leads_somewhere() {
    let mut seen = 0;
    let mut wrong = Vec::new();
    for path in documents() {
        let text = read(&path);
        for (line, target) in
            prose(&text).flat_map(|(n, line)| targets(line).map(move |to| (n, to)))
        {
            seen += 1;
            if let Some(why) = dead(&path, target) {
                wrong.push(format!("{}:{line}: {target}: {why}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 30, "only {seen} links");
}
