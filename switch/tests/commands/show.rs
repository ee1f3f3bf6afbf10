//! Output of `crosspoint show`, as tables and as JSON.

use crosspoint::show::{Watch, render, render_movers, render_port};
use crosspoint_daemon::api::Source;
use crosspoint_daemon::api::show::{port, write_json};
use crosspoint_model::status::StatusReport;
use crosspoint_model::topic::Topic;
use serde_json::Value;

use crate::picture::{Picture, nothing, picture};

fn json(topic: Topic, picture: &Picture) -> Value {
    let mut text = Vec::new();
    write_json(topic, picture, &mut text).expect("a picture is JSON");
    serde_json::from_slice(&text).expect("what is written is JSON")
}

fn table(topic: Topic, picture: &Picture) -> String {
    render(topic, &json(topic, picture)).expect("the daemon's own JSON is understood")
}

#[test]
fn tables_look_like_this() {
    let tables = Topic::ALL.map(|topic| format!("$ {topic}\n{}", table(topic, &picture())));
    let movers = render_movers(&json(Topic::Fdb, &picture())).expect("the daemon's own JSON");
    let movers = format!("$ fdb --moves\n{movers}");
    insta::assert_snapshot!("tables", [&tables[..], &[movers]].concat().join("\n"));
}

fn port_json(name: &str, picture: &Picture) -> Value {
    let port = port(name, picture).expect("there is such a port");
    serde_json::to_value(port).expect("a port is JSON")
}

fn port_text(name: &str, picture: &Picture) -> String {
    render_port(&port_json(name, picture)).expect("the daemon's own JSON is understood")
}

const PORTS: [&str; 3] = ["web-1", "db-1", "uplink"];

#[test]
fn one_port_looks_like_this() {
    let all = PORTS.map(|name| format!("$ port {name}\n{}", port_text(name, &picture())));
    insta::assert_snapshot!("port", all.join("\n"));
}

#[test]
fn the_keys_of_one_port_are_these() {
    let pretty = serde_json::to_string_pretty(&port_json("web-1", &picture()));
    insta::assert_snapshot!("port_json", pretty.expect("JSON"));
}

#[test]
fn one_port_fits_eighty_columns() {
    for line in PORTS
        .map(|name| port_text(name, &picture()))
        .concat()
        .lines()
    {
        assert!(line.chars().count() <= 80, "{line}");
        assert_eq!(line, line.trim_end());
    }
}

#[test]
fn a_port_that_is_not_there_is_an_error_that_names_those_that_are() {
    let error = port("web", &picture()).expect_err("no port has this name");
    assert_eq!(error.to_string(), "no port is named \"web\"");
    assert_eq!(error.help(), "the ports are web-1, db-1, uplink");
    let error = port("web", &nothing()).expect_err("no port has this name");
    assert_eq!(error.help(), "there are no ports");
}

#[test]
fn an_empty_switch_is_said_to_be_empty() {
    let tables = Topic::ALL.map(|topic| table(topic, &nothing()));
    insta::assert_snapshot!("tables_of_nothing", tables.concat());
}

#[test]
fn the_keys_of_the_json_are_these() {
    let all = Topic::ALL.map(|topic| {
        let pretty = serde_json::to_string_pretty(&json(topic, &picture()));
        format!("$ {topic} --json\n{}\n", pretty.expect("JSON"))
    });
    insta::assert_snapshot!("json", all.concat());
}

#[test]
fn tables_fit_eighty_columns() {
    for topic in Topic::ALL {
        for line in table(topic, &picture()).lines() {
            assert!(line.chars().count() <= 80, "{line}");
            assert_eq!(line, line.trim_end());
        }
    }
}

#[test]
fn only_reasons_that_were_met_are_shown_with_what_they_mean() {
    let drops = json(Topic::Drops, &picture());
    let drops = drops.as_array().expect("an array");
    assert!(drops.iter().all(|row| row["count"].as_u64() > Some(0)));
    assert!(drops.iter().all(|row| row["help"].as_str() > Some("")));
    assert_eq!(drops.len(), 6);
}

#[test]
fn text_from_elsewhere_cannot_control_the_terminal() {
    let mut picture = picture();
    picture.status.ports[0].detail = "\x1b[2J\x07".into();
    picture.status.ports[0].name = "a\nb".into();
    for topic in Topic::ALL {
        let text = table(topic, &picture);
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()));
    }
    let text = port_text("a\nb", &picture);
    assert!(text.chars().all(|c| c == '\n' || !c.is_control()));
}

/// A snapshot, and the same two and a half seconds later.
fn two_snapshots() -> [StatusReport; 2] {
    let picture = picture();
    let (daemon, status) = (picture.daemon(), picture.status());
    let before = StatusReport {
        daemon,
        status,
        ..StatusReport::default()
    };
    let mut now = before.clone();
    now.daemon.uptime_ns += 2_500_000_000;
    let queue = &mut now.status.ports[0].queues[0];
    queue.rx_packets += 2_500_000;
    queue.rx_bytes += 250_000_000;
    queue.tx_packets += 3;
    queue.cycles += 3_000_000_000;
    *queue.drops.get_mut("guest_ring_full").expect("it was met") += 1000;
    queue.completion.buckets_ns[2].1 += 1_000_000;
    queue.completion.sum_ns += 4_700_000_000.0;
    let worker = &mut now.status.workers[0];
    worker.busy_cycles += 4_000_000_000;
    worker.idle_cycles += 1_000_000_000;
    worker.bursts += 50_000;
    worker.involuntary_switches += 1;
    [before, now]
}

fn watched() -> String {
    let rated = Topic::ALL
        .into_iter()
        .filter(|topic| Watch::has_rates(*topic));
    let tables = rated.map(|topic| {
        let mut watch = Watch::default();
        let texts = two_snapshots().map(|snapshot| watch.render(topic, snapshot));
        format!("$ {topic} --watch\n{}", texts.join("\n"))
    });
    tables.collect::<Vec<_>>().join("\n")
}

#[test]
fn what_is_watched_is_what_happens_in_a_second() {
    insta::assert_snapshot!("watch", watched());
}

#[test]
fn what_is_watched_fits_eighty_columns() {
    for line in watched().lines() {
        assert!(line.chars().count() <= 80, "{line}");
        assert_eq!(line, line.trim_end());
    }
}

#[test]
fn an_answer_of_another_shape_is_an_error_that_suggests_json() {
    let error = render(Topic::Ports, &serde_json::json!({"no": "ports"})).expect_err("no array");
    assert!(
        error
            .to_string()
            .starts_with("the daemon's answer about ports is not understood")
    );
    let help = miette::Diagnostic::help(&error).expect("there is help");
    assert!(help.to_string().contains("--json"));
}

#[test]
fn an_answer_with_keys_to_come_is_understood() {
    let mut answer = json(Topic::Workers, &picture());
    answer[0]["key_to_come"] = Value::from(1);
    assert_eq!(
        render(Topic::Workers, &answer).ok(),
        Some(table(Topic::Workers, &picture()))
    );
}

#[test]
fn topics_are_read_by_their_names_and_no_other() {
    for topic in Topic::ALL {
        assert_eq!(topic.name().parse(), Ok(topic));
        assert_eq!(
            serde_json::to_value(topic).ok(),
            Some(Value::from(topic.name()))
        );
    }
    let error = "Ports".parse::<Topic>().expect_err("not a name");
    let message = "`Ports` is not a topic; there are switch, ports, queues, workers, fdb, drops, latency, guests, xdp, mirrors, bridges, bindings, multicast, groups, rules, sets, connections, sflow, ipfix";
    assert_eq!(error.to_string(), message);
}
