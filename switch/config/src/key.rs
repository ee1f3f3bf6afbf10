//! What a key of the configuration is: its name, meaning, rule, default, and how a change of it takes effect.
//!
//! [`keys!`] makes a table of such keys, and a struct with a field for each. Everything that can be said of a key
//! without knowing it is made from there: reading and writing it, the JSON schema, the references, and the plan.

use serde_json::{Map, Value, json};
use toml::de::DeTable;

use super::check::Checker;
use super::field::{Item, Span};
use super::types::PortType;
use super::words::Words as _;

/// A key, and its value in JSON as it would be in TOML. Null means that the key is absent; no key has null as a value.
pub type Written = (&'static str, Value);

/// How a new value takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// The port's traffic goes on.
    InPlace,
    /// The port is closed and opened again.
    Reopens,
    /// At the reload.
    AtOnce,
    /// At the next start of the switch.
    Restart,
    /// As that of the table or section that the key is in, or of the keys that are in it.
    Whole,
    /// It cannot change.
    Never,
}

/// A key's name and description.
#[derive(Clone, Copy, Debug)]
pub(super) struct Name {
    /// The key in its table.
    pub key: &'static str,
    /// With its section, as in "workers.cores"; in a port as `key`.
    pub path: &'static str,
    /// The lines of its description.
    pub about: &'static [&'static str],
    pub change: Change,
}

/// Lists the keys of a table.
pub(super) type ListKeys = fn() -> Vec<Key>;
/// Makes a key's schema; what that refers to is added to the definitions.
type MakeSchema = dyn Fn(&mut Definitions) -> Value;

/// A key of a table.
pub(super) struct Key {
    pub name: Name,
    pub required: bool,
    /// The only type of port that has it.
    pub only: Option<PortType>,
    /// The default, if it is always the same.
    pub default: Option<Value>,
    /// For a key that is a table: where its keys are, and these.
    pub table: Option<(String, ListKeys)>,
    /// Its JSON schema, without the description and the default.
    pub schema: Box<MakeSchema>,
}

impl Key {
    /// A key without a default, of all ports.
    pub(super) fn new(name: Name, schema: impl Fn(&mut Definitions) -> Value + 'static) -> Self {
        Self {
            name,
            required: false,
            only: None,
            default: None,
            table: None,
            schema: Box::new(schema),
        }
    }
}

/// A table with a fixed set of keys; [`keys!`] implements it.
pub(super) trait Keys: Sized + 'static {
    /// Its name in the schema.
    const NAME: &'static str;
    /// The lines of its description.
    const ABOUT: &'static [&'static str];

    /// The keys, in the order in which they are written.
    fn keys() -> Vec<Key>;
    /// The values in a file. Wrong ones are recorded; they, and missing ones, are replaced by their defaults.
    fn read(reader: &mut Reader<'_>) -> Self;
    /// All keys with their values, including defaults.
    fn write(&self, all: &mut Vec<Written>);
    /// The defaults for a port of this type. Required keys have a value that stands for none, such as an empty text.
    fn defaults(kind: PortType) -> Self;
    /// What the schema says in addition.
    fn extension() -> Value;
}

/// Reads a table of a file.
pub(super) struct Reader<'a> {
    pub checker: &'a mut Checker,
    pub table: &'a DeTable<'a>,
    /// The place of the table, or of its header.
    pub place: Span,
    /// The type of the port that the table is or belongs to, once it is known.
    pub kind: Option<PortType>,
    /// Whether every required key so far has a value.
    pub is_whole: bool,
    /// What the table is, in messages.
    what: String,
}

impl<'a> Reader<'a> {
    pub(super) fn new(checker: &'a mut Checker, table: &'a DeTable<'a>, place: Span) -> Self {
        Self {
            checker,
            table,
            place,
            kind: None,
            is_whole: true,
            what: "this port".to_owned(),
        }
    }

    /// Reads a table of the list `list`.
    pub(super) fn of_list(
        checker: &'a mut Checker,
        table: &'a DeTable<'a>,
        place: Span,
        list: &str,
    ) -> Self {
        Self::of_item(checker, table, place, &format!("this [[{list}]]"))
    }

    /// Reads a table that messages call `what`.
    pub(super) fn of_item(
        checker: &'a mut Checker,
        table: &'a DeTable<'a>,
        place: Span,
        what: &str,
    ) -> Self {
        Self {
            what: what.to_owned(),
            ..Self::new(checker, table, place)
        }
    }

    /// The value of a key.
    pub(super) fn item(&self, key: &str) -> Option<&'a Item<'a>> {
        self.table.get(key)
    }

    /// The place of a key's value, right or wrong.
    pub(super) fn span(&self, key: &str) -> Option<Span> {
        self.item(key).map(Item::span)
    }

    /// Whether the table has none of these keys, nor one that was misspelt and reported.
    pub(super) fn is_without(&self, keys: &[&str]) -> bool {
        let is_given = |key: &&str| self.item(key).is_some();
        !keys.iter().any(is_given) && !self.checker.has_problem_in(&self.place)
    }

    /// Records a problem of the table as a whole.
    pub(super) fn problem(&mut self, message: String, label: &str, help: &str) {
        let place = self.place.clone();
        self.checker.problem(place, message, label, help);
    }

    /// Records a required key that is missing.
    pub(super) fn missing(&mut self, key: &str, example: &str) {
        self.is_whole = false;
        // Without an example, the table as a whole is checked for it.
        if !example.is_empty() {
            let message = format!("{} has no `{key}`", self.what);
            let help = format!("add a line such as: {example}");
            self.problem(message, "in this table", &help);
        }
    }

    /// Records a key that is given, and belongs to another type of port.
    pub(super) fn foreign(&mut self, key: &str) {
        let (Some(span), Some(kind)) = (self.span(key), self.kind) else {
            return;
        };
        let (this, owner) = (kind.word(), kind.other().word());
        let message = format!("`{key}` belongs to ports of type {owner:?}");
        let help =
            format!("this port is of type {this:?}: remove `{key}`, or write type = {owner:?}");
        self.checker
            .problem(span, message, "not for this type of port", help);
    }
}

/// What a key's value must be.
pub(super) trait Rule: Sized + 'static {
    /// Its type.
    type Value: Clone;

    /// The value, or `None` after recording why it is none. `None` alone means the default.
    fn read<'a>(
        &self,
        reader: &mut Reader<'a>,
        key: &str,
        item: &'a Item<'a>,
    ) -> Option<Self::Value>;
    /// The value in JSON as it would be in TOML, or null for no value.
    fn write(&self, value: &Self::Value) -> Value;
    /// Its JSON schema.
    fn schema(&self, definitions: &mut Definitions) -> Value;

    /// A default as the schema shows it.
    fn shown(&self, value: &Self::Value) -> Value {
        self.write(value)
    }
    /// For a table inside a port: its keys.
    fn keys(&self) -> Option<ListKeys> {
        None
    }

    /// A key that must be given; `example` is a line that does it, or empty if the table's own check reports it.
    fn required(self, example: &'static str) -> Entry<Self>
    where
        Self::Value: Default,
    {
        Entry::new(self, Otherwise::Required(example, Self::Value::default()))
    }
    /// A key with a default that the schema shows.
    fn or(self, default: Self::Value) -> Entry<Self> {
        Entry::new(self, Otherwise::Default(default))
    }
    /// A key whose default is explained in its description.
    fn or_else(self, default: Self::Value) -> Entry<Self> {
        Entry::new(self, Otherwise::Told(default))
    }
    /// A key with different defaults for guests and uplinks, which its description has to explain.
    fn by_kind(self, guest: Self::Value, uplink: Self::Value) -> Entry<Self> {
        Entry::new(self, Otherwise::ByKind(guest, uplink))
    }
    /// A key that may be absent.
    fn optional(self) -> Entry<Optional<Self>> {
        Optional(self).or_else(None)
    }
}

/// A rule for a value that may be absent.
pub(super) struct Optional<R>(R);

impl<R: Rule> Rule for Optional<R> {
    type Value = Option<R::Value>;

    fn read<'a>(
        &self,
        reader: &mut Reader<'a>,
        key: &str,
        item: &'a Item<'a>,
    ) -> Option<Self::Value> {
        self.0.read(reader, key, item).map(Some)
    }

    fn write(&self, value: &Self::Value) -> Value {
        value
            .as_ref()
            .map_or(Value::Null, |value| self.0.write(value))
    }

    fn schema(&self, definitions: &mut Definitions) -> Value {
        self.0.schema(definitions)
    }

    fn keys(&self) -> Option<ListKeys> {
        self.0.keys()
    }
}

/// What holds for a key that is not given.
enum Otherwise<T> {
    Required(&'static str, T),
    Default(T),
    Told(T),
    ByKind(T, T),
}

/// What a key does: [`Entry`] is one with a value, others stand for several keys.
pub(super) trait Slot: Sized {
    /// The type of its field.
    type Value;

    /// Adds the keys to those of its table.
    fn list(self, name: Name, all: &mut Vec<Key>);
    fn read(&self, name: Name, reader: &mut Reader<'_>) -> Self::Value;
    fn write(&self, name: Name, value: &Self::Value, all: &mut Vec<Written>);
    fn default(&self, kind: PortType) -> Self::Value;
}

/// A key's rule and default.
pub(super) struct Entry<R: Rule> {
    rule: R,
    otherwise: Otherwise<R::Value>,
    only: Option<PortType>,
}

impl<R: Rule> Entry<R> {
    fn new(rule: R, otherwise: Otherwise<R::Value>) -> Self {
        Self {
            rule,
            otherwise,
            only: None,
        }
    }

    /// Of only one type of port.
    pub(super) fn only(self, kind: PortType) -> Self {
        Self {
            only: Some(kind),
            ..self
        }
    }
}

impl<R: Rule> Slot for Entry<R> {
    type Value = R::Value;

    fn list(self, name: Name, all: &mut Vec<Key>) {
        let default = match &self.otherwise {
            Otherwise::Default(value) => Some(self.rule.shown(value)),
            _ => None,
        };
        all.push(Key {
            name,
            required: matches!(self.otherwise, Otherwise::Required(..)),
            only: self.only,
            default,
            table: self
                .rule
                .keys()
                .map(|keys| (format!("in {}", name.key), keys)),
            schema: Box::new(move |definitions| self.rule.schema(definitions)),
        });
    }

    fn read(&self, name: Name, reader: &mut Reader<'_>) -> R::Value {
        let kind = reader.kind.unwrap_or_default();
        let is_foreign = |only: PortType| reader.kind.is_some_and(|kind| kind != only);
        let Some(item) = reader.item(name.key) else {
            if let Otherwise::Required(example, _) = self.otherwise {
                reader.missing(name.key, example);
            }
            return self.default(kind);
        };
        if self.only.is_some_and(is_foreign) {
            reader.foreign(name.key);
            return self.default(kind);
        }
        let value = self.rule.read(reader, name.key, item);
        if value.is_none() && matches!(self.otherwise, Otherwise::Required(..)) {
            reader.is_whole = false;
        }
        value.unwrap_or_else(|| self.default(kind))
    }

    fn write(&self, name: Name, value: &R::Value, all: &mut Vec<Written>) {
        all.push((name.path, self.rule.write(value)));
    }

    fn default(&self, kind: PortType) -> R::Value {
        match (&self.otherwise, kind) {
            (Otherwise::Required(_, value) | Otherwise::Default(value), _) => value.clone(),
            (Otherwise::Told(value), _) => value.clone(),
            (Otherwise::ByKind(guest, _), PortType::Vhost) => guest.clone(),
            (Otherwise::ByKind(_, uplink), PortType::Xdp) => uplink.clone(),
        }
    }
}

/// The map of a JSON object.
pub(super) fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// A description as JSON: its lines, each without the blank after the slashes.
pub(super) fn description(about: &[&str]) -> Value {
    let lines: Vec<&str> = about.iter().map(|line| line.trim()).collect();
    json!(lines.join("\n"))
}

/// The schema of a table. What it refers to is added to the definitions.
pub(super) fn table_schema<T: Keys>(definitions: &mut Definitions) -> Map<String, Value> {
    let keys = T::keys();
    let mut properties = Map::new();
    for key in &keys {
        let mut schema = object((key.schema)(definitions));
        schema.insert("description".to_owned(), description(key.name.about));
        if let Some(default) = &key.default {
            schema.insert("default".to_owned(), default.clone());
        }
        properties.insert(key.name.key.to_owned(), schema.into());
    }
    let required = |kind: Option<PortType>| -> Vec<&str> {
        let all = keys.iter().filter(|key| key.required && key.only == kind);
        all.map(|key| key.name.key).collect()
    };
    let mut schema = object(json!({
        "description": description(T::ABOUT),
        "type": "object",
        "properties": properties,
        "additionalProperties": false,
    }));
    if !required(None).is_empty() {
        schema.insert("required".to_owned(), json!(required(None)));
    }
    if keys.iter().any(|key| key.only.is_some()) {
        let of = |kind: PortType| {
            let others = keys.iter().filter(|key| key.only == Some(kind.other()));
            let none: Map<_, _> = others
                .map(|key| (key.name.key.to_owned(), json!(false)))
                .collect();
            json!({"required": required(Some(kind)), "properties": none})
        };
        schema.insert(
            "if".to_owned(),
            json!({"properties": {"type": {"const": "vhost"}}}),
        );
        schema.insert("then".to_owned(), of(PortType::Vhost));
        schema.insert("else".to_owned(), of(PortType::Xdp));
    }
    schema.extend(object(T::extension()));
    schema
}

/// A reference to the schema of a table, which is added to the definitions.
pub(super) fn table_reference<T: Keys>(definitions: &mut Definitions) -> Value {
    let schema = table_schema::<T>(definitions);
    definitions.add(T::NAME, schema.into())
}

/// The definitions of a schema, by their names.
#[derive(Default)]
pub(super) struct Definitions(pub(super) Map<String, Value>);

impl Definitions {
    /// Adds one. Returns a reference to it.
    pub(super) fn add(&mut self, name: &str, schema: Value) -> Value {
        self.0.insert(name.to_owned(), schema);
        json!({"$ref": format!("#/$defs/{name}")})
    }
}

/// Makes a table of keys.
///
/// ```text
/// keys! {
///     /// What the table is, for the references and the schema.
///     pub struct Switch = "Switch", in "switch." {
///         /// What the key means.
///         fdb_moves_max: u8 = whole(0..=100, "fdb_moves_max = 5, or 0 for any number").or(5), AtOnce;
///     }
/// }
/// ```
///
/// The struct has a public field for each key; `impl Name = ...` uses an existing struct. A key with another name than
/// its field: `mode as "socket_mode"`. `extend (json!({...}))` after the name adds to the schema.
macro_rules! keys {
    (
        $(#[doc = $about:literal])*
        $vis:vis struct $Table:ident $(derive($($derive:ident),+))? = $name:literal
            $(, in $section:literal)? $(, extend ($extension:expr))? {
            $(
                $(#[doc = $doc:literal])*
                $field:ident $(as $alias:literal)? : $type:ty = $slot:expr, $change:ident;
            )*
        }
    ) => {
        $(#[doc = $about])*
        #[derive(Clone, Debug, PartialEq, Eq $($(, $derive)+)?)]
        $vis struct $Table {
            $( $(#[doc = $doc])* pub $field: $type, )*
        }

        impl Default for $Table {
            fn default() -> Self {
                $crate::key::Keys::defaults($crate::types::PortType::Vhost)
            }
        }

        keys! { @impl $Table $name [$($section)?] [$($extension)?] [$($about),*] {
            $( $(#[doc = $doc])* $field $(as $alias)? : $type = $slot, $change; )*
        } }
    };
    (
        $(#[doc = $about:literal])*
        impl $Table:ident = $name:literal $(, in $section:literal)? $(, extend ($extension:expr))? {
            $($fields:tt)*
        }
    ) => {
        keys! { @impl $Table $name [$($section)?] [$($extension)?] [$($about),*] { $($fields)* } }
    };
    (@impl $Table:ident $name:literal $section:tt [$($extension:expr)?] [$($about:literal),*] {
        $(
            $(#[doc = $doc:literal])*
            $field:ident $(as $alias:literal)? : $type:ty = $slot:expr, $change:ident;
        )*
    }) => {
        impl $crate::key::Keys for $Table {
            const NAME: &'static str = $name;
            const ABOUT: &'static [&'static str] = &[$($about),*];

            fn keys() -> Vec<$crate::key::Key> {
                let mut all = Vec::new();
                $(
                    let name = keys!(@name $section $field [$($alias)?] [$($doc),*] $change);
                    keys!(@slot $type, $slot).list(name, &mut all);
                )*
                all
            }

            fn read(reader: &mut $crate::key::Reader<'_>) -> Self {
                $(
                    let name = keys!(@name $section $field [$($alias)?] [$($doc),*] $change);
                    let $field = keys!(@slot $type, $slot).read(name, reader);
                )*
                Self { $($field),* }
            }

            fn write(&self, all: &mut Vec<$crate::key::Written>) {
                $(
                    let name = keys!(@name $section $field [$($alias)?] [$($doc),*] $change);
                    keys!(@slot $type, $slot).write(name, &self.$field, all);
                )*
            }

            fn defaults(kind: $crate::types::PortType) -> Self {
                Self { $( $field: keys!(@slot $type, $slot).default(kind), )* }
            }

            fn extension() -> serde_json::Value {
                let extensions: &[fn() -> serde_json::Value] = &[$(|| $extension)?];
                extensions.first().map_or(serde_json::Value::Null, |extension| extension())
            }
        }
    };
    // Binds a slot to the type of its field, so that it need not be written twice.
    (@slot $type:ty, $slot:expr) => {{
        fn of_type<S: $crate::key::Slot<Value = $type>>(slot: S) -> S {
            slot
        }
        of_type($slot)
    }};
    (@name [$($section:literal)?] $field:ident [] [$($doc:literal),*] $change:ident) => {
        $crate::key::Name {
            key: stringify!($field),
            path: concat!($($section,)? stringify!($field)),
            about: &[$($doc),*],
            change: $crate::key::Change::$change,
        }
    };
    (@name [] $field:ident [$alias:literal] [$($doc:literal),*] $change:ident) => {
        $crate::key::Name {
            key: $alias,
            path: $alias,
            about: &[$($doc),*],
            change: $crate::key::Change::$change,
        }
    };
}
pub(super) use keys;
