//! The switch's slow path: configuration, and everything else that no worker does.

pub mod api;
pub mod capture;
pub mod config;
pub mod daemon;
pub mod doctor;
pub mod fabric;
mod interrupt;
pub mod metrics;
pub mod nic;
pub mod plan;
mod running;
pub mod show;
pub mod status;
mod threads;
pub mod vhost;
