//! Security groups with real guests and a host: what their rules allow, the answers to it, and changes while it runs.

use crate::harness::{Host, Lab, LinuxGuest, Process, Switch, guest, s, wait_until, xdp};

const ADDRESSES: [&str; 2] = ["10.9.0.11", "10.9.0.12"];
const MACS: [&str; 2] = ["52:54:00:09:00:01", "52:54:00:09:00:02"];

/// A guest that speaks first only where its group has a rule for it.
const GROUPS: &str = r#"
[[group]]
name = "web"
rules = [
    { direction = "in", protocol = "icmp" },
    { direction = "in", protocol = "tcp", ports = [80, "90-91"] },
    { direction = "in", protocol = "tcp", port = 81, from = { set = "admins" } },
    { direction = "in", protocol = "tcp", port = 82, from = { group = "client" } },
    { direction = "in", protocol = "udp", port = 53 },
]

[[group]]
name = "client"
rules = [{ direction = "out" }]

[[group]]
name = "quiet"
rules = []

[[set]]
name = "admins"
addresses = []
"#;

/// The `[[port]]` of a guest with its own addresses only, and with a group.
fn port(lab: &Lab, index: usize, group: &str) -> String {
    let (mac, ip) = (MACS[index], ADDRESSES[index]);
    guest(lab, &format!("g{index}"))
        + &format!("addresses = {{ mac = [\"{mac}\"], ip = [\"{ip}\"] }}\ngroups = [\"{group}\"]\n")
}

fn uml(lab: &Lab, index: usize) -> LinuxGuest {
    let (address, mac) = (ADDRESSES[index], MACS[index]);
    let options = format!("--job orders --mem 128 --ip {address}/24 --mac {mac}");
    LinuxGuest::uml(lab, &format!("g{index}"), &options)
}

/// A server on a guest that says hello to each connection.
fn greet(guest: &mut LinuxGuest, port: u16) {
    guest.run(&format!(
        "socat TCP4-LISTEN:{port},fork,reuseaddr SYSTEM:'echo hello' > /dev/null 2>&1 & true"
    ));
}

/// Whether a server answers a host.
fn answers(host: &Host<'_>, address: &str, port: u16) -> bool {
    let connect = format!("exec 3<>/dev/tcp/{address}/{port} && head -c 5 <&3");
    let text = host.must_run(&format!("timeout 2 bash -c '{connect}' 2>&1 || true"));
    text.contains("hello")
}

/// Whether a server answers a guest.
fn answers_guest(guest: &mut LinuxGuest, address: &str, port: u16) -> bool {
    let text = guest.run(&format!(
        "socat -T 2 TCP4:{address}:{port},connect-timeout=2 -"
    ));
    text.contains("hello")
}

fn pings(guest: &mut LinuxGuest, address: &str) -> bool {
    let text = guest.run(&format!("ping -c 3 -i 0.05 -w 2 {address}"));
    assert!(text.contains("packets transmitted"), "{text}");
    text.contains(" 0% packet loss")
}

fn drops(switch: &Switch<'_>, port: &str, reason: &str) -> u64 {
    let labels = [("port", port), ("reason", reason)];
    switch.metrics().sum("crosspoint_drops_total", &labels)
}

fn must(switch: &Switch<'_>, words: &[&str]) -> String {
    let (status, text) = switch.ask(words);
    assert!(status.success(), "{words:?}: {text}");
    text
}

#[test]
fn uml_guests_get_what_their_groups_allow_and_the_answers_to_what_they_begin() {
    let lab = Lab::new(s(150));
    let host = Host::new(&lab, "a", 1);
    let ports = [
        port(&lab, 0, "web"),
        port(&lab, 1, "client"),
        xdp("a", &host),
        GROUPS.to_owned(),
    ];
    let switch = Switch::start(&lab, &[1], &ports);
    let mut guests = [0, 1].map(|index| uml(&lab, index));
    guests.iter_mut().for_each(LinuxGuest::wait_ready);
    let [web, client] = &mut guests;
    for port in 80..=83 {
        greet(web, port);
    }
    let [web_ip, client_ip] = ADDRESSES;

    host.must_ping_address(web_ip);
    wait_until("the server", s(10), || {
        answers(&host, web_ip, 80).then_some(())
    });
    let denied = |port| drops(&switch, port, "group_denied_in");
    let before = denied("g0");
    assert!(!answers(&host, web_ip, 83), "no rule allows it");
    assert!(!answers(&host, web_ip, 82), "the host is not in the group");
    assert!(denied("g0") > before);
    // The answers pass without a rule, and what the host begins does not.
    assert!(pings(client, &host.address));
    let before = denied("g1");
    host.must_not_ping(client_ip);
    assert!(denied("g1") > before);
    // A member of the group that is the peer of a rule.
    assert!(answers_guest(client, web_ip, 82) && answers_guest(client, web_ip, 80));
    assert!(!answers_guest(client, web_ip, 81));

    // Nothing allows this guest to begin a connection.
    let refused = || drops(&switch, "g0", "group_denied_out");
    assert_eq!(refused(), 0);
    assert!(!pings(web, &host.address) && !pings(web, client_ip));
    assert!(refused() > 0);

    // Fragments, datagrams, and the error that answers one.
    host.must_run(&format!("ping -n -c 3 -i 0.1 -W 2 -s 4000 {web_ip}"));
    web.run("socat UDP4-RECVFROM:53,fork PIPE > /dev/null 2>&1 & true");
    let ask = format!("exec 3<>/dev/udp/{web_ip}/53; echo again >&3; head -c 5 <&3");
    let asked = || {
        let text = host.must_run(&format!("timeout 1 bash -c '{ask}' || true"));
        (text.trim() == "again").then_some(())
    };
    wait_until("the answer to a datagram", s(10), asked);
    let error = client.run(&format!(
        "(echo hello; sleep 1) | socat -T 2 - UDP4:{}:9999",
        host.address
    ));
    assert!(error.contains("refused"), "{error}");

    // A set opens and closes at once, and no frame is lost that is allowed before and after a change.
    let ping = host.command(&format!("ping -n -q -i 0.005 -c 400 {web_ip}"));
    let mut ping = Process::start(lab.dir(), "ping-during-changes", &ping);
    for _ in 0..10 {
        must(&switch, &["set", "add", "admins", "198.51.100.0/24"]);
        must(&switch, &["port", "set", "g0", "groups=web,quiet"]);
        must(&switch, &["set", "remove", "admins", "198.51.100.0/24"]);
        must(&switch, &["port", "set", "g0", "groups=web"]);
    }
    ping.wait_for("packets transmitted", s(20));
    let lost_none = ping.log().contains(" 0% packet loss");
    assert!(lost_none, "{}", ping.log());
    assert!(!answers(&host, web_ip, 81));
    must(&switch, &["set", "add", "admins", &host.address]);
    assert!(answers(&host, web_ip, 81));
    must(&switch, &["set", "remove", "admins", &host.address]);
    assert!(!answers(&host, web_ip, 81));

    let rules = switch.show_json("rules");
    let rules = rules.as_array().cloned().unwrap_or_default();
    let hits = |text: &str| {
        let rule = rules.iter().find(|rule| rule["text"] == text);
        rule.and_then(|rule| rule["hits"].as_u64())
    };
    assert!(hits("in tcp 80,90-91 from any") >= Some(2), "{rules:?}");
    assert!(hits("in tcp 81 from set admins") >= Some(1), "{rules:?}");
    assert!(hits("in tcp 82 from group client") >= Some(1), "{rules:?}");
    let shown = must(&switch, &["show", "connections", "--port", "g1"]);
    assert!(shown.contains("udp") && shown.contains("g1"), "{shown}");
    let created = [("port", "g0")];
    let created = switch
        .metrics()
        .sum("crosspoint_connections_created_total", &created);
    assert!(created > 0);
    assert_eq!(switch.ledger().fault(), None);
}

/// A connection of a host to an echo server, with a byte ten times a second. It ends after 3 s without an echo.
fn stream(lab: &Lab, host: &Host<'_>, port: u16) -> Process {
    let script = format!(
        "import socket, time\n\
         def connect():\n\
         \x20   # The server may not listen yet.\n\
         \x20   for _ in range(50):\n\
         \x20       try:\n\
         \x20           return socket.create_connection(('{}', {port}), 5)\n\
         \x20       except ConnectionRefusedError:\n\
         \x20           time.sleep(0.1)\n\
         s = connect()\n\
         s.settimeout(3)\n\
         n = 0\n\
         while True:\n\
         \x20   s.sendall(b'x')\n\
         \x20   assert s.recv(1)\n\
         \x20   n += 1\n\
         \x20   print('echo', n, flush=True)\n\
         \x20   time.sleep(0.1)\n",
        ADDRESSES[0]
    );
    let mut command = host.command("python3 -c");
    command.arg(script);
    let mut process = Process::start(lab.dir(), &format!("stream-{port}"), &command);
    process.wait_for("echo 5\n", s(10));
    process
}

/// The number of the last echo.
fn echoes(process: &Process) -> u32 {
    let log = process.log();
    let mut numbers = log
        .lines()
        .rev()
        .filter_map(|line| line.strip_prefix("echo "));
    let last = numbers.next().and_then(|number| number.parse().ok());
    last.unwrap_or(0)
}

/// A guest with an echo server on each of the ports 90 and 91, and a stream to the first. Then its group allows nothing.
fn without_rules(on_change: &str, then: impl FnOnce(&Switch<'_>, &Host<'_>, &mut Process)) {
    let lab = Lab::new(s(120));
    let host = Host::new(&lab, "a", 1);
    let section = format!("[connections]\non_change = \"{on_change}\"\n");
    let ports = [
        port(&lab, 0, "web"),
        xdp("a", &host),
        GROUPS.to_owned() + &section,
    ];
    let switch = Switch::start(&lab, &[1], &ports);
    let mut web = uml(&lab, 0);
    web.wait_ready();
    for port in [90, 91] {
        web.run(&format!(
            "socat TCP4-LISTEN:{port},fork,reuseaddr PIPE > /dev/null 2>&1 & true"
        ));
    }
    host.must_ping_address(ADDRESSES[0]);
    let mut process = stream(&lab, &host, 90);
    must(&switch, &["port", "set", "g0", "groups=quiet"]);
    then(&switch, &host, &mut process);
    host.must_not_ping(ADDRESSES[0]);
    must(&switch, &["port", "set", "g0", "groups=web"]);
    host.must_ping_address(ADDRESSES[0]);
    drop(stream(&lab, &host, 91));
    assert_eq!(switch.ledger().fault(), None);
}

#[test]
fn a_stream_that_the_groups_of_a_uml_guest_no_longer_allow_is_cut() {
    without_rules("revalidate", |switch, _, process| {
        process.wait_for("timed out", s(20));
        assert!(drops(switch, "g0", "group_denied_in") > 0);
    });
}

#[test]
fn a_stream_that_the_groups_of_a_uml_guest_no_longer_allow_goes_on_if_connections_are_kept() {
    without_rules("keep", |_, _, process| {
        let before = echoes(process);
        let goes_on = || (echoes(process) > before + 40).then_some(());
        wait_until("40 more echoes", s(20), goes_on);
        assert!(!process.log().contains("timed out"), "{}", process.log());
    });
}
