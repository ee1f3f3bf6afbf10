//! An operator takes a guest off the network, and lets it in again.

use std::time::Duration;

use crosspoint_guest::{Guest, GuestOptions};
use rustix::process::Signal;

use crate::harness::{Lab, Switch, frame, guest, mac, ping_pong, s, wait_until};

#[test]
fn a_guest_is_taken_off_the_network_and_let_in_again_with_its_front_end_connected() {
    let lab = Lab::new(s(60));
    let switch = Switch::start(&lab, &[1], &[guest(&lab, "g0"), guest(&lab, "g1")]);
    let mut guests = ["g0", "g1"].map(|name| {
        let guest = Guest::connect(lab.socket(name), GuestOptions::default());
        guest.expect("the guest connects")
    });
    switch.wait_up(&["g0", "g1"]);
    let [a, b] = &mut guests;
    ping_pong(a, b, 1);

    let (status, text) = switch.ask(&["port", "disable", "g1"]);
    assert!(status.success(), "{text}");
    assert!(
        switch.state("g1").starts_with("disabled"),
        "{}",
        switch.state("g1")
    );
    let (_, health) = switch.ask(&["health", "--ready"]);
    assert!(health.contains("1 disabled"), "{health}");
    let metrics = switch.metrics();
    let disabled = [("port", "g1"), ("state", "disabled")];
    assert_eq!(metrics.sum("crosspoint_port_state", &disabled), 1);
    let is_known = |switch: &Switch<'_>| {
        let known = switch.show_json("fdb")["addresses"].clone();
        let known = known.as_array().cloned().unwrap_or_default();
        known.iter().any(|entry| entry["port"] == "g1")
    };
    assert!(!is_known(&switch), "its addresses are forgotten");
    let rx = |switch: &Switch<'_>| switch.ledger().port("g1").rx;
    let before = rx(&switch);
    let waiting = frame(mac(21), mac(22), 0, 60);
    assert_eq!(b.send(0, &[&waiting]).expect("a ring"), 1);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(rx(&switch), before, "no worker polls it");

    let (status, text) = switch.ask(&["port", "enable", "g1"]);
    assert!(status.success(), "{text}");
    switch.wait_up(&["g1"]);
    let is_taken = || (rx(&switch) == before + 1).then_some(());
    wait_until("its waiting frame is taken", s(5), is_taken);
    ping_pong(a, b, 2);
    let connections = switch.show_json("guests");
    let connections = connections.as_array().cloned().unwrap_or_default();
    let of_g1 = connections
        .iter()
        .find(|row| row["port"] == "g1")
        .cloned()
        .unwrap_or_default();
    assert_eq!(of_g1["connections"], 1, "{of_g1}");
    switch.stop(Signal::TERM);
}
