//! The rules for values: how a value is read, checked, written, and described in the schema.
//!
//! A wrong value is recorded. The caller goes on with the default; after a problem, the result is dropped in the end.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::ops::RangeInclusive;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};
use toml::de::DeTable;

use super::check::Checker;
use super::duration;
use super::field::{Item, Span, WordOrList};
use super::key::{
    Definitions, Entry, Key, Keys, ListKeys, Name, Reader, Rule, Slot, Written, table_reference,
};
use super::quantity::Quantity;
use super::suggest::{alternatives, nearest};
use super::types::PortType;
use super::words::Words;

/// A type of whole numbers.
pub(super) trait Integer: Copy + Serialize + TryFrom<i64> + TryInto<i64> + 'static {}
impl<T: Copy + Serialize + TryFrom<i64> + TryInto<i64> + 'static> Integer for T {}

/// A whole number.
pub(super) struct Whole<T> {
    range: RangeInclusive<T>,
    example: Cow<'static, str>,
}

/// A whole number of this range; `example` is a line that gives the key.
pub(super) fn whole<T: Integer>(
    range: RangeInclusive<T>,
    example: impl Into<Cow<'static, str>>,
) -> Whole<T> {
    let example = example.into();
    Whole { range, example }
}

impl<T: Integer> Whole<T> {
    /// The lowest and the highest number.
    fn bounds(&self) -> (i64, i64) {
        let bound = |value: &T| (*value).try_into().unwrap_or(i64::MAX);
        (bound(self.range.start()), bound(self.range.end()))
    }

    /// The number, which messages call `subject`.
    pub(super) fn check(&self, checker: &mut Checker, subject: &str, item: &Item<'_>) -> Option<T> {
        let (low, high) = self.bounds();
        let must = format!("a whole number from {low} to {high}");
        let help = format!("for example: {}", self.example);
        let (value, span) = checker.typed::<i64>(item, subject, &must, &help)?;
        let label = match value {
            _ if value < low => "too small",
            _ if value > high => "too large",
            _ => return T::try_from(value).ok(),
        };
        checker.problem(span, format!("{subject} must be {must}"), label, help);
        None
    }
}

impl<T: Integer> Rule for Whole<T> {
    type Value = T;

    fn read<'a>(&self, reader: &mut Reader<'a>, key: &str, item: &'a Item<'a>) -> Option<T> {
        self.check(reader.checker, &format!("`{key}`"), item)
    }

    fn write(&self, value: &T) -> Value {
        json!(value)
    }

    fn schema(&self, _: &mut Definitions) -> Value {
        let (low, high) = self.bounds();
        json!({"type": "integer", "format": "int64", "minimum": low, "maximum": high})
    }
}

/// True or false.
pub(super) struct Flag;

/// True or false.
pub(super) fn flag() -> Flag {
    Flag
}

impl Rule for Flag {
    type Value = bool;

    fn read<'a>(&self, reader: &mut Reader<'a>, key: &str, item: &'a Item<'a>) -> Option<bool> {
        let help = format!("for example: {key} = true");
        let value = reader.checker.value(item, key, "true or false", &help);
        value.map(|(value, _)| value)
    }

    fn write(&self, value: &bool) -> Value {
        json!(value)
    }

    fn schema(&self, _: &mut Definitions) -> Value {
        json!({"type": "boolean"})
    }
}

/// A word of an enum.
pub(super) struct OneOf<T>(PhantomData<T>);

/// A word of the enum `T`.
pub(super) fn word<T: Words>() -> OneOf<T> {
    OneOf(PhantomData)
}

impl<T: Words> Rule for OneOf<T> {
    type Value = T;

    fn read<'a>(&self, reader: &mut Reader<'a>, key: &str, item: &'a Item<'a>) -> Option<T> {
        let words: Vec<&str> = T::ALL.iter().map(|one| one.word).collect();
        let must = alternatives(&words);
        let text = reader.checker.file.text.clone();
        let written = text.get(item.span()).unwrap_or_default();
        let help = match nearest(written.trim_matches(['"', '\'']), &words) {
            Some(word) => format!("did you mean {word:?}?"),
            None => format!("for example: {key} = {:?}", words.first().unwrap_or(&"")),
        };
        let (word, span) = reader.checker.value(item, key, &must, &help)?;
        let value = T::from_word(word);
        if value.is_none() {
            let message = format!("`{key}` must be {must}");
            reader.checker.problem(span, message, "none of these", help);
        }
        value
    }

    fn write(&self, value: &T) -> Value {
        json!(value.word())
    }

    fn schema(&self, definitions: &mut Definitions) -> Value {
        T::schema(definitions)
    }
}

/// A duration.
pub(super) struct Time {
    range: RangeInclusive<Duration>,
    example: &'static str,
}

/// A duration from `low` to `high`. The example's unit is what a bare number probably means.
pub(super) fn time(low: &str, high: &str, example: &'static str) -> Time {
    Time {
        range: parsed(low)..=parsed(high),
        example,
    }
}

/// A duration of the table.
fn parsed(text: &str) -> Duration {
    duration::parse(text).unwrap_or_default()
}

impl Time {
    /// A key whose default is the example.
    pub(super) fn or_example(self) -> Entry<Self> {
        let default = parsed(self.example);
        self.or(default)
    }
}

impl Rule for Time {
    type Value = Duration;

    fn read<'a>(&self, reader: &mut Reader<'a>, key: &str, item: &'a Item<'a>) -> Option<Duration> {
        let (low, high) = (self.range.start(), self.range.end());
        let [shortest, longest] = [low, high].map(|bound| duration::display(*bound));
        let must = format!("a duration from \"{shortest}\" to \"{longest}\"");
        let help = format!(
            "a number and a unit (us, ms, s, m, h) in quotes, for example: {key} = \"{}\"",
            self.example
        );
        let (text, span) = reader.checker.value::<&str>(item, key, &must, &help)?;
        let label = match duration::parse(text) {
            Ok(value) if self.range.contains(&value) => return Some(value),
            Ok(value) if value < *low => "too short",
            Ok(_) => "too long",
            Err(why) => why,
        };
        let message = format!("`{key}` must be {must}");
        reader.checker.problem(span, message, label, help);
        None
    }

    fn write(&self, value: &Duration) -> Value {
        json!(duration::display(*value))
    }

    fn schema(&self, _: &mut Definitions) -> Value {
        json!({"type": "string", "pattern": "^[0-9]+(us|ms|s|m|h)$"})
    }

    /// In the example's unit.
    fn shown(&self, _: &Duration) -> Value {
        json!(self.example)
    }
}

/// A quantity with its unit.
pub(super) struct Amount {
    quantity: Quantity,
    range: RangeInclusive<u64>,
}

/// A quantity of this range.
pub(super) fn amount(quantity: Quantity, range: RangeInclusive<u64>) -> Amount {
    Amount { quantity, range }
}

impl Rule for Amount {
    type Value = u64;

    fn read<'a>(&self, reader: &mut Reader<'a>, key: &str, item: &'a Item<'a>) -> Option<u64> {
        let (low, high) = (self.range.start(), self.range.end());
        let [lowest, highest] = [low, high].map(|bound| self.quantity.display(*bound));
        let must = format!("from \"{lowest}\" to \"{highest}\"");
        let help = format!(
            "a number and a unit ({}) in quotes, for example: {key} = \"{}\"",
            self.quantity.unit_names(),
            self.quantity.example()
        );
        let (text, span) = reader.checker.value::<&str>(item, key, &must, &help)?;
        let label = match self.quantity.parse(text) {
            Ok(value) if self.range.contains(&value) => return Some(value),
            Ok(value) if value < *low => "too small",
            Ok(_) => "too large",
            Err(why) => why,
        };
        let message = format!("`{key}` must be {must}");
        reader.checker.problem(span, message, label, help);
        None
    }

    fn write(&self, value: &u64) -> Value {
        json!(self.quantity.display(*value))
    }

    fn schema(&self, _: &mut Definitions) -> Value {
        json!({"type": "string", "pattern": self.quantity.pattern()})
    }
}

/// A value that is a list of numbers, or a word for all of them.
pub(super) trait NumberListValue: Clone + 'static {
    /// The type of a number.
    type Item: Integer;

    /// The value of a list.
    fn from_list(list: Vec<Self::Item>) -> Self;
    /// The list; `None` for the word.
    fn list(&self) -> Option<&[Self::Item]>;
}

impl<T: Integer> NumberListValue for Vec<T> {
    type Item = T;

    fn from_list(list: Vec<T>) -> Self {
        list
    }

    fn list(&self) -> Option<&[T]> {
        Some(self)
    }
}

/// A list of distinct numbers, or a word.
pub(super) struct Numbers<T: NumberListValue> {
    /// The word that may stand for the list, or empty.
    pub word: &'static str,
    /// What an item is, in messages.
    pub items: &'static str,
    pub range: RangeInclusive<T::Item>,
    pub items_max: usize,
    pub example: &'static str,
}

impl<T: NumberListValue> Numbers<T> {
    fn item(&self) -> Whole<T::Item> {
        whole(self.range.clone(), self.example)
    }

    /// The numbers of a list; `None` if it is empty or too long.
    fn numbers(
        &self,
        checker: &mut Checker,
        key: &str,
        list: &[Item<'_>],
        span: Span,
    ) -> Option<T> {
        if list.is_empty() {
            let help = format!("for example: {}", self.example);
            checker.problem(span, format!("`{key}` is empty"), "nothing in it", help);
            return None;
        }
        if list.len() > self.items_max {
            let message = format!(
                "`{key}` has {} items, and may have {}",
                list.len(),
                self.items_max
            );
            let help = format!("keep at most {}", self.items_max);
            checker.problem(span, message, "too many", help);
            return None;
        }
        let subject = format!("a {} in `{key}`", self.items);
        let mut numbers = Vec::with_capacity(list.len());
        let mut seen: BTreeMap<i64, Span> = BTreeMap::new();
        for item in list {
            let Some(number) = self.item().check(checker, &subject, item) else {
                continue;
            };
            let value = number.try_into().unwrap_or_default();
            if let Some(first) = seen.get(&value).cloned() {
                let message = format!("{} {value} is in `{key}` twice", self.items);
                let first = Some(checker.place(first));
                checker.clash(item.span(), first, message, "remove one of them");
                continue;
            }
            seen.insert(value, item.span());
            numbers.push(number);
        }
        Some(T::from_list(numbers))
    }
}

impl<T: NumberListValue> Rule for Numbers<T> {
    type Value = T;

    fn read<'a>(&self, reader: &mut Reader<'a>, key: &str, item: &'a Item<'a>) -> Option<T> {
        let checker = &mut *reader.checker;
        let mut must = format!("a list of {}s", self.items);
        let mut help = format!("for example: {}", self.example);
        if self.word.is_empty() {
            let (list, span) = checker.value::<&[Item<'_>]>(item, key, &must, &help)?;
            return self.numbers(checker, key, list, span);
        }
        must = format!("{:?} or {must}", self.word);
        help = format!("{help}, or {key} = {:?}", self.word);
        match checker.value(item, key, &must, &help)? {
            (WordOrList::List(list), span) => self.numbers(checker, key, list, span),
            (WordOrList::Word(word), _) if word == self.word => None,
            (WordOrList::Word(_), span) => {
                let message = format!("`{key}` must be {must}");
                checker.problem(span, message, "neither", help);
                None
            }
        }
    }

    fn write(&self, value: &T) -> Value {
        let list = value.list();
        list.map_or_else(|| json!(self.word), |list| json!(list))
    }

    fn schema(&self, _: &mut Definitions) -> Value {
        let (low, high) = self.item().bounds();
        let mut items = json!({"type": "integer", "minimum": low, "maximum": high});
        let mut list = json!({"type": "array", "minItems": 1, "uniqueItems": true});
        // Distinct numbers of a small range cannot be too many.
        if (self.items_max as i64) <= high - low {
            list["maxItems"] = json!(self.items_max);
        }
        if self.word.is_empty() {
            items["format"] = json!("int64");
        }
        list["items"] = items;
        match self.word {
            "" => list,
            word => json!({"oneOf": [{"const": word}, list]}),
        }
    }
}

/// A value that is a table in a file.
pub(super) trait Nested: Clone + 'static {
    /// The table's keys.
    type Keys: Keys;
    /// What it must be, in messages.
    const MUST: &'static str;
    /// How to write it.
    const HELP: &'static str;

    /// The value of these keys, which are right each by itself; or `None` after recording what is wrong.
    fn check(reader: &mut Reader<'_>, keys: Self::Keys) -> Option<Self>;
    /// The keys of the value; `None` if there is no table.
    fn to_keys(&self) -> Option<Self::Keys>;
}

/// A table.
pub(super) struct TableOf<T>(PhantomData<T>);

/// A table with the keys of `T`.
pub(super) fn table<T: Nested>() -> TableOf<T> {
    TableOf(PhantomData)
}

impl<T: Nested> TableOf<T> {
    /// Reads an item of a list of such tables, which messages call `subject`: "a rule".
    pub(super) fn read_item<'a>(
        &self,
        reader: &mut Reader<'a>,
        subject: &str,
        item: &'a Item<'a>,
    ) -> Option<T> {
        let checker = &mut *reader.checker;
        let (table, place) = checker.typed::<&DeTable<'_>>(item, subject, T::MUST, T::HELP)?;
        let mut inner = Reader::of_item(checker, table, place, subject);
        let keys = T::Keys::read(&mut inner);
        T::check(&mut inner, keys)
    }
}

impl<T: Nested> Rule for TableOf<T> {
    type Value = T;

    fn read<'a>(&self, reader: &mut Reader<'a>, key: &str, item: &'a Item<'a>) -> Option<T> {
        let checker = &mut *reader.checker;
        let (table, place) = checker.value::<&DeTable<'_>>(item, key, T::MUST, T::HELP)?;
        let mut inner = Reader::of_item(checker, table, place, &format!("`{key}`"));
        inner.kind = reader.kind;
        let keys = T::Keys::read(&mut inner);
        T::check(&mut inner, keys)
    }

    fn write(&self, value: &T) -> Value {
        value.to_keys().map_or(Value::Null, |keys| {
            let mut all = Vec::new();
            keys.write(&mut all);
            let given = all.into_iter().filter(|(_, value)| !value.is_null());
            let given = given.map(|(key, value)| (key.to_owned(), value));
            Value::Object(given.collect())
        })
    }

    fn schema(&self, definitions: &mut Definitions) -> Value {
        table_reference::<T::Keys>(definitions)
    }

    fn keys(&self) -> Option<ListKeys> {
        Some(T::Keys::keys)
    }
}

/// A section, such as `[workers]`.
pub(super) struct Section<T>(PhantomData<T>);

/// A section with the keys of `T`.
pub(super) fn section<T: Keys>() -> Section<T> {
    Section(PhantomData)
}

impl<T: Keys> Slot for Section<T> {
    type Value = T;

    fn list(self, name: Name, all: &mut Vec<Key>) {
        all.push(Key {
            table: Some((format!("in [{}]", name.key), T::keys)),
            ..Key::new(name, table_reference::<T>)
        });
    }

    fn read(&self, name: Name, reader: &mut Reader<'_>) -> T {
        let key = name.key;
        let help = format!("write [{key}] on a line of its own, and the section's keys below it");
        let checker = &mut *reader.checker;
        let item = reader.table.get(key);
        let given = item.and_then(|item| checker.value(item, key, "a table", &help));
        match given {
            Some((table, place)) => T::read(&mut Reader::new(checker, table, place)),
            None => self.default(PortType::Vhost),
        }
    }

    fn write(&self, _: Name, value: &T, all: &mut Vec<Written>) {
        value.write(all);
    }

    fn default(&self, kind: PortType) -> T {
        T::defaults(kind)
    }
}

/// Keys that are in the table itself, though a struct of their own has them.
pub(super) struct Flat<T>(PhantomData<T>);

/// The keys of `T`, in this table.
pub(super) fn flat<T: Keys>() -> Flat<T> {
    Flat(PhantomData)
}

impl<T: Keys> Slot for Flat<T> {
    type Value = T;

    fn list(self, _: Name, all: &mut Vec<Key>) {
        all.extend(T::keys());
    }

    fn read(&self, _: Name, reader: &mut Reader<'_>) -> T {
        T::read(reader)
    }

    fn write(&self, _: Name, value: &T, all: &mut Vec<Written>) {
        value.write(all);
    }

    fn default(&self, kind: PortType) -> T {
        T::defaults(kind)
    }
}
