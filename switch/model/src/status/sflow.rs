//! The export to an sFlow collector.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The export to an sFlow collector. Counts are since the daemon started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct SflowStatus {
    /// The collector's address and port; null if nothing is exported.
    pub collector: Option<String>,
    /// The address by which the collector knows this switch; null if there is no route to the collector.
    pub agent: Option<String>,
    /// How many frames there are for each sample, on average.
    pub sampling: u32,
    /// Bytes kept of a sampled frame, at most.
    pub header_len_bytes: u16,
    /// How often each port's counters are sent, milliseconds; null if they are not.
    pub polling_ms: Option<u64>,
    /// Datagrams sent.
    pub datagrams: u64,
    /// Samples of frames in them.
    pub flow_samples: u64,
    /// Samples of ports' counters in them.
    pub counter_samples: u64,
    /// Frames that were chosen and not sampled, because the exporting thread was too slow.
    pub samples_missed: u64,
    /// Datagrams that could not be sent.
    pub send_errors: u64,
    /// Why the last one could not; null if all were sent.
    pub last_error: Option<String>,
    /// The selected ports, by number.
    pub interfaces: Vec<SflowInterface>,
}

/// A port as an interface of sFlow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct SflowInterface {
    /// The port's name.
    pub port: String,
    /// The number by which samples name it. A port of the same name has the same number while the daemon runs.
    pub ifindex: u32,
    /// Frames received while it was sampled.
    pub frames: u64,
    /// Samples taken of them.
    pub samples: u64,
    /// Frames that were chosen and not sampled.
    pub missed: u64,
}
