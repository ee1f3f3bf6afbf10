//! The files in `configs/` are correct.

use std::path::{Path, PathBuf};

use crosspoint_config as config;
use crosspoint_config::{Config, PortKind, Vlan};
use serde_json::Value;

fn configs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs")
}

fn read(name: &str) -> String {
    std::fs::read_to_string(configs().join(name)).expect("a file of this repository")
}

fn load(name: &str) -> Config {
    Config::load(&configs().join(name)).unwrap_or_else(|error| panic!("{}", error.render()))
}

#[test]
fn the_schema_is_what_the_code_generates() {
    let generated = config::schema_json();
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        std::fs::write(configs().join("schema.json"), &generated).expect("configs/ can be written");
    }
    // Compared as values, not as text: the order of keys depends on how the rest of the workspace builds serde_json.
    let value = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
    assert!(
        value(&generated) == value(&read("schema.json")),
        "configs/schema.json is stale; write it with: UPDATE_SCHEMA=1 cargo nextest run -p crosspoint-config schema"
    );
}

/// The lines of the reference with "default" must equal the defaults.
#[test]
fn the_reference_names_the_defaults() {
    let text = read("reference.toml");
    let is_default = |line: &&str| line.contains("# default");
    let without: Vec<&str> = text.lines().filter(|line| !is_default(line)).collect();
    for (key, schema) in keys() {
        // A key of a table inside a port has no line of its own.
        let begins = |line: &&str| line.starts_with(&format!("{key} = "));
        let mut lines = text.lines().filter(begins).peekable();
        assert!(
            schema["default"].is_null()
                || lines.peek().is_none()
                || lines.any(|line| is_default(&line)),
            "the default of `{key}` is not in configs/reference.toml"
        );
    }
    let without = Config::parse("without defaults", &without.join("\n"))
        .unwrap_or_else(|error| panic!("{}", error.render()));
    let reference = Config::parse("without defaults", &text);
    assert_eq!(reference.ok(), Some(without.clone()));
    assert_eq!(
        Config {
            ports: Vec::new(),
            bridges: Vec::new(),
            fdb: Vec::new(),
            mirrors: Vec::new(),
            groups: Vec::new(),
            sets: Vec::new(),
            sflow: config::Sflow::default(),
            ipfix: config::Ipfix::default(),
            ports_dir: None,
            ..without
        },
        Config::default()
    );
}

/// All keys with their schemas.
fn keys() -> Vec<(String, Value)> {
    let schema: Value = serde_json::from_str(&config::schema_json()).expect("JSON");
    let tables = schema["$defs"].as_object().expect("definitions");
    let tables = tables.values().chain([&schema]);
    let keys = tables.filter_map(|table| table["properties"].as_object());
    let keys = keys.flatten().map(|(key, one)| (key.clone(), one.clone()));
    keys.collect()
}

#[test]
fn the_reference_has_every_key() {
    let reference = read("reference.toml");
    assert!(keys().len() > 60);
    for (key, _) in keys() {
        let written = [format!("{key} = "), format!("[{key}]")];
        // A key that another one excludes is in a comment.
        let instead = format!("# {key} = ");
        let set = |line: &str| match line.starts_with('#') {
            true => line.starts_with(&instead),
            false => written.iter().any(|written| line.contains(written)),
        };
        assert!(
            reference.lines().any(set),
            "`{key}` is not in configs/reference.toml"
        );
    }
}

#[test]
fn every_table_of_the_schema_refuses_unknown_keys() {
    let schema: Value = serde_json::from_str(&config::schema_json()).expect("JSON");
    let tables = schema["$defs"]
        .as_object()
        .expect("definitions")
        .values()
        .chain([&schema]);
    for table in tables.filter(|table| table["properties"].is_object()) {
        assert_eq!(
            table["additionalProperties"],
            Value::Bool(false),
            "{}",
            table["description"]
        );
    }
}

#[test]
fn the_example_of_tenants_binds_their_addresses() {
    let config = load("example-tenants.toml");
    let bound = config.ports.iter().map(|port| port.addresses.mac.len());
    assert!(bound.eq([0, 2, 1, 0]));
    assert_eq!(config.ports[3].bridge, "tenant-c");
    assert_eq!(config.ports[2].weight, 4);
}

#[test]
fn the_example_is_an_uplink_and_three_guests() {
    let config = load("example-server.toml");
    let guests = config
        .ports
        .iter()
        .filter(|port| matches!(port.kind, PortKind::Vhost(_)))
        .count();
    assert_eq!((config.ports.len(), guests), (4, 3));
    assert_eq!(
        config.ports[0].vlan,
        Vlan::Trunk {
            ids: vec![100, 200],
            native: Some(10)
        }
    );
}

#[test]
fn the_reference_has_a_folder_with_a_port() {
    let config = load("reference.toml");
    let names: Vec<&str> = config.ports.iter().map(|port| &*port.name).collect();
    assert_eq!(names, ["up0", "web-1", "db-1"]);
}

#[test]
fn every_configuration_here_is_right() {
    let entries = std::fs::read_dir(configs()).expect("a directory of this repository");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let tomls: Vec<PathBuf> = paths
        .filter(|path| path.extension().is_some_and(|end| end == "toml"))
        .collect();
    assert!(tomls.len() >= 2);
    for path in tomls {
        Config::load(&path).unwrap_or_else(|error| panic!("{}", error.render()));
    }
}
