//! The device side of virtqueues against the driver side of `crosspoint-guest`: no sockets, one memfd per guest, mapped
//! by both.
#![allow(missing_docs)]
#![cfg(not(loom))]

mod arithmetic;
mod bytes;
mod checksum;
mod hostile_fields;
mod hostile_rx;
mod hostile_tx;
mod isolation;
mod notify;
mod race;
mod reserve;
mod workers;
mod world;
