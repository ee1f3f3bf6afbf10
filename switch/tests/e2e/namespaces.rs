//! Hosts on wires: kernel network stacks behind AF_XDP ports.

use crate::harness::{
    Host, HugePages, Lab, Ledger, Switch, Testpmd, TestpmdPort, iperf3, iperf3_with, run, s,
    wait_until, xdp,
};

#[test]
fn two_hosts_reach_each_other_without_ethtool() {
    let lab = Lab::new(s(60));
    let (a, b) = (Host::new(&lab, "a", 1), Host::new(&lab, "b", 2));
    let switch = Switch::start(&lab, &[1], &[xdp("a", &a), xdp("b", &b)]);
    a.must_ping(&b);
    iperf3(&a, &b);
    let ledger = switch.ledger();
    assert!(
        ledger.port("a").rx > 100 && ledger.port("b").rx > 100,
        "TCP went through the switch\n{ledger}"
    );
}

#[test]
fn frames_arrive_by_the_drivers_hook_or_by_the_kernels() {
    let lab = Lab::new(s(60));
    let (a, b) = (Host::new(&lab, "a", 1), Host::new(&lab, "b", 2));
    let generic = xdp("b", &b) + "mode = \"generic\"\n";
    let switch = Switch::start(&lab, &[1], &[xdp("a", &a) + "mode = \"copy\"\n", generic]);
    let hook = |interface: &str| lab.ip(&format!("link show {interface}"));
    assert!(
        hook("up-a").contains(" xdp ") && !hook("up-a").contains("xdpgeneric"),
        "{}",
        hook("up-a")
    );
    assert!(hook("up-b").contains("xdpgeneric"), "{}", hook("up-b"));
    a.must_ping(&b);
    iperf3(&a, &b);
    switch.ledger();
}

/// In the driver's mode and in the kernel's.
#[test]
fn frames_of_9000_bytes_cross_and_where_they_do_not_fit_they_are_counted() {
    let lab = Lab::new(s(60));
    let hosts = [("a", 9000), ("b", 9000), ("c", 1500)];
    let hosts = hosts.map(|(name, mtu)| {
        let host = Host::new(&lab, name, name.as_bytes()[0] - b'a' + 1);
        lab.ip(&format!("link set {} mtu {mtu}", host.interface));
        host.ip(&format!("link set eth0 mtu {mtu}"));
        host
    });
    let [a, b, c] = &hosts;
    let ports = [
        xdp("a", a),
        xdp("b", b) + "mode = \"generic\"\n",
        xdp("c", c),
    ];
    let switch = Switch::start(&lab, &[1], &ports);
    for (from, to) in [(a, b), (b, a)] {
        from.must_ping(to);
        for len in [8972, 4000, 3968, 64] {
            let line = format!("ping -M do -c 3 -i 0.01 -W 2 -s {len} {}", to.address);
            let (status, text) = run(lab.dir(), &from.command(&line), s(10));
            assert!(
                status.success() && text.contains(" 0% packet loss"),
                "{line}: {text}"
            );
        }
    }
    iperf3(a, b);
    // The frame is for a host with a narrower wire, which is not the switch's concern.
    a.must_ping(c);
    let long = |ledger: &Ledger| {
        ledger
            .port("c")
            .drops
            .get("mtu_exceeded")
            .copied()
            .unwrap_or(0)
    };
    let before = long(&switch.ledger());
    let line = format!("ping -M do -c 3 -i 0.01 -W 1 -s 8972 {}", c.address);
    assert!(
        !run(lab.dir(), &a.command(&line), s(10)).0.success(),
        "no router fragments it"
    );
    let ledger = switch.ledger();
    assert_eq!(long(&ledger), before + 3, "{ledger}");
}

#[test]
fn frames_arrive_in_pages_of_every_kind_and_by_busy_polling() {
    let lab = Lab::new(s(60));
    let _pages = HugePages::new(32);
    let (a, b, c) = (
        Host::new(&lab, "a", 1),
        Host::new(&lab, "b", 2),
        Host::new(&lab, "c", 3),
    );
    let keys = "busy_poll = true\nhuge_pages = ";
    let ports = [
        xdp("a", &a) + keys + "\"reserved\"\n",
        xdp("b", &b) + keys + "\"never\"\n",
        xdp("c", &c) + "huge_pages = \"transparent\"\n",
    ];
    let switch = Switch::start(&lab, &[1], &ports);
    for (from, to) in [(&a, &b), (&b, &c), (&c, &a)] {
        from.must_ping(to);
    }
    iperf3_with(&a, &b, "-t 1");
    switch.ledger();
}

#[test]
fn a_third_port_sees_broadcasts_and_unknown_addresses_but_not_learned_ones() {
    let lab = Lab::new(s(60));
    let (a, b, c) = (
        Host::new(&lab, "a", 1),
        Host::new(&lab, "b", 2),
        Host::new(&lab, "c", 3),
    );
    let switch = Switch::start(&lab, &[1], &[xdp("a", &a), xdp("b", &b), xdp("c", &c)]);
    let (mut arp, icmp) = (c.listen("arp"), c.listen("icmp"));
    a.must_ping(&b);
    arp.wait_for("Request who-has 10.9.0.2", s(5));

    // No host has this address: every other port gets a copy.
    let mut unknown = c.listen("ether dst 02:00:00:00:ff:ff");
    a.ip("neigh add 10.9.0.99 lladdr 02:00:00:00:ff:ff dev eth0");
    a.must_not_ping("10.9.0.99");
    unknown.wait_for("ICMP echo request", s(5));

    assert!(
        !icmp.log().contains("> 10.9.0.2: ICMP"),
        "unicast to a learned address:\n{}",
        icmp.log()
    );
    for host in [&a, &b] {
        assert!(
            switch.show("fdb").contains(&host.mac()),
            "{} is learned\n{}",
            host.mac(),
            switch.show("fdb")
        );
    }
    let ledger = switch.ledger();
    assert!(
        ledger.port("a").flood_copies >= 5,
        "one copy more for each frame that two ports got\n{ledger}"
    );
}

#[test]
fn three_hosts_talk_all_with_all() {
    let lab = Lab::new(s(60));
    let (a, b, c) = (
        Host::new(&lab, "a", 1),
        Host::new(&lab, "b", 2),
        Host::new(&lab, "c", 3),
    );
    let switch = Switch::start(&lab, &[1], &[xdp("a", &a), xdp("b", &b), xdp("c", &c)]);
    for (from, to) in [(&a, &b), (&b, &c), (&c, &a)] {
        from.must_ping(to);
    }
    iperf3_with(&b, &c, "-t 1");
    iperf3_with(&c, &a, "-t 1 -R");
    switch.ledger();
}

#[test]
fn an_address_that_moves_to_another_port_is_followed() {
    let lab = Lab::new(s(60));
    let (a, b, c) = (
        Host::new(&lab, "a", 1),
        Host::new(&lab, "b", 2),
        Host::new(&lab, "c", 3),
    );
    let port = |name, host| xdp(name, host) + "vlan = { access = 7 }\n";
    let ports = [port("a", &a), port("b", &b), port("c", &c)];
    let switch = Switch::start(&lab, &[1], &ports);
    b.must_ping(&a);
    let mac = a.mac();

    // Like a virtual machine that migrates: the same addresses on another wire.
    a.ip("addr flush dev eth0");
    a.ip("link set eth0 address 02:00:00:00:0a:0a");
    c.ip("addr flush dev eth0");
    c.ip(&format!("link set eth0 address {mac}"));
    c.ip(&format!("addr add {}/24 dev eth0", a.address));
    c.must_ping(&b);
    b.must_ping(&a);

    let fdb = switch.show_json("fdb").to_string();
    let entry = fdb
        .split('{')
        .find(|entry| entry.contains(&mac))
        .expect("an entry of the moved address");
    assert!(entry.contains("\"c\""), "it is at port c now: {entry}");
    assert!(!switch.log().contains("moves between"), "{}", switch.log());

    // Now both have it, which is logged: once, however often the address moves.
    let bytes: Vec<u8> = mac
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).expect("a byte"))
        .collect();
    let frame = [&[0xff; 6][..], &bytes, &[0x88, 0xb5], &[0; 46]].concat();
    let said = |log: &str| {
        let line = format!("address {mac} moves between ports a and c: ");
        let lines = log.lines().filter(|one| one.contains(&line));
        lines.map(str::to_owned).collect::<Vec<String>>()
    };
    let line = wait_until("a line in the log", s(20), || {
        for host in [&a, &c] {
            host.send_frame(&frame);
        }
        said(&switch.log()).first().cloned()
    });
    assert!(
        line.contains("WARN") && line.contains("vlan=7") && line.contains(" times in "),
        "{line}"
    );
    let shown = switch.ask(&["show", "fdb", "--moves"]).1;
    assert!(shown.contains(&mac), "{shown}");
    wait_until("that it stays", s(20), || {
        for host in [&a, &c] {
            host.send_frame(&frame);
        }
        let all = said(&switch.log());
        let stays = |line: &String| line.contains("it stays at a");
        all.iter().any(stays).then_some(())
    });
    let lines = said(&switch.log());
    assert!(lines.len() <= 2, "{lines:?}");
    switch.ledger();
}

#[test]
fn an_address_that_is_bound_to_a_port_cannot_be_taken_by_another() {
    let lab = Lab::new(s(60));
    let (a, b, c) = (
        Host::new(&lab, "a", 1),
        Host::new(&lab, "b", 2),
        Host::new(&lab, "c", 3),
    );
    let switch = Switch::start(&lab, &[1], &[xdp("a", &a), xdp("b", &b), xdp("c", &c)]);
    b.must_ping(&a);
    let mac = a.mac();
    let addresses = format!("addresses={{ mac = [{mac:?}] }}");
    let (ended, text) = switch.ask(&["port", "set", "a", &addresses]);
    assert!(ended.success() && text.contains("in place"), "{text}");

    c.ip(&format!("link set eth0 address {mac}"));
    c.ip("neigh flush all");
    c.must_not_ping(&b.address);
    b.must_ping(&a);
    let shown = switch.show("fdb");
    let entry = shown.lines().find(|line| line.contains(&mac));
    assert!(
        entry.is_some_and(|line| line.trim_end().ends_with(" a")),
        "{shown}"
    );
    let drops = switch.show("drops");
    assert!(drops.contains("source_not_allowed"), "{drops}");
    switch.ledger();
}

#[test]
fn four_queues_are_served_by_one_worker() {
    four_queues(&[1]);
}

#[test]
fn four_queues_are_served_by_two_workers() {
    four_queues(&[0, 1]);
}

fn four_queues(cores: &[usize]) {
    let lab = Lab::new(s(60));
    let (a, b) = (
        Host::with_queues(&lab, "a", 1, 4),
        Host::with_queues(&lab, "b", 2, 4),
    );
    let switch = Switch::start(&lab, cores, &[xdp("a", &a), xdp("b", &b)]);
    a.must_ping(&b);
    iperf3_with(&a, &b, "-t 1 -P 8");
    iperf3_with(&a, &b, "-t 1 -P 8 -R");
    let metrics = switch.metrics();
    let rx = |queue: usize| {
        let labels = [
            ("port", "a"),
            ("queue", &*queue.to_string()),
            ("direction", "rx"),
        ];
        metrics.sum("crosspoint_queue_packets_total", &labels)
    };
    let used = (0..4).filter(|&queue| rx(queue) > 0).count();
    assert!(used >= 2, "sixteen flows arrived on {used} of four queues");
    let workers = switch
        .metrics()
        .of("crosspoint_worker_cycles_total")
        .map(|sample| sample.label("worker").to_owned())
        .collect::<std::collections::BTreeSet<_>>();
    assert_eq!(workers.len(), cores.len(), "{workers:?}");
    switch.ledger();
}

#[test]
fn queues_that_only_receive_leave_the_sending_to_the_others() {
    let lab = Lab::new(s(60));
    let (a, b) = (Host::with_queues(&lab, "a", 1, 4), Host::new(&lab, "b", 2));
    let mut command = lab.command("ethtool");
    command.args(["-L", "up-a", "rx", "4", "tx", "1"]);
    let (status, text) = run(lab.dir(), &command, s(10));
    assert!(status.success(), "{text}");
    let switch = Switch::start(&lab, &[0, 1], &[xdp("a", &a), xdp("b", &b)]);
    a.must_ping(&b);
    iperf3_with(&b, &a, "-t 1 -P 4");
    let ledger = switch.ledger();
    assert_eq!(
        ledger.port("a").drops.get("nic_ring_full"),
        None,
        "{ledger}"
    );
}

#[test]
fn a_tap_device_is_a_port() {
    let lab = Lab::new(s(60));
    let a = Host::new(&lab, "a", 1);
    // Behind the tap: testpmd, which answers ARP and ping for any address.
    let port = TestpmdPort("net_tap0,iface=tap0".to_owned());
    let mut echo = Testpmd::start(
        &lab,
        "tap",
        64,
        &[port],
        "--forward-mode=icmpecho --total-num-mbufs=8192",
    );
    echo.wait_ready();
    echo.command("start");
    let tap = "[[port]]\nname = \"tap\"\ntype = \"xdp\"\ninterface = \"tap0\"\n".to_owned();
    let switch = Switch::start(&lab, &[1], &[xdp("a", &a), tap]);
    a.must_ping_address("10.9.0.77");
    let ledger = switch.ledger();
    assert!(
        ledger.port("tap").rx >= 5 && ledger.port("tap").tx >= 5,
        "{ledger}"
    );
}
