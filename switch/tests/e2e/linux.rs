//! Real Linux guests: the virtio-net driver that most guests run, in versions from Linux 6.1 back to a guest that does not
//! know virtio 1.0.

use crate::harness::{Host, HugePages, Lab, LinuxGuest, Switch, guest, run, s, xdp};

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
    for offload in [
        "HOST_TSO4",
        "GUEST_TSO4",
        "HOST_TSO6",
        "GUEST_TSO6",
        "HOST_UFO",
        "GUEST_UFO",
    ] {
        assert!(switch.negotiated("g1", offload), "no {offload}");
    }
    // Both accept large frames, which cross whole.
    let received = [("port", "g0"), ("direction", "rx")];
    let of_g0 = |name| switch.metrics().sum(name, &received);
    let (bytes, frames) = (
        of_g0("crosspoint_queue_bytes_total"),
        of_g0("crosspoint_queue_packets_total"),
    );
    assert!(bytes > 4000 * frames, "{bytes} bytes in {frames} frames");
    assert_eq!(switch.ledger().port("g0").segment_copies, 0);
}

#[test]
fn a_uml_guest_reaches_a_host() {
    let lab = Lab::new(s(120));
    let host = Host::new(&lab, "a", 1);
    let uplink = xdp("a", &host) + "tso = \"off\"\n";
    let switch = Switch::start(&lab, &[1], &[guest(&lab, "g0"), uplink]);
    let _service = LinuxGuest::service(&lab, &host);
    LinuxGuest::uml(&lab, "g0", &format!("{CLIENT} {}", host.address)).must_succeed();
    // The host's port accepts none whole: they are segmented on the way there.
    assert!(switch.ledger().port("g0").segment_copies > 1000);
    // Frames from the host are joined for the guest, which accepts large ones.
    assert!(switch.ledger().port("a").joined_copies > 1000);
}

/// The uplink takes one queue of its interface, and the guest has the other, which it uses only to send.
#[test]
fn a_uml_guest_with_a_queue_of_its_own_reaches_a_host() {
    let lab = Lab::new(s(120));
    let host = Host::with_queues(&lab, "a", 1, 2);
    let (status, text) = run(lab.dir(), &host.command("ethtool -L eth0 tx 1"), s(10));
    assert!(status.success(), "{text}");
    let ports = [
        guest(&lab, "g0") + "direct = { uplink = \"a\", queue = 1 }\n",
        xdp("a", &host) + "queues = [0]\n",
    ];
    let switch = Switch::start(&lab, &[1], &ports);
    let _service = LinuxGuest::service(&lab, &host);
    let mut client = LinuxGuest::uml(&lab, "g0", &format!("{CLIENT} {}", host.address));
    client.wait_for("REACHED-AT");
    let direct = switch.property("g0", "direct").join(" ");
    assert_eq!(direct, "a queue 1, copy");
    client.must_succeed();
    assert!(switch.ledger().port("g0").segment_copies > 1000);
}

/// A network card of a guest, and the features negotiated for it.
struct Card {
    /// Keys of the switch's port.
    port: &'static str,
    /// Options as in `--nic` of deploy/guest/qemu.sh.
    options: &'static str,
    /// Features, by name, that it must have, and must not have.
    with: &'static [&'static str],
    without: &'static [&'static str],
    ring_sizes: &'static [&'static str],
}

const CARD: Card = Card {
    port: "",
    options: "",
    with: &["VERSION_1"],
    without: &[],
    ring_sizes: &["256", "256"],
};

/// Cards with all kinds of rings.
const CARDS: [Card; 7] = [
    CARD,
    Card {
        options: "indirect_desc=off",
        without: &["INDIRECT_DESC"],
        ..CARD
    },
    Card {
        options: "event_idx=off",
        without: &["EVENT_IDX"],
        ..CARD
    },
    Card {
        options: "rx_queue_size=1024,tx_queue_size=1024",
        ring_sizes: &["1024", "1024"],
        ..CARD
    },
    // The host's frames have partial checksums. This card's driver can neither receive nor send such frames, so the switch
    // completes the checksums.
    Card {
        options: "mrg_rxbuf=off,csum=off,guest_csum=off",
        without: &["MRG_RXBUF", "CSUM", "GUEST_CSUM"],
        ..CARD
    },
    Card {
        port: "role = \"client\"\n",
        options: "listen",
        with: &["VERSION_1", "MRG_RXBUF", "INDIRECT_DESC", "EVENT_IDX"],
        ..CARD
    },
    Card {
        port: "queue_pairs = 4\n",
        options: "queues=4",
        with: &["VERSION_1", "MQ"],
        ring_sizes: &["256"; 8],
        ..CARD
    },
];

/// Drivers that do not know virtio 1.0: the header has 10 bytes if buffers are not mergeable.
const LEGACY_CARDS: [Card; 2] = [
    Card {
        options: "disable-modern=on,disable-legacy=off",
        with: &["MRG_RXBUF"],
        without: &["VERSION_1"],
        ..CARD
    },
    Card {
        options: "disable-modern=on,disable-legacy=off,mrg_rxbuf=off",
        with: &[],
        without: &["VERSION_1", "MRG_RXBUF"],
        ..CARD
    },
];

#[test]
fn a_qemu_guest_in_huge_pages_reaches_a_host_by_nine_kinds_of_cards_with_split_rings() {
    let _pages = HugePages::new(128);
    let cards = CARDS.iter().chain(&LEGACY_CARDS).collect::<Vec<_>>();
    qemu_reaches_a_host(&cards, "packed=off", "--hugepages");
}

#[test]
fn a_qemu_guest_reaches_a_host_by_seven_kinds_of_cards_with_packed_rings() {
    let cards = CARDS.iter().collect::<Vec<_>>();
    qemu_reaches_a_host(&cards, "packed=on", "");
}

/// One guest with all `cards`, each on its own network; the guest tests them one after the other.
fn qemu_reaches_a_host(cards: &[&Card], props: &str, options: &str) {
    let lab = Lab::new(s(170));
    let host = Host::new(&lab, "a", 1);
    let name = |index: usize| format!("eth{index}");
    let port = |(index, card): (usize, &&Card)| guest(&lab, &name(index)) + card.port;
    let mut ports = cards.iter().enumerate().map(port).collect::<Vec<_>>();
    ports.push(xdp("a", &host));
    let switch = Switch::start(&lab, &[1], &ports);
    let mut line = format!(
        "{options} --job transfer --blob-mib 4 --smp 2 --device {props} --mac 52:54:00:09:00:00"
    );
    let (mut addresses, mut peers) = (vec!["10.9.0.11/24".to_owned()], vec![host.address.clone()]);
    for (index, card) in cards.iter().enumerate().skip(1) {
        let socket = lab.socket(&name(index));
        let card = [card.options, props]
            .map(|words| ",".to_owned() + words)
            .concat();
        line += &format!(
            " --nic {}{card},mac=52:54:00:09:00:{index:02}",
            socket.display()
        );
        addresses.push(format!("10.9.{index}.11/24"));
        peers.push(format!("10.9.{index}.1"));
        host.ip(&format!("addr add 10.9.{index}.1/24 dev eth0"));
    }
    let _service = LinuxGuest::service(&lab, &host);
    line += &format!(" --ip {} --peer {}", addresses.join(","), peers.join(","));
    let mut client = LinuxGuest::qemu(&lab, &name(0), &line);
    client.wait_for("PEER ");
    for (index, card) in cards.iter().enumerate() {
        assert_negotiated(&switch, &name(index), card, props == "packed=on");
    }
    client.must_transfer_both_ways();
    switch.ledger();
}

fn assert_negotiated(switch: &Switch<'_>, port: &str, card: &Card, packed: bool) {
    let features = switch.property(port, "features");
    let has = |name: &&&str| features.iter().any(|feature| feature == **name);
    let what = format!("{:?}: {features:?}", card.options);
    assert!(card.with.iter().all(|name| has(&name)), "{what}");
    assert!(!card.without.iter().any(|name| has(&name)), "{what}");
    assert_eq!(has(&&"RING_PACKED"), packed, "{what}");
    assert_eq!(
        switch.property(port, "ring_sizes"),
        card.ring_sizes,
        "{what}"
    );
}
