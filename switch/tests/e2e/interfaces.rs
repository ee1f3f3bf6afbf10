//! Ports follow their interfaces: missing ones, those used by another program, those that are removed and added. Also the
//! frames that are left to the kernel.

use std::fs;
use std::net::UdpSocket;

use rustix::process::Signal;

use crate::harness::{Host, Lab, Switch, run, s, wait_until, xdp};

/// A port of an interface that may be missing.
fn port(name: &str, interface: &str) -> String {
    format!("[[port]]\nname = \"{name}\"\ntype = \"xdp\"\ninterface = \"{interface}\"\n")
}

/// The output of a program in the switch's namespace; it must succeed.
fn output(lab: &Lab, line: &str) -> String {
    let mut words = line.split_whitespace();
    let mut command = lab.command(words.next().expect("a program"));
    command.args(words);
    let (status, text) = run(lab.dir(), &command, s(10));
    assert!(status.success(), "{line}: {text}");
    text
}

#[test]
fn a_port_comes_and_goes_with_its_interface_and_the_others_lose_nothing() {
    let lab = Lab::new(s(60));
    let (b, c) = (Host::new(&lab, "b", 2), Host::new(&lab, "c", 3));
    let ports = [port("a", "up-a"), xdp("b", &b), xdp("c", &c)];
    let switch = Switch::start_early(&lab, &[1], &ports);
    switch.wait_up(&["b", "c"]);
    let waiting = "down: waiting for interface `up-a`";
    assert_eq!(switch.state("a"), waiting);
    let mut others = c.ping_in_background(&b, 100);

    // The interface appears.
    let a = Host::new(&lab, "a", 1);
    switch.wait_up(&["a"]);
    a.must_ping(&b);
    assert_eq!(switch.port_of(&a.mac()).as_deref(), Some("a"));

    // The other end is down; then it is up.
    a.ip("link set eth0 down");
    switch.wait_state("a", "no carrier");
    assert_eq!(switch.port_of(&a.mac()), None);
    b.must_not_ping(&a.address);
    // The port takes part in no flood, so it counts no drops.
    let dropped = [("port", "a"), ("reason", "port_down")];
    assert_eq!(switch.metrics().sum("crosspoint_drops_total", &dropped), 0);
    a.ip("link set eth0 up");
    switch.wait_up(&["a"]);
    b.must_ping(&a);

    // The interface is set down, and up.
    lab.ip("link set up-a down");
    switch.wait_state("a", "is down: `ip link set up-a up`");
    lab.ip("link set up-a up");
    switch.wait_up(&["a"]);
    b.must_ping(&a);

    // Its MTU changes.
    lab.ip("link set up-a mtu 1400");
    wait_until("the MTU", s(5), || {
        (switch.property("a", "mtu") == ["1400"]).then_some(())
    });
    a.must_ping(&b);

    // The interface is removed, and another of its name appears.
    lab.ip("link del up-a");
    switch.wait_state("a", waiting);
    drop(a);
    let a = Host::new(&lab, "a", 1);
    switch.wait_up(&["a"]);
    a.must_ping(&b);

    others.wait_for("packets transmitted", s(20));
    let log = others.log();
    assert!(log.contains(" 0% packet loss"), "{log}");
    switch.ledger();
    assert_eq!(switch.log().matches("waiting for interface").count(), 2);
    switch.stop(Signal::TERM);
}

#[test]
fn an_interface_that_is_down_is_named_and_taken_once_it_is_up() {
    let lab = Lab::new(s(30));
    let a = Host::new(&lab, "a", 1);
    lab.ip("link set up-a down");
    let switch = Switch::start_early(&lab, &[1], &[xdp("sleepy", &a)]);
    let state = switch.state("sleepy");
    assert!(
        state.contains("`up-a` is down: `ip link set up-a up`"),
        "{state}"
    );
    assert!(
        switch.log().contains(&state["down: ".len()..]),
        "the log says so, too"
    );
    lab.ip("link set up-a up");
    switch.wait_up(&["sleepy"]);
}

/// A macvlan, to which the kernel gives only frames for its own address; and a tun device, which has no addresses at all.
#[test]
fn an_interface_that_carries_no_frames_for_guests_is_said_to_be_such() {
    let lab = Lab::new(s(60));
    let (_a, b) = (Host::new(&lab, "a", 1), Host::new(&lab, "b", 2));
    lab.ip("link add link up-a name upper type macvlan mode private");
    lab.ip("link set upper up");
    lab.ip("tuntap add tun mode tun");
    lab.ip("link set tun up");
    let ports = [port("upper", "upper"), port("tun", "tun"), xdp("b", &b)];
    let switch = Switch::start_early(&lab, &[1], &ports);
    switch.wait_up(&["b"]);
    switch.wait_state("tun", "down: interface `tun` is no Ethernet interface");
    switch.wait_state(
        "upper",
        "a macvlan in mode private: the kernel gives it only frames for its own address",
    );
    for part in ["mode passthru", "name the interface below it"] {
        assert!(switch.log().contains(part), "{}", switch.log());
    }
    let config = switch.config_path();
    let config = config.to_str().expect("a plain path");
    let (_, report) = Switch::command(&lab, &["doctor", "--config", config]);
    assert_eq!(report.matches(" reach ").count(), 2, "{report}");
    switch.stop(Signal::TERM);
}

/// The host's own address and default route are on the interface.
#[test]
fn an_interface_that_the_host_uses_is_an_error_beforehand_and_a_warning_at_run() {
    let lab = Lab::new(s(30));
    let a = Host::new(&lab, "a", 1);
    lab.ip("addr add 10.9.0.100/24 dev up-a");
    let switch = Switch::start(&lab, &[1], &[xdp("a", &a)]);
    let warning = "the host itself uses interface `up-a`: it has the address 10.9.0.100/24";
    assert!(switch.log().contains(warning), "{}", switch.log());
    let config = switch.config_path();
    let config = config.to_str().expect("a plain path");
    for words in [&["check", "--host"][..], &["doctor"]] {
        let words = [words, &["--config", config]].concat();
        let (status, text) = Switch::command(&lab, &words);
        assert!(matches!(status.code(), Some(1 | 5)), "{status}: {text}");
        assert!(
            text.contains("up-a: it has the address 10.9.0.100/24"),
            "{text}"
        );
    }
    switch.stop(Signal::TERM);
}

#[test]
fn the_answer_to_a_new_port_says_what_the_host_loses_with_its_interface() {
    let lab = Lab::new(s(30));
    let (a, b, c) = (
        Host::new(&lab, "a", 1),
        Host::new(&lab, "b", 2),
        Host::new(&lab, "c", 3),
    );
    lab.ip("addr add 10.9.0.100/24 dev up-b");
    lab.ip("addr add 10.9.1.100/24 dev up-c");
    let switch = Switch::start(&lab, &[1], &[xdp("a", &a)]);
    let add = ["port", "add", "b", "type=xdp", "interface=up-b"];
    let (status, text) = switch.ask(&add);
    let lost = |interface: &str, address: &str| {
        format!("the host itself uses interface `{interface}`: it has the address {address}")
    };
    assert!(status.success(), "{text}");
    assert!(text.contains(&lost("up-b", "10.9.0.100/24")), "{text}");
    let config = switch.config_path();
    let file = fs::read_to_string(&config).expect("the file");
    fs::write(&config, file + &xdp("c", &c)).expect("the file");
    let (status, text) = switch.ask(&["reload"]);
    assert!(status.success(), "{text}");
    assert!(text.contains(&lost("up-c", "10.9.1.100/24")), "{text}");
    // Only new ports are told of.
    assert!(!text.contains("up-b"), "{text}");
    a.must_ping(&b);
    switch.stop(Signal::TERM);
}

#[test]
fn the_interface_of_the_default_route_is_taken_only_if_the_port_says_so() {
    let lab = Lab::new(s(30));
    let a = Host::new(&lab, "a", 1);
    lab.ip("addr add 10.9.0.100/24 dev up-a");
    lab.ip("route add default via 10.9.0.1 dev up-a");
    let switch = Switch::start_early(&lab, &[1], &[xdp("a", &a)]);
    switch.wait_state(
        "a",
        "interface `up-a` is the host's own: it has the host's default route",
    );
    // The host still has its network.
    a.must_ping_address("10.9.0.100");
    for (name, interface) in [("lo", "interface=lo"), ("b", "interface=up-a")] {
        let add = ["port", "add", name, "type=xdp", interface];
        let (status, text) = switch.ask(&add);
        assert_eq!(status.code(), Some(1), "{text}");
    }
    let (status, text) = switch.ask(&["port", "set", "a", "take_over=true"]);
    assert!(status.success(), "{text}");
    switch.wait_up(&["a"]);
    switch.stop(Signal::TERM);
}

#[test]
fn an_interface_of_another_switch_is_left_alone_and_taken_once_it_is_free() {
    let lab = Lab::new(s(30));
    let (a, b) = (Host::new(&lab, "a", 1), Host::new(&lab, "b", 2));
    let first = Switch::start(&lab, &[1], &[xdp("first", &a), xdp("b", &b)]);
    let second = Switch::start_second_early(&lab, &[1], &[xdp("second", &a)]);
    second.wait_state("second", "`up-a` already has an XDP program");
    a.must_ping(&b);
    first.ledger();
    first.stop_for_another(Signal::TERM);
    second.wait_up(&["second"]);
}

#[test]
fn an_interface_with_another_xdp_program_is_left_alone_and_taken_once_it_is_free() {
    let lab = Lab::new(s(30));
    let a = Host::new(&lab, "a", 1);
    // Any program will do: this one, attached by another program than the switch.
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/../ebpf/crosspoint_xdp.bpf.o");
    lab.ip(&format!("link set up-a xdp object {program} section xdp"));
    let before = lab.ip("link show up-a");
    assert!(before.contains("prog/xdp"), "{before}");
    let switch = Switch::start_early(&lab, &[1], &[xdp("second", &a)]);
    switch.wait_state("second", "`up-a` already has an XDP program");
    assert_eq!(lab.ip("link show up-a"), before);
    lab.ip("link set up-a xdp off");
    switch.wait_up(&["second"]);
}

#[test]
fn a_queue_that_is_not_there_is_named_and_the_other_ports_work() {
    let lab = Lab::new(s(30));
    let (a, b, c) = (
        Host::new(&lab, "a", 1),
        Host::new(&lab, "b", 2),
        Host::new(&lab, "c", 3),
    );
    let ports = [xdp("a", &a), xdp("b", &b), xdp("c", &c) + "queues = [7]\n"];
    let switch = Switch::start_early(&lab, &[1], &ports);
    switch.wait_up(&["a", "b"]);
    switch.wait_state(
        "c",
        "down: interface `up-c` has 1 receive queue(s), so there is no queue 7",
    );
    a.must_ping(&b);
    switch.ledger();
}

#[test]
fn what_is_set_on_an_interface_is_put_back_at_the_end() {
    let lab = Lab::new(s(30));
    let (a, b) = (Host::with_queues(&lab, "a", 1, 4), Host::new(&lab, "b", 2));
    output(&lab, "ethtool -L up-a rx 4 tx 2");
    let settings = || {
        let link = lab.ip("-o link show up-a");
        let mtu = link
            .split_whitespace()
            .skip_while(|word| *word != "mtu")
            .nth(1);
        let channels = output(&lab, "ethtool -l up-a");
        let (status, features) = run(lab.dir(), &a.command("ethtool -k eth0"), s(10));
        assert!(status.success(), "{features}");
        (mtu.expect("an MTU").to_owned(), channels, features)
    };
    let before = settings();
    let keys = "mtu = 1400\nchannels = 4\nrss = \"queues\"\n";
    let switch = Switch::start(&lab, &[1], &[xdp("a", &a) + keys, xdp("b", &b)]);
    let (mtu, channels, features) = settings();
    assert_eq!(mtu, "1400");
    let now = channels.split("Current").nth(1).expect("two lists");
    assert!(now.contains("TX:\t\t4"), "{channels}");
    assert!(features.contains("tx-vlan-offload: off"), "{features}");
    a.must_ping(&b);
    switch.ledger();
    switch.stop(Signal::TERM);
    assert_eq!(settings(), before);
}

#[test]
fn a_port_takes_frames_for_every_address_until_the_switch_ends_however_it_ends() {
    let lab = Lab::new(s(30));
    let (a, b) = (Host::new(&lab, "a", 1), Host::new(&lab, "b", 2));
    // A veth pair does not filter by address, but the setting that the kernel would give a NIC can be read.
    let promiscuous = || {
        ["up-a", "up-b"].map(|link| {
            let text = lab.ip(&format!("-d link show {link}"));
            text.contains("promiscuity 1 ")
        })
    };
    for killed in [false, true] {
        assert_eq!(promiscuous(), [false; 2]);
        let switch = Switch::start(&lab, &[1], &[xdp("a", &a), xdp("b", &b)]);
        assert_eq!(promiscuous(), [true; 2]);
        match killed {
            true => switch.kill(),
            false => switch.stop(Signal::TERM),
        }
    }
    wait_until("the kernel lets go", s(5), || {
        (promiscuous() == [false; 2]).then_some(())
    });
}

#[test]
fn queues_that_the_switch_does_not_take_stay_with_the_kernel() {
    const FLOWS: u64 = 64;
    let lab = Lab::new(s(30));
    let a = Host::with_queues(&lab, "a", 1, 2);
    let b = Host::new(&lab, "b", 2);
    // The kernel of the switch's own host has an address on the wire's end, too.
    lab.ip("addr add 10.9.0.100/24 dev up-a");
    let link = lab.ip("-o link show up-a");
    let mac = link
        .split_whitespace()
        .skip_while(|word| *word != "link/ether")
        .nth(1)
        .expect("a MAC address");
    a.ip(&format!("neigh add 10.9.0.100 lladdr {mac} dev eth0"));
    let switch = Switch::start(&lab, &[1], &[xdp("a", &a) + "queues = [0]\n", xdp("b", &b)]);

    let kernel = UdpSocket::bind("10.9.0.100:7777").expect("an address of this namespace");
    kernel.set_read_timeout(Some(s(1))).expect("a time limit");
    a.inside(|| {
        for _ in 0..FLOWS {
            let socket = UdpSocket::bind("10.9.0.1:0").expect("an address of the host");
            socket
                .send_to(b"for the kernel", "10.9.0.100:7777")
                .expect("sent");
        }
    });
    let received = std::iter::from_fn(|| kernel.recv(&mut [0; 64]).ok()).count() as u64;
    let ledger = switch.ledger();
    assert!(
        received > 0 && received < FLOWS,
        "the kernel got {received} of {FLOWS} flows\n{ledger}"
    );
    assert_eq!(
        ledger.port("a").rx,
        FLOWS - received,
        "and the switch the others\n{ledger}"
    );
}
