//! The daemon's status as plain data. The metrics, `crosspoint show` and its JSON are all made from it, so they agree.

use std::collections::BTreeMap;

use crosspoint_config::LoopAction;
use serde::{Deserialize, Serialize};

/// The complete status at one moment.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    /// Ports, in the order of the configuration.
    pub ports: Vec<PortStatus>,
    /// Workers, by number.
    pub workers: Vec<WorkerStatus>,
    /// The forwarding database's size.
    pub fdb: FdbStatus,
    /// The configuration that it runs with.
    #[serde(default)]
    pub config: ConfigStatus,
    /// Cycles per second of the time-stamp counter.
    #[serde(default)]
    pub tsc_hz: f64,
    /// Counts of removed ports.
    #[serde(default)]
    pub removed: RemovedStatus,
}

/// State of the configuration's last reload.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConfigStatus {
    /// Whether the files were applied completely when they were last read, at the start or by a reload.
    pub last_reload_successful: bool,
    /// When that last succeeded, seconds since 1970.
    pub last_reload_success_timestamp_s: f64,
    /// Number of problems in the files now: mistakes, and changes that wait for a restart.
    pub problems: u64,
}

impl Default for ConfigStatus {
    fn default() -> ConfigStatus {
        ConfigStatus {
            last_reload_successful: true,
            last_reload_success_timestamp_s: 0.0,
            problems: 0,
        }
    }
}

/// Sums over the ports that were removed since the daemon started. They make the totals balance: copies that were
/// delivered to a removed port stay counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedStatus {
    /// Number of removed ports.
    pub ports: u64,
    /// As in [`QueueStatus`].
    pub rx_packets: u64,
    /// Bytes.
    pub rx_bytes: u64,
    /// As in [`QueueStatus`].
    pub tx_packets: u64,
    /// Bytes.
    pub tx_bytes: u64,
    /// As in [`QueueStatus`].
    pub flood_copies: u64,
    /// As in [`QueueStatus`].
    pub segment_copies: u64,
    /// As in [`QueueStatus`].
    pub joined_copies: u64,
    /// As in [`QueueStatus`].
    pub delivered_copies: u64,
    /// As in [`QueueStatus`].
    pub dropped_copies: u64,
    /// Drops counted at their queues, by reason label; reasons never met are absent.
    pub drops: BTreeMap<String, u64>,
}

/// The daemon itself, and switch-wide settings of its configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DaemonStatus {
    /// The program's version.
    pub version: String,
    /// Its process ID.
    pub pid: u32,
    /// Start time, milliseconds since 1970. Together with `pid` it identifies a run of the daemon.
    pub started_ms: u64,
    /// Time since the start, nanoseconds, by a clock that is never set.
    pub uptime_ns: u64,
    /// The file that it was started with; absent if none.
    pub config: Option<String>,
    /// The control socket.
    pub control: String,
    /// Address of the metrics; absent if they are not served.
    pub metrics: Option<String>,
    /// What idle workers do: "busy" or "adaptive".
    pub poll: String,
    /// Whether streams move to other workers by load: "auto" or "off".
    pub balance: String,
    /// How long loads are measured before a move is decided, milliseconds.
    pub balance_interval_ms: u64,
}

/// The daemon and the status, without the table of addresses, at one moment.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct StatusReport {
    /// The daemon, and the moment: its `uptime_ns`.
    pub daemon: DaemonStatus,
    /// The status.
    pub status: Status,
    /// Addresses that have moved between ports recently, those with most moves first.
    #[serde(default)]
    pub movers: Vec<FdbMover>,
}

/// The `state` of a port that is up, but blocked because of a loop.
pub const BLOCKED: &str = "blocked";

/// One port.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PortStatus {
    /// Its name.
    pub name: String,
    /// "vhost" or "xdp".
    pub kind: String,
    /// "up", "connected" (a front end is connected, but its rings do not run), "down", "quarantined" or "blocked" (a
    /// loop).
    pub state: String,
    /// The reason for its state, or details about it, as text.
    pub detail: String,
    /// Whether the switch is ready only while this port is up.
    #[serde(default)]
    pub required: bool,
    /// "unaware", "access 100" or "trunk 100,200 native 1".
    pub vlan: String,
    /// Addresses learned on it.
    pub addresses: u32,
    /// Times that an address moved here from another port.
    #[serde(default)]
    pub addresses_moved: u64,
    /// Times that an address was not learned because of the port's `mac_limit`.
    #[serde(default)]
    pub addresses_refused: u64,
    /// Times that an address was not learned here because it had moved between ports too often.
    #[serde(default)]
    pub addresses_damped: u64,
    /// Its share of a busy worker's time, relative to other ports' weights.
    #[serde(default)]
    pub weight: u32,
    /// Limits on the copies into which its frames may be flooded.
    #[serde(default)]
    pub storm: StormStatus,
    /// The only source addresses that its frames may have; empty for any.
    #[serde(default)]
    pub addresses_allowed: Vec<String>,
    /// Whether a loop goes through it: a probe has gone round one, or addresses move between it and another port
    /// thousands of times a second.
    #[serde(default)]
    pub looping: bool,
    /// The other ends of loops that probes have gone round; its own name if its own probe came back to it.
    #[serde(default)]
    pub looping_with: Vec<String>,
    /// The other end of the loop that it is blocked for; its own name if its own probe came back to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocked_with: Option<String>,
    /// The action on loops that its probes go round; absent if it sends none.
    #[serde(default)]
    pub loop_protect: Option<LoopProtectStatus>,
    /// Which link-local control frames pass between it and others, as configured.
    #[serde(default)]
    pub forward_control: Vec<String>,
    /// For xdp: "native" or "generic", and "zero-copy" or "copy"; for vhost: role and features.
    pub properties: BTreeMap<String, String>,
    /// Its queues, by number. Each has both directions.
    pub queues: Vec<QueueStatus>,
    /// Seconds since its state last changed.
    pub state_for_s: u64,
    /// Status of a guest's device; absent for xdp.
    pub device: Option<DeviceStatus>,
    /// Its service level objectives; absent if it has none.
    #[serde(default)]
    pub slo: Option<SloStatus>,
}

/// The action on loops that a port's probes go round.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoopProtectStatus {
    /// Whether a port is blocked.
    pub action: LoopAction,
    /// Shortest time that it is blocked, seconds.
    pub block_time_s: f64,
}

/// A port's storm control: flooded copies per second; 0 for no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StormStatus {
    /// Of broadcasts.
    pub broadcast: u32,
    /// Of frames for other group addresses.
    pub multicast: u32,
    /// Of frames for addresses that are known on no port.
    pub unknown_unicast: u32,
}

/// A port's service level objectives, and whether they were met in the last minute, over all its queues.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SloStatus {
    /// Length of the measured time, seconds: a minute, or less until one has passed.
    pub window_s: f64,
    /// Descriptors completed for the guest in that time.
    pub completions: u64,
    /// The objective for the median, if any.
    pub completion_p50: Option<ObjectiveStatus>,
    /// The objective for the 99th percentile, if any.
    pub completion_p99: Option<ObjectiveStatus>,
}

/// An objective and the measured time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ObjectiveStatus {
    /// The objective, nanoseconds.
    pub objective_ns: u64,
    /// The measured time, accurate to an eighth, nanoseconds; absent if nothing was completed.
    pub measured_ns: Option<u64>,
}

impl ObjectiveStatus {
    /// Whether it was met; `None` if nothing was completed.
    pub fn is_met(&self) -> Option<bool> {
        Some(self.measured_ns? <= self.objective_ns)
    }
}

/// A guest's device, and its front end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// The switch's role on the socket: "server" (the switch listens) or "client" (the front end listens).
    pub role: String,
    /// The vhost-user socket.
    pub socket: String,
    /// Front ends that have connected since the daemon started, including the current one.
    pub connections: u64,
    /// Why the last front end disconnected; absent before the first has.
    pub last_end: Option<String>,
    /// Why no front end can connect: the socket was removed or replaced, and cannot be created again; absent without a
    /// problem.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket_problem: Option<String>,
    /// The last request of the previous front end; absent if there is none.
    #[serde(default)]
    pub last_request: Option<String>,
    /// Number of consecutive front ends that left before a ring of theirs ran; 0 if the last one's ran.
    #[serde(default)]
    pub early_ends: u64,
    /// The features that the driver acknowledged, by name.
    pub features: Vec<String>,
    /// The vhost-user protocol features that the front end acknowledged, by name.
    pub protocol_features: Vec<String>,
    /// The device status that the front end has set, its bits by name; absent if it does not report it (no protocol
    /// feature STATUS).
    pub device_status: Option<Vec<String>>,
    /// "split" or "packed".
    pub ring_type: String,
    /// The guest's MAC address in the configuration, if any.
    pub mac: Option<String>,
    /// The MTU announced to the guest, bytes.
    pub mtu: u16,
    /// The MTU that the front end has set (NET_SET_MTU), if any.
    pub mtu_set: Option<u16>,
    /// The guest's memory.
    pub memory: Vec<MemoryRegionStatus>,
    /// Its rings, by index.
    pub vrings: Vec<VringStatus>,
}

/// A region of a guest's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryRegionStatus {
    /// The guest's address of it.
    pub guest_address: u64,
    /// Bytes.
    pub size: u64,
}

/// One of a guest's rings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VringStatus {
    /// Its number: queue pair n has vrings 2n and 2n + 1.
    pub index: u16,
    /// "receive" or "transmit", as seen by the guest.
    pub direction: String,
    /// Number of entries; 0 before the front end has set it.
    pub size: u32,
    /// Whether the front end has enabled it.
    pub enabled: bool,
    /// Whether workers use it.
    pub running: bool,
    /// The available index at which it was last set or stopped; a running ring has advanced from there, or from its
    /// used index. For a packed ring: 15 bits, and the wrap counter.
    pub base: u16,
    /// Whether the front end has given a descriptor for kicks.
    pub has_kick: bool,
    /// Whether the front end has given a descriptor for calls.
    pub has_call: bool,
}

/// A queue (pair) of a port. Counts begin at the daemon's start, and continue when guests come and go.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct QueueStatus {
    /// Its number.
    pub queue: u16,
    /// The worker that polls it, if any.
    pub worker: Option<usize>,
    /// Frames from the port into the switch.
    pub rx_packets: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Copies delivered to the port.
    pub tx_packets: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Additional copies of frames from here, made by flooding.
    pub flood_copies: u64,
    /// Additional copies of large frames from here, made by segmentation for ports that do not accept them.
    #[serde(default)]
    pub segment_copies: u64,
    /// Copies of frames from here that were joined to the frame before them, and left within a large frame.
    #[serde(default)]
    pub joined_copies: u64,
    /// Copies of frames from here that were delivered, anywhere.
    pub delivered_copies: u64,
    /// Copies of frames from here that were dropped, anywhere.
    pub dropped_copies: u64,
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
    /// Kicks that woke a worker.
    pub kicks: u64,
    /// Poll iterations in which it was skipped, because its port had used more than its share while others wanted
    /// theirs.
    #[serde(default)]
    pub held_back: u64,
    /// Calls to the guest.
    pub calls: u64,
    /// Time-stamp counter cycles that workers spent on bursts from here.
    #[serde(default)]
    pub cycles: u64,
    /// Drops counted at this queue, by reason label; reasons never met are absent.
    pub drops: BTreeMap<String, u64>,
    /// Time of the guest's descriptors from being read to completion.
    pub completion: LatencyStatus,
    /// The kernel's counters of an AF_XDP socket; absent for guests.
    pub xdp: Option<XdpStatus>,
}

/// A histogram: buckets of (middle in nanoseconds, count), ascending.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LatencyStatus {
    /// Values accurate to an eighth, and their counts.
    pub buckets_ns: Vec<(u64, u64)>,
    /// Sum of all values, nanoseconds.
    pub sum_ns: f64,
}

/// XDP_STATISTICS of one socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct XdpStatus {
    /// Frames dropped for other reasons than those below.
    pub rx_dropped: u64,
    /// Invalid receive descriptors.
    pub rx_invalid_descs: u64,
    /// Invalid transmit descriptors.
    pub tx_invalid_descs: u64,
    /// Frames dropped because the receive ring was full.
    pub rx_ring_full: u64,
    /// Times the fill ring was empty.
    pub rx_fill_ring_empty_descs: u64,
    /// Times the transmit ring was empty.
    pub tx_ring_empty_descs: u64,
}

impl XdpStatus {
    /// The sum of both.
    pub fn plus(&self, other: &XdpStatus) -> XdpStatus {
        XdpStatus {
            rx_dropped: self.rx_dropped + other.rx_dropped,
            rx_invalid_descs: self.rx_invalid_descs + other.rx_invalid_descs,
            tx_invalid_descs: self.tx_invalid_descs + other.tx_invalid_descs,
            rx_ring_full: self.rx_ring_full + other.rx_ring_full,
            rx_fill_ring_empty_descs: self.rx_fill_ring_empty_descs
                + other.rx_fill_ring_empty_descs,
            tx_ring_empty_descs: self.tx_ring_empty_descs + other.tx_ring_empty_descs,
        }
    }
}

/// One worker.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
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
    /// Time-stamp counter cycles of poll iterations that found work.
    pub busy_cycles: u64,
    /// Cycles of poll iterations that found none.
    pub idle_cycles: u64,
    /// Cycles asleep.
    pub sleep_cycles: u64,
    /// Number of poll iterations.
    pub iterations: u64,
    /// Durations of its poll iterations: a frame waited at most that long until it was noticed.
    #[serde(default)]
    pub turns: LatencyStatus,
    /// Times it slept.
    pub sleeps: u64,
    /// Bursts handled.
    pub bursts: u64,
    /// The highest cost of a burst, in units of about a cycle (`switch/frame/src/work.rs`).
    #[serde(default)]
    pub burst_work_max: u64,
    /// Streams that it got from other workers, by load or by command.
    #[serde(default)]
    pub stream_moves: u64,
    /// Streams whose move was put off because a NIC had not sent in time what this worker had given it.
    #[serde(default)]
    pub stream_moves_put_off: u64,
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

/// How a worker spent a recent time window, in shares that add up to 1.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
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
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
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

/// Size of the forwarding database.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct FdbStatus {
    /// Entries in use.
    pub entries: usize,
    /// Entries there is room for.
    pub capacity: usize,
    /// Seconds after which an address that was not seen is forgotten.
    pub ageing_s: u64,
}

/// An address that has moved between ports recently.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdbMover {
    /// The address.
    pub mac: String,
    /// Its VLAN; 0 for none.
    pub vlan: u16,
    /// Name of the port that it was on before its first move.
    pub home: String,
    /// Name of the other port that it was on last.
    pub other: String,
    /// Name of the port that it is on.
    pub port: String,
    /// Number of moves; 255 means 255 or more.
    pub moves: u8,
    /// Seconds since its first move.
    pub since_s: u16,
    /// Whether it has moved too often, and so stays on `home` for now.
    pub damped: bool,
}

/// One learned address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdbEntry {
    /// The address.
    pub mac: String,
    /// Its VLAN; 0 for none.
    pub vlan: u16,
    /// Name of the port that it was last seen on.
    pub port: String,
    /// Seconds since it was last seen, to within the table's tick.
    pub age_s: u64,
}
