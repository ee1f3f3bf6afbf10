//! A configuration that has been checked: plain data, with every default filled in.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use crosspoint_engine::control::ControlAddresses;
use crosspoint_engine::fdb::Damping;
use crosspoint_engine::storm::StormLimits;
use crosspoint_packet::Mac;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::cores::CoreSpans;
use super::limits::*;
use crate::fabric::INTERVAL_DEFAULT as BALANCE_INTERVAL_DEFAULT;

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
    /// The folder of the files with more ports: absolute, or relative to the working directory.
    pub ports_dir: Option<PathBuf>,
    /// Do changes in that folder take effect by themselves? Only where there is one.
    pub watch_ports: bool,
    /// The guests and the uplinks, in the order of the main file, and then of the files of `ports_dir`.
    pub ports: Vec<Port>,
    /// Where cores and ports' workers were written, for [`Config::resolve_cores`]; the default is "nowhere".
    pub core_spans: CoreSpans,
}

impl Config {
    /// The queues of the interface of port `uplink` that guests have for themselves, in the order of the file.
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
    /// With [`Poll::Adaptive`]: how long a worker polls in vain before it sleeps.
    pub idle_spin: Duration,
    /// Whether streams move to other workers by load.
    pub balance: Balance,
    /// How long loads are measured before that is decided, and what `show workers` shows is of.
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
    /// All that the process may run on, but the first.
    #[default]
    Auto,
    /// These: at least one, no more than [`WORKERS_MAX`], none twice. The machine may have fewer.
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
    /// After how long without a frame from it an address is forgotten.
    pub fdb_ageing: Duration,
    /// How often an address may move within `fdb_moves_window`: 0 to [`FDB_MOVES_MAX_MAX`]; 0: as often as it likes.
    pub fdb_moves_max: u8,
    /// How long after an address's first move its moves are counted together, whole seconds.
    pub fdb_moves_window: Duration,
    /// Addresses that the switch can know: [`FDB_BUCKET_ENTRIES`] times a power of two.
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
    /// When an address has moved too often.
    pub fn damping(&self) -> Damping {
        Damping {
            moves_max: self.fdb_moves_max,
            // At most an hour.
            window_s: self.fdb_moves_window.as_secs() as u16,
        }
    }
}

/// The Prometheus endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metrics {
    /// Where to listen; `None`: nowhere.
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
    /// Where lines go.
    pub target: LogTarget,
    /// The format of a line on standard error.
    pub format: LogFormat,
    /// The least serious lines that are written.
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
    /// The most addresses learned from this port; 0: no limit.
    pub mac_limit: u32,
    /// Its part of a busy worker's time, beside other ports' weights: 1 to [`WEIGHT_MAX`].
    pub weight: u32,
    /// Into how many copies its frames may be flooded.
    pub storm: StormLimits,
    /// The only source addresses that its frames may have, none twice; none: any. No other port that shares a VLAN with
    /// this one has one of them.
    pub addresses: Vec<Mac>,
    /// Which link-local control frames pass from it to other ports that have them too, and from those to it.
    pub forward_control: ControlAddresses,
    /// Whether it sends probes for loops, and what is done about one; `None`: it sends none.
    pub loop_protect: Option<LoopProtect>,
    /// The worker of all its queues, counted from 0; `None`: the switch chooses. The configuration has as many.
    pub worker: Option<usize>,
    /// Whether the switch is ready only while it is up.
    pub required: bool,
    /// How fast a guest's descriptors are to be completed; `None` for an uplink, and where nothing is asked for.
    pub slo: Option<Slo>,
    /// What it is attached to.
    pub kind: PortKind,
}

/// What is done about a loop that a port's probe has gone round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoopProtect {
    /// Whether it is only told of.
    pub action: LoopAction,
    /// How long a port is blocked, at least: [`LOOP_BLOCK_TIME_MIN`] to [`LOOP_BLOCK_TIME_MAX`].
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
/// them is there, and each is [`SLO_MIN`] to [`SLO_MAX`].
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
    /// Who listens on it.
    pub role: Role,
    /// Who may connect, where the switch listens.
    pub access: Access,
    /// The most queue pairs that the guest may use: 1 to [`QUEUE_PAIRS_MAX`].
    pub queue_pairs: u16,
    /// The address that the guest is told to take: unicast, not zero.
    pub mac: Option<Mac>,
    /// The largest payload of a frame, bytes, that the guest is told to send: [`MTU_MIN`] to [`MTU_MAX`].
    pub mtu: u16,
    /// Which work on frames the guest is offered to leave to the switch, and the switch to it.
    pub offloads: Offloads,
    /// The NIC queue that is this guest's own; no two guests have the same.
    pub direct: Option<Direct>,
}

/// Which offloads a guest is offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offloads {
    /// Whether it may get large frames, and such whose checksum is not finished.
    pub receive: bool,
    /// Whether it may send such.
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

/// Who may connect to a socket that the switch listens on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// The socket's mode: 0 to 0o777. `None`: what the umask leaves.
    pub mode: Option<u32>,
    /// The socket's group: a name or a number, which need not exist. `None`: the daemon's, or that of a setgid folder.
    pub group: Option<String>,
}

/// A queue of an uplink's interface that belongs to one guest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Direct {
    /// The name of a port of this configuration, which is an [`XdpPort`].
    pub uplink: String,
    /// The number of a queue of its interface, which that port does not list. The interface may have fewer.
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
    /// Join TCP segments received in one burst, for guests that take large frames?
    pub gro: bool,
    /// Which large frames of TCP leave whole.
    pub tso: Tso,
    /// Let the switch's polling drive the NIC, instead of interrupts, where it can?
    pub busy_poll: bool,
    /// What pages the memory for frames is in.
    pub huge_pages: HugePages,
    /// The number of queues that the interface is set to: 1 to [`XDP_CHANNELS_MAX`]. `None`: left as it is.
    pub channels: Option<u32>,
    /// Over which queues the NIC spreads what it receives.
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
    /// These: at least one, none twice. The interface may have fewer.
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
        /// The tagged VLANs, as listed: at least one, none twice.
        ids: Vec<u16>,
        /// The VLAN of untagged frames, which the port carries whether it is in `ids` or not.
        native: Option<u16>,
    },
}
