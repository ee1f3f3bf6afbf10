//! Multicast snooping with the kernel's own stations and its own querier.

use std::net::{Ipv4Addr, UdpSocket};

use crate::harness::{Host, Lab, LinuxGuest, Switch, guest, s, wait_until, xdp};

const GROUP: Ipv4Addr = Ipv4Addr::new(239, 1, 2, 3);
const OTHER: Ipv4Addr = Ipv4Addr::new(239, 1, 2, 4);
const PORT: u16 = 5000;

/// A datagram to a group, from a host.
fn send(host: &Host<'_>, group: Ipv4Addr, text: &str) {
    host.inside(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        let sent = socket.send_to(text.as_bytes(), (group, PORT));
        sent.expect("a route to the group");
    });
}

fn uml(lab: &Lab, index: usize) -> LinuxGuest {
    let options = format!("--job orders --mem 128 --ip 10.9.0.1{index}/24");
    LinuxGuest::uml(lab, &format!("g{index}"), &options)
}

/// Real guests' kernels answer the switch, which is the only querier. Behind the uplink may be other hosts' members, so it gets
/// all multicast; a guest only what it has joined.
#[test]
fn without_a_router_the_switch_asks_uml_guests_itself() {
    let lab = Lab::new(s(150));
    let host = Host::new(&lab, "a", 1);
    host.ip("route add 239.0.0.0/8 dev eth0");
    host.must_run("echo 0 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6");
    let ports = [
        "[multicast]\nsnooping = true\nquerier = true\nunknown = \"drop\"\n".to_owned(),
        xdp("a", &host),
        guest(&lab, "g0"),
        guest(&lab, "g1"),
    ];
    let queries = host.listen("igmp or ip6");
    let switch = Switch::start(&lab, &[1], &ports);
    let mut guests = [0, 1].map(|index| uml(&lab, index));
    guests.iter_mut().for_each(LinuxGuest::wait_ready);
    let [member, other] = &mut guests;
    let shown = || {
        let (status, text) = switch.ask(&["show", "multicast"]);
        assert!(status.success(), "{text}");
        text
    };
    for (kind, words) in [("IGMP", "igmp query v3"), ("MLD", "listener query v2")] {
        wait_until(kind, s(20), || queries.log().contains(words).then_some(()));
    }
    other.run("ip route add 239.0.0.0/8 dev eth0");
    member.run(
        "socat -u UDP4-RECV:5000,ip-add-membership=239.1.2.3:eth0 CREATE:/tmp/got & echo $! > /tmp/pid",
    );
    let is_member = || {
        let text = shown();
        let mut lines = text.lines();
        lines.any(|line| line.contains("239.1.2.3") && line.ends_with(" g0"))
    };
    wait_until("its report", s(20), || is_member().then_some(()));
    wait_until("the switch is the querier", s(30), || {
        (shown().matches("this switch").count() == 2).then_some(())
    });
    std::thread::sleep(s(2));

    let sent = |port: &str| switch.ledger().port(port).tx;
    let before = ["g0", "g1"].map(sent);
    for number in 0..50 {
        send(&host, GROUP, &format!("number {number}"));
    }
    wait_until("the last datagram", s(10), || {
        let got = member.run("cat /tmp/got");
        got.contains("number 49").then_some(())
    });
    let after = ["g0", "g1"].map(sent);
    assert!(after[0] >= before[0] + 50);
    assert!(after[1] < before[1] + 25, "{before:?} {after:?}");

    // A group without members: to the uplink, and to no guest.
    let seen = host.listen("udp port 5000");
    let before = sent("g0");
    other.run("for i in 1 2 3 4 5; do echo all | socat -u - UDP4-SENDTO:239.1.2.4:5000; done");
    wait_until("it at the uplink", s(10), || {
        (seen.log().matches("239.1.2.4").count() >= 5).then_some(())
    });
    assert!(sent("g0") < before + 5);

    // The guest leaves. Asked for the group alone, it keeps silent.
    member.run("kill $(cat /tmp/pid)");
    wait_until("the group's end", s(10), || (!is_member()).then_some(()));
    switch.ledger();
}

#[test]
fn a_stream_goes_to_the_hosts_that_joined_its_group_and_to_no_other() {
    let lab = Lab::new(s(120));
    let hosts = [("a", 1), ("b", 2), ("c", 3)].map(|(name, number)| Host::new(&lab, name, number));
    let [router, member, other] = &hosts;
    // The kernel's bridge as the querier, with an address of its own: the switch takes it for a multicast router.
    for line in [
        "link add br0 type bridge mcast_snooping 1 mcast_querier 1 mcast_query_use_ifaddr 1 mcast_igmp_version 3",
        "addr flush dev eth0",
        "link set eth0 master br0",
        "addr add 10.9.0.1/24 dev br0",
        "link set br0 up",
        "route add 239.0.0.0/8 dev br0",
    ] {
        router.ip(line);
    }
    for host in [member, other] {
        host.ip("route add 239.0.0.0/8 dev eth0");
    }
    let ports = [
        "[multicast]\nsnooping = true\n".to_owned(),
        xdp("a", router),
        xdp("b", member),
        xdp("c", other),
    ];
    let switch = Switch::start(&lab, &[1], &ports);
    let shown = || {
        let (status, text) = switch.ask(&["show", "multicast"]);
        assert!(status.success(), "{text}");
        text
    };
    wait_until("the kernel's querier", s(60), || {
        shown().contains("10.9.0.1").then_some(())
    });
    let socket = member.inside(|| {
        let socket = UdpSocket::bind(("0.0.0.0", PORT)).expect("a free port");
        let own = Ipv4Addr::new(10, 9, 0, 2);
        socket.join_multicast_v4(&GROUP, &own).expect("it joins");
        socket.set_read_timeout(Some(s(10))).expect("a time limit");
        socket
    });
    let is_member = || {
        shown()
            .lines()
            .any(|line| line.contains("239.1.2.3") && line.ends_with(" b"))
    };
    wait_until("its report", s(10), || is_member().then_some(()));

    // What is known takes effect within a second.
    std::thread::sleep(s(2));
    let seen = other.listen("udp port 5000");
    let mut bytes = [0; 16];
    for number in 0..20 {
        let text = format!("number {number}");
        send(router, GROUP, &text);
        let (len, _) = socket.recv_from(&mut bytes).expect("it arrives");
        assert_eq!(&bytes[..len], text.as_bytes());
    }
    // A group that no host has joined is flooded, so the other host is not deaf. The router's bridge would keep it to itself.
    send(member, OTHER, "for all");
    wait_until("a frame of the other group", s(10), || {
        seen.log().contains("239.1.2.4").then_some(())
    });
    assert!(!seen.log().contains("239.1.2.3"), "{}", seen.log());

    // It leaves, and the group with it.
    drop(socket);
    wait_until("the group's end", s(30), || (!is_member()).then_some(()));
    switch.ledger();
}
