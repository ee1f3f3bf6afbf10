//! The rule for lists of texts, each of which has a meaning: addresses, prefixes, names.

use std::borrow::Cow;

use serde_json::{Value, json};

use super::field::Item;
use super::key::{Definitions, Reader, Rule};

/// Why a text is refused: a label, and a help if the rule's own is not the best.
pub(super) type Wrong = (&'static str, Option<String>);

/// A list of texts with a meaning.
pub(super) struct TextList<T> {
    /// What its items are: "MAC addresses".
    pub items: &'static str,
    /// An item, as the subject of messages: "an address"; and what it must be.
    pub item: &'static str,
    pub must: &'static str,
    /// Most items.
    pub items_max: usize,
    /// If the list may not be empty: what an empty one means, and what to write instead.
    pub empty: Option<(&'static str, &'static str)>,
    /// What to do about too many.
    pub too_many: &'static str,
    pub help: &'static str,
    pub parse: fn(&str) -> Result<T, Wrong>,
    pub write: fn(&T) -> String,
    /// The pattern of an item in the schema.
    pub pattern: &'static str,
}

impl<T: Clone + 'static> Rule for TextList<T> {
    type Value = Vec<T>;

    fn read<'a>(&self, reader: &mut Reader<'a>, key: &str, item: &'a Item<'a>) -> Option<Vec<T>> {
        let (checker, most) = (&mut *reader.checker, self.items_max);
        let must = format!("a list of {}", self.items);
        let (list, span): (&[Item<'_>], _) = checker.value(item, key, &must, self.help)?;
        let too_many = (list.len() > most).then_some(("too many", self.too_many));
        let empty = self.empty.filter(|_| list.is_empty());
        if let Some((label, help)) = too_many.or(empty) {
            let least = i32::from(self.empty.is_some());
            let message = format!("`{key}` must be a list of {least} to {most} {}", self.items);
            checker.problem(span, message, label, help);
            return None;
        }
        let subject = format!("{} in `{key}`", self.item);
        let mut values = Vec::with_capacity(list.len());
        for item in list {
            let text = checker.typed::<&str>(item, &subject, self.must, self.help);
            match text.map(|(text, _)| (self.parse)(text)) {
                Some(Ok(value)) => values.push(value),
                Some(Err((label, help))) => {
                    let message = format!("{subject} must be {}", self.must);
                    let help = help.map_or(Cow::Borrowed(self.help), Cow::Owned);
                    checker.problem(item.span(), message, label, &*help);
                }
                None => {}
            }
        }
        Some(values)
    }

    fn write(&self, values: &Vec<T>) -> Value {
        json!(values.iter().map(self.write).collect::<Vec<_>>())
    }

    fn schema(&self, _: &mut Definitions) -> Value {
        let mut list = json!({
            "type": "array", "maxItems": self.items_max, "uniqueItems": true,
            "items": {"type": "string", "pattern": self.pattern},
        });
        if self.empty.is_some() {
            list["minItems"] = json!(1);
        }
        list
    }
}
