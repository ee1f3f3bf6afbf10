//! The meaning of valid files.

// Where a test gives every key today, a new one takes its default.
#![allow(clippy::needless_update)]

use std::time::Duration;

use crosspoint_config::{
    Access, Admin, Balance, Config, Cores, Direct, HugePages, LoopAction, LoopProtect, Offloads,
    Poll, Port, PortKind, Queues, Role, Rss, Slo, Tso, VhostPort, Vlan, XdpMode, XdpPort,
};
use crosspoint_engine::bridge::storm::StormLimits;
use crosspoint_engine::stages::meter::{RateLimit, RateLimits};
use crosspoint_packet::Mac;

/// Parses a file of version 1 with these lines.
fn parse(lines: &str) -> Config {
    match Config::parse("switch.toml", &format!("version = 1\n{lines}")) {
        Ok(config) => config,
        Err(error) => panic!("{}", error.render()),
    }
}

fn vhost(vlan: &str) -> Port {
    let mut config = parse(&format!(
        "[[port]]\nname = \"a\"\ntype = \"vhost\"\nsocket = \"/run/a\"\n{vlan}\n"
    ));
    config.ports.remove(0)
}

#[test]
fn a_version_alone_gives_the_defaults() {
    assert_eq!(parse(""), Config::default());
    assert_eq!(
        parse("port = []\n[workers]\n[switch]\n[metrics]\n[control]\n"),
        Config::default()
    );
}

#[test]
fn each_section_is_read() {
    let config = parse(
        "[workers]\ncores = [3, 2]\npoll = \"busy\"\nidle_spin = \"2ms\"\nbalance = \"off\"\nbalance_interval = \"250ms\"\n\
         [switch]\nfdb_ageing = \"24h\"\nfdb_capacity = 30000\nfdb_moves_max = 0\nfdb_moves_window = \"1h\"\n\
         [metrics]\nlisten = \"[::1]:80\"\n[control]\nsocket = \"/run/c\"\n",
    );
    assert_eq!(config.workers.cores, Cores::List(vec![3, 2]));
    assert_eq!(config.workers.poll, Poll::Busy);
    assert_eq!(config.workers.idle_spin, Duration::from_millis(2));
    assert_eq!(config.workers.balance, Balance::Off);
    assert_eq!(config.workers.balance_interval, Duration::from_millis(250));
    assert_eq!(config.switch.fdb_ageing, Duration::from_secs(86_400));
    assert_eq!(config.switch.damping().moves_max, 0);
    assert_eq!(config.switch.damping().window_s, 3600);
    assert_eq!(config.metrics.listen, "[::1]:80".parse().ok());
    assert_eq!(config.control.socket.to_str(), Some("/run/c"));
}

#[test]
fn a_collectors_port_is_that_of_sflow_unless_it_is_given() {
    let collector = |text: &str| {
        let config = parse(&format!(
            "[sflow]\ncollector = {text:?}\npolling = \"off\"\n"
        ));
        assert_eq!(config.sflow.polling, None);
        config.sflow.collector.map(|address| address.to_string())
    };
    let known = [
        ("192.0.2.1", "192.0.2.1:6343"),
        ("192.0.2.1:9", "192.0.2.1:9"),
        ("2001:db8::1", "[2001:db8::1]:6343"),
        ("[2001:db8::1]", "[2001:db8::1]:6343"),
        ("[2001:db8::1]:9", "[2001:db8::1]:9"),
    ];
    for (text, address) in known {
        assert_eq!(collector(text).as_deref(), Some(address));
    }
    let config = parse("");
    assert_eq!(config.sflow.sampling, 4096);
    assert_eq!(config.sflow.polling, Some(Duration::from_secs(20)));
    assert_eq!(config.sflow.ports, ["*"]);
}

/// Like `ports_dir`, and unlike the working directory of the process that starts the switch.
#[test]
fn files_of_metrics_lie_beside_the_configuration() {
    let lines = "metrics = { tls = { certificate = \"a.crt\", key = \"/k/a.key\", client_ca = \"ca.crt\" }, token_file = \"token\" }";
    let text = format!("version = 1\n{lines}\n");
    let config = Config::parse("/etc/crosspoint/main.toml", &text).expect("it is right");
    let tls = config.metrics.tls.expect("it is there");
    let of = |path: &str| std::path::PathBuf::from(path);
    assert_eq!(tls.certificate, of("/etc/crosspoint/a.crt"));
    assert_eq!(tls.key, of("/k/a.key"));
    assert_eq!(tls.client_ca, Some(of("/etc/crosspoint/ca.crt")));
    assert_eq!(config.metrics.token_file, Some(of("/etc/crosspoint/token")));
    assert_eq!(parse("").metrics.tls, None);
}

#[test]
fn metrics_can_be_off() {
    assert_eq!(parse("metrics.listen = \"off\"").metrics.listen, None);
}

#[test]
fn the_fdb_has_seven_times_a_power_of_two() {
    for (asked, given) in [
        (100_000, 114_688),
        (28_672, 28_672),
        (28_673, 57_344),
        (458_752, 458_752),
    ] {
        assert_eq!(
            parse(&format!("switch.fdb_capacity = {asked}"))
                .switch
                .fdb_capacity,
            given,
            "{asked}"
        );
    }
}

#[test]
fn a_guest_takes_the_defaults() {
    let kind = PortKind::Vhost(VhostPort {
        socket: "/run/a".into(),
        role: Role::Server,
        access: Access::default(),
        queue_pairs: 1,
        mac: None,
        mtu: 1500,
        offloads: Offloads {
            receive: true,
            transmit: true,
        },
        direct: None,
        ..VhostPort::default()
    });
    assert_eq!(
        vhost(""),
        Port {
            name: "a".into(),
            vlan: Vlan::Unaware,
            mac_limit: 1024,
            weight: 1,
            storm: StormLimits {
                broadcast: 100_000,
                multicast: 1_000_000,
                unknown_unicast: 100_000,
            },
            addresses: Default::default(),
            forward_control: crosspoint_engine::stages::control::ControlAddresses::NONE,
            loop_protect: None,
            worker: None,
            admin: Admin::Up,
            required: false,
            limit: RateLimits::default(),
            dhcp_server: false,
            isolated: false,
            slo: None,
            kind,
            ..Port::default()
        }
    );
}

#[test]
fn an_uplink_takes_the_defaults() {
    let config = parse("[[port]]\nname = \"up\"\ntype = \"xdp\"\ninterface = \"eth0\"\n");
    let kind = PortKind::Xdp(XdpPort {
        interface: "eth0".into(),
        take_over: false,
        queues: Queues::All,
        mode: XdpMode::Auto,
        mtu: None,
        gro: true,
        tso: Tso::Auto,
        busy_poll: false,
        huge_pages: HugePages::Transparent,
        channels: None,
        rss: Rss::Keep,
        ..XdpPort::default()
    });
    assert_eq!(
        config.ports,
        [Port {
            name: "up".into(),
            vlan: Vlan::Unaware,
            mac_limit: 0,
            weight: 1,
            storm: StormLimits::default(),
            addresses: Default::default(),
            forward_control: crosspoint_engine::stages::control::ControlAddresses::NONE,
            loop_protect: None,
            worker: None,
            admin: Admin::Up,
            required: true,
            limit: RateLimits::default(),
            dhcp_server: true,
            isolated: false,
            slo: None,
            kind,
            ..Port::default()
        }]
    );
}

#[test]
fn limits_that_are_left_out_keep_their_defaults() {
    let port = vhost("weight = 1000\nstorm = { broadcast = 0, unknown_unicast = 7 }");
    let storm = StormLimits {
        broadcast: 0,
        multicast: 1_000_000,
        unknown_unicast: 7,
    };
    assert_eq!((port.weight, port.storm), (1000, storm));
}

#[test]
fn control_frames_are_named_or_given_by_address() {
    let port = vhost("forward_control = [\"lldp\", \"stp\", \"01:80:C2:00:00:05\"]");
    assert!(port.forward_control.iter().eq([0, 5, 14]));
    assert!(vhost("").forward_control.is_empty());
    let protect = |action, seconds| {
        Some(LoopProtect {
            action,
            block_time: Duration::from_secs(seconds),
        })
    };
    assert_eq!(vhost("").loop_protect, None);
    let empty = vhost("loop_protect = {}").loop_protect;
    assert_eq!(empty, protect(LoopAction::Report, 60));
    let block = vhost("loop_protect = { action = \"block\", block_time = \"5m\" }");
    assert_eq!(block.loop_protect, protect(LoopAction::Block, 300));
}

#[test]
fn an_address_is_on_one_port_of_a_vlan() {
    let port = |number: u8, vlan: &str| {
        format!(
            "[[port]]\nname = \"p{number}\"\ntype = \"vhost\"\nsocket = \"/run/{number}\"\n{vlan}\n\
             addresses = {{ mac = [\"52:54:00:00:00:01\"] }}\n"
        )
    };
    let apart = [
        "vlan = { access = 1 }",
        "vlan = { trunk = [2, 3] }",
        "vlan = { trunk = [4], native = 5 }",
    ];
    let ports: String = (0..).zip(apart).map(|(n, vlan)| port(n, vlan)).collect();
    let mac = Mac::new([0x52, 0x54, 0, 0, 0, 1]);
    let config = parse(&ports);
    assert!(config.ports.iter().all(|port| port.addresses.mac == [mac]));
    for fourth in ["", "vlan = { access = 5 }", "vlan = { trunk = [9, 3] }"] {
        let text = format!("version = 1\n{ports}{}", port(9, fourth));
        let error = Config::parse("switch.toml", &text).expect_err("a VLAN is shared");
        assert_eq!(error.problems().count(), 1, "{fourth}: {}", error.render());
    }
}

#[test]
fn each_word_is_read() {
    for (word, mode) in [
        ("auto", XdpMode::Auto),
        ("zero-copy", XdpMode::ZeroCopy),
        ("copy", XdpMode::Copy),
        ("generic", XdpMode::Generic),
    ] {
        let config = parse(&format!(
            "[[port]]\nname = \"up\"\ntype = \"xdp\"\ninterface = \"eth0\"\nqueues = [1, 0]\nmode = \"{word}\"\n"
        ));
        let PortKind::Xdp(uplink) = &config.ports[0].kind else {
            panic!("not an uplink")
        };
        assert_eq!(
            (&uplink.queues, uplink.mode),
            (&Queues::List(vec![1, 0]), mode)
        );
    }
    let PortKind::Vhost(client) = vhost("role = \"client\"\nqueue_pairs = 16").kind else {
        panic!("not a guest")
    };
    assert_eq!((client.role, client.queue_pairs), (Role::Client, 16));
}

#[test]
fn who_may_connect_is_read() {
    for (text, mode) in [("0660", 0o660), ("660", 0o660), ("0000", 0)] {
        let port = vhost(&format!(
            "socket_mode = \"{text}\"\nsocket_group = \"libvirt-qemu\""
        ));
        let PortKind::Vhost(guest) = &port.kind else {
            panic!("not a guest")
        };
        let access = Access {
            mode: Some(mode),
            group: Some("libvirt-qemu".to_owned()),
        };
        assert_eq!(guest.access, access);
        // The written form is read back unchanged.
        let again = parse(&port.to_toml());
        assert_eq!(again.ports, [port]);
    }
}

#[test]
fn limits_are_read_with_their_units_and_have_a_burst() {
    for (text, out, in_) in [
        (
            "out = { rate = \"1Gbit/s\" }",
            RateLimit {
                bits_per_s: 1_000_000_000,
                burst_bytes: 625_000,
                packets_per_s: 0,
            },
            RateLimit::default(),
        ),
        (
            "out = { rate = \"2.5Mbit/s\", burst = \"256KiB\", packets = \"500k/s\" }, in = { packets = \"1M/s\" }",
            RateLimit {
                bits_per_s: 2_500_000,
                burst_bytes: 256 << 10,
                packets_per_s: 500_000,
            },
            RateLimit {
                bits_per_s: 0,
                burst_bytes: 0,
                packets_per_s: 1_000_000,
            },
        ),
        (
            "in = { rate = \"100Gbit/s\" }",
            RateLimit::default(),
            RateLimit {
                bits_per_s: 100_000_000_000,
                burst_bytes: 4 << 20,
                packets_per_s: 0,
            },
        ),
    ] {
        assert_eq!(
            vhost(&format!("limit = {{ {text} }}")).limit,
            RateLimits { out, in_ },
            "{text}"
        );
    }
}

#[test]
fn objectives_are_read() {
    let (short, long) = (Duration::from_micros(1), Duration::from_secs(10));
    for (text, p50, p99) in [
        ("{ completion_p99 = \"1us\" }", None, Some(short)),
        ("{ completion_p50 = \"10s\" }", Some(long), None),
        (
            "{ completion_p50 = \"1us\", completion_p99 = \"10s\" }",
            Some(short),
            Some(long),
        ),
    ] {
        let slo = Slo {
            completion_p50: p50,
            completion_p99: p99,
        };
        assert_eq!(vhost(&format!("slo = {text}")).slo, Some(slo));
    }
}

#[test]
fn what_the_guest_is_told_is_read() {
    let PortKind::Vhost(guest) = vhost("mac = \"52:54:00:aB:Cd:0f\"\nmtu = 68").kind else {
        panic!("not a guest")
    };
    let mac = Mac::new([0x52, 0x54, 0, 0xab, 0xcd, 0x0f]);
    assert_eq!((guest.mac, guest.mtu), (Some(mac), 68));
}

#[test]
fn how_an_interface_is_to_be_set_is_read() {
    for (word, huge_pages) in [
        ("transparent", HugePages::Transparent),
        ("reserved", HugePages::Reserved),
        ("never", HugePages::Never),
    ] {
        let config = parse(&format!(
            "[[port]]\nname = \"up\"\ntype = \"xdp\"\ninterface = \"eth0\"\nmtu = 9000\ngro = false\ntso = \"off\"\n\
             busy_poll = true\nhuge_pages = \"{word}\"\nchannels = 4096\nrss = \"queues\"\nqueues = [4095]\ntake_over = true\n"
        ));
        let kind = PortKind::Xdp(XdpPort {
            interface: "eth0".into(),
            take_over: true,
            queues: Queues::List(vec![4095]),
            mode: XdpMode::Auto,
            mtu: Some(9000),
            gro: false,
            tso: Tso::Off,
            busy_poll: true,
            huge_pages,
            channels: Some(4096),
            rss: Rss::Queues,
            ..XdpPort::default()
        });
        assert_eq!(config.ports[0].kind, kind);
    }
}

#[test]
fn a_guest_has_the_queue_of_an_uplink_that_comes_before_or_after_it() {
    let guest = "[[port]]\nname = \"a\"\ntype = \"vhost\"\nsocket = \"/run/a\"\ndirect = { uplink = \"up\", queue = 3 }\n";
    let uplink = "[[port]]\nname = \"up\"\ntype = \"xdp\"\ninterface = \"eth0\"\n";
    for (lines, at) in [([guest, uplink], 0), ([uplink, guest], 1)] {
        let config = parse(&lines.concat());
        let PortKind::Vhost(guest) = &config.ports[at].kind else {
            panic!("not a guest")
        };
        let direct = Direct {
            uplink: "up".into(),
            queue: 3,
        };
        assert_eq!(guest.direct, Some(direct));
        assert_eq!(config.direct_queues("up"), [3]);
        assert!(config.direct_queues("other").is_empty());
    }
}

#[test]
fn vlans_are_read() {
    assert_eq!(vhost("vlan = { access = 4094 }").vlan, Vlan::Access(4094));
    assert_eq!(
        vhost("vlan = { trunk = [2, 1] }").vlan,
        Vlan::Trunk {
            ids: vec![2, 1],
            native: None
        }
    );
    // A native VLAN may be listed in the trunk, but need not be.
    for ids in [vec![1, 2], vec![2]] {
        let vlan = vhost(&format!("vlan = {{ trunk = {ids:?}, native = 1 }}")).vlan;
        assert_eq!(
            vlan,
            Vlan::Trunk {
                ids,
                native: Some(1)
            }
        );
    }
    assert_eq!(vhost("[port.vlan]\naccess = 7").vlan, Vlan::Access(7));
}

#[test]
fn a_byte_order_mark_and_crlf_are_no_mistakes() {
    let config = Config::parse(
        "switch.toml",
        "\u{feff}version = 1\r\n[workers]\r\npoll = \"busy\"\r\n",
    );
    assert_eq!(
        config.map(|config| config.workers.poll).ok(),
        Some(Poll::Busy)
    );
}

#[test]
fn names_and_paths_may_be_as_long_as_the_kernel_takes() {
    let (name, socket, interface) = (
        "n".repeat(32),
        format!("/{}", "s".repeat(106)),
        "i".repeat(15),
    );
    let config = parse(&format!(
        "[[port]]\nname = \"{name}\"\ntype = \"vhost\"\nsocket = \"{socket}\"\n\
         [[port]]\nname = \"up\"\ntype = \"xdp\"\ninterface = \"{interface}\"\n"
    ));
    assert_eq!(config.ports.len(), 2);
}

#[test]
fn a_comment_does_not_make_another_configuration() {
    assert_eq!(
        parse("workers.cores = [1]"),
        parse("# one core\nworkers.cores = [1]")
    );
    assert_ne!(parse("workers.cores = [1]"), parse("workers.cores = [2]"));
}

#[test]
fn auto_leaves_the_first_core_to_others() {
    let cores = |affinity: &[usize]| parse("").resolve_cores(affinity).ok();
    assert_eq!(cores(&[0, 1, 2, 3]), Some(vec![1, 2, 3]));
    assert_eq!(cores(&[7, 5, 6]), Some(vec![6, 7]));
    assert_eq!(cores(&[4]), Some(vec![4]));
    assert_eq!(cores(&[]), None);
    assert_eq!(
        cores(&(0..200).collect::<Vec<_>>()),
        Some((1..=64).collect())
    );
}

#[test]
fn listed_cores_are_taken_as_listed() {
    assert_eq!(
        parse("workers.cores = [3, 1]")
            .resolve_cores(&[0, 1, 2, 3])
            .ok(),
        Some(vec![3, 1])
    );
}

#[test]
fn a_port_can_name_its_worker() {
    assert_eq!(vhost("worker = 2\n").worker, Some(2));
    let config = parse(
        "workers.cores = [7]\n[[port]]\nname = \"up\"\ntype = \"xdp\"\ninterface = \"eth0\"\nworker = 0\n",
    );
    assert_eq!(config.ports[0].worker, Some(0));
}

#[test]
fn an_offload_that_is_not_named_is_offered() {
    for (line, receive, transmit) in [
        ("", true, true),
        ("offloads = {}", true, true),
        ("offloads = { receive = false }", false, true),
        (
            "offloads = { transmit = false, receive = true }",
            true,
            false,
        ),
    ] {
        let PortKind::Vhost(guest) = vhost(line).kind else {
            panic!("a guest");
        };
        assert_eq!(guest.offloads, Offloads { receive, transmit }, "{line}");
    }
}

#[test]
fn what_a_mirror_waits_for_is_known_beforehand() {
    let port = "[[port]]\nname = \"web-1\"\ntype = \"vhost\"\nsocket = \"/run/a\"\n";
    let mirror =
        |to, ports| format!("[[mirror]]\nname = \"ids\"\nports = [{ports}]\nto = \"{to}\"\n");
    let waiting = |to, ports| {
        let lines = format!("ports_dir = \"ports.d\"\n{port}{}", mirror(to, ports));
        parse(&lines).waiting_mirrors()
    };
    assert_eq!(
        waiting("nope", r#""web-*", "web-1", "zz*""#),
        [
            "[[mirror]] ids waits for port \"nope\", which is in no file",
            "[[mirror]] ids copies from \"zz*\", which matches no port of the files",
        ]
    );
    assert!(waiting("web-1", r#""*""#).is_empty());
}
