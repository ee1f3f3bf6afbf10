//! The rows from which tables and JSON are made.

use crosspoint_packet::DropReason;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

mod bindings;
mod groups;
mod multicast;
mod port;
mod queue;
pub mod senders;
pub mod shares;
mod slo;
mod switch;
mod worker;

pub use bindings::{BindingRow, bindings};
pub use groups::{ConnectionRow, ConnectionTable, GroupRow, GroupTables, RuleRow, SetRow};
pub use multicast::{MulticastGroupRow, MulticastTable, QuerierRow};
pub use port::{GuestRow, PortDetail, PortRow, guests, port, port_detail, ports};
pub use queue::{LatencyRow, QueueRow, XdpRow, latency, latency_of, queue, queues, xdp};
pub use slo::SloRow;
pub use switch::{SwitchRow, switch};
pub use worker::{StreamRow, WorkerRow, workers};

use crate::status::{FdbEntry, FdbMover, FdbStatus, PortStatus, QueueStatus, Status};

/// The forwarding database.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Fdb {
    /// Entries in use. They change during reading, so this may differ from the number of `addresses`.
    pub entries: usize,
    /// Entries that fit.
    pub capacity: usize,
    /// Seconds after which an address that was not seen is removed.
    pub ageing_s: u64,
    /// The addresses: `mac`, `vlan` (0 for none), `port` and `age_s`, the seconds since it was seen.
    pub addresses: Vec<FdbEntry>,
    /// The addresses that moved between ports recently, most moves first.
    #[serde(default)]
    pub movers: Vec<FdbMover>,
}

/// A drop reason, and its count at a queue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DropRow {
    /// Name of the port.
    pub port: String,
    /// The queue's number.
    pub queue: u16,
    /// The reason, as in the metrics.
    pub reason: String,
    /// Number of frames or copies.
    pub count: u64,
    /// The reason's meaning.
    pub help: String,
    /// Name of the port that sent the frames, if it is known: always for reasons that are counted there; for others only
    /// if there is no other sender whose frames were dropped at a receiver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sender: Option<String>,
    /// If several ports may have sent them: these, with most dropped copies first; at most 5. The data path does not count
    /// which of them sent what this port dropped.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub senders: Vec<SenderRow>,
}

/// A port whose frames receivers dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SenderRow {
    /// Its name; null for all ports that were removed.
    pub port: Option<String>,
    /// Copies of its frames that receivers dropped: at any of them, and for any reason.
    pub dropped: u64,
}

/// The most senders that a row has.
const SENDERS_MAX: usize = 5;

impl DropRow {
    /// Names the ports that may have sent what was dropped here, of all whose frames receivers dropped.
    pub fn sent_by(self, all: &[SenderRow]) -> DropRow {
        if senders::is_at_sender(&self.reason) {
            return self;
        }
        // No port sends to itself.
        let is_other = |one: &&SenderRow| one.port.as_ref() != Some(&self.port);
        let others: Vec<SenderRow> = all.iter().filter(is_other).cloned().collect();
        match others.as_slice() {
            [
                SenderRow {
                    port: Some(only), ..
                },
            ] => DropRow {
                sender: Some(only.clone()),
                ..self
            },
            _ => DropRow {
                senders: others.into_iter().take(SENDERS_MAX).collect(),
                ..self
            },
        }
    }
}

/// Adds counts. Real counts do not overflow; the sum saturates, so that wrong ones cannot panic.
pub fn total(sum: u64, count: u64) -> u64 {
    sum.saturating_add(count)
}

/// All drops of a queue.
pub fn all_drops(queue: &QueueStatus) -> u64 {
    queue.drops.values().copied().fold(0, total)
}

/// The forwarding database with its `addresses`, and those that moved recently.
pub fn fdb(status: &Status, mut addresses: Vec<FdbEntry>, movers: Vec<FdbMover>) -> Fdb {
    addresses.sort_unstable_by(|a, b| (a.vlan, &a.mac, &a.port).cmp(&(b.vlan, &b.mac, &b.port)));
    let FdbStatus {
        entries,
        capacity,
        ageing_s,
    } = status.fdb;
    Fdb {
        entries,
        capacity,
        ageing_s,
        addresses,
        movers,
    }
}

/// All drop reasons that occurred, on all ports.
pub fn drops(status: &Status) -> Vec<DropRow> {
    drops_of(status, &status.ports)
}

/// The drop reasons that occurred at one port.
fn drops_at(status: &Status, port: &PortStatus) -> Vec<DropRow> {
    drops_of(status, std::slice::from_ref(port))
}

fn drops_of(status: &Status, ports: &[PortStatus]) -> Vec<DropRow> {
    let senders = senders::senders(None, status);
    let queues = ports
        .iter()
        .flat_map(|port| port.queues.iter().map(move |queue| (port, queue)));
    let rows = queues.flat_map(|(port, queue)| drops_of_queue(port, queue));
    rows.map(|row| row.sent_by(&senders)).collect()
}

/// The rows of a queue.
pub fn drops_of_queue<'q>(
    port: &'q PortStatus,
    queue: &'q QueueStatus,
) -> impl Iterator<Item = DropRow> + use<'q> {
    let met = queue.drops.iter().filter(|(_, count)| **count > 0);
    met.map(|(reason, count)| DropRow {
        port: port.name.clone(),
        queue: queue.queue,
        reason: reason.clone(),
        count: *count,
        help: help(reason).to_owned(),
        sender: senders::is_at_sender(reason).then(|| port.name.clone()),
        senders: Vec::new(),
    })
}

/// A drop reason's meaning.
pub fn help(label: &str) -> &'static str {
    let reason = DropReason::ALL.iter().find(|one| one.label() == label);
    reason.map_or("", |reason| reason.help())
}
