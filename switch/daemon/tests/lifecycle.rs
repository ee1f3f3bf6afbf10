//! A guest's life between its first frame and its last: memory that comes and goes, migration, switches that die, rings
//! that stop and start. Front ends and workers are real, and frames flow all the time. Each frame has a number, each
//! byte is checked, and a pair of guests that is not touched loses nothing.

#[path = "lifecycle/direct.rs"]
mod direct;
#[path = "lifecycle/disabled.rs"]
mod disabled;
#[path = "lifecycle/frames.rs"]
mod frames;
#[path = "lifecycle/inflight.rs"]
mod inflight;
#[path = "lifecycle/load.rs"]
mod load;
#[path = "lifecycle/log.rs"]
mod log;
#[path = "lifecycle/lost.rs"]
mod lost;
#[path = "lifecycle/memory.rs"]
mod memory;
#[path = "lifecycle/moving.rs"]
mod moving;
#[path = "lifecycle/objectives.rs"]
mod objectives;
#[path = "lifecycle/ports.rs"]
mod ports;
#[path = "lifecycle/reload.rs"]
mod reload;
#[path = "lifecycle/rings.rs"]
mod rings;
#[path = "lifecycle/sets.rs"]
mod sets;
#[path = "lifecycle/sources.rs"]
mod sources;
#[path = "lifecycle/stalls.rs"]
mod stalls;
#[path = "lifecycle/statics.rs"]
mod statics;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crosspoint_config::VhostPort as PortConfig;
use crosspoint_daemon::dataplane::{BalanceOptions, Dataplane, DataplaneOptions, PortOptions};
use crosspoint_daemon::ports::vhost::VhostPort;
use crosspoint_engine::bridge::fdb::Damping;
use crosspoint_engine::bridge::vlan::VlanPolicy;
use crosspoint_guest::message::protocol;
use crosspoint_guest::net::features;
use crosspoint_guest::{Guest, GuestOptions};
use crosspoint_model::status::{PortStatus, ShownState};
use load::{Load, Loss};
use tempfile::TempDir;

/// Longer than anything here takes, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// The tested pair (its first guest is manipulated), and the pair of bystanders.
const PORTS: [&str; 4] = ["a", "b", "c", "d"];

/// A port with a configured worker.
const PINNED: (&str, usize) = ("pinned", 1);

/// Parameters of a test run: every guarantee holds for both kinds of ring, used in order or not, and for one and two
/// workers.
#[derive(Clone, Copy, Debug)]
struct Case {
    packed: bool,
    /// With IN_ORDER and EVENT_IDX.
    in_order: bool,
    workers: usize,
}

impl Case {
    fn each(test: impl Fn(Case)) {
        for packed in [false, true] {
            for (workers, in_order) in [(1, false), (2, false), (2, true)] {
                let case = Case {
                    packed,
                    in_order,
                    workers,
                };
                println!("{case:?}");
                test(case);
            }
        }
    }

    /// An ordinary guest with these protocol features in addition to REPLY_ACK.
    fn guest(self, protocol_features: u64) -> GuestOptions {
        let mut features = GuestOptions::default().features;
        if self.in_order {
            features |= features::IN_ORDER | features::EVENT_IDX;
        }
        GuestOptions {
            packed: self.packed,
            features,
            protocol_features: protocol_features | protocol::REPLY_ACK,
            rx_posted: 0, // `Load` posts its own
            ..GuestOptions::default()
        }
    }
}

/// Stands in for the daemon's main thread.
struct Housekeeper {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Housekeeper {
    fn start(dataplane: Arc<Dataplane>) -> Housekeeper {
        let stop = Arc::new(AtomicBool::new(false));
        let (seen, start) = (stop.clone(), Instant::now());
        let thread = std::thread::spawn(move || {
            while !seen.load(Ordering::Relaxed) {
                dataplane.housekeep(start.elapsed());
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        Housekeeper {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Housekeeper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// A switch with workers that sleep at once, and guest ports.
struct Switch {
    // In this order: ports and housekeeper release the dataplane before it ends.
    _ports: Vec<VhostPort>,
    _housekeeper: Housekeeper,
    dataplane: Arc<Dataplane>,
    directory: Arc<TempDir>,
}

impl Switch {
    fn start(workers: usize, names: &[&str], queue_pairs: u16) -> Switch {
        let directory = Arc::new(tempfile::tempdir().expect("a directory can be made"));
        Switch::start_in(directory, workers, names, queue_pairs)
    }

    fn start_in(
        directory: Arc<TempDir>,
        workers: usize,
        names: &[&str],
        queue_pairs: u16,
    ) -> Switch {
        let (dataplane, ports) =
            start_at(directory.path(), options(workers, 0), names, queue_pairs);
        Switch::of(dataplane, ports, directory)
    }

    /// Starts a switch with special worker options.
    fn start_with(options: DataplaneOptions, names: &[&str], queue_pairs: u16) -> Switch {
        let directory = Arc::new(tempfile::tempdir().expect("a directory can be made"));
        let (dataplane, ports) = start_at(directory.path(), options, names, queue_pairs);
        Switch::of(dataplane, ports, directory)
    }

    fn of(dataplane: Arc<Dataplane>, ports: Vec<VhostPort>, directory: Arc<TempDir>) -> Switch {
        Switch {
            _ports: ports,
            _housekeeper: Housekeeper::start(dataplane.clone()),
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

    /// Two guests of the case's kind, which exchange frames and lose none.
    fn bystanders(&self, case: Case) -> Bystanders {
        let mut guests = ["c", "d"].map(|name| self.guest(name, case.guest(0)));
        let [c, d] = &mut guests;
        let load = Load::start(c, d, 20, Loss::None);
        Bystanders { guests, load }
    }

    fn port(&self, name: &str) -> PortStatus {
        let mut ports = self.dataplane.status().ports.into_iter();
        ports.find(|port| port.name == name).expect("a port")
    }

    fn last_end(&self, name: &str) -> String {
        let device = self.port(name).device.expect("a device");
        device.last_end.unwrap_or_default()
    }

    fn drops(&self, name: &str, reason: &str) -> u64 {
        let queues = self.port(name).queues;
        queues.iter().filter_map(|q| q.drops.get(reason)).sum()
    }

    /// Waits until `is` holds for the port, and returns how long that took.
    fn wait(&self, name: &str, is: impl Fn(&PortStatus) -> bool) -> Duration {
        let start = Instant::now();
        while !is(&self.port(name)) {
            assert!(start.elapsed() < PATIENCE, "{:#?}", self.port(name));
            std::thread::sleep(Duration::from_millis(2));
        }
        start.elapsed()
    }

    fn print_drops(&self) {
        for port in self.dataplane.status().ports {
            let drops = port.queues.iter().map(|queue| &queue.drops);
            println!(
                "{} {}: {:?}",
                port.name,
                port.state,
                drops.collect::<Vec<_>>()
            );
        }
    }

    /// Checks that every lost frame is counted with a reason. No frame may be in flight.
    fn check_ledger(&self) {
        let (mut delivered, mut dropped, mut sent, mut drops) = (0, 0, 0, 0);
        for queue in self.dataplane.status().ports.iter().flat_map(|p| &p.queues) {
            let copies = queue.delivered_copies + queue.dropped_copies;
            assert_eq!(queue.rx_packets + queue.flood_copies, copies, "{queue:#?}");
            delivered += queue.delivered_copies;
            dropped += queue.dropped_copies;
            sent += queue.tx_packets;
            drops += queue.drops.values().sum::<u64>();
        }
        assert_eq!((delivered, dropped), (sent, drops));
    }
}

/// Prints drops with their reasons if a test fails.
impl Drop for Switch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print_drops();
        }
    }
}

/// Workers that sleep at once.
fn dataplane(workers: usize, nic_queues: usize) -> Arc<Dataplane> {
    Dataplane::start(options(workers, nic_queues)).expect("workers")
}

fn options(workers: usize, nic_queues: usize) -> DataplaneOptions {
    let cores = core_affinity::get_core_ids().expect("cores");
    DataplaneOptions {
        cores: cores.iter().cycle().take(workers).map(|c| c.id).collect(),
        sleep_after: Some(Duration::from_micros(50)),
        fdb_capacity: 28_672,
        fdb_ageing: Duration::from_secs(300),
        fdb_damping: Damping::OFF,
        nic_queues,
        balance: BalanceOptions::default(),
    }
}

/// Workers and ports with their sockets in `directory`.
fn start_at(
    directory: &Path,
    options: DataplaneOptions,
    names: &[&str],
    queue_pairs: u16,
) -> (Arc<Dataplane>, Vec<VhostPort>) {
    let dataplane = Dataplane::start(options).expect("workers");
    let ports = names.iter().map(|name| {
        let config = vhost_config(directory, name, queue_pairs);
        let number = dataplane.add_port(port_options(name, queue_pairs));
        let number = number.expect("a number is free");
        VhostPort::open(dataplane.clone(), number, name, &config).expect("nothing is in the way")
    });
    let ports = ports.collect();
    (dataplane, ports)
}

fn vhost_config(directory: &Path, name: &str, queue_pairs: u16) -> PortConfig {
    PortConfig {
        socket: directory.join(name),
        queue_pairs,
        ..PortConfig::default()
    }
}

fn port_options(name: &str, queue_pairs: u16) -> PortOptions {
    PortOptions {
        name: name.to_owned(),
        // Floods between the first pair do not reach the bystanders.
        vlan: VlanPolicy::Access(if ["c", "d"].contains(&name) { 20 } else { 10 }),
        queues: queue_pairs.into(),
        worker: (name == PINNED.0).then_some(PINNED.1),
        ..PortOptions::default()
    }
}

/// The pair that is not touched.
struct Bystanders {
    guests: [Guest; 2],
    load: Load,
}

impl Bystanders {
    /// Checks that they have exchanged frames all the time, without loss.
    fn check(self, switch: &Switch) {
        self.load.flow(200);
        let pair = self.load.finish();
        if pair.lost(0) + pair.lost(1) > 0 {
            switch.print_drops();
        }
        pair.expect_all();
        drop(self.guests);
    }
}
