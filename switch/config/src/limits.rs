//! Limits of the configuration that more than a key's line in `table.rs` uses, by name.

use std::time::Duration;

/// The `version` of the format that this switch reads.
pub const VERSION: i64 = 1;
/// The largest file that is read, bytes. A configuration that spells out every port takes a third of this.
pub const FILE_BYTES_MAX: u64 = 1 << 20;
/// Maximum number of problems in one report; further ones are only counted.
pub const PROBLEMS_MAX: usize = 64;

/// Maximum length of `ports_dir`: the kernel's `PATH_MAX` without the final zero byte.
pub const PATH_BYTES_MAX: usize = 4095;
/// Maximum number of files of `ports_dir`: every port may have its own.
pub const PORTS_DIR_FILES_MAX: usize = PORTS_MAX;
/// Maximum size of all files of `ports_dir` together, bytes. All ports spelt out take a twentieth of this.
pub const PORTS_DIR_BYTES_MAX: u64 = 8 << 20;

/// Maximum number of `[[port]]` tables in all files together.
pub const PORTS_MAX: usize = 1024;
/// Maximum number of bridges, with the default one.
pub const BRIDGES_MAX: usize = crosspoint_engine::bridge::several::BRIDGES_MAX;
/// The highest `[multicast] groups_max`.
pub const MULTICAST_GROUPS_MAX: u32 = 4096;
/// The name of the bridge of ports without `bridge`.
pub const DEFAULT_BRIDGE: &str = "default";
/// Maximum number of workers, and so of cores in `[workers] cores`.
pub const WORKERS_MAX: usize = 64;
/// The highest core number: no Linux kernel is built for more than 8192 processors.
pub const CORE_MAX: u16 = 8191;

/// The highest `[switch] fdb_moves_max`.
pub const FDB_MOVES_MAX_MAX: u8 = 100;
/// Entries in one FDB bucket (one cache line).
pub const FDB_BUCKET_ENTRIES: u32 = 7;
/// The smallest `[switch] fdb_capacity`: 4096 buckets, so that the bucket's number encodes 12 bits of the key.
pub const FDB_CAPACITY_MIN: u32 = FDB_BUCKET_ENTRIES * 4096;
/// The largest `[switch] fdb_capacity`: 4 MiB of buckets.
pub const FDB_CAPACITY_MAX: u32 = FDB_BUCKET_ENTRIES * 65_536;

/// Default of `[metrics] listen`.
pub const METRICS_LISTEN_DEFAULT: &str = "127.0.0.1:9477";
/// UDP port of an sFlow collector, if `[sflow] collector` has none: the one that IANA has assigned.
pub const SFLOW_PORT: u16 = 6343;
/// UDP port of an IPFIX collector, if `[ipfix] collector` has none: the one that IANA has assigned.
pub const IPFIX_PORT: u16 = 4739;
/// The highest `[ipfix] denied`, records a second.
pub const IPFIX_DENIED_MAX: u32 = 10_000;
/// The highest `[sflow] sampling`.
pub const SFLOW_SAMPLING_MAX: u32 = 1 << 24;
/// The lowest `[sflow] header_len`: Ethernet, a tag, IPv4 and TCP, rounded up.
pub const SFLOW_HEADER_LEN_MIN: u16 = 64;
/// The highest `[sflow] header_len`: a datagram has room for four such samples.
pub const SFLOW_HEADER_LEN_MAX: u16 = 256;
/// Default of `[sflow] polling`.
pub const SFLOW_POLLING_DEFAULT: Duration = Duration::from_secs(20);
/// The shortest `[sflow] polling`.
pub const SFLOW_POLLING_MIN: Duration = Duration::from_secs(1);
/// The longest.
pub const SFLOW_POLLING_MAX: Duration = Duration::from_secs(3600);
/// Default of `[control] socket`.
pub const CONTROL_SOCKET_DEFAULT: &str = "/run/crosspoint/control.sock";
/// Most folders of `[sandbox] paths`.
pub const SANDBOX_PATHS_MAX: usize = 64;
/// Maximum length of a socket path: `sun_path` has 108 bytes, including the final zero.
pub const SOCKET_BYTES_MAX: usize = 107;

/// Maximum length of a socket group's name, as in `groupadd`.
pub const GROUP_BYTES_MAX: usize = 32;
/// Maximum length of a port name.
pub const PORT_NAME_BYTES_MAX: usize = 32;
/// Maximum length of an interface name: `IFNAMSIZ` is 16, including the final zero.
pub const INTERFACE_BYTES_MAX: usize = 15;
/// The highest queue number in an xdp port's `queues`: no driver in the kernel has more than 4096 queues.
pub const XDP_QUEUE_MAX: u16 = 4095;
/// The highest `channels` of an xdp port.
pub const XDP_CHANNELS_MAX: u16 = XDP_QUEUE_MAX + 1;
/// The highest `queue_pairs`.
pub const QUEUE_PAIRS_MAX: u16 = 16;
/// The lowest `mtu`: the minimum that every internet module must forward (RFC 791), and that virtio requires.
pub const MTU_MIN: u16 = 68;
/// The highest `mtu`: virtio's configuration space has 16 bits for it, and no interface has a higher one.
pub const MTU_MAX: u16 = u16::MAX;
/// The lowest VLAN ID (0 means "priority only" on the wire).
pub const VLAN_ID_MIN: u16 = 1;
/// The highest VLAN ID (4095 is reserved).
pub const VLAN_ID_MAX: u16 = 4094;
/// The highest `weight`.
pub const WEIGHT_MAX: u32 = 1000;
/// Maximum number of items of `forward_control`: all sixteen addresses except that of pause frames.
pub const CONTROL_ADDRESSES_MAX: usize = 15;

/// The highest limit in `storm`, copies per second: more than any machine can make.
pub const STORM_MAX: u32 = 1_000_000_000;
/// Maximum number of tables `[[fdb]]`.
pub const STATICS_MAX: usize = 4096;
/// Maximum number of addresses in `addresses`.
pub const ADDRESSES_MAX: usize = 64;
/// Maximum number of tables `[[group]]`.
pub const GROUPS_MAX: usize = 1024;
/// Maximum number of tables `[[set]]`.
pub const SETS_MAX: usize = 1024;
/// Maximum number of `groups` of a port.
pub const PORT_GROUPS_MAX: usize = 16;
/// Maximum number of rules of all groups of a port: what the compiled form has bits for.
pub const GROUP_RULES_MAX: usize = 4096;
/// Maximum number of items in a rule's `ports`.
pub const GROUP_PORT_RANGES_MAX: usize = 256;
/// Maximum number of addresses in a rule's `from` or `to`; a set has room for more.
pub const PEER_ADDRESSES_MAX: usize = 256;
/// Maximum number of addresses of a set.
pub const SET_ADDRESSES_MAX: usize = 65_536;
/// Maximum number of addresses of all sets together: they take 20 MB, and as much again while they are compiled.
pub const SETS_ADDRESSES_MAX: usize = 1 << 20;
/// The largest `file` of a set, bytes: every address at its longest, with a comment of the same length.
pub const SET_FILE_BYTES_MAX: u64 = 6 << 20;
/// Default of a port's `connections_max`.
pub const PORT_CONNECTIONS_DEFAULT: u32 = 65_536;
/// The highest `connections_max` of a port.
pub const PORT_CONNECTIONS_MAX: u32 = 1 << 20;
/// The highest `connections_rate` of a port, connections a second: more than a core can begin.
pub const PORT_CONNECTIONS_RATE_MAX: u32 = 10_000_000;
/// Default of `[connections] max`.
pub const CONNECTIONS_DEFAULT: u32 = 262_144;
/// The lowest `[connections] max`.
pub const CONNECTIONS_MIN: u32 = 64;
/// The highest `[connections] max`.
pub const CONNECTIONS_MAX: u32 = 1 << 24;
/// The lowest `rate` of `limit`, bits per second.
pub const LIMIT_RATE_MIN: u64 = 64_000;
/// The highest, for more than any wire carries.
pub const LIMIT_RATE_MAX: u64 = 1_000_000_000_000;
/// The lowest `packets` of `limit`, packets per second.
pub const LIMIT_PACKETS_MIN: u64 = 100;
/// The highest.
pub const LIMIT_PACKETS_MAX: u64 = 1_000_000_000;
/// The smallest `burst` of `limit`: a frame of the largest usual MTU, 9000 bytes.
pub const LIMIT_BURST_MIN: u64 = 9_216;
/// The largest.
pub const LIMIT_BURST_MAX: u64 = 1 << 30;
/// Without `burst`, a limit's burst is what its rate sends in a second divided by this, but at least a large frame and at
/// most a few megabytes.
pub const LIMIT_BURSTS_PER_SECOND: u64 = 200;
/// The smallest default of `burst`: a frame of 64 KiB.
pub const LIMIT_BURST_DEFAULT_MIN: u64 = 64 << 10;
/// The largest default of `burst`.
pub const LIMIT_BURST_DEFAULT_MAX: u64 = 4 << 20;
/// The highest `mac_limit`: the capacity of the largest FDB.
pub const MAC_LIMIT_MAX: u32 = FDB_CAPACITY_MAX;

/// Maximum number of tables `[[mirror]]`.
pub const MIRRORS_MAX: usize = crosspoint_engine::observe::mirror::MIRRORS_MAX;
/// Maximum number of names and patterns in the `ports` of a mirror or of sFlow.
pub const PORT_PATTERNS_MAX: usize = 256;
/// Maximum length of a mirror's `filter`, bytes.
pub const MIRROR_FILTER_BYTES_MAX: usize = 1024;
