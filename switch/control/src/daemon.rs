//! The daemon put together from a configuration: workers, ports, metrics, control socket.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crosspoint_engine::vlan::VlanPolicy;
use thiserror::Error;

use crate::api::{ControlServer, SocketError, Source};
use crate::config::{Balance, Config, ConfigError, Poll, Port, PortKind, Vlan};
use crate::fabric::{BalanceOptions, Fabric, FabricOptions, MoveError, PortOptions, WorkerError};
use crate::metrics::{MetricsError, MetricsServer};
use crate::nic::{self, NicPortError, UplinkOptions, Uplinks};
use crate::status::{FdbEntry, Status};
use crate::vhost::{VhostPort, VhostPortError};

/// Why the daemon does not start. Each message says what, where, and how to mend it.
#[derive(Debug, Error)]
pub enum StartError {
    /// A core that is not there.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A thread.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// A guest port.
    #[error(transparent)]
    Vhost(#[from] VhostPortError),
    /// The NIC ports.
    #[error(transparent)]
    Nic(#[from] NicPortError),
    /// The metrics address.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The control socket.
    #[error(transparent)]
    Control(#[from] SocketError),
    /// More ports than there are numbers.
    #[error("port `{0}`: there are too many ports")]
    TooManyPorts(String),
}

/// The running daemon. Dropping it stops everything in order: nobody asks any more, guests and
/// NICs are let go of, workers end.
pub struct Daemon {
    _control: ControlServer,
    _metrics: Option<MetricsServer>,
    _guests: Vec<VhostPort>,
    _uplinks: Option<Uplinks>,
    fabric: Arc<Fabric>,
    started: Instant,
}

impl Daemon {
    /// Starts it. `affinity` lists the cores that the process may use.
    pub fn start(config: &Config, affinity: &[usize]) -> Result<Daemon, StartError> {
        let cores = config.resolve_cores(affinity)?;
        let fabric = Fabric::start(FabricOptions {
            cores,
            sleep_after: match config.workers.poll {
                Poll::Busy => None,
                Poll::Adaptive => Some(config.workers.idle_spin),
            },
            fdb_capacity: config.switch.fdb_capacity as usize,
            fdb_ageing: config.switch.fdb_ageing,
            nic_queues: nic_queues(config),
            balance: BalanceOptions {
                auto: config.workers.balance == Balance::Auto,
                interval: config.workers.balance_interval,
                ..BalanceOptions::default()
            },
        })?;
        let source: Arc<dyn Source> = Arc::new(Watched(fabric.clone()));
        // First what can be in another daemon's hands: a second instance stops here.
        let control = ControlServer::start(&config.control.socket, source.clone())?;
        let (mut guests, mut uplinks) = (Vec::new(), Vec::new());
        for port in &config.ports {
            let number = add_port(&fabric, port)?;
            match &port.kind {
                PortKind::Vhost(vhost) => {
                    guests.push(VhostPort::open(fabric.clone(), number, &port.name, vhost)?);
                }
                PortKind::Xdp(xdp) => uplinks.push(UplinkOptions {
                    number,
                    name: port.name.clone(),
                    config: xdp.clone(),
                    direct: config.direct_queues(&port.name),
                }),
            }
        }
        let uplinks = match uplinks.is_empty() {
            true => None,
            false => Some(Uplinks::start(&fabric, uplinks)?),
        };
        // Last: who can read the metrics finds every port in them.
        let metrics = match config.metrics.listen {
            Some(address) => Some(MetricsServer::start(address, source)?),
            None => None,
        };
        Ok(Daemon {
            _control: control,
            _metrics: metrics,
            _guests: guests,
            _uplinks: uplinks,
            fabric,
            started: Instant::now(),
        })
    }

    /// What must happen about ten times a second.
    pub fn housekeep(&self) {
        self.fabric.housekeep(self.started.elapsed());
    }

    /// How often [`housekeep`](Self::housekeep) is to be called.
    pub const HOUSEKEEPING: Duration = Duration::from_millis(100);
}

/// The fabric, for those who only look.
struct Watched(Arc<Fabric>);

impl Source for Watched {
    fn status(&self) -> Status {
        self.0.status()
    }

    fn fdb(&self) -> Vec<FdbEntry> {
        self.0.fdb()
    }

    fn move_stream(&self, port: &str, queue: u16, worker: usize) -> Result<(), MoveError> {
        self.0.move_stream(port, queue, worker)
    }

    fn fabric(&self) -> Option<Arc<Fabric>> {
        Some(self.0.clone())
    }
}

/// NIC queues that the configured ports have.
fn nic_queues(config: &Config) -> usize {
    let of_port = |port: &Port| match &port.kind {
        PortKind::Vhost(_) => 0,
        PortKind::Xdp(xdp) => nic::queue_count(xdp),
    };
    config.ports.iter().map(of_port).sum()
}

/// Adds a port to the fabric, down. Returns its number.
fn add_port(fabric: &Fabric, port: &Port) -> Result<u16, StartError> {
    let (kind, queues) = match &port.kind {
        PortKind::Vhost(vhost) => ("vhost", usize::from(vhost.queue_pairs)),
        PortKind::Xdp(xdp) => ("xdp", nic::queue_count(xdp)),
    };
    let (vlan, vlan_text) = vlan_policy(&port.vlan);
    let options = PortOptions {
        name: port.name.clone(),
        kind,
        vlan,
        vlan_text,
        mac_limit: port.mac_limit,
        queues,
        joins: matches!(&port.kind, PortKind::Xdp(xdp) if xdp.gro),
        worker: port.worker,
    };
    let number = fabric.add_port(options);
    number.ok_or_else(|| StartError::TooManyPorts(port.name.clone()))
}

fn vlan_policy(vlan: &Vlan) -> (VlanPolicy, String) {
    match vlan {
        Vlan::Unaware => (VlanPolicy::Unaware, "unaware".to_owned()),
        Vlan::Access(id) => (VlanPolicy::Access(*id), format!("access {id}")),
        Vlan::Trunk { ids, native } => {
            let list: Vec<String> = ids.iter().map(u16::to_string).collect();
            let native_text = native.map_or(String::new(), |id| format!(" native {id}"));
            (
                VlanPolicy::trunk(ids, *native),
                format!("trunk {}{native_text}", list.join(",")),
            )
        }
    }
}
