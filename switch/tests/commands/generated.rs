//! Generated configurations of all kinds.

// Where a test gives every key today, a new one takes its default.
#![allow(clippy::needless_update)]

use std::collections::HashSet;
use std::time::Duration;

use crosspoint_config::limits::*;
use crosspoint_config::{
    Access, Addresses, Admin, Balance, Config, Control, Cores, Direct, Group, GroupRule, HugePages,
    LoopAction, LoopProtect, MacLimitAction, Metrics, MetricsTls, Mirror, MirrorDirection,
    Offloads, Peer, Poll, Port, PortKind, Queues, Role, Rss, RuleDirection, Set, Slo, StaticEntry,
    Switch, Tso, VhostPort, Vlan, Workers, XdpMode, XdpPort,
};
use crosspoint_engine::bridge::storm::StormLimits;
use crosspoint_engine::groups::TcpFlags;
use crosspoint_engine::stages::meter::{RateLimit, RateLimits};
use crosspoint_packet::{IpNet, Mac};
use proptest::collection::{btree_map, hash_set};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

fn ids() -> impl Strategy<Value = Vec<u16>> {
    hash_set(VLAN_ID_MIN..=VLAN_ID_MAX, 1..4).prop_map(Vec::from_iter)
}

fn vlan() -> impl Strategy<Value = Vlan> {
    prop_oneof![
        Just(Vlan::Unaware),
        (VLAN_ID_MIN..=VLAN_ID_MAX).prop_map(Vlan::Access),
        (ids(), option::of(VLAN_ID_MIN..=VLAN_ID_MAX))
            .prop_map(|(ids, native)| Vlan::Trunk { ids, native }),
    ]
}

fn mac() -> impl Strategy<Value = Mac> {
    any::<[u8; 5]>().prop_map(|[a, b, c, d, e]| Mac::new([0x52, a, b, c, d, e]))
}

/// Which side listens; if the switch does, the socket's permissions.
fn role() -> impl Strategy<Value = (Role, Access)> {
    let access = (option::of(0..=0o777_u32), option::of("[a-z0-9_-]{1,32}"));
    let server = access.prop_map(|(mode, group)| (Role::Server, Access { mode, group }));
    prop_oneof![server, Just((Role::Client, Access::default()))]
}

/// A guest, whose `direct` gets its uplink later.
fn vhost() -> impl Strategy<Value = VhostPort> {
    (
        // Characters that a path may contain, and a TOML string only when escaped.
        "/run/[ -~äπ\n\t\u{1}\u{7f}]{0,8}x",
        role(),
        1..=QUEUE_PAIRS_MAX,
        option::of(mac()),
        MTU_MIN..=MTU_MAX,
        option::of(0..8_u32),
        any::<(bool, bool)>(),
    )
        .prop_map(
            |(socket, (role, access), queue_pairs, mac, mtu, direct, offloads)| VhostPort {
                socket: socket.into(),
                role,
                access,
                queue_pairs,
                mac,
                mtu,
                offloads: Offloads {
                    receive: offloads.0,
                    transmit: offloads.1,
                },
                direct: direct.map(|queue| Direct {
                    uplink: String::new(),
                    queue,
                }),
                ..VhostPort::default()
            },
        )
}

fn queues() -> impl Strategy<Value = Queues> {
    prop_oneof![
        Just(Queues::All),
        hash_set(8..16_u32, 1..4).prop_map(|set| Queues::List(Vec::from_iter(set))),
    ]
}

fn xdp() -> impl Strategy<Value = XdpPort> {
    let modes = vec![
        XdpMode::Auto,
        XdpMode::ZeroCopy,
        XdpMode::Copy,
        XdpMode::Generic,
    ];
    let pages = vec![
        HugePages::Transparent,
        HugePages::Reserved,
        HugePages::Never,
    ];
    (
        (queues(), select(modes), option::of(MTU_MIN..=MTU_MAX)),
        (any::<bool>(), select(vec![Tso::Auto, Tso::Off])),
        (any::<bool>(), select(pages), option::of(16..64_u32)),
        select(vec![Rss::Keep, Rss::Queues]),
    )
        .prop_map(
            |((queues, mode, mtu), (gro, tso), (busy_poll, huge_pages, channels), rss)| XdpPort {
                interface: String::new(),
                take_over: tso == Tso::Off,
                queues,
                mode,
                mtu,
                gro,
                tso,
                busy_poll,
                huge_pages,
                channels,
                rss,
                ..XdpPort::default()
            },
        )
}

fn slo() -> impl Strategy<Value = Slo> {
    let time = |us: u64| Duration::from_micros(us);
    (1..1_000_u64, 1_000..10_000_000_u64, 0..3).prop_map(move |(p50, p99, which)| Slo {
        completion_p50: (which != 1).then(|| time(p50)),
        completion_p99: (which != 0).then(|| time(p99)),
    })
}

fn storm() -> impl Strategy<Value = StormLimits> {
    (0..=STORM_MAX, 0..=STORM_MAX, 0..=STORM_MAX).prop_map(
        |(broadcast, multicast, unknown_unicast)| StormLimits {
            broadcast,
            multicast,
            unknown_unicast,
        },
    )
}

fn rate() -> impl Strategy<Value = RateLimit> {
    let rate = option::of((
        LIMIT_RATE_MIN..=LIMIT_RATE_MAX,
        LIMIT_BURST_MIN..=LIMIT_BURST_MAX,
    ));
    let packets = option::of(LIMIT_PACKETS_MIN..=LIMIT_PACKETS_MAX);
    (rate, packets).prop_map(|(rate, packets)| {
        let (bits_per_s, burst_bytes) = rate.unwrap_or_default();
        RateLimit {
            bits_per_s,
            burst_bytes,
            packets_per_s: packets.unwrap_or_default(),
        }
    })
}

fn loop_protect() -> impl Strategy<Value = LoopProtect> {
    let action = prop_oneof![Just(LoopAction::Report), Just(LoopAction::Block)];
    (action, 1..=86_400_u64).prop_map(|(action, seconds)| LoopProtect {
        action,
        block_time: Duration::from_secs(seconds),
    })
}

/// A small range, so that two ports would share some.
fn addresses() -> impl Strategy<Value = Addresses> {
    let mac = (0..8_u8).prop_map(|last| Mac::new([0x52, 0, 0, 0, 0, last]));
    let ip = (0..8_u8, any::<bool>()).prop_map(|(number, is_v6)| {
        let text = match is_v6 {
            false => format!("192.0.2.{number}/32"),
            true => format!("2001:db8:{number}::/48"),
        };
        text.parse().expect("a prefix")
    });
    let mac = hash_set(mac, 0..3).prop_map(Vec::from_iter);
    let ip = hash_set(ip, 0..3).prop_map(Vec::from_iter);
    (mac, ip).prop_map(|(mac, ip)| Addresses { mac, ip })
}

fn kind() -> impl Strategy<Value = PortKind> {
    prop_oneof![
        3 => vhost().prop_map(PortKind::Vhost),
        1 => xdp().prop_map(PortKind::Xdp),
    ]
}

/// Ports that are valid by themselves, and then made consistent with each other.
fn ports() -> impl Strategy<Value = Vec<Port>> {
    let port = (
        kind(),
        vlan(),
        (
            0..=MAC_LIMIT_MAX,
            1..=WEIGHT_MAX,
            storm(),
            addresses(),
            option::of(loop_protect()),
        ),
        option::of(0..3_usize),
        any::<bool>(),
        (option::of(slo()), rate(), rate()),
    );
    // Few names, so that two configurations share some.
    let ports = btree_map(0..8_usize, port, 0..6).prop_map(|ports| {
        let ports = ports.into_iter();
        let ports = ports.map(
            |(number, (kind, vlan, limits, worker, required, (slo, out, in_)))| Port {
                name: format!("p-{number}"),
                vlan,
                mac_limit: limits.0,
                mac_limit_action: match (limits.0 % 3, &kind) {
                    (0, _) => MacLimitAction::Flood,
                    (1, PortKind::Vhost(_)) => MacLimitAction::Quarantine,
                    _ => MacLimitAction::Drop,
                },
                weight: limits.1,
                storm: limits.2,
                addresses: limits.3,
                dhcp_server: required,
                isolated: !required,
                loop_protect: limits.4,
                worker,
                admin: if required { Admin::Up } else { Admin::Down },
                required,
                slo: slo.filter(|_| matches!(kind, PortKind::Vhost(_))),
                limit: match kind {
                    PortKind::Vhost(_) => RateLimits { out, in_ },
                    PortKind::Xdp(_) => RateLimits {
                        in_,
                        ..RateLimits::default()
                    },
                },
                kind,
                ..Port::default()
            },
        );
        agree(ports.collect())
    });
    ports.prop_shuffle()
}

/// Gives each port its own interface or socket and its own addresses, and each `direct` an uplink.
fn agree(mut ports: Vec<Port>) -> Vec<Port> {
    let is_uplink = |port: &&Port| matches!(port.kind, PortKind::Xdp(_));
    let uplink = ports.iter().find(is_uplink).map(|port| port.name.clone());
    let (mut taken, mut bound, mut bound_ips) = (Vec::new(), HashSet::new(), HashSet::new());
    for port in &mut ports {
        let Addresses { mac, ip } = &mut port.addresses;
        mac.retain(|mac| bound.insert(*mac));
        let is_prefix = |net: &IpNet| net.prefix_len() < net.max_prefix_len();
        ip.retain(|net| !mac.is_empty() && (is_prefix(net) || bound_ips.insert(*net)));
        match &mut port.kind {
            PortKind::Vhost(guest) => {
                // A guest's `mac` must be one of its own addresses.
                let own = port.addresses.mac.first().copied();
                guest.mac = own.filter(|_| guest.mac.is_some()).or(guest.mac);
                guest.socket.as_mut_os_string().push(&port.name);
                guest.direct = guest.direct.take().and_then(|direct| {
                    let is_free = !taken.contains(&direct.queue);
                    taken.push(direct.queue);
                    let uplink = uplink.clone().filter(|_| is_free)?;
                    Some(Direct { uplink, ..direct })
                });
            }
            PortKind::Xdp(xdp) => xdp.interface = format!("if{}", port.name),
        }
    }
    ports
}

fn workers() -> impl Strategy<Value = Workers> {
    let cores = prop_oneof![
        Just(Cores::Auto),
        hash_set(0..64_usize, 3..6).prop_map(|set| Cores::List(Vec::from_iter(set))),
    ];
    (
        cores,
        select(vec![Poll::Busy, Poll::Adaptive]),
        1..=1_000_000_u64,
        select(vec![Balance::Auto, Balance::Off]),
        100..=3_600_000_u64,
    )
        .prop_map(|(cores, poll, idle_us, balance, interval_ms)| Workers {
            cores,
            poll,
            idle_spin: Duration::from_micros(idle_us),
            balance,
            balance_interval: Duration::from_millis(interval_ms),
        })
}

/// Static addresses on some of the ports, in a VLAN that each carries.
fn statics(ports: &[Port], chosen: u64) -> Vec<StaticEntry> {
    let is_chosen = |number: &usize| chosen >> (number % 32) & 1 == 1;
    let names_vlan = |number: usize| chosen >> (32 + number % 32) & 1 == 1;
    let entry = |number: usize| {
        let port = &ports[number];
        let own = match &port.vlan {
            Vlan::Trunk { ids, native: None } => ids.first().copied(),
            vlan => vlan.untagged().filter(|_| names_vlan(number)),
        };
        StaticEntry {
            mac: Mac::new([0x52, 0x54, 0, 0xfd, 0, number as u8]),
            vlan: own,
            bridge: None,
            port: port.name.clone(),
        }
    };
    (0..ports.len()).filter(is_chosen).map(entry).collect()
}

/// A mirror of some ports to the first one.
fn mirrors(ports: &[Port], chosen: u64) -> Vec<Mirror> {
    let first = ports.first().filter(|_| chosen & 3 == 3);
    let mirror = first.map(|to| Mirror {
        name: "ids".to_owned(),
        ports: vec!["x-*".to_owned(), "?".to_owned()],
        direction: MirrorDirection::Sent,
        vlans: (chosen & 4 != 0).then(|| vec![1, 2, 3, 7]),
        filter: (chosen & 8 != 0).then(|| "tcp port 80 or arp".to_owned()),
        to: to.name.clone(),
        to_vlan: (chosen & 16 != 0).then_some(999),
    });
    mirror.into_iter().collect()
}

/// Two groups, whose rules name each other and a set.
fn groups(chosen: u64) -> (Vec<Group>, Vec<Set>) {
    if chosen & 32 == 0 {
        return (Vec::new(), Vec::new());
    }
    let rule = GroupRule {
        protocol: Some(6),
        ports: vec![80..=80, 8000..=8080],
        ..GroupRule::all(RuleDirection::In, Peer::Set("admins".to_owned()))
    };
    let ping = GroupRule {
        ip: Some(4),
        protocol: Some(1),
        icmp: Some((8, (chosen & 64 != 0).then_some(0))),
        ..GroupRule::all(RuleDirection::Out, Peer::Group("db".to_owned()))
    };
    let link = GroupRule {
        protocol: Some(6),
        tcp_flags: Some(TcpFlags { set: 2, clear: 16 }),
        mac: vec![Mac::new([2, 0, 0, 0, 0, 9])],
        vlans: vec![100, 101, 200],
        ..GroupRule::all(RuleDirection::Out, Peer::Any)
    };
    let pppoe = GroupRule {
        ethertype: Some(0x8863),
        ..GroupRule::all(RuleDirection::In, Peer::Any)
    };
    let group = |name: &str, rules| Group {
        name: name.to_owned(),
        stateful: chosen & 128 == 0,
        rules,
    };
    let web = group("web", Some(vec![rule, ping, link, pppoe]));
    let db = group("db", (chosen & 256 != 0).then(Vec::new));
    let address = "192.0.2.0/24".parse().expect("a prefix");
    let set = Set {
        name: "admins".to_owned(),
        addresses: Some(vec![address]),
        file: None,
    };
    (vec![web, db], vec![set])
}

/// Gives some guests groups.
fn with_groups(mut config: Config, chosen: u64) -> Config {
    (config.groups, config.sets) = groups(chosen);
    for (number, port) in config.ports.iter_mut().enumerate() {
        if let (PortKind::Vhost(guest), false) = (&mut port.kind, config.groups.is_empty()) {
            let names = [("web", 0), ("db", 1)].map(|(name, bit)| {
                let is_chosen = chosen >> (9 + (number * 2 + bit) % 20) & 1 == 1;
                is_chosen.then(|| name.to_owned())
            });
            guest.groups = names.into_iter().flatten().collect();
            guest.connections_max = 1 + (chosen >> 44) as u32 % 1_048_576;
            guest.connections_rate = (chosen >> 40) as u32 % 10_000_000;
        }
    }
    config
}

/// Complete configurations, as [`Config::parse`] could return them.
pub fn config() -> impl Strategy<Value = Config> {
    let switch = (
        2..=86_400_u64,
        12..=16_u32,
        0..=FDB_MOVES_MAX_MAX,
        2..=3600_u64,
    );
    let switch = switch.prop_map(|(seconds, power, moves, window_s)| Switch {
        fdb_ageing: Duration::from_secs(seconds),
        fdb_moves_max: moves,
        fdb_moves_window: Duration::from_secs(window_s),
        fdb_capacity: FDB_BUCKET_ENTRIES << power,
        suppress_neighbors: moves % 2 == 0,
        dhcp_snooping: moves % 2 == 1,
    });
    let listen = select(vec![None, Some("127.0.0.1:9477"), Some("[::]:1")]);
    let listen = listen.prop_map(|text| text.map(|text| text.parse().expect("an address")));
    let file = "/etc/[a-z]{1,4}";
    let tls = (file, file, option::of(file)).prop_map(|(certificate, key, client_ca)| MetricsTls {
        certificate: certificate.into(),
        key: key.into(),
        client_ca: client_ca.map(Into::into),
    });
    let metrics = (listen, option::of(tls), option::of(file));
    let metrics = metrics.prop_map(|(listen, tls, token_file)| Metrics {
        listen,
        tls,
        token_file: token_file.map(Into::into),
    });
    (
        (workers(), switch, metrics),
        (
            "/run/[a-z]{1,4}",
            option::of("/etc/[a-z]{1,4}"),
            any::<bool>(),
        ),
        ports(),
        any::<u64>(),
    )
        .prop_map(
            |((workers, switch, metrics), (socket, ports_dir, watch), ports, chosen)| {
                let config = Config {
                    workers,
                    switch,
                    metrics,
                    control: Control {
                        socket: socket.into(),
                    },
                    watch_ports: watch && ports_dir.is_some(),
                    ports_dir: ports_dir.map(Into::into),
                    fdb: statics(&ports, chosen),
                    mirrors: mirrors(&ports, chosen),
                    ports,
                    ..Config::default()
                };
                with_groups(config, chosen)
            },
        )
}
