//! `CONFIGURATION.md`: every key of the configuration, from its JSON schema.

use std::fmt::Write as _;

use crosspoint_config::plan::{How, When, how, when};
use crosspoint_config::schema_json;
use serde_json::{Map, Value};

use super::{cell, check_generated};

/// A table of the file; its keys are listed below it.
struct Table<'a> {
    schema: &'a Value,
    root: &'a Value,
    /// The table's path in the file, with dots; empty at the top level.
    path: String,
}

#[test]
fn every_key_is_documented() {
    let root: Value = serde_json::from_str(&schema_json()).expect("JSON");
    let mut text = String::new();
    Table {
        schema: &root,
        root: &root,
        path: String::new(),
    }
    .describe("At the top", &root["description"], &mut text);
    check_generated("CONFIGURATION.md", &text);
}

impl Table<'_> {
    fn describe(&self, heading: &str, about: &Value, text: &mut String) {
        let _ = write!(
            text,
            "\n## {heading}\n\n{}\n\n| key | type | default | bounds | meaning | a change |\n|---|---|---|---|---|---|\n",
            about.as_str().unwrap_or_default()
        );
        let keys = self.schema["properties"].as_object().expect("a table");
        for (key, schema) in keys.iter().filter(|(_, one)| self.table_in(one).is_none()) {
            let _ = writeln!(text, "{}", self.row(key, schema));
        }
        for (key, schema) in keys {
            let Some(table) = self.table_in(schema) else {
                continue;
            };
            let is_list = schema["type"] == "array";
            let (title, path) = match (self.path.split_once('.'), is_list) {
                _ if self.path.is_empty() && is_list => (format!("[[{key}]]"), key.clone()),
                _ if self.path.is_empty() => (format!("[{key}]"), key.clone()),
                (None, _) => (
                    match is_section(&self.path) {
                        true => format!("{key} of [{}]", self.path),
                        false => format!("{key} of [[{}]]", self.path),
                    },
                    format!("{}.{key}", self.path),
                ),
                (Some((port, within)), _) => (
                    format!("{within}.{key} of [[{port}]]"),
                    format!("{}.{key}", self.path),
                ),
            };
            let table = Table {
                schema: table,
                root: self.root,
                path,
            };
            table.describe(&title, &schema["description"], text);
        }
    }

    /// The definition that a schema refers to.
    fn resolve<'a>(&'a self, schema: &'a Value) -> &'a Value {
        let name = schema["$ref"].as_str();
        let path = name.and_then(|name| name.strip_prefix('#'));
        path.and_then(|path| self.root.pointer(path))
            .unwrap_or(schema)
    }

    /// The table that a key holds, or that each element of its list is.
    fn table_in<'a>(&'a self, schema: &'a Value) -> Option<&'a Value> {
        let inner = match schema["type"] == "array" {
            true => &schema["items"],
            false => schema,
        };
        let table = self.resolve(inner);
        table["properties"].is_object().then_some(table)
    }

    fn row(&self, key: &str, schema: &Value) -> String {
        let resolved = self.resolve(schema);
        let default = match &schema["default"] {
            Value::Null if self.is_required(key) => "required".to_owned(),
            Value::Null => String::new(),
            value => format!("`{value}`"),
        };
        let mut meaning = schema["description"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        for (word, help) in words(resolved) {
            let _ = write!(meaning, "<br>`{word}`: {help}");
        }
        format!(
            "| `{key}` | {} | {} | {} | {} | {} |",
            kind(resolved),
            cell(&default),
            bounds(resolved),
            cell(&meaning),
            self.change(key)
        )
    }

    /// Always required, or for one type of port.
    fn is_required(&self, key: &str) -> bool {
        let lists = [
            &self.schema["required"],
            &self.schema["then"]["required"],
            &self.schema["else"]["required"],
        ];
        let mut all = lists.iter().filter_map(|list| list.as_array()).flatten();
        all.any(|one| one == key)
    }

    /// How a reload applies a new value.
    fn change(&self, key: &str) -> &'static str {
        let setting = match &*self.path {
            "" => key.to_owned(),
            path => format!("{path}.{key}"),
        };
        // A key of a table inside a port's table is applied as that table is.
        let outer = self.path.split('.').nth(1).unwrap_or_default();
        match (&*self.path, key, when(&setting), how(key)) {
            ("port", "name", ..) => "another port",
            ("port", _, _, Some(How::InPlace)) => "in place",
            ("port", ..) => "reopens",
            ("", "version", ..) => "",
            (_, _, Some(When::AtOnce), _) => "at once",
            // A table in a section is applied as a whole.
            (path, _, None, _) if when(path) == Some(When::AtOnce) => "at once",
            // A table of a list, and a table in it, is applied as the list is.
            (path, _, None, _) if when(list_of(path)) == Some(When::AtOnce) => "at once",
            (_, _, Some(When::NeedsRestart), _) => "restart",
            _ => match how(outer) {
                Some(How::InPlace) => "in place",
                Some(How::Reopen) => "reopens",
                None => "restart",
            },
        }
    }
}

/// Whether it is a section: the name before its keys' dots.
fn is_section(path: &str) -> bool {
    when(path).is_none() && !matches!(path, "port")
}

/// The list at the beginning of a path.
fn list_of(path: &str) -> &str {
    path.split('.').next().unwrap_or_default()
}

fn kind(schema: &Value) -> String {
    match (&schema["type"], &schema["oneOf"]) {
        (Value::String(kind), _) if kind == "array" => "list".to_owned(),
        (Value::String(kind), _) => kind.clone(),
        (_, Value::Array(choices)) if choices.iter().any(|one| one["type"] == "array") => {
            "list or string".to_owned()
        }
        _ => "string".to_owned(),
    }
}

fn bounds(schema: &Value) -> String {
    let choices = schema["oneOf"].as_array().into_iter().flatten();
    let list = choices.chain([schema]).find(|one| one["type"] == "array");
    let Some(list) = list else {
        return range(schema, "minimum", "maximum", "")
            .or_else(|| range(schema, "minLength", "maxLength", " bytes"))
            .unwrap_or_default();
    };
    let count = range(list, "minItems", "maxItems", " of them");
    let each = range(&list["items"], "minimum", "maximum", " each");
    Vec::from_iter(count.into_iter().chain(each)).join(", ")
}

fn range(schema: &Value, min: &str, max: &str, unit: &str) -> Option<String> {
    match (schema[min].as_u64(), schema[max].as_u64()) {
        (Some(min), Some(max)) => Some(format!("{min} to {max}{unit}")),
        (None, Some(max)) => Some(format!("at most {max}{unit}")),
        (Some(min), None) => Some(format!("at least {min}{unit}")),
        (None, None) => None,
    }
}

/// The allowed values and their meanings.
fn words(schema: &Value) -> Vec<(&str, &str)> {
    let choices = schema["oneOf"].as_array().into_iter().flatten();
    let told = |choice: &'_ Map<String, Value>| choice.contains_key("description");
    let objects = choices.filter_map(Value::as_object).filter(|one| told(one));
    objects
        .filter_map(|one| Some((one.get("const")?.as_str()?, one["description"].as_str()?)))
        .collect()
}
