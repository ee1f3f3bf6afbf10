//! One picture of the switch, turned into metric families at every scrape.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crosspoint_packet::DropReason;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;

use super::completion::Completion;
use super::families::{self as f, FAMILIES, Family, Samples};
use crate::api::Source;
use crate::health::Health;
use crate::status::{PortStatus, QueueStatus, Status, WorkerStatus, XdpStatus};

/// The states of `crosspoint_port_state`.
const STATES: [&str; 4] = ["up", "connected", "down", "quarantined"];

/// Reads the source when it is scraped, and never otherwise.
pub(super) struct StatusCollector {
    source: Arc<dyn Source>,
    descriptions: Vec<Desc>,
}

impl StatusCollector {
    pub(super) fn new(source: Arc<dyn Source>) -> prometheus::Result<StatusCollector> {
        let describe = |family: &Family| {
            let labels = family.labels.iter().map(|name| (*name).to_owned());
            let (name, help) = (family.name.to_owned(), family.help.to_owned());
            Desc::new(name, help, labels.collect(), HashMap::new())
        };
        let descriptions = FAMILIES.iter().map(describe).collect::<Result<_, _>>()?;
        Ok(StatusCollector {
            source,
            descriptions,
        })
    }
}

impl Collector for StatusCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let status = self.source.status();
        let mut all = switch(&status).to_vec();
        all.extend(ports(&status.ports));
        all.extend(traffic(&status.ports));
        all.extend(ledger(&status.ports));
        all.push(drops(&status.ports));
        all.push(completions(&status.ports));
        all.extend(xdp(&status.ports));
        all.extend(workers(&status.workers));
        all.extend(worker_events(&status.workers));
        all
    }
}

fn switch(status: &Status) -> [MetricFamily; 4] {
    let mut build = Samples::of(f::BUILD_INFO);
    build.add(&[env!("CARGO_PKG_VERSION")], true);
    let mut entries = Samples::of(f::FDB_ENTRIES);
    entries.add(&[], status.fdb.entries);
    let mut capacity = Samples::of(f::FDB_CAPACITY);
    capacity.add(&[], status.fdb.capacity);
    let mut ready = Samples::of(f::READY);
    ready.add(&[], Health::of(status).ready);
    [build, ready, entries, capacity].map(Samples::finish)
}

fn ports(ports: &[PortStatus]) -> [MetricFamily; 4] {
    let (mut up, mut state) = (Samples::of(f::PORT_UP), Samples::of(f::PORT_STATE));
    let mut required = Samples::of(f::PORT_REQUIRED);
    let mut addresses = Samples::of(f::PORT_ADDRESSES);
    for port in ports {
        up.add(&[&port.name], port.state == "up");
        for one in STATES {
            state.add(&[&port.name, one], port.state == one);
        }
        required.add(&[&port.name], port.required);
        addresses.add(&[&port.name], u64::from(port.addresses));
    }
    [up, state, required, addresses].map(Samples::finish)
}

/// Every queue of every port, with its label values.
fn queues(ports: &[PortStatus]) -> impl Iterator<Item = (&PortStatus, String, &QueueStatus)> {
    ports.iter().flat_map(|port| {
        let queues = port.queues.iter();
        queues.map(move |queue| (port, queue.queue.to_string(), queue))
    })
}

fn traffic(ports: &[PortStatus]) -> [MetricFamily; 2] {
    let (mut packets, mut bytes) = (Samples::of(f::PACKETS), Samples::of(f::BYTES));
    for (port, queue, counts) in queues(ports) {
        packets.add(&[&port.name, &queue, "rx"], counts.rx_packets);
        packets.add(&[&port.name, &queue, "tx"], counts.tx_packets);
        bytes.add(&[&port.name, &queue, "rx"], counts.rx_bytes);
        bytes.add(&[&port.name, &queue, "tx"], counts.tx_bytes);
    }
    [packets, bytes].map(Samples::finish)
}

fn ledger(ports: &[PortStatus]) -> [MetricFamily; 9] {
    type Read = fn(&QueueStatus) -> u64;
    let counters: [(Family, Read); 9] = [
        (f::FLOOD_COPIES, |q| q.flood_copies),
        (f::SEGMENT_COPIES, |q| q.segment_copies),
        (f::JOINED_COPIES, |q| q.joined_copies),
        (f::DELIVERED, |q| q.delivered_copies),
        (f::DROPPED, |q| q.dropped_copies),
        (f::BURSTS, |q| q.bursts),
        (f::KICKS, |q| q.kicks),
        (f::CALLS, |q| q.calls),
        (f::QUEUE_CYCLES, |q| q.cycles),
    ];
    counters.map(|(family, read)| {
        let mut samples = Samples::of(family);
        for (port, queue, counts) in queues(ports) {
            samples.add(&[&port.name, &queue], read(counts));
        }
        samples.finish()
    })
}

/// The reasons exported for a queue: those that a port of its kind can meet, be they met or not, and those met.
fn drops(ports: &[PortStatus]) -> MetricFamily {
    let mut samples = Samples::of(f::DROPS);
    for (port, queue, counts) in queues(ports) {
        let expected = DropReason::ALL.iter().map(|reason| reason.label());
        let expected = expected.filter(|reason| arises(reason, &port.kind));
        let met = counts.drops.keys().map(String::as_str);
        for reason in expected.chain(met).collect::<BTreeSet<_>>() {
            let count = counts.drops.get(reason).copied().unwrap_or(0);
            samples.add(&[&port.name, &queue, reason], count);
        }
    }
    samples.finish()
}

/// Whether a port of this kind can drop for this reason. A wrong yes costs a series that stays 0, and a wrong no
/// costs that the series appears only with the first drop, so new reasons need no entry here.
fn arises(reason: &str, kind: &str) -> bool {
    if reason.starts_with("guest_") || reason == "bad_offload" {
        return kind == "vhost";
    }
    if reason.starts_with("nic_") || reason == "handover_full" {
        return kind == "xdp";
    }
    true
}

/// Only guests have descriptors to complete, and a histogram is 18 series.
fn completions(ports: &[PortStatus]) -> MetricFamily {
    let mut samples = Samples::of(f::COMPLETION);
    let guests = queues(ports)
        .filter(|(port, _, q)| port.kind == "vhost" || !q.completion.buckets_ns.is_empty());
    for (port, queue, counts) in guests {
        samples.add_histogram(&[&port.name, &queue], &Completion::new(&counts.completion));
    }
    samples.finish()
}

fn xdp(ports: &[PortStatus]) -> [MetricFamily; 6] {
    type Read = fn(&XdpStatus) -> u64;
    let counters: [(Family, Read); 6] = [
        (f::XDP_RX_DROPPED, |x| x.rx_dropped),
        (f::XDP_RX_INVALID, |x| x.rx_invalid_descs),
        (f::XDP_TX_INVALID, |x| x.tx_invalid_descs),
        (f::XDP_RX_RING_FULL, |x| x.rx_ring_full),
        (f::XDP_FILL_EMPTY, |x| x.rx_fill_ring_empty_descs),
        (f::XDP_TX_EMPTY, |x| x.tx_ring_empty_descs),
    ];
    counters.map(|(family, read)| {
        let mut samples = Samples::of(family);
        for (port, queue, counts) in queues(ports) {
            if let Some(xdp) = &counts.xdp {
                samples.add(&[&port.name, &queue], read(xdp));
            }
        }
        samples.finish()
    })
}

/// How workers spend their time.
fn workers(workers: &[WorkerStatus]) -> [MetricFamily; 4] {
    let mut cycles = Samples::of(f::WORKER_CYCLES);
    let mut iterations = Samples::of(f::WORKER_ITERATIONS);
    let (mut sleeps, mut bursts) = (Samples::of(f::WORKER_SLEEPS), Samples::of(f::WORKER_BURSTS));
    for worker in workers {
        let name = worker.worker.to_string();
        cycles.add(&[&name, "busy"], worker.busy_cycles);
        cycles.add(&[&name, "idle"], worker.idle_cycles);
        cycles.add(&[&name, "sleep"], worker.sleep_cycles);
        iterations.add(&[&name], worker.iterations);
        sleeps.add(&[&name], worker.sleeps);
        bursts.add(&[&name], worker.bursts);
    }
    [cycles, iterations, sleeps, bursts].map(Samples::finish)
}

/// What happens to workers.
fn worker_events(workers: &[WorkerStatus]) -> [MetricFamily; 5] {
    type Read = fn(&WorkerStatus) -> u64;
    let values: [(Family, Read); 5] = [
        (f::WORKER_MOVES, |w| w.stream_moves),
        (f::WORKER_PUT_OFF, |w| w.stream_moves_put_off),
        (f::WORKER_STALLS, |w| w.stalls),
        (f::WORKER_STALLED, |w| w.stalled.into()),
        (f::WORKER_PREEMPTED, |w| w.involuntary_switches),
    ];
    values.map(|(family, read)| {
        let mut samples = Samples::of(family);
        for worker in workers {
            samples.add(&[&worker.worker.to_string()], read(worker));
        }
        samples.finish()
    })
}
