//! Workers, and the streams that they poll.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::queue::LatencyStatus;

macro_rules! worker_status {
    (
        cycles { $($(#[doc = $cycles_doc:literal])+ $cycles:ident = $_state:literal;)+ }
        events { $($(#[doc = $event_doc:literal])+ $event:ident;)+ }
        maxima { $($(#[doc = $maximum_doc:literal])+ $maximum:ident;)+ }
        moves { $($(#[doc = $move_doc:literal])+ $move:ident;)+ }
    ) => {
        /// One worker.
        #[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
        pub struct WorkerStatus {
            /// Its number.
            pub worker: usize,
            /// The core that it is pinned to.
            pub core: usize,
            /// The cores on which its thread may run, as in `0-3,8`: normally its own core alone, unless its affinity was
            /// changed or the process has lost the core.
            #[serde(default)]
            pub allowed_cores: String,
            /// The core on which it last ran; absent if the kernel does not report it.
            #[serde(default)]
            pub last_core: Option<usize>,
            /// Whether its affinity is not exactly its core.
            #[serde(default)]
            pub misplaced: bool,
            /// The memory node of that core; absent if the kernel knows none.
            #[serde(default)]
            pub node: Option<u32>,
            /// How it spent the last seconds.
            #[serde(default)]
            pub window: WindowStatus,
            $($(#[doc = $cycles_doc])+ #[serde(default)] pub $cycles: u64,)+
            /// Number of poll iterations.
            pub iterations: u64,
            /// Durations of its poll iterations: a frame waited at most that long until it was noticed.
            #[serde(default)]
            pub turns: LatencyStatus,
            $($(#[doc = $event_doc])+ #[serde(default)] pub $event: u64,)+
            $($(#[doc = $maximum_doc])+ #[serde(default)] pub $maximum: u64,)+
            $($(#[doc = $move_doc])+ #[serde(default)] pub $move: u64,)+
            /// Times that it was awake but made no progress for too long.
            #[serde(default)]
            pub stalls: u64,
            /// Whether that is so now.
            #[serde(default)]
            pub stalled: bool,
            /// Involuntary context switches.
            #[serde(default)]
            pub involuntary_switches: u64,
            /// Its streams.
            pub streams: Vec<StreamStatus>,
        }
    };
}
crosspoint_engine::worker_counters!(worker_status);

/// How a worker spent a recent time window, in shares that add up to 1.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct WindowStatus {
    /// Length of the window, milliseconds.
    pub ms: u64,
    /// Share of poll iterations that found work.
    pub busy: f64,
    /// Share of poll iterations that found none.
    pub idle: f64,
    /// Share of sleep.
    pub sleep: f64,
}

/// A queue that a worker polls.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct StreamStatus {
    /// Name of its port.
    pub port: String,
    /// Its number.
    pub queue: u16,
    /// Its share of the worker's time, in the worker's window. The shares of all streams add up to `busy`.
    pub share: f64,
    /// Why it stays with its worker: "pinned" by the configuration, a "nic" queue, or a guest with a "direct" queue;
    /// absent if it may move.
    pub fixed: Option<String>,
    /// The memory node of the guest's ring, or of the NIC; absent if the kernel reports none.
    pub node: Option<u32>,
}
