//! Guest ports, with real front ends on real sockets and a real worker.

#[path = "vhost/access.rs"]
mod access;
#[path = "vhost/connections.rs"]
mod connections;
#[path = "vhost/dhcp.rs"]
mod dhcp;
#[path = "vhost/large.rs"]
mod large;
#[path = "vhost/leaving.rs"]
mod leaving;
#[path = "vhost/link.rs"]
mod link;
#[path = "vhost/messages.rs"]
mod messages;
#[path = "vhost/offloads.rs"]
mod offloads;
#[path = "vhost/places.rs"]
mod places;
#[path = "vhost/transfer.rs"]
mod transfer;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crosspoint_config::VhostPort as PortConfig;
use crosspoint_daemon::dataplane::{BalanceOptions, Dataplane, DataplaneOptions, PortOptions};
use crosspoint_daemon::ports::vhost::VhostPort;
use crosspoint_engine::bridge::fdb::Damping;
use crosspoint_guest::{Guest, GuestOptions, Session};
use crosspoint_model::status::{DeviceStatus, PortStatus, ShownState};
use tempfile::TempDir;

/// Longer than anything here takes, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A switch with one worker, which sleeps at once, and guest ports.
struct Switch {
    // In this order: ports release the dataplane before it ends.
    _ports: Vec<VhostPort>,
    dataplane: Arc<Dataplane>,
    directory: TempDir,
}

fn port_config(socket: PathBuf) -> PortConfig {
    PortConfig {
        socket,
        ..PortConfig::default()
    }
}

fn add_port(dataplane: &Dataplane, name: &str, queue_pairs: u16) -> u16 {
    let number = dataplane.add_port(PortOptions {
        name: name.to_owned(),
        vlan_text: "unaware".to_owned(),
        queues: queue_pairs.into(),
        ..PortOptions::default()
    });
    number.expect("a number is free")
}

impl Switch {
    /// Opens ports with these names; `change` may change their configuration.
    fn start(names: &[&str], change: impl Fn(&mut PortConfig)) -> Switch {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let core = core_affinity::get_core_ids().expect("cores")[0].id;
        let dataplane = Dataplane::start(DataplaneOptions {
            cores: vec![core],
            sleep_after: Some(Duration::from_micros(50)),
            fdb_capacity: 28_672,
            fdb_ageing: Duration::from_secs(300),
            fdb_damping: Damping::OFF,
            nic_queues: 0,
            balance: BalanceOptions::default(),
        })
        .expect("a worker");
        let ports = names.iter().map(|name| {
            let mut config = port_config(directory.path().join(name));
            change(&mut config);
            let number = add_port(&dataplane, name, config.queue_pairs);
            VhostPort::open(dataplane.clone(), number, name, &config)
                .expect("nothing is in the way")
        });
        Switch {
            _ports: ports.collect(),
            dataplane,
            directory,
        }
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn guest(&self, name: &str, options: GuestOptions) -> Guest {
        let guest = Guest::connect(self.socket(name), options).expect("the guest connects");
        self.wait(name, |port| port.state == ShownState::Up);
        guest
    }

    fn session(&self, name: &str) -> Session {
        Session::connect(self.socket(name), PATIENCE).expect("the switch listens")
    }

    fn port(&self, name: &str) -> PortStatus {
        let mut ports = self.dataplane.status().ports.into_iter();
        ports.find(|port| port.name == name).expect("a port")
    }

    fn device(&self, name: &str) -> DeviceStatus {
        self.port(name).device.expect("a device")
    }

    /// Waits until `is` holds for the port.
    fn wait(&self, name: &str, is: impl Fn(&PortStatus) -> bool) {
        let start = Instant::now();
        while !is(&self.port(name)) {
            assert!(start.elapsed() < PATIENCE, "{:#?}", self.port(name));
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Checks that every lost frame is counted with a reason.
    fn check_ledger(&self) {
        let (mut delivered, mut dropped, mut sent, mut drops) = (0, 0, 0, 0);
        for queue in self.dataplane.status().ports.iter().flat_map(|p| &p.queues) {
            let copies = queue.delivered_copies + queue.dropped_copies + queue.joined_copies;
            let made = queue.flood_copies + queue.segment_copies + queue.mirror_copies;
            assert_eq!(queue.rx_packets + made, copies, "{queue:#?}");
            delivered += queue.delivered_copies;
            dropped += queue.dropped_copies;
            sent += queue.tx_packets;
            drops += queue.drops.values().sum::<u64>();
        }
        assert_eq!((delivered, dropped), (sent, drops));
    }
}
