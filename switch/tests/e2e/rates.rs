//! Rates of ports with real guests: what DPDK's driver sends on one or more queues, served by one or more workers, is held to
//! the port's limit, and none of it is lost; the limit changes in place. Guests share an uplink's rate by their weights.

use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::harness::{Host, Lab, Switch, Testpmd, TestpmdPort, guest, s, wait_until, xdp};

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

/// Waits for a second in which `port` sends at `megabits`. On a busy machine a worker that loses its core for longer than the
/// burst lasts sends less: then the next second is tried.
fn wait_rate(switch: &Switch<'_>, port: &str, megabits: u64) {
    wait_until("the port's rate", s(40), || {
        let (began, before) = (Instant::now(), frames(switch, port));
        sleep(WINDOW);
        let seconds = began.elapsed().as_secs_f64();
        let bits = (frames(switch, port) - before) as f64 * LEN as f64 * 8.0;
        let ratio = bits / seconds / (megabits as f64 * 1e6);
        eprintln!("{port}: {ratio:.4} of {megabits} Mbit/s");
        ((ratio - 1.0).abs() <= TOLERANCE).then_some(())
    });
}

fn sends_at_its_limit(cores: &[usize], queues: usize) {
    let lab = Lab::new(s(120));
    let port = guest(&lab, "dpdk0")
        + &format!(
            "queue_pairs = {queues}\nlimit = {{ out = {{ rate = \"400Mbit/s\", burst = \"4MiB\" }} }}\n"
        );
    let switch = Switch::start(&lab, cores, &[port]);
    let options = format!("queues={queues},queue_size=1024");
    let port = TestpmdPort::virtio(&lab, 0, "dpdk0", &options);
    let options = format!(
        "--txq={queues} --rxq={queues} --txd=1024 --rxd=1024 --total-num-mbufs=16384 --burst=32 --forward-mode=txonly --txpkts={LEN}"
    );
    let mut testpmd = Testpmd::start(&lab, "testpmd", 128, &[port], &options);
    testpmd.wait_ready();
    switch.wait_up(&["dpdk0"]);
    testpmd.command("start");
    wait_rate(&switch, "dpdk0", 400);
    let limit = "limit={ out = { rate = \"100Mbit/s\", burst = \"1MiB\" } }";
    let (status, text) = switch.ask(&["port", "set", "dpdk0", limit]);
    assert!(status.success(), "{text}");
    wait_rate(&switch, "dpdk0", 100);
    let shown = switch.show_json("ports");
    assert_eq!(shown[0]["limit"]["out"]["bits_per_s"], 100_000_000);
    testpmd.command("stop");
    assert_eq!(switch.ledger().fault(), None);
    testpmd.quit();
}

#[test]
fn one_queue_sends_at_its_limit() {
    sends_at_its_limit(&[1], 1);
}

#[test]
fn four_queues_on_two_workers_send_at_their_limit_together() {
    sends_at_its_limit(&[0, 1], 4);
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
