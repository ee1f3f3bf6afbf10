//! Ports that come, go and change while others are busy.

use std::time::{Duration, Instant};

use crosspoint_config::Addresses;
use crosspoint_daemon::dataplane::PortSettings;
use crosspoint_daemon::ports::vhost::{VhostPort, VhostPortError};
use crosspoint_engine::bridge::storm::StormLimits;
use crosspoint_engine::bridge::vlan::VlanPolicy;
use crosspoint_engine::stages::meter::{RateLimit, RateLimits};
use crosspoint_model::status::{ShownState, Status};
use crosspoint_packet::Mac;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::{Case, Load, Loss, PORTS, Switch, port_options, vhost_config};

/// Number of guests that come and go in one round.
const ROUND: usize = 20;

impl Switch {
    /// Opens a port that did not exist at the start.
    fn open(&self, name: &str) -> (u16, VhostPort) {
        let number = self.dataplane.add_port(port_options(name, 1));
        let number = number.expect("a number is free");
        let config = vhost_config(self.directory.path(), name, 1);
        let port = VhostPort::open(self.dataplane.clone(), number, name, &config);
        (number, port.expect("nothing is in the way"))
    }
}

/// Checks that every received frame and every delivered copy is counted at a present port or among the removed ones.
pub fn assert_balanced(status: &Status) {
    let gone = &status.removed;
    let (mut taken, mut ended) = (
        gone.rx_packets + gone.flood_copies,
        gone.delivered_copies + gone.dropped_copies,
    );
    let (mut delivered, mut sent) = (gone.delivered_copies, gone.tx_packets);
    let (mut dropped, mut drops) = (gone.dropped_copies, gone.drops.values().sum::<u64>());
    for queue in status.ports.iter().flat_map(|port| &port.queues) {
        taken += queue.rx_packets + queue.flood_copies;
        ended += queue.delivered_copies + queue.dropped_copies;
        delivered += queue.delivered_copies;
        dropped += queue.dropped_copies;
        sent += queue.tx_packets;
        drops += queue.drops.values().sum::<u64>();
    }
    assert_eq!(
        (taken, delivered, dropped),
        (ended, sent, drops),
        "{gone:?}"
    );
}

#[test]
fn ports_that_come_and_go_cost_the_others_nothing() {
    Case::each(|case| {
        let switch = Switch::start(case.workers, &PORTS, 1);
        let others = switch.bystanders(case);
        for round in 0..3 {
            let names: Vec<String> = (0..ROUND).map(|n| format!("guest-{round}-{n}")).collect();
            let opened: Vec<_> = names.iter().map(|name| switch.open(name)).collect();
            // Two of them are busy when they are removed.
            let mut a = switch.guest(&names[0], case.guest(0));
            let mut b = switch.guest(&names[1], case.guest(0));
            let load = Load::start(&mut a, &mut b, 1, Loss::Counted);
            load.flow(100);
            for (number, port) in opened {
                drop(port);
                switch.dataplane.remove_port(number);
            }
            drop(load.abort());
            let status = switch.dataplane.status();
            assert_eq!(status.ports.len(), PORTS.len());
            assert_eq!(status.removed.ports, (ROUND * (round + 1)) as u64);
        }
        others.check(&switch);
        assert_balanced(&switch.dataplane.status());
    });
}

#[test]
fn who_gets_the_number_of_a_port_that_is_gone_gets_nothing_else_of_it() {
    let switch = Switch::start(2, &PORTS, 1);
    let case = Case {
        packed: false,
        in_order: false,
        workers: 2,
    };
    for _ in 0..10 {
        let (number, port) = switch.open("first");
        let mut a = switch.guest("first", case.guest(0));
        let mut b = switch.guest("b", case.guest(0));
        let load = Load::start(&mut a, &mut b, 1, Loss::Counted);
        load.flow(20);
        assert!(switch.port("first").addresses > 0);
        drop(port);
        switch.dataplane.remove_port(number);
        drop(load.abort());
        drop(b);
        let (again, port) = switch.open("second");
        assert_eq!(again, number);
        let second = switch.port("second");
        assert_eq!((second.addresses, second.state), (0, ShownState::Down));
        assert_eq!(second.queues[0].rx_packets + second.queues[0].tx_packets, 0);
        let known = switch.dataplane.fdb();
        assert!(
            known.iter().all(|entry| entry.port != "second"),
            "{known:?}"
        );
        drop(port);
        switch.dataplane.remove_port(again);
    }
    assert_balanced(&switch.dataplane.status());
}

#[test]
fn what_changes_in_place_costs_no_frame() {
    Case::each(|case| {
        let switch = Switch::start(case.workers, &PORTS, 1);
        let others = switch.bystanders(case);
        let mut a = switch.guest("a", case.guest(0));
        let mut b = switch.guest("b", case.guest(0));
        let load = Load::start(&mut a, &mut b, 1, Loss::None);
        let a_number = switch.dataplane.port_number("a").expect("a port");
        for turn in 0..20u32 {
            load.flow(30);
            let worker = (turn % 3 != 0).then_some(turn as usize % case.workers);
            switch.dataplane.set_port(
                a_number,
                PortSettings {
                    mac_limit: Some(turn),
                    mac_limit_action: None,
                    worker: Some(worker),
                    forward_control: None,
                    loop_protect: None,
                    disabled: None,
                    required: Some(turn % 2 == 0),
                    weight: Some(1 + turn),
                    // Frames of a known pair are not flooded.
                    storm: Some(StormLimits {
                        broadcast: turn,
                        ..StormLimits::default()
                    }),
                    addresses: Some(of_mac(match turn % 3 {
                        0 => Vec::new(),
                        _ => vec![Mac::new([0x52, 0x54, 0, 0, 1, 0])],
                    })),
                    // More than the load is.
                    dhcp_server: Some(turn % 2 == 0),
                    isolated: None,
                    bridges: None,
                    rates: Some(RateLimits {
                        out: RateLimit {
                            packets_per_s: 1_000_000 + u64::from(turn),
                            ..RateLimit::default()
                        },
                        in_: RateLimit::default(),
                    }),
                    // In both cases it carries its pair's VLAN.
                    vlan: Some(match turn % 2 {
                        0 => (VlanPolicy::Access(10), "access 10".to_owned()),
                        _ => (VlanPolicy::trunk(&[20], Some(10)), "trunk 20".to_owned()),
                    }),
                },
            );
            let stream = switch.port("a").queues[0].worker.expect("it is polled");
            assert!(worker.is_none_or(|worker| worker == stream));
        }
        load.finish().expect_all();
        others.check(&switch);
        switch.check_ledger();
    });
}

#[test]
fn the_ageing_time_can_change() {
    let switch = Switch::start(1, &PORTS, 1);
    let case = Case {
        packed: false,
        in_order: false,
        workers: 1,
    };
    let mut a = switch.guest("a", case.guest(0));
    let mut b = switch.guest("b", case.guest(0));
    Load::start(&mut a, &mut b, 1, Loss::None)
        .finish()
        .expect_all();
    assert!(!switch.dataplane.fdb().is_empty());
    switch.dataplane.set_ageing(Duration::from_secs(2));
    assert_eq!(switch.dataplane.status().fdb.ageing_s, 2);
    switch.wait("a", |port| port.addresses == 0);
}

/// A process that may write to the folder of guests' sockets can listen there and never accept.
#[test]
fn a_socket_on_which_no_process_accepts_delays_no_other_port() {
    let switch = Switch::start(1, &PORTS, 1);
    let path = switch.socket("taken");
    let address = SocketAddrUnix::new(&path).expect("a path");
    let unix = |flags| net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None);
    let listener = unix(SocketFlags::empty()).expect("a socket");
    net::bind(&listener, &address).expect("a free path");
    net::listen(&listener, 0).expect("a socket");
    let mut waiting = Vec::new();
    // Until its backlog is full.
    loop {
        let client = unix(SocketFlags::NONBLOCK).expect("a socket");
        match net::connect(&client, &address) {
            Ok(()) => waiting.push(client),
            Err(_) => break,
        }
    }
    let number = switch.dataplane.add_port(port_options("taken", 1));
    let number = number.expect("a number is free");
    let config = vhost_config(switch.directory.path(), "taken", 1);
    let start = Instant::now();
    let refused = VhostPort::open(switch.dataplane.clone(), number, "taken", &config);
    assert!(matches!(refused, Err(VhostPortError::InUse { .. })));
    assert!(start.elapsed() < Duration::from_secs(5) && path.exists());
}

fn of_mac(mac: Vec<Mac>) -> Addresses {
    Addresses {
        mac,
        ip: Vec::new(),
    }
}
