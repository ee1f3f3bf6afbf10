//! Upgrades and crashes of the switch under a supervisor: guests and their front ends see neither.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use crosspoint_guest::message::protocol;
use crosspoint_guest::{Guest, GuestOptions};
use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{
    Exchange, Host, Lab, Ledger, LinuxGuest, Process, Switch, Testpmd, TestpmdPort, binary,
    connect_pair, connect_to, frame, guest, mac, ping_pong, s, udp, wait_until, xdp,
};

/// The front ends that have connected to a port since the switch started.
fn connections(switch: &Switch<'_>, port: &str) -> u64 {
    let rows = switch.show_json("guests");
    let rows = rows.as_array().expect("a list of guests");
    let row = rows.iter().find(|row| row["port"] == port);
    let row = row.unwrap_or_else(|| panic!("no guest {port:?}"));
    row["connections"].as_u64().unwrap_or_default()
}

fn descriptors(process: u32) -> usize {
    let open = fs::read_dir(format!("/proc/{process}/fd"));
    open.expect("it runs").count()
}

/// Memory of a process that no other one shares.
fn private_kib(process: u32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{process}/smaps_rollup")).expect("it runs");
    let lines = rollup.lines().filter(|line| line.starts_with("Private_"));
    let kib = lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.sum()
}

fn every_frame_arrives(options: &GuestOptions, times: u32) {
    let lab = Lab::new(s(90));
    let pairs = format!("queue_pairs = {}\n", options.queue_pairs);
    let ports = ["g0", "g1"].map(|name| guest(&lab, name) + &pairs);
    let switch = Switch::start_supervised(&lab, &[1], &ports);
    let exchange = Exchange::start_with(&lab, &switch, ["g0", "g1"], options);
    exchange.run(10_000);
    switch.must_upgrade();
    exchange.run(1000);
    let of_both = || [switch.id(), switch.supervised_id()];
    let open = wait_until("a process that is settled", s(5), || {
        let counts = of_both().map(descriptors);
        std::thread::sleep(s(1) / 5);
        (of_both().map(descriptors) == counts).then_some(counts)
    });
    // A process that has just taken over has touched only a part of its memory.
    let settled_kib = || {
        exchange.run(5000);
        std::thread::sleep(s(1) / 2);
        of_both().map(private_kib)
    };
    let mut memory = [0, 0];
    for number in 1..times {
        switch.must_upgrade();
        exchange.run(500);
        // The allocator has its fill by then.
        if number == times / 5 {
            memory = settled_kib();
        }
    }
    // Some are closed a moment after an upgrade.
    wait_until("as many descriptors as before", s(5), || {
        let now = of_both().map(descriptors);
        println!("descriptors: {open:?} before, {now:?} now");
        (now == open).then_some(())
    });
    let now = settled_kib();
    println!(
        "private memory: {memory:?} KiB after a fifth of the upgrades, {now:?} KiB at the end"
    );
    for (before, now) in memory.into_iter().zip(now) {
        assert!(
            now < before + before / 4 + 1024,
            "{before} KiB, and {now} KiB later"
        );
    }
    let (status, text) = switch.upgrade(&["--dry-run"]);
    assert!(status.success(), "{text}");
    let (status, text) = switch.upgrade(&["--back"]);
    assert!(status.success(), "{text}");
    exchange.run(1000);
    let frames = exchange.stop();
    // The counters went with the guests.
    switch.ledger().assert_exchanged(["g0", "g1"], frames);
    println!("{}", switch.log());
}

#[test]
fn every_frame_arrives_once_and_in_order_through_a_hundred_upgrades_and_nothing_grows() {
    every_frame_arrives(&GuestOptions::default(), 100);
}

#[test]
fn every_frame_of_packed_rings_arrives_once_and_in_order_through_upgrades() {
    let options = GuestOptions {
        packed: true,
        ..GuestOptions::default()
    };
    every_frame_arrives(&options, 5);
}

/// After a crash, what was in hand is lost; here nothing is.
#[test]
fn guests_go_on_after_the_switch_is_killed() {
    for packed in [false, true] {
        let lab = Lab::new(s(60));
        let switch = Switch::start_supervised(&lab, &[1], &[guest(&lab, "g0"), guest(&lab, "g1")]);
        let options = GuestOptions {
            packed,
            ..GuestOptions::default()
        };
        let mut pair = connect_pair(&lab, &switch, ["g0", "g1"], &options);
        for (life, signal) in (0..).zip([Signal::KILL, Signal::ABORT, Signal::SEGV]) {
            let [a, b] = &mut pair;
            for number in 0..4 {
                ping_pong(a, b, 1000 * life + number);
            }
            // The table is recorded every second.
            std::thread::sleep(s(1) + s(1) / 5);
            switch.end_supervised(signal);
            // After a second crash within a minute, the tables start empty.
            let known = if life == 0 { vec![21, 22] } else { Vec::new() };
            for station in known {
                let address = mac(station).map(|byte| format!("{byte:02x}")).join(":");
                // The control socket answers a moment before the addresses are there.
                wait_until("the address", s(5), || {
                    let answers = switch.ask(&["health"]).0.success();
                    answers.then(|| switch.port_of(&address)).flatten()
                });
            }
            for number in 4..12 {
                ping_pong(a, b, 1000 * life + number);
            }
        }
        assert_eq!(connections(&switch, "g0"), 1, "{}", switch.log());
    }
}

/// What a guest with a security group has begun is answered after an upgrade and after a crash, before the guest sends again.
#[test]
fn connections_of_security_groups_go_on_after_an_upgrade_and_a_crash() {
    let lab = Lab::new(s(60));
    let ports = [
        "[[group]]\nname = \"client\"\nrules = [{ direction = \"out\" }]\n".to_owned(),
        guest(&lab, "g0") + "groups = [\"client\"]\n",
        guest(&lab, "g1"),
    ];
    let switch = Switch::start_supervised(&lab, &[1], &ports);
    let mut pair = connect_pair(&lab, &switch, ["g0", "g1"], &GuestOptions::default());
    let [client, server] = &mut pair;
    let there = |flow: u16| udp(mac(2), mac(1), flow, 1, 200);
    let back = |flow: u16, number: u32| {
        let mut frame = udp(mac(1), mac(2), 7000, number, 200);
        // The ports of the other direction: udp() sends to 7000.
        frame[34..36].copy_from_slice(&7000u16.to_be_bytes());
        frame[36..38].copy_from_slice(&flow.to_be_bytes());
        frame
    };
    let arrives = |to: &mut Guest, frame: &[u8]| {
        let frames = to.receive_at_least(0, 1, s(1)).expect("a ring");
        frames.iter().any(|(_, bytes)| bytes == frame)
    };
    for flow in 1024..1074 {
        assert_eq!(client.send(0, &[&there(flow)]).expect("a ring"), 1);
        assert!(arrives(server, &there(flow)), "flow {flow}");
    }
    for (life, number) in (1..).zip(["upgrade", "crash", "upgrade"]) {
        match number {
            "upgrade" => drop(switch.must_upgrade()),
            _ => {
                std::thread::sleep(s(1) + s(1) / 5);
                switch.end_supervised(Signal::KILL);
            }
        }
        for flow in 1024..1074 {
            let frame = back(flow, life);
            assert_eq!(server.send(0, &[&frame]).expect("a ring"), 1);
            assert!(
                arrives(client, &frame),
                "{number}: flow {flow}\n{}",
                switch.log()
            );
        }
        // What the client has not begun is not let in.
        let other = back(2000, life);
        assert_eq!(server.send(0, &[&other]).expect("a ring"), 1);
        assert!(!arrives(client, &other), "{number}");
    }
}

/// What a front end has negotiated holds after an upgrade and a crash: its messages are acknowledged, a migration can begin, and
/// its device be reset.
#[test]
fn a_front_end_goes_on_with_what_it_has_negotiated() {
    let lab = Lab::new(s(60));
    let switch = Switch::start_supervised(&lab, &[1], &[guest(&lab, "g0"), guest(&lab, "g1")]);
    let mut options = GuestOptions::default();
    options.protocol_features |= protocol::LOG_SHMFD | protocol::RESET_DEVICE | protocol::STATUS;
    let mut pair = connect_pair(&lab, &switch, ["g0", "g1"], &options);
    for life in 0..4 {
        let [a, b] = &mut pair;
        ping_pong(a, b, 10 * life);
        match life % 2 {
            0 => drop(switch.must_upgrade()),
            _ => switch.end_supervised(Signal::KILL),
        }
        for guest in [&mut *a, &mut *b] {
            guest.stop().expect("rings stop");
            guest.restart().expect("each message is acknowledged");
            guest.start_dirty_log().expect("a migration begins");
        }
        ping_pong(a, b, 10 * life + 1);
        for guest in [&mut *a, &mut *b] {
            guest.stop_dirty_log().expect("a migration ends");
            guest.reset_device().expect("the device is reset");
            guest.restart().expect("and starts again");
        }
        ping_pong(a, b, 10 * life + 2);
    }
    assert_eq!(connections(&switch, "g0"), 1, "{}", switch.log());
}

/// Upgrades a switch whose log is this file.
fn upgrades_with_log(log: &str) {
    let lab = Lab::new(s(60));
    let (file, socket) = (lab.dir().join("full.toml"), lab.socket("supervisor"));
    let control = lab.socket("control");
    let text = format!(
        "version = 1\n[workers]\ncores = [1]\n[metrics]\nlisten = \"off\"\n[control]\nsocket = {control:?}\n{}",
        guest(&lab, "g0")
    );
    fs::write(&file, text).expect("a configuration");
    let line = r#"exec "$0" supervise --config "$1" --supervisor-socket "$2" 2> "$3""#;
    let mut command = lab.command("sh");
    command.args(["-c", line, binary()]);
    command.args([&file, &socket]).arg(log);
    let mut supervisor = Process::start(lab.dir(), "supervisor", &command);
    for _ in 0..2 {
        wait_until("an upgrade", s(20), || {
            let words = ["upgrade", "--supervisor-socket"];
            let socket = socket.to_str().expect("a plain path");
            let upgraded = Switch::command(&lab, &[&words[..], &[socket]].concat());
            upgraded.0.success().then_some(())
        });
    }
    assert_eq!(supervisor.ended(), None);
}

/// As on a full disk.
#[test]
fn a_log_that_takes_nothing_does_not_end_the_supervisor() {
    upgrades_with_log("/dev/full");
}

/// A pipe that is full, and whose reader stands still.
#[test]
fn a_log_that_nothing_reads_does_not_hold_the_supervisor_up() {
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    rustix::io::ioctl_fionbio(&writer, true).expect("a flag");
    while std::io::Write::write(&mut writer, &[b'.'; 4096]).is_ok() {}
    rustix::io::ioctl_fionbio(&writer, false).expect("a flag");
    let path = format!("/proc/{}/fd/{}", std::process::id(), writer.as_raw_fd());
    upgrades_with_log(&path);
    drop(reader);
}

/// All guests of a large host go on, each with all its queues.
#[test]
fn a_hundred_guests_with_four_queue_pairs_each_go_on_after_an_upgrade_and_a_crash() {
    const GUESTS: usize = 100;
    let lab = Lab::new(s(90));
    let names: Vec<String> = (0..GUESTS).map(|number| format!("g{number}")).collect();
    // Pairs of guests, each in a VLAN of its own.
    let vlan = |number: usize| format!("vlan = {{ access = {} }}\n", 2 + number / 2);
    let ports: Vec<String> = (0..GUESTS)
        .map(|number| guest(&lab, &names[number]) + "queue_pairs = 4\n" + &vlan(number))
        .collect();
    let switch = Switch::start_supervised(&lab, &[1], &ports);
    let options = GuestOptions {
        queue_pairs: 4,
        rx_posted: 32,
        ..GuestOptions::default()
    };
    let connect = |name: &String| connect_to(&lab, name, &options);
    let mut guests: Vec<Guest> = names.iter().map(connect).collect();
    switch.wait_up(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let mut exchange = |number: u32, queues: std::ops::Range<usize>| {
        for pair in guests.chunks_exact_mut(2) {
            let [a, b] = pair else { unreachable!("two") };
            for queue in queues.clone() {
                let sent = frame([0xff; 6], mac(1), number + queue as u32, 300);
                assert_eq!(a.send(queue, &[&sent]).expect("a ring"), 1);
                wait_until("a frame in one of the queues", s(5), || {
                    let mut queues = 0..4;
                    queues
                        .any(|queue| {
                            let frames = b.receive(queue).expect("a ring");
                            frames.iter().any(|(_, bytes)| *bytes == sent)
                        })
                        .then_some(())
                });
            }
        }
    };
    exchange(0, 0..1);
    for life in 1..4 {
        println!("{}", switch.must_upgrade());
        exchange(10 * life, life as usize..life as usize + 1);
        let log = switch.log();
        let mut lines = log.lines().filter(|line| line.contains("started in"));
        println!("{}", lines.next_back().unwrap_or_default());
    }
    switch.end_supervised(Signal::KILL);
    exchange(100, 0..4);
    switch.ledger();
    for name in &names {
        assert_eq!(connections(&switch, name), 1, "{name}");
    }
}

/// The running process goes on in each case, and says why.
#[test]
fn an_upgrade_that_cannot_be_is_refused_and_costs_no_frame() {
    let lab = Lab::new(s(60));
    let switch = Switch::start_supervised(&lab, &[1], &[guest(&lab, "g0"), guest(&lab, "g1")]);
    let exchange = Exchange::start(&lab, &switch, ["g0", "g1"]);
    let process = switch.supervised_id();
    let refused = |reason: &str| {
        let (status, text) = switch.upgrade(&[]);
        assert!(!status.success() && text.contains(reason), "{text}");
        assert_eq!(switch.supervised_id(), process, "{text}");
        exchange.run(1000);
    };
    let path = switch.config_path();
    let text = fs::read_to_string(&path).expect("the configuration");
    fs::write(&path, text.clone() + "[[port]]\nname = \"g0\"\n").expect("a file");
    refused("the configuration is wrong");
    fs::write(&path, &text).expect("a file");
    let (status, said) = switch.ask(&["port", "set", "g0", "weight=3"]);
    assert!(status.success(), "{said}");
    refused("port g0");
    let (status, said) = switch.ask(&["reload"]);
    assert!(status.success(), "{said}");
    let (status, text) = switch.upgrade(&["--back"]);
    assert!(
        !status.success() && text.contains("no former program"),
        "{text}"
    );
    switch.must_upgrade();
    exchange.run(1000);
    exchange.stop();
}

/// One after the other, however many are asked for at the same time.
#[test]
fn upgrades_that_are_asked_for_at_once_are_done_one_after_the_other() {
    let lab = Lab::new(s(60));
    let switch = Switch::start_supervised(&lab, &[1], &[guest(&lab, "g0"), guest(&lab, "g1")]);
    let exchange = Exchange::start(&lab, &switch, ["g0", "g1"]);
    std::thread::scope(|scope| {
        let asked: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| switch.upgrade(&[])))
            .collect();
        exchange.run(500);
        for asked in asked {
            let (status, text) = asked.join().expect("no panic");
            assert!(status.success(), "{text}");
        }
    });
    assert_eq!(switch.count_processes(), 1);
    assert_eq!(switch.metrics().sum("crosspoint_upgrades_total", &[]), 4);
    exchange.run(500);
    exchange.stop();
    switch.ledger();
}

/// After an upgrade the switch is one like any other: ports come and go, and a front end that waits at a port does not drive out
/// the guest that is connected, though that guest says nothing to the new process.
#[test]
fn after_an_upgrade_ports_are_added_and_silent_guests_keep_theirs() {
    let lab = Lab::new(s(60));
    let switch = Switch::start_supervised(&lab, &[1], &[guest(&lab, "g0"), guest(&lab, "g1")]);
    let exchange = Exchange::start(&lab, &switch, ["g0", "g1"]);
    switch.must_upgrade();
    let waits = UnixStream::connect(lab.socket("g0")).expect("the socket listens");
    for name in ["g2", "g3"] {
        let socket = format!("socket={}", lab.socket(name).display());
        let (status, said) = switch.ask(&["port", "add", name, "type=vhost", &socket]);
        assert!(status.success(), "{said}");
    }
    let mut pair = connect_pair(&lab, &switch, ["g2", "g3"], &GuestOptions::default());
    let [a, b] = &mut pair;
    ping_pong(a, b, 1);
    std::thread::sleep(s(2));
    exchange.run(1000);
    assert_eq!(connections(&switch, "g0"), 1);
    drop(waits);
    drop(pair);
    for name in ["g2", "g3"] {
        let (status, said) = switch.ask(&["port", "remove", name]);
        assert!(status.success(), "{said}");
    }
    // A port whose guest would be disconnected.
    let path = switch.config_path();
    let text = fs::read_to_string(&path).expect("the configuration");
    let other = text.replacen(
        &*lab.socket("g1").to_string_lossy(),
        "/tmp/cp-elsewhere.sock",
        1,
    );
    fs::write(&path, other).expect("a file");
    for words in [&["--dry-run"][..], &[]] {
        let (status, said) = switch.upgrade(words);
        assert!(!status.success() && said.contains("port g1"), "{said}");
        exchange.run(1000);
    }
    fs::write(&path, text).expect("a file");
    switch.must_upgrade();
    exchange.run(1000);
    exchange.stop();
}

/// The new process is killed while it prepares, at ever later moments.
#[test]
fn a_successor_that_dies_while_it_prepares_costs_no_frame() {
    let lab = Lab::new(s(60));
    let switch = Switch::start_supervised(&lab, &[1], &[guest(&lab, "g0"), guest(&lab, "g1")]);
    let exchange = Exchange::start(&lab, &switch, ["g0", "g1"]);
    let process = switch.supervised_id();
    let supervisor = switch.id();
    for pause_ms in [0, 1, 2, 4, 8] {
        let killer = std::thread::spawn(move || {
            let successor = wait_until("a successor", s(5), || {
                let list = format!("/proc/{supervisor}/task/{supervisor}/children");
                let list = fs::read_to_string(list).unwrap_or_default();
                let mut ids = list
                    .split_whitespace()
                    .filter_map(|id| id.parse::<u32>().ok());
                ids.find(|id| *id != process)
            });
            std::thread::sleep(std::time::Duration::from_millis(pause_ms));
            let pid = Pid::from_raw(successor as i32).expect("a process");
            let _ = kill_process(pid, Signal::KILL);
        });
        let (status, text) = switch.upgrade(&[]);
        killer.join().expect("it found one");
        assert!(!status.success(), "{text}");
        assert_eq!(switch.supervised_id(), process, "{text}");
        exchange.run(1000);
    }
    switch.must_upgrade();
    exchange.run(1000);
    exchange.stop();
}

/// Testpmd sends back what it receives. It notices neither upgrades nor crashes, though it never connects again.
fn dpdk(queues: u16, options: &str) {
    let lab = Lab::new(s(90));
    let pairs = format!("queue_pairs = {queues}\n");
    let ports = [guest(&lab, "victim") + &pairs, guest(&lab, "partner")];
    let switch = Switch::start_supervised(&lab, &[1], &ports);
    let mut partner =
        Guest::connect(lab.socket("partner"), GuestOptions::default()).expect("the guest connects");
    let options = format!("queues={queues},queue_size=256,{options}");
    let port = TestpmdPort::virtio(&lab, 0, "victim", &options);
    let loops = format!(
        "--forward-mode=macswap --port-topology=loop --total-num-mbufs=4096 --rxq={queues} --txq={queues}"
    );
    let mut testpmd = Testpmd::start(&lab, "testpmd", 128, &[port], &loops);
    testpmd.wait_ready();
    testpmd.command("start");
    switch.wait_up(&["victim", "partner"]);
    let mut number = 0;
    let mut echo = |switch: &Switch<'_>, may_lose: bool| {
        for _ in 0..400 {
            number += 1;
            // Flows, so that all queues have some.
            let sent = udp(mac(3), mac(4), 1024 + number as u16 % 64, number, 1000);
            let back = [&sent[6..12], &sent[..6], &sent[12..]].concat();
            let mut tries = 0;
            wait_until("a frame that comes back", s(10), || {
                assert!(
                    may_lose || tries == 0,
                    "frame {number} is lost\n{}",
                    switch.log()
                );
                tries += 1;
                assert_eq!(partner.send(0, &[&sent]).expect("a ring"), 1);
                let frames = partner.receive_at_least(0, 1, s(2)).expect("a ring");
                frames.iter().any(|(_, bytes)| *bytes == back).then_some(())
            });
        }
    };
    echo(&switch, false);
    for _ in 0..3 {
        switch.must_upgrade();
        echo(&switch, false);
    }
    switch.end_supervised(Signal::KILL);
    echo(&switch, true);
    switch.must_upgrade();
    echo(&switch, false);
    assert_eq!(connections(&switch, "victim"), 1, "{}", switch.log());
    let used = (0..queues).map(|queue| queue.to_string()).filter(|queue| {
        let of_queue = [("port", "victim"), ("queue", queue), ("direction", "tx")];
        switch
            .metrics()
            .sum("crosspoint_queue_packets_total", &of_queue)
            > 0
    });
    assert_eq!(used.count(), usize::from(queues), "all queues have frames");
    testpmd.quit();
}

#[test]
fn a_dpdk_guest_notices_neither_upgrades_nor_a_crash() {
    dpdk(1, "packed_vq=0");
}

#[test]
fn a_dpdk_guest_with_four_queues_notices_neither_upgrades_nor_a_crash() {
    for options in ["packed_vq=0", "packed_vq=1"] {
        dpdk(4, options);
    }
}

#[test]
fn a_dpdk_guest_with_packed_rings_notices_neither_upgrades_nor_a_crash() {
    dpdk(1, "packed_vq=1");
}

/// A QEMU guest with a split and a packed card, each with four queue pairs, and a UML guest, whose calls go by a pipe, transfer to and from a host while
/// the switch is replaced and killed. No card connects twice.
#[test]
fn transfers_of_linux_guests_go_on_through_upgrades_and_a_crash() {
    let lab = Lab::new(s(150));
    let host = Host::new(&lab, "a", 1);
    let cards = [
        ("split", "queues=4,packed=off"),
        ("packed", "queues=4,packed=on"),
    ];
    let mut ports = vec![xdp("a", &host), guest(&lab, "idle"), guest(&lab, "uml")];
    ports.extend(cards.map(|(name, _)| guest(&lab, name) + "queue_pairs = 4\n"));
    let switch = Switch::start_supervised(&lab, &[1], &ports);
    let mut line = "--job server --mac 52:54:00:09:00:00".to_owned();
    let mut addresses = vec!["10.9.0.11/24".to_owned()];
    for (index, (name, options)) in (1..).zip(cards) {
        let socket = lab.socket(name);
        line += &format!(
            " --nic {},{options},mac=52:54:00:09:00:{index:02}",
            socket.display()
        );
        addresses.push(format!("10.9.{index}.11/24"));
        host.ip(&format!("addr add 10.9.{index}.1/24 dev eth0"));
    }
    line += &format!(" --ip {}", addresses.join(","));
    let mut qemu = LinuxGuest::qemu(&lab, "idle", &line);
    let mut uml = LinuxGuest::uml(
        &lab,
        "uml",
        "--job server --ip 10.9.0.12/24 --mac 52:54:00:09:00:09",
    );
    qemu.wait_ready();
    uml.wait_ready();
    let peers = ["10.9.1.11", "10.9.2.11", "10.9.0.12"];
    let client =
        |peer: &&str| ["sha", "fetch"].map(|job| LinuxGuest::client(&lab, &host, job, peer, 16));
    let mut clients = peers.iter().flat_map(client).collect::<Vec<_>>();
    let names = ["split", "packed", "uml"];
    wait_until("transfers by all cards", s(30), || {
        let ledger = Ledger::new(&switch.metrics());
        let busy = |name: &&str| ledger.port(name).tx > 100 && ledger.port(name).rx > 100;
        names.iter().all(busy).then_some(())
    });
    println!("{}", switch.must_upgrade());
    switch.wait_up(&["a"]);
    switch.end_supervised(Signal::KILL);
    switch.wait_up(&["a"]);
    println!("{}", switch.must_upgrade());
    clients.iter_mut().for_each(LinuxGuest::must_transfer);
    for name in names {
        assert_eq!(connections(&switch, name), 1, "{name}\n{}", switch.log());
    }
    assert!(switch.negotiated("packed", "RING_PACKED"));
    switch.ledger();
}
