//! Serializes a checked configuration: keys with their values, text, and the schema of both.

use std::fmt::Write as _;

use schemars::Schema;
use serde_json::{Map, Value, json};

use super::key::{Definitions, Keys as _, Written, object, table_schema};
use super::lists;
use super::table::Top;
use super::words::Words as _;
use super::{Config, Port};

impl Port {
    /// All keys for ports of its type, including defaults, in the order of the format's description.
    pub fn written(&self) -> Vec<Written> {
        let mut keys = Vec::new();
        self.write(&mut keys);
        keys
    }

    /// The port's table: every key with a value.
    pub fn table(&self) -> Map<String, Value> {
        let given = self
            .written()
            .into_iter()
            .filter(|(_, value)| !value.is_null());
        given.map(|(key, value)| (key.to_owned(), value)).collect()
    }

    /// The value of `type`.
    pub fn kind_name(&self) -> &'static str {
        self.kind.port_type().word()
    }

    /// The port as a `[[port]]` table in TOML, with every key.
    pub fn to_toml(&self) -> String {
        to_toml(&self.written())
    }

    /// Like [`to_toml`](Self::to_toml), without keys that have their defaults: an older version can read it, unless a new
    /// key was set.
    pub fn to_toml_short(&self) -> String {
        let defaults = Port::defaults(self.kind.port_type()).written();
        let mut keys = self.written();
        keys.retain(|key| matches!(key.0, "name" | "type") || !defaults.contains(key));
        to_toml(&keys)
    }
}

fn to_toml(keys: &[Written]) -> String {
    let mut text = "[[port]]\n".to_owned();
    for (key, value) in keys {
        // Null keys are absent.
        if let Ok(value) = toml::Value::try_from(value) {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{key} = {value}");
        }
    }
    text
}

impl Config {
    /// The configuration as a file, with every key. `note` may return a remark for a port, which becomes a comment.
    pub fn to_toml(&self, note: impl Fn(&Port) -> Option<String>) -> String {
        let mut text = "version = 1\n".to_owned();
        let mut section = String::new();
        for (key, value) in self.written_settings() {
            let Ok(value) = toml::Value::try_from(&value) else {
                continue;
            };
            let (of, name) = key.split_once('.').unwrap_or(("", key));
            if section != of {
                of.clone_into(&mut section);
                // Writing to a string does not fail.
                let _ = writeln!(text, "\n[{of}]");
            }
            let _ = writeln!(text, "{name} = {value}");
        }
        for port in &self.ports {
            let note = note(port).map_or(String::new(), |note| format!("# {note}\n"));
            let _ = write!(text, "\n{note}{}", port.to_toml());
        }
        for table in self.lists_toml() {
            let _ = write!(text, "\n{table}");
        }
        text
    }

    /// The tables of all lists other than `[[port]]`, in TOML.
    pub(super) fn lists_toml(&self) -> impl Iterator<Item = String> {
        let bridges = self.bridges.iter().map(lists::to_toml);
        let fdb = self.fdb.iter().map(lists::to_toml);
        let mirrors = self.mirrors.iter().map(lists::to_toml);
        let groups = self.groups.iter().map(lists::to_toml);
        let sets = self.sets.iter().map(lists::to_toml);
        bridges.chain(fdb).chain(mirrors).chain(groups).chain(sets)
    }

    /// All keys outside of ports, including defaults: at the top level, or in a section, as in "workers.cores".
    pub fn written_settings(&self) -> Vec<Written> {
        // Without `..`, so that no key is forgotten.
        let Config {
            workers,
            switch,
            metrics,
            sflow,
            ipfix,
            multicast,
            connections,
            control,
            log,
            sandbox,
            ports_dir,
            watch_ports,
            ports: _,
            bridges: _,
            fdb: _,
            mirrors: _,
            groups: _,
            sets: _,
            set_files: _,
            core_spans: _,
        } = self;
        let ports_dir = ports_dir.as_ref().map(|folder| folder.to_string_lossy());
        let mut keys = vec![
            ("ports_dir", json!(ports_dir)),
            ("watch_ports", json!(watch_ports)),
        ];
        workers.write(&mut keys);
        switch.write(&mut keys);
        metrics.write(&mut keys);
        sflow.write(&mut keys);
        ipfix.write(&mut keys);
        multicast.write(&mut keys);
        connections.write(&mut keys);
        control.write(&mut keys);
        log.write(&mut keys);
        sandbox.write(&mut keys);
        keys
    }
}

/// The JSON schema of the configuration file, for editors: `configs/schema.json`.
pub fn schema_json() -> String {
    let mut definitions = Definitions::default();
    let mut schema = object(json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Config",
    }));
    schema.extend(table_schema::<Top>(&mut definitions));
    schema.insert("$defs".to_owned(), definitions.0.into());
    // A schema is a tree of maps with string keys, which serde_json cannot fail to print.
    let mut text = serde_json::to_string_pretty(&Schema::from(schema)).unwrap_or_default();
    text.push('\n');
    text
}
