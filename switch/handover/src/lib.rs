//! What a supervisor and the processes of the switch say to each other, so that a guest or a NIC outlives the process that
//! serves it.
//!
//! The supervisor (`crosspoint supervise`) holds a copy of each descriptor that the switch needs to go on: sockets, guest
//! memory, eventfds. The switch sends it a [`Message`] of kind [`Kind::Record`] whenever that state changes. A process that
//! is started after an upgrade or a crash gets all records first.
//!
//! Messages go over a Unix socket of type SEQPACKET, between a process and the one that started it: neither side is a
//! guest's. Descriptors travel with them (SCM_RIGHTS).

mod link;
mod message;
mod store;

pub use link::{Link, LinkError};
pub use message::{Begin, Kind, Message, Start, WAS_STARTED};
pub use store::{BYTES_MAX, RECORDS_MAX, Store};

/// Version of the messages and records. A process that reads other versions refuses to take over, and says so.
pub const VERSION: u16 = 1;
/// Environment variable that tells a process that its standard input is the connection to its supervisor.
pub const SUPERVISED: &str = "CROSSPOINT_SUPERVISED";
