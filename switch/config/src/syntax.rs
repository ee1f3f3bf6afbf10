//! Explains messages of the TOML parser.

use std::collections::BTreeSet;

use serde_json::Value;

use super::check::Checker;
use super::field::Span;
use super::written::schema_json;

/// Records that a text is not TOML.
pub(super) fn problem(checker: &mut Checker, error: &toml::de::Error) {
    let said = error.message().trim();
    let at = error.span().unwrap_or(0..0);
    if let Some((value, message, help)) = of_another_type(&checker.file.raw, at.start) {
        return checker.problem(value, message, "not this", help);
    }
    let (message, help) = explain(said);
    let label = match said
        .strip_prefix(message)
        .and_then(|rest| rest.strip_prefix(", expected "))
    {
        // What the parser expected is shown with the parser's own message.
        Some(expected) if expected != "nothing" => format!("expected {expected}"),
        _ => "here".to_owned(),
    };
    checker.problem(at, message.to_owned(), &label, help);
}

/// For a bare word, as in `watch_ports = yes` or `mtu = 9k`, whose key takes no text: the word's place, the error and how to
/// fix it. Advice to put the word in quotes would be wrong there.
fn of_another_type(text: &str, at: usize) -> Option<(Span, String, String)> {
    let begin = text.get(..at)?.rfind('\n').map_or(0, |newline| newline + 1);
    let line = text.get(begin..)?.lines().next()?;
    let (left, right) = line.split_once('=')?;
    let key = left.trim();
    let word = right.split('#').next().unwrap_or_default().trim();
    let is_bare = |c: char| c.is_ascii_alphanumeric() || "_.+-".contains(c);
    if word.is_empty() || !word.chars().all(is_bare) {
        return None;
    }
    let value = begin + left.len() + 1 + right.find(word)?;
    let (message, help) = match type_of(key)?.as_str() {
        "boolean" => (
            format!("`{key}` must be true or false"),
            format!("for example: {key} = true"),
        ),
        "integer" => (
            format!("`{key}` must be a whole number"),
            match without_unit(word) {
                Some(number) => format!("write it without a unit: {key} = {number}"),
                None => "write it in digits only, without a unit and without quotes".to_owned(),
            },
        ),
        _ => return None,
    };
    Some((value..value + word.len(), message, help))
}

/// The number that a word such as `9k` means.
fn without_unit(word: &str) -> Option<u64> {
    let unit = word.chars().last()?;
    let factor = match unit.to_ascii_lowercase() {
        'k' => 1_000,
        'm' => 1_000_000,
        'g' => 1_000_000_000,
        _ => return None,
    };
    let digits = word.strip_suffix(unit)?;
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

/// The type of a key's value in the schema, if it has one type wherever it occurs.
fn type_of(key: &str) -> Option<String> {
    let schema = serde_json::from_str(&schema_json()).ok()?;
    let mut types = BTreeSet::new();
    collect_types(&schema, key, &mut types);
    let mut types = types.into_iter();
    types.next().filter(|_| types.next().is_none())
}

fn collect_types(schema: &Value, key: &str, types: &mut BTreeSet<String>) {
    match schema {
        Value::Object(keys) => {
            let found = keys.get("properties").and_then(|all| all.get(key));
            let found = found
                .and_then(|one| one.get("type"))
                .and_then(Value::as_str);
            types.extend(found.map(str::to_owned));
            keys.values()
                .for_each(|inner| collect_types(inner, key, types));
        }
        Value::Array(items) => items
            .iter()
            .for_each(|inner| collect_types(inner, key, types)),
        _ => {}
    }
}

/// Beginnings of the parser's messages, a replacement if needed, and how to fix the mistake. A message that is not
/// listed, perhaps of a newer parser, is shown unchanged, with general help.
const EXPLANATIONS: [(&str, Option<&str>, &str); 11] = [
    (
        "duplicate key",
        Some("this key or section has been given before"),
        "merge the two into one; only a port, [[port]] with two brackets, may be repeated",
    ),
    (
        "string values must be quoted",
        Some("text must be in quotes"),
        "for example: name = \"web-1\"; only numbers, true, false, lists and tables need no quotes",
    ),
    (
        "invalid boolean",
        Some("text must be in quotes"),
        "for example: poll = \"busy\"",
    ),
    (
        "invalid basic string",
        None,
        "end the text on its line with the quote it began with; a backslash is written \\\\",
    ),
    (
        "invalid literal string",
        None,
        "end the text on its line with the quote it began with",
    ),
    (
        "missing escaped value",
        None,
        "a backslash itself is written \\\\",
    ),
    (
        "unclosed",
        None,
        "add the missing bracket; a section is [name], a port [[port]], a list [a, b]",
    ),
    (
        "key with no value",
        None,
        "write `key = value`; a section is [name], a port [[port]]",
    ),
    (
        "unexpected key or value",
        Some("there is something after the value"),
        "write one `key = value` on each line; a list is in brackets: cores = [2, 3]",
    ),
    (
        "extra assignment",
        None,
        "put commas between the pairs: vlan = { trunk = [100], native = 1 }",
    ),
    (
        "unexpected leading zero",
        None,
        "write the number without leading zeros",
    ),
];

fn explain(said: &str) -> (&str, &'static str) {
    let always = "a line is `key = value`, with text in \"quotes\" and lists in [a, b]; a section begins with [name]";
    let plain = match said.split_once(", expected ") {
        Some((plain, _)) => plain,
        None if said.is_empty() => "not TOML",
        None => said,
    };
    match EXPLANATIONS
        .iter()
        .find(|(start, ..)| said.starts_with(start))
    {
        Some((_, instead, help)) => (instead.unwrap_or(plain), help),
        None => (plain, always),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_word_is_answered_by_the_type_of_its_key() {
        let of = |text: &str| {
            let at = text.rfind('=').expect("a value") + 2;
            of_another_type(text, at).map(|(place, message, help)| {
                (
                    text.get(place).unwrap_or_default().to_owned(),
                    message,
                    help,
                )
            })
        };
        let said = |value: &str, message: &str, help: &str| {
            Some((value.to_owned(), message.to_owned(), help.to_owned()))
        };
        assert_eq!(
            of("version = 1\nwatch_ports = yes   # always\n"),
            said(
                "yes",
                "`watch_ports` must be true or false",
                "for example: watch_ports = true"
            )
        );
        assert_eq!(
            of("mtu = 9k"),
            said(
                "9k",
                "`mtu` must be a whole number",
                "write it without a unit: mtu = 9000"
            )
        );
        assert_eq!(
            of("mac_limit = many"),
            said(
                "many",
                "`mac_limit` must be a whole number",
                "write it in digits only, without a unit and without quotes"
            )
        );
        // A word there is text that lacks its quotes.
        assert_eq!(of("poll = off"), None);
        assert_eq!(of("nonsense = yes"), None);
        assert_eq!(of("required = \"yes"), None);
    }
}
