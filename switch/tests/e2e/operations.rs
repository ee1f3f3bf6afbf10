//! What operators see and use: metrics, `show`, `check`, signals.

use std::fs;

use rustix::process::Signal;

use crosspoint_guest::{Guest, GuestOptions};

use crate::harness::{Host, Lab, Switch, frame, guest, mac, run, s, xdp};

/// A switch with a wire and two guests, one of which is not connected. Some frames were sent in each direction, and some
/// were dropped.
fn with_a_busy_switch(test: impl FnOnce(&Lab, Switch<'_>)) {
    let lab = Lab::new(s(60));
    let host = Host::new(&lab, "a", 1);
    let switch = Switch::start(
        &lab,
        &[1],
        &[xdp("a", &host), guest(&lab, "g0"), guest(&lab, "absent")],
    );
    let mut g0 =
        Guest::connect(lab.socket("g0"), GuestOptions::default()).expect("the guest connects");
    switch.wait_up(&["a", "g0"]);
    assert_eq!(
        g0.send(
            0,
            &[&frame(mac(9), mac(1), 0, 60), &frame(mac(1), mac(1), 1, 60)]
        )
        .expect("a ring"),
        2
    );
    host.must_not_ping("10.9.0.200");
    let ledger = switch.ledger();
    assert_eq!(ledger.port("g0").drops.get("hairpin"), Some(&1), "{ledger}");
    assert!(ledger.port("absent").drops.is_empty(), "{ledger}");
    test(&lab, switch);
}

#[test]
fn metrics_are_what_prometheus_expects() {
    with_a_busy_switch(|lab, switch| {
        let metrics = switch.metrics();
        let file = lab.dir().join("metrics.txt");
        fs::write(&file, &metrics.text).expect("written");
        let mut promtool = lab.command("sh");
        promtool.args([
            "-c",
            &format!("promtool check metrics < {}", file.display()),
        ]);
        let (status, text) = run(lab.dir(), &promtool, s(20));
        assert!(status.success(), "{text}\n{}", metrics.text);

        for port in ["a", "g0", "absent"] {
            for direction in ["rx", "tx"] {
                let mut samples = metrics.of("crosspoint_queue_packets_total");
                let is = |sample: &crate::harness::Sample| {
                    sample.label("port") == port && sample.label("direction") == direction
                };
                assert!(samples.any(is), "{port} {direction}\n{}", metrics.text);
            }
        }
        assert_eq!(metrics.sum("crosspoint_port_up", &[("port", "g0")]), 1);
        assert_eq!(metrics.sum("crosspoint_port_up", &[("port", "absent")]), 0);
        assert!(metrics.sum("crosspoint_worker_cycles_total", &[("worker", "0")]) > 0);
    });
}

#[test]
fn show_tells_every_topic_to_people_and_to_programs() {
    with_a_busy_switch(|_, switch| {
        let topics = [
            ("ports", "g0"),
            ("queues", "g0"),
            ("workers", "g0"),
            ("fdb", "02:00:00:00:09:01"),
            ("drops", "hairpin"),
        ];
        for (topic, expected) in topics {
            let text = switch.show(topic);
            assert!(
                text.contains(expected),
                "show {topic} tells {expected}:\n{text}"
            );
            let json = switch.show_json(topic).to_string();
            assert!(
                json.contains(expected),
                "show {topic} --json tells {expected}:\n{json}"
            );
        }
    });
}

#[test]
fn show_without_a_daemon_says_so() {
    let lab = Lab::new(s(30));
    let socket = lab.socket("nobody");
    let (status, text) = Switch::command(
        &lab,
        &[
            "show",
            "ports",
            "--socket",
            socket.to_str().expect("a plain path"),
        ],
    );
    assert!(!status.success(), "{text}");
    assert!(
        text.contains(socket.to_str().expect("a plain path")),
        "the socket is named: {text}"
    );
}

#[test]
fn doctor_exits_with_how_bad_the_worst_finding_is() {
    let lab = Lab::new(s(30));
    let path = lab.dir().join("nowhere.toml");
    let config = "version = 1\n[[port]]\nname = \"up\"\ntype = \"xdp\"\ninterface = \"nowhere0\"\n";
    fs::write(&path, config).expect("written");
    let file = path.to_str().expect("a plain path");
    let (status, text) = Switch::command(&lab, &["doctor", "--config", file]);
    assert!(
        text.contains("nowhere0: there is no such interface"),
        "{text}"
    );
    assert!(
        !text.contains('\x1b'),
        "colour, though it is piped: {text:?}"
    );
    // The machine itself may have worse findings.
    assert!(matches!(status.code(), Some(4 | 5)), "{status}: {text}");

    let (status, text) = Switch::command(&lab, &["doctor", "--config", file, "--json"]);
    let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let expected = match report["worst"].as_str() {
        Some("warning") => 4,
        _ => 5,
    };
    assert_eq!(status.code(), Some(expected), "{text}");

    fs::write(&path, "version = 2").expect("written");
    let (status, text) = Switch::command(&lab, &["doctor", "--config", file]);
    assert_eq!(status.code(), Some(1), "{text}");
}

#[test]
fn doctor_knows_the_program_of_a_running_switch() {
    with_a_busy_switch(|lab, _switch| {
        let (_, text) = Switch::command(lab, &["doctor", "--all", "--json"]);
        let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let findings = report["findings"].as_array().expect("a list");
        let of_program = findings.iter().filter(|one| one["id"] == "xdp-program");
        let ours = of_program.filter(|one| {
            let found = one["found"].as_str().unwrap_or_default();
            found.starts_with("the XDP program belongs to crosspoint") && one["severity"] == "ok"
        });
        assert_eq!(ours.count(), 1, "{text}");
    });
}

#[test]
fn check_says_file_line_and_column_of_a_mistake() {
    let lab = Lab::new(s(30));
    let path = lab.dir().join("mistake.toml");
    let check = |text: &str| {
        fs::write(&path, text).expect("written");
        Switch::command(
            &lab,
            &["check", "--config", path.to_str().expect("a plain path")],
        )
    };
    let (status, text) = check("version = 1\n[workers]\ncores = [1]\npol = \"busy\"\n");
    assert!(!status.success(), "{text}");
    assert!(text.contains("mistake.toml:4:1"), "{text}");
    let (status, text) = check("version = 1\n");
    assert!(status.success(), "{text}");
}

#[test]
fn sigterm_ends_the_daemon_with_success_and_nothing_left_behind() {
    with_a_busy_switch(|_, switch| switch.stop(Signal::TERM));
}

#[test]
fn sigint_ends_the_daemon_with_success_and_nothing_left_behind() {
    with_a_busy_switch(|_, switch| switch.stop(Signal::INT));
}

#[test]
fn a_daemon_that_was_killed_can_be_started_again() {
    with_a_busy_switch(|lab, switch| {
        switch.kill();
        // The sockets still exist, and the interface may be busy for a moment.
        assert!(lab.socket("g0").exists());
        let switch = Switch::start(lab, &[1], &[guest(lab, "g0"), guest(lab, "absent")]);
        let mut g0 =
            Guest::connect(lab.socket("g0"), GuestOptions::default()).expect("the guest connects");
        switch.wait_up(&["g0"]);
        g0.send(0, &[&frame(mac(9), mac(1), 0, 60)])
            .expect("a ring");
        assert_eq!(switch.ledger().port("g0").rx, 1);
    });
}
