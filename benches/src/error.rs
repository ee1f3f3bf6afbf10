//! Why a run fails.

use crosspoint_guest::{GuestError, RingError};
use std::io;

/// Why a run fails.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// By a signal.
    #[error("interrupted")]
    Interrupted,
    /// Options that do not go together.
    #[error("{0}")]
    Usage(String),
    /// The system's.
    #[error("{what}: {why}")]
    Io {
        /// What was tried.
        what: String,
        /// The system's answer.
        why: io::Error,
    },
    /// A guest's.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// A switch that broke a ring's rules.
    #[error("the switch broke a ring's rules: {0}")]
    Ring(#[from] RingError),
    /// A switch, or testpmd, that did not do what it has to.
    #[error("{name}: {what}")]
    Backend {
        /// Which.
        name: String,
        /// What it did, or did not.
        what: String,
    },
}

impl BenchError {
    /// What [`Result::map_err`] takes after a system call.
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
