//! The switch engine: workers, the stages that a burst goes through, the forwarding database, the drop counters. No
//! `unsafe`.
//!
//! The path of a packet, by file: [`worker`] polls its [`stream`]s; a burst is received, then parsed, admitted and looked
//! up ([`stages`]), then delivered ([`deliver`]). The configuration that they read is a snapshot ([`view`]), published by
//! [`publish`]. Their counters are in [`counters`].
#![forbid(unsafe_code)]

mod asleep;
pub mod fdb;
mod moves;
pub mod publish;
mod quota;

#[cfg(not(loom))]
pub mod calling;
#[cfg(not(loom))]
pub mod control;
#[cfg(not(loom))]
pub mod counters;
#[cfg(not(loom))]
pub mod deliver;
#[cfg(not(loom))]
pub mod direct;
#[cfg(not(loom))]
pub mod explain;
#[cfg(not(loom))]
pub mod flood;
#[cfg(not(loom))]
pub mod guard;
#[cfg(not(loom))]
mod histograms;
#[cfg(not(loom))]
mod joins;
#[cfg(not(loom))]
mod latency;
#[cfg(not(loom))]
pub mod members;
#[cfg(not(loom))]
pub mod probe;
#[cfg(not(loom))]
pub mod queues;
#[cfg(not(loom))]
mod schedule;
#[cfg(not(loom))]
mod segments;
#[cfg(not(loom))]
pub mod shares;
#[cfg(not(loom))]
pub mod sleep;
#[cfg(not(loom))]
pub mod stages;
#[cfg(not(loom))]
pub mod storm;
#[cfg(not(loom))]
pub mod stream;
#[cfg(not(loom))]
pub mod tap;
#[cfg(not(loom))]
pub mod tx;
#[cfg(not(loom))]
pub mod view;
#[cfg(not(loom))]
pub mod vlan;
#[cfg(not(loom))]
pub mod walk;
#[cfg(not(loom))]
mod way;
#[cfg(not(loom))]
pub mod worker;

#[cfg(not(loom))]
pub use histograms::{BurstSizes, Turns};
#[cfg(not(loom))]
pub use latency::{Latencies, Latency};

/// Largest number of ports of a switch.
pub const MAX_PORTS: usize = 1024;
