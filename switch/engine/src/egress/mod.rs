//! From the verdict to the receiver's ring: grouping by port and queue, segmentation and joining, queues.

pub mod deliver;
pub mod direct;
pub(crate) mod gro;
pub(crate) mod gso;
pub mod guest_queues;
pub(crate) mod queue;
pub mod tx;
pub mod uplink;
