//! Two tenants with the same addresses, each in a bridge of its own: real guests, and a real host behind tags.

use crate::harness::{Host, Lab, LinuxGuest, Switch, guest, s, wait_until, xdp};

const ADDRESS: &str = "10.8.0.11";
const MAC: &str = "52:54:00:08:00:01";
const UPLINK: &str = "bridges = [{ vlan = 100, bridge = \"tenant-a\" }, { vlan = 200, bridge = \"tenant-b\", protocol = \"802.1ad\" }]\n";
const BRIDGES: &str = "[[bridge]]\nname = \"tenant-a\"\n\n[[bridge]]\nname = \"tenant-b\"\n";

fn must(switch: &Switch<'_>, words: &[&str]) -> String {
    let (status, text) = switch.ask(words);
    assert!(status.success(), "{words:?}: {text}");
    text
}

/// What the guest at [`ADDRESS`] says to a host, by the host's device.
fn hello(host: &Host<'_>, device: &str) -> String {
    // The answer is the guest's own name: no host has two guests with one address, except here.
    let text = host.must_run(&format!(
        "timeout 3 curl -s --interface {device} http://{ADDRESS}/ || true"
    ));
    text.trim().to_owned()
}

fn serve(guest: &mut LinuxGuest, name: &str) {
    let answer = format!("printf \"HTTP/1.0 200 OK\\r\\n\\r\\n{name}\"");
    guest.run(&format!(
        "socat TCP4-LISTEN:80,fork,reuseaddr SYSTEM:'{answer}' > /dev/null 2>&1 & true"
    ));
}

#[test]
fn two_tenants_with_the_same_addresses_never_meet() {
    let lab = Lab::new(s(150));
    let host = Host::new(&lab, "a", 1);
    // The kernel's own tags, of both kinds: it is the oracle for ours.
    host.ip("link add link eth0 name t100 type vlan id 100");
    host.ip("link add link eth0 name t200 type vlan proto 802.1ad id 200");
    for (device, last) in [("t100", 1), ("t200", 2)] {
        host.ip(&format!("addr add 10.8.0.{last}/24 dev {device}"));
        host.ip(&format!("link set {device} up"));
    }
    // And a tag of the tenant's own behind the provider's.
    host.ip("link add link t200 name inner type vlan id 5");
    host.ip("addr add 10.7.0.1/24 dev inner");
    host.ip("link set inner up");
    let port = |name: &str, bridge: &str| {
        let addresses =
            format!("addresses = {{ mac = [\"{MAC}\"], ip = [\"{ADDRESS}\", \"10.7.0.11\"] }}\n");
        guest(&lab, name) + &format!("bridge = \"{bridge}\"\n{addresses}")
    };
    let ports = [
        port("g0", "tenant-a"),
        port("g1", "tenant-b"),
        xdp("a", &host) + UPLINK,
        BRIDGES.to_owned(),
    ];
    let switch = Switch::start(&lab, &[1], &ports);
    let options = format!("--job orders --mem 128 --ip {ADDRESS}/24 --mac {MAC}");
    let mut guests = ["g0", "g1"].map(|name| LinuxGuest::uml(&lab, name, &options));
    guests.iter_mut().for_each(LinuxGuest::wait_ready);
    let [first, second] = &mut guests;
    serve(first, "first");
    serve(second, "second");
    for (device, name) in [("t100", "first"), ("t200", "second")] {
        wait_until("the tenant's server", s(15), || {
            let said = hello(&host, device);
            assert!(said.is_empty() || said == name, "{device}: {said}");
            (said == name).then_some(())
        });
    }
    // Each bridge has the address once, on a port of its own.
    let fdb = must(&switch, &["show", "fdb", MAC]);
    assert!(
        fdb.contains("tenant-a") && fdb.contains("tenant-b"),
        "{fdb}"
    );
    let bridges = must(&switch, &["show", "bridges"]);
    assert!(bridges.contains("802.1ad 200"), "{bridges}");
    // A tag behind the provider's, in both directions.
    second.run("ip link add link eth0 name v5 type vlan id 5 && ip addr add 10.7.0.11/24 dev v5 && ip link set v5 up");
    host.must_ping_address("10.7.0.11");
    // Untagged frames are in the default bridge, where there is no guest.
    let seen = host.listen("not vlan and (arp or icmp)");
    host.must_not_ping(ADDRESS_UNTAGGED);
    let trace = must(&switch, &["trace", "g1", "--frame", &frame_hex()]);
    assert!(trace.contains("bridge       tenant-b"), "{trace}");
    drop(seen);

    // The first tenant's guest moves to the other bridge while frames flow: it is there at once, and nowhere else. The other
    // guest has the address there, so it is taken away first.
    must(&switch, &["port", "set", "g1", "bridge=default"]);
    must(&switch, &["port", "set", "g0", "bridge=tenant-b"]);
    wait_until("the first guest, in the other bridge", s(10), || {
        (hello(&host, "t200") == "first").then_some(())
    });
    assert_eq!(hello(&host, "t100"), "");
    let ledger = switch.ledger();
    assert_eq!(
        ledger.port("g0").drops.get("vlan_not_carried"),
        None,
        "{ledger}"
    );
}

/// An address of the default bridge's network that nothing has.
const ADDRESS_UNTAGGED: &str = "10.9.0.77";

/// A frame of the guest with a tag of its own.
fn frame_hex() -> String {
    let mac = MAC.replace(':', "");
    format!("ffffffffffff{mac}8100000588b7") + &"00".repeat(46)
}
