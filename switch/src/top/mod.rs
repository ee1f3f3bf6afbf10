//! `crosspoint top`: the current state of a running switch, on a terminal's whole screen.
//!
//! [`model`] holds the data and what is displayed: snapshots and keys go in, and [`sheet`] and [`detail`] make lines of
//! text. [`draw`] puts them on a screen. [`screen`] is the main loop: it reads the terminal, while a separate thread
//! ([`fetch`]) waits for the daemon. [`batch`] prints the same sheets for scripts.
//!
//! All rates are differences of two snapshots over the time between them: see [`rates`](crate::show::rates).

mod batch;
mod command;
mod detail;
mod draw;
mod fetch;
mod keys;
mod model;
mod screen;
mod sheet;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

pub use batch::batch;
pub(crate) use command::Top;
use crosspoint_model::client::ClientError;
use miette::Diagnostic;
pub use screen::screen;
pub use sheet::View;
use thiserror::Error;

/// Initial settings; keys change most of them.
#[derive(Clone, Debug)]
pub struct Options {
    /// The control socket.
    pub socket: PathBuf,
    /// The view.
    pub view: View,
    /// The heading of the column to sort by; without it, the view's own order.
    pub sort: Option<String>,
    /// Whether to reverse the order.
    pub reverse: bool,
    /// Only lines that contain this text; all if it is empty.
    pub filter: String,
    /// Time between two refreshes.
    pub interval: Duration,
    /// Whether to use colours.
    pub colour: bool,
}

/// Why nothing can be displayed.
#[derive(Debug, Error, Diagnostic)]
pub enum TopError {
    /// The view has no such column.
    #[error("{view} have no column {column:?}")]
    #[diagnostic(help("the columns are {known}"))]
    NoColumn {
        /// The view's name.
        view: &'static str,
        /// The column that was asked for.
        column: String,
        /// The existing columns.
        known: String,
    },
    /// The daemon does not answer.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Client(#[from] ClientError),
    /// The terminal cannot be used.
    #[error("the terminal cannot be used: {0}")]
    #[diagnostic(help("`crosspoint top --batch` prints text, whatever the terminal is"))]
    Terminal(#[source] io::Error),
}
