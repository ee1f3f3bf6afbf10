//! The measured switches: each has two vhost-user sockets.

pub mod crosspoint;
pub mod peer;
pub mod process;

use crate::error::BenchError;
use crate::options::{Peer, PlanOptions, Ports, RunOptions, Sockets};
use crate::threads::Thread;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

/// Longest wait for a switch to start.
const START_MAX: Duration = Duration::from_secs(60);
/// Longest wait for a switch to stop.
const STOP_MAX: Duration = Duration::from_secs(20);
/// Time between two checks, while waiting.
const LOOK: Duration = Duration::from_millis(20);

/// A switch that can be measured.
pub enum Switch {
    /// The crosspoint binary.
    Crosspoint,
    /// A switch that is started and stopped by commands.
    Peer(Peer),
    /// A switch that is running already.
    Running(Sockets),
}

impl Switch {
    /// Its name in tables.
    pub fn name(&self) -> String {
        match self {
            Self::Crosspoint => crosspoint::NAME.into(),
            Self::Peer(peer) => peer.name.clone(),
            Self::Running(sockets) => sockets.0[0].display().to_string(),
        }
    }

    /// Starts it, unless it is running already.
    pub fn start(&self, plan: &PlanOptions, run: &RunOptions) -> Result<Backend, BenchError> {
        match self {
            Self::Crosspoint => crosspoint::start(&run.switch_binary(), plan.switch_core),
            Self::Peer(peer) => {
                let (worker, process) = peer::start(peer, plan.switch_core)?;
                let ports = peer.ports.clone();
                Ok(Backend {
                    ports: ports
                        .ok_or_else(|| BenchError::backend(&peer.name, "has no sockets"))?,
                    worker,
                    metrics: None,
                    _running: Running::Peer { _process: process },
                })
            }
            Self::Running(sockets) => Ok(Backend {
                ports: Ports::of_switch(sockets.clone()),
                worker: None,
                metrics: None,
                _running: Running::Elsewhere,
            }),
        }
    }
}

/// A running switch. It stops when dropped.
pub struct Backend {
    /// Its ports.
    pub ports: Ports,
    /// The thread that moves frames, if it is known.
    pub worker: Option<Thread>,
    /// Its metrics, if it is crosspoint.
    pub metrics: Option<SocketAddr>,
    _running: Running,
}

/// What stops a switch when dropped.
enum Running {
    Crosspoint { _process: crosspoint::Process },
    Peer { _process: peer::Process },
    Elsewhere,
}

/// Calls `ready` repeatedly, until it returns a value or `longest` has passed.
fn wait_until<T>(
    longest: Duration,
    mut ready: impl FnMut() -> Result<Option<T>, BenchError>,
) -> Result<Option<T>, BenchError> {
    let deadline = Instant::now() + longest;
    loop {
        if let Some(value) = ready()? {
            return Ok(Some(value));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        std::thread::sleep(LOOK);
    }
}

fn is_socket(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    path.metadata()
        .is_ok_and(|metadata| metadata.file_type().is_socket())
}
