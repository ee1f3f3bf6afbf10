//! NIC ports with a real worker and real interfaces, in network namespaces that end with the test's threads.

use std::net::UdpSocket;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crosspoint_config::{HugePages, Queues, Rss, Tso, XdpMode, XdpPort};
use crosspoint_daemon::dataplane::{BalanceOptions, Dataplane, DataplaneOptions, PortOptions};
use crosspoint_daemon::ports::nic::{UplinkOptions, Uplinks};
use crosspoint_engine::bridge::fdb::Damping;
use crosspoint_model::status::PortStatus;
use crosspoint_netdev::{Events, Links, Wake};
use crosspoint_xsk::{BindMode, PacketMemory, Pages, SocketOptions};

/// Longer than anything here takes, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Moves this thread into a new network namespace, with the commands and threads that it starts.
fn enter_new_namespace() {
    // SAFETY: only the network namespace of this thread changes, and no memory or descriptor.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
        .expect("a network namespace: run the tests as root");
}

fn run(line: &str) {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().expect("a program"))
        .args(words)
        .output()
        .expect("it starts");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {error}");
}

/// A veth with `queues` queues at each end, both ends up.
fn wire(name: &str, queues: u32) {
    let count = format!("numrxqueues {queues} numtxqueues {queues}");
    run(&format!(
        "ip link add {name} {count} type veth peer name far-{name} {count}"
    ));
    run(&format!("ip link set far-{name} up"));
    run(&format!("ip link set {name} up"));
}

/// A switch with one worker, which sleeps at once, and a NIC port for each configuration.
struct Switch {
    // In this order: ports release the dataplane before it ends.
    _uplinks: Uplinks,
    dataplane: Arc<Dataplane>,
}

impl Switch {
    fn start(ports: &[XdpPort], direct: &[u32]) -> Switch {
        let core = core_affinity::get_core_ids().expect("cores")[0].id;
        let dataplane = Dataplane::start(DataplaneOptions {
            cores: vec![core],
            sleep_after: Some(Duration::from_micros(50)),
            fdb_capacity: 28_672,
            fdb_ageing: Duration::from_secs(300),
            fdb_damping: Damping::OFF,
            nic_queues: 4,
            balance: BalanceOptions::default(),
        })
        .expect("a worker");
        let ports = ports.iter().map(|config| UplinkOptions {
            number: add_port(&dataplane, config),
            name: config.interface.clone(),
            config: config.clone(),
            direct: direct.to_vec(),
        });
        let uplinks = Uplinks::start(&dataplane, ports.collect()).expect("root may do so");
        Switch {
            _uplinks: uplinks,
            dataplane,
        }
    }

    fn port(&self, name: &str) -> PortStatus {
        let ports = self.dataplane.status().ports;
        let port = ports.into_iter().find(|port| port.name == name);
        port.expect("the port")
    }

    /// Waits until the port has this state, and its detail contains this text.
    fn wait(&self, name: &str, state: &str, detail: &str) -> PortStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let port = self.port(name);
            if port.state.as_str() == state && port.detail.contains(detail) {
                return port;
            }
            let now = Instant::now();
            assert!(now < deadline, "not {state}: {detail}\n{port:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn add_port(dataplane: &Dataplane, config: &XdpPort) -> u16 {
    let options = PortOptions {
        name: config.interface.clone(),
        kind: "xdp",
        vlan_text: "unaware".to_owned(),
        queues: 4,
        joins: true,
        required: true,
        ..PortOptions::default()
    };
    dataplane.add_port(options).expect("there is room")
}

fn config(interface: &str) -> XdpPort {
    XdpPort {
        interface: interface.to_owned(),
        huge_pages: HugePages::Never,
        ..XdpPort::default()
    }
}

/// The numbers of the queues that workers poll.
fn polled(port: &PortStatus) -> Vec<u16> {
    let polled = port.queues.iter().filter(|queue| queue.worker.is_some());
    polled.map(|queue| queue.queue).collect()
}

#[test]
fn a_queue_that_somebody_else_has_is_taken_once_it_is_free() {
    enter_new_namespace();
    wire("up0", 1);
    let index = Links::open().and_then(|mut links| links.find("up0"));
    let index = index.expect("an answer").expect("it is there").index;
    let options = SocketOptions {
        bind: BindMode::Copy,
        multi_buffer: false,
        busy_poll: false,
        pages: Pages::Small,
        frame_len_max: 1514,
    };
    let mut memory = PacketMemory::new(1, None);
    let socket = memory.open(index, 0, &options).expect("it is free");
    let switch = Switch::start(&[config("up0")], &[]);
    switch.wait(
        "up0",
        "down",
        "queue 0 of interface `up0` is used by another AF_XDP socket",
    );
    drop((socket, memory));
    switch.wait("up0", "up", "native XDP, copy, 1 queue(s)");
}

#[test]
fn an_mtu_beyond_one_buffer_opens_the_port_again_and_frames_go_on() {
    enter_new_namespace();
    wire("up0", 1);
    wire("up1", 1);
    run("ip addr add 10.9.0.1/24 dev far-up1");
    let switch = Switch::start(&[config("up0"), config("up1")], &[]);
    let sent = || {
        let queues = switch.port("up0").queues;
        queues.iter().map(|queue| queue.tx_packets).sum::<u64>()
    };
    for wanted in ["1500", "1400", "9000", "3000"] {
        run(&format!("ip link set up0 mtu {wanted}"));
        let deadline = Instant::now() + PATIENCE;
        while switch.wait("up0", "up", "native XDP").properties["mtu"] != wanted {
            assert!(Instant::now() < deadline, "{:?}", switch.port("up0"));
            std::thread::sleep(Duration::from_millis(10));
        }
        // An ARP request for an address without a host is flooded.
        let before = sent();
        let socket = UdpSocket::bind("10.9.0.1:0").expect("an address of this namespace");
        while sent() == before {
            let _ = socket.send_to(b"anybody?", "10.9.0.2:9");
            assert!(
                Instant::now() < deadline,
                "nothing is sent\n{:?}",
                switch.port("up0")
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// The kernel chooses the queue of unsegmented frames, so they stay in order only with a single queue.
#[test]
fn large_frames_leave_whole_where_the_interface_takes_them_and_has_one_way() {
    enter_new_namespace();
    for (name, queues) in [("up0", 1), ("up1", 2), ("up2", 1), ("up3", 1)] {
        wire(name, queues);
    }
    run("ethtool -K up2 tso off");
    let mut ports = ["up0", "up1", "up2", "up3"].map(config);
    ports[3].tso = Tso::Off;
    let switch = Switch::start(&ports, &[]);
    let tso = ["up0", "up1", "up2", "up3"].map(|name| {
        let port = switch.wait(name, "up", "native XDP, copy");
        port.properties["tso"].clone()
    });
    assert_eq!(tso, ["whole", "cut", "cut", "cut"]);
}

/// The kernel rejects a program for single-buffer frames there.
#[test]
fn a_wire_whose_other_end_alone_is_wide_is_a_port() {
    enter_new_namespace();
    wire("up0", 1);
    run("ip link set far-up0 mtu 9000");
    let switch = Switch::start(&[config("up0")], &[]);
    let port = switch.wait("up0", "up", "native XDP");
    assert_eq!(port.properties["mtu"], "1500");
}

#[test]
fn guests_queues_are_left_to_them() {
    enter_new_namespace();
    wire("up0", 4);
    let switch = Switch::start(&[config("up0")], &[1, 3]);
    assert_eq!(polled(&switch.wait("up0", "up", "2 queue(s)")), [0, 2]);
    drop(switch);
    let switch = Switch::start(&[config("up0")], &[0, 1, 2, 3]);
    switch.wait(
        "up0",
        "down",
        "guests have all 4 queue(s) of interface `up0`",
    );
}

#[test]
fn new_queues_are_taken_too() {
    enter_new_namespace();
    wire("up0", 4);
    run("ethtool -L far-up0 tx 2");
    run("ethtool -L up0 rx 2");
    let switch = Switch::start(&[config("up0")], &[]);
    assert_eq!(polled(&switch.wait("up0", "up", "2 queue(s)")), [0, 1]);
    run("ethtool -L up0 rx 4");
    let port = switch.wait("up0", "up", "4 queue(s)");
    assert_eq!(polled(&port), [0, 1, 2, 3]);
}

#[test]
fn frames_cannot_be_kept_to_some_queues_without_a_table() {
    enter_new_namespace();
    wire("up0", 2);
    wire("up1", 2);
    let with = |interface, queues| XdpPort {
        queues: Queues::List(queues),
        rss: Rss::Queues,
        ..config(interface)
    };
    let switch = Switch::start(&[with("up0", vec![1]), with("up1", vec![1, 0])], &[]);
    switch.wait("up0", "down", "interface `up0` has no RSS table");
    // With all queues, no table is needed.
    switch.wait("up1", "up", "2 queue(s)");
}

#[test]
fn a_setting_that_is_refused_is_said() {
    enter_new_namespace();
    wire("up0", 1);
    let too_many = XdpPort {
        channels: Some(9),
        ..config("up0")
    };
    let switch = Switch::start(&[too_many], &[]);
    let port = switch.wait("up0", "down", "setting the number of queues");
    assert!(port.detail.contains("1 at most"), "{port:?}");
}

/// Each attempt causes events itself, which must not trigger the next attempt.
#[test]
fn what_cannot_work_is_not_tried_all_the_time() {
    enter_new_namespace();
    wire("up0", 1);
    let zero_copy = XdpPort {
        mode: XdpMode::ZeroCopy,
        ..config("up0")
    };
    let (mut events, _stopper) = Events::open().expect("a subscription");
    let switch = Switch::start(&[zero_copy], &[]);
    switch.wait("up0", "down", "interface `up0` cannot do zero-copy");
    let (started, mut wakes) = (Instant::now(), 0);
    while started.elapsed() < Duration::from_secs(1) {
        match events.wait(Some(Duration::from_millis(100))) {
            Ok(Wake::Changed(_)) => wakes += 1,
            other => drop(other.expect("a wait")),
        }
    }
    // At once, after 0.2 s and 0.6 s, with a few events each time.
    assert!((1..30).contains(&wakes), "{wakes} changes in a second");
}
