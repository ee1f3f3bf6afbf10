//! The daemon's status as plain data. The metrics, `crosspoint show` and its JSON are all made from it, so they agree.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

mod device;
mod groups;
mod ipfix;
mod mirror;
mod port;
mod queue;
mod sflow;
mod state;
mod worker;
mod xdp;

pub use device::{DeviceStatus, MemoryRegionStatus, VringStatus};
pub use groups::{ConnectionsStatus, PortConnections};
pub use ipfix::IpfixStatus;
pub use mirror::MirrorStatus;
pub use port::{
    LeaseStatus, LimitStatus, LoopProtectStatus, ObjectiveStatus, PortStatus, RateStatus,
    SloStatus, StormStatus, VlanStatus,
};
pub use queue::{LatencyStatus, QueueStatus, RemovedStatus};
pub use sflow::{SflowInterface, SflowStatus};
pub use state::ShownState;
pub use worker::{StreamStatus, WindowStatus, WorkerStatus};
pub use xdp::XdpStatus;

/// The complete status at one moment.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
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
    /// Mirrors, in the order of the configuration.
    #[serde(default)]
    pub mirrors: Vec<MirrorStatus>,
    /// The bridges, the default one first.
    #[serde(default)]
    pub bridges: Vec<BridgeStatus>,
    /// The table of connections; absent if no port has had security groups.
    #[serde(default)]
    pub connections: Option<ConnectionsStatus>,
}

/// State of the configuration's last reload.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
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

/// The daemon itself, and switch-wide settings of its configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
    /// What the daemon has given up, such as "capabilities, seccomp, landlock (ABI 7)", or "off".
    pub sandbox: String,
}

/// The daemon and the status, without the table of addresses, at one moment.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct StatusReport {
    /// The daemon, and the moment: its `uptime_ns`.
    pub daemon: DaemonStatus,
    /// The status.
    pub status: Status,
    /// Addresses that have moved between ports recently, those with most moves first.
    #[serde(default)]
    pub movers: Vec<FdbMover>,
}

/// Size of the forwarding database.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct FdbStatus {
    /// Entries in use.
    pub entries: usize,
    /// Entries there is room for.
    pub capacity: usize,
    /// Seconds after which an address that was not seen is forgotten.
    pub ageing_s: u64,
}

/// An address that has moved between ports recently.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FdbMover {
    /// The address.
    pub mac: String,
    /// Its VLAN; 0 for none.
    pub vlan: u16,
    /// Its bridge; absent for the default bridge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
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

/// A bridge.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BridgeStatus {
    /// Its name; "default" for the bridge of ports without one.
    pub name: String,
    /// Names of the ports that have its frames.
    pub ports: Vec<String>,
    /// The VLAN ID of its tag on uplinks that have other bridges too; absent for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<u16>,
    /// The type of that tag: "802.1Q" or "802.1ad".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// Addresses in its forwarding database.
    pub entries: usize,
    /// Addresses that its forwarding database has room for.
    pub capacity: usize,
}

/// One learned address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FdbEntry {
    /// The address.
    pub mac: String,
    /// Its VLAN; 0 for none.
    pub vlan: u16,
    /// Its bridge; absent for the default bridge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
    /// Name of the port that it was last seen on.
    pub port: String,
    /// Seconds since it was last seen, to within the table's tick.
    pub age_s: u64,
    /// Whether the operator has put it there: it stays.
    #[serde(default, rename = "static")]
    pub is_static: bool,
    /// Who put it there; absent for a learned address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
}

/// Who has put a static address on its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// "file": a table `[[fdb]]`.
    File,
    /// "command": `crosspoint fdb add` without --keep; the entry is in no file.
    Command,
}
