//! Several workers at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crosspoint_guest::{Guest, GuestOptions};
use serde_json::Value;

use crate::harness::{Lab, Switch, flow_of, guest, mac, number_of, s, udp};

const FRAMES: u32 = 40_000;
const FLOWS: u32 = 8;
/// Frames of one sender that are on their way: of both together, fewer than the receiver's ring has.
const WINDOW: u64 = 100;

#[test]
fn two_workers_deliver_to_one_guest_and_every_flow_keeps_its_order() {
    let lab = Lab::new(s(60));
    let ports = ["left", "right", "sink"].map(|name| guest(&lab, name));
    let switch = Switch::start(&lab, &[0, 1], &ports);
    let connect = |name| {
        Guest::connect(lab.socket(name), GuestOptions::default()).expect("the guest connects")
    };
    let senders = [connect("left"), connect("right")];
    let mut sink = connect("sink");
    switch.wait_up(&["left", "right", "sink"]);
    let workers = busy_workers(&switch);
    assert_eq!(
        workers.len(),
        2,
        "the two senders are polled by two workers: {workers:?}"
    );
    // From now on it is known where the sink is.
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

/// The workers that poll the senders.
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

/// Sends `FRAMES` frames, never more ahead of the receiver than the window.
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

/// Receives all, and checks the order within each flow, and every byte.
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
