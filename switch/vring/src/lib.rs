//! The device side of virtqueues, and the guest memory that contains them.
//!
//! A hostile guest may write this memory while the switch reads it. So each field is read once into a local, checked
//! against the ring's size and the memory regions, and every loop is bounded by the ring's size. `unsafe` code is
//! limited to guest memory ([`memory`], [`split`], and the segments that [`rx`], [`tx`] and `chain` make of translated
//! addresses), the descriptors of [`notify`], and one system call in [`calls`].

// Under loom only these modules are built: loom tests them.
pub mod arming;
#[cfg_attr(loom, allow(dead_code))]
mod pending;
pub mod reserve;

#[cfg(not(loom))]
pub mod calls;

#[cfg(not(loom))]
mod chain;
#[cfg(not(loom))]
mod fault;
#[cfg(not(loom))]
mod features;
#[cfg(not(loom))]
mod glance;
#[cfg(not(loom))]
mod inflight;
#[cfg(not(loom))]
pub mod notify;
#[cfg(not(loom))]
mod packed;
#[cfg(not(loom))]
pub mod ring;
#[cfg(not(loom))]
pub mod rx;
#[cfg(not(loom))]
pub mod split;
#[cfg(not(loom))]
pub mod tx;

#[cfg(not(loom))]
pub use self::{
    calls::{Bell, CallBudget},
    fault::RingFault,
    features::{Features, MAX_QUEUE_PAIRS, feature},
    glance::{Glance, Glances},
    inflight::{InflightQueue, InflightRegion},
    notify::Notifier,
    packed::PackedRing,
    ring::Ring,
    rx::{GuestRx, Outcome, RxScratch},
    split::{MAX_RING_SIZE, RingAddresses, RingError, SplitRing},
    tx::{Batch, GuestTx},
};
