//! Rows of queues.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::all_drops;
use crate::completion::Completion;
use crate::status::{LatencyStatus, PortStatus, QueueStatus, Status, XdpStatus};

macro_rules! queue_row {
    (
        traffic { $($(#[doc = $traffic_doc:literal])+ $_counter:ident as $traffic:ident;)+ }
        ledger { $($(#[doc = $ledger_doc:literal])+ $ledger:ident;)+ }
        events { $($(#[doc = $event_doc:literal])+ $event:ident;)+ }
        time { $($(#[doc = $time_doc:literal])+ $time:ident;)+ }
    ) => {
        /// A queue (pair) of a port.
        #[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
        pub struct QueueRow {
            /// Name of its port.
            pub port: String,
            /// Its number.
            pub queue: u16,
            /// The worker that polls it, or null.
            pub worker: Option<usize>,
            $($(#[doc = $traffic_doc])+ #[serde(default)] pub $traffic: u64,)+
            $($(#[doc = $ledger_doc])+ #[serde(default)] pub $ledger: u64,)+
            /// Bursts taken from the port.
            pub bursts: u64,
            $($(#[doc = $event_doc])+ #[serde(default)] pub $event: u64,)+
            $($(#[doc = $time_doc])+ #[serde(default)] pub $time: u64,)+
            /// Drops counted at this queue, for all reasons.
            pub drops: u64,
            /// Guest descriptors completed.
            pub completions: u64,
            /// Half of them took no longer, nanoseconds; null if there are none.
            pub completion_p50_ns: Option<u64>,
            /// 99 of 100 took no longer, nanoseconds; null if there are none.
            pub completion_p99_ns: Option<u64>,
            /// The kernel's counters of an AF_XDP socket; null for guests.
            pub xdp: Option<XdpStatus>,
        }

        /// The row of a queue of port `port`.
        pub fn queue(port: &str, queue: &QueueStatus) -> QueueRow {
            let completion = Completion::new(&queue.completion);
            QueueRow {
                port: port.to_owned(),
                queue: queue.queue,
                worker: queue.worker,
                $($traffic: queue.$traffic,)+
                $($ledger: queue.$ledger,)+
                bursts: queue.bursts,
                $($event: queue.$event,)+
                $($time: queue.$time,)+
                drops: all_drops(queue),
                completions: completion.count(),
                completion_p50_ns: completion.quantile_ns(0.50),
                completion_p99_ns: completion.quantile_ns(0.99),
                xdp: queue.xdp,
            }
        }
    };
}
crosspoint_engine::queue_counters!(queue_row);

/// All queues.
pub fn queues(status: &Status) -> Vec<QueueRow> {
    let of_port = |port: &PortStatus| {
        let queues = port.queues.iter();
        queues.map(|one| queue(&port.name, one)).collect::<Vec<_>>()
    };
    status.ports.iter().flat_map(of_port).collect()
}

/// Times from reading a queue's guest descriptors to their completion.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LatencyRow {
    /// Name of the port.
    pub port: String,
    /// The queue's number.
    pub queue: u16,
    /// The worker that polls it, or null.
    pub worker: Option<usize>,
    /// Descriptors completed.
    pub completions: u64,
    /// Their mean, nanoseconds; this and what follows is null if there are none.
    pub mean_ns: Option<u64>,
    /// Half of them took no longer.
    pub p50_ns: Option<u64>,
    /// 90 of 100 took no longer.
    pub p90_ns: Option<u64>,
    /// 99 of 100 took no longer.
    pub p99_ns: Option<u64>,
    /// 999 of 1000 took no longer.
    pub p999_ns: Option<u64>,
    /// None took longer.
    pub max_ns: Option<u64>,
}

/// Completion times of all queues of guests.
pub fn latency(status: &Status) -> Vec<LatencyRow> {
    let queues = status.ports.iter().flat_map(|port| {
        let queues = port.queues.iter();
        queues.map(move |queue| (port, queue))
    });
    // NICs have no descriptors to complete.
    let guests =
        queues.filter(|(port, q)| port.kind == "vhost" || !q.completion.buckets_ns.is_empty());
    let row = |(port, queue): (&PortStatus, &QueueStatus)| {
        latency_of(&port.name, queue, &queue.completion)
    };
    guests.map(row).collect()
}

/// The row of a queue.
pub fn latency_of(port: &str, queue: &QueueStatus, latency: &LatencyStatus) -> LatencyRow {
    let times = Completion::new(latency);
    let count = times.count();
    let mean = (count > 0).then(|| (latency.sum_ns / count as f64) as u64);
    LatencyRow {
        port: port.to_owned(),
        queue: queue.queue,
        worker: queue.worker,
        completions: count,
        mean_ns: mean,
        p50_ns: times.quantile_ns(0.50),
        p90_ns: times.quantile_ns(0.90),
        p99_ns: times.quantile_ns(0.99),
        p999_ns: times.quantile_ns(0.999),
        max_ns: times.quantile_ns(1.0),
    }
}

/// The kernel's counters of a NIC queue's socket.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct XdpRow {
    /// Name of the port.
    pub port: String,
    /// The queue's number.
    pub queue: u16,
    /// The counters; they are keys of this object.
    #[serde(flatten)]
    pub xdp: XdpStatus,
}

/// All sockets of NIC queues.
pub fn xdp(status: &Status) -> Vec<XdpRow> {
    let of_port = |port: &PortStatus| {
        let row = |queue: &QueueStatus| {
            Some(XdpRow {
                port: port.name.clone(),
                queue: queue.queue,
                xdp: queue.xdp?,
            })
        };
        port.queues.iter().filter_map(row).collect::<Vec<_>>()
    };
    status.ports.iter().flat_map(of_port).collect()
}
