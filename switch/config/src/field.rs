//! Serde building blocks that continue after a mistake.
//!
//! Serde stops at the first value of a wrong type. Here a wrong value becomes a *value* ([`Field::Wrong`]) with its
//! place, so that one pass over a file finds every mistake.

use std::{borrow::Cow, fmt, marker::PhantomData, ops::Range};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::{
    Deserialize, Deserializer, Error as _, IntoDeserializer, MapAccess, SeqAccess, Visitor,
    value::{Error as ValueError, MapAccessDeserializer},
};
use toml::Spanned;

/// Byte range in the file of a value, a key or a table's header.
pub(super) type Span = Range<usize>;

/// A key's value in the file.
#[derive(Clone, Debug, Default)]
pub(super) enum Field<T> {
    /// The key does not occur.
    #[default]
    Missing,
    /// The value is a `T`.
    Given(T, Span),
    /// The value is something else.
    Wrong(Span),
}

impl<T> Field<T> {
    /// The place of the value, right or wrong.
    pub(super) fn span(&self) -> Option<Span> {
        match self {
            Self::Missing => None,
            Self::Given(_, span) | Self::Wrong(span) => Some(span.clone()),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Field<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Attempt<T>>::deserialize(deserializer)?;
        let span = spanned.span();
        Ok(match spanned.into_inner() {
            Attempt(Some(value)) => Self::Given(value, span),
            Attempt(None) => Self::Wrong(span),
        })
    }
}

/// Turns a type error, which would end the pass, into `None`.
struct Attempt<T>(Option<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Attempt<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(T::deserialize(deserializer).ok()))
    }
}

/// A struct that can only be written as a table. (Serde's derive also reads a struct from a list by position: `vlan =
/// [100]` would silently mean `vlan = { access = 100 }`.)
#[derive(Clone, Debug, Default)]
pub(super) struct Table<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Table<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TableVisitor<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for TableVisitor<T> {
            type Value = Table<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Table)
            }
        }

        deserializer.deserialize_map(TableVisitor(PhantomData))
    }
}

/// An enum that can only be written as a string. (Serde also reads a unit variant from `{ busy = {} }`.)
#[derive(Clone, Debug)]
pub(super) struct Word<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Word<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let word = String::deserialize(deserializer)?;
        let word = IntoDeserializer::<ValueError>::into_deserializer(word);
        T::deserialize(word).map(Self).map_err(D::Error::custom)
    }
}

/// A word that stands for a whole list ("auto", "all"), or the list itself.
#[derive(Clone, Debug)]
pub(super) enum WordOrList {
    Word(String),
    List(Vec<Field<i64>>),
}

impl<'de> Deserialize<'de> for WordOrList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WordOrListVisitor;

        impl<'de> Visitor<'de> for WordOrListVisitor {
            type Value = WordOrList;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of numbers")
            }

            fn visit_str<E>(self, word: &str) -> Result<Self::Value, E> {
                Ok(WordOrList::Word(word.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = list.next_element()? {
                    items.push(item);
                }
                Ok(WordOrList::List(items))
            }
        }

        deserializer.deserialize_any(WordOrListVisitor)
    }
}

/// Gives a wrapper the schema of its content.
macro_rules! transparent_schema {
    ($($wrapper:ident),*) => {$(
        impl<T: JsonSchema> JsonSchema for $wrapper<T> {
            fn inline_schema() -> bool {
                T::inline_schema()
            }
            fn schema_name() -> Cow<'static, str> {
                T::schema_name()
            }
            fn schema_id() -> Cow<'static, str> {
                T::schema_id()
            }
            fn json_schema(generator: &mut SchemaGenerator) -> Schema {
                T::json_schema(generator)
            }
        }
    )*};
}

transparent_schema!(Field, Table, Word);
