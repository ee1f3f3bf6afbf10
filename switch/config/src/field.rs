//! Values of a file, with their places.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Byte range in the file of a value, a key or a table's header.
pub(super) type Span = Range<usize>;

/// A value of the file, of any type.
pub(super) type Item<'a> = Spanned<DeValue<'a>>;

/// A type of values in TOML.
pub(super) trait FromToml<'a>: Sized {
    /// The value, or `None` if it is of another type.
    fn from_toml(value: &'a DeValue<'a>) -> Option<Self>;
}

impl FromToml<'_> for i64 {
    fn from_toml(value: &DeValue<'_>) -> Option<Self> {
        let number = value.as_integer()?;
        i64::from_str_radix(number.as_str(), number.radix()).ok()
    }
}

impl FromToml<'_> for bool {
    fn from_toml(value: &DeValue<'_>) -> Option<Self> {
        value.as_bool()
    }
}

impl<'a> FromToml<'a> for &'a str {
    fn from_toml(value: &'a DeValue<'a>) -> Option<Self> {
        value.as_str()
    }
}

impl<'a> FromToml<'a> for &'a DeTable<'a> {
    fn from_toml(value: &'a DeValue<'a>) -> Option<Self> {
        value.as_table()
    }
}

impl<'a> FromToml<'a> for &'a [Item<'a>] {
    fn from_toml(value: &'a DeValue<'a>) -> Option<Self> {
        value.as_array().map(|list| &**list)
    }
}

/// A word that stands for a whole list ("auto", "all"), or the list itself.
pub(super) enum WordOrList<'a> {
    Word(&'a str),
    List(&'a [Item<'a>]),
}

impl<'a> FromToml<'a> for WordOrList<'a> {
    fn from_toml(value: &'a DeValue<'a>) -> Option<Self> {
        let word = value.as_str().map(Self::Word);
        word.or_else(|| FromToml::from_toml(value).map(Self::List))
    }
}
