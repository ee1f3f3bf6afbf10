//! Enums that are written as words.

use serde_json::{Value, json};

use super::key::{Definitions, description};

/// An enum's word.
pub(super) struct WordOf<T: 'static> {
    pub value: T,
    pub word: &'static str,
    /// The lines of its description.
    pub about: &'static [&'static str],
}

/// An enum whose values are words; [`words!`] implements it.
pub(super) trait Words: Copy + PartialEq + 'static {
    /// Its name in the schema.
    const NAME: &'static str;
    /// The lines of its description.
    const ABOUT: &'static [&'static str];
    /// Its words.
    const ALL: &'static [WordOf<Self>];

    /// The value as it is written.
    fn word(self) -> &'static str {
        let one = Self::ALL.iter().find(|one| one.value == self);
        one.map_or("", |one| one.word)
    }

    /// The value that is written like this.
    fn from_word(word: &str) -> Option<Self> {
        let one = Self::ALL.iter().find(|one| one.word == word);
        one.map(|one| one.value)
    }

    /// Its schema, which is added to the definitions.
    fn schema(definitions: &mut Definitions) -> Value {
        let choice = |one: &WordOf<Self>| json!({"description": description(one.about), "type": "string", "const": one.word});
        let choices: Vec<Value> = Self::ALL.iter().map(choice).collect();
        let schema = json!({"description": description(Self::ABOUT), "oneOf": choices});
        definitions.add(Self::NAME, schema)
    }
}

/// Makes enums of words. The comments are their descriptions in the schema; the default of the enum follows its name.
macro_rules! words {
    ($(
        $(#[doc = $about:literal])*
        $vis:vis enum $Name:ident, or $default:ident {
            $( $(#[doc = $doc:literal])* $Value:ident = $word:literal, )*
        }
    )*) => {$(
        $(#[doc = $about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
        $vis enum $Name {
            $( $(#[doc = $doc])* #[serde(rename = $word)] $Value, )*
        }

        impl Default for $Name {
            fn default() -> Self {
                Self::$default
            }
        }

        impl $crate::words::Words for $Name {
            const NAME: &'static str = stringify!($Name);
            const ABOUT: &'static [&'static str] = &[$($about),*];
            const ALL: &'static [$crate::words::WordOf<Self>] = &[$(
                $crate::words::WordOf { value: Self::$Value, word: $word, about: &[$($doc),*] },
            )*];
        }
    )*};
}
pub(super) use words;
