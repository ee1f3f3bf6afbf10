//! The supervisor's own death: the switch goes on, and the next supervisor goes on with the switch.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crosspoint_guest::GuestOptions;
use rustix::process::Signal;

use crate::harness::{
    Exchange, Host, Lab, Switch, binary, connect_pair, guest, ping_pong, s, wait_until, xdp,
};

/// Each frame arrives, uplinks and new guests work meanwhile, and the next supervisor has all that it needs for an upgrade and
/// after a crash: also what changed while there was none.
#[test]
fn the_switch_goes_on_without_a_supervisor_and_the_next_one_has_all_records() {
    let lab = Lab::new(s(90));
    let (a, b) = (Host::new(&lab, "a", 1), Host::new(&lab, "b", 2));
    let mut ports: Vec<String> = ["g0", "g1", "late0", "late1"]
        .map(|name| guest(&lab, name))
        .into();
    ports.extend([xdp("a", &a), xdp("b", &b)]);
    let switch = Switch::start_supervised(&lab, &[1], &ports);
    let exchange = Exchange::start(&lab, &switch, ["g0", "g1"]);
    a.must_ping(&b);
    // A process that was upgraded has its predecessor's records too.
    switch.must_upgrade();
    let id = switch.supervised_id();
    let mut late = None;
    switch.replace_supervisor(|| {
        exchange.run(1000);
        a.must_ping(&b);
        let names = ["late0", "late1"];
        late = Some(connect_pair(&lab, &switch, names, &GuestOptions::default()));
        let (status, text) = switch.upgrade(&[]);
        assert!(!status.success(), "{text}");
    });
    assert_eq!(switch.supervised_id(), id, "{}", switch.log());
    let [first, second] = &mut late.expect("two guests");
    for life in 0..3 {
        exchange.run(1000);
        ping_pong(first, second, 10 * life);
        match life {
            0 => drop(switch.must_upgrade()),
            1 => switch.replace_supervisor(|| exchange.run(100)),
            _ => {}
        }
    }
    exchange.run(1000);
    exchange.stop();
    switch.end_supervised(Signal::KILL);
    ping_pong(first, second, 100);
    switch.wait_up(&["a", "b"]);
    a.must_ping(&b);
    switch.must_upgrade();
    ping_pong(first, second, 101);
    switch.ledger();
}

/// As when nothing restarts the supervisor, and when the service manager removes the service's folder.
#[test]
fn a_switch_without_a_supervisor_ends_in_order_in_time_and_at_once_when_the_service_is_stopped() {
    for is_stopped in [false, true] {
        let lab = Lab::new(s(60));
        let a = Host::new(&lab, "a", 1);
        let switch = Switch::start_supervised(&lab, &[1], &[guest(&lab, "g0"), xdp("a", &a)]);
        let id = switch.supervised_id();
        switch.kill_supervisor();
        let begun = Instant::now();
        if is_stopped {
            let file = format!("{}.switch", lab.socket("supervisor").display());
            fs::remove_file(file).expect("the socket at which it waits");
        }
        wait_until("the end of the switch", s(20), || {
            (!PathBuf::from(format!("/proc/{id}")).exists()).then_some(())
        });
        let log = switch.log();
        assert!(log.contains("no other supervisor has started"), "{log}");
        // It would have waited for eight seconds.
        assert_eq!(begun.elapsed() < s(6), is_stopped, "{:?}", begun.elapsed());
        switch.assert_left_nothing();
    }
}

/// The supervisor is killed at ever later moments of an upgrade: one of the two processes goes on, and no frame is lost.
#[test]
fn a_supervisor_that_dies_during_an_upgrade_costs_no_frame() {
    let lab = Lab::new(s(120));
    let (a, b) = (Host::new(&lab, "a", 1), Host::new(&lab, "b", 2));
    let ports = [
        guest(&lab, "g0"),
        guest(&lab, "g1"),
        xdp("a", &a),
        xdp("b", &b),
    ];
    let switch = Switch::start_supervised(&lab, &[1], &ports);
    let exchange = Exchange::start(&lab, &switch, ["g0", "g1"]);
    for pause_ms in (0..24).map(|step| step * step) {
        std::thread::scope(|scope| {
            scope.spawn(|| switch.upgrade(&[]));
            std::thread::sleep(Duration::from_millis(20 + pause_ms));
            switch.replace_supervisor(|| exchange.run(100));
        });
        exchange.run(500);
        wait_until("one process", s(5), || {
            (switch.count_processes() == 1).then_some(())
        });
    }
    switch.wait_up(&["a", "b"]);
    a.must_ping(&b);
    switch.must_upgrade();
    exchange.run(1000);
    let frames = exchange.stop();
    // The counters went along each time.
    switch.ledger().assert_exchanged(["g0", "g1"], frames);
}

/// Ten seconds after an upgrade the supervisor is the new program too, and knows the former one of the switch.
#[test]
fn the_supervisor_becomes_the_installed_program_after_an_upgrade() {
    let lab = Lab::new(s(90));
    let program = lab.dir().join("installed");
    let install = || {
        let new = program.with_extension("new");
        fs::copy(binary(), &new).expect("a copy");
        fs::rename(&new, &program).expect("a file");
    };
    install();
    let switch = Switch::start_supervised_by(
        &program,
        &lab,
        &[1],
        &["g0", "g1"].map(|name| guest(&lab, name)),
    );
    let exchange = Exchange::start(&lab, &switch, ["g0", "g1"]);
    let supervisor = switch.id();
    let runs = || fs::read_link(format!("/proc/{supervisor}/exe")).expect("it runs");
    install();
    assert!(runs().to_string_lossy().ends_with(" (deleted)"));
    switch.must_upgrade();
    let id = switch.supervised_id();
    wait_until("the installed program", s(30), || {
        exchange.run(100);
        (runs() == program).then_some(())
    });
    wait_until("the new supervisor", s(5), || {
        switch
            .log()
            .contains("goes on with the switch")
            .then_some(())
    });
    exchange.run(1000);
    assert_eq!((switch.id(), switch.supervised_id()), (supervisor, id));
    let (status, text) = switch.upgrade(&["--back"]);
    assert!(status.success(), "{text}");
    exchange.run(1000);
    exchange.stop();
    switch.end_supervised(Signal::KILL);
    switch.ledger();
}
