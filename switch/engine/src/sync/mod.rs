//! What threads share: published snapshots, sleeping workers, calls that can block.

pub mod publish;
pub(crate) mod sleep_flag;

#[cfg(not(loom))]
pub mod call_guard;
#[cfg(not(loom))]
pub mod sleep;
