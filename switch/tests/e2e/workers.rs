//! Several workers at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crosspoint_guest::Guest;
use rustix::process::Signal;
use rustix::thread::{CpuSet, Pid, sched_setaffinity};
use serde_json::Value;

use crate::harness::{Lab, Switch, flow_of, guest, mac, number_of, s, udp, wait_until};

const FRAMES: u32 = 40_000;
const FLOWS: u32 = 8;
/// Frames in flight of one sender: both senders together have fewer than the receiver's ring has entries.
const WINDOW: u64 = 100;

#[test]
fn two_workers_deliver_to_one_guest_and_every_flow_keeps_its_order() {
    let lab = Lab::new(s(60));
    let ports = ["left", "right", "sink"].map(|name| guest(&lab, name));
    let switch = Switch::start(&lab, &[0, 1], &ports);
    let senders = [lab.connect("left"), lab.connect("right")];
    let mut sink = lab.connect("sink");
    switch.wait_up(&["left", "right", "sink"]);
    let workers = busy_workers(&switch);
    assert_eq!(
        workers.len(),
        2,
        "the two senders are polled by two workers: {workers:?}"
    );
    // From now on the sink's address is learned.
    sink.send(0, &[&udp(mac(9), mac(3), 0, 0, 60)])
        .expect("a ring");
    assert!(sink.drain_transmit(0, s(5)).expect("a ring"));

    let received = [AtomicU64::new(0), AtomicU64::new(0)];
    std::thread::scope(|scope| {
        for (index, (sender, received)) in senders.into_iter().zip(&received).enumerate() {
            scope.spawn(move || send(sender, index as u16, received));
        }
        receive(&mut sink, &received);
    });
    let ledger = switch.ledger();
    let sent = u64::from(FRAMES);
    for name in ["left", "right"] {
        assert_eq!(
            (ledger.port(name).rx, ledger.port(name).delivered_copies),
            (sent, sent),
            "{ledger}"
        );
    }
}

/// A folder of the kernel's cpuset controller. When it is dropped, its processes return to the root.
struct Cpuset(PathBuf);

impl Cpuset {
    const ROOT: &str = "/sys/fs/cgroup/cpuset";

    /// Makes a folder with process `id` in it and all cores; `None` if there is no such controller, or it may not be
    /// changed.
    fn around(id: u32) -> Option<Cpuset> {
        let folder = Path::new(Self::ROOT).join(format!("crosspoint-test-{id}"));
        fs::create_dir(&folder).ok()?;
        let cpuset = Cpuset(folder);
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let all = fs::read(Path::new(Self::ROOT).join(file)).ok()?;
            fs::write(cpuset.0.join(file), all).ok()?;
        }
        fs::write(cpuset.0.join("cgroup.procs"), id.to_string()).ok()?;
        Some(cpuset)
    }

    fn allow(&self, cores: &str) {
        fs::write(self.0.join("cpuset.cpus"), cores).expect("it is ours");
    }
}

impl Drop for Cpuset {
    fn drop(&mut self) {
        let own = fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default();
        for id in own.lines() {
            let _ = fs::write(Path::new(Self::ROOT).join("cgroup.procs"), id);
        }
        let _ = fs::remove_dir(&self.0);
    }
}

/// Waits until the only worker may run on these cores. Returns its output of `show workers`.
fn wait_allowed(switch: &Switch<'_>, cores: &str) -> String {
    wait_until(&format!("a worker on {cores}"), s(20), || {
        let workers = switch.show_json("workers");
        (workers[0]["allowed_cores"] == cores).then_some(())
    });
    switch.show("workers")
}

#[test]
fn a_worker_that_is_taken_off_its_core_is_put_back_as_soon_as_the_kernel_allows_it() {
    let lab = Lab::new(s(120));
    let switch = Switch::start(&lab, &[1], &[guest(&lab, "web")]);
    wait_allowed(&switch, "1");
    // As taskset does.
    let thread = Pid::from_raw(switch.worker_thread(0) as i32).expect("a thread");
    let mut elsewhere = CpuSet::new();
    elsewhere.set(0);
    sched_setaffinity(Some(thread), &elsewhere).expect("it is ours");
    wait_until("a line of the log", s(20), || {
        let log = switch.log();
        log.contains("was allowed on core 0").then_some(())
    });
    let shown = wait_allowed(&switch, "1");
    assert!(!shown.contains("not pinned"), "{shown}");
    let misplaced = || {
        switch
            .metrics()
            .sum("crosspoint_worker_misplaced", &[("worker", "0")])
    };
    assert_eq!(misplaced(), 0);

    // The process loses the core, and gets it back.
    let Some(cpuset) = Cpuset::around(switch.id()) else {
        eprintln!("there is no cpuset controller of version 1: not tried");
        return;
    };
    cpuset.allow("0");
    let shown = wait_allowed(&switch, "0");
    assert!(
        shown.contains("not pinned to core 1: may run on 0"),
        "{shown}"
    );
    assert_eq!(misplaced(), 1);
    wait_until("a line of the log", s(20), || {
        let log = switch.log();
        log.contains("cannot be pinned to its core").then_some(())
    });
    cpuset.allow("0-1");
    wait_allowed(&switch, "1");
    assert_eq!(misplaced(), 0);
    switch.stop(Signal::TERM);
}

/// The workers that poll the senders' streams.
fn busy_workers(switch: &Switch<'_>) -> BTreeSet<u64> {
    let workers = switch.show_json("workers");
    let workers = workers.as_array().expect("a list of workers");
    let polls = |worker: &&Value| {
        let streams = worker["streams"].as_array().expect("a list of streams");
        streams
            .iter()
            .any(|stream| stream["port"] == "left" || stream["port"] == "right")
    };
    workers
        .iter()
        .filter(polls)
        .map(|worker| worker["worker"].as_u64().expect("a number"))
        .collect()
}

/// Sends `FRAMES` frames, at most a window ahead of the receiver.
fn send(mut guest: Guest, sender: u16, received: &AtomicU64) {
    let mut number = 0;
    while number < FRAMES {
        if u64::from(number) >= received.load(Relaxed) + WINDOW {
            std::thread::yield_now();
            continue;
        }
        let flow = sender * FLOWS as u16 + (number % FLOWS) as u16;
        let bytes = udp(
            mac(3),
            mac(1 + sender as u8),
            flow,
            number,
            60 + number as usize % 200,
        );
        number += guest
            .send(0, &[&bytes])
            .expect("the device follows the rules") as u32;
    }
    assert!(
        guest
            .drain_transmit(0, s(5))
            .expect("the device follows the rules")
    );
}

/// Receives all frames, and checks the order within each flow, and every byte.
fn receive(sink: &mut Guest, received: &[AtomicU64; 2]) {
    let mut last = BTreeMap::new();
    let mut count = 0;
    while count < 2 * FRAMES {
        let frames = sink
            .receive_at_least(0, 1, s(5))
            .expect("the device follows the rules");
        assert!(
            !frames.is_empty(),
            "{count} frames of {} arrived, at {last:?}",
            2 * FRAMES
        );
        for (_, bytes) in frames {
            let (flow, number) = (flow_of(&bytes), number_of(&bytes));
            let sender = flow / FLOWS as u16;
            let expected = udp(
                mac(3),
                mac(1 + sender as u8),
                flow,
                number,
                60 + number as usize % 200,
            );
            assert!(bytes == expected, "flow {flow}, frame {number}");
            let next = last
                .insert(flow, number)
                .map_or(number % FLOWS, |before| before + FLOWS);
            assert_eq!(number, next, "flow {flow} in order, without a gap");
            received[usize::from(sender)].fetch_add(1, Relaxed);
            count += 1;
        }
    }
}
