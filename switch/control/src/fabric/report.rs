//! What the fabric knows, put together for metrics and `show`.

use std::sync::atomic::Ordering;

use crosspoint_engine::counters::QueueCounters;
use crosspoint_packet::DropReason;

use super::balance::Loads;
use super::{Fabric, Placed, Port, State};
use crate::status::{
    FdbEntry, FdbStatus, LatencyStatus, PortStatus, QueueStatus, Status, StreamStatus,
    WindowStatus, WorkerStatus, XdpStatus,
};

impl Fabric {
    /// Everything, now. Reads the workers' counters as they are.
    pub fn status(&self) -> Status {
        let state = self.lock();
        let ports = state.ports.iter().flatten();
        let loads = self.shown_loads(&state);
        Status {
            ports: ports.map(|port| self.port_status(port)).collect(),
            workers: (0..self.links.len())
                .map(|worker| self.worker_status(&state, worker, &loads))
                .collect(),
            removed: state.removed.clone(),
            fdb: FdbStatus {
                entries: self.fdb.entries(),
                capacity: self.fdb.capacity(),
                ageing_s: state.ageing.times().0.as_secs(),
            },
        }
    }

    /// Every learned address.
    pub fn fdb(&self) -> Vec<FdbEntry> {
        let state = self.lock();
        let tick = self.shared.tick.load(Ordering::Relaxed);
        let name = |number: u16| {
            state
                .view
                .port(number)
                .map_or("?".into(), |p| p.name.to_string())
        };
        let mut entries: Vec<FdbEntry> = self
            .fdb
            .dump(tick)
            .into_iter()
            .map(|(mac, vlan, port, age)| FdbEntry {
                mac: mac.to_string(),
                vlan,
                port: name(port),
                age_s: u64::from(age) * state.ageing.times().1.as_secs(),
            })
            .collect();
        entries.sort_by(|a, b| (a.vlan, &a.mac).cmp(&(b.vlan, &b.mac)));
        entries
    }

    fn port_status(&self, port: &Port) -> PortStatus {
        PortStatus {
            name: port.options.name.clone(),
            kind: port.options.kind.to_owned(),
            state: port.state.as_str().to_owned(),
            detail: port.detail.clone(),
            vlan: port.options.vlan_text.clone(),
            required: port.options.required,
            addresses: port.view.quota.used(),
            properties: port.properties.clone(),
            state_for_s: port.since.elapsed().as_secs(),
            device: port.device.clone(),
            queues: (0..port.view.counters.queues())
                .map(|q| self.queue_status(port, q))
                .collect(),
        }
    }

    fn queue_status(&self, port: &Port, queue: usize) -> QueueStatus {
        let counters = &port.view.counters;
        let placed = port.streams.get(&(queue as u16));
        let socket = placed.and_then(|placed| placed.socket.as_ref());
        let drops = DropReason::ALL.iter().map(|reason| {
            let of = |c: &QueueCounters| c.drops.get(*reason as usize).map_or(0, |n| n.get());
            (
                reason.label().to_owned(),
                counters.of_queue(queue).map(of).sum(),
            )
        });
        QueueStatus {
            queue: queue as u16,
            worker: placed.map(|placed| placed.worker),
            rx_packets: counters.sum(queue, |c| &c.rx_frames),
            rx_bytes: counters.sum(queue, |c| &c.rx_bytes),
            tx_packets: counters.sum(queue, |c| &c.tx_frames),
            tx_bytes: counters.sum(queue, |c| &c.tx_bytes),
            flood_copies: counters.sum(queue, |c| &c.flood_copies),
            segment_copies: counters.sum(queue, |c| &c.segment_copies),
            joined_copies: counters.sum(queue, |c| &c.joined_copies),
            delivered_copies: counters.sum(queue, |c| &c.delivered_copies),
            dropped_copies: counters.sum(queue, |c| &c.dropped_copies),
            bursts: counters.sum(queue, |c| &c.bursts),
            kicks: counters.sum(queue, |c| &c.kicks),
            calls: counters.sum(queue, |c| &c.calls),
            cycles: counters.sum(queue, |c| &c.cycles),
            drops: drops.filter(|(_, n)| *n > 0).collect(),
            completion: self.latency(counters.of_queue(queue)),
            xdp: socket
                .and_then(|socket| socket.statistics().ok())
                .map(|s| XdpStatus {
                    rx_dropped: s.rx_dropped,
                    rx_invalid_descs: s.rx_invalid_descs,
                    tx_invalid_descs: s.tx_invalid_descs,
                    rx_ring_full: s.rx_ring_full,
                    rx_fill_ring_empty_descs: s.rx_fill_ring_empty_descs,
                    tx_ring_empty_descs: s.tx_ring_empty_descs,
                }),
        }
    }

    /// Several workers' histograms as one, cycles turned to nanoseconds.
    fn latency<'c>(&self, counters: impl Iterator<Item = &'c QueueCounters>) -> LatencyStatus {
        let mut merged = std::collections::BTreeMap::new();
        let mut sum_ns = 0.0;
        for of_worker in counters {
            for (cycles, n) in of_worker.completion.buckets() {
                *merged.entry(self.clock.ns(cycles) as u64).or_insert(0) += n;
            }
            sum_ns += self.clock.ns(of_worker.completion.sum());
        }
        LatencyStatus {
            buckets_ns: merged.into_iter().collect(),
            sum_ns,
        }
    }

    fn worker_status(&self, state: &State, worker: usize, loads: &Loads) -> WorkerStatus {
        let counters = &self.links[worker].counters;
        let shares = loads.workers[worker];
        let (stalled, stalls) = self.watch.stalls(worker);
        let streams = state.ports.iter().flatten().flat_map(|port| {
            let mine = port.streams.iter();
            let mine = mine.filter(|(_, placed)| placed.worker == worker);
            mine.map(|(queue, placed)| stream_status(port, *queue, placed, loads))
        });
        WorkerStatus {
            worker,
            core: self.options.cores.get(worker).copied().unwrap_or_default(),
            node: self.nodes[worker],
            window: WindowStatus {
                ms: (self.clock.ns(loads.cycles) / 1e6) as u64,
                busy: shares.busy,
                idle: shares.idle,
                sleep: shares.sleep,
            },
            busy_cycles: counters.busy_cycles.get(),
            idle_cycles: counters.idle_cycles.get(),
            sleep_cycles: counters.sleep_cycles.get(),
            iterations: counters.iterations.get(),
            sleeps: counters.sleeps.get(),
            bursts: counters.bursts.get(),
            stream_moves: state.balance.moves[worker],
            stream_moves_put_off: state.balance.put_off[worker],
            stalls,
            stalled,
            involuntary_switches: self.watch.involuntary_switches(worker),
            streams: streams.collect(),
        }
    }
}

fn stream_status(port: &Port, queue: u16, placed: &Placed, loads: &Loads) -> StreamStatus {
    let fixed = match (&placed.socket, &placed.direct, port.options.worker) {
        (.., Some(_)) => Some("pinned"),
        (Some(_), ..) => Some("nic"),
        (_, Some(_), _) => Some("direct"),
        _ => None,
    };
    StreamStatus {
        port: port.options.name.clone(),
        queue,
        share: loads.of_stream(port, queue, placed),
        fixed: fixed.map(str::to_owned),
        node: placed.node,
    }
}
