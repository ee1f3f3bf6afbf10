//! Reads the counters of the lists into the status: sums over workers, and for removed ports over queues.

use std::collections::BTreeMap;

use crosspoint_engine::bridge::fdb::PortEvents;
use crosspoint_engine::observe::counters::{Counter, PortCounters, QueueCounters, WorkerCounters};
use crosspoint_model::status::{PortStatus, QueueStatus, RemovedStatus, WorkerStatus, XdpStatus};
use crosspoint_packet::DropReason;
use crosspoint_xsk::XskSocket;

macro_rules! queue_counts {
    (
        traffic { $($(#[$_traffic_doc:meta])+ $traffic:ident as $public:ident;)+ }
        ledger { $($(#[$_ledger_doc:meta])+ $ledger:ident;)+ }
        events { $($(#[$_event_doc:meta])+ $event:ident;)+ }
        time { $($(#[$_time_doc:meta])+ $time:ident;)+ }
    ) => {
        /// The counts of a queue, in a status that has nothing else.
        pub(super) fn queue_counts(counters: &PortCounters, queue: usize) -> QueueStatus {
            QueueStatus {
                $($public: counters.sum(queue, |c| &c.$traffic),)+
                $($ledger: counters.sum(queue, |c| &c.$ledger),)+
                $($event: counters.sum(queue, |c| &c.$event),)+
                $($time: counters.sum(queue, |c| &c.$time),)+
                ..QueueStatus::default()
            }
        }

        /// Adds the counts of a port that is removed.
        pub(super) fn add_counts(removed: &mut RemovedStatus, counters: &PortCounters) {
            let sum = |counter: fn(&QueueCounters) -> &Counter| -> u64 {
                let queues = 0..counters.queues();
                queues.map(|queue| counters.sum(queue, counter)).sum()
            };
            removed.ports += 1;
            $(removed.$public += sum(|c| &c.$traffic);)+
            $(removed.$ledger += sum(|c| &c.$ledger);)+
            add_drops(&mut removed.drops, counters);
        }
    };
}
crosspoint_engine::queue_counters!(queue_counts);

macro_rules! port_counts {
    (events { $($(#[$_event_doc:meta])+ $event:ident;)+ }) => {
        /// The counts of a port that no queue has, in a status that has nothing else.
        pub(super) fn port_counts(events: &PortEvents) -> PortStatus {
            PortStatus {
                $($event: events.$event.get(),)+
                ..PortStatus::default()
            }
        }
    };
}
crosspoint_engine::port_counters!(port_counts);

macro_rules! worker_counts {
    (
        cycles { $($(#[$_cycles_doc:meta])+ $cycles:ident = $_state:literal;)+ }
        events { $($(#[$_event_doc:meta])+ $event:ident;)+ }
        maxima { $($(#[$_maximum_doc:meta])+ $maximum:ident;)+ }
        moves { $($_by_control_thread:tt)+ }
    ) => {
        /// The counts of a worker, in a status that has nothing else.
        pub(super) fn worker_counts(counters: &WorkerCounters) -> WorkerStatus {
            WorkerStatus {
                $($cycles: counters.$cycles.get(),)+
                iterations: counters.turns.count(),
                $($event: counters.$event.get(),)+
                $($maximum: counters.$maximum.get(),)+
                ..WorkerStatus::default()
            }
        }
    };
}
crosspoint_engine::worker_counters!(worker_counts);

macro_rules! xdp_counts {
    ($($(#[$_doc:meta])+ $counter:ident = $_metric:literal;)+) => {
        /// The kernel's counts of a socket.
        pub(super) fn xdp_status(socket: &XskSocket) -> Option<XdpStatus> {
            let statistics = socket.statistics().ok()?;
            Some(XdpStatus { $($counter: statistics.$counter,)+ })
        }
    };
}
crosspoint_model::xdp_counters!(xdp_counts);

/// Sums over workers, by burst size.
pub(super) fn sizes(
    counters: &PortCounters,
    queue: usize,
    read: fn(&QueueCounters) -> [u64; 8],
) -> [u64; 8] {
    let mut sum = [0u64; 8];
    for counts in counters.of_queue(queue).map(read) {
        sum.iter_mut().zip(counts).for_each(|(sum, n)| *sum += n);
    }
    sum
}

/// Drops by reason, without zeroes.
pub(super) fn drops(counters: &PortCounters, queue: usize) -> BTreeMap<String, u64> {
    let counts = DropReason::ALL.iter().map(|reason| {
        let of = |c: &QueueCounters| c.drops.get(*reason as usize).map_or(0, |n| n.get());
        (reason, counters.of_queue(queue).map(of).sum::<u64>())
    });
    let met = counts.filter(|(_, n)| *n > 0);
    met.map(|(reason, n)| (reason.label().to_owned(), n))
        .collect()
}

/// Adds the drops of all queues.
fn add_drops(drops: &mut BTreeMap<String, u64>, counters: &PortCounters) {
    for reason in DropReason::ALL {
        let of = |c: &QueueCounters| c.drops.get(*reason as usize).map_or(0, Counter::get);
        let queues = 0..counters.queues();
        let count: u64 = queues
            .flat_map(|queue| counters.of_queue(queue).map(of))
            .sum();
        if count > 0 {
            *drops.entry(reason.label().to_owned()).or_default() += count;
        }
    }
}
