//! A busy worker's time is divided among guests by their ports' weights, and so are frames that cost the same.
//!
//! The guests are DPDK's: three virtio-user ports of one testpmd, which sends on all of them without pause. Their frames are
//! flooded to many idle guests with full rings. A frame thus costs the worker several times what it costs testpmd, so that
//! the worker is the bottleneck.

use crosspoint_guest::Guest;

use crate::harness::{Lab, Switch, Testpmd, TestpmdPort, guest, s, wait_until};

/// Guests that the frames are flooded to.
const SINKS: usize = 24;
const WEIGHTS: [u64; 3] = [1, 2, 4];
const RING: u32 = 1024;
/// Allowed deviation of a guest's part from its due part.
const TOLERANCE: f64 = 0.1;

/// The switch's counts of each guest's queue: cycles of the worker, and frames.
fn served(switch: &Switch<'_>) -> [[u64; 2]; 3] {
    let metrics = switch.metrics();
    std::array::from_fn(|number| {
        let port = format!("dpdk{number}");
        let of = |name, labels: &[(&str, &str)]| {
            let labels = [&[("port", &*port)], labels].concat();
            metrics.sum(name, &labels)
        };
        [
            of("crosspoint_queue_cycles_total", &[]),
            of("crosspoint_queue_packets_total", &[("direction", "rx")]),
        ]
    })
}

/// Whether each guest's part corresponds to its weight.
fn is_by_weight(counts: [u64; 3]) -> bool {
    let (all, weights) = (counts.iter().sum::<u64>(), WEIGHTS.iter().sum::<u64>());
    let mut parts = counts.into_iter().zip(WEIGHTS);
    all > 0
        && parts.all(|(count, weight)| {
            let due = all as f64 * weight as f64 / weights as f64;
            (count as f64 - due).abs() <= TOLERANCE * due
        })
}

#[test]
fn dpdk_guests_that_saturate_a_worker_get_its_time_by_weight() {
    let lab = Lab::new(s(90));
    let sinks: Vec<String> = (0..SINKS).map(|number| format!("sink{number}")).collect();
    let mut ports: Vec<String> = sinks.iter().map(|name| guest(&lab, name)).collect();
    ports.extend(WEIGHTS.iter().enumerate().map(|(number, weight)| {
        guest(&lab, &format!("dpdk{number}"))
            + &format!("weight = {weight}\nstorm = {{ unknown_unicast = 0 }}\n")
    }));
    let switch = Switch::start(&lab, &[1], &ports);
    let guests: Vec<Guest> = sinks.iter().map(|name| lab.connect(name)).collect();
    let options = format!("queues=1,queue_size={RING}");
    let port = |number| TestpmdPort::virtio(&lab, number, &format!("dpdk{number}"), &options);
    let testpmd_options = format!(
        "--txd={RING} --rxd={RING} --total-num-mbufs=16384 --burst=64 --forward-mode=txonly --txpkts=60"
    );
    let ports: Vec<TestpmdPort> = (0..WEIGHTS.len()).map(port).collect();
    let mut testpmd = Testpmd::start(&lab, "testpmd", 128, &ports, &testpmd_options);
    testpmd.wait_ready();
    switch.wait_up(&["dpdk0", "dpdk1", "dpdk2"]);
    testpmd.command("start");

    // If testpmd loses its core for a while, rings are empty and the worker has time for all: then the next window is tried.
    let mut last = served(&switch);
    wait_until("time and frames by weight", s(40), || {
        std::thread::sleep(std::time::Duration::from_millis(300));
        let now = served(&switch);
        let counts = |what: usize| std::array::from_fn(|n| now[n][what] - last[n][what]);
        let [time, frames] = [counts(0), counts(1)];
        last = now;
        eprintln!("cycles {time:?}, frames {frames:?}");
        (is_by_weight(time) && is_by_weight(frames)).then_some(())
    });
    testpmd.quit();
    drop(guests);
}
