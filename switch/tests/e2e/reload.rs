//! A running switch is made another by its files and by commands, as an operator does it.

use std::fs;

use rustix::process::Signal;

use crate::harness::{Host, Lab, Switch, guest, s, wait_until, xdp};

#[test]
fn an_operator_changes_a_running_switch_and_those_who_talk_do_not_notice() {
    let lab = Lab::new(s(60));
    let (a, b) = (Host::new(&lab, "a", 1), Host::new(&lab, "b", 2));
    let switch = Switch::start(&lab, &[1], &[xdp("a", &a), xdp("b", &b)]);
    let mut pings = a.ping_in_background(&b, 300);

    let ports_d = lab.dir().join("ports.d");
    fs::create_dir(&ports_d).expect("a folder");
    let main = switch.config_path();
    let text = fs::read_to_string(&main).expect("the file");
    let with_folder = text.replacen('\n', "\nports_dir = \"ports.d\"\n", 1);
    fs::write(&main, &with_folder).expect("the file");
    let file = ports_d.join("web-1.toml");
    fs::write(&file, guest(&lab, "web-1")).expect("the file");

    // Plan, and nothing happens; reload, and it does; plan, and there is nothing left.
    let (ended, text) = switch.ask(&["plan"]);
    assert!(
        ended.code() == Some(2) && text.contains("+ port web-1"),
        "{text}"
    );
    assert!(!switch.show("ports").contains("web-1"));
    let (ended, text) = switch.ask(&["reload"]);
    assert!(ended.success() && text.contains("+ port web-1"), "{text}");
    assert!(switch.show("ports").contains("web-1"));
    assert_eq!(switch.ask(&["plan"]).0.code(), Some(0));

    // A mistake changes nothing, and says where it is and how to mend it.
    fs::write(&file, guest(&lab, "web-1") + "mac_limit = -1\n").expect("the file");
    let (ended, text) = switch.ask(&["reload"]);
    let said = ["web-1.toml:5:", "mac_limit", "help:"];
    assert!(ended.code() == Some(1), "{text}");
    assert!(said.iter().all(|part| text.contains(part)), "{text}");
    fs::write(&file, guest(&lab, "web-1") + "mac_limit = 7\n").expect("the file");

    // The signal does the same as the command.
    switch.signal(Signal::HUP);
    wait_until("the signal's reload", s(10), || {
        (switch.ask(&["plan"]).0.code() == Some(0)).then_some(())
    });

    // By commands, for now and for good.
    let socket = format!("socket={}", lab.socket("web-2").display());
    let add = ["port", "add", "web-2", "type=vhost", &socket, "--keep"];
    let (ended, text) = switch.ask(&add);
    assert!(ended.success(), "{text}");
    let (ended, text) = switch.ask(&["port", "set", "web-2", "vlan.access=5", "--keep"]);
    assert!(ended.success() && text.contains("in place"), "{text}");
    let kept = fs::read_to_string(ports_d.join("web-2.toml")).expect("its file");
    assert!(kept.contains("access = 5"), "{kept}");
    assert_eq!(switch.ask(&["plan"]).0.code(), Some(0));
    assert!(
        switch
            .ask(&["port", "remove", "web-2", "--keep"])
            .0
            .success()
    );
    let (ended, text) = switch.ask(&["port", "set", "a", "nonsense=1"]);
    assert!(
        ended.code() == Some(1) && text.contains("nonsense"),
        "{text}"
    );

    pings.wait_for("300 received", s(20));
    switch.stop(Signal::TERM);
}
