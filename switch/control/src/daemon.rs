//! The daemon put together from a configuration: workers, ports, metrics, control socket; and made anew, while it runs, from
//! another.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use miette::Diagnostic;
use thiserror::Error;

use crate::api::{ControlServer, SocketError};
use crate::config::{Balance, Config, ConfigError, Loaded, Poll, Port, PortKind};
use crate::fabric::{BalanceOptions, Fabric, FabricOptions, WorkerError};
use crate::health::Health;
use crate::nic::{self, NicPortError};
use crate::progress::Beat;
use crate::running::Running;
use crate::status::Status;
use crate::vhost::VhostPortError;

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
    /// The control socket.
    #[error(transparent)]
    Control(#[from] SocketError),
    /// The daemon is stopped meanwhile.
    #[error("the switch is shutting down")]
    Ending,
    /// More ports than there are numbers.
    #[error("port `{0}`: there are too many ports")]
    TooManyPorts(String),
}

/// The running daemon. Dropping it stops everything in order: nobody asks any more, guests and
/// NICs are let go of, workers end.
pub struct Daemon {
    control: Mutex<Option<ControlServer>>,
    socket: PathBuf,
    running: Arc<Running>,
    started: Instant,
    /// When what is missing is tried again, and looked for.
    retry_at: Mutex<Instant>,
    /// Of the main loop.
    beat: Arc<Beat>,
}

/// What the control socket is called where it is missing.
const CONTROL: &str = "the control socket";
/// Between two tries to have what is missing.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);

impl Daemon {
    /// Starts it from what [`Config::load_lenient`] has read at `path`, which is read again at each reload. `affinity` lists
    /// the cores that the process may use.
    pub fn start_from(
        path: &Path,
        loaded: Loaded,
        affinity: &[usize],
    ) -> Result<Daemon, StartError> {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let config = loaded.config.clone();
        Daemon::start_with(Some((path, loaded)), &config, affinity)
    }

    /// Starts one that has no file, and so is never another than it is but by what is asked of its control socket.
    pub fn start(config: &Config, affinity: &[usize]) -> Result<Daemon, StartError> {
        Daemon::start_with(None, config, affinity)
    }

    fn start_with(
        file: Option<(PathBuf, Loaded)>,
        config: &Config,
        affinity: &[usize],
    ) -> Result<Daemon, StartError> {
        let cores = config.resolve_cores(affinity)?;
        let fabric = Fabric::start(FabricOptions {
            cores,
            sleep_after: match config.workers.poll {
                Poll::Busy => None,
                Poll::Adaptive => Some(config.workers.idle_spin),
            },
            fdb_capacity: config.switch.fdb_capacity as usize,
            fdb_ageing: config.switch.fdb_ageing,
            fdb_damping: config.switch.damping(),
            nic_queues: nic_queues(config),
            balance: BalanceOptions {
                auto: config.workers.balance == Balance::Auto,
                interval: config.workers.balance_interval,
                ..BalanceOptions::default()
            },
        })?;
        let running = Running::new(fabric, config, file, affinity);
        // First what can be in another daemon's hands: a second instance stops here.
        let socket = config.control.socket.clone();
        let control = match ControlServer::start(&socket, running.clone()) {
            Ok(control) => Some(control),
            Err(error @ SocketError::Busy { .. }) => return Err(error.into()),
            // No guest needs it.
            Err(error) => {
                running.note_missing(CONTROL, Some(told(&error)));
                None
            }
        };
        let daemon = Daemon {
            control: Mutex::new(control),
            socket,
            running,
            started: Instant::now(),
            retry_at: Mutex::new(Instant::now() + RETRY_INTERVAL),
            beat: Beat::new("the main loop, or the port table that it waits for,"),
        };
        daemon.running.open_all(config)?;
        daemon.running.say_what_was_left_out();
        Ok(daemon)
    }

    /// What must happen about ten times a second.
    pub fn housekeep(&self) {
        self.beat.begin();
        self.running.fabric.housekeep(self.started.elapsed());
        self.running.look_at_folder();
        self.retry_missing();
    }

    /// Tries again to have what the switch was started without, or has been taken from it, every few seconds.
    fn retry_missing(&self) {
        let mut retry_at = self.retry_at.lock().unwrap_or_else(PoisonError::into_inner);
        if Instant::now() < *retry_at {
            return;
        }
        *retry_at = Instant::now() + RETRY_INTERVAL;
        self.running.retry_metrics();
        let mut control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        let done = match &mut *control {
            Some(server) => server.look_after(),
            None => ControlServer::start(&self.socket, self.running.clone())
                .map(|server| *control = Some(server)),
        };
        self.running
            .note_missing(CONTROL, done.as_ref().err().map(told));
    }

    /// Reads the configuration again, and makes the switch what it says; what comes of it is in the log.
    pub fn reload(&self) {
        self.running.reload_and_say();
    }

    /// Everything that is known, now.
    pub fn status(&self) -> Status {
        self.running.fabric.status()
    }

    /// Whether it works. Does not wait.
    pub fn health(&self) -> Health {
        self.running.health()
    }

    /// The same, unless the switch is being changed: then `false`, and it is to be tried again. It does not wait for that.
    pub fn try_reload(&self) -> bool {
        self.running.try_reload_and_say()
    }

    /// How often [`housekeep`](Self::housekeep) is to be called.
    pub const HOUSEKEEPING: Duration = Duration::from_millis(100);
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // The rest may take as long as ports take.
        self.beat.rest();
        let control = self.control.get_mut();
        drop(control.unwrap_or_else(PoisonError::into_inner).take());
        self.running.close();
        // Not left to the last who has the fabric: a port's thread that was left behind has it, too.
        self.running.fabric.stop();
    }
}

/// Why there is no control socket, for people.
fn told(error: &SocketError) -> String {
    let help = error
        .help()
        .map_or(String::new(), |help| format!("; {help}"));
    format!("{error}; trying again every few seconds{help}")
}

/// NIC queues that the configured ports have.
fn nic_queues(config: &Config) -> usize {
    let of_port = |port: &Port| match &port.kind {
        PortKind::Vhost(_) => 0,
        PortKind::Xdp(xdp) => nic::queue_count(xdp),
    };
    config.ports.iter().map(of_port).sum()
}
