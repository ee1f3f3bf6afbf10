//! Rates of ports with real guests: what DPDK's driver sends on one or more queues, served by one or more workers, is held to
//! the port's limit, and none of it is lost; the limit changes in place. Guests share an uplink's rate by their weights. TCP of
//! a Linux guest uses all of what it may send.
//!
//! A rate counts the bytes of Ethernet frames without preamble and checksum, as the kernel's token bucket does, which sends
//! beside each of DPDK's guests for comparison.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::harness::{
    Host, Lab, LinuxGuest, Process, Switch, Testpmd, TestpmdPort, guest, s, wait_until, xdp,
};

/// Bytes of each frame.
const LEN: u64 = 1000;
/// Allowed deviation of the rate over a second.
const TOLERANCE: f64 = 0.005;
/// Length of a measurement.
const WINDOW: Duration = Duration::from_secs(1);

/// Frames that the switch has read from `port`.
fn frames(switch: &Switch<'_>, port: &str) -> u64 {
    let labels = [("port", port), ("direction", "rx")];
    switch
        .metrics()
        .sum("crosspoint_queue_packets_total", &labels)
}

/// The kernel's token bucket: a host that sends datagrams without a pause through it.
struct TokenBucket<'a> {
    lab: &'a Lab,
    host: Host<'a>,
}

impl<'a> TokenBucket<'a> {
    fn new(lab: &'a Lab) -> Self {
        let host = Host::new(lab, "tbf", 1);
        // There is no such host: its frames end at the other end of the wire.
        host.ip("neigh add 10.9.0.2 lladdr 02:00:00:00:09:02 dev eth0");
        host.must_run("tc qdisc add dev eth0 root tbf rate 1mbit burst 4mb latency 50ms");
        Self { lab, host }
    }

    fn set(&self, megabits: u64) {
        let limit = format!("rate {megabits}mbit burst 256kb latency 50ms");
        let line = format!("tc qdisc change dev eth0 root tbf {limit}");
        self.host.must_run(&line);
    }

    /// Sends until `over`. The socket waits when the bucket's queue is full.
    fn send(&self, over: &AtomicBool) {
        self.host.inside(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
            socket.connect("10.9.0.2:9").expect("an address");
            let datagram = [0; LEN as usize - 42];
            while !over.load(Ordering::Relaxed) {
                let _ = socket.send(&datagram);
            }
        });
    }

    /// Bytes that have come through.
    fn bytes(&self) -> u64 {
        let file = format!("/sys/class/net/{}/statistics/rx_bytes", self.host.interface);
        let mut command = self.lab.command("cat");
        let output = command.arg(&file).output().expect("cat runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.trim().parse().expect("a number")
    }
}

/// Waits for a second in which `port` sends at `megabits`. On a busy machine a worker that loses its core for longer than the
/// burst lasts sends less: then the next second is tried. If the kernel's token bucket did not keep its rate in any of these
/// seconds either, the machine is too busy to tell, and only that is printed.
fn wait_rate(switch: &Switch<'_>, bucket: &TokenBucket<'_>, port: &str, megabits: u64) {
    bucket.set(megabits);
    let ratio = |(began, before): (Instant, u64), after: u64| {
        let bits = (after - before) as f64 * 8.0;
        bits / began.elapsed().as_secs_f64() / (megabits as f64 * 1e6)
    };
    let now = |count: u64| (Instant::now(), count);
    let sent = || frames(switch, port) * LEN;
    let (deadline, mut is_quiet) = (Instant::now() + s(20), false);
    while Instant::now() < deadline {
        let before = (now(sent()), now(bucket.bytes()));
        sleep(WINDOW);
        let ratios = (ratio(before.0, sent()), ratio(before.1, bucket.bytes()));
        eprintln!(
            "{port}: {:.4} of {megabits} Mbit/s; tbf: {:.4}",
            ratios.0, ratios.1
        );
        let is_off = |ratio: f64| (ratio - 1.0).abs() > TOLERANCE;
        if !is_off(ratios.0) {
            return;
        }
        is_quiet |= !is_off(ratios.1);
    }
    assert!(
        !is_quiet,
        "{port} does not send at {megabits} Mbit/s, though the token bucket does"
    );
    eprintln!("{port}: the machine is too busy to tell");
}

/// Guests with one, two and four queues, one after the other.
fn send_at_their_limits(cores: &[usize]) {
    let lab = Lab::new(s(170));
    let bucket = TokenBucket::new(&lab);
    let port = |queues: &usize| {
        let limit = "limit = { out = { rate = \"400Mbit/s\", burst = \"4MiB\" } }";
        guest(&lab, &format!("dpdk{queues}")) + &format!("queue_pairs = {queues}\n{limit}\n")
    };
    let all = [1, 2, 4];
    let switch = Switch::start(&lab, cores, &all.each_ref().map(port));
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| bucket.send(&over));
        let done = std::panic::AssertUnwindSafe(|| {
            for queues in all {
                sends_at_its_limit(&lab, &switch, &bucket, queues);
            }
        });
        let done = std::panic::catch_unwind(done);
        over.store(true, Ordering::Relaxed);
        done.unwrap_or_else(|why| std::panic::resume_unwind(why));
    });
    assert_eq!(switch.ledger().fault(), None);
}

fn sends_at_its_limit(lab: &Lab, switch: &Switch<'_>, bucket: &TokenBucket<'_>, queues: usize) {
    let name = format!("dpdk{queues}");
    let options = format!("queues={queues},queue_size=1024");
    let port = TestpmdPort::virtio(lab, 0, &name, &options);
    let options = format!(
        "--txq={queues} --rxq={queues} --txd=1024 --rxd=1024 --total-num-mbufs=16384 --burst=32 --forward-mode=txonly --txpkts={LEN}"
    );
    let mut testpmd = Testpmd::start(lab, &format!("testpmd-{name}"), 128, &[port], &options);
    testpmd.wait_ready();
    switch.wait_up(&[&name]);
    testpmd.command("start");
    wait_rate(switch, bucket, &name, 400);
    let limit = "limit={ out = { rate = \"100Mbit/s\", burst = \"1MiB\" } }";
    let (status, text) = switch.ask(&["port", "set", &name, limit]);
    assert!(status.success(), "{text}");
    wait_rate(switch, bucket, &name, 100);
    let shown = switch.show_json("ports");
    let mut shown = shown.as_array().expect("a list").iter();
    let shown = shown.find(|port| port["name"] == *name).expect("the port");
    assert_eq!(shown["limit"]["out"]["bits_per_s"], 100_000_000);
    testpmd.quit();
}

#[test]
fn guests_with_one_two_and_four_queues_send_at_their_limit() {
    send_at_their_limits(&[1]);
}

#[test]
fn guests_with_one_two_and_four_queues_on_two_workers_send_at_their_limit() {
    send_at_their_limits(&[0, 1]);
}

/// Weights of guests that send through one uplink, by port.
const WEIGHTS: [u64; 3] = [1, 2, 4];
/// Allowed deviation of a guest's part of an uplink.
const SHARE_TOLERANCE: f64 = 0.05;

/// Two workers serve the guests, and one of them has no queue of its own to the uplink.
#[test]
fn guests_share_the_rate_of_an_uplink_by_weight_and_lose_nothing() {
    let lab = Lab::new(s(120));
    let host = Host::new(&lab, "up0", 1);
    let mut ports =
        vec![xdp("up0", &host) + "limit = { in = { rate = \"200Mbit/s\", burst = \"2MiB\" } }\n"];
    ports.extend(WEIGHTS.iter().enumerate().map(|(number, weight)| {
        guest(&lab, &format!("dpdk{number}"))
            + &format!("weight = {weight}\nworker = {}\n", number % 2)
    }));
    let switch = Switch::start(&lab, &[0, 1], &ports);
    let mac = host.mac();
    let (status, text) = switch.ask(&["fdb", "add", &mac, "--port", "up0"]);
    assert!(status.success(), "{text}");
    let port = |number| {
        let options = "queues=1,queue_size=1024";
        TestpmdPort::virtio(&lab, number, &format!("dpdk{number}"), options)
    };
    let ports: Vec<TestpmdPort> = (0..WEIGHTS.len()).map(port).collect();
    let peers = (0..WEIGHTS.len()).map(|number| format!("--eth-peer={number},{mac} "));
    let options = peers.collect::<String>()
        + &format!(
            "--txd=1024 --rxd=1024 --total-num-mbufs=16384 --burst=32 --forward-mode=txonly --txpkts={LEN}"
        );
    let mut testpmd = Testpmd::start(&lab, "testpmd", 128, &ports, &options);
    testpmd.wait_ready();
    switch.wait_up(&["up0", "dpdk0", "dpdk1", "dpdk2"]);
    testpmd.command("start");
    let names = ["dpdk0", "dpdk1", "dpdk2"];
    let counts = || names.map(|name| frames(&switch, name));
    wait_until("the uplink's rate, shared by weight", s(40), || {
        let (began, before) = (Instant::now(), counts());
        sleep(WINDOW);
        let (seconds, after) = (began.elapsed().as_secs_f64(), counts());
        let sent: Vec<u64> = after
            .iter()
            .zip(before)
            .map(|(after, before)| after - before)
            .collect();
        let all = sent.iter().sum::<u64>() as f64;
        let rate = all * LEN as f64 * 8.0 / seconds / 200e6;
        let weights = WEIGHTS.iter().sum::<u64>() as f64;
        let parts = sent.iter().zip(WEIGHTS);
        let parts: Vec<f64> = parts
            .map(|(sent, weight)| *sent as f64 / all * weights / weight as f64)
            .collect();
        eprintln!("{rate:.4} of the rate, {parts:.3?} of each part");
        let is_shared = parts
            .iter()
            .all(|part| (part - 1.0).abs() <= SHARE_TOLERANCE);
        (is_shared && (rate - 1.0).abs() <= TOLERANCE).then_some(())
    });
    testpmd.command("stop");
    let metrics = switch.metrics();
    for reason in ["rate_exceeded", "nic_ring_full", "handover_full"] {
        let lost = metrics.sum("crosspoint_drops_total", &[("reason", reason)]);
        assert_eq!(lost, 0, "{reason}");
    }
    let waits = metrics.sum("crosspoint_queue_uplink_waits_total", &[("port", "dpdk0")]);
    assert!(waits > 0);
    assert_eq!(switch.ledger().fault(), None);
    testpmd.quit();
}

/// Payload of a full TCP segment with time stamps, and its frame.
const SEGMENT: [f64; 2] = [1448.0, 1514.0];

/// TCP to the host, or from it with `-R`: the part of 100 Mbit/s, in bytes of frames, that arrives.
fn tcp(client: &mut LinuxGuest, host: &Host<'_>, option: &str) -> f64 {
    let line = format!(
        "iperf3 -J -c {} -t 2 --connect-timeout 5000 {option}",
        host.address
    );
    let text = client.run(&line);
    let report: serde_json::Value =
        serde_json::from_str(&text).unwrap_or_else(|why| panic!("{why}: {text}"));
    let payload = report["end"]["sum_received"]["bits_per_second"].as_f64();
    let payload = payload.unwrap_or_else(|| panic!("no rate: {text}"));
    payload * SEGMENT[1] / SEGMENT[0] / 100e6
}

fn set_ecn(client: &mut LinuxGuest, host: &Host<'_>, value: u32) {
    let line = format!("echo {value} > /proc/sys/net/ipv4/tcp_ecn");
    client.run(&line);
    host.must_run(&line);
}

#[test]
fn a_uml_guests_tcp_sends_at_its_limit_without_loss_and_receives_no_more_than_its_limit() {
    let lab = Lab::new(s(150));
    let host = Host::new(&lab, "a", 1);
    let limit = "limit = { out = { rate = \"100Mbit/s\", burst = \"256KiB\" } }\n";
    let ports = [guest(&lab, "g0") + limit, xdp("a", &host)];
    let switch = Switch::start(&lab, &[1], &ports);
    let mut service = Process::start(
        lab.dir(),
        "iperf3-server",
        &host.command("iperf3 -s --forceflush"),
    );
    service.wait_for("Server listening", s(10));
    let options = "--job orders --mem 128 --ip 10.9.0.11/24 --mac 52:54:00:09:00:01";
    let mut client = LinuxGuest::uml(&lab, "g0", options);
    client.wait_ready();
    let count = |name: &str| switch.metrics().sum(name, &[]);
    let mut reach = |what: &str, option: &str| {
        wait_until(what, s(30), || {
            let part = tcp(&mut client, &host, option);
            eprintln!("{what}: {part:.3}");
            // No more than the rate and the burst.
            assert!(part < 1.03, "{what}: {part:.3}");
            (part >= 0.95).then_some(())
        });
    };
    reach("sent", "");
    assert_eq!(count("crosspoint_drops_total"), 0);
    assert!(count("crosspoint_queue_rate_limited_total") > 0);

    // What is sent to the guest is policed: the rate is kept, though TCP may reach less. Senders that use ECN are told.
    let limit = "limit={ in = { rate = \"100Mbit/s\" } }";
    let (status, text) = switch.ask(&["port", "set", "g0", limit]);
    assert!(status.success(), "{text}");
    for ecn in [1, 0] {
        set_ecn(&mut client, &host, ecn);
        let marked = count("crosspoint_queue_ecn_marked_total");
        let part = tcp(&mut client, &host, "-R");
        let marked = count("crosspoint_queue_ecn_marked_total") - marked;
        eprintln!("received, tcp_ecn = {ecn}: {part:.3}, {marked} frames marked");
        assert!(part < 1.03, "{part:.3}");
        // The last frames of a connection with ECN may be sent again while the next one begins.
        assert!(if ecn == 1 { marked > 0 } else { marked < 100 });
    }
    assert_eq!(switch.ledger().fault(), None);
}
