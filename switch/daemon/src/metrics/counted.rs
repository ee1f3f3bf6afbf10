//! The families of the counters of the lists (`engine/src/counter_lists.rs`), made of these: an entry there is exported
//! without one here.

use crosspoint_model::status::{PortStatus, QueueStatus, WorkerStatus, XdpStatus};
use prometheus::proto::MetricType::{self, COUNTER, GAUGE};

use super::families::{Family, PORT, QUEUE, WORKER};

/// A counter of a status, and its family.
pub(super) struct Counted<S: 'static> {
    pub family: Family,
    pub read: fn(&S) -> u64,
}

/// An entry of a list: its documentation is the help.
macro_rules! counted {
    ($kind:ident $name:expr, $labels:expr, [$($doc:literal)+], $read:expr) => {
        Counted {
            family: family($kind, $name, $labels, concat!($($doc),+)),
            read: $read,
        }
    };
}

const fn family(
    kind: MetricType,
    name: &'static str,
    labels: &'static [&'static str],
    doc: &'static str,
) -> Family {
    Family {
        name,
        kind,
        labels,
        help: doc.trim_ascii(),
    }
}

macro_rules! of_queues {
    (
        traffic { $($_traffic:tt)+ }
        ledger { $($(#[doc = $ledger_doc:literal])+ $ledger:ident;)+ }
        events { $($(#[doc = $event_doc:literal])+ $event:ident;)+ }
        time { $($(#[doc = $time_doc:literal])+ $time:ident;)+ }
    ) => {
        /// Copies of frames.
        pub(super) const LEDGER: &[Counted<QueueStatus>] = &[
            $(counted!(COUNTER concat!("crosspoint_queue_", stringify!($ledger), "_total"), QUEUE, [$($ledger_doc)+], |q| q.$ledger),)+
        ];
        /// Events of queues, and cycles.
        pub(super) const QUEUE_EVENTS: &[Counted<QueueStatus>] = &[
            $(counted!(COUNTER concat!("crosspoint_queue_", stringify!($event), "_total"), QUEUE, [$($event_doc)+], |q| q.$event),)+
            $(counted!(COUNTER concat!("crosspoint_queue_", stringify!($time), "_total"), QUEUE, [$($time_doc)+], |q| q.$time),)+
        ];
    };
}
crosspoint_engine::queue_counters!(of_queues);

macro_rules! of_ports {
    (events { $($(#[doc = $event_doc:literal])+ $event:ident;)+ }) => {
        /// Events of ports.
        pub(super) const PORT_EVENTS: &[Counted<PortStatus>] = &[
            $(counted!(COUNTER concat!("crosspoint_port_", stringify!($event), "_total"), PORT, [$($event_doc)+], |p| p.$event),)+
        ];
    };
}
crosspoint_engine::port_counters!(of_ports);

macro_rules! of_workers {
    (
        cycles { $($(#[doc = $_doc:literal])+ $cycles:ident = $state:literal;)+ }
        events { $($(#[doc = $event_doc:literal])+ $event:ident;)+ }
        maxima { $($(#[doc = $maximum_doc:literal])+ $maximum:ident;)+ }
        moves { $($(#[doc = $move_doc:literal])+ $move:ident;)+ }
    ) => {
        /// Values of the label `state` of a worker's cycles, and the cycles.
        pub(super) const CYCLES: &[(&str, fn(&WorkerStatus) -> u64)] = &[$(($state, |w| w.$cycles),)+];
        /// Events that workers count.
        pub(super) const WORKER_EVENTS: &[Counted<WorkerStatus>] = &[
            $(counted!(COUNTER concat!("crosspoint_worker_", stringify!($event), "_total"), WORKER, [$($event_doc)+], |w| w.$event),)+
        ];
        /// Maxima, and moves, which the control thread counts.
        pub(super) const WORKER_MAXIMA_AND_MOVES: &[Counted<WorkerStatus>] = &[
            $(counted!(GAUGE concat!("crosspoint_worker_", stringify!($maximum)), WORKER, [$($maximum_doc)+], |w| w.$maximum),)+
            $(counted!(COUNTER concat!("crosspoint_worker_", stringify!($move), "_total"), WORKER, [$($move_doc)+], |w| w.$move),)+
        ];
    };
}
crosspoint_engine::worker_counters!(of_workers);

macro_rules! of_sockets {
    ($($(#[doc = $doc:literal])+ $counter:ident = $metric:literal;)+) => {
        /// The kernel's counters of AF_XDP sockets.
        pub(super) const SOCKETS: &[Counted<XdpStatus>] = &[
            $(counted!(COUNTER concat!("crosspoint_xdp_", $metric, "_total"), QUEUE, [$($doc)+], |x| x.$counter),)+
        ];
    };
}
crosspoint_model::xdp_counters!(of_sockets);
