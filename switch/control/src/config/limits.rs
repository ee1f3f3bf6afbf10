//! Every limit and default of the configuration, by name. The checks, the messages, the JSON schema and the
//! tests all read them here, so they cannot disagree.

use std::time::Duration;

use crosspoint_engine::fdb::WINDOW_S_MAX;
use crosspoint_engine::storm::StormLimits;

/// The one `version` of the format that this switch reads.
pub const VERSION: i64 = 1;
/// The largest file that is read. A configuration with every port spelt out is a third of this.
pub const FILE_BYTES_MAX: u64 = 1 << 20;
/// The most problems that one report lists; the rest are counted.
pub const PROBLEMS_MAX: usize = 64;

/// The longest `ports_dir`: the kernel's `PATH_MAX`, the last byte of which is zero.
pub const PATH_BYTES_MAX: usize = 4095;
/// The most files of `ports_dir` that are read: every port may have one of its own.
pub const PORTS_DIR_FILES_MAX: usize = PORTS_MAX;
/// The most bytes of all files of `ports_dir` together. Every port spelt out takes a twentieth of this.
pub const PORTS_DIR_BYTES_MAX: u64 = 8 << 20;

/// The most `[[port]]` tables, in all files together.
pub const PORTS_MAX: usize = 1024;
/// The most workers, so the most cores in `[workers] cores`.
pub const WORKERS_MAX: usize = 64;
/// The highest core number: no Linux is built for more than 8192 processors.
pub const CORE_MAX: u16 = 8191;

/// `[workers] idle_spin` where it is not given.
pub const IDLE_SPIN_DEFAULT: Duration = Duration::from_micros(50);
/// The shortest `[workers] idle_spin`.
pub const IDLE_SPIN_MIN: Duration = Duration::from_micros(1);
/// The longest `[workers] idle_spin`: beyond it, `poll = "busy"` is meant.
pub const IDLE_SPIN_MAX: Duration = Duration::from_secs(1);

/// The shortest `[workers] balance_interval`: what is measured over less says little.
pub const BALANCE_INTERVAL_MIN: Duration = Duration::from_millis(100);
/// The longest `[workers] balance_interval`.
pub const BALANCE_INTERVAL_MAX: Duration = Duration::from_secs(3600);

/// `[switch] fdb_ageing` where it is not given: what IEEE 802.1Q recommends.
pub const FDB_AGEING_DEFAULT: Duration = Duration::from_secs(300);
/// The shortest `[switch] fdb_ageing`: an entry is refreshed at most once per second.
pub const FDB_AGEING_MIN: Duration = Duration::from_secs(2);
/// The longest `[switch] fdb_ageing`.
pub const FDB_AGEING_MAX: Duration = Duration::from_secs(86_400);
/// `[switch] fdb_moves_max` where it is not given: what RFC 7432 (15.1) has for EVPN.
pub const FDB_MOVES_MAX_DEFAULT: u8 = 5;
/// The highest `[switch] fdb_moves_max`.
pub const FDB_MOVES_MAX_MAX: u8 = 100;
/// `[switch] fdb_moves_window` where it is not given, likewise.
pub const FDB_MOVES_WINDOW_DEFAULT: Duration = Duration::from_secs(180);
/// The shortest `[switch] fdb_moves_window`: moves are counted by seconds.
pub const FDB_MOVES_WINDOW_MIN: Duration = Duration::from_secs(2);
/// The longest `[switch] fdb_moves_window`.
pub const FDB_MOVES_WINDOW_MAX: Duration = Duration::from_secs(WINDOW_S_MAX as u64);
/// Entries in one FDB bucket (one cache line).
pub const FDB_BUCKET_ENTRIES: u32 = 7;
/// `[switch] fdb_capacity` where it is not given.
pub const FDB_CAPACITY_DEFAULT: u32 = FDB_BUCKET_ENTRIES * 4096;
/// The smallest `[switch] fdb_capacity`: 4096 buckets, whose number stands for 12 bits of the key.
pub const FDB_CAPACITY_MIN: u32 = FDB_BUCKET_ENTRIES * 4096;
/// The largest `[switch] fdb_capacity`: 4 MiB of buckets.
pub const FDB_CAPACITY_MAX: u32 = FDB_BUCKET_ENTRIES * 65_536;

/// `[metrics] listen` where it is not given.
pub const METRICS_LISTEN_DEFAULT: &str = "127.0.0.1:9477";
/// `[control] socket` where it is not given.
pub const CONTROL_SOCKET_DEFAULT: &str = "/run/crosspoint/control.sock";
/// The longest socket path: `sun_path` has 108 bytes, the last of them zero.
pub const SOCKET_BYTES_MAX: usize = 107;

/// The longest name of a socket's group: as `groupadd` has it.
pub const GROUP_BYTES_MAX: usize = 32;
/// The longest port name.
pub const PORT_NAME_BYTES_MAX: usize = 32;
/// The longest interface name: `IFNAMSIZ` is 16, the last of them zero.
pub const INTERFACE_BYTES_MAX: usize = 15;
/// The highest number in an xdp port's `queues`: no driver in the kernel has more than 4096.
pub const XDP_QUEUE_MAX: u16 = 4095;
/// The most `channels` of an xdp port.
pub const XDP_CHANNELS_MAX: u16 = XDP_QUEUE_MAX + 1;
/// `queue_pairs` where it is not given.
pub const QUEUE_PAIRS_DEFAULT: u16 = 1;
/// The most `queue_pairs`.
pub const QUEUE_PAIRS_MAX: u16 = 16;
/// `mtu` of a vhost port where it is not given: Ethernet's. An xdp port's is then left as it is.
pub const MTU_DEFAULT: u16 = 1500;
/// The lowest `mtu`: the least that every host on the internet must forward (RFC 791), and what virtio asks for.
pub const MTU_MIN: u16 = 68;
/// The highest `mtu`: virtio's configuration space has 16 bits for it, and no interface's is higher.
pub const MTU_MAX: u16 = u16::MAX;
/// The lowest VLAN ID (0 means "priority only" on the wire).
pub const VLAN_ID_MIN: u16 = 1;
/// The highest VLAN ID (4095 is reserved).
pub const VLAN_ID_MAX: u16 = 4094;
/// `mac_limit` of a vhost port where it is not given: one guest must not be able to fill the FDB.
pub const MAC_LIMIT_VHOST_DEFAULT: u32 = 1024;
/// `mac_limit` of an xdp port where it is not given: none, since the network is behind an uplink.
pub const MAC_LIMIT_XDP_DEFAULT: u32 = 0;
/// `weight` where it is not given.
pub const WEIGHT_DEFAULT: u32 = 1;
/// The highest `weight`.
pub const WEIGHT_MAX: u32 = 1000;
/// `storm` of a vhost port where it is not given. It is far above what a guest needs that asks for its neighbours, and
/// far below what a worker can copy.
pub const STORM_VHOST_DEFAULT: StormLimits = StormLimits {
    broadcast: 100_000,
    multicast: 1_000_000,
    unknown_unicast: 100_000,
};
/// `storm` of an xdp port where it is not given: no limits, since the network is behind an uplink.
pub const STORM_XDP_DEFAULT: StormLimits = StormLimits {
    broadcast: 0,
    multicast: 0,
    unknown_unicast: 0,
};
/// Most items of `forward_control`: all sixteen addresses but that of pause frames.
pub const CONTROL_ADDRESSES_MAX: usize = 15;

/// `block_time` of `loop_protect` where it is not given.
pub const LOOP_BLOCK_TIME_DEFAULT: Duration = Duration::from_secs(60);
/// The shortest `block_time`.
pub const LOOP_BLOCK_TIME_MIN: Duration = Duration::from_secs(1);
/// The longest `block_time`: a day.
pub const LOOP_BLOCK_TIME_MAX: Duration = Duration::from_secs(86_400);

/// The highest limit in `storm`, copies per second: more than any machine makes.
pub const STORM_MAX: u32 = 1_000_000_000;
/// The most addresses in `addresses`.
pub const ADDRESSES_MAX: usize = 64;
/// The shortest objective in `slo`: descriptors are completed burst by burst, and a burst takes about that.
pub const SLO_MIN: Duration = Duration::from_micros(1);
/// The longest objective in `slo`.
pub const SLO_MAX: Duration = Duration::from_secs(10);
/// The highest `mac_limit`: as many as the largest FDB holds.
pub const MAC_LIMIT_MAX: u32 = FDB_CAPACITY_MAX;
