//! The daemon: built from a configuration (workers, ports, metrics, control socket), and changed to another one while
//! it runs.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crosspoint_config::{Balance, Config, Loaded, Poll, Port, PortKind};
use crosspoint_model::health::Health;
use crosspoint_model::status::Status;
use miette::Diagnostic;

use crate::api::{ControlServer, SocketError};
use crate::dataplane::{BalanceOptions, Dataplane, DataplaneOptions};
use crate::handover;
use crate::ports::nic;
use crate::reconcile::Running;
use crate::service::progress::Beat;
use crate::service::sandbox;
use crate::start_error::StartError;

/// The running daemon. Dropping it stops everything in order: the control socket, then guest and NIC ports, then
/// workers.
pub struct Daemon {
    control: Mutex<Option<ControlServer>>,
    socket: PathBuf,
    running: Arc<Running>,
    started: Instant,
    /// When missing parts are next retried.
    retry_at: Mutex<Instant>,
    /// When the tables are next recorded for a successor.
    tables_at: Mutex<Instant>,
    /// The main loop's beat.
    beat: Arc<Beat>,
}

/// Name of the control socket when it is missing.
const CONTROL: &str = "the control socket";
/// Time between two attempts to start missing parts.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);

impl Daemon {
    /// Starts it with what [`Config::load_lenient`] has read from `path`, which each reload reads again. `affinity`
    /// lists the cores that the process may use.
    pub fn start_from(
        path: &Path,
        loaded: Loaded,
        affinity: &[usize],
    ) -> Result<Daemon, StartError> {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let config = loaded.config.clone();
        Daemon::start_with(Some((path, loaded)), &config, affinity)
    }

    /// Starts a daemon without a file: it changes only through its control socket.
    pub fn start(config: &Config, affinity: &[usize]) -> Result<Daemon, StartError> {
        Daemon::start_with(None, config, affinity)
    }

    fn start_with(
        file: Option<(PathBuf, Loaded)>,
        config: &Config,
        affinity: &[usize],
    ) -> Result<Daemon, StartError> {
        let cores = config.resolve_cores(affinity)?;
        let dataplane = Dataplane::start(DataplaneOptions {
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
        let running = Running::new(dataplane, config, file, affinity);
        // First what another daemon may hold: a second instance stops here.
        let socket = config.control.socket.clone();
        let control = match handover::is_preparing() {
            true => None,
            // After a crash guests go on without it.
            false if handover::is_taking_over() => {
                start_control(&socket, &running).unwrap_or_default()
            }
            false => start_control(&socket, &running)?,
        };
        let daemon = Daemon {
            control: Mutex::new(control),
            socket,
            running,
            started: Instant::now(),
            retry_at: Mutex::new(Instant::now() + RETRY_INTERVAL),
            tables_at: Mutex::new(Instant::now()),
            beat: Beat::new("the main loop, or the port table that it waits for,"),
        };
        daemon.running.open_all(config)?;
        if handover::is_taking_over() && !handover::is_preparing() {
            handover::go_on(&daemon.running);
        } else if let Some(supervisor) = handover::supervisor().filter(|_| handover::is_preparing())
        {
            handover::take_over(&daemon.running, supervisor);
            let control = start_control(&daemon.socket, &daemon.running);
            // Whatever it is: guests go on.
            let control = control.unwrap_or_else(|why| {
                let why = format!("{why}; trying again every few seconds");
                daemon.running.note_missing(CONTROL, Some(why));
                None
            });
            *daemon
                .control
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = control;
            daemon.running.retry_missing();
        }
        handover::serve(&daemon.running);
        daemon.running.say_what_was_left_out();
        Ok(daemon)
    }

    /// Periodic work. Call it about ten times a second.
    pub fn housekeep(&self) {
        self.beat.begin();
        sandbox::log();
        self.running.dataplane.housekeep(self.started.elapsed());
        self.running.look_at_folder();
        self.retry_missing();
        let mut tables_at = self
            .tables_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        handover::record_tables(&self.running, &mut tables_at);
    }

    /// Retries, every few seconds, parts that are missing since the start or were lost later.
    fn retry_missing(&self) {
        let mut retry_at = self.retry_at.lock().unwrap_or_else(PoisonError::into_inner);
        if Instant::now() < *retry_at {
            return;
        }
        *retry_at = Instant::now() + RETRY_INTERVAL;
        self.running.retry_missing();
        let mut control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        let done = match &mut *control {
            Some(server) => server.look_after(),
            None => ControlServer::start(&self.socket, self.running.clone())
                .map(|server| *control = Some(server)),
        };
        self.running
            .note_missing(CONTROL, done.as_ref().err().map(told));
    }

    /// Reads the configuration again and applies it; the result is logged.
    pub fn reload(&self) {
        self.running.reload_and_say();
    }

    /// The current status.
    pub fn status(&self) -> Status {
        self.running.dataplane.status()
    }

    /// The current health. Does not wait.
    pub fn health(&self) -> Health {
        self.running.health()
    }

    /// Like [`reload`](Self::reload), but returns `false` while the switch is being changed, and must then be called
    /// again. It does not wait for that.
    pub fn try_reload(&self) -> bool {
        self.running.try_reload_and_say()
    }

    /// How often to call [`housekeep`](Self::housekeep).
    pub const HOUSEKEEPING: Duration = Duration::from_millis(100);
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // The rest may take as long as closing ports takes.
        self.beat.rest();
        let control = self.control.get_mut();
        drop(control.unwrap_or_else(PoisonError::into_inner).take());
        self.running.close();
        // Explicitly, since a port's thread that was left behind also holds the dataplane.
        self.running.dataplane.stop();
    }
}

/// Starts the control socket. Only another daemon on it is an error: no guest needs it.
fn start_control(
    socket: &Path,
    running: &Arc<Running>,
) -> Result<Option<ControlServer>, StartError> {
    match ControlServer::start(socket, running.clone()) {
        Ok(control) => Ok(Some(control)),
        Err(error @ SocketError::Busy { .. }) => Err(error.into()),
        Err(error) => {
            running.note_missing(CONTROL, Some(told(&error)));
            Ok(None)
        }
    }
}

/// Text that tells why there is no control socket.
fn told(error: &SocketError) -> String {
    let help = error
        .help()
        .map_or(String::new(), |help| format!("; {help}"));
    format!("{error}; trying again every few seconds{help}")
}

/// Number of NIC queues of the configured ports.
fn nic_queues(config: &Config) -> usize {
    let of_port = |port: &Port| match &port.kind {
        PortKind::Vhost(_) => 0,
        PortKind::Xdp(xdp) => nic::queue_count(xdp),
    };
    config.ports.iter().map(of_port).sum()
}
