//! Edits of a configuration for the control socket: one port added, removed or changed.

use serde_json::{Map, Value};

use super::error::{ConfigError, Problem};
use super::key::{Definitions, Keys as _};
use super::load::{DropIn, Main};
use super::suggest::nearest;
use super::{Config, Port, PortKind};
use super::{syntax, vlan};

/// A port's keys and values, in JSON as they would be in TOML. Null means the key is absent.
pub type PortTable = Map<String, Value>;

const RUNNING: &str = "the running ports";
/// The most names of ports that an answer lists.
const NAMES_MAX: usize = 20;

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

    /// Replaces a port, in its place, by the one of `table`, which has the same name.
    ///
    /// # Errors
    ///
    /// As [`with_port`](Self::with_port); and if there is no such port.
    pub fn with_port_replaced(&self, name: &str, table: &PortTable) -> Result<Config, ConfigError> {
        let at = self.port_index(name)?;
        let mut others = self.clone();
        others.ports.remove(at);
        let mut config = others.with("the new port", table)?;
        config.ports[at..].rotate_right(1);
        Ok(config)
    }

    /// Changes some keys of a port, in its place. A null key is reset to its default; a table, such as `vlan`, is
    /// replaced as a whole. A dotted key, such as `vlan.native`, changes that key of the table only. A key that ends in
    /// `+` or `-`, such as `vlan.trunk+`, adds items to a list or removes them.
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
        change_all(&mut table, set).map_err(|(message, help)| {
            ConfigError::one(Problem::unplaced("the changed port", message, help))
        })?;
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
            let names: Vec<&str> = self.ports.iter().map(|port| port.name.as_str()).collect();
            let help = match (nearest(name, &names), names.len()) {
                (Some(meant), _) => format!("did you mean {meant:?}?"),
                (None, 0) => "there are no ports".to_owned(),
                (None, 1..=NAMES_MAX) => format!("the ports are {}", names.join(", ")),
                (None, _) => "`crosspoint show ports` lists the names".to_owned(),
            };
            ConfigError::one(Problem::unplaced(RUNNING, message, help))
        })
    }

    fn with(&self, shown: &str, table: &PortTable) -> Result<Config, ConfigError> {
        let text = text_of(table)
            .map_err(|(message, help)| ConfigError::one(Problem::unplaced(shown, message, help)))?;
        self.with_text(shown, text)
    }

    /// Adds what a text has, as a file of `ports_dir` would.
    pub(super) fn with_text(&self, shown: &str, text: String) -> Result<Config, ConfigError> {
        let ports = self.ports.iter().map(Port::to_toml);
        let running: String = ports.chain(self.lists_toml()).collect();
        let new = DropIn::new(shown, Ok(text), 1, 1);
        let running = DropIn::new(RUNNING, Ok(running), 0, 0);
        Main::again(self, &running)
            .finish(vec![new], None)
            .map_err(|(error, _)| error)
    }
}

/// An error, and how to fix it.
type Refusal = (String, &'static str);

/// Keys of the longest path to a value in a port: `limit.out.rate`.
const PATH_KEYS_MAX: usize = 3;

/// How a key is changed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    Set,
    Add,
    Remove,
}

/// The key without the sign of the change at its end.
fn how(key: &str) -> (&str, How) {
    match (key.strip_suffix('+'), key.strip_suffix('-')) {
        (Some(key), _) => (key, How::Add),
        (_, Some(key)) => (key, How::Remove),
        _ => (key, How::Set),
    }
}

/// Changes keys of a port's table. Which keys exclude each other is checked when all of them are changed.
fn change_all(table: &mut PortTable, set: &PortTable) -> Result<(), Refusal> {
    for (key, value) in set {
        let (path, how) = how(key);
        let value = match list_at(path) {
            Some(items) if !value.is_null() => as_list(path, &items, value)?,
            _ => value.clone(),
        };
        change_at(table, path, how, &value)?;
    }
    let vlan = table.get("vlan").and_then(Value::as_object);
    let has = |key: &str| vlan.is_some_and(|vlan| vlan.contains_key(key));
    let is_changed = |path: &str| set.keys().any(|key| how(key).0 == path);
    if has("access") && has("trunk") && (is_changed("vlan.access") || is_changed("vlan.trunk")) {
        let message = "`access` and `trunk` of `vlan` exclude each other".to_owned();
        let help =
            "replace the whole table, for example: 'vlan={access=100}' or 'vlan={trunk=[100,200]}'";
        return Err((message, help));
    }
    Ok(())
}

/// The schema of the items, if the key at this path takes a list.
fn list_at(path: &str) -> Option<Value> {
    let mut keys = Port::keys();
    let mut names = path.split('.').peekable();
    while let Some(name) = names.next() {
        let key = keys.into_iter().find(|key| key.name.key == name)?;
        if names.peek().is_none() {
            let schema = (key.schema)(&mut Definitions::default());
            let one_of = ["anyOf", "oneOf"].map(|word| schema.get(word).and_then(Value::as_array));
            let mut all = one_of.into_iter().flatten().flatten().chain([&schema]);
            return all.find_map(|schema| schema.get("items")).cloned();
        }
        keys = key.table?.1();
    }
    None
}

/// A single item as a list, and on a command line also items with commas between them. A word that stands for a list, such as
/// "all", is left as it is.
fn as_list(path: &str, items: &Value, value: &Value) -> Result<Value, Refusal> {
    let key = path.rsplit('.').next().unwrap_or(path);
    match value {
        Value::String(_) | Value::Number(_) if key == "trunk" => match vlan::ids(value) {
            Some(ids) => Ok(ids.into()),
            None => {
                let message = format!("{value} is no VLAN ID, and no range of them");
                let help =
                    "for example: vlan.trunk=100,200-299, with the smaller one of a range first";
                Err((message, help))
            }
        },
        Value::Number(_) => Ok(vec![value.clone()].into()),
        Value::String(text) if items.get("type") == Some(&"integer".into()) => {
            let numbers: Option<Vec<u64>> = text.split(',').map(|part| part.parse().ok()).collect();
            Ok(numbers.map_or_else(|| value.clone(), Value::from))
        }
        Value::String(text) => Ok(text.split(',').map(str::trim).collect::<Vec<_>>().into()),
        _ => Ok(value.clone()),
    }
}

/// Changes the key at `path`. Tables on the way are made if they are missing, and removed if they become empty. The path has
/// at most [`PATH_KEYS_MAX`] keys.
fn change_at(table: &mut PortTable, path: &str, how: How, value: &Value) -> Result<(), Refusal> {
    let Some((outer, inner)) = path.split_once('.') else {
        return change_in(table, path, how, value);
    };
    let place = table.entry(outer).or_insert(Value::Null);
    if place.is_null() {
        *place = Value::Object(Map::new());
    }
    let Some(keys) = place.as_object_mut() else {
        let help = "configs/reference.toml has every key";
        return Err((
            format!("`{outer}` is no table, so there is no `{path}`"),
            help,
        ));
    };
    change_at(keys, inner, how, value)?;
    // A table that has become empty counts as absent, also in another table.
    keys.retain(|_, value| !value.is_null());
    if keys.is_empty() {
        *place = Value::Null;
    }
    Ok(())
}

fn change_in(keys: &mut PortTable, key: &str, how: How, value: &Value) -> Result<(), Refusal> {
    if how == How::Set {
        match value {
            // As in a file, a missing key has its default.
            Value::Null => keys.remove(key),
            value => keys.insert(key.to_owned(), value.clone()),
        };
        return Ok(());
    }
    let now = keys.get(key).cloned().unwrap_or(Value::Null);
    let (Some(mut items), Some(others)) = (items(key, &now), items(key, value)) else {
        let message = format!("`{key}` is no list, or the value has no items for it");
        return Err((
            message,
            "for example: vlan.trunk+=300, or vlan.trunk-=300-310",
        ));
    };
    match how {
        How::Remove => items.retain(|item| !others.contains(item)),
        _ => items.extend(
            others
                .into_iter()
                .filter(|item| !items.contains(item))
                .collect::<Vec<_>>(),
        ),
    }
    keys.insert(key.to_owned(), Value::Array(items));
    Ok(())
}

/// The items of a list, or a single item; VLANs one by one. `None` if it is neither.
fn items(key: &str, value: &Value) -> Option<Vec<Value>> {
    match value {
        Value::Null => Some(Vec::new()),
        value if key == "trunk" => Some(vlan::ids(value)?.into_iter().map(Value::from).collect()),
        Value::Array(items) => Some(items.clone()),
        Value::String(_) => Some(vec![value.clone()]),
        _ => None,
    }
}

/// The table as in a file, or the error and help.
fn text_of(table: &PortTable) -> Result<String, Refusal> {
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
        let value = match list_at(key) {
            Some(items) if !value.is_null() => as_list(key, &items, &value)
                .map_err(|(why, help)| format!("{word:?}: {why}\nhelp: {help}"))?,
            _ => value,
        };
        insert(&mut table, key, value).map_err(|why| format!("{word:?}: {why}"))?;
    }
    Ok(table)
}

/// Parses a command line's `KEY=VALUE` words into changes of a port, for [`Config::with_port_set`]: `vlan.native=10` changes
/// one key of a table, `vlan.trunk+=300` and `vlan.trunk-=300` add to a list and remove from it.
///
/// # Errors
///
/// The word and what is wrong with it.
pub fn parse_changes(words: &[String]) -> Result<PortTable, String> {
    let mut set = PortTable::new();
    for word in words {
        let (key, value) = word
            .split_once('=')
            .ok_or_else(|| format!("{word:?} is not KEY=VALUE, such as mac_limit=10"))?;
        let (path, how) = how(key);
        let is_name = |name: &str| !name.is_empty() && name.bytes().all(is_bare);
        if path.split('.').count() > PATH_KEYS_MAX || !path.split('.').all(is_name) {
            return Err(format!("{word:?}: {path:?} is not a key"));
        }
        if how != How::Set && value.is_empty() {
            return Err(format!("{word:?}: there is no item after `=`"));
        }
        if set.insert(key.to_owned(), parse_value(value)).is_some() {
            return Err(format!("{word:?}: `{key}` is given twice"));
        }
    }
    Ok(set)
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

/// Parses the single `[[port]]` table of a file such as those of `ports_dir`. `name` is the file's name in messages.
///
/// # Errors
///
/// What is wrong with the text, with the file's name, and how to fix it. The port's values are checked only by the switch that
/// receives them.
pub fn parse_port_file(name: &str, text: &str) -> Result<PortTable, String> {
    let file: toml::Table = text
        .parse()
        .map_err(|error: toml::de::Error| syntax::in_two_lines(name, text, &error))?;
    let refusal = |why: String| {
        let help = "the file may have one [[port]] table, and `version`; `crosspoint show config` prints such tables";
        Err(format!("{name}: {why}\nhelp: {help}"))
    };
    let others = file.keys().find(|key| *key != "port" && *key != "version");
    if let Some(key) = others {
        return refusal(format!("there is `{key}` beside [[port]]"));
    }
    let ports = file.get("port").and_then(toml::Value::as_array);
    match ports.map(Vec::as_slice) {
        Some([port]) => match serde_json::to_value(port) {
            Ok(Value::Object(table)) => Ok(table),
            _ => refusal("`port` is not a table".to_owned()),
        },
        _ => refusal("there is not one [[port]] table in it".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn changed(words: &[&str]) -> Result<Value, String> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let mut table = PortTable::new();
        table.insert(
            "vlan".to_owned(),
            json!({"trunk": [100, "200-210"], "native": 10}),
        );
        table.insert("forward_control".to_owned(), json!(["stp"]));
        table.insert("mac_limit".to_owned(), json!(4));
        change_all(&mut table, &parse_changes(&words)?).map_err(|(message, _)| message)?;
        Ok(table.into())
    }

    #[test]
    fn a_dotted_key_changes_that_key_only() {
        let with_vlan =
            |vlan: Value| json!({"vlan": vlan, "forward_control": ["stp"], "mac_limit": 4});
        let ids = |list: Value, native: u16| with_vlan(json!({"trunk": list, "native": native}));
        assert_eq!(changed(&["vlan.trunk=[7]"]), Ok(ids(json!([7]), 10)));
        assert_eq!(changed(&["vlan.trunk=7-9"]), Ok(ids(json!([7, 8, 9]), 10)));
        assert_eq!(
            changed(&["vlan.native=7"]),
            Ok(ids(json!([100, "200-210"]), 7))
        );
        assert_eq!(
            changed(&["vlan.native="]),
            Ok(with_vlan(json!({"trunk": [100, "200-210"]})))
        );
        assert_eq!(
            changed(&["vlan.native=", "vlan.trunk="]),
            Ok(with_vlan(Value::Null))
        );
        assert_eq!(
            changed(&["vlan={access=5}"]),
            Ok(with_vlan(json!({"access": 5})))
        );
        assert!(changed(&["vlan.access=5"]).is_err_and(|why| why.contains("exclude")));
        assert_eq!(
            changed(&["vlan.trunk=", "vlan.native=", "vlan.access=5"]),
            Ok(with_vlan(json!({"access": 5})))
        );
        let limit = |words: &[&str]| changed(words).map(|table| table["limit"].clone());
        assert_eq!(
            limit(&["limit.out.rate=2Gbit/s", "limit.in.packets=5k/s"]),
            Ok(json!({"out": {"rate": "2Gbit/s"}, "in": {"packets": "5k/s"}}))
        );
        assert_eq!(
            limit(&["limit.in.packets=5k/s", "limit.out.rate="]),
            Ok(json!({"in": {"packets": "5k/s"}}))
        );
        assert_eq!(limit(&["limit.out.rate="]), Ok(Value::Null));
        assert!(limit(&["limit.out.rate.low=5"]).is_err_and(|why| why.contains("not a key")));
        assert!(changed(&["mac_limit.low=5"]).is_err_and(|why| why.contains("no table")));
    }

    #[test]
    fn a_list_takes_one_value_or_several_with_commas() {
        for (word, path, list) in [
            ("vlan.trunk=300", "/vlan/trunk", json!([300])),
            ("vlan.trunk=5,7-8", "/vlan/trunk", json!([5, 7, 8])),
            ("queues=0", "/queues", json!([0])),
            ("queues=0,2", "/queues", json!([0, 2])),
            ("queues=all", "/queues", json!("all")),
            (
                "forward_control=stp,lldp",
                "/forward_control",
                json!(["stp", "lldp"]),
            ),
            (
                "addresses.mac=52:54:00:00:00:01",
                "/addresses/mac",
                json!(["52:54:00:00:00:01"]),
            ),
            (
                "addresses.ip=10.0.0.1,fd00::/64",
                "/addresses/ip",
                json!(["10.0.0.1", "fd00::/64"]),
            ),
            ("socket=/run/a,b", "/socket", json!("/run/a,b")),
        ] {
            let set = changed(&[word]).expect(word);
            assert_eq!(set.pointer(path), Some(&list), "port set {word}");
            let added = parse_assignments(&[word.to_owned()]).expect(word);
            assert_eq!(
                Value::from(added).pointer(path),
                Some(&list),
                "port add {word}"
            );
        }
        for word in ["vlan.trunk=10-5", "vlan.trunk+=10-5"] {
            assert!(
                changed(&[word]).is_err_and(|why| why.contains("range")),
                "{word}"
            );
        }
    }

    #[test]
    fn items_are_added_to_a_list_and_removed_and_twice_is_no_mistake() {
        let trunk = |words: &[&str]| {
            let table = changed(words).expect("it can be changed");
            vlan::ids(&table["vlan"]["trunk"]).expect("VLANs")
        };
        let before = [vec![100], (200..=210).collect()].concat();
        let with_300 = [before.clone(), vec![300]].concat();
        assert_eq!(trunk(&["vlan.trunk+=300"]), with_300);
        assert_eq!(trunk(&["vlan.trunk+=[300, 100]"]), with_300);
        assert_eq!(
            trunk(&["vlan.trunk+=300", "vlan.trunk-=100"]),
            with_300[1..]
        );
        assert_eq!(trunk(&["vlan.trunk-=201-210,7"]), [100, 200]);
        assert_eq!(trunk(&["vlan.trunk+=100"]), before);
        let table = changed(&["forward_control+=lacp"]).expect("a list");
        assert_eq!(table["forward_control"], json!(["stp", "lacp"]));
        for words in [
            &["mac_limit+=1"][..],
            &["vlan.trunk+=x"],
            &["vlan.trunk+="],
            &["a.b.c.d=1"],
            &["mac_limit=1", "mac_limit=2"],
        ] {
            assert!(changed(words).is_err(), "{words:?}");
        }
    }
}
