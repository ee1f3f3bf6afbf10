//! Front ends and guests that mean harm, against the real sessions and a real worker. Beside each of them two honest
//! guests exchange frames and lose none, and afterwards an honest front end attaches to the port that was attacked.
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
