//! Edits of a configuration for the control socket: one port added, removed or changed.

use serde_json::{Map, Value};

use super::error::{ConfigError, Problem};
use super::load::{DropIn, Main};
use super::{Config, Port, PortKind};

/// A port's keys and values, in JSON as they would be in TOML. Null means the key is absent.
pub type PortTable = Map<String, Value>;

const RUNNING: &str = "the running ports";

impl Config {
    /// Adds a port after all others; `table` is like a `[[port]]` table.
    ///
    /// # Errors
    ///
    /// As [`Config::load`], for mistakes in the port itself and conflicts with the rest. Places refer to the table as
    /// it would be written in a file, and to existing ports.
    pub fn with_port(&self, table: &PortTable) -> Result<Config, ConfigError> {
        self.with("the new port", table)
    }

    /// Changes some keys of a port, in its place. A null key is reset to its default; a table, such as `vlan`, is
    /// replaced as a whole.
    ///
    /// # Errors
    ///
    /// As [`with_port`](Self::with_port); and if there is no such port, or `set` changes the name.
    pub fn with_port_set(&self, name: &str, set: &PortTable) -> Result<Config, ConfigError> {
        let at = self.port_index(name)?;
        if set.get("name").is_some_and(|new| new != name) {
            let message = format!("the name of port {name:?} cannot be changed");
            let help = "remove the port, and add one of the other name";
            return Err(ConfigError::one(Problem::unplaced(name, message, help)));
        }
        let mut table = self.ports[at].table();
        table.extend(set.clone());
        let mut others = self.clone();
        others.ports.remove(at);
        let mut config = others.with("the changed port", &table)?;
        config.ports[at..].rotate_right(1);
        Ok(config)
    }

    /// Removes a port.
    ///
    /// # Errors
    ///
    /// If there is no such port, or another port names it in its `direct`.
    pub fn without_port(&self, name: &str) -> Result<Config, ConfigError> {
        let at = self.port_index(name)?;
        let names_it = |port: &&Port| match &port.kind {
            PortKind::Vhost(guest) => guest.direct.as_ref().is_some_and(|d| d.uplink == name),
            PortKind::Xdp(_) => false,
        };
        if let Some(guest) = self.ports.iter().find(names_it) {
            let message = format!("port {:?} has a queue of {name:?} for itself", guest.name);
            let help = "remove that port, or its `direct`, first";
            return Err(ConfigError::one(Problem::unplaced(name, message, help)));
        }
        let mut config = self.clone();
        config.ports.remove(at);
        Ok(config)
    }

    fn port_index(&self, name: &str) -> Result<usize, ConfigError> {
        let mut ports = self.ports.iter();
        ports.position(|port| port.name == name).ok_or_else(|| {
            let message = format!("no port is named {name:?}");
            let help = "`crosspoint show ports` lists the names";
            ConfigError::one(Problem::unplaced(RUNNING, message, help))
        })
    }

    fn with(&self, shown: &str, table: &PortTable) -> Result<Config, ConfigError> {
        let text = text_of(table)
            .map_err(|(message, help)| ConfigError::one(Problem::unplaced(shown, message, help)))?;
        let running: String = self.ports.iter().map(Port::to_toml).collect();
        let new = DropIn::new(shown, Ok(text), 1, 1);
        let running = DropIn::new(RUNNING, Ok(running), 0, 0);
        Main::again(self, &running)
            .finish(vec![new], None)
            .map_err(|(error, _)| error)
    }
}

/// The table as in a file, or the error and help.
fn text_of(table: &PortTable) -> Result<String, (String, &'static str)> {
    let mut text = "[[port]]\n".to_owned();
    for (key, value) in table.iter().filter(|(_, value)| !value.is_null()) {
        if key.is_empty() || !key.bytes().all(is_bare) {
            let message = format!("unknown key {key:?}");
            return Err((message, "configs/reference.toml has every key"));
        }
        let value = toml::Value::try_from(value).map_err(|_| {
            let message = format!("the value of `{key}` cannot be written in TOML");
            let help = "it may have no null in it, and no number beyond 64 bits with a sign";
            (message, help)
        })?;
        text.push_str(&format!("{key} = {value}\n"));
    }
    Ok(text)
}

/// Whether this byte may be in a bare key.
fn is_bare(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'
}

/// Parses a command line's `KEY=VALUE` words into a table. A value is in TOML, or otherwise text: `mac_limit=10`,
/// `socket=/run/web-1.sock`, `vlan.access=5`, `queues=[0, 1]`. An empty value is null: the key's default.
///
/// # Errors
///
/// The word and what is wrong with it.
pub fn parse_assignments(words: &[String]) -> Result<PortTable, String> {
    let mut table = PortTable::new();
    for word in words {
        let (key, value) = word
            .split_once('=')
            .ok_or_else(|| format!("{word:?} is not KEY=VALUE, such as mac_limit=10"))?;
        let value = parse_value(value);
        insert(&mut table, key, value).map_err(|why| format!("{word:?}: {why}"))?;
    }
    Ok(table)
}

fn parse_value(text: &str) -> Value {
    if text.is_empty() {
        return Value::Null;
    }
    let is_plain = |value: &toml::Value| match value {
        // A word such as inf is not meant as a number, nor 52:54:00 as a time.
        toml::Value::Datetime(_) => false,
        toml::Value::Float(float) => float.is_finite(),
        _ => true,
    };
    let value = text.parse::<toml::Value>().ok().filter(is_plain);
    let value = value.and_then(|value| serde_json::to_value(value).ok());
    value.unwrap_or_else(|| text.into())
}

/// Inserts at a key such as `vlan.access`.
fn insert(table: &mut PortTable, key: &str, value: Value) -> Result<(), String> {
    let (first, rest) = match key.split_once('.') {
        Some((first, rest)) => (first, Some(rest)),
        None => (key, None),
    };
    if first.is_empty() || !first.bytes().all(is_bare) {
        return Err(format!("{key:?} is not a key"));
    }
    let Some(rest) = rest else {
        return match table.insert(first.to_owned(), value) {
            None => Ok(()),
            Some(_) => Err(format!("`{first}` is given twice")),
        };
    };
    let inner = table
        .entry(first)
        .or_insert_with(|| Value::Object(Map::new()));
    match inner.as_object_mut() {
        Some(inner) => insert(inner, rest, value),
        None => Err(format!("`{first}` is given twice")),
    }
}

/// Parses the single `[[port]]` table of a file such as those of `ports_dir`.
///
/// # Errors
///
/// What is wrong with the text. The port's values are checked only by the switch that receives them.
pub fn parse_port_file(text: &str) -> Result<PortTable, String> {
    let file: toml::Table = text.parse().map_err(|e: toml::de::Error| e.to_string())?;
    let others = file.keys().find(|key| *key != "port" && *key != "version");
    if let Some(key) = others {
        return Err(format!("there is `{key}` beside [[port]]"));
    }
    let ports = file.get("port").and_then(toml::Value::as_array);
    match ports.map(Vec::as_slice) {
        Some([port]) => match serde_json::to_value(port) {
            Ok(Value::Object(table)) => Ok(table),
            _ => Err("`port` is not a table".to_owned()),
        },
        _ => Err("there is not one [[port]] table in it".to_owned()),
    }
}
