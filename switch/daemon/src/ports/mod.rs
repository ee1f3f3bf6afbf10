//! Ports: guests by vhost-user, and interfaces by AF_XDP.

mod gate;
pub mod nic;
pub mod vhost;
