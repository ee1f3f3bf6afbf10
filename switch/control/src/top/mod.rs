//! `crosspoint top`: what a running switch does now, on a terminal's whole screen.
//!
//! [`model`] is what is known and what is looked at: snapshots and keys go in, lines of text come out of [`sheet`] and
//! [`detail`]. [`draw`] puts them on a screen, and [`screen`] is the loop around: it reads the terminal, while a thread of
//! its own ([`fetch`]) waits for the daemon. [`batch`] prints the same sheets for scripts.
//!
//! All rates are differences of two snapshots over the time between them, as [`rates`](crate::show::rates) has them.

mod batch;
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

use miette::Diagnostic;
use thiserror::Error;

pub use batch::batch;
pub use screen::screen;
pub use sheet::View;

use crate::api::ClientError;

/// What to begin with; keys change most of it.
#[derive(Clone, Debug)]
pub struct Options {
    /// The control socket.
    pub socket: PathBuf,
    /// What is seen.
    pub view: View,
    /// The heading of the column to sort that by; without it, the view's own order.
    pub sort: Option<String>,
    /// The other way round.
    pub reverse: bool,
    /// Only lines with this text in them; all if it is empty.
    pub filter: String,
    /// From one refresh to the next.
    pub interval: Duration,
    /// Whether anything is coloured.
    pub colour: bool,
}

/// Why there is nothing to see.
#[derive(Debug, Error, Diagnostic)]
pub enum TopError {
    /// The view has no such column.
    #[error("{view} have no column {column:?}")]
    #[diagnostic(help("the columns are {known}"))]
    NoColumn {
        /// What is seen.
        view: &'static str,
        /// What was asked for.
        column: String,
        /// Those that there are.
        known: String,
    },
    /// No daemon.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Client(#[from] ClientError),
    /// The terminal.
    #[error("the terminal cannot be used: {0}")]
    #[diagnostic(help("`crosspoint top --batch` prints text, whatever the terminal is"))]
    Terminal(#[source] io::Error),
}
