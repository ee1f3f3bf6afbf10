//! What operators see and use: metrics, `show`, `check`, signals.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::Signal;

use crosspoint_guest::{Guest, GuestOptions};

use crate::certificates::{Authority, VALID};
use crate::harness::metrics::get;
use crate::harness::{Host, Lab, Process, Switch, frame, guest, mac, run, s, wait_until, xdp};

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

/// A Prometheus in the lab that scrapes the switch as the file for operators says, but faster.
fn prometheus(lab: &Lab, authority: &Authority) -> Process {
    let deployed = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../deploy/prometheus/scrape-tls.yml"
    );
    let text = fs::read_to_string(deployed).expect("the file of the repository");
    let (scrape, _) = text.split_once("\nrule_files:").expect("rules at the end");
    let scrape = scrape
        .replace("15s", "200ms\n    scrape_timeout: 200ms")
        .replace("10.0.10.21", "127.0.0.1")
        .replace("crosspoint.token", "token")
        .replace("crosspoint-ca.crt", "trusted.crt")
        .replace("# cert_file: prometheus.crt", "cert_file: client.crt")
        .replace("# key_file: prometheus.key", "key_file: client.key");
    let config = authority.path("prometheus.yml");
    fs::write(&config, scrape).expect("written");
    let mut command = lab.command("env");
    command.args([
        "GOMAXPROCS=1",
        "prometheus",
        "--web.listen-address=127.0.0.1:9490",
    ]);
    let [config, data] = [config, authority.path("tsdb")].map(|path| path.display().to_string());
    command.arg(format!("--config.file={config}"));
    command.arg(format!("--storage.tsdb.path={data}"));
    Process::start(lab.dir(), "prometheus", &command)
}

/// What Prometheus says of its scrapes: "up" and its last error, once it has scraped after this call.
fn scraped(prometheus: &Process) -> (String, String) {
    let target = || {
        let (_, text) = get(
            "127.0.0.1:9490".parse().expect("an address"),
            "/api/v1/targets",
        )?;
        let answer: serde_json::Value = serde_json::from_str(&text).ok()?;
        let target = answer["data"]["activeTargets"][0].clone();
        let word = |key: &str| target[key].as_str().map(str::to_owned);
        Some((word("lastScrape")?, word("health")?, word("lastError")?))
    };
    let next = |before: &str| {
        let what = format!("a scrape after {before}: {}", prometheus.log());
        let is_next = |it: &(String, String, String)| it.1 != "unknown" && it.0 != before;
        wait_until(&what, s(30), || target().filter(is_next))
    };
    // The scrape of the first answer may have begun before.
    let first = next("");
    let second = next(&first.0);
    let third = next(&second.0);
    (third.1, third.2)
}

#[test]
fn a_prometheus_with_certificate_and_token_scrapes_and_goes_on_after_both_are_renewed() {
    let lab = Lab::new(s(120));
    let (authority, other) = (Authority::new(), Authority::new());
    authority.make("server", VALID);
    authority.make("client", VALID);
    other.make("server", VALID);
    let write = |name: &str, text: &str| fs::write(authority.path(name), text).expect("written");
    let read = |path: PathBuf| fs::read_to_string(path).expect("it is there");
    write(
        "trusted.crt",
        &[read(authority.path("ca.crt")), read(other.path("ca.crt"))].concat(),
    );
    write("token", "0123456789abcdef0123456789abcdef\n");
    // The files are named by a later reload only.
    let sandbox = format!("[sandbox]\npaths = [{:?}]\n", authority.path(""));
    let switch = Switch::start(&lab, &[1], &[guest(&lab, "g0"), sandbox]);
    let plain = read(switch.config_path());
    let protect = |lines: &str| {
        let path = |name: &str| authority.path(name).display().to_string();
        let text = format!(
            "[metrics]\ntls = {{ certificate = {:?}, key = {:?}, client_ca = {:?} }}\ntoken_file = {:?}\n{lines}",
            path("server.crt"),
            path("server.key"),
            path("ca.crt"),
            path("token"),
        );
        fs::write(switch.config_path(), plain.replace("[metrics]\n", &text)).expect("written");
    };
    let reload = || switch.ask(&["reload"]);
    // The log is written by a thread of its own.
    let logged = |text: &str| wait_until(text, s(10), || switch.log().contains(text).then_some(()));
    let config = switch.config_path().display().to_string();
    let check = || Switch::command(&lab, &["check", "--config", &config]);

    protect("");
    assert!(check().0.success(), "{}", check().1);
    let (status, text) = reload();
    assert!(status.success(), "{text}");
    let prometheus = prometheus(&lab, &authority);
    assert_eq!(scraped(&prometheus), ("up".to_owned(), String::new()));
    logged("token; chmod o=");

    // A certificate without its key, as between two writes: nothing changes, and each command says so.
    fs::copy(other.path("server.crt"), authority.path("server.crt")).expect("copied");
    let wrong = "does not belong to the first certificate in";
    for (status, text) in [check(), reload()] {
        assert!(!status.success() && text.contains(wrong), "{text}");
    }
    logged(wrong);
    assert_eq!(scraped(&prometheus), ("up".to_owned(), String::new()));

    fs::copy(other.path("server.key"), authority.path("server.key")).expect("copied");
    write("token", "fedcba9876543210fedcba9876543210\n");
    // Prometheus reads the token for each scrape, so until the reload it has a token that the switch does not know.
    assert!(scraped(&prometheus).1.contains("401"));
    let (status, text) = reload();
    assert!(status.success(), "{text}");
    assert_eq!(scraped(&prometheus), ("up".to_owned(), String::new()));
    let mut curl = lab.command("curl");
    curl.args(["-sS", "-o", "/dev/null", "-w", "%{http_code}", "--cacert"]);
    curl.arg(other.path("ca.crt"))
        .arg("--cert")
        .arg(authority.path("client.crt"));
    curl.arg("--key").arg(authority.path("client.key"));
    curl.arg("https://127.0.0.1:9477/metrics");
    assert_eq!(
        run(lab.dir(), &curl, s(10)).1,
        "401",
        "the new certificate, without the token"
    );

    // What cannot be read does not keep the switch from starting, and nothing is served without it.
    fs::remove_file(authority.path("token")).expect("removed");
    switch.stop(Signal::TERM);
    let text = Switch::refused_metrics(&lab, Path::new(&config));
    assert!(text.contains("token_file: cannot read"), "{text}");
}

#[test]
fn a_listener_that_others_reach_without_protection_is_warned_of() {
    let lab = Lab::new(s(60));
    let path = lab.dir().join("open.toml");
    fs::write(&path, "version = 1\n[metrics]\nlisten = \"0.0.0.0:9477\"\n").expect("written");
    let words = ["check", "--config", path.to_str().expect("a plain path")];
    let (status, text) = Switch::command(&lab, &words);
    assert!(status.success(), "{text}");
    assert!(
        text.contains("warning: [metrics] listen = \"0.0.0.0:9477\" is not a loopback address"),
        "{text}"
    );
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
