//! Checks shared by several keys.
//!
//! A check returns the value, or `None` if the key is missing or wrong; a wrong value has then been recorded. The
//! caller goes on with a default; after a problem, the result is dropped in the end.

use std::{collections::BTreeMap, ops::RangeInclusive, path::PathBuf, time::Duration};

use crosspoint_packet::Mac;
use serde::de::DeserializeOwned;

use super::check::Checker;
use super::duration;
use super::field::{Field, Span, Table, Word, WordOrList};
use super::keys::names_of;
use super::limits::SOCKET_BYTES_MAX;
use super::suggest::{alternatives, nearest};

/// A number's name in messages, its range, and how to write it.
pub(super) struct Number<'a> {
    pub subject: &'a str,
    pub range: RangeInclusive<i64>,
    pub example: &'a str,
}

/// The key of a value that is either a word or a list of numbers.
pub(super) struct NumberList<'a> {
    pub key: &'a str,
    /// The word, if there is one: "auto", "all".
    pub word: &'a str,
    pub items: &'a str,
    pub range: RangeInclusive<i64>,
    pub items_max: usize,
    pub example: &'a str,
}

impl Checker {
    /// A section's keys; the defaults if the section is missing.
    pub(super) fn section<T: Default>(&mut self, field: Field<Table<T>>, key: &str) -> T {
        let help = format!("write [{key}] on a line of its own, and the section's keys below it");
        self.value(field, key, "a table", &help)
            .map(|(Table(keys), _)| keys)
            .unwrap_or_default()
    }

    /// A whole number in a range.
    pub(super) fn number(&mut self, field: Field<i64>, number: &Number<'_>) -> Option<i64> {
        let (low, high) = (number.range.start(), number.range.end());
        let must = format!("a whole number from {low} to {high}");
        let help = format!("for example: {}", number.example);
        let (value, span) = self.typed(field, number.subject, &must, &help)?;
        if number.range.contains(&value) {
            return Some(value);
        }
        let label = if value < *low {
            "too small"
        } else {
            "too large"
        };
        self.problem(
            span,
            format!("{} must be {must}", number.subject),
            label,
            help,
        );
        None
    }

    /// True or false.
    pub(super) fn switch(&mut self, field: Field<bool>, key: &str) -> Option<bool> {
        let help = format!("for example: {key} = true");
        let value = self.value(field, key, "true or false", &help);
        value.map(|(value, _)| value)
    }

    /// A word of an enum.
    pub(super) fn word<T: DeserializeOwned>(
        &mut self,
        field: Field<Word<T>>,
        key: &str,
    ) -> Option<T> {
        let words = names_of::<T>();
        let must = alternatives(words);
        let text = self.file.text.clone();
        let written = field
            .span()
            .and_then(|span| text.get(span))
            .unwrap_or_default();
        let help = match nearest(written.trim_matches(['"', '\'']), words) {
            Some(word) => format!("did you mean {word:?}?"),
            None => format!(
                "for example: {key} = {:?}",
                words.first().copied().unwrap_or_default()
            ),
        };
        match field {
            // "This is a string" would not help if a string is expected, but not this one.
            Field::Wrong(span) if written.starts_with(['"', '\'']) => {
                let message = format!("`{key}` must be {must}");
                self.problem(span, message, "none of these", help);
                None
            }
            field => {
                let value = self.value(field, key, &must, &help);
                value.map(|(Word(word), _)| word)
            }
        }
    }

    /// A duration in a range. The example's unit is what a bare number probably means.
    pub(super) fn duration(
        &mut self,
        field: Field<String>,
        key: &str,
        range: RangeInclusive<Duration>,
        example: &str,
    ) -> Option<Duration> {
        let (low, high) = (
            duration::display(*range.start()),
            duration::display(*range.end()),
        );
        let must = format!("a duration from \"{low}\" to \"{high}\"");
        let help = format!(
            "a number and a unit (us, ms, s, m, h) in quotes, for example: {key} = \"{example}\""
        );
        let (text, span) = self.value(field, key, &must, &help)?;
        let label = match duration::parse(&text) {
            Ok(value) if range.contains(&value) => return Some(value),
            Ok(value) if value < *range.start() => "too short",
            Ok(_) => "too long",
            Err(why) => why,
        };
        self.problem(span, format!("`{key}` must be {must}"), label, help);
        None
    }

    /// A list of distinct numbers with their places.
    pub(super) fn numbers(
        &mut self,
        list: Vec<Field<i64>>,
        span: Span,
        what: &NumberList<'_>,
    ) -> Vec<(i64, Span)> {
        if list.is_empty() {
            let message = format!("`{}` is empty", what.key);
            self.problem(
                span,
                message,
                "nothing in it",
                format!("for example: {}", what.example),
            );
            return Vec::new();
        }
        if list.len() > what.items_max {
            let message = format!(
                "`{}` has {} items, and may have {}",
                what.key,
                list.len(),
                what.items_max
            );
            self.problem(
                span,
                message,
                "too many",
                format!("keep at most {}", what.items_max),
            );
            return Vec::new();
        }
        let subject = format!("a {} in `{}`", what.items, what.key);
        let number = Number {
            subject: &subject,
            range: what.range.clone(),
            example: what.example,
        };
        let mut numbers: Vec<(i64, Span)> = Vec::with_capacity(list.len());
        let mut seen = BTreeMap::new();
        for item in list {
            let span = item.span().unwrap_or_default();
            let Some(value) = self.number(item, &number) else {
                continue;
            };
            match seen.get(&value).cloned() {
                Some(first) => {
                    let message = format!("{} {value} is in `{}` twice", what.items, what.key);
                    let first = self.place(first);
                    self.clash(span, Some(first), message, "remove one of them");
                }
                None => {
                    seen.insert(value, span.clone());
                    numbers.push((value, span));
                }
            }
        }
        numbers
    }

    /// The known word, or a list. `None` for the word, a missing key, or a mistake that is now recorded.
    pub(super) fn word_or_numbers(
        &mut self,
        field: Field<WordOrList>,
        what: &NumberList<'_>,
    ) -> Option<Vec<(i64, Span)>> {
        let must = format!("{:?} or a list of {}s", what.word, what.items);
        let help = format!(
            "for example: {}, or {} = {:?}",
            what.example, what.key, what.word
        );
        match self.value(field, what.key, &must, &help)? {
            (WordOrList::List(list), span) => Some(self.numbers(list, span, what)),
            (WordOrList::Word(word), _) if word == what.word => None,
            (WordOrList::Word(_), span) => {
                self.problem(
                    span,
                    format!("`{}` must be {must}", what.key),
                    "neither",
                    help,
                );
                None
            }
        }
    }

    /// A unicast MAC address.
    pub(super) fn mac(&mut self, field: Field<String>) -> Option<Mac> {
        let help =
            "six bytes in hexadecimal, the first even, for example: mac = \"52:54:00:12:34:56\"";
        self.station(field, "`mac`", help)
    }

    /// Like [`Self::mac`], for a value without a key: a list item, which messages call `subject`.
    pub(super) fn station(
        &mut self,
        field: Field<String>,
        subject: &str,
        help: &str,
    ) -> Option<Mac> {
        let must = "a MAC address of one station";
        let (text, span) = self.typed(field, subject, must, help)?;
        let label = match parse_mac(&text) {
            None => "not six bytes in hexadecimal, with colons between them",
            Some(mac) if mac.is_group() => "a group address: the first byte is odd",
            Some(mac) if mac.to_word() == 0 => "the address zero, which no station has",
            mac => return mac,
        };
        self.problem(span, format!("{subject} must be {must}"), label, help);
        None
    }

    /// A socket's path.
    pub(super) fn socket(&mut self, field: Field<String>) -> Option<(PathBuf, Span)> {
        let help = "for example: socket = \"/run/crosspoint/web-1.sock\"";
        let (path, span) = self.value(field, "socket", "an absolute path", help)?;
        let names_file = !path.ends_with('/') && PathBuf::from(&path).file_name().is_some();
        let (message, label) = if !path.starts_with('/') {
            (
                "`socket` must be an absolute path".to_owned(),
                "does not begin with /",
            )
        } else if path.contains('\0') {
            (
                "`socket` has a zero byte in it".to_owned(),
                "no path has one",
            )
        } else if path.len() > SOCKET_BYTES_MAX {
            let message = format!(
                "`socket` has {} bytes, and the kernel accepts {SOCKET_BYTES_MAX} in a socket's path",
                path.len()
            );
            (message, "too long")
        } else if !names_file {
            (
                "`socket` must be the path of a file".to_owned(),
                "this names a directory",
            )
        } else {
            return Some((PathBuf::from(path), span));
        };
        self.problem(span, message, label, help);
        None
    }
}

/// Parses six bytes of two hexadecimal digits each.
pub(super) fn parse_mac(text: &str) -> Option<Mac> {
    let mut bytes = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut bytes {
        let part = parts.next()?;
        let digits = part.len() == 2 && part.bytes().all(|c| c.is_ascii_hexdigit());
        *byte = u8::from_str_radix(part, 16).ok().filter(|_| digits)?;
    }
    parts.next().is_none().then_some(Mac::new(bytes))
}
