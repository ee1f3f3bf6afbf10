//! The families of queues: nearly all of the series.

use std::fmt::Display;

use crosspoint_model::status::{PortStatus, QueueStatus};
use crosspoint_packet::DropReason;

use super::buckets::{BOUNDS_NS, BURST_BOUNDS, add_up, cumulative, sum_seconds};
use super::counted::{Counted, LEDGER, QUEUE_EVENTS, SOCKETS};
use super::families::{self as f, Family};
use super::text::{Labels, Text};

/// A queue, and the labels that most of its series begin with.
struct Queue<'s> {
    port: &'s PortStatus,
    status: &'s QueueStatus,
    labels: Labels,
    /// The same labels with a direction: rx and tx.
    directions: [Labels; 2],
}

/// Writes the families of all queues of these ports.
pub(super) fn write<'s>(text: &mut Text, ports: &'s [PortStatus]) {
    let of_port = |port: &'s PortStatus| {
        port.queues.iter().map(move |status| {
            let labels = Labels::default().with("port", &port.name);
            let labels = labels.with("queue", &status.queue.to_string());
            Queue {
                port,
                status,
                directions: ["rx", "tx"].map(|d| labels.clone().with("direction", d)),
                labels,
            }
        })
    };
    let queues: Vec<Queue> = ports.iter().flat_map(of_port).collect();
    info(text, &queues);
    traffic(text, &queues);
    ledger(text, &queues);
    drops(text, &queues);
    bursts(text, &queues);
    rings(text, &queues);
    completions(text, &queues);
    xdp(text, &queues);
}

fn info(text: &mut Text, queues: &[Queue]) {
    text.begin(&f::QUEUE_INFO);
    for queue in queues {
        if let Some(worker) = queue.status.worker {
            let labels = queue.labels.clone().with("worker", &worker.to_string());
            text.add(&labels, 1);
        }
    }
}

fn traffic(text: &mut Text, queues: &[Queue]) {
    type Read = fn(&QueueStatus) -> [u64; 2];
    let both: [(Family, Read); 2] = [
        (f::PACKETS, |q| [q.rx_packets, q.tx_packets]),
        (f::BYTES, |q| [q.rx_bytes, q.tx_bytes]),
    ];
    for (family, read) in both {
        text.begin(&family);
        for queue in queues {
            let pairs = queue.directions.iter().zip(read(queue.status));
            pairs.for_each(|(labels, count)| text.add(labels, count));
        }
    }
}

fn ledger(text: &mut Text, queues: &[Queue]) {
    let each = |text: &mut Text, counters: &[Counted<QueueStatus>]| {
        for Counted { family, read } in counters {
            each(text, family, queues, |queue| Some(read(queue.status)));
        }
    };
    each(text, LEDGER);
    self::each(text, &f::BURSTS, queues, |queue| Some(queue.status.bursts));
    each(text, QUEUE_EVENTS);
}

/// One sample for each queue that has a value.
fn each<V: Display>(
    text: &mut Text,
    family: &Family,
    queues: &[Queue],
    read: impl Fn(&Queue) -> Option<V>,
) {
    text.begin(family);
    for queue in queues {
        if let Some(value) = read(queue) {
            text.add(&queue.labels, value);
        }
    }
}

/// The reasons exported for a queue: those that a port of its kind can have, and those that occurred.
fn drops(text: &mut Text, queues: &[Queue]) {
    text.begin(&f::DROPS);
    for queue in queues {
        let arises = |reason: &&str| arises(reason, &queue.port.kind);
        let expected = DropReason::ALL.iter().map(|reason| reason.label());
        let met = queue.status.drops.keys().map(String::as_str);
        let met = met.filter(|reason| {
            let is_known = DropReason::ALL.iter().any(|one| one.label() == *reason);
            !is_known || !arises(reason)
        });
        for reason in expected.filter(arises).chain(met) {
            let count = queue.status.drops.get(reason).copied().unwrap_or(0);
            text.add(&queue.labels.clone().with("reason", reason), count);
        }
    }
}

/// Whether a port of this kind can drop for this reason. If it wrongly returns true, a series stays 0; if it wrongly returns
/// false, a series appears only with the first drop. New reasons therefore need no entry here.
fn arises(reason: &str, kind: &str) -> bool {
    // Only guests have security groups.
    let of_groups = [
        "group_",
        "connection_limit_",
        "connection_rate_",
        "fragment_unknown_",
    ];
    let is_of_groups = of_groups.iter().any(|begin| reason.starts_with(begin));
    if reason.starts_with("guest_") || reason == "bad_offload" || is_of_groups {
        return kind == "vhost";
    }
    if reason.starts_with("nic_") || matches!(reason, "handover_full" | "segment_size_unknown") {
        return kind == "xdp";
    }
    true
}

fn bursts(text: &mut Text, queues: &[Queue]) {
    let bounds = BURST_BOUNDS.map(|bound| bound.to_string());
    text.begin(&f::BURST_FRAMES);
    for Queue {
        status, directions, ..
    } in queues
    {
        let rx = (status.rx_burst_sizes, status.rx_packets);
        let tx = (status.tx_burst_sizes, status.tx_packets);
        for (labels, (sizes, frames)) in directions.iter().zip([rx, tx]) {
            let [bounded @ .., above] = sizes;
            let (counts, count) = add_up(bounded, above);
            text.add_histogram(labels, bounds.iter().zip(counts), (count, frames));
        }
    }
}

fn rings(text: &mut Text, queues: &[Queue]) {
    each(text, &f::RING_ENTRIES, queues, |queue| {
        queue.status.receive_ring_entries
    });
    each(text, &f::RING_BUFFERS, queues, |queue| {
        queue.status.receive_buffers
    });
}

/// Only guests have descriptors to complete, and one histogram has 18 series.
fn completions(text: &mut Text, queues: &[Queue]) {
    let bounds = BOUNDS_NS.map(|bound_ns| (bound_ns as f64 / 1e9).to_string());
    text.begin(&f::COMPLETION);
    for queue in queues {
        let times = &queue.status.completion;
        if queue.port.kind != "vhost" && times.buckets_ns.is_empty() {
            continue;
        }
        let (counts, count) = cumulative(&times.buckets_ns, &BOUNDS_NS);
        let all = (count, sum_seconds(times));
        text.add_histogram(&queue.labels, bounds.iter().zip(counts), all);
    }
}

fn xdp(text: &mut Text, queues: &[Queue]) {
    for Counted { family, read } in SOCKETS {
        let value = |queue: &Queue| queue.status.xdp.as_ref().map(read);
        each(text, family, queues, value);
    }
}
