//! The device side of virtqueues against the driver side of `crosspoint-guest`: no sockets, one memfd per guest, mapped
//! by both.
#![allow(missing_docs)]
#![cfg(not(loom))]

mod arithmetic;
mod batches;
mod bytes;
mod checksum;
mod dirty;
mod hostile_fields;
mod hostile_packed;
mod hostile_rx;
mod hostile_tx;
mod isolation;
mod memory;
mod notify;
mod position;
mod race;
mod race_packed;
mod reserve;
mod workers;
mod world;
