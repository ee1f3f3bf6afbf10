//! Guests that come, go, crash and reboot while others work: the others lose nothing.

use crosspoint_guest::{Guest, GuestOptions};

use crate::harness::{
    Exchange, Lab, Ledger, LinuxGuest, Switch, Testpmd, TestpmdPort, frame, guest, mac, s,
};

/// What two guests exchange before, during and after a disturbance.
const FRAMES: u64 = 20_000;

fn assert_nothing_lost(ledger: &Ledger) {
    for name in ["calm0", "calm1"] {
        assert_eq!(
            ledger.port(name).dropped_copies,
            0,
            "frames of {name}\n{ledger}"
        );
    }
}

#[test]
fn a_dpdk_guest_killed_under_load_costs_others_nothing_and_comes_back() {
    let lab = Lab::new(s(90));
    let ports = ["calm0", "calm1", "victim", "sink"].map(|name| guest(&lab, name));
    let switch = Switch::start(&lab, &[1], &ports);
    let mut sink =
        Guest::connect(lab.socket("sink"), GuestOptions::default()).expect("the guest connects");
    sink.send(0, &[&frame(mac(200), mac(4), 0, 60)])
        .expect("a ring");
    let exchange = Exchange::start(&lab, ["calm0", "calm1"]);
    exchange.run(FRAMES);
    for _ in 0..3 {
        let before = switch.metrics().sum(
            "crosspoint_queue_packets_total",
            &[("port", "victim"), ("direction", "rx")],
        );
        let mut victim = flood_from(&lab, &switch);
        exchange.run(FRAMES);
        victim.kill();
        switch.wait_down(&["victim"]);
        exchange.run(FRAMES);
        let after = switch.metrics().sum(
            "crosspoint_queue_packets_total",
            &[("port", "victim"), ("direction", "rx")],
        );
        assert!(
            after > before + 1000,
            "the victim was sending: {before}, then {after}"
        );
    }
    exchange.stop();
    assert_nothing_lost(&switch.ledger());
}

/// A testpmd on port "victim" that sends to the sink as fast as it can.
fn flood_from(lab: &Lab, switch: &Switch<'_>) -> Testpmd {
    let port = TestpmdPort::virtio(lab, 0, "victim", "queues=1,queue_size=256");
    let sink = mac(4).map(|byte| format!("{byte:02x}")).join(":");
    let options = format!("--forward-mode=txonly --eth-peer=0,{sink} --total-num-mbufs=8192");
    let mut testpmd = Testpmd::start(lab, "victim", &[port], &options);
    testpmd.wait_ready();
    switch.wait_up(&["victim"]);
    testpmd.command("start");
    testpmd
}

#[test]
fn a_uml_guest_killed_costs_others_nothing_and_boots_again() {
    let lab = Lab::new(s(90));
    let ports = ["calm0", "calm1", "victim", "peer"].map(|name| guest(&lab, name));
    let switch = Switch::start(&lab, &[1], &ports);
    let peer = "--job server --ip 10.9.0.12/24 --mac 52:54:00:09:00:02";
    let mut peer = LinuxGuest::uml(&lab, "peer", peer);
    peer.wait_ready();
    let exchange = Exchange::start(&lab, ["calm0", "calm1"]);
    for _ in 0..2 {
        let client =
            "--job client --ip 10.9.0.11/24 --mac 52:54:00:09:00:01 --secs 20 --peer 10.9.0.12";
        let mut victim = LinuxGuest::uml(&lab, "victim", client);
        victim.wait_for("RESULT ping=ok");
        exchange.run(FRAMES);
        victim.kill();
        switch.wait_down(&["victim"]);
        exchange.run(FRAMES);
    }
    exchange.stop();
    assert_nothing_lost(&switch.ledger());
}

#[test]
fn a_guest_that_reboots_starts_over() {
    let lab = Lab::new(s(60));
    let ports = ["calm0", "calm1", "rebooting", "peer"].map(|name| guest(&lab, name));
    let switch = Switch::start(&lab, &[1], &ports);
    let connect = |name| {
        Guest::connect(lab.socket(name), GuestOptions::default()).expect("the guest connects")
    };
    let (mut rebooting, mut peer) = (connect("rebooting"), connect("peer"));
    let exchange = Exchange::start(&lab, ["calm0", "calm1"]);
    for number in 0..5 {
        switch.wait_up(&["rebooting", "peer"]);
        ping_pong(&mut rebooting, &mut peer, number);
        exchange.run(FRAMES / 10);
        // Rings stopped, and forgotten, as the firmware of the next boot does; then the driver starts them anew.
        rebooting.stop().expect("the rings stop");
        rebooting.reset(0);
        rebooting.disconnect();
        switch.wait_down(&["rebooting"]);
        rebooting.reconnect().expect("the guest connects again");
    }
    exchange.stop();
    assert_nothing_lost(&switch.ledger());
}

/// A frame there and a frame back.
fn ping_pong(a: &mut Guest, b: &mut Guest, number: u32) {
    for (from, to, to_mac, from_mac) in [(0, 1, 22, 21), (1, 0, 21, 22)] {
        let sent = frame(mac(to_mac), mac(from_mac), number, 1000);
        let guests = [&mut *a, &mut *b];
        assert_eq!(guests[from].send(0, &[&sent]).expect("a ring"), 1);
        let frames = guests[to].receive_at_least(0, 1, s(5)).expect("a ring");
        assert!(
            frames.iter().any(|(_, bytes)| *bytes == sent),
            "frame {number}: {} others",
            frames.len()
        );
    }
}

#[test]
fn twenty_attachments_under_load_cost_others_nothing() {
    let lab = Lab::new(s(60));
    let ports = ["calm0", "calm1", "visited"].map(|name| guest(&lab, name));
    let switch = Switch::start(&lab, &[1], &ports);
    let exchange = Exchange::start(&lab, ["calm0", "calm1"]);
    exchange.run(FRAMES);
    for number in 0..20 {
        let mut visitor = Guest::connect(lab.socket("visited"), GuestOptions::default())
            .expect("the guest connects");
        switch.wait_up(&["visited"]);
        let hello = frame(mac(101), mac(30), number, 300);
        visitor.send(0, &[&hello]).expect("a ring");
        assert!(
            visitor.drain_transmit(0, s(5)).expect("a ring"),
            "visit {number}: the frame is taken"
        );
        drop(visitor);
        switch.wait_down(&["visited"]);
        exchange.run(FRAMES / 20);
    }
    exchange.stop();
    let ledger = switch.ledger();
    assert_nothing_lost(&ledger);
    assert_eq!(
        ledger.port("visited").delivered_copies,
        20,
        "and those of the visitors arrived\n{ledger}"
    );
}
