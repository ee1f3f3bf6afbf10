//! Ports: guests by vhost-user, and interfaces by AF_XDP.

pub mod nic;
pub mod vhost;
