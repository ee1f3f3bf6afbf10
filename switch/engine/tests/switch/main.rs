//! Tests of the engine with guests that exist only as rings in a memfd: single stages, and real workers.
#![allow(missing_docs)]
#![cfg(not(loom))]

mod bridge;
mod bridges;
mod budget;
mod checks;
mod direct;
mod escapes;
mod explain;
/// Receiver at a wire's other end.
#[path = "../../../xsk/tests/far/mod.rs"]
mod far;
mod fdb_threads;
mod floor;
mod fragments;
mod frames;
mod groups;
mod groups_accounting;
mod groups_bridge;
mod groups_cases;
mod groups_kernel;
mod groups_migrate;
mod groups_rate;
mod groups_recent;
mod hostile;
mod isolated;
mod joins;
mod large;
mod leases;
mod ledger;
mod mac_limit;
mod mirrors;
mod multicast;
/// Tap devices in a network namespace, shared with the tests of segmentation.
#[path = "../../../packet/tests/segmentation/netns.rs"]
mod netns;
mod order;
mod over_share;
mod port_security;
mod ports;
mod queues;
mod quiet;
mod rates;
mod reports;
mod rig;
mod runs;
mod samples;
mod shares;
mod single;
mod sleep;
mod sources;
mod suppress;
mod taps;
mod threads;
/// Guests shared with the rings' tests: memory, both sides of a ring, random numbers.
#[path = "../../../vring/tests/device/world.rs"]
mod world;
