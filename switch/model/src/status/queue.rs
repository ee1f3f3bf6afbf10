//! Queues, and the sums over those of removed ports.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::xdp::XdpStatus;

macro_rules! queue_status {
    (
        traffic { $($(#[doc = $traffic_doc:literal])+ $_counter:ident as $traffic:ident;)+ }
        ledger { $($(#[doc = $ledger_doc:literal])+ $ledger:ident;)+ }
        events { $($(#[doc = $event_doc:literal])+ $event:ident;)+ }
        time { $($(#[doc = $time_doc:literal])+ $time:ident;)+ }
    ) => {
        /// A queue (pair) of a port. Counts begin at the daemon's start, and continue when guests come and go.
        #[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
        pub struct QueueStatus {
            /// Its number.
            pub queue: u16,
            /// The worker that polls it, if any.
            pub worker: Option<usize>,
            $($(#[doc = $traffic_doc])+ #[serde(default)] pub $traffic: u64,)+
            $($(#[doc = $ledger_doc])+ #[serde(default)] pub $ledger: u64,)+
            /// Bursts taken from the port.
            pub bursts: u64,
            /// Those bursts by size: up to 1, 2, 4, 8, 16, 32 and 64 frames, and more.
            #[serde(default)]
            pub rx_burst_sizes: [u64; 8],
            /// Bursts delivered to the port, by size.
            #[serde(default)]
            pub tx_burst_sizes: [u64; 8],
            /// Entries of the guest's receive ring; absent if none is in use.
            #[serde(default)]
            pub receive_ring_entries: Option<u16>,
            /// Receive buffers that the guest offers at this moment; absent if no receive ring is in use, and for packed rings.
            #[serde(default)]
            pub receive_buffers: Option<usize>,
            $($(#[doc = $event_doc])+ #[serde(default)] pub $event: u64,)+
            $($(#[doc = $time_doc])+ #[serde(default)] pub $time: u64,)+
            /// Drops counted at this queue, by reason label; reasons never met are absent.
            pub drops: BTreeMap<String, u64>,
            /// Time of the guest's descriptors from being read to completion.
            pub completion: LatencyStatus,
            /// The kernel's counters of an AF_XDP socket; absent for guests.
            pub xdp: Option<XdpStatus>,
        }

        /// Sums over the ports that were removed since the daemon started. They make the totals balance: copies that were
        /// delivered to a removed port stay counted.
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
        pub struct RemovedStatus {
            /// Number of removed ports.
            pub ports: u64,
            $($(#[doc = $traffic_doc])+ #[serde(default)] pub $traffic: u64,)+
            $($(#[doc = $ledger_doc])+ #[serde(default)] pub $ledger: u64,)+
            /// Drops counted at their queues, by reason label; reasons never met are absent.
            pub drops: BTreeMap<String, u64>,
        }
    };
}
crosspoint_engine::queue_counters!(queue_status);

/// A histogram: buckets of (middle in nanoseconds, count), ascending.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct LatencyStatus {
    /// Values accurate to an eighth, and their counts.
    pub buckets_ns: Vec<(u64, u64)>,
    /// Sum of all values, nanoseconds.
    pub sum_ns: f64,
}
