//! What the daemon knows, as plain data: the metrics, `crosspoint show` and its JSON are all made
//! from this one picture, so that they agree.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::LoopAction;

/// Everything, at one moment.
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
    /// What ports counted that are no more.
    #[serde(default)]
    pub removed: RemovedStatus,
}

/// How the configuration came to be what it is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConfigStatus {
    /// Whether it was taken over as it was written when it was last read: at the start, or by a reload.
    pub last_reload_successful: bool,
    /// When it last was, seconds since 1970.
    pub last_reload_success_timestamp_s: f64,
    /// What is wrong with the files now: mistakes, and changes that wait for a restart.
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

/// Sums over the ports that were removed since the daemon started. With them the ledger balances: what was sent to a port
/// that is gone was still delivered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedStatus {
    /// How many.
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

/// The daemon itself, and what its configuration says of the switch as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DaemonStatus {
    /// Of the program.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// When it was started, in milliseconds since 1970. With `pid` it tells one daemon from the next.
    pub started_ms: u64,
    /// How long ago that was, in nanoseconds, by a clock that nobody sets.
    pub uptime_ns: u64,
    /// The file that it was started with; absent where there was none.
    pub config: Option<String>,
    /// The control socket.
    pub control: String,
    /// Where metrics are served; absent where they are not.
    pub metrics: Option<String>,
    /// What idle workers do: "busy" or "adaptive".
    pub poll: String,
    /// Whether streams go to other workers by load: "auto" or "off".
    pub balance: String,
    /// How long loads are measured before that is decided, milliseconds.
    pub balance_interval_ms: u64,
}

/// The daemon, and all that it knows but the table of addresses, at one moment.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Snapshot {
    /// Whose it is, and the moment: its `uptime_ns`.
    pub daemon: DaemonStatus,
    /// What it knows.
    pub status: Status,
    /// The addresses that have moved between ports of late, those that moved most first.
    #[serde(default)]
    pub movers: Vec<FdbMover>,
}

/// The `state` of a port that is up and blocked, since a loop goes through it.
pub const BLOCKED: &str = "blocked";

/// One port.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PortStatus {
    /// Its name.
    pub name: String,
    /// "vhost" or "xdp".
    pub kind: String,
    /// "up", "connected" (a front end is there, its rings are not), "down", "quarantined" or "blocked" (a loop).
    pub state: String,
    /// Why it is not up, or how it is; for people.
    pub detail: String,
    /// Whether the switch is ready only while it is up.
    #[serde(default)]
    pub required: bool,
    /// "unaware", "access 100" or "trunk 100,200 native 1".
    pub vlan: String,
    /// Addresses learned on it.
    pub addresses: u32,
    /// Times that an address came here from another port.
    #[serde(default)]
    pub addresses_moved: u64,
    /// Times that an address was not learned, because the port had as many as it may.
    #[serde(default)]
    pub addresses_refused: u64,
    /// Times that an address was not learned here, because it had moved between ports too often.
    #[serde(default)]
    pub addresses_damped: u64,
    /// Its part of a busy worker's time, beside other ports' weights.
    #[serde(default)]
    pub weight: u32,
    /// Into how many copies its frames may be flooded.
    #[serde(default)]
    pub storm: StormStatus,
    /// The only source addresses that its frames may have; none: any.
    #[serde(default)]
    pub addresses_allowed: Vec<String>,
    /// Whether a loop goes through it: a probe has gone round one, or addresses come to it from another port thousands of
    /// times a second, and to that one from it.
    #[serde(default)]
    pub looping: bool,
    /// The other ends of loops that probes have gone round; its own name, where its own came back to it.
    #[serde(default)]
    pub looping_with: Vec<String>,
    /// The other end of the loop that it is blocked for; its own name, where its own probe came back to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocked_with: Option<String>,
    /// What is done about loops that its probes go round; absent where it sends none.
    #[serde(default)]
    pub loop_protect: Option<LoopProtectStatus>,
    /// Which link-local control frames pass from it to others, and from those to it, as the configuration has them.
    #[serde(default)]
    pub forward_control: Vec<String>,
    /// For xdp: "native" or "generic", and "zero-copy" or "copy"; for vhost: role and features.
    pub properties: BTreeMap<String, String>,
    /// Its queues, by number: a queue has both directions.
    pub queues: Vec<QueueStatus>,
    /// Seconds since its state became what it is.
    pub state_for_s: u64,
    /// What is known of a guest's device; absent for xdp.
    pub device: Option<DeviceStatus>,
    /// Its service level objectives; absent where it has none.
    #[serde(default)]
    pub slo: Option<SloStatus>,
}

/// What is done about loops that a port's probes go round.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoopProtectStatus {
    /// Whether a port is blocked.
    pub action: LoopAction,
    /// How long at least, seconds.
    pub block_time_s: f64,
}

/// A port's storm control: flooded copies per second; 0 for no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StormStatus {
    /// Of broadcasts.
    pub broadcast: u32,
    /// Of frames for other group addresses.
    pub multicast: u32,
    /// Of frames for addresses that no port is known for.
    pub unknown_unicast: u32,
}

/// A port's service level objectives, and whether they were met in the last minute, over all its queues.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SloStatus {
    /// How long the time is that this is about: a minute, and less before one has passed. Seconds.
    pub window_s: f64,
    /// Descriptors that the guest had completed in that time.
    pub completions: u64,
    /// The objective for half of them, if there is one.
    pub completion_p50: Option<ObjectiveStatus>,
    /// The objective for 99 of 100, if there is one.
    pub completion_p99: Option<ObjectiveStatus>,
}

/// A time that is to be kept to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ObjectiveStatus {
    /// The objective, nanoseconds.
    pub objective_ns: u64,
    /// The time that was measured, to within an eighth, nanoseconds; absent where nothing was completed.
    pub measured_ns: Option<u64>,
}

impl ObjectiveStatus {
    /// Whether it was met; `None` where nothing was completed.
    pub fn is_met(&self) -> Option<bool> {
        Some(self.measured_ns? <= self.objective_ns)
    }
}

/// A guest's device, and the front end that speaks for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// Who listens on the socket: "server" (the switch) or "client" (the front end).
    pub role: String,
    /// The vhost-user socket.
    pub socket: String,
    /// Front ends that have connected since the daemon started, the present one included.
    pub connections: u64,
    /// Why the last front end went; absent before one has.
    pub last_end: Option<String>,
    /// Why no front end can connect: somebody has removed or replaced the socket, and it cannot be made again; absent
    /// where all is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket_problem: Option<String>,
    /// The last request of the last front end; absent before one has gone that had said anything.
    #[serde(default)]
    pub last_request: Option<String>,
    /// How many front ends have gone, one after the other, before a ring of theirs ran; 0 if the last one's did.
    #[serde(default)]
    pub early_ends: u64,
    /// The features that the driver acknowledged, by name.
    pub features: Vec<String>,
    /// The vhost-user protocol features that the front end acknowledged, by name.
    pub protocol_features: Vec<String>,
    /// The device status that the front end has set, its bits by name; absent where it does not
    /// tell (no protocol feature STATUS).
    pub device_status: Option<Vec<String>>,
    /// "split" or "packed".
    pub ring_type: String,
    /// The MAC address that the configuration gives the guest, if it does.
    pub mac: Option<String>,
    /// The MTU that the guest is told, bytes.
    pub mtu: u16,
    /// The MTU that the front end has set (NET_SET_MTU), if it has.
    pub mtu_set: Option<u16>,
    /// The guest's memory.
    pub memory: Vec<MemoryRegionStatus>,
    /// Its rings, by index.
    pub vrings: Vec<VringStatus>,
}

/// A region of a guest's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryRegionStatus {
    /// Where the guest has it.
    pub guest_address: u64,
    /// Bytes.
    pub size: u64,
}

/// One of a guest's rings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VringStatus {
    /// Its number: queue pair n has 2n and 2n + 1.
    pub index: u16,
    /// "receive" or "transmit", in the guest's words.
    pub direction: String,
    /// Entries; 0 before the front end has said.
    pub size: u32,
    /// Whether the front end has enabled it.
    pub enabled: bool,
    /// Whether workers use it.
    pub running: bool,
    /// The available index that it was last set to, or stopped at; one that runs has gone on
    /// from there, or from its used index. Of a packed ring: 15 bits, and the wrap counter.
    pub base: u16,
    /// Whether the front end has given a descriptor for kicks.
    pub has_kick: bool,
    /// Whether the front end has given a descriptor for calls.
    pub has_call: bool,
}

/// One queue (pair) of a port. Counts are since the daemon started, whatever guests came and went.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct QueueStatus {
    /// Its number.
    pub queue: u16,
    /// The worker that polls it, if any does.
    pub worker: Option<usize>,
    /// Frames from the port into the switch.
    pub rx_packets: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Copies delivered to the port.
    pub tx_packets: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Additional copies that flooding made of frames from here.
    pub flood_copies: u64,
    /// Additional copies that cutting large frames from here made, for ports that do not take such.
    #[serde(default)]
    pub segment_copies: u64,
    /// Copies of frames from here that went on within a large frame, joined to the one before them.
    #[serde(default)]
    pub joined_copies: u64,
    /// Copies of frames from here that were delivered, anywhere.
    pub delivered_copies: u64,
    /// Copies of frames from here that were dropped, anywhere.
    pub dropped_copies: u64,
    /// Bursts taken from the port.
    pub bursts: u64,
    /// The same by size: up to 1, 2, 4, 8, 16, 32 and 64 frames, and more.
    #[serde(default)]
    pub rx_burst_sizes: [u64; 8],
    /// Bursts delivered to the port, by size.
    #[serde(default)]
    pub tx_burst_sizes: [u64; 8],
    /// Entries of the guest's receive ring; absent where none is in use.
    #[serde(default)]
    pub receive_ring_entries: Option<u16>,
    /// Receive buffers that the guest offers at this moment; absent where none are in use, and for packed rings.
    #[serde(default)]
    pub receive_buffers: Option<usize>,
    /// Kicks that woke a worker.
    pub kicks: u64,
    /// Poll iterations in which it was not read, since its port was ahead of others that wanted their share.
    #[serde(default)]
    pub held_back: u64,
    /// Calls to the guest.
    pub calls: u64,
    /// Time-stamp counter cycles that workers spent on bursts from here.
    #[serde(default)]
    pub cycles: u64,
    /// Drops counted at this queue, by reason label; reasons never met are absent.
    pub drops: BTreeMap<String, u64>,
    /// Guest descriptors' time from being read to completion.
    pub completion: LatencyStatus,
    /// The kernel's counters of an AF_XDP socket; absent for guests.
    pub xdp: Option<XdpStatus>,
}

/// A histogram: buckets of (middle in nanoseconds, count), ascending.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LatencyStatus {
    /// Values to within an eighth, and how often.
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
    /// The cores that its thread may run on, as in `0-3,8`: that core alone, unless somebody has changed it or the process
    /// has lost the core.
    #[serde(default)]
    pub allowed_cores: String,
    /// The core that it last ran on; absent where the kernel does not tell.
    #[serde(default)]
    pub last_core: Option<usize>,
    /// Whether it may run elsewhere than on its core, or not there.
    #[serde(default)]
    pub misplaced: bool,
    /// The memory node of that core; absent where the kernel knows none.
    #[serde(default)]
    pub node: Option<u32>,
    /// How it spent the last seconds.
    #[serde(default)]
    pub window: WindowStatus,
    /// Time-stamp counter cycles of iterations that found work.
    pub busy_cycles: u64,
    /// Cycles of iterations that found none.
    pub idle_cycles: u64,
    /// Cycles asleep.
    pub sleep_cycles: u64,
    /// Turns of the loop.
    pub iterations: u64,
    /// How long its turns took: as long as a frame waited at most until it was noticed.
    #[serde(default)]
    pub turns: LatencyStatus,
    /// Times it slept.
    pub sleeps: u64,
    /// Bursts handled.
    pub bursts: u64,
    /// The most that one burst has asked for, in units of about a cycle (`switch/frame/src/work.rs`).
    #[serde(default)]
    pub burst_work_max: u64,
    /// Streams that it got from other workers, by load or by hand.
    #[serde(default)]
    pub stream_moves: u64,
    /// Streams that it was to give up and got back, because a NIC had not sent what it had given that.
    #[serde(default)]
    pub stream_moves_put_off: u64,
    /// Times that it made no turn for too long while it was awake.
    #[serde(default)]
    pub stalls: u64,
    /// Whether it makes none now.
    #[serde(default)]
    pub stalled: bool,
    /// Times that it lost its core without wanting to.
    #[serde(default)]
    pub involuntary_switches: u64,
    /// Its streams.
    pub streams: Vec<StreamStatus>,
}

/// How a worker spent a time that has just passed: shares of it, which add up to 1.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct WindowStatus {
    /// How long it is, milliseconds.
    pub ms: u64,
    /// Turns that found work.
    pub busy: f64,
    /// Turns that found none.
    pub idle: f64,
    /// Asleep.
    pub sleep: f64,
}

/// A queue that a worker polls.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct StreamStatus {
    /// Name of its port.
    pub port: String,
    /// Its number.
    pub queue: u16,
    /// Its share of the worker's time, in the worker's window. Those of all streams add up to `busy`.
    pub share: f64,
    /// Why it stays with its worker: "pinned" by the configuration, "nic" queue, or guest with a "direct" queue; absent
    /// if it may go to another.
    pub fixed: Option<String>,
    /// The memory node of the guest's ring, or the NIC; absent where the kernel tells none.
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

/// An address that has moved between ports of late.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdbMover {
    /// The address.
    pub mac: String,
    /// Its VLAN; 0 for none.
    pub vlan: u16,
    /// Name of the port that it was on before its first move.
    pub home: String,
    /// Name of the port that it was last on besides.
    pub other: String,
    /// Name of the port that it is on.
    pub port: String,
    /// How often it moved; 255 stands for all above.
    pub moves: u8,
    /// How long ago it moved first, seconds.
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
