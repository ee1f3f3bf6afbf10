//! The bridge: addresses and ports, VLANs and their members, floods and their limits.

pub mod fdb;
pub(crate) mod moves;
pub(crate) mod quota;

#[cfg(not(loom))]
pub mod flood;
#[cfg(not(loom))]
pub mod leases;
#[cfg(not(loom))]
pub mod members;
#[cfg(not(loom))]
pub mod multicast;
#[cfg(not(loom))]
pub mod probe;
#[cfg(not(loom))]
pub mod several;
#[cfg(not(loom))]
pub mod storm;
#[cfg(not(loom))]
pub(crate) mod suppress;
#[cfg(not(loom))]
pub mod vlan;
