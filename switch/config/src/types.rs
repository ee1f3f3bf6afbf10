//! A checked configuration: plain data with all defaults filled in.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crosspoint_engine::bridge::fdb::Damping;
use crosspoint_engine::bridge::storm::StormLimits;
use crosspoint_engine::stages::control::ControlAddresses;
use crosspoint_packet::Mac;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::cores::CoreSpans;
use super::limits::*;
use crate::limits::BALANCE_INTERVAL_DEFAULT;

/// A whole configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// The threads that move frames.
    pub workers: Workers,
    /// The switch as a whole.
    pub switch: Switch,
    /// The Prometheus endpoint.
    pub metrics: Metrics,
    /// The socket that the command line tools talk to.
    pub control: Control,
    /// The log: its target, format and level.
    pub log: Log,
    /// The folder with files of more ports: absolute, or relative to the working directory.
    pub ports_dir: Option<PathBuf>,
    /// Whether changes in that folder take effect automatically. Only with `ports_dir`.
    pub watch_ports: bool,
    /// The guests and the uplinks, in the order of the main file, then of the files of `ports_dir`.
    pub ports: Vec<Port>,
    /// The places in the files of cores and ports' workers, for [`Config::resolve_cores`]; by default none.
    pub core_spans: CoreSpans,
}

impl Config {
    /// The queues of uplink `uplink`'s interface that guests own, in the order of the file.
    pub fn direct_queues(&self, uplink: &str) -> Vec<u32> {
        let of_guest = |port: &Port| match &port.kind {
            PortKind::Vhost(guest) => guest.direct.clone(),
            PortKind::Xdp(_) => None,
        };
        let all = self.ports.iter().filter_map(of_guest);
        all.filter(|direct| direct.uplink == uplink)
            .map(|direct| direct.queue)
            .collect()
    }
}

/// The threads that move frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workers {
    /// The cores that get a worker.
    pub cores: Cores,
    /// What an idle worker does.
    pub poll: Poll,
    /// With [`Poll::Adaptive`]: how long a worker polls without work before it sleeps.
    pub idle_spin: Duration,
    /// Whether streams move to other workers by load.
    pub balance: Balance,
    /// How long loads are measured before a move is decided; `show workers` shows the same window.
    pub balance_interval: Duration,
}

impl Default for Workers {
    fn default() -> Self {
        Self {
            cores: Cores::default(),
            poll: Poll::default(),
            idle_spin: IDLE_SPIN_DEFAULT,
            balance: Balance::default(),
            balance_interval: BALANCE_INTERVAL_DEFAULT,
        }
    }
}

/// The cores that get a worker; [`Config::resolve_cores`] turns them into numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Cores {
    /// All on which the process may run, except the first.
    #[default]
    Auto,
    /// These: at least one, at most [`WORKERS_MAX`], no duplicates. The machine may have fewer.
    List(Vec<usize>),
}

/// What an idle worker does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Poll {
    /// Never sleeps.
    Busy,
    /// Sleeps when idle, and wakes on a kick or a packet.
    #[default]
    Adaptive,
}

/// Whether streams move to other workers by load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Balance {
    /// Streams move from an overloaded worker to one with free time.
    #[default]
    Auto,
    /// A stream stays with its first worker.
    Off,
}

/// The switch as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Switch {
    /// Time without a frame after which an address is forgotten.
    pub fdb_ageing: Duration,
    /// How often an address may move within `fdb_moves_window`: 0 to [`FDB_MOVES_MAX_MAX`]; 0: no limit.
    pub fdb_moves_max: u8,
    /// Time from an address's first move in which its moves are counted, whole seconds.
    pub fdb_moves_window: Duration,
    /// Number of addresses that the switch can learn: [`FDB_BUCKET_ENTRIES`] times a power of two.
    pub fdb_capacity: u32,
}

impl Default for Switch {
    fn default() -> Self {
        Self {
            fdb_ageing: FDB_AGEING_DEFAULT,
            fdb_moves_max: FDB_MOVES_MAX_DEFAULT,
            fdb_moves_window: FDB_MOVES_WINDOW_DEFAULT,
            fdb_capacity: FDB_CAPACITY_DEFAULT,
        }
    }
}

impl Switch {
    /// The limit on moves of an address.
    pub fn damping(&self) -> Damping {
        Damping {
            moves_max: self.fdb_moves_max,
            // It is at most an hour.
            window_s: self.fdb_moves_window.as_secs() as u16,
        }
    }
}

/// The Prometheus endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metrics {
    /// Address to listen on; `None` for no endpoint.
    pub listen: Option<SocketAddr>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            listen: METRICS_LISTEN_DEFAULT.parse().ok(),
        }
    }
}

/// The socket that the command line tools talk to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    /// Its absolute path.
    pub socket: PathBuf,
}

impl Default for Control {
    fn default() -> Self {
        Self {
            socket: CONTROL_SOCKET_DEFAULT.into(),
        }
    }
}

/// The log: its target, format and level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Log {
    /// Where log lines go.
    pub target: LogTarget,
    /// The format of a line on standard error.
    pub format: LogFormat,
    /// The least serious level that is logged.
    pub level: LogLevel,
}

/// Where the log goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LogTarget {
    /// To the journal with fields, if standard error is the journal; else to standard error.
    #[default]
    Auto,
    /// To standard error.
    Stderr,
    /// To the journal, with fields.
    Journald,
}

/// The format of a line on standard error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// Text for people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// The least serious level that is logged. Each level includes those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LogLevel {
    /// Something does not work.
    Error,
    /// Something does not work as it should.
    Warn,
    /// Something changes.
    #[default]
    Info,
    /// Reasons and details.
    Debug,
    /// Everything.
    Trace,
}

/// An attachment point: a guest or an uplink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Unique among the ports.
    pub name: String,
    /// The VLANs that the port carries.
    pub vlan: Vlan,
    /// Maximum number of addresses learned from this port; 0: no limit.
    pub mac_limit: u32,
    /// Its share of a busy worker's time, relative to other ports' weights: 1 to [`WEIGHT_MAX`].
    pub weight: u32,
    /// Limits on the copies into which its frames may be flooded.
    pub storm: StormLimits,
    /// The only source addresses that its frames may have, without duplicates; empty for any. A port that shares a VLAN
    /// with this one has none of them.
    pub addresses: Vec<Mac>,
    /// Which link-local control frames pass between it and other ports that have them too.
    pub forward_control: ControlAddresses,
    /// Whether it sends loop probes, and the action on a loop; `None`: it sends none.
    pub loop_protect: Option<LoopProtect>,
    /// The worker of all its queues, counted from 0; `None`: the switch chooses. The configuration has that many
    /// workers.
    pub worker: Option<usize>,
    /// Whether the switch is ready only while it is up.
    pub required: bool,
    /// Objectives for the completion of a guest's descriptors; `None` for an uplink, and without objectives.
    pub slo: Option<Slo>,
    /// What it is attached to.
    pub kind: PortKind,
}

/// The action on a loop that a port's probe has gone round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoopProtect {
    /// Whether a loop is only reported, or also blocked.
    pub action: LoopAction,
    /// The shortest time that a port is blocked: [`LOOP_BLOCK_TIME_MIN`] to [`LOOP_BLOCK_TIME_MAX`].
    pub block_time: Duration,
}

/// The action on a loop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LoopAction {
    /// The loop is reported in the log, in metrics and by `show`.
    #[default]
    Report,
    /// The loop is reported, and one of the two ports is blocked.
    Block,
}

/// A service level objective: how long a guest's descriptors may take from being read to completion. At least one of
/// the two is set, and each is [`SLO_MIN`] to [`SLO_MAX`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slo {
    /// Half of them take no longer.
    pub completion_p50: Option<Duration>,
    /// 99 of 100 take no longer; not less than `completion_p50`.
    pub completion_p99: Option<Duration>,
}

/// What a port is attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortKind {
    /// A guest: a vhost-user socket.
    Vhost(VhostPort),
    /// An uplink: a network interface, by AF_XDP.
    Xdp(XdpPort),
}

/// A guest's vhost-user socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VhostPort {
    /// Its absolute path, unique among the ports.
    pub socket: PathBuf,
    /// Which side listens on it.
    pub role: Role,
    /// Who may connect if the switch listens: the socket's mode and group.
    pub access: Access,
    /// Maximum number of queue pairs that the guest may use: 1 to [`QUEUE_PAIRS_MAX`].
    pub queue_pairs: u16,
    /// The MAC address that the switch gives the guest: unicast, not zero.
    pub mac: Option<Mac>,
    /// The largest payload of a frame, bytes, that is announced to the guest: [`MTU_MIN`] to [`MTU_MAX`].
    pub mtu: u16,
    /// The offloads that the guest is offered.
    pub offloads: Offloads,
    /// The NIC queue that this guest owns; no two guests have the same.
    pub direct: Option<Direct>,
}

/// Which offloads a guest is offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offloads {
    /// Whether it may receive large frames, and frames with an unfinished checksum.
    pub receive: bool,
    /// Whether it may send such frames.
    pub transmit: bool,
}

impl Default for Offloads {
    fn default() -> Offloads {
        Offloads {
            receive: true,
            transmit: true,
        }
    }
}

/// The mode and group of a socket that the switch listens on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// The socket's mode: 0 to 0o777. `None`: what the umask leaves.
    pub mode: Option<u32>,
    /// The socket's group: a name or a number, which may not exist. `None`: the daemon's group, or that of a setgid
    /// folder.
    pub group: Option<String>,
}

/// A queue of an uplink's interface that belongs to one guest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Direct {
    /// The name of a port of this configuration, which is an [`XdpPort`].
    pub uplink: String,
    /// The number of a queue of its interface, which is not among that port's queues. The interface may have fewer.
    pub queue: u32,
}

/// Which side listens on a vhost-user socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The switch listens.
    #[default]
    Server,
    /// The switch connects, and reconnects.
    Client,
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XdpPort {
    /// Its name, unique among the ports.
    pub interface: String,
    /// The queues that the switch takes.
    pub queues: Queues,
    /// How frames reach the switch.
    pub mode: XdpMode,
    /// The MTU that the interface is set to, bytes: [`MTU_MIN`] to [`MTU_MAX`]. `None`: left as it is.
    pub mtu: Option<u16>,
    /// Whether to join TCP segments received in one burst, for guests that accept large frames.
    pub gro: bool,
    /// Which large TCP frames leave unsegmented.
    pub tso: Tso,
    /// Whether the switch's polling drives the NIC instead of interrupts, if possible.
    pub busy_poll: bool,
    /// The kind of pages for the memory of frames.
    pub huge_pages: HugePages,
    /// The number of queues that the interface is set to: 1 to [`XDP_CHANNELS_MAX`]. `None`: left as it is.
    pub channels: Option<u32>,
    /// Over which queues the NIC spreads received frames.
    pub rss: Rss,
}

/// Whether large TCP frames leave a NIC port unsegmented.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Tso {
    /// If the interface is a software interface that accepts them.
    #[default]
    Auto,
    /// Never: the switch segments them.
    Off,
}

/// The kind of pages for the memory of a NIC port's frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum HugePages {
    /// Huge pages if the kernel has some available.
    #[default]
    Transparent,
    /// Huge pages that the administrator has reserved; without them the port does not open.
    Reserved,
    /// Ordinary pages.
    Never,
}

/// Over which queues a NIC spreads received frames (its RSS indirection table).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Rss {
    /// As the interface is set.
    #[default]
    Keep,
    /// Evenly over the port's own queues only.
    Queues,
}

/// Queues of a network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Queues {
    /// All that the interface has.
    #[default]
    All,
    /// These: at least one, no duplicates. The interface may have fewer.
    List(Vec<u32>),
}

/// How frames get from a network interface to the switch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum XdpMode {
    /// The fastest that the driver offers.
    #[default]
    Auto,
    /// The NIC writes into the switch's memory; the driver must support it.
    ZeroCopy,
    /// The driver's XDP hook, and one copy.
    Copy,
    /// The kernel's generic XDP hook, after an skb was made: for drivers without XDP.
    Generic,
}

/// The VLANs that a port carries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Vlan {
    /// Every VLAN; tags pass through.
    #[default]
    Unaware,
    /// One VLAN, without tags.
    Access(u16),
    /// Several VLANs, with tags.
    Trunk {
        /// The tagged VLANs, as listed: at least one, no duplicates.
        ids: Vec<u16>,
        /// The VLAN of untagged frames, which the port carries even if it is not in `ids`.
        native: Option<u16>,
    },
}
