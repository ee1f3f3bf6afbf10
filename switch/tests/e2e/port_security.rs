//! Port security for IP with three real kernels: what one of them may claim, and that no other takes its addresses.

use crate::harness::{Host, Lab, Switch, s, wait_until, xdp};

/// The port of a host that has these addresses only.
fn guarded(host: &Host<'_>, name: &str, ips: &str) -> String {
    xdp(name, host)
        + &format!(
            "addresses = {{ mac = [\"{}\"], ip = [{ips}] }}\n",
            host.mac()
        )
}

fn drops(switch: &Switch<'_>, port: &str, reason: &str) -> u64 {
    let labels = [("port", port), ("reason", reason)];
    switch.metrics().sum("crosspoint_drops_total", &labels)
}

/// `ping` to a host's IPv6 address. Its first packets wait for neighbour discovery.
fn must_ping6(from: &Host<'_>, address: &str) {
    from.must_run(&format!("ping -6 -c 3 -i 0.2 -W 5 {address}"));
}

/// An announcement that an address is the host's (RFC 826, RFC 5227).
fn gratuitous_arp(host: &Host<'_>, address: [u8; 4]) -> Vec<u8> {
    let byte = |text: &str| u8::from_str_radix(text, 16).expect("a hexadecimal byte");
    let mac: Vec<u8> = host.mac().split(':').map(byte).collect();
    let kind = [8, 6, 0, 1, 8, 0, 6, 4, 0, 2];
    let parts = [&[0xff; 6], &mac[..], &kind, &mac, &address, &mac, &address];
    let mut frame = parts.concat();
    frame.resize(60, 0);
    frame
}

#[test]
fn kernels_reach_each_other_and_none_takes_anothers_address() {
    let lab = Lab::new(s(90));
    let [a, b, c] =
        [("a", 1), ("b", 2), ("c", 3)].map(|(name, number)| Host::new(&lab, name, number));
    for (host, number) in [(&a, 1), (&b, 2), (&c, 3)] {
        host.must_run("echo 0 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6");
        host.ip(&format!("addr add 2001:db8::{number}/64 dev eth0 nodad"));
    }
    let switch = Switch::start(
        &lab,
        &[1],
        &[
            guarded(&a, "a", "\"10.9.0.1\", \"2001:db8::1\""),
            guarded(&b, "b", "\"10.9.0.2\", \"2001:db8::2\""),
            xdp("c", &c),
        ],
    );
    switch.wait_up(&["a", "b", "c"]);
    // A request for a bound address goes to its port alone; the third host sees none of those for the other two.
    let requests = c.listen("arp or icmp6");
    a.must_ping(&b);
    must_ping6(&a, "2001:db8::2");
    assert!(!requests.log().contains("10.9.0.2"), "{}", requests.log());
    assert!(
        !requests.log().contains("who has 2001:db8::2"),
        "{}",
        requests.log()
    );
    let labels = [("port", "a")];
    let suppressed = "crosspoint_queue_neighbors_suppressed_total";
    assert!(switch.metrics().sum(suppressed, &labels) >= 2);
    // An address without a port is asked for everywhere.
    a.must_run("ping -c 1 -W 1 10.9.0.50 || true");
    wait_until("the third host sees it", s(5), || {
        requests.log().contains("10.9.0.50").then_some(())
    });
    c.must_ping(&a);
    must_ping6(&c, "2001:db8::1");
    for reason in ["ip_not_allowed", "neighbor_not_allowed"] {
        assert_eq!(
            drops(&switch, "a", reason) + drops(&switch, "b", reason),
            0,
            "{reason}"
        );
    }

    // A guarded host with an address of its own choice. Its kernel asks by ARP in the name of that address.
    a.ip("addr add 10.9.0.77/24 dev eth0");
    a.ip("neigh flush all");
    a.must_not_ping_from("10.9.0.77", "10.9.0.2");
    a.ip("addr add 2001:db8::77/64 dev eth0 nodad");
    a.must_not_ping_from("2001:db8::77", "2001:db8::2");
    wait_until("spoofed claims are counted", s(10), || {
        let claims = drops(&switch, "a", "neighbor_not_allowed");
        (claims > 0).then_some(())
    });
    // Its neighbour's answers are known now, so the packet itself is sent.
    a.must_ping(&b);
    a.must_not_ping_from("10.9.0.77", "10.9.0.2");
    assert!(drops(&switch, "a", "ip_not_allowed") > 0);

    // A host without a list takes a guarded one's addresses: it announces them, and asks for another host in their name.
    let neighbour = || b.must_run("ip neigh show 10.9.0.1");
    let before = neighbour();
    c.ip("addr add 10.9.0.1/24 dev eth0");
    c.send_frame(&gratuitous_arp(&c, [10, 9, 0, 1]));
    c.ip("neigh flush all");
    c.must_not_ping_from("10.9.0.1", "10.9.0.2");
    // Its question whether the address is taken is dropped too.
    c.ip("addr add 2001:db8::2/64 dev eth0");
    c.ip("addr add 2001:db8::1/64 dev eth0 nodad");
    c.must_not_ping_from("2001:db8::1", "2001:db8::9");
    assert!(drops(&switch, "c", "neighbor_not_allowed") > 0);
    let mac = a.mac();
    assert!(
        neighbour().contains(&mac),
        "before {before}, after {}",
        neighbour()
    );
    must_ping6(&b, "2001:db8::1");
    a.must_ping(&b);
    assert_eq!(switch.ledger().fault(), None);
}
