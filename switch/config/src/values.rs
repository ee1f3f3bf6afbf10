//! Checks shared by several keys.
//!
//! A check returns the value, or `None` if the key is missing or wrong; a wrong value has then been recorded. The
//! caller goes on with a default; after a problem, the result is dropped in the end.

use std::{collections::BTreeMap, ops::RangeInclusive, time::Duration};

use serde::de::DeserializeOwned;

use super::check::Checker;
use super::duration;
use super::field::{Field, Item, Span, Word, WordOrList};
use super::keys::names_of;
use super::quantity::Quantity;
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
        let (Field::Given(_, span) | Field::Wrong(span)) = &field;
        let written = text.get(span.clone()).unwrap_or_default();
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

    /// A quantity in a range.
    pub(super) fn quantity(
        &mut self,
        field: Field<&str>,
        key: &str,
        quantity: Quantity,
        range: RangeInclusive<u64>,
    ) -> Option<u64> {
        let (low, high) = (
            quantity.display(*range.start()),
            quantity.display(*range.end()),
        );
        let must = format!("from \"{low}\" to \"{high}\"");
        let help = format!(
            "a number and a unit ({}) in quotes, for example: {key} = \"{}\"",
            quantity.unit_names(),
            quantity.example()
        );
        let (text, span) = self.value(field, key, &must, &help)?;
        let label = match quantity.parse(text) {
            Ok(value) if range.contains(&value) => return Some(value),
            Ok(value) if value < *range.start() => "too small",
            Ok(_) => "too large",
            Err(why) => why,
        };
        self.problem(span, format!("`{key}` must be {must}"), label, help);
        None
    }

    /// A duration in a range. The example's unit is what a bare number probably means.
    pub(super) fn duration(
        &mut self,
        field: Field<&str>,
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
        let label = match duration::parse(text) {
            Ok(value) if range.contains(&value) => return Some(value),
            Ok(value) if value < *range.start() => "too short",
            Ok(_) => "too long",
            Err(why) => why,
        };
        self.problem(span, format!("`{key}` must be {must}"), label, help);
        None
    }

    /// A list of distinct numbers with their places.
    fn numbers(&mut self, list: &[Item<'_>], span: Span, what: &NumberList<'_>) -> Vec<i64> {
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
        let mut numbers = Vec::with_capacity(list.len());
        let mut seen = BTreeMap::new();
        for item in list {
            let span = item.span();
            let Some(value) = self.number(item.into(), &number) else {
                continue;
            };
            match seen.get(&value).cloned() {
                Some(first) => {
                    let message = format!("{} {value} is in `{}` twice", what.items, what.key);
                    let first = self.place(first);
                    self.clash(span, Some(first), message, "remove one of them");
                }
                None => {
                    seen.insert(value, span);
                    numbers.push(value);
                }
            }
        }
        numbers
    }

    /// A list, or the word if there is one. `None` for the word, or a mistake that is now recorded.
    pub(super) fn word_or_numbers(
        &mut self,
        field: Field<WordOrList<'_>>,
        what: &NumberList<'_>,
    ) -> Option<Vec<i64>> {
        let (mut must, mut help) = (
            format!("a list of {}s", what.items),
            format!("for example: {}", what.example),
        );
        if !what.word.is_empty() {
            must = format!("{:?} or {must}", what.word);
            help = format!("{help}, or {} = {:?}", what.key, what.word);
        }
        match self.value(field, what.key, &must, &help)? {
            (WordOrList::List(list), span) => Some(self.numbers(list, span, what)),
            (WordOrList::Word(word), _) if word == what.word => None,
            (WordOrList::Word(_), span) => {
                let label = match what.word {
                    "" => self.kind_at(&span),
                    _ => "neither",
                };
                let message = format!("`{}` must be {must}", what.key);
                self.problem(span, message, label, help);
                None
            }
        }
    }
}
