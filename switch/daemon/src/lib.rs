//! The daemon: everything that no worker does. Ports and their guests and interfaces, reconciling with the configuration,
//! the control socket, metrics, captures, samples for collectors, and what keeps a service alive.

pub mod api;
mod capture;
pub mod daemon;
pub mod dataplane;
mod export;
pub mod handover;
pub mod metrics;
pub mod ports;
pub mod reconcile;
pub mod service;
pub mod start_error;
