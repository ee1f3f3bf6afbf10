//! Plans for changes of configuration.

use std::collections::{BTreeMap, BTreeSet};

use crosspoint::plan;
use crosspoint_config as config;
use crosspoint_config::plan::{How, Plan, how, when};
use crosspoint_config::{Config, Group, Mirror, Port, Set, StaticEntry};
use crosspoint_daemon::reconcile::guests;
use crosspoint_model::plan::PlanAnswer;
use crosspoint_model::status::{DeviceStatus, PortStatus, VringStatus};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use crate::generated::config;

fn by_name(ports: &[Port]) -> BTreeMap<&str, &Port> {
    ports.iter().map(|port| (&*port.name, port)).collect()
}

/// The configuration as a file.
fn to_toml(config: &Config) -> String {
    let mut sections: BTreeMap<&str, String> = BTreeMap::new();
    for (key, value) in config.written_settings() {
        let Ok(value) = toml::Value::try_from(&value) else {
            continue;
        };
        let (section, key) = key.split_once('.').unwrap_or(("", key));
        let lines = sections.entry(section).or_default();
        lines.push_str(&format!("{key} = {value}\n"));
    }
    let mut text = "version = 1\n".to_owned();
    for (section, lines) in sections {
        let header = if section.is_empty() {
            String::new()
        } else {
            format!("[{section}]\n")
        };
        text.push_str(&format!("{header}{lines}"));
    }
    text.extend(config.ports.iter().map(Port::to_toml));
    text.extend(config.fdb.iter().map(StaticEntry::to_toml));
    text.extend(config.mirrors.iter().map(Mirror::to_toml));
    text.extend(config.groups.iter().map(Group::to_toml));
    text.extend(config.sets.iter().map(Set::to_toml));
    text
}

/// The tables of all lists, by list and name.
fn tables(config: &Config) -> BTreeMap<(&'static str, String), Map<String, Value>> {
    let table = |list: &'static str, name: String, text: String| {
        let text: toml::Table = text.parse().expect("TOML");
        let table = serde_json::to_value(&text[list][0]).expect("JSON");
        ((list, name), table.as_object().expect("a table").clone())
    };
    let fdb = config.fdb.iter();
    let fdb = fdb.map(|entry| table("fdb", entry.name(), entry.to_toml()));
    let mirrors = config.mirrors.iter();
    let mirrors = mirrors.map(|one| table("mirror", one.name.clone(), one.to_toml()));
    let groups = config.groups.iter();
    let groups = groups.map(|one| table("group", one.name.clone(), one.to_toml()));
    let sets = config.sets.iter();
    let sets = sets.map(|one| table("set", one.name.clone(), one.to_toml()));
    fdb.chain(mirrors).chain(groups).chain(sets).collect()
}

fn schema_keys(pointer: &str) -> BTreeSet<String> {
    let schema: Value = serde_json::from_str(&config::schema_json()).expect("JSON");
    let table = schema.pointer(pointer).expect("a table of the schema");
    let keys = table["properties"].as_object().expect("keys").keys();
    keys.cloned().collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read_back(config in config()) {
        let text = to_toml(&config);
        match Config::parse("written", &text) {
            Ok(read) => prop_assert_eq!(read, config),
            Err(error) => prop_assert!(false, "{}\n{}", error.render(), text),
        }
    }

    #[test]
    fn nothing_is_between_a_configuration_and_itself(config in config()) {
        let mut shuffled = config.clone();
        shuffled.ports.reverse();
        prop_assert!(Plan::between(&config, &config).is_empty());
        prop_assert!(Plan::between(&config, &shuffled).is_empty());
    }

    #[test]
    fn a_plan_carried_out_gives_what_is_wanted(running in config(), wanted in config()) {
        let plan = Plan::between(&running, &wanted);
        let mut ports = running.ports.clone();
        ports.retain(|port| !plan.remove.contains(&port.name));
        for diff in &plan.change {
            let port = ports.iter_mut().find(|port| port.name == diff.name).expect("it is not removed");
            prop_assert_eq!(&*port, &diff.before);
            *port = diff.after.clone();
        }
        ports.extend(plan.add.iter().cloned());
        prop_assert_eq!(by_name(&ports), by_name(&wanted.ports));

        let mut lists = tables(&running);
        for entry in &plan.entries {
            let key = (entry.list, entry.name.clone());
            prop_assert_eq!(lists.get(&key), entry.before.as_ref());
            lists.remove(&key);
            lists.extend(entry.after.clone().map(|table| (key, table)));
        }
        prop_assert_eq!(lists, tables(&wanted));

        let settings: BTreeMap<_, _> = plan.settings.iter().map(|one| (one.diff.key, &one.diff)).collect();
        for ((key, before), (_, after)) in running.written_settings().into_iter().zip(wanted.written_settings()) {
            let diff = settings.get(key);
            prop_assert_eq!(diff.is_some(), before != after, "{}", key);
            if let Some(diff) = diff {
                prop_assert_eq!(diff.before.clone().unwrap_or_default(), before);
                prop_assert_eq!(diff.after.clone().unwrap_or_default(), after);
            }
        }
    }

    /// An uplink that stays open keeps the same queues of its own.
    #[test]
    fn what_changes_in_place_has_the_same_queues_and_place(running in config(), wanted in config()) {
        let plan = Plan::between(&running, &wanted);
        let reopened: BTreeSet<&str> = plan.change.iter()
            .filter(|diff| diff.how == How::Reopen)
            .map(|diff| &*diff.name)
            .collect();
        let before = by_name(&running.ports);
        for (name, after) in by_name(&wanted.ports) {
            let Some(before) = before.get(name) else { continue };
            if reopened.contains(name) {
                continue;
            }
            prop_assert_eq!(&before.kind, &after.kind);
            let sorted = |config: &Config| BTreeSet::from_iter(config.direct_queues(name));
            prop_assert_eq!(sorted(&running), sorted(&wanted));
        }
    }

    /// The socket's answer is complete, and no line contains control characters.
    #[test]
    fn an_answer_is_read_back_and_shown(running in config(), wanted in config()) {
        let answer = PlanAnswer::from(&Plan::between(&running, &wanted));
        let json = serde_json::to_string(&answer).expect("JSON");
        prop_assert_eq!(&serde_json::from_str::<PlanAnswer>(&json).expect("an answer"), &answer);
        let text = plan::render(&answer);
        prop_assert!(!text.chars().any(|c| c.is_control() && c != '\n'));
        let changes = answer.add.len() + answer.remove.len() + answer.change.len() + answer.settings.len()
            + answer.entries.len();
        let lines = text.lines().filter(|line| !line.starts_with(' ')).count();
        prop_assert_eq!(lines, changes.max(1));
    }

    #[test]
    fn a_port_that_is_taken_out_and_put_back_is_the_same(config in config(), at: prop::sample::Index) {
        prop_assume!(!config.ports.is_empty());
        let port = at.get(&config.ports).clone();
        let Ok(without) = config.without_port(&port.name) else {
            prop_assert!(!config.direct_queues(&port.name).is_empty());
            return Ok(());
        };
        prop_assert_eq!(without.ports.len() + 1, config.ports.len());
        let again = match without.with_port(&port.table()) {
            Ok(again) => again,
            Err(error) => return Err(TestCaseError::fail(error.render())),
        };
        prop_assert_eq!(by_name(&again.ports), by_name(&config.ports));
        prop_assert!(again.with_port(&port.table()).is_err());
        let set = json!({"mac_limit": 7, "vlan": null});
        let set = config.with_port_set(&port.name, set.as_object().expect("a table"));
        let mut wanted = config;
        let changed = wanted.ports.iter_mut().find(|one| one.name == port.name).expect("it is there");
        (changed.mac_limit, changed.vlan) = (7, config::Vlan::Unaware);
        prop_assert_eq!(set.map_err(|error| error.render()), Ok(wanted));
    }
}

#[test]
fn every_key_of_a_port_is_told_and_somebody_has_said_what_changing_it_takes() {
    let vhost = "version = 1\n[[port]]\nname = \"a\"\ntype = \"vhost\"\nsocket = \"/a\"\n";
    let xdp = "[[port]]\nname = \"b\"\ntype = \"xdp\"\ninterface = \"b\"\n";
    let config = Config::parse("test", &[vhost, xdp].concat()).expect("it is right");
    let written = config.ports.iter().flat_map(Port::written);
    let keys: BTreeSet<String> = written.map(|(key, _)| key.to_owned()).collect();
    assert_eq!(keys, schema_keys("/$defs/Port"));
    for key in keys.iter().filter(|key| *key != "name") {
        assert!(
            how(key).is_some(),
            "say in how() whether `{key}` changes in place"
        );
    }
}

#[test]
fn every_setting_is_told_and_somebody_has_said_when_it_takes_effect() {
    let settings = Config::default().written_settings();
    let written: BTreeSet<String> = settings.iter().map(|(key, _)| (*key).to_owned()).collect();
    let mut keys = schema_keys("");
    for key in ["version", "port"] {
        keys.remove(key);
    }
    let schema: Value = serde_json::from_str(&config::schema_json()).expect("JSON");
    for section in keys.clone() {
        // A list of tables takes effect as a whole.
        if schema["properties"][&section]["items"]["$ref"].is_string() {
            assert!(when(&section).is_some(), "{section}");
            keys.remove(&section);
        }
        let Some(table) = schema["properties"][&section]["$ref"].as_str() else {
            continue;
        };
        keys.remove(&section);
        let table = table.trim_start_matches('#');
        keys.extend(
            schema_keys(table)
                .iter()
                .map(|key| format!("{section}.{key}")),
        );
    }
    assert_eq!(written, keys);
    for key in &keys {
        assert!(
            when(key).is_some(),
            "say in when() whether `{key}` needs a restart"
        );
    }
}

/// An uplink, two guests of which one owns a queue of it, and settings.
const RUNNING: &str = r#"
version = 1
[[port]]
name = "up0"
type = "xdp"
interface = "enp1s0f0"
[[port]]
name = "web-1"
type = "vhost"
socket = "/run/crosspoint/guests/web-1.sock"
[[port]]
name = "web-2"
type = "vhost"
socket = "/run/crosspoint/guests/web-2.sock"
direct = { uplink = "up0", queue = 3 }
"#;

fn between(running: &str, wanted: &str) -> Plan {
    let parse = |text| Config::parse("test", text).expect("it is right");
    Plan::between(&parse(running), &parse(wanted))
}

#[test]
fn a_plan_as_people_read_it() {
    let wanted = r#"
version = 1
workers.cores = [2, 3]
metrics.listen = "off"
[[port]]
name = "up0"
type = "xdp"
interface = "enp1s0f0"
channels = 4
[[port]]
name = "web-2"
type = "vhost"
socket = "/run/crosspoint/guests/web-2.sock"
direct = { uplink = "up0", queue = 3 }
mac_limit = 10
vlan = { access = 5 }
[[port]]
name = "web-3"
type = "vhost"
socket = "/run/crosspoint/guests/web-3.sock"
"#;
    let plan = between(RUNNING, wanted);
    let answer = PlanAnswer::from(&plan);
    assert_eq!(
        plan::render(&answer),
        "\
- port web-1
~ port up0: channels none -> 4 (reopens: its traffic stops for a moment)
~ port web-2: (reopens: its traffic stops for a moment)
    vlan none -> { access = 5 }
    mac_limit 1024 -> 10
+ port web-3 (vhost, /run/crosspoint/guests/web-3.sock)
! workers.cores: \"auto\" -> [2, 3] (needs a restart)
~ metrics.listen: \"127.0.0.1:9477\" -> \"off\"
"
    );
    let value = serde_json::to_value(&answer).expect("JSON");
    assert_eq!(value["remove"], json!(["web-1"]));
    assert_eq!(
        value["change"][0],
        json!({"name": "up0", "how": "reopen", "keys": [{"key": "channels", "before": null, "after": 4}]})
    );
    assert_eq!(value["add"][0]["keys"]["queue_pairs"], 1);
    assert_eq!(
        value["settings"][0],
        json!({"key": "workers.cores", "before": "auto", "after": [2, 3], "applied": "restart"})
    );
    assert_eq!(plan.needs_restart().count(), 1);
    assert_eq!(plan::render(&PlanAnswer::default()), "no change\n");
}

/// A running guest with these features and `vrings` vrings, whose front end has set up `pairs` queue pairs.
fn runs(name: &str, features: &[&str], pairs: u16, vrings: u16) -> PortStatus {
    let vring = |index| VringStatus {
        index,
        has_call: index < 2 * pairs,
        ..VringStatus::default()
    };
    PortStatus {
        name: name.to_owned(),
        device: Some(DeviceStatus {
            features: features.iter().map(|name| (*name).to_owned()).collect(),
            vrings: (0..vrings).map(vring).collect(),
            ..DeviceStatus::default()
        }),
        ..PortStatus::default()
    }
}

/// The plan's warnings about the guest's port when its keys change from `before` to `after`.
fn warnings(before: &str, after: &str, port: PortStatus) -> (Vec<String>, String) {
    let with = |keys: &str| {
        format!(
            "version = 1\n[[port]]\nname = \"web\"\ntype = \"vhost\"\nsocket = \"/run/web\"\n{keys}"
        )
    };
    let plan = between(&with(before), &with(after));
    let mut answer = PlanAnswer::from(&plan);
    guests::warn(&mut answer, &plan, &[port]);
    (answer.change[0].warnings.clone(), plan::render(&answer))
}

#[test]
fn a_change_that_a_running_guest_does_not_survive_is_told() {
    let modern = [
        "CSUM",
        "GUEST_CSUM",
        "GUEST_TSO4",
        "HOST_TSO4",
        "MAC",
        "MQ",
        "VERSION_1",
    ];
    let (said, text) = warnings(
        "queue_pairs = 2",
        "queue_pairs = 1",
        runs("web", &modern, 2, 4),
    );
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(
        said[0].starts_with("its front end has 2 queue pairs, and cannot reconnect with fewer")
    );
    assert!(
        said[1].starts_with("its guest has negotiated MAC, MQ, which"),
        "{said:?}"
    );
    assert!(
        text.contains("(reopens: its traffic stops)\n    ! its front end has 2"),
        "{text}"
    );
    for (before, after, port, expected) in [
        // More is offered than before.
        (
            "",
            "queue_pairs = 2\nmac = \"02:00:00:00:00:01\"",
            runs("web", &["VERSION_1"], 1, 2),
            "",
        ),
        // It uses one of two pairs; it does not miss features that it has not negotiated.
        (
            "queue_pairs = 2",
            "",
            runs("web", &["VERSION_1", "CSUM"], 1, 4),
            "",
        ),
        (
            "queue_pairs = 2",
            "offloads = { receive = false }",
            runs("web", &["CSUM"], 1, 4),
            "",
        ),
        (
            "",
            "offloads = { receive = false }",
            runs("web", &modern[..4], 1, 2),
            "GUEST_CSUM, GUEST_TSO4,",
        ),
        (
            "",
            "offloads = { transmit = false }",
            runs("web", &modern[..4], 1, 2),
            "CSUM, HOST_TSO4,",
        ),
        (
            "mac = \"02:00:00:00:00:01\"",
            "",
            runs("web", &["MAC"], 1, 2),
            "MAC,",
        ),
        // There is no front end, or nothing is reopened.
        ("queue_pairs = 2", "", runs("web", &[], 0, 4), ""),
        ("queue_pairs = 2", "", runs("other", &modern, 2, 4), ""),
        ("", "weight = 2", runs("web", &["MQ"], 1, 2), ""),
    ] {
        let (said, text) = warnings(before, after, port);
        assert_eq!(said.is_empty(), expected.is_empty(), "{said:?}");
        assert!(
            said.iter()
                .all(|said| said.contains(&format!("negotiated {expected}"))),
            "{said:?}"
        );
        assert_eq!(text.contains('!'), !expected.is_empty(), "{text}");
    }
}

#[test]
fn an_uplink_reopens_where_guests_get_other_queues_of_it() {
    let without = RUNNING.replace("direct = ", "# ");
    let plan = between(RUNNING, &without);
    let names: Vec<(&str, How)> = plan
        .change
        .iter()
        .map(|diff| (&*diff.name, diff.how))
        .collect();
    assert_eq!(names, [("up0", How::Reopen), ("web-2", How::Reopen)]);
    let direct = plan.change[0].direct.as_ref().expect("it is the reason");
    assert_eq!((&direct.before[..], &direct.after[..]), (&[3][..], &[][..]));
    let text = plan::render(&PlanAnswer::from(&plan));
    assert!(
        text.starts_with("~ port up0: direct_queues [3] -> [] (reopens: "),
        "{text}"
    );
}

#[test]
fn a_guest_with_a_queue_of_an_uplink_that_reopens_reopens_with_it() {
    let wanted = RUNNING.replace("enp1s0f0\"", "enp1s0f0\"\nchannels = 4");
    let plan = between(RUNNING, &wanted);
    let how: Vec<(&str, How, usize)> = plan
        .change
        .iter()
        .map(|diff| (&*diff.name, diff.how, diff.keys.len()))
        .collect();
    assert_eq!(how, [("up0", How::Reopen, 1), ("web-2", How::Reopen, 0)]);
    let text = plan::render(&PlanAnswer::from(&plan));
    assert!(
        text.contains("~ port web-2: its uplink changes (reopens: "),
        "{text}"
    );
}

#[test]
fn a_table_from_elsewhere_is_refused_with_its_line() {
    let config = Config::parse("test", RUNNING).expect("it is right");
    let refusal = |table: Value| {
        let error = config.with_port(table.as_object().expect("a table"));
        error.expect_err("a mistake").render()
    };
    let text = refusal(json!({"name": "a", "type": "vhost", "socket": "/a", "queue_pairs": 17}));
    assert!(
        text.contains("[the new port:") && text.contains("queue_pairs = 17"),
        "{text}"
    );
    let text = refusal(
        json!({"name": "a", "type": "vhost", "socket": "/run/crosspoint/guests/web-1.sock"}),
    );
    assert!(
        text.contains("already used") && text.contains("[the running ports:"),
        "{text}"
    );
    assert!(refusal(json!({"name": "web-1"})).contains("two ports are named"));
    assert!(refusal(json!({"na\nme": "x"})).contains("unknown key"));
    assert!(refusal(json!({"colour": 1})).contains("unknown key"));
    assert!(refusal(json!({"queues": [null]})).contains("cannot be written in TOML"));
    assert!(refusal(json!({"worker": u64::MAX})).contains("cannot be written in TOML"));
    let used = config.without_port("up0").expect_err("web-2 names it");
    assert_eq!(
        used.to_string(),
        "port \"web-2\" has a queue of \"up0\" for itself"
    );
    assert!(config.without_port("web-9").is_err());
    let rename = json!({"name": "web-9"});
    assert!(
        config
            .with_port_set("web-1", rename.as_object().expect("a table"))
            .is_err()
    );
}

#[test]
fn assignments_are_toml_or_text() {
    let parse = |words: &[&str]| {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        config::parse_assignments(&words).map(Value::Object)
    };
    assert_eq!(
        parse(&[
            "socket=/run/x.sock",
            "mac=52:54:00:12:34:56",
            "mac_limit=10",
            "vlan.trunk=[1, 2]",
            "vlan.native=3",
            "gro=true",
            "mode=copy",
            "name=\"a\"",
            "mtu=",
            "tso=inf",
            "x=a=b"
        ]),
        Ok(
            json!({"socket": "/run/x.sock", "mac": "52:54:00:12:34:56", "mac_limit": 10,
            "vlan": {"trunk": [1, 2], "native": 3}, "gro": true, "mode": "copy", "name": "a", "mtu": null,
            "tso": "inf", "x": "a=b"})
        )
    );
    assert_eq!(parse(&["x=1\ny=2"]), Ok(json!({"x": "1\ny=2"})));
    for wrong in [
        &["vlan"][..],
        &["=1"],
        &["a b=1"],
        &["a.=1"],
        &["a=1", "a=2"],
        &["a=1", "a.b=2"],
    ] {
        assert!(parse(wrong).is_err(), "{wrong:?}");
    }
}
