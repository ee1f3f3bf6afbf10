//! Two wires into one network: its spanning tree sees the loop where it is let, and without one the loop is told of.

use std::time::Duration;

use crate::harness::{Host, Lab, Switch, s, wait_until, xdp};

/// A network behind two wires: a bridge of the kernel's. Returns the second wire's end at the switch.
fn network(host: &Host<'_>, stp: bool) -> String {
    let second = host.add_wire("eth1");
    let stp = u8::from(stp);
    host.ip("addr flush dev eth0");
    // The shortest delay that there is, two seconds.
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

/// What the kernel's bridge does with a port (`BR_STATE_*`): 3 forwards, 4 is blocked.
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
    // Whatever VLANs the ports are in: control frames are in none.
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
fn a_loop_that_nobody_sees_is_told_of_until_it_is_over() {
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
        // A broadcast, which goes round from now on.
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
