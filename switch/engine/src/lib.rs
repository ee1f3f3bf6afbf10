//! The switch engine. No `unsafe`.
//!
//! The path of a packet, by folder: [`worker`] polls its [`stream`]s; a burst is received, then parsed, admitted and looked
//! up ([`stages`], with the forwarding database and VLANs in [`bridge`]), then delivered ([`egress`]). The configuration that
//! they read is a [`snapshot`], published by [`sync`]. Counters, captures and explanations are in [`observe`].
#![forbid(unsafe_code)]

pub mod bridge;
mod counter_lists;
pub mod groups;
pub mod sync;

#[cfg(not(loom))]
pub mod egress;
#[cfg(not(loom))]
pub mod observe;
#[cfg(not(loom))]
mod schedule;
#[cfg(not(loom))]
pub mod shares;
#[cfg(not(loom))]
pub mod snapshot;
#[cfg(not(loom))]
pub mod stages;
#[cfg(not(loom))]
pub mod stream;
#[cfg(not(loom))]
pub mod walk;
#[cfg(not(loom))]
pub mod worker;

/// Largest number of ports of a switch.
pub const MAX_PORTS: usize = 1024;
