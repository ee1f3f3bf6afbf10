//! Rows of workers.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::status::{Status, WorkerStatus};

macro_rules! worker_row {
    (
        cycles { $($_cycles:tt)+ }
        events { $($(#[doc = $event_doc:literal])+ $event:ident;)+ }
        maxima { $($_maxima:tt)+ }
        moves { $($(#[doc = $move_doc:literal])+ $move:ident;)+ }
    ) => {
        /// A worker. Shares of time are of the last `window_ms` milliseconds; counts are since the daemon started.
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(default)]
        pub struct WorkerRow {
            /// Its number.
            pub worker: usize,
            /// The core that it is pinned to.
            pub core: usize,
            /// The cores that its thread may run on, as in `0-3,8`: normally only that core.
            pub allowed_cores: String,
            /// The core that it last ran on; null if the kernel does not report it.
            pub last_core: Option<usize>,
            /// Whether it may run on a core other than its own, or may not run on its own.
            pub misplaced: bool,
            /// The memory node of that core; null if the kernel knows none.
            pub node: Option<u32>,
            /// Length of the time that shares refer to, milliseconds.
            pub window_ms: u64,
            /// Share of time that it had work, percent; null before it has run.
            pub busy_percent: Option<f64>,
            /// Share of time that it polled without finding work, percent; null before it has run.
            pub idle_percent: Option<f64>,
            /// Share of time that it slept, percent; null before it has run.
            pub sleep_percent: Option<f64>,
            /// Poll iterations.
            pub iterations: u64,
            $($(#[doc = $event_doc])+ pub $event: u64,)+
            $($(#[doc = $move_doc])+ pub $move: u64,)+
            /// Number of times that it made no progress for too long while it was awake.
            pub stalls: u64,
            /// Whether it makes no progress now.
            pub stalled: bool,
            /// Involuntary context switches.
            pub involuntary_context_switches: u64,
            /// The streams that it polls.
            pub streams: Vec<StreamRow>,
        }

        /// The row of a worker.
        fn worker(worker: &WorkerStatus) -> WorkerRow {
            let window = worker.window;
            let percent = |share: f64| (window.ms > 0).then(|| (share * 1000.0).round() / 10.0);
            let streams = worker.streams.iter().map(|stream| StreamRow {
                port: stream.port.clone(),
                queue: stream.queue,
                share_percent: percent(stream.share),
                fixed: stream.fixed.clone(),
                node: stream.node,
            });
            WorkerRow {
                worker: worker.worker,
                core: worker.core,
                allowed_cores: worker.allowed_cores.clone(),
                last_core: worker.last_core,
                misplaced: worker.misplaced,
                node: worker.node,
                window_ms: window.ms,
                busy_percent: percent(window.busy),
                idle_percent: percent(window.idle),
                sleep_percent: percent(window.sleep),
                iterations: worker.iterations,
                $($event: worker.$event,)+
                $($move: worker.$move,)+
                stalls: worker.stalls,
                stalled: worker.stalled,
                involuntary_context_switches: worker.involuntary_switches,
                streams: streams.collect(),
            }
        }
    };
}
crosspoint_engine::worker_counters!(worker_row);

/// A queue that a worker polls.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct StreamRow {
    /// Name of its port.
    pub port: String,
    /// Its number.
    pub queue: u16,
    /// Its share of the worker's time, percent; those of all its streams add up to `busy_percent`. Null before the worker
    /// has run.
    pub share_percent: Option<f64>,
    /// Why it stays with its worker: `pinned` by the configuration, a `nic` queue, or a guest with a `direct` queue. Null if
    /// it may move to another.
    pub fixed: Option<String>,
    /// The memory node of the guest's ring, or the NIC; null if the kernel reports none.
    pub node: Option<u32>,
}

/// All workers.
pub fn workers(status: &Status) -> Vec<WorkerRow> {
    status.workers.iter().map(worker).collect()
}
