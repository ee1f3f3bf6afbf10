//! The rows from which tables and JSON are made.

use std::collections::BTreeMap;

use crosspoint_packet::DropReason;
use serde::{Deserialize, Serialize};

pub mod shares;
mod slo;

pub use slo::SloRow;

use crate::completion::Completion;
use crate::status::{
    DaemonStatus, DeviceStatus, FdbEntry, FdbMover, FdbStatus, LatencyStatus, LoopProtectStatus,
    PortStatus, QueueStatus, Status, StormStatus, XdpStatus,
};

/// A port; its counts are sums over its queues.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PortRow {
    /// Its name.
    pub name: String,
    /// `vhost` or `xdp`.
    pub kind: String,
    /// `up`, `connected`, `down`, `quarantined` or `blocked`.
    pub state: String,
    /// Why it is not up, or further details of its state; may be empty.
    pub detail: String,
    /// Whether the switch is ready only while it is up.
    #[serde(default)]
    pub required: bool,
    /// `unaware`, `access 100` or `trunk 100,200 native 1`.
    pub vlan: String,
    /// Addresses learned on it.
    pub addresses: u32,
    /// The only source addresses that its frames may have; empty: any.
    #[serde(default)]
    pub addresses_allowed: Vec<String>,
    /// Whether it is part of a loop.
    #[serde(default)]
    pub looping: bool,
    /// The other ends of loops that probes have found; its own name, if its own probe came back to it.
    #[serde(default)]
    pub looping_with: Vec<String>,
    /// How loops that its probes find are handled; absent if it sends no probes.
    #[serde(default)]
    pub loop_protect: Option<LoopProtectStatus>,
    /// Kinds of link-local control frames that pass from it to other ports, and from those to it.
    #[serde(default)]
    pub forward_control: Vec<String>,
    /// Its weight for shares of a busy worker's time.
    #[serde(default)]
    pub weight: u32,
    /// Limits of flooded copies of its frames, per second; 0 for no limit.
    #[serde(default)]
    pub storm: StormStatus,
    /// Further properties, by name.
    pub properties: BTreeMap<String, String>,
    /// How many queues it has.
    pub queues: usize,
    /// Frames from the port into the switch.
    pub rx_packets: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Copies delivered to the port.
    pub tx_packets: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Drops counted at the port, for all reasons.
    pub drops: u64,
    /// Its part of the time of one worker in the last seconds, percent; with several workers, the sum. Null before it has
    /// run.
    #[serde(default)]
    pub share_percent: Option<f64>,
    /// Poll iterations in which one of its queues was not read, because the port was ahead of its fair share.
    #[serde(default)]
    pub held_back: u64,
    /// Drops there of frames whose senders were above their shares (`over_share`).
    #[serde(default)]
    pub over_share: u64,
    /// Floods of its frames that its storm limits dropped (`storm_broadcast`, `storm_multicast`, `storm_unknown_unicast`).
    #[serde(default)]
    pub floods_dropped: u64,
    /// Number of times that an address moved to it from another port.
    #[serde(default)]
    pub addresses_moved: u64,
    /// Number of times that an address was not learned on it, because the port had reached its limit of addresses.
    #[serde(default)]
    pub addresses_refused: u64,
    /// Number of times that an address was not moved to it, because the address had moved too often.
    #[serde(default)]
    pub addresses_damped: u64,
    /// The state of its service level objectives; null if it has none.
    #[serde(default)]
    pub slo: Option<SloRow>,
}

/// The switch as a whole; its counts are sums over all ports.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
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
    /// What is missing that no port needs: a line for each. The daemon keeps trying.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
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
    /// Number of queues of all ports.
    pub queues: usize,
    /// Addresses in the forwarding database.
    pub fdb_entries: usize,
    /// Addresses that fit in it.
    pub fdb_capacity: usize,
    /// Seconds after which an address that was not seen is removed.
    pub fdb_ageing_s: u64,
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

/// A guest: its device and its front end.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GuestRow {
    /// Name of the port.
    pub port: String,
    /// `up`, `connected`, `down` or `quarantined`.
    pub state: String,
    /// Seconds since its state last changed.
    pub state_for_s: u64,
    /// The device; its keys are part of this object.
    #[serde(flatten)]
    pub device: DeviceStatus,
}

/// Times from reading a queue's guest descriptors to their completion.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
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

/// The kernel's counters of a NIC queue's socket.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct XdpRow {
    /// Name of the port.
    pub port: String,
    /// The queue's number.
    pub queue: u16,
    /// The counters; they are keys of this object.
    #[serde(flatten)]
    pub xdp: XdpStatus,
}

/// Everything known about one port.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PortDetail {
    /// Its row in the list of ports; its keys are part of this object.
    #[serde(flatten)]
    pub port: PortRow,
    /// Seconds since its state last changed.
    pub state_for_s: u64,
    /// The guest's device and its front end; null for xdp.
    pub device: Option<DeviceStatus>,
    /// Its queues, by number.
    pub per_queue: Vec<QueueRow>,
    /// Drops at it, by queue and reason; those that are not zero.
    pub drops_by_reason: Vec<DropRow>,
}

/// A queue (pair) of a port.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct QueueRow {
    /// Name of its port.
    pub port: String,
    /// Its number.
    pub queue: u16,
    /// The worker that polls it, or null.
    pub worker: Option<usize>,
    /// Frames from the port into the switch.
    pub rx_packets: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Copies delivered to the port.
    pub tx_packets: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Extra copies made by flooding of frames from here.
    pub flood_copies: u64,
    /// Extra copies made by segmentation of large frames from here, for ports that do not accept large frames.
    pub segment_copies: u64,
    /// Copies of frames from here that were joined to the one before them in a large frame.
    pub joined_copies: u64,
    /// Copies of frames from here that were delivered, to any port.
    pub delivered_copies: u64,
    /// Copies of frames from here that were dropped, at any port.
    pub dropped_copies: u64,
    /// Bursts taken from the port.
    pub bursts: u64,
    /// Kicks that woke a worker.
    pub kicks: u64,
    /// Poll iterations in which it was not read, because its port was ahead of its fair share while other ports waited.
    #[serde(default)]
    pub held_back: u64,
    /// Calls to the guest.
    pub calls: u64,
    /// Time-stamp counter cycles that workers spent on bursts from here.
    #[serde(default)]
    pub cycles: u64,
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

/// A worker. Shares of time are of the last `window_ms` milliseconds; counts are since the daemon started.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
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
    /// Number of times that it slept.
    pub sleeps: u64,
    /// Bursts handled.
    pub bursts: u64,
    /// Streams that it got from other workers, by load or by command.
    pub stream_moves: u64,
    /// Streams that it was to hand over but got back, because a NIC had not yet sent the frames handed to it.
    pub stream_moves_put_off: u64,
    /// Number of times that it made no progress for too long while it was awake.
    pub stalls: u64,
    /// Whether it makes no progress now.
    pub stalled: bool,
    /// Involuntary context switches.
    pub involuntary_context_switches: u64,
    /// The streams that it polls.
    pub streams: Vec<StreamRow>,
}

/// A queue that a worker polls.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
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

/// The forwarding database.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
}

/// The switch as a whole, without `missing`.
pub fn switch(daemon: &DaemonStatus, status: &Status) -> SwitchRow {
    let (ports, workers) = (&status.ports, &status.workers);
    let are = |state: &str| ports.iter().filter(|port| port.state == state).count();
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
        missing: Vec::new(),
        cores: workers.iter().map(|worker| worker.core).collect(),
        workers_stalled: workers.iter().filter(|worker| worker.stalled).count(),
        stream_moves: workers.iter().map(|w| w.stream_moves).fold(0, total),
        ports: ports.len(),
        ports_up: are("up"),
        ports_quarantined: are("quarantined"),
        queues: all().count(),
        fdb_entries: status.fdb.entries,
        fdb_capacity: status.fdb.capacity,
        fdb_ageing_s: status.fdb.ageing_s,
        rx_packets: sum(|q| q.rx_packets),
        rx_bytes: sum(|q| q.rx_bytes),
        tx_packets: sum(|q| q.tx_packets),
        tx_bytes: sum(|q| q.tx_bytes),
        drops: sum(all_drops),
    }
}

/// All guests.
pub fn guests(status: &Status) -> Vec<GuestRow> {
    let row = |port: &PortStatus| {
        Some(GuestRow {
            port: port.name.clone(),
            state: port.state.clone(),
            state_for_s: port.state_for_s,
            device: port.device.clone()?,
        })
    };
    status.ports.iter().filter_map(row).collect()
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

/// All ports.
pub fn ports(status: &Status) -> Vec<PortRow> {
    let shares = shares::shares(status);
    let row = |one: &PortStatus| PortRow {
        share_percent: shares.get(one.name.as_str()).copied(),
        ..port(one)
    };
    status.ports.iter().map(row).collect()
}

/// The row of a port.
pub fn port(port: &PortStatus) -> PortRow {
    let sum = |read: fn(&QueueStatus) -> u64| port.queues.iter().map(read).fold(0, total);
    PortRow {
        name: port.name.clone(),
        kind: port.kind.clone(),
        state: port.state.clone(),
        detail: port.detail.clone(),
        required: port.required,
        vlan: port.vlan.clone(),
        addresses: port.addresses,
        addresses_allowed: port.addresses_allowed.clone(),
        weight: port.weight,
        looping: port.looping,
        looping_with: port.looping_with.clone(),
        loop_protect: port.loop_protect,
        forward_control: port.forward_control.clone(),
        storm: port.storm,
        properties: port.properties.clone(),
        queues: port.queues.len(),
        rx_packets: sum(|q| q.rx_packets),
        rx_bytes: sum(|q| q.rx_bytes),
        tx_packets: sum(|q| q.tx_packets),
        tx_bytes: sum(|q| q.tx_bytes),
        drops: sum(all_drops),
        share_percent: None,
        held_back: shares::held_back(port),
        over_share: shares::drops_for(port, shares::is_over_share),
        floods_dropped: shares::drops_for(port, shares::is_storm),
        addresses_moved: port.addresses_moved,
        addresses_refused: port.addresses_refused,
        addresses_damped: port.addresses_damped,
        slo: port.slo.as_ref().map(slo::row),
    }
}

/// One port, in full.
pub fn port_detail(all: &Status, status: &PortStatus) -> PortDetail {
    let queues = status.queues.iter();
    PortDetail {
        port: PortRow {
            share_percent: shares::shares(all).get(status.name.as_str()).copied(),
            ..port(status)
        },
        state_for_s: status.state_for_s,
        device: status.device.clone(),
        per_queue: queues.map(|one| queue(&status.name, one)).collect(),
        drops_by_reason: drops_of(status),
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

/// All queues.
pub fn queues(status: &Status) -> Vec<QueueRow> {
    let of_port = |port: &PortStatus| {
        let queues = port.queues.iter();
        queues.map(|one| queue(&port.name, one)).collect::<Vec<_>>()
    };
    status.ports.iter().flat_map(of_port).collect()
}

/// The row of a queue of port `port`.
pub fn queue(port: &str, queue: &QueueStatus) -> QueueRow {
    let completion = Completion::new(&queue.completion);
    QueueRow {
        port: port.to_owned(),
        queue: queue.queue,
        worker: queue.worker,
        rx_packets: queue.rx_packets,
        rx_bytes: queue.rx_bytes,
        tx_packets: queue.tx_packets,
        tx_bytes: queue.tx_bytes,
        flood_copies: queue.flood_copies,
        segment_copies: queue.segment_copies,
        joined_copies: queue.joined_copies,
        delivered_copies: queue.delivered_copies,
        dropped_copies: queue.dropped_copies,
        bursts: queue.bursts,
        kicks: queue.kicks,
        held_back: queue.held_back,
        calls: queue.calls,
        cycles: queue.cycles,
        drops: all_drops(queue),
        completions: completion.count(),
        completion_p50_ns: completion.quantile_ns(0.50),
        completion_p99_ns: completion.quantile_ns(0.99),
        xdp: queue.xdp,
    }
}

/// All workers.
pub fn workers(status: &Status) -> Vec<WorkerRow> {
    let row = |worker: &crate::status::WorkerStatus| {
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
            sleeps: worker.sleeps,
            bursts: worker.bursts,
            stream_moves: worker.stream_moves,
            stream_moves_put_off: worker.stream_moves_put_off,
            stalls: worker.stalls,
            stalled: worker.stalled,
            involuntary_context_switches: worker.involuntary_switches,
            streams: streams.collect(),
        }
    };
    status.workers.iter().map(row).collect()
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
    status.ports.iter().flat_map(drops_of).collect()
}

fn drops_of(port: &PortStatus) -> Vec<DropRow> {
    let queues = port.queues.iter();
    queues
        .flat_map(|queue| drops_of_queue(port, queue))
        .collect()
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
    })
}

/// A drop reason's meaning.
pub fn help(label: &str) -> &'static str {
    let reason = DropReason::ALL.iter().find(|one| one.label() == label);
    reason.map_or("", |reason| reason.help())
}
