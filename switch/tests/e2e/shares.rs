//! No guest and no front end takes more of a worker than its share: whatever one does, two honest guests of the same worker
//! exchange their frames, hosts on wires do so too, and all frames are accounted for.
//!
//! Nothing is timed here; `crosspoint-bench fairness` measures how much is left to the honest ones.

use crosspoint_guest::net::features;
use crosspoint_guest::{Guest, GuestOptions, VirtioNetHdr};

use crate::harness::{Attacker, Exchange, Host, Lab, Switch, guest, ping_pong, s, wait_until, xdp};

/// The guests that must not be disturbed, and the attacker.
const CALM: [&str; 2] = ["calm0", "calm1"];
const OWN: &str = "attacker";
/// Frames that the honest guests exchange during the attack: sixteen at a time in each direction, in lock-step.
const FRAMES: u64 = 4096;
/// The address of the first of [`CALM`]: see [`Exchange::start`].
const CALM_ADDRESS: &str = "02:00:00:00:09:65";

/// An attack, and the switch's counts of it.
struct Row {
    attack: &'static str,
    /// Queue pairs of the attacker's port.
    queue_pairs: u16,
    /// Ports that receive.
    sinks: usize,
    /// Queue pairs of each.
    sink_queue_pairs: u16,
    /// Names of drops, one of which must be counted: frames of the attacker, or to its sinks.
    drops: &'static [&'static str],
    /// Whether it breaks a rule, so that the attacker's port is quarantined.
    is_quarantined: bool,
    /// Further options of the attacker's command line.
    options: &'static [&'static str],
}

/// An attack without a name and with one port that receives.
const PLAIN: Row = Row {
    attack: "",
    queue_pairs: 1,
    sinks: 1,
    sink_queue_pairs: 1,
    drops: &[],
    is_quarantined: false,
    options: &[],
};

/// All continuous attacks, each with the switch's names for what it refuses.
const ROWS: &[Row] = &[
    Row {
        attack: "plain-60",
        ..PLAIN
    },
    Row {
        attack: "plain-1514",
        ..PLAIN
    },
    Row {
        attack: "tso-1448",
        ..PLAIN
    },
    Row {
        attack: "broadcast-60",
        sinks: 30,
        drops: &["storm_broadcast"],
        ..PLAIN
    },
    Row {
        attack: "broadcast-1514",
        sinks: 30,
        drops: &["storm_broadcast"],
        ..PLAIN
    },
    Row {
        attack: "broadcast-65000",
        sinks: 30,
        drops: &["storm_broadcast"],
        ..PLAIN
    },
    Row {
        attack: "multicast-60",
        sinks: 30,
        drops: &["storm_multicast"],
        ..PLAIN
    },
    Row {
        attack: "unknown-60",
        sinks: 30,
        drops: &["storm_unknown_unicast"],
        ..PLAIN
    },
    Row {
        attack: "chains-1024",
        ..PLAIN
    },
    Row {
        attack: "chains-1024-indirect",
        ..PLAIN
    },
    Row {
        attack: "chains-1024-packed",
        ..PLAIN
    },
    Row {
        attack: "chains-1024-indirect-packed",
        ..PLAIN
    },
    Row {
        attack: "tso-32",
        ..PLAIN
    },
    Row {
        attack: "tso-1",
        drops: &["bad_offload"],
        ..PLAIN
    },
    Row {
        attack: "uso-32",
        ..PLAIN
    },
    Row {
        attack: "ufo-32",
        ..PLAIN
    },
    Row {
        attack: "tso-32-1000",
        drops: &["burst_budget"],
        ..PLAIN
    },
    Row {
        attack: "tso-32-flood",
        sinks: 28,
        drops: &["burst_budget", "storm_broadcast"],
        ..PLAIN
    },
    Row {
        attack: "tso-32-1000-flood",
        sinks: 28,
        drops: &["burst_budget", "storm_broadcast"],
        ..PLAIN
    },
    Row {
        attack: "sink-onebyte",
        drops: &["guest_buffers_costly"],
        ..PLAIN
    },
    Row {
        attack: "sink-onebyte-indirect",
        drops: &["guest_buffers_costly"],
        ..PLAIN
    },
    Row {
        attack: "sink-onebyte-packed",
        drops: &["guest_buffers_costly"],
        ..PLAIN
    },
    Row {
        attack: "sink-zero",
        drops: &["guest_buffer_small", "guest_buffers_costly"],
        ..PLAIN
    },
    Row {
        attack: "sink-tiny",
        drops: &["guest_buffer_small", "guest_buffers_costly"],
        ..PLAIN
    },
    Row {
        attack: "sink-tiny-packed",
        drops: &["guest_buffer_small", "guest_buffers_costly"],
        ..PLAIN
    },
    Row {
        attack: "sink-dirty-509",
        drops: &["guest_buffers_costly"],
        ..PLAIN
    },
    Row {
        attack: "regions-508",
        is_quarantined: true,
        ..PLAIN
    },
    Row {
        attack: "regions-508-frame",
        is_quarantined: true,
        ..PLAIN
    },
    Row {
        attack: "call-epoll",
        options: &["--entries", "50000"],
        ..PLAIN
    },
    Row {
        attack: "call-udp",
        options: &["--receivers", "300"],
        ..PLAIN
    },
    Row {
        attack: "runt-1000",
        drops: &["runt"],
        ..PLAIN
    },
    Row {
        attack: "oversize-1000",
        drops: &["oversize"],
        ..PLAIN
    },
    Row {
        attack: "zero-1024",
        drops: &["runt"],
        ..PLAIN
    },
    Row {
        attack: "random-source",
        ..PLAIN
    },
    Row {
        attack: "pieces-1000-queues",
        sink_queue_pairs: 16,
        ..PLAIN
    },
    Row {
        attack: "queues-16",
        queue_pairs: 16,
        ..PLAIN
    },
    Row {
        attack: "kick-storm",
        ..PLAIN
    },
    Row {
        attack: "dirty-lines",
        queue_pairs: 16,
        ..PLAIN
    },
];

/// Makes tests of rows: the function that runs a row, and for each test its name and its attack's name.
macro_rules! tests {
    ($withstood:ident: $($test:ident: $attack:literal,)*) => {
        $(
            #[test]
            fn $test() {
                let row = ROWS.iter().find(|row| row.attack == $attack);
                $withstood(row.expect("a row"));
            }
        )*
    };
}

tests! { is_withstood_by_guests:
    small_frames: "plain-60",
    full_frames: "plain-1514",
    large_frames_to_be_cut: "tso-1448",
    small_broadcasts: "broadcast-60",
    full_broadcasts: "broadcast-1514",
    large_broadcasts: "broadcast-65000",
    small_multicasts: "multicast-60",
    frames_to_an_unknown_address: "unknown-60",
    long_chains: "chains-1024",
    long_chains_in_tables: "chains-1024-indirect",
    long_chains_in_packed_rings: "chains-1024-packed",
    long_chains_in_tables_of_packed_rings: "chains-1024-indirect-packed",
    frames_to_be_cut_small: "tso-32",
    frames_to_be_cut_to_single_bytes: "tso-1",
    datagrams_to_be_cut_small: "uso-32",
    datagrams_to_be_cut_into_small_fragments: "ufo-32",
    frames_in_many_pieces_to_be_cut_small: "tso-32-1000",
    frames_to_be_cut_small_and_flooded: "tso-32-flood",
    frames_in_many_pieces_to_be_cut_small_and_flooded: "tso-32-1000-flood",
    receive_chains_of_single_bytes: "sink-onebyte",
    receive_tables_of_single_bytes: "sink-onebyte-indirect",
    receive_tables_of_single_bytes_in_packed_rings: "sink-onebyte-packed",
    receive_buffers_of_no_bytes: "sink-zero",
    receive_buffers_of_one_byte: "sink-tiny",
    receive_buffers_of_one_byte_in_packed_rings: "sink-tiny-packed",
    receive_chains_over_all_regions_with_a_dirty_log: "sink-dirty-509",
    descriptors_that_lie_in_all_regions: "regions-508",
    frames_that_lie_in_all_regions: "regions-508-frame",
    calls_that_wake_many_epoll_sets: "call-epoll",
    calls_that_are_broadcast: "call-udp",
    runts_in_many_pieces: "runt-1000",
    oversize_frames_in_many_pieces: "oversize-1000",
    tables_of_empty_descriptors: "zero-1024",
    frames_from_many_addresses: "random-source",
    frames_in_many_pieces_to_many_queues: "pieces-1000-queues",
    frames_from_many_queues: "queues-16",
    kicks_without_pause: "kick-storm",
    rings_written_to_without_frames: "dirty-lines",
}

// The worst of each kind again, beside interfaces: one kind of interface port stands for all.
tests! { is_withstood_by_interfaces:
    small_broadcasts_beside_interfaces: "broadcast-60",
    long_chains_beside_interfaces: "chains-1024",
    floods_of_cut_frames_beside_interfaces: "tso-32-1000-flood",
    receive_chains_with_a_dirty_log_beside_interfaces: "sink-dirty-509",
    descriptors_in_all_regions_beside_interfaces: "regions-508",
    calls_that_wake_many_beside_interfaces: "call-epoll",
}

/// The VLANs of the honest guests and of the attacker: otherwise what the attacker floods would fill all rings.
const VLANS: [u16; 2] = [8, 7];

/// A port in a VLAN. More keys may be appended.
fn within(port: String, vlan: u16) -> String {
    port + &format!("vlan = {{ access = {vlan} }}\n")
}

/// The names of the ports that receive, and the configuration of the attacker's port and these.
fn attackers_ports(lab: &Lab, row: &Row) -> (Vec<String>, Vec<String>) {
    let port = |name: &str, pairs: u16| {
        within(guest(lab, name), VLANS[1]) + &format!("queue_pairs = {pairs}\n")
    };
    let sinks = (0..row.sinks).map(|number| format!("sink{number}"));
    let sinks = sinks.collect::<Vec<_>>();
    // A development build on a slow machine floods fewer multicasts per second than the default limit allows.
    let own = port(OWN, row.queue_pairs) + "storm = { multicast = 100000 }\n";
    let mut ports = vec![own];
    ports.extend(sinks.iter().map(|name| port(name, row.sink_queue_pairs)));
    (sinks, ports)
}

/// Two honest guests exchange frames under the attack of `row`; afterwards all works as before.
fn is_withstood_by_guests(row: &Row) {
    let lab = Lab::new(s(60));
    let (sinks, mut ports) = attackers_ports(&lab, row);
    ports.extend(CALM.map(|name| within(guest(&lab, name), VLANS[0])));
    let switch = Switch::start(&lab, &[1], &ports);
    let mut attacker = Attacker::start(&lab, row.attack, OWN, &sinks, row.options);
    let exchange = Exchange::start(&lab, &switch, CALM);
    attacker.attack();
    exchange.run(FRAMES);
    assert_attacked(&switch, row);
    exchange.stop();
    end(attacker);
    assert_as_before(&lab, &switch, &sinks[0]);
}

/// Two hosts on wires ping each other under the attack of `row`; afterwards all works as before.
fn is_withstood_by_interfaces(row: &Row) {
    let lab = Lab::new(s(60));
    let hosts = [("a", 1), ("b", 2)].map(|(name, number)| Host::new(&lab, name, number));
    let (sinks, mut ports) = attackers_ports(&lab, row);
    let names = ["a", "b"].into_iter().zip(&hosts);
    ports.extend(names.map(|(name, host)| within(xdp(name, host), VLANS[0])));
    let switch = Switch::start(&lab, &[1], &ports);
    hosts[0].must_ping(&hosts[1]);
    let mut attacker = Attacker::start(&lab, row.attack, OWN, &sinks, row.options);
    attacker.attack();
    hosts[0].must_ping(&hosts[1]);
    assert_attacked(&switch, row);
    hosts[1].must_ping(&hosts[0]);
    end(attacker);
    assert_as_before(&lab, &switch, &sinks[0]);
}

/// Ends the attacker, which must have offered something.
fn end(attacker: Attacker) {
    let report = attacker.end();
    assert!(report["offered"].as_u64() > Some(0), "{report}");
}

fn received_of(switch: &Switch<'_>, port: &str) -> u64 {
    let labels = [("port", port), ("direction", "rx")];
    switch
        .metrics()
        .sum("crosspoint_queue_packets_total", &labels)
}

/// Waits until frames of the attacker have come in, and one of the attack's drop names is counted, or its port is
/// quarantined.
fn assert_attacked(switch: &Switch<'_>, row: &Row) {
    if row.is_quarantined {
        switch.wait_state(OWN, "quarantined");
        return;
    }
    let what = format!("{}: one of {:?}", row.attack, row.drops);
    wait_until(&what, s(10), || {
        let metrics = switch.metrics();
        let count = |reason: &&str| metrics.sum("crosspoint_drops_total", &[("reason", reason)]);
        let is_named = row.drops.is_empty() || row.drops.iter().any(|reason| count(reason) > 0);
        (is_named && received_of(switch, OWN) > 0).then_some(())
    });
}

/// The ledger balances, the attacker's port serves the next guest, and the daemon is healthy. [`Switch`] checks that it ends
/// in time.
fn assert_as_before(lab: &Lab, switch: &Switch<'_>, sink: &str) {
    switch.wait_down(&[OWN, sink]);
    switch.ledger();
    let (mut own, mut sink_guest) = (lab.connect(OWN), lab.connect(sink));
    switch.wait_up(&[OWN, sink]);
    ping_pong(&mut own, &mut sink_guest, 1);
    // Waits, since another process may just have had the worker's core.
    wait_until("a daemon that is well", s(10), || {
        (switch.get("/healthz").0 == 200).then_some(())
    });
}

/// Frames may not be sent from an address that the configuration assigns to another port.
#[test]
fn frames_from_the_address_of_another_port() {
    let lab = Lab::new(s(60));
    let sinks = ["sink0".to_owned()];
    let bound = format!("addresses = {{ mac = [{CALM_ADDRESS:?}] }}\n");
    let ports = [
        guest(&lab, CALM[0]) + &bound,
        guest(&lab, CALM[1]),
        guest(&lab, OWN),
        guest(&lab, &sinks[0]),
    ];
    let switch = Switch::start(&lab, &[1], &ports);
    let victim = ["--victim", CALM_ADDRESS];
    let mut attacker = Attacker::start(&lab, "steal", OWN, &sinks, &victim);
    let exchange = Exchange::start(&lab, &switch, CALM);
    attacker.attack();
    exchange.run(FRAMES);
    let row = Row {
        attack: "steal",
        drops: &["source_not_allowed"],
        ..PLAIN
    };
    assert_attacked(&switch, &row);
    exchange.stop();
    end(attacker);
    assert_as_before(&lab, &switch, &sinks[0]);
}

/// Sends the one frame of `lie` to a guest that accepts large frames of every kind. Returns what arrives there.
fn what_arrives_of(lie: &str, refused: Option<u64>) -> Vec<(VirtioNetHdr, Vec<u8>)> {
    let lab = Lab::new(s(60));
    let ports = [OWN, "honest", "sink0"].map(|name| guest(&lab, name));
    let switch = Switch::start(&lab, &[1], &ports);
    let mut options = GuestOptions::default();
    options.features |= features::GUEST_CSUM | features::GUEST_TSO4;
    let mut honest = Guest::connect(lab.socket("honest"), options).expect("the guest connects");
    switch.wait_up(&["honest"]);
    assert!(switch.negotiated("honest", "GUEST_TSO4"), "{lie}");
    // A broadcast, so that the honest guest gets it like all others.
    let to_all = ["--dst", "ff:ff:ff:ff:ff:ff"];
    let mut attacker = Attacker::start(&lab, lie, OWN, &["sink0".to_owned()], &to_all);
    attacker.attack();
    wait_until("the lie", s(10), || {
        (received_of(&switch, OWN) > 0).then_some(())
    });
    attacker.end();
    let ledger = switch.ledger();
    let bad = ledger.port(OWN).drops.get("bad_offload").copied();
    assert_eq!(bad, refused, "{lie}\n{ledger}");
    honest.receive(0).expect("the device follows the rules")
}

/// Whether a frame is the attacker's own; its sink has sent an announcement before.
fn is_attackers((_, bytes): &(VirtioNetHdr, Vec<u8>)) -> bool {
    bytes[6..12] == [0x02, 0xaa, 0, 0, 0, 0x01]
}

fn assert_nothing_arrives_of(lie: &str) {
    let arrived = what_arrives_of(lie, Some(1));
    assert!(!arrived.iter().any(is_attackers), "{lie}: {arrived:?}");
}

#[test]
fn tcp_segmentation_of_an_arp_frame_is_refused() {
    assert_nothing_arrives_of("lie-arp-tso");
}

/// Its payload fits one segment, so it arrives as a plain frame, whatever segmentation was asked for.
#[test]
fn segments_longer_than_the_frame_are_none() {
    let arrived = what_arrives_of("lie-mss", None);
    let of_lie: Vec<_> = arrived.iter().filter(|frame| is_attackers(frame)).collect();
    assert!(!of_lie.is_empty(), "{arrived:?}");
    for (header, _) in of_lie {
        assert_eq!(
            (header.gso_type, header.gso_size, header.hdr_len),
            (0, 0, 0)
        );
    }
}

#[test]
fn a_checksum_over_an_ip_address_is_refused() {
    assert_nothing_arrives_of("lie-csum-ip");
}
