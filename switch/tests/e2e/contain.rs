//! Guests that are contained: taken off the network and let in again, isolated from each other, and no servers.

use std::time::Duration;

use crosspoint_guest::Guest;
use rustix::process::Signal;

use crate::harness::{
    Host, Lab, LinuxGuest, Process, Switch, frame, guest, mac, ping_pong, s, wait_until, xdp,
};

#[test]
fn a_guest_is_taken_off_the_network_and_let_in_again_with_its_front_end_connected() {
    let lab = Lab::new(s(60));
    let switch = Switch::start(&lab, &[1], &[guest(&lab, "g0"), guest(&lab, "g1")]);
    let mut guests = ["g0", "g1"].map(|name| lab.connect(name));
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

#[test]
fn a_guest_with_more_addresses_than_it_may_have_loses_their_frames_or_is_quarantined() {
    let lab = Lab::new(s(60));
    let limited = |action: &str| format!("mac_limit = 2\nmac_limit_action = \"{action}\"\n");
    let ports = [guest(&lab, "g0") + &limited("drop"), guest(&lab, "g1")];
    let switch = Switch::start(&lab, &[1], &ports);
    let mut guests = ["g0", "g1"].map(|name| lab.connect(name));
    switch.wait_up(&["g0", "g1"]);
    let [a, b] = &mut guests;
    ping_pong(a, b, 1);
    // One address is known; a second one may come, and two more may not.
    let send = |a: &mut Guest, sources: [u8; 3]| {
        let frames = sources.map(|source| frame(mac(22), mac(source), 0, 60));
        let frames = frames.each_ref().map(Vec::as_slice);
        assert_eq!(a.send(0, &frames).expect("a ring"), 3);
    };
    send(a, [31, 32, 33]);
    wait_until("the drops", s(5), || {
        (drops(&switch, "mac_limit") == 2).then_some(())
    });
    ping_pong(a, b, 2);
    assert!(switch.state("g0").starts_with("up"));

    // What was refused before the change does not count.
    set(&switch, "g0", "mac_limit_action=quarantine");
    std::thread::sleep(Duration::from_millis(500));
    assert!(
        switch.state("g0").starts_with("up"),
        "{}",
        switch.state("g0")
    );
    send(a, [34, 35, 36]);
    wait_until("its quarantine", s(5), || {
        let state = switch.state("g0");
        (state.starts_with("quarantined") && state.contains("mac_limit")).then_some(())
    });
    let rx = switch.ledger().port("g1").rx;
    let other = frame(mac(21), mac(22), 0, 60);
    assert_eq!(b.send(0, &[&other]).expect("a ring"), 1);
    wait_until("its neighbour goes on", s(5), || {
        (switch.ledger().port("g1").rx > rx).then_some(())
    });
    switch.stop(Signal::TERM);
}

/// Real Linux guests: the second one is the rogue.
const ADDRESSES: [&str; 2] = ["10.9.0.11", "10.9.0.12"];
const MACS: [&str; 2] = ["52:54:00:09:00:01", "52:54:00:09:00:02"];
/// A network that only the rogue's router advertisement knows.
const ROGUE_NETWORK: [u8; 8] = [0x20, 0x01, 0x0d, 0xb8, 0, 9, 0, 9];

fn uml(lab: &Lab, index: usize) -> LinuxGuest {
    let (address, mac) = (ADDRESSES[index], MACS[index]);
    let options = format!("--job orders --mem 128 --ip {address}/24 --mac {mac}");
    LinuxGuest::uml(lab, &format!("g{index}"), &options)
}

/// Whether all of three pings are answered.
fn pings(guest: &mut LinuxGuest, address: &str) -> bool {
    let text = guest.run(&format!("ping -c 3 -i 0.05 -w 2 {address}"));
    assert!(text.contains("packets transmitted"), "{text}");
    text.contains(" 0% packet loss")
}

fn set(switch: &Switch<'_>, port: &str, what: &str) {
    let (status, text) = switch.ask(&["port", "set", port, what]);
    assert!(status.success(), "{text}");
}

fn drops(switch: &Switch<'_>, reason: &str) -> u64 {
    let labels = [("reason", reason)];
    switch.metrics().sum("crosspoint_drops_total", &labels)
}

#[test]
fn isolated_uml_guests_reach_the_uplink_only_and_a_disabled_one_sees_no_carrier() {
    let lab = Lab::new(s(120));
    let host = Host::new(&lab, "a", 1);
    let isolated = |name| guest(&lab, name) + "isolated = true\n";
    let ports = [isolated("g0"), isolated("g1"), xdp("a", &host)];
    let switch = Switch::start(&lab, &[1], &ports);
    let mut guests = [0, 1].map(|index| uml(&lab, index));
    guests.iter_mut().for_each(LinuxGuest::wait_ready);
    let [a, b] = &mut guests;
    assert!(pings(a, &host.address) && pings(b, &host.address));
    // With the other's address known, requests are unicast; the answer to ARP is refused as well.
    a.run(&format!("arp -s {} {}", ADDRESSES[1], MACS[1]));
    let before = drops(&switch, "isolated");
    assert!(!pings(a, ADDRESSES[1]) && !pings(b, ADDRESSES[0]));
    assert!(drops(&switch, "isolated") >= before + 3);
    set(&switch, "g0", "isolated=false");
    set(&switch, "g1", "isolated=false");
    assert!(pings(a, ADDRESSES[1]) && pings(b, ADDRESSES[0]));

    let carrier = |guest: &mut LinuxGuest| guest.run("cat /sys/class/net/eth0/carrier");
    let mut becomes = |command: &str, expected: &str| {
        let (status, text) = switch.ask(&["port", command, "g0"]);
        assert!(status.success(), "{text}");
        let is_so = || (carrier(a).trim() == expected).then_some(());
        wait_until("the carrier", s(10), is_so);
    };
    becomes("disable", "0");
    becomes("enable", "1");
    assert!(pings(a, &host.address), "its link works again");
    assert_eq!(carrier(b).trim(), "1", "the other's has never been down");
    switch.ledger();
}

#[test]
fn a_rogue_uml_guest_serves_neither_addresses_nor_routes_unless_its_port_may() {
    let lab = Lab::new(s(120));
    let host = Host::new(&lab, "a", 1);
    let ports = [guest(&lab, "g0"), guest(&lab, "g1"), xdp("a", &host)];
    let switch = Switch::start(&lab, &[1], &ports);
    let mut guests = [0, 1].map(|index| uml(&lab, index));
    guests.iter_mut().for_each(LinuxGuest::wait_ready);
    let [victim, rogue] = &mut guests;
    rogue.run(
        "printf 'start 10.9.0.100\\nend 10.9.0.110\\ninterface eth0\\nlease_file /tmp/leases\\npidfile /tmp/pid\\n' > /tmp/conf; \
         touch /tmp/leases; udhcpd -f -a 50 /tmp/conf > /dev/null 2>&1 & true",
    );
    let escape = |byte: &u8| format!("\\x{byte:02x}");
    let escaped: String = router_advertisement().iter().map(escape).collect();
    let advertise = format!("printf '{escaped}' | socat -u - INTERFACE:eth0");
    host.must_run("echo 0 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6");
    let addresses = || host.ip("-6 -o addr show dev eth0");
    // The switch knows where everyone is.
    assert!(pings(victim, ADDRESSES[1]) && pings(rogue, &host.address));

    let refused = || drops(&switch, "server_not_allowed");
    let leases = |victim: &mut LinuxGuest, tries: u32| {
        let line = format!("udhcpc -i eth0 -n -q -f -t {tries} -T 1 -s /bin/true 2>&1");
        let at_host = format!("{} {line}; true", busybox());
        let texts = [victim.run(&line), host.must_run(&at_host)];
        texts.map(|text| text.contains("lease of 10.9.0.1"))
    };
    assert_eq!(leases(victim, 2), [false; 2]);
    assert!(refused() >= 2, "{}", refused());
    let before = refused();
    rogue.run(&advertise);
    let is_refused = || (refused() > before).then_some(());
    wait_until("its advertisement is dropped", s(5), is_refused);
    assert!(!addresses().contains("2001:db8:9:9:"), "{}", addresses());

    set(&switch, "g1", "dhcp_server=true");
    assert_eq!(leases(victim, 5), [true; 2]);
    rogue.run(&advertise);
    let is_believed = || addresses().contains("2001:db8:9:9:").then_some(());
    wait_until("a host believes the router", s(5), is_believed);
    switch.ledger();
}

/// The guest's real client leases an address of a real server at the host, and releases it. Meanwhile `show bindings` has it,
/// and a request for it goes to the guest alone, although it is in no list.
#[test]
fn an_address_that_a_uml_guest_leases_is_noted_and_requests_for_it_go_there_alone() {
    let lab = Lab::new(s(120));
    let host = Host::new(&lab, "a", 1);
    let mac = "52:54:00:09:00:01";
    let bound = format!("addresses = {{ mac = [\"{mac}\"] }}\n");
    let ports = [
        guest(&lab, "g0") + &bound,
        guest(&lab, "g1"),
        xdp("a", &host),
        "[switch]\ndhcp_snooping = true\n".to_owned(),
    ];
    let switch = Switch::start(&lab, &[1], &ports);
    let mut guests = [0, 1].map(|index| uml(&lab, index));
    guests.iter_mut().for_each(LinuxGuest::wait_ready);
    let [client, other] = &mut guests;
    let conf = lab.dir().join("udhcpd.conf");
    let text = format!(
        "start 10.9.0.100\nend 10.9.0.110\ninterface eth0\nlease_file {0}\npidfile {1}\noption lease 600\n",
        lab.dir().join("leases").display(),
        lab.dir().join("pid").display()
    );
    std::fs::write(&conf, text).expect("it is written");
    std::fs::write(lab.dir().join("leases"), "").expect("it is written");
    let server = host.command(&format!("{} udhcpd -f {}", busybox(), conf.display()));
    let _server = Process::start(lab.dir(), "udhcpd", &server);
    assert!(
        pings(other, &host.address),
        "the switch knows where they are"
    );

    let leased = || {
        let rows = switch.show_json("bindings");
        let rows = rows.as_array().cloned().unwrap_or_default();
        let lease = rows.into_iter().find(|row| row["lease_s"].is_u64())?;
        assert_eq!(
            (&lease["port"], &lease["exclusive"]),
            (&"g0".into(), &false.into())
        );
        let left = lease["lease_s"].as_u64().expect("a number");
        assert!((500..=600).contains(&left), "{lease}");
        Some(lease["address"].as_str().expect("an address").to_owned())
    };
    assert_eq!(leased(), None);
    // It keeps running, and releases its address when it is told to.
    client.run("udhcpc -i eth0 -f -R -t 5 -T 1 -s /bin/true > /tmp/log 2>&1 & echo $! > /tmp/pid");
    let address = wait_until("the lease", s(15), leased);
    client.run(&format!("ip addr add {address}/24 dev eth0"));
    let suppressed = || {
        let labels = [("port", "g1")];
        switch
            .metrics()
            .sum("crosspoint_queue_neighbors_suppressed_total", &labels)
    };
    let before = suppressed();
    // Workers have it within a second.
    wait_until("a request that is not flooded", s(10), || {
        other.run("ip neigh flush dev eth0");
        assert!(pings(other, &address));
        (suppressed() > before).then_some(())
    });

    client.run("kill -TERM $(cat /tmp/pid)");
    let is_gone = || leased().is_none().then_some(());
    wait_until("the end of the lease", s(10), is_gone);
    switch.ledger();
}

/// The image's own: not every host has one.
fn busybox() -> String {
    let image = std::env::var("CROSSPOINT_GUEST_IMAGE");
    let image = image.unwrap_or_else(|_| "/var/cache/crosspoint/guest".to_owned());
    format!("{image}/bin/busybox")
}

/// A router advertisement of the rogue for [`ROGUE_NETWORK`], from which hosts make themselves an address (RFC 4861, 4.2).
fn router_advertisement() -> Vec<u8> {
    let all_nodes = [&[0xff, 2][..], &[0; 13], &[1]].concat();
    let router = [&[0xfe, 0x80][..], &[0; 13], &[1]].concat();
    let prefix = [
        &[3, 4, 64, 0xc0, 0, 0, 14, 16, 0, 0, 14, 16, 0, 0, 0, 0][..],
        &ROGUE_NETWORK,
        &[0; 8],
    ]
    .concat();
    let mut body = [
        &[134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0][..],
        &prefix,
    ]
    .concat();
    let len = body.len() as u8;
    let pseudo = [&router[..], &all_nodes, &[0, 0, 0, len, 0, 0, 0, 58], &body].concat();
    let words = pseudo
        .chunks(2)
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum = words.sum::<u32>();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    let ethernet = [0x33, 0x33, 0, 0, 0, 1, 0x52, 0x54, 0, 9, 0, 2, 0x86, 0xdd];
    let header = [0x60, 0, 0, 0, 0, len, 58, 255];
    [&ethernet[..], &header, &router, &all_nodes, &body].concat()
}
