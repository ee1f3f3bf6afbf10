//! IPFIX: what a real collector, nfcapd, has of a running switch's connections.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crosspoint_guest::Guest;
use rustix::process::Signal;

use crate::harness::{Lab, Process, Switch, guest, mac, run, s, udp, wait_until};
use crate::sflow::pass;

/// The collector, on the lab's own loopback interface.
const COLLECTOR: (&str, &str) = ("127.0.0.1", "4739");
/// Length of an Ethernet header.
const ETHERNET_LEN: usize = 14;
/// The port of [`udp`]'s receiver.
const SERVER: u64 = 7000;
/// Source ports of: connections, one that lasts, one that is there at the end, and packets that no rule allows.
const FLOWS: u16 = 20;
const LASTING: u16 = 900;
const LEFT: u16 = 901;
const DENIED: u16 = 5000;

const SECTION: &str = "[ipfix]\ncollector = \"127.0.0.1:4739\"\nactive_timeout = \"1s\"\ntemplates = \"1s\"\nbegins = true\ndenied = 10\n";
const REST: &str = "[connections]\nudp = \"3s\"\nudp_stream = \"3s\"\n";
const GROUP: &str = "[[group]]\nname = \"client\"\nrules = [{ direction = \"out\" }]\n";

/// Starts nfcapd; it listens when this returns.
fn nfcapd(lab: &Lab) -> (Process, PathBuf) {
    let folder = lab.dir().join("records");
    fs::create_dir(&folder).expect("a folder");
    let mut command = lab.command("nfcapd");
    let (address, port) = COLLECTOR;
    command.args(["-b", address, "-p", port, "-t", "3600", "-w"]);
    command.arg(&folder);
    let mut process = Process::start(lab.dir(), "nfcapd", &command);
    process.wait_for("Startup nfcapd", s(10));
    (process, folder)
}

/// Ends nfcapd, and has nfdump read what it has received.
fn records(lab: &Lab, (mut nfcapd, folder): (Process, PathBuf)) -> Vec<serde_json::Value> {
    nfcapd.signal(Signal::TERM);
    assert!(nfcapd.wait(s(10)).is_some(), "{}", nfcapd.log());
    let log = nfcapd.log();
    assert!(log.contains("Sequence Errors: 0, Bad Packets: 0"), "{log}");
    let mut command = lab.command("nfdump");
    command.arg("-R").arg(&folder).args(["-o", "json"]);
    let (status, text) = run(lab.dir(), &command, s(20));
    assert!(status.success(), "nfdump: {text}");
    let end = text.rfind(']').expect("the end of a list");
    serde_json::from_str(&text[..=end]).unwrap_or_else(|why| panic!("{why}: {text}"))
}

/// The same packet over IPv6.
fn over_ipv6(frame: &[u8]) -> Vec<u8> {
    let payload = &frame[ETHERNET_LEN + 20..];
    let address = |last: u8| {
        [
            [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0],
            [0, 0, 0, 0, 0, 0, 0, last],
        ]
        .concat()
    };
    let len = (payload.len() as u16).to_be_bytes();
    let head = [0x86, 0xdd, 0x60, 0, 0, 0, len[0], len[1], 17, 64];
    [
        &frame[..12],
        &head,
        &address(frame[11]),
        &address(frame[5]),
        payload,
    ]
    .concat()
}

/// The answer to a packet from the first guest: its ports are the other way round.
fn answer(flow: u16, number: u32, len: usize) -> Vec<u8> {
    let mut frame = udp(mac(1), mac(2), 0, number, len);
    let ports = ETHERNET_LEN + 20;
    frame[ports..ports + 2].copy_from_slice(&(SERVER as u16).to_be_bytes());
    frame[ports + 2..ports + 4].copy_from_slice(&flow.to_be_bytes());
    frame
}

/// What was sent of connections: packets and octets, from the guest and to it.
#[derive(Default, Debug, PartialEq, Eq)]
struct Totals([(u64, u64); 2]);

impl Totals {
    fn add(&mut self, side: usize, frames: &[Vec<u8>]) {
        let (packets, octets) = &mut self.0[side];
        *packets += frames.len() as u64;
        *octets += frames
            .iter()
            .map(|frame| (frame.len() - ETHERNET_LEN) as u64)
            .sum::<u64>();
    }

    /// The sums of the records that were begun by the guest.
    fn of(records: &[serde_json::Value]) -> Totals {
        let mut totals = Totals::default();
        let is_own = |record: &&serde_json::Value| {
            record["dst_port"] == SERVER && record["src_port"].as_u64() < Some(DENIED.into())
        };
        for record in records.iter().filter(is_own) {
            for (side, names) in [["in_packets", "in_bytes"], ["out_packets", "out_bytes"]]
                .iter()
                .enumerate()
            {
                let [packets, octets] = names.map(|name| record[name].as_u64().unwrap_or_default());
                totals.0[side].0 += packets;
                totals.0[side].1 += octets;
            }
        }
        totals
    }
}

/// Sends packets of a connection both ways, over both versions of IP.
fn talk(guests: (&mut Guest, &mut Guest), flow: u16, sent: &mut Totals) {
    let (client, server) = guests;
    let len = |number: u32| 60 + (u32::from(flow) * 53 + number * 7) as usize % 1200;
    let count = 1 + u32::from(flow) % 9;
    let out: Vec<_> = (0..count)
        .map(|number| udp(mac(2), mac(1), flow, number, len(number)))
        .collect();
    let back: Vec<_> = (0..count / 2)
        .map(|number| answer(flow, number, len(number)))
        .collect();
    let out_v6: Vec<_> = out.iter().map(|frame| over_ipv6(frame)).collect();
    let back_v6: Vec<_> = back.iter().map(|frame| over_ipv6(frame)).collect();
    for (out, back) in [(out, back), (out_v6, back_v6)] {
        pass(client, server, &out);
        pass(server, client, &back);
        sent.add(0, &out);
        sent.add(1, &back);
    }
}

fn number(status: &serde_json::Value, key: &str) -> u64 {
    status[key].as_u64().unwrap_or_default()
}

/// Without `[ipfix]`, what is left is reported and nothing after that.
fn turn_off(switch: &Switch<'_>) {
    let path = switch.config_path();
    let text = fs::read_to_string(&path).expect("the file");
    fs::write(&path, text.replace(SECTION, "")).expect("the file");
    let (ended, said) = switch.ask(&["reload"]);
    assert!(ended.success(), "{said}");
    wait_until("the end", s(10), || {
        let text = switch.show("ipfix");
        text.contains("Nothing is exported").then_some(())
    });
}

/// A switch that exports, a guest with a group, and another one.
fn start(lab: &Lab) -> (Switch<'_>, [Guest; 2]) {
    let client = guest(lab, "a") + "groups = [\"client\"]\n";
    let ports = [
        SECTION.to_owned(),
        REST.to_owned(),
        client,
        guest(lab, "b"),
        GROUP.to_owned(),
    ];
    let switch = Switch::start(lab, &[1], &ports);
    let guests = ["a", "b"].map(|name| lab.connect(name));
    switch.wait_up(&["a", "b"]);
    (switch, guests)
}

#[test]
fn nfcapd_has_each_packet_and_octet_of_every_connection() {
    let lab = Lab::new(s(90));
    let collector = nfcapd(&lab);
    let (switch, [mut a, mut b]) = start(&lab);
    // The thread of the export may be later than the switch.
    wait_until("the export", s(10), || {
        let status = switch.show_json("ipfix");
        (number(&status, "bytes") > 0).then_some(())
    });
    let mut sent = Totals::default();
    for flow in 1..=FLOWS {
        talk((&mut a, &mut b), flow, &mut sent);
    }
    // A connection that lasts for longer than the active timeout.
    for part in 0..35 {
        let frames: Vec<_> = (0..4)
            .map(|one| udp(mac(2), mac(1), LASTING, part * 4 + one, 200))
            .collect();
        pass(&mut a, &mut b, &frames);
        sent.add(0, &frames);
        std::thread::sleep(Duration::from_millis(100));
    }
    for flow in DENIED..DENIED + 30 {
        let frame = udp(mac(1), mac(2), flow, 0, 100);
        assert_eq!(b.send(0, &[&frame]).expect("a ring"), 1);
    }
    let ended = u64::from(FLOWS) * 2 + 1;
    let status = wait_until("the ends", s(20), || {
        let status = switch.show_json("ipfix");
        (number(&status, "ended") == ended).then_some(status)
    });
    assert_eq!(
        (number(&status, "begun"), number(&status, "records_missed")),
        (ended, 0)
    );
    let denied = [number(&status, "denied"), number(&status, "denied_unsent")];
    assert!(
        denied[0] >= 10 && denied.iter().sum::<u64>() == 30,
        "{denied:?}"
    );
    // One is there at the end of the export.
    let last = vec![udp(mac(2), mac(1), LEFT, 0, 300); 10];
    pass(&mut a, &mut b, &last);
    sent.add(0, &last);
    turn_off(&switch);
    pass(&mut a, &mut b, &last);
    let metrics = switch.metrics();
    let event = |event| metrics.sum("crosspoint_ipfix_records_total", &[("event", event)]);
    assert_eq!(event("ended"), ended + 1);

    let all = records(&lab, collector);
    assert_eq!(Totals::of(&all), sent);
    let lasting = all
        .iter()
        .filter(|one| one["src_port"] == LASTING && one["in_packets"] != 0);
    // The table is looked through once a second, and later on a busy host.
    assert!(lasting.count() >= 2, "it was reported while it lasted");
    let of_denied = all
        .iter()
        .filter(|one| one["src_port"].as_u64() >= Some(DENIED.into()) && one["in_packets"] == 1);
    assert_eq!(of_denied.count() as u64, denied[0]);
    let has_v6 = all.iter().any(|one| one["src6_addr"] == "2001:db8::1");
    assert!(
        has_v6 && all.iter().any(|one| one["src4_addr"] == "10.8.0.1"),
        "{all:?}"
    );
    switch.ledger();
}

#[test]
fn a_collector_that_is_gone_costs_records_and_no_frame() {
    let lab = Lab::new(s(60));
    let (switch, [mut a, mut b]) = start(&lab);
    let mut flow = 1;
    let status = wait_until("errors", s(30), || {
        talk((&mut a, &mut b), flow, &mut Totals::default());
        flow += 1;
        let status = switch.show_json("ipfix");
        (number(&status, "records_unsent") > 0).then_some(status)
    });
    assert!(number(&status, "send_errors") > 0 && status["last_error"].is_string());
    assert!(switch.show("ipfix").contains("send errors"));
    switch.ledger();
}
