//! What a long-running service needs: its log, systemd, progress of its threads, its socket files, its sandbox.

pub(crate) mod interrupt;
pub mod log;
pub mod notify;
pub(crate) mod progress;
pub mod sandbox;
pub(crate) mod socket_file;
pub(crate) mod threads;
