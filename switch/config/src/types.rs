//! A checked configuration: plain data with all defaults filled in. `table.rs` makes the structs with keys; here are
//! the types of their fields.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use crosspoint_engine::bridge::fdb::Damping;
use crosspoint_packet::IpNet;

use super::cores::CoreSpans;
use super::rules::NumberListValue;
use super::table::{
    Bridge, Connections, Control, Group, Ipfix, Log, Metrics, Mirror, Multicast, Port, Sandbox,
    Set, Sflow, StaticEntry, Switch, VhostPort, Workers, XdpPort,
};
use super::words::words;

/// A whole configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// The threads that move frames.
    pub workers: Workers,
    /// The switch as a whole.
    pub switch: Switch,
    /// The Prometheus endpoint.
    pub metrics: Metrics,
    /// Samples of frames and counters for an sFlow collector.
    pub sflow: Sflow,
    /// Records of connections for a collector of IPFIX.
    pub ipfix: Ipfix,
    /// The socket that the command line tools talk to.
    pub control: Control,
    /// The log: its target, format and level.
    pub log: Log,
    /// What the daemon gives up.
    pub sandbox: Sandbox,
    /// The folder with files of more ports: absolute, or relative to the working directory.
    pub ports_dir: Option<PathBuf>,
    /// Whether changes in that folder take effect automatically. Only with `ports_dir`.
    pub watch_ports: bool,
    /// The guests and the uplinks, in the order of the main file, then of the files of `ports_dir`.
    pub ports: Vec<Port>,
    /// Bridges, besides the default one.
    pub bridges: Vec<Bridge>,
    /// The addresses that stay on their ports, in the order of the files.
    pub fdb: Vec<StaticEntry>,
    /// Mirrors.
    pub mirrors: Vec<Mirror>,
    /// Multicast to the ports that have asked for it.
    pub multicast: Multicast,
    /// The table of connections that security groups track.
    pub connections: Connections,
    /// Security groups.
    pub groups: Vec<Group>,
    /// Sets of addresses, for rules of groups.
    pub sets: Vec<Set>,
    /// The addresses of the sets that have a `file`, sorted, by the set's name.
    pub set_files: BTreeMap<String, Arc<[IpNet]>>,
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

/// The cores that get a worker; [`Config::resolve_cores`] turns them into numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Cores {
    /// All on which the process may run, except the first.
    #[default]
    Auto,
    /// These: at least one, at most [`WORKERS_MAX`](super::limits::WORKERS_MAX), no duplicates. The machine may have fewer.
    List(Vec<usize>),
}

impl NumberListValue for Cores {
    type Item = usize;

    fn from_list(list: Vec<usize>) -> Self {
        Self::List(list)
    }

    fn list(&self) -> Option<&[usize]> {
        match self {
            Self::Auto => None,
            Self::List(list) => Some(list),
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

impl PortType {
    /// The other type.
    pub(super) fn other(self) -> Self {
        match self {
            Self::Vhost => Self::Xdp,
            Self::Xdp => Self::Vhost,
        }
    }
}

/// What a port is attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortKind {
    /// A guest: a vhost-user socket.
    Vhost(VhostPort),
    /// An uplink: a network interface, by AF_XDP.
    Xdp(XdpPort),
}

impl PortKind {
    /// The value of `type`.
    pub(super) fn port_type(&self) -> PortType {
        match self {
            Self::Vhost(_) => PortType::Vhost,
            Self::Xdp(_) => PortType::Xdp,
        }
    }
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

impl NumberListValue for Queues {
    type Item = u32;

    fn from_list(list: Vec<u32>) -> Self {
        Self::List(list)
    }

    fn list(&self) -> Option<&[u32]> {
        match self {
            Self::All => None,
            Self::List(list) => Some(list),
        }
    }
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

words! {
    /// What an idle worker does.
    pub enum Poll, or Adaptive {
        /// Never sleeps.
        Busy = "busy",
        /// Sleeps when idle, and wakes on a kick or a packet.
        Adaptive = "adaptive",
    }

    /// Whether the operator lets a port take part.
    pub enum Admin, or Up {
        /// Frames flow as soon as a guest or an interface is there.
        Up = "up",
        /// No frame is taken from the port or sent to it.
        Down = "down",
    }

    /// Which frames of its ports a mirror copies.
    pub enum MirrorDirection, or Both {
        /// Those from them and those for them.
        Both = "both",
        /// Those from them.
        Received = "received",
        /// Those for them.
        Sent = "sent",
    }

    /// The direction of a security group's rule, as seen from the guest.
    pub enum RuleDirection, or In {
        /// What is sent to the guest.
        In = "in",
        /// What the guest sends.
        Out = "out",
    }

    /// The type of the tag that a bridge has on an uplink.
    pub enum TagProtocol, or Vlan {
        /// The type of VLANs: 0x8100.
        Vlan = "802.1Q",
        /// The type of providers' tags, with VLANs behind them ("QinQ"): 0x88a8.
        Service = "802.1ad",
    }

    /// What becomes of a multicast group that no port has joined.
    pub enum UnknownMulticast, or Flood {
        /// It goes to all ports of its VLAN.
        Flood = "flood",
        /// It is dropped.
        Drop = "drop",
    }

    /// What becomes of frames from addresses beyond a port's `mac_limit`.
    pub enum MacLimitAction, or Flood {
        /// They pass; frames for such an address are flooded, since it is not learned.
        Flood = "flood",
        /// They are dropped as `mac_limit`.
        Drop = "drop",
        /// They are dropped, and three within a second quarantine the guest, until it resets its device or its front end
        /// reconnects.
        Quarantine = "quarantine",
    }

    /// What becomes of connections that the rules no longer allow.
    pub enum OnChange, or Revalidate {
        /// Their next frame is checked against the new rules, and dropped if these do not allow it.
        Revalidate = "revalidate",
        /// They go on until they end.
        Keep = "keep",
    }

    /// Whether streams move to other workers by load.
    pub enum Balance, or Auto {
        /// Streams move from an overloaded worker to one with free time.
        Auto = "auto",
        /// A stream stays with its first worker.
        Off = "off",
    }

    /// Where the log goes.
    pub enum LogTarget, or Auto {
        /// To the journal with fields, if standard error is the journal; else to standard error.
        Auto = "auto",
        /// To standard error.
        Stderr = "stderr",
        /// To the journal, with fields.
        Journald = "journald",
    }

    /// The format of a line on standard error.
    pub enum LogFormat, or Text {
        /// Text for people.
        Text = "text",
        /// One JSON object per line.
        Json = "json",
    }

    /// The least serious level that is logged. Each level includes those before it.
    pub enum LogLevel, or Info {
        /// Something does not work.
        Error = "error",
        /// Something does not work as it should.
        Warn = "warn",
        /// Something changes.
        Info = "info",
        /// Reasons and details.
        Debug = "debug",
        /// Everything.
        Trace = "trace",
    }

    /// The action on a loop.
    pub enum LoopAction, or Report {
        /// The loop is reported in the log, in metrics and by `show`.
        Report = "report",
        /// The loop is reported, and one of the two ports is blocked.
        Block = "block",
    }

    /// What a port is attached to.
    pub(super) enum PortType, or Vhost {
        /// A guest: a vhost-user socket.
        Vhost = "vhost",
        /// An uplink: a network interface, by AF_XDP.
        Xdp = "xdp",
    }

    /// Which side listens on a vhost-user socket.
    pub enum Role, or Server {
        /// The switch listens.
        Server = "server",
        /// The switch connects, and reconnects.
        Client = "client",
    }

    /// Whether large TCP frames leave a NIC port unsegmented.
    pub enum Tso, or Auto {
        /// If the interface is a software interface that accepts them.
        Auto = "auto",
        /// Never: the switch segments them.
        Off = "off",
    }

    /// The kind of pages for the memory of a NIC port's frames.
    pub enum HugePages, or Transparent {
        /// Huge pages if the kernel has some available.
        Transparent = "transparent",
        /// Huge pages that the administrator has reserved; without them the port does not open.
        Reserved = "reserved",
        /// Ordinary pages.
        Never = "never",
    }

    /// Over which queues a NIC spreads received frames (its RSS indirection table).
    pub enum Rss, or Keep {
        /// As the interface is set.
        Keep = "keep",
        /// Evenly over the port's own queues only.
        Queues = "queues",
    }

    /// How frames get from a network interface to the switch.
    pub enum XdpMode, or Auto {
        /// The fastest that the driver offers.
        Auto = "auto",
        /// The NIC writes into the switch's memory; the driver must support it.
        ZeroCopy = "zero-copy",
        /// The driver's XDP hook, and one copy.
        Copy = "copy",
        /// The kernel's generic XDP hook, after an skb was made: for drivers without XDP.
        Generic = "generic",
    }
}
