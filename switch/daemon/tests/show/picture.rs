//! A switch status for the tests of `show`, of the metrics and of the control socket.

#[path = "groups.rs"]
mod groups;

use std::collections::BTreeMap;

use crosspoint_daemon::api::Source;
use crosspoint_daemon::dataplane::MoveError;
use crosspoint_model::request::{ChangeError, ConnectionsWanted};
use crosspoint_model::rows::{ConnectionTable, GroupTables};
use crosspoint_model::status::{
    BridgeStatus, ConfigStatus, ConnectionsStatus, DaemonStatus, DeviceStatus, FdbEntry, FdbMover,
    FdbStatus, LatencyStatus, LeaseStatus, LimitStatus, MemoryRegionStatus, MirrorStatus,
    ObjectiveStatus, PortConnections, PortStatus, QueueStatus, RateStatus, ShownState, SloStatus,
    Status, StormStatus, StreamStatus, VlanStatus, VringStatus, WindowStatus, WorkerStatus,
    XdpStatus,
};

/// A source with constant data.
pub struct Picture {
    pub status: Status,
    pub fdb: Vec<FdbEntry>,
    pub movers: Vec<FdbMover>,
}

impl Source for Picture {
    fn status(&self) -> Status {
        self.status.clone()
    }

    fn daemon(&self) -> DaemonStatus {
        DaemonStatus {
            version: "1.2.3".into(),
            pid: 4711,
            started_ms: 1_800_000_000_000,
            uptime_ns: 11_045_500_000_000,
            config: Some("/etc/crosspoint/crosspoint.toml".into()),
            control: "/run/crosspoint/control.sock".into(),
            metrics: None,
            poll: "adaptive".into(),
            balance: "auto".into(),
            balance_interval_ms: 10_000,
            sandbox: "capabilities, seccomp, landlock (ABI 7)".into(),
        }
    }

    fn fdb(&self) -> Vec<FdbEntry> {
        self.fdb.clone()
    }

    fn movers(&self) -> Vec<FdbMover> {
        self.movers.clone()
    }

    fn group_tables(&self) -> GroupTables {
        match self.status.connections {
            Some(_) => groups::tables(),
            None => GroupTables::default(),
        }
    }

    fn connections(&self, _: &ConnectionsWanted) -> Result<ConnectionTable, ChangeError> {
        Ok(match self.status.connections {
            Some(_) => groups::connections(),
            None => ConnectionTable::default(),
        })
    }

    fn move_stream(&self, port: &str, queue: u16, _: usize) -> Result<(), MoveError> {
        let known = self.status.ports.iter().any(|one| one.name == port);
        let name = port.to_owned();
        match (known, queue) {
            (true, 0) => Ok(()),
            (true, _) => Err(MoveError::NoStream { port: name, queue }),
            (false, _) => Err(MoveError::NoPort { name }),
        }
    }
}

fn strings(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let owned = |(key, value): &(&str, &str)| (key.to_string(), value.to_string());
    pairs.iter().map(owned).collect()
}

fn counts(pairs: &[(&str, u64)]) -> BTreeMap<String, u64> {
    pairs.iter().map(|(key, n)| (key.to_string(), *n)).collect()
}

fn guest_queue(queue: u16) -> QueueStatus {
    QueueStatus {
        queue,
        worker: Some(usize::from(queue)),
        rx_packets: 123_456_789,
        rx_bytes: 98_765_432_100,
        tx_packets: 99_999,
        tx_bytes: 1_234_567,
        flood_copies: 12,
        segment_copies: 34,
        mirror_copies: 35,
        joined_copies: 21,
        delivered_copies: 123_456_700,
        dropped_copies: 101,
        bursts: 4_000_000,
        rx_burst_sizes: [
            1_000_000, 500_000, 400_000, 100_000, 0, 1_000_000, 1_000_000, 0,
        ],
        tx_burst_sizes: [99_999, 0, 0, 0, 0, 0, 0, 0],
        receive_ring_entries: Some(256),
        receive_buffers: Some(17),
        kicks: 77,
        held_back: 78,
        rate_limited: 79,
        ecn_marked: 80,
        calls: 1234,
        broadcasts: 9,
        multicasts: 2,
        unknown_unicasts: 1,
        uplink_waits: 81,
        neighbors_suppressed: 82,
        cycles: 345_678_901_234,
        drops: counts(&[
            ("bad_source", 1),
            ("guest_ring_full", 250_000),
            ("hairpin", 0),
        ]),
        completion: LatencyStatus {
            buckets_ns: vec![
                (240, 10),
                (1_100, 900),
                (4_700, 85),
                (52_000, 4),
                (30_000_000, 1),
            ],
            sum_ns: 31_600_400.0,
        },
        xdp: None,
    }
}

fn guest() -> PortStatus {
    PortStatus {
        name: "web-1".into(),
        kind: "vhost".into(),
        state: ShownState::Up,
        detail: String::new(),
        required: false,
        bridge: "default".into(),
        bridges: Vec::new(),
        vlan: "access 100".into(),
        vlans: VlanStatus {
            access: Some(100),
            ..VlanStatus::default()
        },
        addresses: 1,
        addresses_moved: 5,
        addresses_refused: 6,
        addresses_damped: 7,
        weight: 2,
        storm: StormStatus {
            broadcast: 100_000,
            multicast: 1_000_000,
            unknown_unicast: 0,
        },
        dhcp_server: false,
        isolated: true,
        limit: LimitStatus {
            out: RateStatus {
                bits_per_s: 1_000_000_000,
                burst_bytes: 625_000,
                packets_per_s: 500_000,
            },
            r#in: RateStatus::default(),
        },
        addresses_allowed: vec!["52:54:00:12:34:56".into()],
        ip_allowed: vec!["192.0.2.10".into(), "2001:db8::/64".into()],
        leases: vec![LeaseStatus {
            address: "192.0.2.77".into(),
            mac: "52:54:00:00:00:01".into(),
            vlan: 100,
            left_s: 3540,
        }],
        forward_control: Vec::new(),
        groups: vec!["web".into(), "ssh".into()],
        connections: Some(PortConnections {
            connections: 1234,
            half_open: 5,
            max: 65_536,
            created: 1_234_567,
            refused: 6,
            rate: 2000,
            rate_refused: 17,
        }),
        looping: false,
        blocked_with: None,
        looping_with: Vec::new(),
        loop_protect: None,
        properties: strings(&[("role", "server"), ("features", "mrg_rxbuf,csum")]),
        queues: vec![guest_queue(0), guest_queue(1)],
        state_for_s: 3723,
        device: Some(device()),
        slo: Some(slo()),
    }
}

/// One objective that is met, and one that is missed.
fn slo() -> SloStatus {
    SloStatus {
        window_s: 64.2,
        completions: 123_456,
        completion_p50: Some(ObjectiveStatus {
            objective_ns: 5_000,
            measured_ns: Some(1_100),
        }),
        completion_p99: Some(ObjectiveStatus {
            objective_ns: 20_000,
            measured_ns: Some(52_000),
        }),
    }
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

/// A guest with two queue pairs, of which the driver uses one.
fn device() -> DeviceStatus {
    let vring = |index: u16, size, enabled| VringStatus {
        index,
        direction: ["receive", "transmit"][usize::from(index % 2)].into(),
        size,
        enabled,
        running: enabled,
        base: 7 * index,
        has_kick: enabled,
        has_call: enabled && index > 0,
    };
    DeviceStatus {
        role: "server".into(),
        socket: "/run/crosspoint/web-1.sock".into(),
        connections: 3,
        last_end: Some("it closed the connection".into()),
        socket_problem: None,
        last_request: Some("GET_VRING_BASE".into()),
        early_ends: 0,
        features: words(
            "CSUM GUEST_CSUM MTU MRG_RXBUF STATUS MQ INDIRECT_DESC EVENT_IDX PROTOCOL_FEATURES VERSION_1",
        ),
        protocol_features: words("MQ RARP REPLY_ACK MTU BACKEND_REQ CONFIG STATUS"),
        device_status: Some(words("ACKNOWLEDGE DRIVER DRIVER_OK FEATURES_OK")),
        ring_type: "split".into(),
        mac: Some("52:54:00:12:34:56".into()),
        mtu: 1500,
        mtu_set: Some(9000),
        memory: vec![
            MemoryRegionStatus {
                guest_address: 0,
                size: 0xa_0000,
            },
            MemoryRegionStatus {
                guest_address: 1 << 32,
                size: 3 << 30,
            },
        ],
        vrings: vec![
            vring(0, 256, true),
            vring(1, 256, true),
            vring(2, 0, false),
            vring(3, 0, false),
        ],
    }
}

fn broken_guest() -> PortStatus {
    PortStatus {
        name: "db-1".into(),
        kind: "vhost".into(),
        state: ShownState::Quarantined,
        detail: "queue 0: descriptor 17 points outside guest memory, at 0xffffffff00000000".into(),
        vlan: "unaware".into(),
        queues: vec![QueueStatus::default()],
        device: Some(DeviceStatus::default()),
        slo: Some(SloStatus {
            completion_p99: Some(ObjectiveStatus {
                objective_ns: 100_000,
                measured_ns: None,
            }),
            ..SloStatus::default()
        }),
        ..PortStatus::default()
    }
}

fn uplink() -> PortStatus {
    let xdp = XdpStatus {
        rx_dropped: 1,
        rx_invalid_descs: 2,
        tx_invalid_descs: 3,
        rx_ring_full: 4,
        rx_fill_ring_empty_descs: 5,
        tx_ring_empty_descs: 6,
    };
    PortStatus {
        name: "uplink".into(),
        kind: "xdp".into(),
        state: ShownState::Up,
        required: true,
        vlan: "trunk 100,200 native 1".into(),
        addresses: 2,
        properties: strings(&[
            ("interface", "eth0"),
            ("mode", "native"),
            ("copy", "zero-copy"),
        ]),
        queues: vec![QueueStatus {
            queue: 3,
            worker: Some(1),
            rx_packets: 5,
            rx_bytes: 320,
            drops: counts(&[("vlan_not_carried", 3), ("nic_ring_full", 4)]),
            xdp: Some(xdp),
            ..QueueStatus::default()
        }],
        ..PortStatus::default()
    }
}

fn workers() -> Vec<WorkerStatus> {
    let stream = |port: &str, queue, share, fixed: Option<&str>| StreamStatus {
        port: port.into(),
        queue,
        share,
        fixed: fixed.map(Into::into),
        node: fixed.is_none().then_some(0),
    };
    let busy = WorkerStatus {
        worker: 0,
        core: 2,
        node: Some(0),
        window: WindowStatus {
            ms: 7_412,
            busy: 0.7501,
            idle: 0.2,
            sleep: 0.0499,
        },
        busy_cycles: 750_000_000_000,
        idle_cycles: 200_000_000_000,
        sleep_cycles: 50_000_000_000,
        iterations: 987_654_321,
        burst_work_max: 301_978,
        turns: LatencyStatus {
            buckets_ns: vec![
                (90, 900_000_000),
                (5_500, 87_000_000),
                (250_000, 654_320),
                (150_000_000, 1),
            ],
            sum_ns: 4e14,
        },
        sleeps: 1234,
        bursts: 55_555_555,
        stream_moves: 3,
        stream_moves_put_off: 1,
        stalls: 2,
        stalled: true,
        involuntary_switches: 123_456,
        allowed_cores: "0-5".into(),
        last_core: Some(1),
        misplaced: true,
        streams: vec![
            stream("web-1", 0, 0.5, None),
            stream("db-1", 0, 0.2501, Some("pinned")),
        ],
    };
    let fresh = WorkerStatus {
        worker: 1,
        core: 3,
        streams: vec![
            stream("web-1", 1, 0.0, Some("direct")),
            stream("uplink", 3, 0.0, Some("nic")),
            stream("app-1", 0, 0.0, None),
            stream("app-2", 0, 0.0, None),
        ],
        ..WorkerStatus::default()
    };
    vec![busy, fresh]
}

fn address(mac: &str, vlan: u16, port: &str, age_s: u64) -> FdbEntry {
    FdbEntry {
        mac: mac.into(),
        vlan,
        bridge: None,
        port: port.into(),
        age_s,
        is_static: false,
        origin: None,
    }
}

/// Two guests, one of them quarantined, and an uplink.
pub fn picture() -> Picture {
    Picture {
        status: Status {
            ports: vec![guest(), broken_guest(), uplink()],
            workers: workers(),
            removed: Default::default(),
            fdb: FdbStatus {
                entries: 3,
                capacity: 28_672,
                ageing_s: 300,
            },
            config: ConfigStatus {
                last_reload_successful: false,
                last_reload_success_timestamp_s: 1_789_000_000.5,
                problems: 2,
            },
            mirrors: vec![MirrorStatus {
                name: "ids".into(),
                ports: vec!["web-*".into()],
                direction: "both".into(),
                vlans: Some(vec![100, 101, 102, 200]),
                filter: Some("tcp port 80".into()),
                to: "up0".into(),
                to_vlan: Some(999),
                is_active: true,
                copied: 1_234_567,
                missed: 89,
            }],
            bridges: vec![
                BridgeStatus {
                    name: "default".into(),
                    ports: vec!["uplink".into(), "web-1".into()],
                    entries: 3,
                    capacity: 28_672,
                    ..BridgeStatus::default()
                },
                BridgeStatus {
                    name: "tenant-a".into(),
                    ports: (1..=9).map(|number| format!("web-{number}")).collect(),
                    tag: Some(100),
                    protocol: Some("802.1ad".into()),
                    entries: 12,
                    capacity: 28_672,
                },
            ],
            connections: Some(ConnectionsStatus {
                used: 1234,
                capacity: 524_288,
                bytes: 37_748_736,
            }),
            tsc_hz: 2.1e9,
        },
        fdb: vec![
            address("52:54:00:00:00:02", 200, "uplink", 12),
            address("52:54:00:00:00:03", 0, "uplink", 299),
            address("52:54:00:00:00:01", 100, "web-1", 0),
        ],
        movers: vec![FdbMover {
            mac: "52:54:00:00:00:01".into(),
            vlan: 100,
            bridge: None,
            home: "web-1".into(),
            other: "uplink".into(),
            port: "web-1".into(),
            moves: 6,
            since_s: 17,
            damped: true,
        }],
    }
}

/// An empty status.
#[allow(dead_code, reason = "not every test looks at it")]
pub fn nothing() -> Picture {
    Picture {
        status: Status::default(),
        fdb: Vec::new(),
        movers: Vec::new(),
    }
}

/// A large host: `guests` guests with two queues each, and `addresses` addresses.
#[allow(dead_code, reason = "not every test looks at it")]
pub fn large(guests: usize, addresses: usize) -> Picture {
    let guest = |n| PortStatus {
        name: format!("guest-{n}"),
        ..guest()
    };
    let learned = |n: usize| {
        let mac = format!(
            "52:54:00:{:02x}:{:02x}:{:02x}",
            n >> 16 & 255,
            n >> 8 & 255,
            n & 255
        );
        address(&mac, 100, &format!("guest-{}", n % guests.max(1)), 7)
    };
    Picture {
        status: Status {
            ports: (0..guests).map(guest).collect(),
            ..picture().status
        },
        fdb: (0..addresses).map(learned).collect(),
        movers: Vec::new(),
    }
}
