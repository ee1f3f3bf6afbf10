//! Why the daemon does not start.

use crosspoint_config::ConfigError;
use miette::Diagnostic;
use thiserror::Error;

use crate::api::SocketError;
use crate::dataplane::WorkerError;
use crate::ports::nic::NicPortError;
use crate::ports::vhost::VhostPortError;

/// Why the daemon does not start. Each message names the error, its place, and how to fix it.
#[derive(Debug, Error, Diagnostic)]
pub enum StartError {
    /// A core does not exist.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Config(#[from] ConfigError),
    /// A worker cannot be started.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// A guest port cannot be opened.
    #[error(transparent)]
    Vhost(#[from] VhostPortError),
    /// The NIC ports cannot be opened.
    #[error(transparent)]
    Nic(#[from] NicPortError),
    /// The control socket cannot be opened.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Control(#[from] SocketError),
    /// The daemon is being stopped.
    #[error("the switch is shutting down")]
    Ending,
    /// There are more ports than port numbers.
    #[error("port `{0}`: there are too many ports")]
    #[diagnostic(help("remove ports, or divide them among two switches"))]
    TooManyPorts(String),
}
