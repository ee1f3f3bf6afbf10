//! The row of the switch as a whole.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{all_drops, total};
use crate::status::{ConnectionsStatus, DaemonStatus, QueueStatus, ShownState, Status};

/// The switch as a whole; its counts are sums over all ports.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct SwitchRow {
    /// The daemon's version.
    pub version: String,
    /// Its process ID.
    pub pid: u32,
    /// When it was started, in milliseconds since 1970.
    pub started_ms: u64,
    /// Seconds since then.
    pub uptime_s: u64,
    /// The configuration file that it was started with; null without a file.
    pub config: Option<String>,
    /// Path of the control socket.
    pub control: String,
    /// Address where metrics are served; null if they are not.
    pub metrics: Option<String>,
    /// What idle workers do: `busy` or `adaptive`.
    pub poll: String,
    /// Whether streams are moved to other workers by load: `auto` or `off`.
    pub balance: String,
    /// How long loads are measured before such a decision, milliseconds.
    pub balance_interval_ms: u64,
    /// What the daemon has given up, such as "capabilities, seccomp, landlock (ABI 7)", or "off".
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// What is missing that no port needs: a line for each. The daemon keeps trying.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
    /// Mistakes that the last reading of the files found: a line for each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub config_problems: Vec<String>,
    /// Settings of the files that take effect at the next start: a line for each, with both values.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub restart_pending: Vec<String>,
    /// The cores of the workers, by worker.
    pub cores: Vec<usize>,
    /// Workers that make no progress although they are awake.
    pub workers_stalled: usize,
    /// Number of moves of streams between workers.
    pub stream_moves: u64,
    /// Number of ports.
    pub ports: usize,
    /// Number of ports that are up.
    pub ports_up: usize,
    /// Number of ports that are quarantined because their guest broke a rule.
    pub ports_quarantined: usize,
    /// Number of ports that the operator has disabled.
    #[serde(default)]
    pub ports_disabled: usize,
    /// Number of queues of all ports.
    pub queues: usize,
    /// Addresses in the forwarding database.
    pub fdb_entries: usize,
    /// Addresses that fit in it.
    pub fdb_capacity: usize,
    /// Seconds after which an address that was not seen is removed.
    pub fdb_ageing_s: u64,
    /// The table of connections; absent until a port has security groups.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<ConnectionsStatus>,
    /// Frames from all ports into the switch.
    pub rx_packets: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Copies delivered to ports.
    pub tx_packets: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Drops, for all reasons.
    pub drops: u64,
}

/// The switch as a whole, without `missing`.
pub fn switch(daemon: &DaemonStatus, status: &Status) -> SwitchRow {
    let (ports, workers) = (&status.ports, &status.workers);
    let are = |state: ShownState| ports.iter().filter(|port| port.state == state).count();
    let all = || ports.iter().flat_map(|port| &port.queues);
    let sum = |read: fn(&QueueStatus) -> u64| all().map(read).fold(0, total);
    SwitchRow {
        version: daemon.version.clone(),
        pid: daemon.pid,
        started_ms: daemon.started_ms,
        uptime_s: daemon.uptime_ns / 1_000_000_000,
        config: daemon.config.clone(),
        control: daemon.control.clone(),
        metrics: daemon.metrics.clone(),
        poll: daemon.poll.clone(),
        balance: daemon.balance.clone(),
        balance_interval_ms: daemon.balance_interval_ms,
        sandbox: daemon.sandbox.clone(),
        missing: Vec::new(),
        config_problems: Vec::new(),
        restart_pending: Vec::new(),
        cores: workers.iter().map(|worker| worker.core).collect(),
        workers_stalled: workers.iter().filter(|worker| worker.stalled).count(),
        stream_moves: workers.iter().map(|w| w.stream_moves).fold(0, total),
        ports: ports.len(),
        ports_up: are(ShownState::Up),
        ports_quarantined: are(ShownState::Quarantined),
        ports_disabled: are(ShownState::Disabled),
        queues: all().count(),
        fdb_entries: status.fdb.entries,
        fdb_capacity: status.fdb.capacity,
        fdb_ageing_s: status.fdb.ageing_s,
        connections: status.connections,
        rx_packets: sum(|q| q.rx_packets),
        rx_bytes: sum(|q| q.rx_bytes),
        tx_packets: sum(|q| q.tx_packets),
        tx_bytes: sum(|q| q.tx_bytes),
        drops: sum(all_drops),
    }
}
