//! What the daemon says of an interface that it cannot use, and what it leaves to the kernel.

use std::net::UdpSocket;

use rustix::process::Signal;

use crate::harness::{Host, Lab, Switch, s, wait_until, xdp};

/// The daemon must refuse to start, and its message must name the port and the interface.
fn refused(lab: &Lab, ports: &[String], port: &str, interface: &str, why: &[&str]) {
    let (status, text) = Switch::refused(lab, ports);
    assert!(
        !status.success() && status.code().is_some(),
        "{status:?}\n{text}"
    );
    assert!(
        text.contains(port) && text.contains(interface),
        "the message names port and interface:\n{text}"
    );
    let lower = text.to_lowercase();
    assert!(
        why.iter().any(|word| lower.contains(word)),
        "the message says why:\n{text}"
    );
    assert!(!lower.contains("panicked"), "{text}");
}

#[test]
fn a_missing_interface_is_named_and_nothing_starts() {
    let lab = Lab::new(s(30));
    let a = Host::new(&lab, "a", 1);
    let missing =
        "[[port]]\nname = \"lost\"\ntype = \"xdp\"\ninterface = \"nowhere0\"\n".to_owned();
    refused(
        &lab,
        &[xdp("a", &a), missing],
        "lost",
        "nowhere0",
        &[
            "no such",
            "not exist",
            "no interface",
            "not found",
            "there is no",
        ],
    );
    assert!(!lab.socket("control").exists());
    assert!(
        !lab.ip("link show up-a").contains("xdp"),
        "the good port is let go"
    );
}

#[test]
fn an_interface_that_is_down_is_named_and_nothing_starts() {
    let lab = Lab::new(s(30));
    let a = Host::new(&lab, "a", 1);
    lab.ip("link set up-a down");
    refused(&lab, &[xdp("sleepy", &a)], "sleepy", "up-a", &["down"]);
}

#[test]
fn an_interface_of_another_switch_is_named_and_left_alone() {
    let lab = Lab::new(s(30));
    let (a, b) = (Host::new(&lab, "a", 1), Host::new(&lab, "b", 2));
    let switch = Switch::start(&lab, &[1], &[xdp("first", &a), xdp("b", &b)]);
    refused(
        &lab,
        &[xdp("second", &a)],
        "second",
        "up-a",
        &["xdp program"],
    );
    a.must_ping(&b);
    switch.ledger();
}

#[test]
fn an_interface_with_another_xdp_program_is_named_and_left_alone() {
    let lab = Lab::new(s(30));
    let a = Host::new(&lab, "a", 1);
    // Any program will do: this one, attached by somebody who is not the switch.
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/../ebpf/crosspoint_xdp.bpf.o");
    lab.ip(&format!("link set up-a xdp object {program} section xdp"));
    let before = lab.ip("link show up-a");
    assert!(before.contains("prog/xdp"), "{before}");
    refused(
        &lab,
        &[xdp("second", &a)],
        "second",
        "up-a",
        &["xdp program"],
    );
    assert_eq!(lab.ip("link show up-a"), before);
}

#[test]
fn a_port_takes_frames_for_every_address_until_the_switch_ends_however_it_ends() {
    let lab = Lab::new(s(30));
    let (a, b) = (Host::new(&lab, "a", 1), Host::new(&lab, "b", 2));
    // A veth pair has no filter of addresses; what the kernel would tell a NIC's can be seen all the same.
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
    // The kernel of the switch's own machine listens on the wire's end, too.
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
