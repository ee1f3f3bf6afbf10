//! Explains messages of the TOML parser.

use std::collections::BTreeSet;

use serde_json::Value;

use super::check::Checker;
use super::error::SourceFile;
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

/// The place and the error in one line, and how to fix it in another.
pub(super) fn in_two_lines(name: &str, text: &str, error: &toml::de::Error) -> String {
    let mut checker = Checker::new(SourceFile::new(name, text));
    problem(&mut checker, error);
    let error = checker.into_error();
    let lines = error.problems().take(1).map(|problem| {
        let place = problem
            .line_and_column()
            .map_or(String::new(), |(line, column)| format!(":{line}:{column}"));
        let (message, help) = (problem.message(), problem.help_text());
        format!("{}{place}: {message}\nhelp: {help}", problem.file_name())
    });
    lines.collect()
}

/// For a bare word, as in `watch_ports = yes`, `mtu = 9k` or `trunk = [100-200]`: the word's place, the error and how to fix
/// it by the type of its key. The parser takes some words for numbers, times or dates, and says so.
fn of_another_type(text: &str, at: usize) -> Option<(Span, String, String)> {
    let Bare {
        place,
        word,
        key,
        in_list,
    } = Bare::around(text, at)?;
    let types = types_of(key);
    let has = |name: &str| types.contains(name);
    let (message, help) = match types.len() {
        1 if has("boolean") && !in_list => (
            format!("`{key}` must be true or false"),
            format!("for example: {key} = true"),
        ),
        1 if has("integer") && !in_list => (
            format!("`{key}` must be a whole number"),
            match without_unit(word) {
                Some(number) => format!("write it without a unit: {key} = {number}"),
                None => "write it in digits only, without a unit and without quotes".to_owned(),
            },
        ),
        _ if in_list && has("array") => (
            format!("text in `{key}` must be in quotes"),
            format!("write it as \"{word}\""),
        ),
        _ if has("string") => (
            "text must be in quotes".to_owned(),
            format!("write: {key} = \"{word}\""),
        ),
        1 if has("array") => (
            format!("`{key}` must be a list, and text in it in quotes"),
            format!("write: {key} = [\"{word}\"]"),
        ),
        _ => return None,
    };
    Some((place, message, help))
}

/// A value, or an item of a list, that is a word without quotes.
struct Bare<'a> {
    place: Span,
    word: &'a str,
    key: &'a str,
    in_list: bool,
}

impl<'a> Bare<'a> {
    /// The word around a position, if it is a value of a key on the same line.
    fn around(text: &'a str, at: usize) -> Option<Self> {
        let is_of_word = |c: char| c.is_ascii_alphanumeric() || "_.+-:/".contains(c);
        let (before, after) = text.split_at_checked(at)?;
        let begin = before.trim_end_matches(is_of_word).len();
        let end = text.len() - after.trim_start_matches(is_of_word).len();
        let word = text.get(begin..end).filter(|word| !word.is_empty())?;
        let rest = text.get(end..)?.lines().next().unwrap_or_default().trim();
        if !(rest.is_empty() || rest.starts_with([',', ']', '}', '#'])) {
            return None;
        }
        let line = text.get(..begin)?.rsplit('\n').next()?.trim_end();
        let in_list = line.ends_with(['[', ',']);
        let left = match in_list {
            true => line.rsplit_once('[')?.0.trim_end(),
            false => line,
        };
        let left = left.strip_suffix('=')?.trim_end();
        let key = left.rsplit([' ', '\t', '{', ',', '.']).next()?;
        Some(Self {
            place: begin..end,
            word,
            key,
            in_list,
        })
    }
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

/// The types of a key's value in the schema, wherever it occurs.
fn types_of(key: &str) -> BTreeSet<String> {
    let mut types = BTreeSet::new();
    if let Ok(schema) = serde_json::from_str(&schema_json()) {
        collect_types(&schema, key, &mut types);
    }
    types
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
            let error = toml::de::DeTable::parse(text).expect_err("not TOML");
            of_another_type(text, error.span().expect("a place").start).map(
                |(place, message, help)| {
                    (
                        text.get(place).unwrap_or_default().to_owned(),
                        message,
                        help,
                    )
                },
            )
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
        assert_eq!(
            of("socket_mode = 0660"),
            said(
                "0660",
                "text must be in quotes",
                "write: socket_mode = \"0660\""
            )
        );
        assert_eq!(
            of("mac = 52:54:00:00:00:01"),
            said(
                "52:54:00:00:00:01",
                "text must be in quotes",
                "write: mac = \"52:54:00:00:00:01\""
            )
        );
        assert_eq!(
            of("vlan = { trunk = 100-200 }"),
            said(
                "100-200",
                "`trunk` must be a list, and text in it in quotes",
                "write: trunk = [\"100-200\"]"
            )
        );
        assert_eq!(
            of("vlan.trunk = [5, 100-200]").map(|(_, _, help)| help),
            Some("write it as \"100-200\"".to_owned())
        );
        // A key that is written twice is not a wrong value.
        assert_eq!(of("mtu = 1500\nmtu = 1500\n"), None);
        // A word there is text that lacks its quotes.
        assert_eq!(of("poll = off"), None);
        assert_eq!(of("nonsense = yes"), None);
        assert_eq!(of("required = \"yes"), None);
    }
}
