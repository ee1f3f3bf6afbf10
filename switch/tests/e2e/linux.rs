//! Real Linux guests: the virtio-net driver that most guests run, as new as Linux 6.1 and as old as a guest that knows
//! nothing of virtio 1.0.

use crate::harness::{Host, Lab, LinuxGuest, Switch, guest, s, xdp};

const SERVER: &str = "--job server --ip 10.9.0.12/24 --mac 52:54:00:09:00:02";
const CLIENT: &str =
    "--job client --ip 10.9.0.11/24 --mac 52:54:00:09:00:01 --secs 1 --blob-mib 8 --peer";

#[test]
fn two_uml_guests_reach_each_other() {
    let lab = Lab::new(s(120));
    let switch = Switch::start(&lab, &[1], &[guest(&lab, "g0"), guest(&lab, "g1")]);
    let mut server = LinuxGuest::uml(&lab, "g1", SERVER);
    server.wait_ready();
    LinuxGuest::uml(&lab, "g0", &format!("{CLIENT} 10.9.0.12")).must_succeed();
    switch.ledger();
}

#[test]
fn a_uml_guest_reaches_a_host() {
    let lab = Lab::new(s(120));
    let host = Host::new(&lab, "a", 1);
    let switch = Switch::start(&lab, &[1], &[guest(&lab, "g0"), xdp("a", &host)]);
    let _service = LinuxGuest::service(&lab, &host);
    LinuxGuest::uml(&lab, "g0", &format!("{CLIENT} {}", host.address)).must_succeed();
    switch.ledger();
}

#[test]
fn a_qemu_guest_reaches_a_host() {
    let log = qemu_reaches_a_host("queue_pairs = 1\n", "");
    assert!(
        bits(&log).contains(&"32"),
        "a modern guest takes VERSION_1: {:?}",
        bits(&log)
    );
}

#[test]
fn a_qemu_guest_with_two_queue_pairs_reaches_a_host() {
    let log = qemu_reaches_a_host("queue_pairs = 2\n", "--queues 2");
    assert!(log.contains("CHANNELS max=2 now=2"), "{log}");
}

#[test]
fn a_legacy_qemu_guest_reaches_a_host() {
    let log = qemu_reaches_a_host(
        "queue_pairs = 1\n",
        "--device disable-modern=on,disable-legacy=off",
    );
    assert!(
        !bits(&log).contains(&"32"),
        "a legacy guest cannot take VERSION_1: {:?}",
        bits(&log)
    );
}

/// The host's frames have partial checksums, and this guest can neither take nor leave one: the switch completes them
/// for it.
#[test]
fn a_qemu_guest_without_checksum_offloads_reaches_a_host() {
    let log = qemu_reaches_a_host(
        "queue_pairs = 1\n",
        "--mrg off --device csum=off,guest_csum=off",
    );
    let taken = bits(&log);
    for offload in ["0", "1", "15"] {
        assert!(
            !taken.contains(&offload),
            "it did not want {offload}: {taken:?}"
        );
    }
}

/// The guest's console, after all its checks have passed.
fn qemu_reaches_a_host(keys: &str, options: &str) -> String {
    let lab = Lab::new(s(150));
    let host = Host::new(&lab, "a", 1);
    let switch = Switch::start(&lab, &[1], &[guest(&lab, "g0") + keys, xdp("a", &host)]);
    let _service = LinuxGuest::service(&lab, &host);
    let mut client = LinuxGuest::qemu(&lab, "g0", &format!("{options} {CLIENT} {}", host.address));
    client.must_succeed();
    switch.ledger();
    client.log()
}

/// The virtio features that the guest took.
fn bits(log: &str) -> Vec<&str> {
    let (_, list) = log.split_once("bits=").unwrap_or_default();
    list.lines().next().unwrap_or_default().split(',').collect()
}
