//! Mirrors of a running switch: a guest that inspects others, a remote mirror through an uplink, and changes by a reload.

use crate::harness::{Host, Lab, Switch, guest, ping_pong, s, wait_until, xdp};

const LOCAL: &str = "[[mirror]]\nname = \"ids\"\nports = [\"g*\"]\nto = \"ids\"\n";
const REMOTE: &str = "[[mirror]]\nname = \"remote\"\nports = [\"g0\"]\ndirection = \"received\"\nto = \"up0\"\nto_vlan = 999\n";

/// The row of a mirror.
fn row(switch: &Switch<'_>, name: &str) -> Option<serde_json::Value> {
    let rows = switch.show_json("mirrors");
    let rows = rows.as_array().cloned().unwrap_or_default();
    rows.into_iter().find(|row| row["name"] == name)
}

#[test]
fn a_mirror_copies_each_frame_once_and_is_changed_by_a_reload() {
    let lab = Lab::new(s(60));
    let host = Host::new(&lab, "up0", 1);
    let ports = ["g0", "g1", "ids"].map(|name| guest(&lab, name));
    let ports = [&ports[..], &[xdp("up0", &host), LOCAL.to_owned()]].concat();
    let switch = Switch::start(&lab, &[1], &ports);
    let [mut a, mut b, mut ids] = ["g0", "g1", "ids"].map(|name| lab.connect(name));
    switch.wait_up(&["g0", "g1", "ids", "up0"]);
    ping_pong(&mut a, &mut b, 1);
    let first = ids.receive(0).expect("a ring").len();
    let counted = row(&switch, "ids").expect("a mirror");
    // The two frames that were exchanged, and perhaps frames of the host's kernel for all.
    assert!(first >= 2, "{first} copies, {counted}");
    assert_eq!(counted["missed"], 0, "{counted}");
    assert_eq!(switch.ledger().fault(), None);
    assert!(
        switch.state("ids").contains("mirror ids"),
        "{}",
        switch.state("ids")
    );

    // The mirror goes to the uplink's VLAN 999 now, and its former port is an ordinary one again.
    let listener = host.listen("vlan 999");
    let path = switch.config_path();
    let text = std::fs::read_to_string(&path).expect("the configuration");
    std::fs::write(&path, text.replace(LOCAL, REMOTE)).expect("the configuration");
    let (_, plan) = switch.ask(&["plan"]);
    assert!(
        plan.contains("mirror remote") && plan.contains("mirror ids"),
        "{plan}"
    );
    let (status, text) = switch.ask(&["reload"]);
    assert!(status.success(), "{text}");
    assert!(row(&switch, "ids").is_none());
    ping_pong(&mut a, &mut b, 2);
    wait_until("the remote copy", s(10), || {
        let copied = row(&switch, "remote")?["copied"].as_u64()?;
        (copied >= 1).then_some(())
    });
    wait_until("the copy arrives with its tag", s(10), || {
        listener.log().contains("vlan 999").then_some(())
    });
    assert!(
        !switch.state("ids").contains("mirror"),
        "{}",
        switch.state("ids")
    );
    assert_eq!(switch.ledger().fault(), None);
}
