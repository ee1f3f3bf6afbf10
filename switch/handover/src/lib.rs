//! What a supervisor and the processes of the switch say to each other, so that a guest or a NIC outlives the process that
//! serves it.
//!
//! The supervisor (`crosspoint supervise`) holds a copy of each descriptor that the switch needs to go on: sockets, guest
//! memory, eventfds. The switch sends it a [`Message`] of kind [`Kind::Record`] whenever that state changes. A process that
//! is started after an upgrade or a crash gets all records first.
//!
//! Messages go over a Unix socket of type SEQPACKET, between a process and the one that started it: neither side is a
//! guest's. Descriptors travel with them (SCM_RIGHTS).

mod adopt;
mod link;
mod message;
mod store;

pub use adopt::{Adopted, Adoption, AdoptionSocket, Claim, Orphan, adopt};
pub use link::{Link, LinkError};
pub use message::{Begin, Kind, Message, Start, WAS_STARTED};
pub use store::{BYTES_MAX, RECORDS_MAX, Store};

/// The versions of the messages that this program reads. It writes the lowest of them, or the highest that it has heard on a
/// connection: so a program that still reads the version of an older supervisor, or of an older process, gets on with it. A process
/// that cannot read its supervisor's says so ([`Kind::Refused`], which every version reads) and ends.
///
/// A version counts what frames the messages. What is in a record is told apart by its name: a record whose body changes so that
/// earlier programs misunderstand it gets another name.
pub const VERSIONS: Versions = 1..=1;
/// A range of versions.
pub type Versions = std::ops::RangeInclusive<u16>;
/// Environment variable that tells a process that its standard input is the connection to its supervisor.
pub const SUPERVISED: &str = "CROSSPOINT_SUPERVISED";
