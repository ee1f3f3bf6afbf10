//! Why a run fails.

use crosspoint_guest::{GuestError, RingError};
use std::io;

/// Why a run fails.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// It was interrupted by a signal.
    #[error("interrupted")]
    Interrupted,
    /// Options that cannot be combined.
    #[error("{0}")]
    Usage(String),
    /// A system error.
    #[error("{what}: {why}")]
    Io {
        /// The operation.
        what: String,
        /// The system's error.
        why: io::Error,
    },
    /// An error of a guest.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// A switch that broke a ring's rules.
    #[error("the switch broke a ring's rules: {0}")]
    Ring(#[from] RingError),
    /// A switch, or testpmd, did not do what it must.
    #[error("{name}: {what}")]
    Backend {
        /// Its name.
        name: String,
        /// What it did, or failed to do.
        what: String,
    },
}

impl BenchError {
    /// Makes the closure for [`Result::map_err`] after a system call.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        |why| Self::Io {
            what: what.into(),
            why,
        }
    }

    /// A switch's failure.
    pub fn backend(name: &str, what: impl Into<String>) -> Self {
        Self::Backend {
            name: name.into(),
            what: what.into(),
        }
    }
}
