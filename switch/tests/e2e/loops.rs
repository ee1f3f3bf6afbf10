//! Two wires into one network. Its spanning tree sees the loop if control frames are forwarded. Without a spanning tree, the
//! loop is reported, and broken by probes if configured.

use std::time::{Duration, Instant};

use crate::harness::{Host, Lab, Switch, s, wait_until, xdp};

/// A network behind two wires: a bridge of the kernel. Returns the second wire's end at the switch.
fn network(host: &Host<'_>, stp: bool) -> String {
    let second = host.add_wire("eth1");
    let stp = u8::from(stp);
    host.ip("addr flush dev eth0");
    // The shortest possible delay, two seconds.
    host.ip(&format!(
        "link add br0 type bridge stp_state {stp} forward_delay 200 hello_time 100"
    ));
    for link in ["eth0", "eth1"] {
        host.ip(&format!("link set {link} master br0"));
        host.ip(&format!("link set {link} up"));
    }
    second
}

fn uplink(name: &str, interface: &str, keys: &str) -> String {
    format!("[[port]]\nname = \"{name}\"\ntype = \"xdp\"\ninterface = \"{interface}\"\n{keys}")
}

/// The states of the kernel bridge's ports (`BR_STATE_*`): 3 forwards, 4 is blocked.
fn states(network: &Host<'_>) -> Vec<u32> {
    let text =
        network.must_run("cat /sys/class/net/eth0/brport/state /sys/class/net/eth1/brport/state");
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

#[test]
fn a_spanning_tree_sees_a_loop_through_ports_that_forward_it() {
    let lab = Lab::new(s(60));
    let (n, a) = (Host::new(&lab, "n", 1), Host::new(&lab, "a", 2));
    let second = network(&n, true);
    let keys = "forward_control = [\"stp\"]\n";
    // The ports may be in any VLANs: control frames belong to none.
    let trunk = format!("{keys}vlan = {{ trunk = [100] }}\n");
    let ports = [
        uplink("n1", &n.interface, keys),
        uplink("n2", &second, &trunk),
        xdp("a", &a),
    ];
    let switch = Switch::start(&lab, &[1], &ports);
    let seen = a.listen("stp");
    n.ip("link set br0 up");
    wait_until("one port forwards and the other is blocked", s(30), || {
        let mut states = states(&n);
        states.sort_unstable();
        (states == [3, 4]).then_some(())
    });
    assert!(!seen.log().contains("STP"), "{}", seen.log());
    let ledger = switch.ledger();
    let dropped = |port: &str| ledger.port(port).drops.get("link_local").copied();
    assert_eq!((dropped("n1"), dropped("n2")), (None, None), "{ledger}");
    assert!(switch.ask(&["show", "port", "n1"]).1.contains("stp"));
}

#[test]
fn a_loop_that_no_protocol_sees_is_told_of_until_it_is_over() {
    let lab = Lab::new(s(60));
    let (n, a) = (Host::new(&lab, "n", 1), Host::new(&lab, "a", 2));
    let second = network(&n, false);
    let ports = [
        uplink("n1", &n.interface, ""),
        uplink("n2", &second, ""),
        xdp("a", &a),
    ];
    let switch = Switch::start(&lab, &[1], &ports);
    n.ip("link set br0 up");
    let looping = |port: &str| {
        switch
            .metrics()
            .sum("crosspoint_port_looping", &[("port", port)])
    };
    assert_eq!((looping("n1"), looping("n2"), looping("a")), (0, 0, 0));
    wait_until("the loop is told of", s(30), || {
        // A broadcast, which circulates from now on.
        a.send_frame(&[&[0xff; 6][..], &[2, 0, 0, 0, 0, 9], &[0x88, 0xb5], &[0; 46]].concat());
        std::thread::sleep(Duration::from_millis(100));
        (looping("n1") == 1 && looping("n2") == 1).then_some(())
    });
    let log = switch.log();
    assert!(log.contains("a loop: the same addresses come in"), "{log}");
    assert_eq!(looping("a"), 0);
    n.ip("link set eth1 down");
    wait_until("the loop is over", s(30), || {
        (looping("n1") == 0 && looping("n2") == 0).then_some(())
    });
    assert!(switch.log().contains("the loop is over"));
    switch.ledger();
}

#[test]
fn a_loop_that_a_probe_goes_round_is_broken_until_it_is_over() {
    let lab = Lab::new(s(120));
    let (n, a) = (Host::new(&lab, "n", 1), Host::new(&lab, "a", 2));
    let second = network(&n, false);
    // Otherwise the bridge has the address of one of its ports, and another when that port goes away.
    n.ip("link set br0 address 02:00:00:00:0b:00");
    n.ip(&format!("addr add {}/24 dev br0", n.address));
    let keys = "vlan = { access = 7 }\nloop_protect = {}\n";
    let ports = [
        uplink("n1", &n.interface, keys),
        uplink("n2", &second, keys),
        xdp("a", &a) + "vlan = { trunk = [9], native = 7 }\n",
    ];
    let switch = Switch::start(&lab, &[1], &ports);
    let is = |name: &str, labels: &[(&str, &str)]| switch.metrics().sum(name, labels) == 1;
    let looping = |port| is("crosspoint_port_looping", &[("port", port)]);
    let said = |text: &str| {
        let log = switch.log();
        assert!(log.contains(text), "no {text:?} in {log}");
    };

    // Reported without any traffic except the probes.
    n.ip("link set br0 up");
    wait_until("the loop is told of", s(30), || {
        (looping("n1") && looping("n2")).then_some(())
    });
    assert!(!looping("a"));
    said("a loop: a probe that left through port n");
    said("no port is blocked");
    let (ended, text) = switch.ask(&["health", "--ready"]);
    assert!(
        ended.success() && text.contains("warning: a loop goes through port n2"),
        "{text}"
    );

    // Broken. Until then a broadcast circulates.
    let broadcast = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 9], &[0x88, 0xb5], &[0; 46]].concat();
    a.send_frame(&broadcast);
    let block = "loop_protect={ action = \"block\", block_time = \"1s\" }";
    for port in ["n1", "n2"] {
        let (ended, text) = switch.ask(&["port", "set", port, block]);
        assert!(ended.success() && text.contains("in place"), "{text}");
    }
    let start = Instant::now();
    let blocked = |port| {
        let labels = [("port", port), ("state", "blocked")];
        is("crosspoint_port_state", &labels)
    };
    wait_until("a port is blocked", s(30), || {
        (blocked("n1") || blocked("n2")).then_some(())
    });
    // One of the two is blocked: the one whose name comes later, unless only the first was due to be blocked yet.
    let (other, port) = match blocked("n1") {
        true => ("n2", "n1"),
        false => ("n1", "n2"),
    };
    let rx = || {
        let labels = [("port", other), ("direction", "rx")];
        switch
            .metrics()
            .sum("crosspoint_queue_packets_total", &labels)
    };
    let mut before = rx();
    wait_until("nothing goes round any more", s(30), || {
        std::thread::sleep(Duration::from_millis(200));
        let now = rx();
        (now - std::mem::replace(&mut before, now) < 20).then_some(())
    });
    println!("nothing goes round after {:?}", start.elapsed());
    said(&format!("port {port} is blocked for 1 s"));
    let state = format!("blocked: a loop through it and port {other}; it is unblocked ");
    assert!(
        switch.state(port).starts_with(&state),
        "{}",
        switch.state(port)
    );
    assert!(switch.state(other).starts_with("up: "));
    let (status, body) = switch.get("/readyz");
    let warning = format!("warning: port {port} is blocked: a loop through it and port {other}");
    assert!(status == 200 && body.contains(&warning), "{body}");
    assert!(switch.ask(&["health"]).1.contains(&warning));
    // The network is reached by the other port, and frames that come in here are dropped.
    a.must_ping(&n);
    n.must_ping(&a);
    let labels = [("port", port), ("reason", "loop_blocked")];
    let drops = || switch.metrics().sum("crosspoint_drops_total", &labels);
    wait_until("frames are dropped at the blocked port", s(20), || {
        n.send_frame_on("br0", &broadcast);
        (drops() > 0).then_some(())
    });

    let wire = if port == "n1" { "eth0" } else { "eth1" };
    n.ip(&format!("link set {wire} nomaster"));
    wait_until("the port is let in again", s(30), || {
        (!blocked(port)).then_some(())
    });
    said("the loop is over");
    said("no longer blocked");
    assert!(switch.state(port).starts_with("up: "));
    a.must_ping(&n);
    switch.ledger();
}
