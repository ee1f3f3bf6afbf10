//! What the switch sends to collectors.

mod collector;
pub(crate) mod sflow;
