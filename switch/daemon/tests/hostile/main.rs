//! Malicious front ends and guests against real sessions and a real worker. Meanwhile two honest guests exchange frames
//! without loss, and afterwards an honest front end attaches to the attacked port.
#![allow(missing_docs)]

mod clients;
mod descriptors;
mod framing;
mod guests;
mod held;
mod memory;
mod migration;
mod order;
mod process;
mod rig;
