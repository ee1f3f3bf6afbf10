//! A running switch is changed by its files and by commands, as an operator does it.

use std::collections::BTreeMap;
use std::fs;

use crosspoint_guest::{Guest, GuestOptions};
use crosspoint_model::schema;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{Host, Lab, Metrics, Switch, guest, s, wait_until, xdp};

/// The port offers its guest an address (virtio 1.2, 5.1.3).
const MAC: u64 = 1 << 5;

/// All counters of a port: each series by its name and labels, except the worker's.
fn counted(metrics: &Metrics, port: &str) -> BTreeMap<String, u64> {
    let grows = |name: &str| {
        ["_total", "_count", "_bucket", "_sum"]
            .iter()
            .any(|end| name.ends_with(end))
    };
    let of_port = metrics
        .samples
        .iter()
        .filter(|sample| sample.label("port") == port && grows(&sample.name));
    of_port
        .map(|sample| {
            (
                format!("{} {:?}", sample.name, sample.labels),
                sample.value as u64,
            )
        })
        .collect()
}

/// For every kind of change that reopens ports: a guest's with more queues and with fewer, and an uplink's.
#[test]
fn what_a_port_has_counted_goes_on_when_a_reload_opens_it_again() {
    let lab = Lab::new(s(120));
    let (a, b) = (Host::new(&lab, "a", 1), Host::new(&lab, "b", 2));
    let ports = [xdp("a", &a), xdp("b", &b), guest(&lab, "web")];
    let switch = Switch::start(&lab, &[1], &ports);
    let mut front_ends = Vec::new();
    let mut connect = || {
        let web = Guest::connect(lab.socket("web"), GuestOptions::default());
        front_ends.push(web.expect("the guest connects"));
        switch.wait_up(&["a", "b", "web"]);
    };
    connect();
    a.must_ping(&b);
    let names = ["a", "b", "web"];
    let all = || {
        let metrics = switch.metrics();
        names.map(|port| counted(&metrics, port))
    };
    let mut before = all();
    let sent = |of: &BTreeMap<String, u64>| -> u64 {
        let packets = of
            .iter()
            .filter(|(name, _)| name.starts_with("crosspoint_queue_packets_total"));
        packets.map(|(_, n)| n).sum()
    };
    assert!(
        before.iter().all(|of| of.len() > 28 && sent(of) > 0),
        "{before:#?}"
    );

    let main = switch.config_path();
    let text = fs::read_to_string(&main).expect("the file");
    for (uplinks, guests) in [
        ("huge_pages = \"never\"", "queue_pairs = 2"),
        ("huge_pages = \"transparent\"", "queue_pairs = 1"),
    ] {
        let ports = text
            .split("[[port]]")
            .enumerate()
            .map(|(number, port)| match number {
                0 => port.to_owned(),
                1 | 2 => format!("[[port]]{port}{uplinks}\n"),
                _ => format!("[[port]]{port}{guests}\n"),
            });
        fs::write(&main, ports.collect::<String>()).expect("the file");
        let (ended, said) = switch.ask(&["reload"]);
        assert!(ended.success(), "{said}");
        connect();
        a.must_ping(&b);
        let after = all();
        for ((port, before), after) in names.iter().zip(&before).zip(&after) {
            for (series, count) in before {
                let now = after.get(series);
                assert!(
                    now >= Some(count),
                    "{port}: {series} was {count}, is {now:?}"
                );
            }
            assert!(sent(after) > sent(before), "{port} still counts");
        }
        before = after;
    }
    let connections = [("port", "web")];
    assert_eq!(
        switch
            .metrics()
            .sum("crosspoint_port_connections_total", &connections),
        3
    );
    switch.ledger();

    // A port that is removed and added again is another port, and nothing of the old one is counted twice.
    let socket = format!("socket={}", lab.socket("web").display());
    assert!(switch.ask(&["port", "remove", "web"]).0.success());
    let (ended, said) = switch.ask(&["port", "add", "web", "type=vhost", &socket]);
    assert!(ended.success(), "{said}");
    assert_eq!(
        switch
            .metrics()
            .sum("crosspoint_port_connections_total", &connections),
        0
    );
    switch.stop(Signal::TERM);
}

/// Reported by `plan`: in the command's output, and in the log.
#[test]
fn a_change_that_takes_from_a_running_guest_what_it_has_negotiated_is_told() {
    let lab = Lab::new(s(60));
    let port = guest(&lab, "web") + "queue_pairs = 2\nmac = \"02:00:00:00:00:01\"\n";
    let switch = Switch::start(&lab, &[1], &[port]);
    let mut front_ends = Vec::new();
    let mut connect = || {
        let defaults = GuestOptions::default();
        let options = GuestOptions {
            features: defaults.features | MAC,
            queue_pairs: 2,
            ..defaults
        };
        let web = Guest::connect(lab.socket("web"), options);
        front_ends.push(web.expect("the guest connects"));
        switch.wait_up(&["web"]);
    };
    let said = |text: &str, warning: &str, count: usize| {
        assert!(text.contains(warning), "{text}");
        let log = switch.log();
        let lines = log.lines().filter(|line| line.contains(warning));
        let lines: Vec<&str> = lines.collect();
        assert!(lines.len() == count && lines[0].contains("WARN"), "{log}");
    };
    connect();
    let (ended, text) = switch.ask(&["port", "set", "web", "mac="]);
    assert!(ended.success(), "{text}");
    said(
        &text,
        "its guest has negotiated MAC, which the port will no longer offer",
        1,
    );

    connect();
    let main = switch.config_path();
    let config = fs::read_to_string(&main).expect("the file");
    fs::write(&main, config.replace("queue_pairs = 2", "queue_pairs = 1")).expect("the file");
    let fewer = "its front end has 2 queue pairs, and cannot reconnect with fewer";
    assert!(switch.ask(&["plan"]).1.contains(fewer));
    let (ended, text) = switch.ask(&["reload"]);
    assert!(ended.success(), "{text}");
    said(&text, fewer, 1);
}

/// The marks, `keep`, `show config`; and commands that can be repeated.
#[test]
fn what_only_commands_made_is_marked_and_can_be_kept() {
    let lab = Lab::new(s(60));
    let switch = Switch::start(&lab, &[1], &[guest(&lab, "web")]);
    let expect = |words: &[&str], status: i32, parts: &[&str]| {
        let (ended, text) = switch.ask(words);
        assert_eq!(ended.code(), Some(status), "{words:?}: {text}");
        for part in parts {
            assert!(text.contains(part), "{words:?}: no {part:?} in {text}");
        }
        text
    };
    let socket = format!("socket={}", lab.socket("extra").display());
    let add = ["port", "add", "extra", "type=vhost", &socket];
    expect(&add, 0, &["+ port extra"]);
    expect(&["show", "ports"], 0, &["(not in any file)"]);
    expect(&["plan"], 0, &["port extra stays (not in any file)"]);

    // Again: the same is no error, other keys are one, unless they are asked for.
    expect(&add, 0, &["no change"]);
    let other = [&add[..], &["mac_limit=5"]].concat();
    expect(&other, 1, &["mac_limit 1024 -> 5", "--may-exist"]);
    let may_exist = [&other[..], &["--may-exist"]].concat();
    expect(&may_exist, 0, &["in place"]);
    let waiting = ["port", "add", "up9", "type=xdp", "interface=nowhere0"];
    expect(
        &waiting,
        0,
        &["waiting for interface `nowhere0`", "/readyz"],
    );
    expect(&["port", "remove", "up9"], 0, &["- port up9"]);
    expect(&["port", "remove", "up9"], 1, &["no port is named"]);
    expect(&["port", "remove", "up9", "--if-exists"], 0, &["no change"]);
    expect(&["capture", "extra:7"], 1, &["has no queue 7"]);

    // What runs, as a file that can be checked.
    let text = expect(
        &["show", "config"],
        0,
        &["name = \"extra\"", "mac_limit = 5"],
    );
    let file = lab.dir().join("running.toml");
    fs::write(&file, text).expect("the file");
    let file = file.to_str().expect("a plain path");
    let (ended, text) = Switch::command(&lab, &["check", "--config", file]);
    assert!(ended.success(), "{text}");

    let ports_d = lab.dir().join("ports.d");
    fs::create_dir(&ports_d).expect("a folder");
    let main = switch.config_path();
    let text = fs::read_to_string(&main).expect("the file");
    let with_folder = text.replacen('\n', "\nports_dir = \"ports.d\"\n", 1);
    fs::write(&main, &with_folder).expect("the file");
    expect(&["reload"], 0, &[]);
    expect(&["keep"], 0, &["kept port extra"]);
    assert!(ports_d.join("extra.toml").exists());
    let text = expect(&["show", "ports"], 0, &[]);
    assert!(!text.contains("not in any file"), "{text}");
    expect(&["keep"], 0, &["everything that runs is in the files"]);

    // With a folder, too, the shown configuration is valid, and is what runs. Only the folder is left out of it.
    expect(&["port", "set", "web", "weight=3"], 0, &[]);
    let text = expect(&["show", "config"], 0, &["weight = 3", "name = \"extra\""]);
    fs::write(file, text).expect("the file");
    let (ended, text) = Switch::command(&lab, &["check", "--config", file]);
    assert!(ended.success(), "{text}");
    let text = expect(&["plan", "--config", file], 6, &["ports_dir"]);
    assert_eq!(text.trim().lines().count(), 1, "{text}");
    expect(&["port", "set", "web", "weight="], 0, &[]);

    // Changed ports: one with its own file, and one of the main file.
    expect(&["port", "set", "extra", "mac_limit=6"], 0, &[]);
    expect(&["port", "set", "web", "mac_limit=3"], 0, &[]);
    expect(&["show", "ports"], 0, &["(differs from its file)"]);
    let kept = format!("kept port web: {}", main.display());
    expect(&["keep"], 0, &["kept port extra", &kept]);
    let with_folder = fs::read_to_string(&main).expect("the file");
    assert!(with_folder.contains("mac_limit = 3"), "{with_folder}");
    expect(&["reload"], 0, &["no change"]);

    // A port of the files that a command removed is marked, since a reload adds it again.
    expect(&["port", "remove", "web"], 0, &["still in the files"]);
    expect(
        &["show", "ports"],
        0,
        &["web (in the files, and does not run)", "the next reload"],
    );
    let rows = expect(&["show", "ports", "--json"], 0, &[]);
    let rows: Value = serde_json::from_str(&rows).expect("JSON");
    let states: Vec<[&Value; 3]> = rows
        .as_array()
        .into_iter()
        .flatten()
        .map(|row| [&row["name"], &row["state"], &row["unkept"]])
        .collect();
    let wanted = json!([["extra", "down", null], ["web", "down", "not_running"]]);
    assert_eq!(json!(states), wanted);
    expect(&["reload"], 0, &["+ port web"]);
    let text = expect(&["show", "ports"], 0, &[]);
    assert!(!text.contains("does not run"), "{text}");

    // What the files leave undone.
    let with_capacity = format!("{with_folder}[switch]\nfdb_capacity = 57344\n");
    fs::write(&main, &with_capacity).expect("the file");
    expect(&["reload"], 0, &["needs a restart"]);
    let pending = "switch.fdb_capacity";
    expect(&["show", "switch"], 0, &["restart pending", pending]);
    fs::write(&main, with_capacity + "nonsense = 1\n").expect("the file");
    expect(&["reload"], 1, &["nonsense"]);
    expect(
        &["show", "switch"],
        0,
        &["problem", "unknown key `nonsense`"],
    );
    switch.stop(Signal::TERM);
}

#[test]
fn an_operator_changes_a_running_switch_and_those_who_talk_do_not_notice() {
    let lab = Lab::new(s(60));
    let (a, b) = (Host::new(&lab, "a", 1), Host::new(&lab, "b", 2));
    let switch = Switch::start(&lab, &[1], &[xdp("a", &a), xdp("b", &b)]);
    let mut pings = a.ping_in_background(&b, 300);

    let ports_d = lab.dir().join("ports.d");
    fs::create_dir(&ports_d).expect("a folder");
    let main = switch.config_path();
    let text = fs::read_to_string(&main).expect("the file");
    let with_folder = text.replacen('\n', "\nports_dir = \"ports.d\"\n", 1);
    fs::write(&main, &with_folder).expect("the file");
    let file = ports_d.join("web-1.toml");
    fs::write(&file, guest(&lab, "web-1")).expect("the file");

    // `plan` changes nothing; `reload` does; then `plan` finds nothing left.
    let (ended, text) = switch.ask(&["plan"]);
    assert!(
        ended.code() == Some(6) && text.contains("+ port web-1"),
        "{text}"
    );
    assert!(!switch.show("ports").contains("web-1"));
    let (ended, text) = switch.ask(&["reload"]);
    assert!(ended.success() && text.contains("+ port web-1"), "{text}");
    assert!(switch.show("ports").contains("web-1"));
    assert_eq!(switch.ask(&["plan"]).0.code(), Some(0));

    // The schema has every property of a port.
    let schema = schema::of_show();
    let known = schema.pointer("/$defs/PropertiesOfPort/properties");
    let known = known.and_then(Value::as_object).expect("properties");
    let (_, text) = switch.ask(&["show", "ports", "--json"]);
    let rows: Value = serde_json::from_str(&text).expect("JSON");
    for row in rows.as_array().into_iter().flatten() {
        let properties = row["properties"].as_object().into_iter().flatten();
        for (key, _) in properties {
            assert!(known.contains_key(key), "{key}");
        }
    }

    // A mistake changes nothing; the error tells its place and how to fix it.
    fs::write(&file, guest(&lab, "web-1") + "mac_limit = -1\n").expect("the file");
    let (ended, text) = switch.ask(&["reload"]);
    let said = ["web-1.toml:5:", "mac_limit", "help:"];
    assert!(ended.code() == Some(1), "{text}");
    assert!(said.iter().all(|part| text.contains(part)), "{text}");
    fs::write(&file, guest(&lab, "web-1") + "mac_limit = 7\n").expect("the file");

    // The signal does the same as the command.
    switch.signal(Signal::HUP);
    wait_until("the signal's reload", s(10), || {
        (switch.ask(&["plan"]).0.code() == Some(0)).then_some(())
    });

    // By commands, with --keep.
    let socket = format!("socket={}", lab.socket("web-2").display());
    let add = ["port", "add", "web-2", "type=vhost", &socket, "--keep"];
    let (ended, text) = switch.ask(&add);
    assert!(ended.success(), "{text}");
    let (ended, text) = switch.ask(&["port", "set", "web-2", "vlan.access=5", "--keep"]);
    assert!(ended.success() && text.contains("in place"), "{text}");
    let kept = fs::read_to_string(ports_d.join("web-2.toml")).expect("its file");
    assert!(kept.contains("access = 5"), "{kept}");
    assert_eq!(switch.ask(&["plan"]).0.code(), Some(0));
    assert!(
        switch
            .ask(&["port", "remove", "web-2", "--keep"])
            .0
            .success()
    );
    let (ended, text) = switch.ask(&["port", "set", "a", "nonsense=1"]);
    assert!(
        ended.code() == Some(1) && text.contains("nonsense"),
        "{text}"
    );
    // Two lines, without an excerpt of a file that the operator did not write.
    assert_eq!(text.trim().lines().count(), 2, "{text}");

    pings.wait_for("300 received", s(20));
    switch.stop(Signal::TERM);
}
