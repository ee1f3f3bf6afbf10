//! No guest, and no front end, takes more of a worker than its share: whatever one does, two honest guests of the same
//! worker exchange their frames, and all of it is accounted for.
//!
//! Nothing is timed here; how much is left to the honest ones, `crosspoint-bench fairness` measures.

use crosspoint_guest::net::features;
use crosspoint_guest::{Guest, GuestOptions, VirtioNetHdr};

use crate::harness::{Attacker, Exchange, Lab, Switch, guest, ping_pong, s, wait_until};

/// The guests that nothing may happen to, and the attacker.
const CALM: [&str; 2] = ["calm0", "calm1"];
const OWN: &str = "attacker";
/// What the honest guests exchange while they are attacked: sixteen times there and back, in lock-step.
const FRAMES: u64 = 4096;
/// The address of the first of [`CALM`]: see [`Exchange::start`].
const CALM_ADDRESS: &str = "02:00:00:00:09:65";

/// One attack, and what the switch says of it.
struct Row {
    attack: &'static str,
    /// Queue pairs of the attacker's port.
    queue_pairs: u16,
    /// Ports that receive.
    sinks: usize,
    /// Queue pairs of each.
    sink_queue_pairs: u16,
    /// Names of drops, one of which has to be counted: frames of the attacker, or to its sinks.
    drops: &'static [&'static str],
    /// More words of the attacker's command line.
    options: &'static [&'static str],
}

/// An attack with one port that receives, and without a name.
const PLAIN: Row = Row {
    attack: "",
    queue_pairs: 1,
    sinks: 1,
    sink_queue_pairs: 1,
    drops: &[],
    options: &[],
};

/// A test for each row: its name, the attack, and what differs from [`PLAIN`].
macro_rules! rows {
    ($($test:ident: $attack:literal { $($field:ident: $value:expr),* },)*) => {
        $(
            #[test]
            fn $test() {
                is_withstood(&Row { attack: $attack, $($field: $value,)* ..PLAIN });
            }
        )*
    };
}

rows! {
    small_frames: "plain-60" {},
    full_frames: "plain-1514" {},
    large_frames_to_be_cut: "tso-1448" {},
    small_broadcasts: "broadcast-60" { sinks: 30, drops: &["storm_broadcast"] },
    full_broadcasts: "broadcast-1514" { sinks: 30, drops: &["storm_broadcast"] },
    large_broadcasts: "broadcast-65000" { sinks: 30, drops: &["storm_broadcast"] },
    small_multicasts: "multicast-60" { sinks: 30, drops: &["storm_multicast"] },
    frames_to_an_unknown_address: "unknown-60" { sinks: 30, drops: &["storm_unknown_unicast"] },
    long_chains: "chains-1024" {},
    long_chains_in_tables: "chains-1024-indirect" {},
    long_chains_in_packed_rings: "chains-1024-packed" {},
    long_chains_in_tables_of_packed_rings: "chains-1024-indirect-packed" {},
    frames_to_be_cut_small: "tso-32" {},
    frames_to_be_cut_to_single_bytes: "tso-1" { drops: &["bad_offload"] },
    datagrams_to_be_cut_small: "uso-32" {},
    datagrams_to_be_cut_into_small_fragments: "ufo-32" {},
    frames_in_many_pieces_to_be_cut_small: "tso-32-1000" { drops: &["burst_budget"] },
    frames_to_be_cut_small_and_flooded: "tso-32-flood" {
        sinks: 28, drops: &["burst_budget", "storm_broadcast"]
    },
    frames_in_many_pieces_to_be_cut_small_and_flooded: "tso-32-1000-flood" {
        sinks: 28, drops: &["burst_budget", "storm_broadcast"]
    },
    receive_chains_of_single_bytes: "sink-onebyte" { drops: &["guest_buffers_costly"] },
    receive_tables_of_single_bytes: "sink-onebyte-indirect" { drops: &["guest_buffers_costly"] },
    receive_tables_of_single_bytes_in_packed_rings: "sink-onebyte-packed" {
        drops: &["guest_buffers_costly"]
    },
    receive_buffers_of_no_bytes: "sink-zero" {
        drops: &["guest_buffer_small", "guest_buffers_costly"]
    },
    receive_buffers_of_one_byte: "sink-tiny" {
        drops: &["guest_buffer_small", "guest_buffers_costly"]
    },
    receive_buffers_of_one_byte_in_packed_rings: "sink-tiny-packed" {
        drops: &["guest_buffer_small", "guest_buffers_costly"]
    },
    receive_chains_over_all_regions_with_a_dirty_log: "sink-dirty-509" {
        drops: &["guest_buffers_costly"]
    },
    descriptors_that_lie_in_all_regions: "regions-508" { drops: &["burst_budget", "oversize"] },
    frames_that_lie_in_all_regions: "regions-508-frame" {},
    calls_that_wake_many_epoll_sets: "call-epoll" { options: &["--entries", "50000"] },
    calls_that_are_broadcast: "call-udp" { options: &["--receivers", "300"] },
    runts_in_many_pieces: "runt-1000" { drops: &["runt"] },
    oversize_frames_in_many_pieces: "oversize-1000" { drops: &["oversize"] },
    tables_of_empty_descriptors: "zero-1024" { drops: &["runt"] },
    frames_from_many_addresses: "random-source" {},
    frames_in_many_pieces_to_many_queues: "pieces-1000-queues" { sink_queue_pairs: 16 },
    frames_from_many_queues: "queues-16" { queue_pairs: 16 },
    kicks_without_pause: "kick-storm" {},
}

fn with(port: String, vlan: u16, more: &str) -> String {
    port + &format!("vlan = {{ access = {vlan} }}\n{more}")
}

/// The honest guests exchange frames under the attack of `row`, and afterwards all is as it was.
fn is_withstood(row: &Row) {
    let lab = Lab::new(s(60));
    let sinks = (0..row.sinks).map(|number| format!("sink{number}"));
    let sinks = sinks.collect::<Vec<_>>();
    // In two VLANs: what the attacker floods would fill everybody's rings.
    let mut ports = CALM.map(|name| with(guest(&lab, name), 8, "")).to_vec();
    let pairs = |pairs: u16| format!("queue_pairs = {pairs}\n");
    ports.push(with(guest(&lab, OWN), 7, &pairs(row.queue_pairs)));
    let sink = |name: &String| with(guest(&lab, name), 7, &pairs(row.sink_queue_pairs));
    ports.extend(sinks.iter().map(sink));
    let switch = Switch::start(&lab, &[1], &ports);

    let mut attacker = Attacker::start(&lab, row.attack, OWN, &sinks, row.options);
    let exchange = Exchange::start(&lab, &switch, CALM);
    attacker.attack();
    exchange.run(FRAMES);
    wait_until("frames of the attacker", s(10), || {
        (received_of(&switch, OWN) > 0).then_some(())
    });
    assert_named(&switch, row);
    exchange.stop();
    let report = attacker.end();
    assert!(report["offered"].as_u64() > Some(0), "{report}");
    assert_as_before(&lab, &switch, &sinks[0]);
}

fn received_of(switch: &Switch<'_>, port: &str) -> u64 {
    let labels = [("port", port), ("direction", "rx")];
    switch
        .metrics()
        .sum("crosspoint_queue_packets_total", &labels)
}

/// One of the names that the attack has is counted, sooner or later.
fn assert_named(switch: &Switch<'_>, row: &Row) {
    if row.drops.is_empty() {
        return;
    }
    let what = format!("{}: one of {:?}", row.attack, row.drops);
    wait_until(&what, s(10), || {
        let metrics = switch.metrics();
        let count = |reason: &&str| metrics.sum("crosspoint_drops_total", &[("reason", reason)]);
        row.drops
            .iter()
            .any(|reason| count(reason) > 0)
            .then_some(())
    });
}

/// The ledger balances without a loss of the honest guests, the attacker's port serves the next guest, and the daemon
/// is well. That it ends in time, [`Switch`] checks.
fn assert_as_before(lab: &Lab, switch: &Switch<'_>, sink: &str) {
    switch.wait_down(&[OWN, sink]);
    let ledger = switch.ledger();
    for name in CALM {
        // What is sent to the honest guests when they have gone is nobody's loss, but they send nothing then.
        assert_eq!(
            ledger.port(name).drops.get("guest_ring_full"),
            None,
            "{ledger}"
        );
    }
    let connect = |name| {
        Guest::connect(lab.socket(name), GuestOptions::default()).expect("the guest connects")
    };
    let (mut own, mut sink_guest) = (connect(OWN), connect(sink));
    switch.wait_up(&[OWN, sink]);
    ping_pong(&mut own, &mut sink_guest, 1);
    let (status, body) = switch.get("/healthz");
    assert_eq!(status, 200, "{body}");
}

/// An address that is one port's, by its configuration, is not another's to send from.
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
    assert_named(&switch, &row);
    exchange.stop();
    attacker.end();
    assert_as_before(&lab, &switch, &sinks[0]);
}

/// Sends the one frame of `lie` to a guest that takes large frames of every kind: what arrives there.
fn what_arrives_of(lie: &str) -> Vec<(VirtioNetHdr, Vec<u8>)> {
    let lab = Lab::new(s(60));
    let ports = [OWN, "honest", "sink0"].map(|name| guest(&lab, name));
    let switch = Switch::start(&lab, &[1], &ports);
    let mut options = GuestOptions::default();
    options.features |= features::GUEST_CSUM | features::GUEST_TSO4;
    let mut honest = Guest::connect(lab.socket("honest"), options).expect("the guest connects");
    switch.wait_up(&["honest"]);
    assert!(switch.negotiated("honest", "GUEST_TSO4"), "{lie}");
    // To all, so that the honest guest gets what anybody gets.
    let to_all = ["--dst", "ff:ff:ff:ff:ff:ff"];
    let mut attacker = Attacker::start(&lab, lie, OWN, &["sink0".to_owned()], &to_all);
    attacker.attack();
    wait_until("the lie", s(10), || {
        (received_of(&switch, OWN) > 0).then_some(())
    });
    attacker.end();
    let ledger = switch.ledger();
    let bad = ledger.port(OWN).drops.get("bad_offload").copied();
    assert_eq!(bad, Some(1), "{lie}\n{ledger}");
    honest.receive(0).expect("the device follows the rules")
}

/// The attacker's own frames among those that arrived: its sink announced itself before.
fn assert_nothing_arrives_of(lie: &str) {
    let from_attacker = [0x02, 0xaa, 0, 0, 0, 0x01];
    let arrived = what_arrives_of(lie);
    let of_lie = arrived
        .iter()
        .filter(|(_, bytes)| bytes[6..12] == from_attacker);
    assert_eq!(of_lie.count(), 0, "{lie}: {arrived:?}");
}

#[test]
fn tcp_segmentation_of_an_arp_frame_is_refused() {
    assert_nothing_arrives_of("lie-arp-tso");
}

#[test]
fn segments_longer_than_the_frame_are_refused() {
    assert_nothing_arrives_of("lie-mss");
}

#[test]
fn a_checksum_over_an_ip_address_is_refused() {
    assert_nothing_arrives_of("lie-csum-ip");
}
