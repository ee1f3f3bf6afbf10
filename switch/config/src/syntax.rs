//! Explains messages of the TOML parser.

use super::check::Checker;

/// Records that a text is not TOML.
pub(super) fn problem(checker: &mut Checker, error: &toml::de::Error) {
    let said = error.message().trim();
    let (message, help) = explain(said);
    let label = match said
        .strip_prefix(message)
        .and_then(|rest| rest.strip_prefix(", expected "))
    {
        // What the parser expected is shown with the parser's own message.
        Some(expected) if expected != "nothing" => format!("expected {expected}"),
        _ => "here".to_owned(),
    };
    checker.problem(
        error.span().unwrap_or(0..0),
        message.to_owned(),
        &label,
        help,
    );
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
