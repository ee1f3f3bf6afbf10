//! A guest with its own NIC queue on a real wire: the first guest's frames leave at one end of the wire and come in
//! again at the other end, where the second guest is.

use std::process::Command;
use std::sync::Arc;

use crosspoint_config::{Config, PortKind};
use crosspoint_daemon::dataplane::PortOptions;
use crosspoint_daemon::ports::nic::{UplinkOptions, Uplinks};
use crosspoint_daemon::ports::vhost::VhostPort;
use crosspoint_engine::bridge::vlan::VlanPolicy;
use crosspoint_guest::message::protocol;
use crosspoint_model::status::ShownState;
use rustix::thread::{UnshareFlags, unshare_unsafe};
use tempfile::TempDir;

use super::load::{Load, Loss};
use super::memory::visit_new_memory;
use super::{Case, Housekeeper, Switch, dataplane};

pub(super) fn run(line: &str) {
    let mut words = line.split_whitespace();
    let status = Command::new(words.next().expect("a program"))
        .args(words)
        .status();
    assert!(status.expect("iproute2").success(), "{line}");
}

/// Moves the thread into its own namespaces.
pub(super) fn leave_for_a_wire() {
    assert!(
        rustix::process::geteuid().is_root(),
        "this test makes a network namespace: run it as root"
    );
    // SAFETY: no file descriptors are unshared.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS) }.expect("namespaces");
    run("mount --make-rprivate /");
    run("mount -t sysfs sysfs /sys");
    for kind in ["all", "default"] {
        let file = format!("/proc/sys/net/ipv6/conf/{kind}/disable_ipv6");
        std::fs::write(file, "1").expect("the kernel has IPv6");
    }
    lay_wire();
}

/// Creates `near` and `wire`, the two ends of a wire with two queues.
fn lay_wire() {
    let queues = "numrxqueues 2 numtxqueues 2";
    run(&format!(
        "ip link add near {queues} type veth peer name wire {queues}"
    ));
    for end in ["near", "wire"] {
        run(&format!("ip link set {end} up"));
    }
}

/// A switch with guest `a` at one end of the wire and guest `b` at the other.
struct Wired {
    _uplinks: Uplinks,
    switch: Switch,
}

impl Wired {
    fn new(workers: usize) -> Wired {
        leave_for_a_wire();
        let directory = Arc::new(tempfile::tempdir().expect("a directory can be made"));
        let dataplane = dataplane(workers, 3);
        let (mut ports, mut uplinks) = (Vec::new(), Vec::new());
        let config = config(&directory);
        // The uplink is opened after the guest that owns a queue of it.
        for port in &config.ports {
            let first = ["a", "near"].contains(&port.name.as_str());
            let number = dataplane.add_port(PortOptions {
                name: port.name.clone(),
                kind: "",
                vlan: VlanPolicy::Access(if first { 10 } else { 20 }),
                queues: 2,
                ..PortOptions::default()
            });
            let number = number.expect("a number is free");
            match &port.kind {
                PortKind::Vhost(vhost) => {
                    let open = VhostPort::open(dataplane.clone(), number, &port.name, vhost);
                    ports.push(open.expect("nothing is in the way"));
                }
                PortKind::Xdp(xdp) => uplinks.push(UplinkOptions {
                    number,
                    name: port.name.clone(),
                    config: xdp.clone(),
                    direct: config.direct_queues(&port.name),
                }),
            }
        }
        let uplinks = Uplinks::start(&dataplane, uplinks).expect("root may do so");
        let switch = Switch {
            _ports: ports,
            _housekeeper: Housekeeper::start(dataplane.clone()),
            dataplane,
            directory,
        };
        Wired {
            _uplinks: uplinks,
            switch,
        }
    }

    fn wait_direct(&self, text: &str) {
        self.switch.wait("a", |port| {
            port.properties
                .get("direct")
                .is_some_and(|direct| direct.contains(text))
        });
    }

    /// Number of frames that arrived over the wire from the first guest's own queue.
    fn came_by_own_queue(&self) -> u64 {
        self.switch.port("wire").queues[1].rx_packets
    }
}

fn config(directory: &TempDir) -> Config {
    let at = |name: &str| directory.path().join(name).display().to_string();
    let text = format!(
        r#"
        version = 1
        [[port]]
        name = "a"
        type = "vhost"
        socket = "{}"
        direct = {{ uplink = "near", queue = 1 }}
        [[port]]
        name = "near"
        type = "xdp"
        interface = "near"
        [[port]]
        name = "wire"
        type = "xdp"
        interface = "wire"
        [[port]]
        name = "b"
        type = "vhost"
        socket = "{}"
        "#,
        at("a"),
        at("b")
    );
    Config::parse("test", &text).unwrap_or_else(|error| panic!("{error}"))
}

/// A selection of cases, since namespaces and wires take time.
fn each(test: impl Fn(Case)) {
    for (workers, packed, in_order) in [(1, false, false), (2, true, true), (1, true, false)] {
        let case = Case {
            packed,
            in_order,
            workers,
        };
        println!("{case:?}");
        test(case);
    }
}

const OPEN: &str = "near queue 1, copy";

/// Rings stop, and memory comes and goes: the queue is closed and reopened, and no frame of the guest is lost, doubled
/// or late.
#[test]
fn a_queue_of_ones_own_loses_nothing() {
    each(|case| {
        let wired = Wired::new(case.workers);
        let switch = &wired.switch;
        let mut a = switch.guest("a", case.guest(protocol::CONFIGURE_MEM_SLOTS));
        let mut b = switch.guest("b", case.guest(0));
        wired.wait_direct(OPEN);
        let load = Load::start(&mut a, &mut b, 1, Loss::Counted);
        for round in 0..2 {
            a.stop().expect("the bases");
            a.restart().expect("on we go");
            wired.wait_direct(OPEN);
            load.flow(100);
            visit_new_memory(&load, &mut a, round);
            wired.wait_direct(OPEN);
            let came = wired.came_by_own_queue();
            load.flow(100);
            assert!(wired.came_by_own_queue() > came);
        }
        let pair = load.finish();
        // Frames for the guest while its rings were stopped, and on either side frames that did not fit when given-up
        // frames arrived after all: all of them are counted with a reason.
        let full = |name| switch.drops(name, "guest_ring_full");
        let dropped = switch.drops("a", "port_down") + full("a");
        let lost = (pair.lost(0), pair.lost(1), pair.doubled(), pair.late());
        if lost != (full("b"), dropped, 0, 0) {
            switch.print_drops();
        }
        assert_eq!(lost, (full("b"), dropped, 0, 0));
        switch.check_ledger();
        let all: u64 = switch.port("a").queues.iter().map(|q| q.rx_packets).sum();
        let completion = &switch.port("a").queues[0].completion.buckets_ns;
        let completed: u64 = completion.iter().map(|(_, n)| n).sum();
        assert_eq!(completed, all, "each frame is in the histogram");
    });
}

/// A guest that disconnects in the middle of the load, and reconnects.
#[test]
fn a_guest_with_a_queue_of_its_own_comes_and_goes() {
    each(|case| {
        let wired = Wired::new(case.workers);
        let switch = &wired.switch;
        let mut b = switch.guest("b", case.guest(0));
        for _ in 0..2 {
            let mut a = switch.guest("a", case.guest(0));
            let load = Load::start(&mut a, &mut b, 1, Loss::Counted);
            wired.wait_direct(OPEN);
            load.flow(200);
            a.disconnect();
            switch.wait("a", |port| port.state == ShownState::Down);
            let pair = load.abort();
            assert_eq!(pair.doubled(), 0);
            drop((a, b));
            switch.wait("b", |port| port.state == ShownState::Down);
            b = switch.guest("b", case.guest(0));
        }
        switch.wait("near", |_| true);
        switch.check_ledger();
    });
}

/// The interface is removed and another one appears: the queue is given up, and the guest goes on with copies.
#[test]
fn a_queue_whose_interface_goes_is_given_up() {
    let case = Case {
        packed: false,
        in_order: false,
        workers: 1,
    };
    let wired = Wired::new(case.workers);
    let switch = &wired.switch;
    let mut a = switch.guest("a", case.guest(0));
    let mut b = switch.guest("b", case.guest(0));
    wired.wait_direct(OPEN);
    let load = Load::start(&mut a, &mut b, 1, Loss::Counted);
    run("ip link del near");
    switch.wait("near", |port| port.state == ShownState::Down);
    lay_wire();
    wired.wait_direct("given up");
    load.flow(200);
    a.stop().expect("the bases");
    a.restart().expect("on we go");
    wired.wait_direct(OPEN);
    load.flow(200);
    let pair = load.finish();
    assert_eq!(pair.doubled(), 0);
    switch.check_ledger();
}
