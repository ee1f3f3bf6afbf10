//! No text makes the parser panic or return an empty message.

use crosspoint_config::Config;
use proptest::prelude::*;

const REFERENCE: &str = include_str!("../../../../configs/reference.toml");
const EXAMPLE: &str = include_str!("../../../../configs/example-server.toml");

/// Pieces that a mistake could put into a file: syntax marks, and values of every type and size.
const PIECES: [&str; 30] = [
    "\"",
    "'",
    "[",
    "]",
    "[[port]]\n",
    "{",
    "}",
    "=",
    ",",
    "\n",
    "\r",
    "\u{0}",
    "\\",
    "é",
    "\u{feff}",
    "#",
    "-1",
    "0",
    "9223372036854775808",
    "1e999",
    "nan",
    "true",
    "1979-05-27",
    "\"\"",
    "[]",
    "{}",
    "[[[]]]",
    "name = 1\n",
    "vlan = { access = 1, trunk = [1, 1] }\n",
    "type = \"xdp\"\n",
];

/// Checks that the result is a configuration, or an error with a message and a place in the text that can be rendered.
fn check(text: &str) -> Result<(), TestCaseError> {
    let Err(error) = Config::parse("switch.toml", text) else {
        return Ok(());
    };
    prop_assert!(!error.to_string().is_empty());
    for problem in error.problems() {
        prop_assert!(!problem.message().is_empty());
        prop_assert!(!problem.help_text().is_empty());
        let (line, column) = problem
            .line_and_column()
            .expect("every mistake in a text has a place");
        prop_assert!(line >= 1 && line <= text.lines().count() + 1, "line {line}");
        prop_assert!(column >= 1 && column <= text.len() + 1, "column {column}");
        prop_assert!(
            error
                .render()
                .contains(&format!("[switch.toml:{line}:{column}]")),
            "{}",
            error.render()
        );
    }
    prop_assert!(
        !error.render().contains("Failed to read"),
        "{}",
        error.render()
    );
    Ok(())
}

/// Replaces a range of a text, at character boundaries, by a piece.
fn mutate(text: &mut String, at: usize, len: usize, piece: &str) {
    let starts: Vec<usize> = text
        .char_indices()
        .map(|(start, _)| start)
        .chain([text.len()])
        .collect();
    let first = at % starts.len();
    let last = (first + len).min(starts.len() - 1);
    text.replace_range(starts[first]..starts[last], piece);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,200}|(?s:.{0,200})") {
        check(&text)?;
    }

    #[test]
    fn toml_like_text_is_read_or_refused(pieces in proptest::collection::vec(
        prop_oneof![
            proptest::sample::select(&PIECES[..]).prop_map(str::to_owned),
            "(version|workers|cores|poll|switch|port|name|type|socket|queues|vlan|trunk|access|native) ?= ?[0-9]{0,2}",
        ],
        0..20,
    )) {
        check(&pieces.concat())?;
        check(&format!("version = 1\n{}", pieces.concat()))?;
    }

    #[test]
    fn damaged_files_are_read_or_refused(
        example: bool,
        damages in proptest::collection::vec((0_usize..8192, 0_usize..12, proptest::sample::select(&PIECES[..])), 1..4),
    ) {
        let mut text = if example { EXAMPLE } else { REFERENCE }.to_owned();
        for (at, len, piece) in damages {
            mutate(&mut text, at, len, piece);
        }
        check(&text)?;
    }

    #[test]
    fn exchanged_values_are_read_or_refused(line: usize, piece in proptest::sample::select(&PIECES[..])) {
        let keys: Vec<(usize, &str)> = REFERENCE.lines().enumerate().filter(|(_, line)| line.contains(" = ")).collect();
        let (at, key) = keys[line % keys.len()];
        let key = key.split(" = ").next().unwrap_or_default();
        let text: Vec<String> = REFERENCE
            .lines()
            .enumerate()
            .map(|(index, line)| if index == at { format!("{key} = {piece}") } else { line.to_owned() })
            .collect();
        check(&text.join("\n"))?;
    }
}
