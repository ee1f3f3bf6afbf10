//! sFlow: what collectors receive of a running switch.

use std::collections::BTreeMap;
use std::fs;
use std::net::UdpSocket;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crosspoint_guest::Guest;
use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use rustix::process::Signal;
use sflow_parser::models::{CounterData, FlowData, FlowSample, SFlowDatagram, SampleData};
use sflow_parser::parsers::parse_datagram;

use crate::harness::{Lab, Process, Switch, guest, mac, run, s, tagged, udp, wait_until};

/// The collector, on the lab's own loopback interface.
const COLLECTOR: &str = "127.0.0.1:6343";
/// Frames that are sent before the sender waits for them.
const BATCH: usize = 64;

/// The section of the configuration; it comes before the ports.
fn section(sampling: u32, more: &str) -> String {
    format!("[sflow]\ncollector = \"{COLLECTOR}\"\nsampling = {sampling}\npolling = \"1s\"\n{more}")
}

/// Sends frames from one guest to another; each must arrive.
pub fn pass(from: &mut Guest, to: &mut Guest, frames: &[Vec<u8>]) {
    for batch in frames.chunks(BATCH) {
        let batch: Vec<&[u8]> = batch.iter().map(Vec::as_slice).collect();
        assert_eq!(from.send(0, &batch).expect("a ring"), batch.len());
        let got = to.receive_at_least(0, batch.len(), s(10)).expect("a ring");
        assert_eq!(got.len(), batch.len());
        // The collector has a small buffer.
        wait_read();
    }
}

/// The numbers of interfaces in samples, by port.
fn interfaces(switch: &Switch<'_>) -> BTreeMap<String, u64> {
    let status = switch.show_json("sflow");
    let rows = status["interfaces"].as_array().expect("a list").iter();
    let row = |row: &serde_json::Value| {
        let name = row["port"].as_str().unwrap_or_default().to_owned();
        (name, row["ifindex"].as_u64().unwrap_or_default())
    };
    rows.map(row).collect()
}

/// Starts sfcapd; it listens when this returns.
fn sfcapd(lab: &Lab) -> (Process, PathBuf) {
    let folder = lab.dir().join("flows");
    fs::create_dir(&folder).expect("a folder");
    let (address, port) = COLLECTOR.split_once(':').expect("a port");
    let mut command = lab.command("sfcapd");
    command.args(["-b", address, "-p", port, "-t", "3600", "-w"]);
    command.arg(&folder);
    let mut process = Process::start(lab.dir(), "sfcapd", &command);
    process.wait_for("Startup sfcapd", s(10));
    (process, folder)
}

/// Waits until the collector, if there is one, has read everything that was sent to it. It must not have lost anything.
fn wait_read() {
    wait_until("the collector", s(10), || {
        let sockets = fs::read_to_string("/proc/thread-self/net/udp").expect("sockets");
        let port = COLLECTOR.rsplit_once(':')?.1.parse::<u16>().ok()?;
        let local = format!(":{port:04X}");
        let of_port = |line: &&str| {
            let address = line.split_whitespace().nth(1);
            address.is_some_and(|address| address.ends_with(&local))
        };
        let Some(line) = sockets.lines().find(of_port) else {
            return Some(());
        };
        let dropped = line.split_whitespace().next_back();
        assert_eq!(
            dropped,
            Some("0"),
            "the collector has lost datagrams: {line}"
        );
        line.contains(":00000000 00:").then_some(())
    });
}

/// A record of nfdump.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Record {
    /// Source and destination.
    addresses: [String; 2],
    ports: [u64; 2],
    vlans: [u64; 2],
    interfaces: [u64; 2],
    /// One frame, and its bytes, times the sampling rate.
    packets: u64,
    bytes: u64,
}

/// Ends sfcapd, and reads what it has received: the records, and how many times each is there.
fn records(lab: &Lab, (mut sfcapd, folder): (Process, PathBuf)) -> BTreeMap<Record, u64> {
    wait_read();
    sfcapd.signal(Signal::TERM);
    assert!(sfcapd.wait(s(10)).is_some(), "{}", sfcapd.log());
    let mut command = lab.command("nfdump");
    command.arg("-R").arg(&folder).args(["-o", "json"]);
    let (status, text) = run(lab.dir(), &command, s(20));
    assert!(status.success(), "nfdump: {text}");
    let end = text.rfind(']').expect("the end of a list");
    let list: Vec<serde_json::Value> =
        serde_json::from_str(&text[..=end]).unwrap_or_else(|why| panic!("{why}: {text}"));
    let mut all = BTreeMap::new();
    for one in list {
        let word = |key: &str| one[key].as_str().unwrap_or_default().to_owned();
        let number = |key: &str| one[key].as_u64().unwrap_or_default();
        let record = Record {
            addresses: ["src4_addr", "dst4_addr"].map(word),
            ports: ["src_port", "dst_port"].map(number),
            vlans: ["src_vlan", "dst_vlan"].map(number),
            interfaces: ["input_snmp", "output_snmp"].map(number),
            packets: number("in_packets"),
            bytes: number("in_bytes"),
        };
        *all.entry(record).or_default() += 1;
    }
    all
}

/// The number of samples of `frames` frames, if one of `sampling` is sampled, is within five standard deviations.
fn assert_fair(samples: u64, frames: usize, sampling: u64) {
    let (frames, chance) = (frames as f64, 1.0 / sampling as f64);
    let off = (samples as f64 - frames * chance).abs();
    let deviation = (frames * chance * (1.0 - chance)).sqrt();
    assert!(
        off <= 5.0 * deviation,
        "{samples} samples of {frames} frames"
    );
}

#[test]
fn sfcapd_gets_addresses_ports_vlans_and_as_many_packets_as_were_sent() {
    const SAMPLING: u64 = 8;
    const FRAMES: usize = 6400;
    let lab = Lab::new(s(90));
    let collector = sfcapd(&lab);
    let ports = [
        section(SAMPLING as u32, ""),
        guest(&lab, "red") + "vlan = { access = 100 }\n",
        guest(&lab, "blue") + "vlan = { access = 200 }\n",
        guest(&lab, "trunk") + "vlan = { trunk = [100, 200] }\n",
    ];
    let switch = Switch::start(&lab, &[1], &ports);
    let [mut red, mut blue, mut trunk] = ["red", "blue", "trunk"].map(|name| lab.connect(name));
    switch.wait_up(&["red", "blue", "trunk"]);
    let to_trunk = |number| udp(mac(3), mac(1), 7, number, 200);
    let to_blue = |number| tagged(&udp(mac(2), mac(3), 9, number, 300), 200);
    // Addresses are learned, so that these flows are not flooded.
    pass(
        &mut trunk,
        &mut red,
        &[tagged(&udp(mac(1), mac(3), 1, 0, 100), 100)],
    );
    pass(&mut blue, &mut trunk, &[udp(mac(3), mac(2), 1, 0, 100)]);
    pass(
        &mut red,
        &mut trunk,
        &Vec::from_iter((0..FRAMES as u32).map(to_trunk)),
    );
    pass(
        &mut trunk,
        &mut blue,
        &Vec::from_iter((0..FRAMES as u32).map(to_blue)),
    );
    let index = interfaces(&switch);
    switch.ledger();
    // The last samples are sent at the end.
    switch.stop(Signal::TERM);
    let records = records(&lab, collector);

    let flow = |from: (&str, u8), to: (&str, u8), vlan: u64, (port, len): (u64, u64)| Record {
        addresses: [from.1, to.1].map(|host| format!("10.8.0.{host}")),
        ports: [port, 7000],
        vlans: [vlan, vlan],
        interfaces: [from.0, to.0].map(|name| index[name]),
        packets: SAMPLING,
        // With the frame check sequence, which the switch does not see.
        bytes: SAMPLING * (len + 4),
    };
    let flows = [
        flow(("red", 1), ("trunk", 3), 100, (7, 200)),
        flow(("trunk", 3), ("blue", 2), 200, (9, 304)),
    ];
    for flow in &flows {
        let samples = records.get(flow);
        let samples = samples.unwrap_or_else(|| panic!("no {flow:?} in {records:#?}"));
        assert_fair(*samples, FRAMES, SAMPLING);
    }
    // Nothing else but the frames by which addresses were learned.
    let others = records.iter().filter(|(record, _)| !flows.contains(record));
    assert!(
        others.map(|(_, count)| count).sum::<u64>() <= 2,
        "{records:#?}"
    );
}

/// A collector that reads datagrams with an independent parser, on a thread of its own.
struct Reader {
    datagrams: Arc<Mutex<Vec<SFlowDatagram>>>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Reader {
    fn start() -> Reader {
        let socket = UdpSocket::bind(COLLECTOR).expect("the collector's port");
        // For what comes while this thread has no core.
        set_socket_recv_buffer_size_force(&socket, 8 << 20).expect("a buffer");
        let wait = Duration::from_millis(50);
        socket.set_read_timeout(Some(wait)).expect("a timeout");
        let (datagrams, ends): (Arc<Mutex<Vec<_>>>, Arc<AtomicBool>) = Default::default();
        let (all, is_over) = (datagrams.clone(), ends.clone());
        let read = move || {
            let mut bytes = [0; 2048];
            while !is_over.load(Ordering::Relaxed) {
                let Ok(len) = socket.recv(&mut bytes) else {
                    continue;
                };
                assert!(len <= 1400, "{len} bytes");
                let datagram = parse_datagram(&bytes[..len]).expect("sFlow version 5");
                all.lock().expect("no panic").push(datagram);
            }
        };
        Reader {
            datagrams,
            ends,
            thread: Some(std::thread::spawn(read)),
        }
    }

    /// Ends it: its port is closed when this returns.
    fn stop(mut self) -> Vec<SFlowDatagram> {
        self.ends.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("not ended yet");
        thread.join().expect("only sound datagrams");
        std::mem::take(&mut *self.datagrams.lock().expect("no panic"))
    }

    /// The samples of frames that were received on interface `input`.
    fn of(&self, input: u64) -> Vec<FlowSample> {
        let datagrams = self.datagrams.lock().expect("no panic");
        flows(&datagrams, input)
    }
}

fn flows(datagrams: &[SFlowDatagram], input: u64) -> Vec<FlowSample> {
    let samples = datagrams.iter().flat_map(|datagram| &datagram.samples);
    let flows = samples.filter_map(|sample| match &sample.sample_data {
        SampleData::FlowSample(flow) => Some(flow.clone()),
        _ => None,
    });
    flows
        .filter(|flow| u64::from(flow.input.0) == input)
        .collect()
}

/// The outputs of samples, with their counts.
fn outputs(samples: &[FlowSample]) -> BTreeMap<u32, usize> {
    let mut all = BTreeMap::new();
    for sample in samples {
        *all.entry(sample.output.0).or_default() += 1;
    }
    all
}

/// Sets the section of a running switch.
fn reload(switch: &Switch<'_>, section: &str) {
    let path = switch.config_path();
    let text = fs::read_to_string(&path).expect("the file");
    let (begin, rest) = text.split_once("[sflow]").expect("the section");
    let (_, ports) = rest.split_once("[[port]]").expect("ports");
    fs::write(&path, format!("{begin}{section}[[port]]{ports}")).expect("the file");
    let (ended, said) = switch.ask(&["reload"]);
    assert!(ended.success(), "{said}");
}

#[test]
fn every_frame_of_one_in_one_is_sampled_with_its_way_and_the_counters_agree() {
    let lab = Lab::new(s(60));
    let reader = Reader::start();
    let names = ["a", "b", "c", "other"];
    let more = "ports = [\"a\", \"?\"]\nheader_len = 64\nagent = \"192.0.2.7\"\n";
    let mut ports = vec![section(1, more)];
    ports.extend(names.map(|name| guest(&lab, name)));
    let switch = Switch::start(&lab, &[1], &ports);
    let [mut a, mut b, mut c, mut other] = names.map(|name| lab.connect(name));
    switch.wait_up(&names);
    let index = wait_until("interfaces", s(10), || {
        Some(interfaces(&switch)).filter(|all| all.len() == 3)
    });
    pass(&mut b, &mut a, &[udp(mac(1), mac(2), 1, 0, 100)]);
    let frames = |to, count| Vec::from_iter((0..count).map(|n| udp(mac(to), mac(1), 7, n, 500)));
    pass(&mut a, &mut b, &frames(2, 300));
    // To its own port, and to an address that no port has: to b, c and other.
    let own = udp(mac(1), mac(1), 7, 1, 100);
    let unknown = udp(mac(9), mac(1), 7, 1, 100);
    assert_eq!(a.send(0, &[&own, &unknown]).expect("a ring"), 2);
    pass(&mut other, &mut a, &[udp(mac(1), mac(4), 1, 0, 100)]);
    drop(c.receive(0));

    let samples = wait_until("all samples", s(10), || {
        Some(reader.of(index["a"])).filter(|all| all.len() == 302)
    });
    let to_b = index["b"] as u32;
    let expected = [(to_b, 300), (1 << 30 | 268, 1), (2 << 30 | 3, 1)];
    assert_eq!(outputs(&samples), BTreeMap::from(expected));
    assert!(samples.iter().all(|sample| sample.drops == 0));
    let last = samples.last().expect("302 samples");
    assert_eq!((last.sample_pool, last.sequence_number), (302, 302));
    for record in &samples[0].flow_records {
        if let FlowData::SampledHeader(header) = &record.flow_data {
            assert_eq!((header.frame_length, header.header.len()), (504, 64));
            assert_eq!(header.header[..12], [mac(2), mac(1)].concat());
        }
    }
    // Counters are sent once a second.
    let ledger = switch.ledger();
    let expected = (ledger.port("a").rx, ledger.port("a").tx);
    wait_until("the counters", s(20), || {
        let datagrams = reader.datagrams.lock().expect("no panic");
        let counted = counters(&datagrams, index["a"] as u32);
        counted.contains(&expected).then_some(())
    });
    let datagrams = reader.stop();
    for (number, datagram) in (1..).zip(&datagrams) {
        assert_eq!(datagram.sequence_number, number);
        assert!(format!("{:?}", datagram.agent_address).contains("192.0.2.7"));
    }
    let text = format!("{datagrams:?}");
    assert!(!text.contains("\"other\""), "other is not selected");
}

/// Frames in and out, as all counter samples of an interface have them.
fn counters(datagrams: &[SFlowDatagram], index: u32) -> Vec<(u64, u64)> {
    let mut all = Vec::new();
    let samples = datagrams.iter().flat_map(|datagram| &datagram.samples);
    for sample in samples {
        let SampleData::CountersSample(sample) = &sample.sample_data else {
            continue;
        };
        for record in &sample.counters {
            if let CounterData::GenericInterface(of) = &record.counter_data
                && of.if_index == index
            {
                let kinds = [
                    of.if_in_ucast_pkts,
                    of.if_in_multicast_pkts,
                    of.if_in_broadcast_pkts,
                ];
                let frames_in = kinds.iter().map(|count| u64::from(*count)).sum();
                all.push((frames_in, of.if_out_ucast_pkts.into()));
            }
        }
    }
    all
}

#[test]
fn a_changed_rate_and_a_lost_collector_cost_no_frame() {
    const FRAMES: u32 = 3200;
    let lab = Lab::new(s(60));
    let reader = Reader::start();
    let ports = [section(1, ""), guest(&lab, "a"), guest(&lab, "b")];
    let switch = Switch::start(&lab, &[1], &ports);
    let (mut a, mut b) = (lab.connect("a"), lab.connect("b"));
    switch.wait_up(&["a", "b"]);
    pass(&mut b, &mut a, &[udp(mac(1), mac(2), 1, 0, 100)]);
    let mut send = || {
        let frames = (0..FRAMES).map(|number| udp(mac(2), mac(1), 7, number, 100));
        pass(&mut a, &mut b, &Vec::from_iter(frames));
    };
    let index = wait_until("interfaces", s(10), || {
        interfaces(&switch).get("a").copied()
    });
    send();
    reload(&switch, &section(16, ""));
    wait_until("the new rate", s(10), || {
        (switch.show_json("sflow")["sampling"] == 16).then_some(())
    });
    send();
    let total = |metric: &str| switch.metrics().sum(metric, &[]);
    let at_rate = |all: &[FlowSample], rate| {
        let these = all.iter().filter(|sample| sample.sampling_rate == rate);
        these.count() as u64
    };
    // All samples of the first rate were sent, however late the thread was.
    let missed = || total("crosspoint_sflow_samples_missed_total");
    wait_until("the samples", s(10), || {
        let first = at_rate(&reader.of(index), 1) + missed();
        (first == u64::from(FRAMES)).then_some(())
    });
    assert_eq!(interfaces(&switch)["a"], index, "numbers stay");

    // No process listens there now.
    let datagrams = reader.stop();
    let errors = || total("crosspoint_sflow_send_errors_total");
    wait_until("errors", s(30), || {
        send();
        (errors() > 0).then_some(())
    });
    let samples = flows(&datagrams, index);
    assert!(at_rate(&samples, 1) > 0);
    assert!(switch.show("sflow").contains("COLLECTOR"));
    let log = switch.log();
    assert!(
        log.contains("the collector 127.0.0.1:6343 are lost"),
        "{log}"
    );

    // Turned off and on, a port is the same interface, and the pool goes on.
    reload(&switch, "");
    let text = wait_until("the end", s(10), || {
        Some(switch.show("sflow")).filter(|text| text.contains("Nothing is exported"))
    });
    assert!(!text.contains("COLLECTOR"));
    send();
    switch.ledger();
}
