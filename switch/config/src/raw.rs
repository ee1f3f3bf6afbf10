//! The file as written: every key optional, every value with its place. The JSON schema is generated from these
//! structs, so editors show the comments on their fields.

use schemars::JsonSchema;
use serde::Deserialize;

use super::field::{Field, Table, Word, WordOrList};
use super::limits::*;
use super::{
    Balance, HugePages, LogFormat, LogLevel, LogTarget, LoopAction, Poll, Role, Rss, Tso, XdpMode,
};

const MODE_PATTERN: &str = "^0?[0-7]{3}$";
const DURATION_PATTERN: &str = "^[0-9]+(us|ms|s|m|h)$";
/// Six bytes, the first one even: not a group address.
const MAC_PATTERN: &str = "^[0-9A-Fa-f][02468ACEace](:[0-9A-Fa-f]{2}){5}$";

/// The configuration of the crosspoint switch.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Config", extend("required" = ["version"]))]
pub(super) struct RawConfig {
    /// The version of this format.
    #[schemars(extend("const" = VERSION))]
    pub version: Field<i64>,
    /// The threads that move frames.
    pub workers: Field<Table<RawWorkers>>,
    /// The switch as a whole.
    pub switch: Field<Table<RawSwitch>>,
    /// The Prometheus endpoint.
    pub metrics: Field<Table<RawMetrics>>,
    /// The socket that the command line tools talk to.
    pub control: Field<Table<RawControl>>,
    /// The log: its target, format and level.
    pub log: Field<Table<RawLog>>,
    /// A folder of files with more ports: every *.toml in it. Absolute, or relative to the folder of this file.
    #[schemars(length(min = 1, max = PATH_BYTES_MAX))]
    pub ports_dir: Field<String>,
    /// Whether changes in the folder `ports_dir` take effect automatically.
    #[schemars(extend("default" = false))]
    pub watch_ports: Field<bool>,
    /// The guests and the uplinks.
    #[schemars(length(max = PORTS_MAX))]
    pub port: Field<Vec<Field<Table<RawPort>>>>,
}

/// The threads that move frames: one, pinned, on each core.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Workers")]
pub(super) struct RawWorkers {
    /// The cores, or "auto": all on which the process may run, except the first.
    #[schemars(with = "serde_json::Value", extend("default" = "auto", "oneOf" = [
        {"const": "auto"},
        {
            "type": "array", "minItems": 1, "maxItems": WORKERS_MAX, "uniqueItems": true,
            "items": {"type": "integer", "minimum": 0, "maximum": CORE_MAX}
        }
    ]))]
    pub cores: Field<WordOrList>,
    /// What an idle worker does.
    #[schemars(extend("default" = "adaptive"))]
    pub poll: Field<Word<Poll>>,
    /// With adaptive polling: how long a worker polls without work before it sleeps; 1us to 1s.
    #[schemars(regex(pattern = DURATION_PATTERN), extend("default" = "50us"))]
    pub idle_spin: Field<String>,
    /// Whether queues move from overloaded workers to others.
    #[schemars(extend("default" = "auto"))]
    pub balance: Field<Word<Balance>>,
    /// How long loads are measured before a move is decided; 100ms to 1h.
    #[schemars(regex(pattern = DURATION_PATTERN), extend("default" = "5s"))]
    pub balance_interval: Field<String>,
}

/// The switch as a whole.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Switch")]
pub(super) struct RawSwitch {
    /// Time without a frame after which an address is forgotten; 2s to 86400s.
    #[schemars(regex(pattern = DURATION_PATTERN), extend("default" = "300s"))]
    pub fdb_ageing: Field<String>,
    /// How often an address may move between ports within `fdb_moves_window`; after that it stays on the port that it
    /// was on before, until the window ends. 0: no limit.
    #[schemars(range(min = 0, max = FDB_MOVES_MAX_MAX), extend("default" = FDB_MOVES_MAX_DEFAULT))]
    pub fdb_moves_max: Field<i64>,
    /// Time from an address's first move in which its moves are counted; 2s to 1h.
    #[schemars(regex(pattern = DURATION_PATTERN), extend("default" = "180s"))]
    pub fdb_moves_window: Field<String>,
    /// Number of addresses that the switch can learn; rounded up to 7 times a power of two.
    #[schemars(
        range(min = FDB_CAPACITY_MIN, max = FDB_CAPACITY_MAX),
        extend("default" = FDB_CAPACITY_DEFAULT)
    )]
    pub fdb_capacity: Field<i64>,
}

/// The Prometheus endpoint.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Metrics")]
pub(super) struct RawMetrics {
    /// IP address and port to listen on, or "off".
    #[schemars(extend("default" = METRICS_LISTEN_DEFAULT))]
    pub listen: Field<String>,
}

/// The socket that the command line tools talk to.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Control")]
pub(super) struct RawControl {
    /// Absolute path of the socket.
    #[schemars(regex(pattern = "^/"), length(max = SOCKET_BYTES_MAX), extend("default" = CONTROL_SOCKET_DEFAULT))]
    pub socket: Field<String>,
}

/// The log: its target, format and level. Changes take effect after a restart.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Log")]
pub(super) struct RawLog {
    /// Where lines go.
    #[schemars(extend("default" = "auto"))]
    pub target: Field<Word<LogTarget>>,
    /// The format of a line on standard error. The journal has its own fields.
    #[schemars(extend("default" = "text"))]
    pub format: Field<Word<LogFormat>>,
    /// The least serious level that is logged. CROSSPOINT_LOG in the environment overrides it.
    #[schemars(extend("default" = "info"))]
    pub level: Field<Word<LogLevel>>,
}

/// What a port is attached to.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum PortType {
    /// A guest: a vhost-user socket.
    Vhost,
    /// An uplink: a network interface, by AF_XDP.
    Xdp,
}

/// A guest or an uplink.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Port", extend(
    "required" = ["name", "type"],
    "if" = {"properties": {"type": {"const": "vhost"}}},
    "then" = {"required": ["socket"], "properties": {
        "interface": false, "queues": false, "mode": false, "gro": false, "tso": false, "busy_poll": false,
        "huge_pages": false, "channels": false, "rss": false
    }},
    "else" = {"required": ["interface"], "properties": {
        "socket": false, "role": false, "socket_mode": false, "socket_group": false, "queue_pairs": false, "mac": false,
        "offloads": false, "direct": false, "slo": false
    }}
))]
pub(super) struct RawPort {
    /// The port's name, in commands, metrics and logs.
    #[schemars(regex(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]*$"), length(max = PORT_NAME_BYTES_MAX))]
    pub name: Field<String>,
    /// What the port is attached to.
    #[serde(rename = "type")]
    pub kind: Field<Word<PortType>>,
    /// vhost: absolute path of the vhost-user socket.
    #[schemars(regex(pattern = "^/"), length(max = SOCKET_BYTES_MAX))]
    pub socket: Field<String>,
    /// vhost: which side listens on the socket.
    #[schemars(extend("default" = "server"))]
    pub role: Field<Word<Role>>,
    /// vhost: with role = "server", the socket's mode in octal, for example "0660". A front end needs write permission
    /// to connect. Without it: 0777 less the daemon's umask.
    #[schemars(regex(pattern = MODE_PATTERN))]
    pub socket_mode: Field<String>,
    /// vhost: with role = "server", the socket's group, by its name in /etc/group or its number. The daemon's user must
    /// be in it, or be root. Without it: the daemon's group, or that of a setgid folder.
    #[schemars(length(min = 1, max = GROUP_BYTES_MAX))]
    pub socket_group: Field<String>,
    /// vhost: the maximum number of queue pairs that the guest may use.
    #[schemars(range(min = 1, max = QUEUE_PAIRS_MAX), extend("default" = QUEUE_PAIRS_DEFAULT))]
    pub queue_pairs: Field<i64>,
    /// vhost: the MAC address that the switch gives the guest. Without it, the guest or its front end chooses.
    #[schemars(regex(pattern = MAC_PATTERN))]
    pub mac: Field<String>,
    /// The largest payload of a frame, bytes. vhost: announced to the guest; default: 1500. xdp: set on the interface;
    /// default: left as it is.
    #[schemars(range(min = MTU_MIN, max = MTU_MAX))]
    pub mtu: Field<i64>,
    /// vhost: which offloads the guest is offered. An offload that is not offered is not negotiated, whatever the front
    /// end allows.
    pub offloads: Field<Table<RawOffloads>>,
    /// vhost: a queue of an uplink's interface that is this guest's own.
    pub direct: Field<Table<RawDirect>>,
    /// xdp: the network interface.
    #[schemars(length(min = 1, max = INTERFACE_BYTES_MAX))]
    pub interface: Field<String>,
    /// xdp: the interface's queues that the switch takes, or "all".
    #[schemars(with = "serde_json::Value", extend("default" = "all", "oneOf" = [
        {"const": "all"},
        {
            "type": "array", "minItems": 1, "uniqueItems": true,
            "items": {"type": "integer", "minimum": 0, "maximum": XDP_QUEUE_MAX}
        }
    ]))]
    pub queues: Field<WordOrList>,
    /// xdp: how frames reach the switch.
    #[schemars(extend("default" = "auto"))]
    pub mode: Field<Word<XdpMode>>,
    /// xdp: join TCP segments received in one burst, for ports that accept large frames.
    #[schemars(extend("default" = true))]
    pub gro: Field<bool>,
    /// xdp: whether large TCP frames leave unsegmented.
    #[schemars(extend("default" = "auto"))]
    pub tso: Field<Word<Tso>>,
    /// xdp: let the switch's polling drive the NIC, instead of interrupts, where it can (SO_PREFER_BUSY_POLL).
    #[schemars(extend("default" = false))]
    pub busy_poll: Field<bool>,
    /// xdp: the kind of pages for the memory of frames.
    #[schemars(extend("default" = "transparent"))]
    pub huge_pages: Field<Word<HugePages>>,
    /// xdp: the number of queues that the interface is set to. Without it: left as it is.
    #[schemars(range(min = 1, max = XDP_CHANNELS_MAX))]
    pub channels: Field<i64>,
    /// xdp: over which queues the NIC spreads received frames.
    #[schemars(extend("default" = "keep"))]
    pub rss: Field<Word<Rss>>,
    /// The VLANs that the port carries. Without it: every VLAN, and tags pass through.
    pub vlan: Field<Table<RawVlan>>,
    /// Maximum number of addresses learned from this port; 0: no limit. Default: 1024 for vhost, 0 for xdp.
    #[schemars(range(min = 0, max = MAC_LIMIT_MAX))]
    pub mac_limit: Field<i64>,
    /// The port's share of a busy worker's time, relative to the other ports there: a port with weight 2 gets twice the
    /// time of one with weight 1.
    #[schemars(range(min = 1, max = WEIGHT_MAX), extend("default" = WEIGHT_DEFAULT))]
    pub weight: Field<i64>,
    /// Limits on the copies per second into which the port's frames may be flooded.
    pub storm: Field<Table<RawStorm>>,
    /// The only source addresses that frames from this port may have; no other port may have them then. Without it: any
    /// address that is not bound to another port.
    pub addresses: Field<Table<RawAddresses>>,
    /// Which link-local control frames (01-80-C2-00-00-00 to 0F) pass between this port and others that list them too:
    /// "stp", "lacp", "dot1x", "provider-stp", "provider-mvrp", "lldp", or an address. Default: none. Two uplinks into
    /// one network need "stp" on both, so that its spanning tree sees the loop.
    #[schemars(length(max = CONTROL_ADDRESSES_MAX), extend("uniqueItems" = true))]
    pub forward_control: Field<Vec<Field<String>>>,
    /// Sends a probe out of the port once a second, in each of its VLANs. A probe that comes back at any port shows a
    /// loop. With `{}` a loop is reported. Without it: no probes, and a loop is reported only when addresses move
    /// between two ports thousands of times a second.
    pub loop_protect: Field<Table<RawLoopProtect>>,
    /// The worker of all the port's queues, counted from 0 in the order of `cores`. Without it: the switch chooses.
    #[schemars(range(min = 0, max = WORKERS_MAX - 1))]
    pub worker: Field<i64>,
    /// Whether the switch is ready only while this port is up. Default: false for vhost, true for xdp.
    pub required: Field<bool>,
    /// vhost: objectives for how fast the guest's descriptors are completed. The result is shown, exported and alerted
    /// on.
    pub slo: Field<Table<RawSlo>>,
}

/// The VLANs that a port carries: `access`, or `trunk` with an optional `native`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Vlan", extend(
    "oneOf" = [{"required": ["access"]}, {"required": ["trunk"]}],
    "dependentRequired" = {"native": ["trunk"]}
))]
pub(super) struct RawVlan {
    /// The one VLAN of a port that sees no tags.
    #[schemars(range(min = VLAN_ID_MIN, max = VLAN_ID_MAX))]
    pub access: Field<i64>,
    /// The VLANs of a port that sees tags.
    #[schemars(
        length(min = 1), extend("uniqueItems" = true),
        inner(range(min = VLAN_ID_MIN, max = VLAN_ID_MAX))
    )]
    pub trunk: Field<Vec<Field<i64>>>,
    /// The VLAN of a trunk's untagged frames.
    #[schemars(range(min = VLAN_ID_MIN, max = VLAN_ID_MAX))]
    pub native: Field<i64>,
}

/// How long a guest's descriptors may take from being read to completion; at least one of the two.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Slo", extend("minProperties" = 1))]
pub(super) struct RawSlo {
    /// Half of them take no longer; 1us to 10s.
    #[schemars(regex(pattern = DURATION_PATTERN))]
    pub completion_p50: Field<String>,
    /// 99 of 100 take no longer; 1us to 10s.
    #[schemars(regex(pattern = DURATION_PATTERN))]
    pub completion_p99: Field<String>,
}

/// Which offloads a guest is offered.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Offloads")]
pub(super) struct RawOffloads {
    /// Whether the guest may receive large TCP and UDP frames, and frames with an unfinished checksum. Set `false` for
    /// a guest that turns such offloads off while it runs (XDP, `ethtool -K ... lro off`, forwarding): the switch
    /// cannot detect that.
    #[schemars(extend("default" = true))]
    pub receive: Field<bool>,
    /// Whether the guest may send such frames.
    #[schemars(extend("default" = true))]
    pub transmit: Field<bool>,
}

/// Limits on the copies per second into which the port's frames may be flooded; 0: no limit. One frame for ten ports
/// makes ten copies.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Storm")]
pub(super) struct RawStorm {
    /// Copies of broadcasts. Default: 100000 for vhost, 0 for xdp.
    #[schemars(range(min = 0, max = STORM_MAX))]
    pub broadcast: Field<i64>,
    /// Copies of frames for other group addresses. Default: 1000000 for vhost, 0 for xdp.
    #[schemars(range(min = 0, max = STORM_MAX))]
    pub multicast: Field<i64>,
    /// Copies of frames for addresses that are known on no port. Default: 100000 for vhost, 0 for xdp.
    #[schemars(range(min = 0, max = STORM_MAX))]
    pub unknown_unicast: Field<i64>,
}

/// The action when a probe that left through the port comes back.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "LoopProtect")]
pub(super) struct RawLoopProtect {
    /// "report": a loop is reported in the log, in metrics and by `show`. "block": in addition, the switch blocks one
    /// of the two ports, and only a port with `action = "block"`. If both have it: the guest's port rather than the
    /// uplink; of two of a kind, the one whose name is later in the alphabet.
    #[schemars(extend("default" = "report"))]
    pub action: Field<Word<LoopAction>>,
    /// Shortest time that the port is blocked; it stays blocked while probes still come back; 1s to 86400s.
    #[schemars(regex(pattern = DURATION_PATTERN), extend("default" = "60s"))]
    pub block_time: Field<String>,
}

/// The only source addresses that frames from the port may have. No other port may have them in the VLANs that this
/// port carries.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Addresses", extend("required" = ["mac"]))]
pub(super) struct RawAddresses {
    /// MAC addresses of stations. Two ports that share a VLAN must not have one in common.
    #[schemars(
        length(min = 1, max = ADDRESSES_MAX), extend("uniqueItems" = true), inner(regex(pattern = MAC_PATTERN))
    )]
    pub mac: Field<Vec<Field<String>>>,
}

/// A queue of an uplink's interface that belongs to one guest.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Direct", extend("required" = ["uplink", "queue"]))]
pub(super) struct RawDirect {
    /// The name of an xdp port of this configuration.
    pub uplink: Field<String>,
    /// The number of a queue of that port's interface, which is not among the port's `queues`.
    #[schemars(range(min = 0, max = XDP_QUEUE_MAX))]
    pub queue: Field<i64>,
}

/// The JSON schema of the configuration file, for editors: `configs/schema.json`.
pub fn schema_json() -> String {
    let schema = schemars::schema_for!(RawConfig);
    // A schema is a tree of maps with string keys, which serde_json cannot fail to print.
    let mut text = serde_json::to_string_pretty(&schema).unwrap_or_default();
    text.push('\n');
    text
}
