//! The switch's slow path: configuration, and everything else that no worker does.

pub mod api;
pub mod bundle;
pub mod capture;
pub mod config;
pub mod daemon;
pub mod doctor;
pub mod fabric;
pub mod health;
mod interrupt;
pub mod log;
pub mod metrics;
pub mod nic;
pub mod notify;
pub mod plan;
mod progress;
mod running;
pub mod show;
mod socket_file;
pub mod status;
mod threads;
pub mod top;
pub mod vhost;
