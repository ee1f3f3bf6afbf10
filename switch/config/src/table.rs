//! Every key of the configuration: its name, type, range, default, and how a change takes effect. A struct has a field
//! for each key; from the same lines come the keys' reading and writing, the JSON schema, the references and the plan.
//!
//! The comments are what the references and the schema say of the keys.

mod flows;
mod security_groups;

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use crosspoint_engine::bridge::storm::StormLimits;
use crosspoint_engine::groups::TcpFlags;
use crosspoint_engine::stages::control::ControlAddresses;
use crosspoint_engine::stages::meter::{RateLimit, RateLimits};
use crosspoint_packet::{IpNet, Mac};
use serde_json::json;

use super::addresses::{self, Addresses};
use super::bridges::{self, BridgeTag};
use super::control::ControlList;
use super::group_link;
use super::group_rules::{self, GroupRule};
use super::group_values::{IpVersion, OnePort, Peer, PeerRule, PortRanges, Protocol};
use super::groups;
use super::key::{Rule as _, Slot as _, keys};
use super::limits::*;
use super::lists::tables;
use super::mirrors;
use super::ports::{KindKeys, PortList};
use super::quantity::Quantity;
use super::rules::{Numbers, amount, flag, flat, section, table, time, whole, word};
use super::sandbox::{self, KeptCapability};
use super::sets;
use super::texts;
use super::types::*;
use super::vlan::VlanList;

pub use flows::Ipfix;
pub use security_groups::{Group, Set};
pub(super) use security_groups::{PeerKeys, RuleKeys};

keys! {
    /// The configuration of the crosspoint switch.
    pub(super) struct Top = "Config" {
        /// The version of this format.
        version: i64 = super::sections::Version.required(""), Never;
        /// The threads that move frames.
        workers: Workers = section::<Workers>(), Whole;
        /// The switch as a whole.
        switch: Switch = section::<Switch>(), Whole;
        /// The Prometheus endpoint.
        metrics: Metrics = section::<Metrics>(), Whole;
        /// Samples of frames and counters for an sFlow collector.
        sflow: Sflow = section::<Sflow>(), Whole;
        /// Records of connections for a collector of IPFIX.
        ipfix: Ipfix = section::<Ipfix>(), Whole;
        /// Multicast to the ports that have asked for it (IGMP and MLD snooping), in all bridges.
        multicast: Multicast = section::<Multicast>(), Whole;
        /// The table of connections that security groups track, and after which time without a frame a connection is
        /// forgotten: "1s" to "168h".
        connections: Connections = section::<Connections>(), Whole;
        /// The socket that the command line tools talk to.
        control: Control = section::<Control>(), Whole;
        /// The log: its target, format and level.
        log: Log = section::<Log>(), Whole;
        /// What the daemon gives up once it has read its configuration: capabilities, system calls, files.
        sandbox: Sandbox = section::<Sandbox>(), Whole;
        /// A folder of files with more ports: every *.toml in it. Absolute, or relative to the folder of this file.
        ports_dir: Option<PathBuf> = texts::folder().optional(), AtOnce;
        /// Whether changes in the folder `ports_dir` take effect automatically.
        watch_ports: bool = flag().or(false), AtOnce;
        /// The guests and the uplinks.
        port: () = PortList, Whole;
        /// Bridges, besides the one that ports without `bridge` are in. No frame passes from one bridge to another, and they may
        /// have the same addresses and VLANs.
        bridge: () = tables::<Bridge>(), AtOnce;
        /// Addresses that stay on their ports. Such an address does not age out, is not learned on another port, and frames
        /// from it on another port are dropped (`source_not_allowed`). The port may come later.
        fdb: () = tables::<StaticEntry>(), AtOnce;
        /// Copies of passing frames, for a guest that inspects them.
        mirror: () = tables::<Mirror>(), AtOnce;
        /// Security groups: what guests with them may send and receive.
        group: () = tables::<Group>(), AtOnce;
        /// Sets of addresses, for rules of groups.
        set: () = tables::<Set>(), AtOnce;
    }
}

keys! {
    /// The threads that move frames: one, pinned, on each core.
    pub struct Workers = "Workers", in "workers." {
        /// The cores, or "auto": all on which the process may run, except the first.
        cores: Cores = Numbers {
            word: "auto",
            items: "core number",
            range: 0..=usize::from(CORE_MAX),
            items_max: WORKERS_MAX,
            example: "cores = [2, 3]",
        }.or(Cores::Auto), Restart;
        /// What an idle worker does.
        poll: Poll = word().or(Poll::Adaptive), Restart;
        /// With adaptive polling: how long a worker polls without work before it sleeps; 1us to 1s.
        // For more than a second, there is `poll = "busy"`.
        idle_spin: Duration = time("1us", "1s", "50us").or_example(), Restart;
        /// Whether queues move from overloaded workers to others.
        balance: Balance = word().or(Balance::Auto), AtOnce;
        /// How long loads are measured before a move is decided; 100ms to 1h.
        // Shorter measurements are too imprecise.
        balance_interval: Duration = time("100ms", "1h", "5s").or_example(), AtOnce;
    }
}

keys! {
    /// The switch as a whole.
    pub struct Switch = "Switch", in "switch." {
        /// Time without a frame after which an address is forgotten; 2s to 86400s.
        // The default is what IEEE 802.1Q recommends. An entry is refreshed at most once per second.
        fdb_ageing: Duration = time("2s", "86400s", "300s").or_example(), AtOnce;
        /// How often an address may move between ports within `fdb_moves_window`; after that it stays on the port that it
        /// was on before, until the window ends. 0: no limit.
        // The defaults of this and the next are those of RFC 7432 (15.1) for EVPN.
        fdb_moves_max: u8 = whole(0..=FDB_MOVES_MAX_MAX, "fdb_moves_max = 5, or 0 for any number").or(5), AtOnce;
        /// Time from an address's first move in which its moves are counted; 2s to 1h.
        // Moves are timed in seconds, in 16 bits.
        fdb_moves_window: Duration = time("2s", "1h", "180s").or_example(), AtOnce;
        /// Number of addresses that the switch can learn; rounded up to 7 times a power of two.
        fdb_capacity: u32 = whole(FDB_CAPACITY_MIN..=FDB_CAPACITY_MAX, "fdb_capacity = 28672").or(FDB_CAPACITY_MIN), Restart;
        /// Whether ARP requests and neighbour solicitations for an address in a port's `addresses.ip` go to that port alone,
        /// and not to all ports of the VLAN. The guest behind the port answers, not the switch.
        suppress_neighbors: bool = flag().or(true), AtOnce;
        /// Whether the switch notes which addresses guests lease by DHCP and DHCPv6, and `suppress_neighbors` sends requests for
        /// these to the guest's port alone. For guests with `addresses`.
        dhcp_snooping: bool = flag().or(false), AtOnce;
    }
}

keys! {
    /// The Prometheus endpoint.
    pub struct Metrics = "Metrics", in "metrics." {
        /// IP address and port to listen on, or "off".
        listen: Option<SocketAddr> = texts::listen().or(METRICS_LISTEN_DEFAULT.parse().ok()), AtOnce;
        /// Serve with TLS 1.3, and not without. Without it: plain HTTP. The files are read at the start and at each reload.
        tls: Option<MetricsTls> = table().optional(), AtOnce;
        /// A file with a token, which each request for `/metrics` must carry: `Authorization: Bearer TOKEN`. Absolute, or
        /// relative to the folder of this file. It is read at the start and at each reload. Without it: none.
        token_file: Option<PathBuf> = texts::token_file().optional(), AtOnce;
    }
}

keys! {
    /// The files with which the Prometheus endpoint serves TLS, in PEM. Absolute, or relative to the folder of this file.
    pub struct MetricsTls = "MetricsTls" {
        /// The endpoint's certificate, then those that lead from it to an authority that clients trust.
        certificate: PathBuf = texts::pem_file("certificate = \"metrics.crt\"").required("certificate = \"metrics.crt\""), Whole;
        /// The certificate's private key.
        key: PathBuf = texts::pem_file("key = \"metrics.key\"").required("key = \"metrics.key\""), Whole;
        /// The authorities whose certificates clients must have, all clients, those of `/healthz` too. Without it: a client
        /// needs none.
        client_ca: Option<PathBuf> = texts::pem_file("client_ca = \"clients.crt\"").optional(), Whole;
    }
}

keys! {
    /// Samples of frames and counters for an sFlow collector (version 5). Without `collector`: none.
    pub struct Sflow = "Sflow", in "sflow." {
        /// The collector's IP address, and its UDP port if that is not 6343.
        collector: Option<SocketAddr> = texts::collector().optional(), AtOnce;
        /// How many received frames there are for each sampled one, on average.
        sampling: u32 = whole(1..=SFLOW_SAMPLING_MAX, "sampling = 4096, for one of 4096 frames").or(4096), AtOnce;
        /// How many bytes of a sampled frame are sent, at most.
        header_len: u16 = whole(SFLOW_HEADER_LEN_MIN..=SFLOW_HEADER_LEN_MAX, "header_len = 128").or(128), AtOnce;
        /// How often each port's counters are sent, from "1s" to "1h", or "off".
        polling: Option<Duration> = texts::polling().or(Some(SFLOW_POLLING_DEFAULT)), AtOnce;
        /// The IP address by which the collector knows this switch. Without it: the source address of the datagrams.
        agent: Option<IpAddr> = texts::agent().optional(), AtOnce;
        /// The ports whose frames are sampled and whose counters are sent, by names and patterns: `*` is any text, `?` any
        /// character.
        ports: Vec<String> = mirrors::patterns().or(vec!["*".to_owned()]), AtOnce;
    }
}

keys! {
    /// Multicast to the ports that have asked for it (IGMP and MLD snooping), in all bridges.
    pub struct Multicast derive(Copy) = "Multicast", in "multicast." {
        /// Whether multicast goes only to ports that have joined its group, and to multicast routers, in each VLAN with a
        /// querier: a multicast router, another switch, or this one with `querier`. Elsewhere, and for groups of the link's scope,
        /// it is flooded.
        snooping: bool = flag().or(false), AtOnce;
        /// What becomes of a group that no port has joined: multicast routers always get it.
        unknown: UnknownMulticast = word().or(UnknownMulticast::Flood), AtOnce;
        /// Whether a port leaves a group at once when a station there leaves it: where each port has one station. Otherwise it
        /// leaves 2.5 s later, if no other station reports the group.
        fast_leave: bool = flag().or(false), AtOnce;
        /// Whether the switch sends multicast queries (IGMP, MLD) in VLANs without another querier; needs `snooping`. Uplinks then
        /// get all multicast of these VLANs.
        querier: bool = flag().or(false), AtOnce;
        /// How many groups one port may join.
        groups_max: u32 = whole(1..=MULTICAST_GROUPS_MAX, "groups_max = 256").or(256), AtOnce;
    }
}

keys! {
    /// The table of connections that security groups track, and when a connection without frames is forgotten; "1s" to "168h".
    pub struct Connections derive(Copy) = "Connections", in "connections." {
        /// Maximum number of connections of the switch.
        max: u32 = whole(CONNECTIONS_MIN..=CONNECTIONS_MAX, "max = 262144").or(CONNECTIONS_DEFAULT), Restart;
        /// What becomes of connections that the rules no longer allow.
        on_change: OnChange = word().or(OnChange::Revalidate), AtOnce;
        /// A TCP connection that is established.
        tcp_established: Duration = time("1s", "168h", "24h").or_example(), AtOnce;
        /// A TCP connection that is being opened. One that is being closed stays for 120 s, a closed one for 10 s.
        tcp_half_open: Duration = time("1s", "168h", "30s").or_example(), AtOnce;
        /// UDP until its originator has sent again after an answer.
        udp: Duration = time("1s", "168h", "30s").or_example(), AtOnce;
        /// UDP after that.
        udp_stream: Duration = time("1s", "168h", "180s").or_example(), AtOnce;
        /// Any other protocol, and TCP whose beginning was not seen, until the other side sends.
        other: Duration = time("1s", "168h", "60s").or_example(), AtOnce;
    }
}

keys! {
    /// The socket that the command line tools talk to.
    pub struct Control = "Control", in "control." {
        /// Absolute path of the socket.
        socket: PathBuf = texts::socket().or(CONTROL_SOCKET_DEFAULT.into()), Restart;
    }
}

keys! {
    /// The log: its target, format and level. Changes take effect after a restart.
    pub struct Log derive(Copy) = "Log", in "log." {
        /// Where lines go.
        target: LogTarget = word().or(LogTarget::Auto), Restart;
        /// The format of a line on standard error. The journal has its own fields.
        format: LogFormat = word().or(LogFormat::Text), Restart;
        /// The least serious level that is logged. CROSSPOINT_LOG in the environment overrides it.
        level: LogLevel = word().or(LogLevel::Info), Restart;
    }
}

keys! {
    /// What the daemon gives up once it has read its configuration: capabilities, system calls, files. Changes take effect
    /// after a restart.
    pub struct Sandbox = "Sandbox", in "sandbox." {
        /// Whether all capabilities but CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF and CAP_IPC_LOCK are given up. Workers keep none.
        capabilities: bool = flag().or(true), Restart;
        /// Capabilities that are kept besides, if the daemon is started with them: "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER".
        keep_capabilities: Vec<KeptCapability> = sandbox::kept().or(Vec::new()), Restart;
        /// Whether threads may make only the system calls on their list (seccomp). Others fail, and are logged and counted.
        seccomp: bool = flag().or(true), Restart;
        /// Whether the daemon may open only files below the folders that it needs (Landlock), as far as the kernel can.
        landlock: bool = flag().or(true), Restart;
        /// Further folders that the daemon may read and write, for sockets and files that a reload names later. Absolute.
        paths: Vec<PathBuf> = sandbox::paths().or(Vec::new()), Restart;
    }
}

keys! {
    /// A guest or an uplink.
    pub struct Port = "Port" {
        /// The port's name, in commands, metrics and logs.
        name: String = texts::port_name().required("name = \"web-1\""), Never;
        /// What the port is attached to.
        kind: PortKind = KindKeys, Reopens;
        /// The port's bridge: "default", or the name of a `[[bridge]]`.
        bridge: String = texts::bridge_name().or_else(DEFAULT_BRIDGE.to_owned()), InPlace;
        /// The VLANs of its bridge that the port carries. Without it: every VLAN, and tags pass through; with `bridges`,
        /// untagged frames only.
        vlan: Vlan = table().or_else(Vlan::Unaware), InPlace;
        /// Maximum number of addresses learned from this port; 0: no limit. Default: 1024 for vhost, 0 for xdp.
        // One guest must not be able to fill the FDB; behind an uplink is the network.
        mac_limit: u32 = whole(0..=MAC_LIMIT_MAX, "mac_limit = 1024, or 0 for no limit").by_kind(1024, 0), InPlace;
        /// What becomes of frames from addresses beyond `mac_limit`; "quarantine" for guests only.
        mac_limit_action: MacLimitAction = word().or(MacLimitAction::Flood), InPlace;
        /// The port's share of a busy worker's time and of a full uplink, relative to the other ports there: a port with
        /// weight 2 gets twice the time of one with weight 1.
        weight: u32 = whole(1..=WEIGHT_MAX, "weight = 2, for twice the time of a port with 1").or(1), InPlace;
        /// Limits on the copies per second into which the port's frames may be flooded.
        storm: StormLimits = table().by_kind(
            StormLimits::defaults(PortType::Vhost),
            StormLimits::defaults(PortType::Xdp),
        ), InPlace;
        /// Limits of what the guest sends and of what is sent to the port. Without it: none.
        limit: RateLimits = table().or_else(RateLimits::default()), InPlace;
        /// The only addresses that frames from this port may claim; no other port may have them then. Without it: any address
        /// that is not bound to another port.
        addresses: Addresses = table().or_else(Addresses::default()), InPlace;
        /// Whether the port may send what DHCP servers and IPv6 routers send: DHCP replies, router advertisements. Default:
        /// false for vhost, true for xdp.
        dhcp_server: bool = flag().by_kind(false, true), InPlace;
        /// Whether frames from the port reach uplinks only: no other guest, not even by a flood.
        isolated: bool = flag().or(false), InPlace;
        /// Which link-local control frames (01-80-C2-00-00-00 to 0F) pass between this port and others that list them too:
        /// "stp", "lacp", "dot1x", "provider-stp", "provider-mvrp", "lldp", or an address. Default: none. Two uplinks into
        /// one network need "stp" on both, so that its spanning tree sees the loop.
        forward_control: ControlAddresses = ControlList.or_else(ControlAddresses::NONE), InPlace;
        /// Sends a probe out of the port once a second, in each of its VLANs. A probe that comes back at any port shows a
        /// loop. With `{}` a loop is reported. Without it: no probes, and a loop is reported only when addresses move
        /// between two ports thousands of times a second.
        loop_protect: Option<LoopProtect> = table().optional(), InPlace;
        /// The worker of all the port's queues, counted from 0 in the order of `cores`. Without it: the switch chooses.
        worker: Option<usize> =
            whole(0..=WORKERS_MAX - 1, "worker = 0, for the worker of the first core").optional(), InPlace;
        /// "down": the operator has disabled the port. No frame is taken from it, and none is sent to it; what is attached
        /// stays attached.
        admin: Admin = word().or(Admin::Up), InPlace;
        /// Whether the switch is ready only while this port is up. Default: false for vhost, true for xdp.
        required: bool = flag().by_kind(false, true), InPlace;
        /// vhost: objectives for how fast the guest's descriptors are completed. The result is shown, exported and alerted
        /// on.
        slo: Option<Slo> = table().optional().only(PortType::Vhost), InPlace;
    }
}

keys! {
    /// An address that stays on its port.
    pub struct StaticEntry = "StaticEntry" {
        /// The address of a station.
        mac: Mac = texts::mac().required("mac = \"52:54:00:12:34:56\""), Whole;
        /// The address's VLAN; 0: none. Without it: that of the port's untagged frames.
        vlan: Option<u16> = whole(0..=VLAN_ID_MAX, "vlan = 100").optional(), Whole;
        /// The bridge, if it is not the port's own: of an uplink with that bridge in `bridges`.
        bridge: Option<String> = texts::bridge_name().optional(), Whole;
        /// The port's name.
        port: String = texts::port_name().required("port = \"web-1\""), Whole;
    }
}

keys! {
    /// A bridge: ports that see each other's frames, and no others.
    pub struct Bridge = "Bridge" {
        /// The bridge's name; not "default", which ports without `bridge` are in.
        name: String = texts::bridge_name().required("name = \"tenant-a\""), Whole;
        /// Number of addresses that the bridge can learn; rounded up to 7 times a power of two. After a change all are learned
        /// anew.
        fdb_capacity: u32 = whole(FDB_CAPACITY_MIN..=FDB_CAPACITY_MAX, "fdb_capacity = 28672").or(FDB_CAPACITY_MIN), Whole;
    }
}

keys! {
    /// A bridge whose frames an uplink has behind a tag. What follows the tag is the frame as the bridge has it, with a tag of
    /// its own or without.
    pub(super) struct BridgeTagKeys = "BridgeTag" {
        /// The tag's VLAN ID; the same on all uplinks with this bridge.
        vlan: u16 = whole(VLAN_ID_MIN..=VLAN_ID_MAX, "vlan = 100").required("vlan = 100"), Whole;
        /// The bridge.
        bridge: String = texts::bridge_name().required("bridge = \"tenant-a\""), Whole;
        /// The tag's type.
        protocol: TagProtocol = word().or(TagProtocol::Vlan), Whole;
    }
}

keys! {
    /// A mirror: copies of the frames of some ports, for another port. A frame that several choices meet is copied once; a
    /// dropped frame is not copied. At most 4.
    pub struct Mirror = "Mirror" {
        /// The mirror's name, in commands and metrics.
        name: String = texts::port_name().required("name = \"ids\""), Whole;
        /// The ports whose frames are copied: names, and patterns such as "web-*".
        ports: Vec<String> = mirrors::patterns().or(vec!["*".to_owned()]), Whole;
        /// Which of their frames are copied.
        direction: MirrorDirection = word().or(MirrorDirection::Both), Whole;
        /// Only frames of these VLANs: numbers, and ranges such as "100-199". Without it: all.
        vlans: Option<Vec<u16>> = VlanList.optional(), Whole;
        /// Only frames that this filter accepts, in the language of `crosspoint capture`. Without it: all.
        filter: Option<String> = mirrors::filter().optional(), Whole;
        /// The port that gets the copies. Without `to_vlan` it gets nothing else, and what it sends is dropped.
        to: String = texts::port_name().required("to = \"ids-guest\""), Whole;
        /// The VLAN in which the copies leave through that port, which then has its other traffic too: a remote mirror, whose
        /// VLAN must have no other use. Without it, a copy has the tag of its frame's VLAN.
        to_vlan: Option<u16> = whole(VLAN_ID_MIN..=VLAN_ID_MAX, "to_vlan = 999").optional(), Whole;
    }
}

keys! {
    /// A guest's vhost-user socket.
    pub struct VhostPort = "VhostPort" {
        /// vhost: absolute path of the vhost-user socket.
        socket: PathBuf = texts::socket().required("socket = \"/run/crosspoint/guests/web-1.sock\""), Reopens;
        /// vhost: which side listens on the socket.
        role: Role = word().or(Role::Server), Reopens;
        /// The socket's mode and group, if the switch listens.
        access: Access = flat(), Reopens;
        /// vhost: the maximum number of queue pairs that the guest may use.
        queue_pairs: u16 = whole(1..=QUEUE_PAIRS_MAX, "queue_pairs = 2").or(1), Reopens;
        /// vhost: the MAC address that the switch gives the guest. Without it, the guest or its front end chooses.
        mac: Option<Mac> = texts::mac().optional(), Reopens;
        /// The largest payload of a frame, bytes. vhost: announced to the guest; default: 1500. xdp: set on the interface;
        /// default: left as it is.
        mtu: u16 = whole(MTU_MIN..=MTU_MAX, "mtu = 1500").or_else(1500), Reopens;
        /// vhost: which offloads the guest is offered. An offload that is not offered is not negotiated, whatever the front
        /// end allows.
        offloads: Offloads = table().or_else(Offloads::default()), Reopens;
        /// vhost: a queue of an uplink's interface that is this guest's own.
        direct: Option<Direct> = table().optional(), Reopens;
        /// vhost: the guest's security groups: what any of them allows may pass. Without it: everything may.
        groups: Vec<String> = groups::names().or_else(Vec::new()), InPlace;
        /// vhost: maximum number of connections that are tracked for the guest.
        connections_max: u32 =
            whole(1..=PORT_CONNECTIONS_MAX, "connections_max = 65536").or(PORT_CONNECTIONS_DEFAULT), InPlace;
        /// vhost: maximum number of connections that may begin in a second, in each direction; 0: no limit.
        connections_rate: u32 =
            whole(0..=PORT_CONNECTIONS_RATE_MAX, "connections_rate = 1000, or 0 for no limit").or(0), InPlace;
        /// vhost: whether connections travel with a guest that migrates. Both hosts need it. Without it: if the port has groups.
        migrate_connections: Option<bool> = flag().optional(), Reopens;
    }
}

keys! {
    /// The mode and group of a socket that the switch listens on.
    pub struct Access = "Access" {
        /// vhost: with role = "server", the socket's mode in octal, for example "0660". A front end needs write permission
        /// to connect. Without it: 0777 less the daemon's umask.
        mode as "socket_mode": Option<u32> = texts::mode().optional(), Reopens;
        /// vhost: with role = "server", the socket's group, by its name in /etc/group or its number. The daemon's user must
        /// be in it, or be root. Without it: the daemon's group, or that of a setgid folder.
        group as "socket_group": Option<String> = texts::group().optional(), Reopens;
    }
}

keys! {
    /// A network interface.
    pub struct XdpPort = "XdpPort" {
        /// xdp: the network interface.
        interface: String = texts::interface().required("interface = \"enp1s0f0\""), Reopens;
        /// xdp: take the interface even if the host loses its network with it: a loopback interface, or that of the default
        /// route.
        take_over: bool = flag().or(false), Reopens;
        /// xdp: the interface's queues that the switch takes, or "all".
        queues: Queues = Numbers {
            word: "all",
            items: "queue number",
            range: 0..=u32::from(XDP_QUEUE_MAX),
            items_max: usize::from(XDP_QUEUE_MAX) + 1,
            example: "queues = [0, 1]",
        }.or(Queues::All), Reopens;
        /// xdp: other bridges whose frames pass through the uplink, each behind a tag of its own.
        bridges: Vec<BridgeTag> = bridges::tags().or_else(Vec::new()), InPlace;
        /// xdp: how frames reach the switch.
        mode: XdpMode = word().or(XdpMode::Auto), Reopens;
        /// The MTU that the interface is set to, bytes. `None`: left as it is.
        mtu: Option<u16> = whole(MTU_MIN..=MTU_MAX, "mtu = 1500").optional(), Reopens;
        /// xdp: join TCP segments received in one burst, for ports that accept large frames.
        gro: bool = flag().or(true), Reopens;
        /// xdp: whether large TCP frames leave unsegmented.
        tso: Tso = word().or(Tso::Auto), Reopens;
        /// xdp: let the switch's polling drive the NIC, instead of interrupts, where it can (SO_PREFER_BUSY_POLL).
        busy_poll: bool = flag().or(false), Reopens;
        /// xdp: the kind of pages for the memory of frames.
        huge_pages: HugePages = word().or(HugePages::Transparent), Reopens;
        /// xdp: the number of queues that the interface is set to. Without it: left as it is.
        channels: Option<u32> = whole(1..=u32::from(XDP_CHANNELS_MAX), "channels = 4").optional(), Reopens;
        /// xdp: over which queues the NIC spreads received frames.
        rss: Rss = word().or(Rss::Keep), Reopens;
    }
}

keys! {
    /// The VLANs that a port carries: `access`, or `trunk` with an optional `native`.
    pub(super) struct VlanKeys = "Vlan", extend (json!({
        "oneOf": [{"required": ["access"]}, {"required": ["trunk"]}],
        "dependentRequired": {"native": ["trunk"]},
    })) {
        /// The one VLAN of a port that sees no tags.
        access: Option<u16> = whole(VLAN_ID_MIN..=VLAN_ID_MAX, "access = 100").optional(), Whole;
        /// The VLANs of a port that sees tags: numbers, and ranges such as "100-199".
        trunk: Option<Vec<u16>> = VlanList.optional(), Whole;
        /// The VLAN of a trunk's untagged frames.
        native: Option<u16> = whole(VLAN_ID_MIN..=VLAN_ID_MAX, "native = 1").optional(), Whole;
    }
}

keys! {
    /// How long a guest's descriptors may take from being read to completion; at least one of the two.
    pub struct Slo derive(Copy) = "Slo", extend (json!({"minProperties": 1})) {
        /// Half of them take no longer; 1us to 10s.
        // Descriptors are completed in bursts, and a burst takes about the shortest time.
        completion_p50: Option<Duration> = time("1us", "10s", "20us").optional(), Whole;
        /// 99 of 100 take no longer; 1us to 10s.
        completion_p99: Option<Duration> = time("1us", "10s", "20us").optional(), Whole;
    }
}

keys! {
    /// Which offloads a guest is offered.
    pub struct Offloads derive(Copy) = "Offloads" {
        /// Whether the guest may receive large TCP and UDP frames, and frames with an unfinished checksum. Set `false` for
        /// a guest that turns such offloads off while it runs (XDP, `ethtool -K ... lro off`, forwarding): the switch
        /// cannot detect that.
        receive: bool = flag().or(true), Whole;
        /// Whether the guest may send such frames.
        transmit: bool = flag().or(true), Whole;
    }
}

keys! {
    /// Limits on the copies per second into which the port's frames may be flooded; 0: no limit. One frame for ten ports
    /// makes ten copies.
    impl StormLimits = "Storm" {
        /// Copies of broadcasts. Default: 100000 for vhost, 0 for xdp.
        // A guest's limits are far above what its address resolution needs, and far below what a worker can copy.
        broadcast: u32 = whole(0..=STORM_MAX, "broadcast = 100000, or 0 for no limit").by_kind(100_000, 0), Whole;
        /// Copies of frames for other group addresses. Default: 1000000 for vhost, 0 for xdp.
        multicast: u32 = whole(0..=STORM_MAX, "multicast = 100000, or 0 for no limit").by_kind(1_000_000, 0), Whole;
        /// Copies of frames for addresses that are known on no port. Default: 100000 for vhost, 0 for xdp.
        unknown_unicast: u32 =
            whole(0..=STORM_MAX, "unknown_unicast = 100000, or 0 for no limit").by_kind(100_000, 0), Whole;
    }
}

keys! {
    /// Limits of the port's rates. What a guest sends beyond its rate, or beyond the rate of the uplink that it sends to,
    /// waits in its ring. What is sent to a guest beyond its rate is dropped, and before that marked, where its sender
    /// understands ECN.
    impl RateLimits = "Limit", extend (json!({"minProperties": 1})) {
        /// vhost: what the guest sends.
        out: RateLimit = table().or_else(RateLimit::default()).only(PortType::Vhost), Whole;
        /// What is sent to the guest, or through the uplink. The guests that send through an uplink share its rate by their
        /// weights.
        in_ as "in": RateLimit = table().or_else(RateLimit::default()), Whole;
    }
}

keys! {
    /// A rate limit.
    pub(super) struct RateKeys = "Rate", extend (json!({"anyOf": [{"required": ["rate"]}, {"required": ["packets"]}]})) {
        /// Bits per second of Ethernet frames, without preamble and checksum; 64kbit/s to 1Tbit/s.
        rate: Option<u64> = amount(Quantity::Rate, LIMIT_RATE_MIN..=LIMIT_RATE_MAX).optional(), Whole;
        /// Bytes that may come at once; 9216B to 1GiB. Default: 5 ms of the rate, at least 64KiB and at most 4MiB.
        burst: Option<u64> = amount(Quantity::Size, LIMIT_BURST_MIN..=LIMIT_BURST_MAX).optional(), Whole;
        /// Packets per second, a large frame counted as its segments; 100/s to 1000M/s.
        packets: Option<u64> = amount(Quantity::Packets, LIMIT_PACKETS_MIN..=LIMIT_PACKETS_MAX).optional(), Whole;
    }
}

keys! {
    /// The action when a probe that left through the port comes back.
    pub struct LoopProtect derive(Copy) = "LoopProtect" {
        /// "report": a loop is reported in the log, in metrics and by `show`. "block": in addition, the switch blocks one
        /// of the two ports, and only a port with `action = "block"`. If both have it: the guest's port rather than the
        /// uplink; of two of a kind, the one whose name is later in the alphabet.
        action: LoopAction = word().or(LoopAction::Report), Whole;
        /// Shortest time that the port is blocked; it stays blocked while probes still come back; 1s to 86400s.
        block_time: Duration = time("1s", "86400s", "60s").or_example(), Whole;
    }
}

keys! {
    /// The only addresses that frames from the port may claim. No other port may have them in the VLANs that this port
    /// carries.
    pub(super) struct AddressKeys = "Addresses" {
        /// MAC addresses of stations. Two ports that share a VLAN must not have one in common.
        mac: Vec<Mac> = addresses::stations().required(""), Whole;
        /// IP addresses and prefixes: the sources of packets, and what ARP and neighbour discovery may claim. The link-local
        /// addresses that stations make of their MAC addresses are allowed too. Two ports that share a VLAN must not have a
        /// single address in common; a prefix is allowed at its port, and not bound to it. Without it: any.
        ip: Option<Vec<IpNet>> = addresses::prefixes().optional(), Whole;
    }
}

keys! {
    /// A queue of an uplink's interface that belongs to one guest.
    pub struct Direct derive(Hash) = "Direct" {
        /// The name of an xdp port of this configuration.
        uplink: String = texts::uplink().required(""), Whole;
        /// The number of a queue of that port's interface, which is not among the port's `queues`.
        queue: u32 = whole(0..=u32::from(XDP_QUEUE_MAX), "queue = 3").required(""), Whole;
    }
}
