//! Patterns of names, as in `web-*`.

/// Whether the whole of `text` matches: `*` is any text, `?` any character.
pub fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), text.chars().collect());
    let (mut at, mut seen) = (0, 0);
    // Where the last `*` is, and how much of the text it has taken.
    let mut star: Option<(usize, usize)> = None;
    while seen < text.len() {
        match (pattern.get(at), star) {
            (Some('*'), _) => {
                star = Some((at, seen));
                at += 1;
            }
            (Some(c), _) if *c == '?' || Some(c) == text.get(seen) => {
                (at, seen) = (at + 1, seen + 1);
            }
            (_, Some((place, taken))) => {
                star = Some((place, taken + 1));
                (at, seen) = (place + 1, taken + 1);
            }
            (_, None) => return false,
        }
    }
    pattern.iter().skip(at).all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_pattern_is_compared_with_the_whole_name() {
        let met = |pattern| matches(pattern, "web-12");
        assert!(
            [
                "web-12", "*", "web-*", "*12", "w*1*", "web-1?", "we?-??", "*web-12*"
            ]
            .into_iter()
            .all(met)
        );
        assert!(
            !["web-1", "web", "b*", "web-12?", "?", "", "*13"]
                .into_iter()
                .any(met)
        );
    }

    proptest! {
        #[test]
        fn a_name_matches_itself_and_what_it_begins_with(name in "[a-z0-9-]{0,12}", cut in 0usize..12) {
            prop_assert!(matches(&name, &name));
            let begin = name.get(..cut.min(name.len())).unwrap_or("");
            let begun = format!("{begin}*");
            prop_assert!(matches(&begun, &name));
        }
    }
}
