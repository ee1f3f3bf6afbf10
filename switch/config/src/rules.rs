//! The rules for values: how a value is read, checked, written, and described in the schema.

use std::borrow::Cow;
use std::marker::PhantomData;
use std::ops::RangeInclusive;
use std::time::Duration;

use schemars::{JsonSchema, SchemaGenerator};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use toml::de::DeTable;

use super::duration;
use super::field::Item;
use super::key::{Key, Keys, ListKeys, Name, Reader, Rule, Slot, Written, object, table_reference};
use super::quantity::Quantity;
use super::types::PortType;
use super::values::{Number, NumberList};

const DURATION_PATTERN: &str = "^[0-9]+(us|ms|s|m|h)$";

/// A type of whole numbers.
pub(super) trait Integer: Copy + Serialize + TryFrom<i64> + TryInto<i64> + 'static {}
impl<T: Copy + Serialize + TryFrom<i64> + TryInto<i64> + 'static> Integer for T {}

/// A range in the numbers of TOML.
fn wide<T: Integer>(range: &RangeInclusive<T>) -> RangeInclusive<i64> {
    let wide = |value: T| value.try_into().unwrap_or(i64::MAX);
    wide(*range.start())..=wide(*range.end())
}

/// A whole number.
pub(super) struct Whole<T> {
    range: RangeInclusive<T>,
    example: &'static str,
}

/// A whole number of this range; `example` is a line that gives the key.
pub(super) fn whole<T: Integer>(range: RangeInclusive<T>, example: &'static str) -> Whole<T> {
    Whole { range, example }
}

impl<T: Integer> Rule for Whole<T> {
    type Value = T;

    fn read<'a>(&self, reader: &mut Reader<'a>, key: &str, item: &'a Item<'a>) -> Option<T> {
        let number = Number {
            subject: &format!("`{key}`"),
            range: wide(&self.range),
            example: self.example,
        };
        let value = reader.checker.number(item.into(), &number)?;
        T::try_from(value).ok()
    }

    fn write(&self, value: &T) -> Value {
        json!(value)
    }

    fn schema(&self, _: &mut SchemaGenerator) -> Value {
        let range = wide(&self.range);
        json!({
            "type": "integer", "format": "int64", "minimum": range.start(), "maximum": range.end()
        })
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
        reader.checker.switch(item.into(), key)
    }

    fn write(&self, value: &bool) -> Value {
        json!(value)
    }

    fn schema(&self, _: &mut SchemaGenerator) -> Value {
        json!({"type": "boolean"})
    }
}

/// A word of an enum.
pub(super) struct OneOf<T>(PhantomData<T>);

/// A word of the enum `T`.
pub(super) fn word<T>() -> OneOf<T> {
    OneOf(PhantomData)
}

impl<T: Copy + Serialize + DeserializeOwned + JsonSchema + 'static> Rule for OneOf<T> {
    type Value = T;

    fn read<'a>(&self, reader: &mut Reader<'a>, key: &str, item: &'a Item<'a>) -> Option<T> {
        reader.checker.word(item.into(), key)
    }

    fn write(&self, value: &T) -> Value {
        json!(value)
    }

    fn schema(&self, generator: &mut SchemaGenerator) -> Value {
        generator.subschema_for::<T>().to_value()
    }
}

/// A duration.
pub(super) struct Time {
    range: RangeInclusive<Duration>,
    example: &'static str,
}

/// A duration of this range. The example is a value; its unit is what a bare number probably means.
pub(super) fn time(range: RangeInclusive<Duration>, example: &'static str) -> Time {
    Time { range, example }
}

impl Rule for Time {
    type Value = Duration;

    fn read<'a>(&self, reader: &mut Reader<'a>, key: &str, item: &'a Item<'a>) -> Option<Duration> {
        let range = self.range.clone();
        reader
            .checker
            .duration(item.into(), key, range, self.example)
    }

    fn write(&self, value: &Duration) -> Value {
        json!(duration::display(*value))
    }

    fn schema(&self, _: &mut SchemaGenerator) -> Value {
        json!({"type": "string", "pattern": DURATION_PATTERN})
    }

    /// In the example's unit, if it is that duration.
    fn shown(&self, value: &Duration) -> Value {
        match duration::parse(self.example) == Ok(*value) {
            true => json!(self.example),
            false => self.write(value),
        }
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
        let range = self.range.clone();
        reader
            .checker
            .quantity(item.into(), key, self.quantity, range)
    }

    fn write(&self, value: &u64) -> Value {
        json!(self.quantity.display(*value))
    }

    fn schema(&self, _: &mut SchemaGenerator) -> Value {
        json!({"type": "string", "pattern": self.quantity.pattern()})
    }
}

/// Why a text is refused.
pub(super) struct Refusal {
    /// The message, if the rule's own does not say enough.
    pub message: Option<String>,
    pub label: &'static str,
}

impl From<&'static str> for Refusal {
    fn from(label: &'static str) -> Self {
        let message = None;
        Self { message, label }
    }
}

/// A text with a meaning.
pub(super) struct Text<T> {
    /// What it must be, in messages.
    pub must: &'static str,
    pub help: Cow<'static, str>,
    pub parse: fn(&str) -> Result<T, Refusal>,
    pub write: fn(&T) -> String,
    /// Its schema, besides the type.
    pub schema: Value,
}

impl<T: Clone + 'static> Rule for Text<T> {
    type Value = T;

    fn read<'a>(&self, reader: &mut Reader<'a>, key: &str, item: &'a Item<'a>) -> Option<T> {
        let checker = &mut *reader.checker;
        let (text, span) = checker.value::<&str>(item.into(), key, self.must, &self.help)?;
        match (self.parse)(text) {
            Ok(value) => Some(value),
            Err(Refusal { message, label }) => {
                let message = message.unwrap_or_else(|| format!("`{key}` must be {}", self.must));
                checker.problem(span, message, label, &*self.help);
                None
            }
        }
    }

    fn write(&self, value: &T) -> Value {
        json!((self.write)(value))
    }

    fn schema(&self, _: &mut SchemaGenerator) -> Value {
        let mut schema = object(self.schema.clone());
        schema.insert("type".to_owned(), json!("string"));
        schema.into()
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

impl<T: NumberListValue> Rule for Numbers<T> {
    type Value = T;

    fn read<'a>(&self, reader: &mut Reader<'a>, key: &str, item: &'a Item<'a>) -> Option<T> {
        let what = NumberList {
            key,
            word: self.word,
            items: self.items,
            range: wide(&self.range),
            items_max: self.items_max,
            example: self.example,
        };
        let numbers = reader.checker.word_or_numbers(item.into(), &what)?;
        let numbers = numbers.into_iter().filter_map(|one| one.try_into().ok());
        Some(T::from_list(numbers.collect()))
    }

    fn write(&self, value: &T) -> Value {
        value
            .list()
            .map_or_else(|| json!(self.word), |list| json!(list))
    }

    fn schema(&self, _: &mut SchemaGenerator) -> Value {
        let range = wide(&self.range);
        let mut items =
            json!({"type": "integer", "minimum": range.start(), "maximum": range.end()});
        let mut list = json!({"type": "array", "minItems": 1, "uniqueItems": true});
        // Distinct numbers of a small range cannot be too many.
        if (self.items_max as i64) <= range.end() - range.start() {
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

impl<T: Nested> Rule for TableOf<T> {
    type Value = T;

    fn read<'a>(&self, reader: &mut Reader<'a>, key: &str, item: &'a Item<'a>) -> Option<T> {
        let checker = &mut *reader.checker;
        let (table, place) = checker.value::<&DeTable<'_>>(item.into(), key, T::MUST, T::HELP)?;
        let mut inner = Reader {
            kind: reader.kind,
            ..Reader::new(checker, table, place)
        };
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

    fn schema(&self, generator: &mut SchemaGenerator) -> Value {
        table_reference::<T::Keys>(generator)
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
            name,
            required: false,
            only: None,
            default: None,
            table: Some((format!("in [{}]", name.key), T::keys)),
            schema: Box::new(|generator| object(table_reference::<T>(generator))),
        });
    }

    fn read(&self, name: Name, reader: &mut Reader<'_>) -> T {
        let key = name.key;
        let help = format!("write [{key}] on a line of its own, and the section's keys below it");
        let checker = &mut *reader.checker;
        let item = reader.table.get(key).map(|item| item.into());
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
