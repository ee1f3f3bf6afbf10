//! What the switch sends to collectors.

mod collector;
pub(crate) mod ipfix;
pub(crate) mod sflow;
mod thread;
