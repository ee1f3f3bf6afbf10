//! End to end: the daemon as installed, with real network stacks, drivers and guests around it.
//!
//! Run as root. Each test lives in unnamed network namespaces, and all its processes die with it, so that nothing is left
//! behind however it ends. After each test the ledger must balance; see `harness/ledger.rs`.

// Each integration test is a separate crate. This is the only one that starts the daemon, so it is linked once.
mod harness;

#[path = "e2e/bridges.rs"]
mod bridges;
#[path = "e2e/capture.rs"]
mod capture;
#[path = "../daemon/tests/metrics/certificates.rs"]
mod certificates;
#[path = "e2e/contain.rs"]
mod contain;
#[path = "e2e/disturbance.rs"]
mod disturbance;
#[path = "e2e/dpdk.rs"]
mod dpdk;
#[path = "e2e/during_upgrade.rs"]
mod during_upgrade;
#[path = "e2e/extras.rs"]
mod extras;
#[path = "e2e/groups.rs"]
mod groups;
#[path = "e2e/interfaces.rs"]
mod interfaces;
#[path = "e2e/ipfix.rs"]
mod ipfix;
#[path = "e2e/large.rs"]
mod large;
#[path = "e2e/linux.rs"]
mod linux;
#[path = "e2e/loops.rs"]
mod loops;
#[path = "e2e/migration.rs"]
mod migration;
#[path = "e2e/mirrors.rs"]
mod mirrors;
#[path = "e2e/multicast.rs"]
mod multicast;
#[path = "e2e/namespaces.rs"]
mod namespaces;
#[path = "e2e/offloads.rs"]
mod offloads;
#[path = "e2e/operations.rs"]
mod operations;
#[path = "e2e/port_security.rs"]
mod port_security;
#[path = "e2e/rates.rs"]
mod rates;
#[path = "e2e/reload.rs"]
mod reload;
#[path = "e2e/sandbox.rs"]
mod sandbox;
#[path = "e2e/service.rs"]
mod service;
#[path = "e2e/sflow.rs"]
mod sflow;
#[path = "e2e/shares.rs"]
mod shares;
#[path = "e2e/supervisor.rs"]
mod supervisor;
#[path = "e2e/switchover.rs"]
mod switchover;
#[path = "e2e/top.rs"]
mod top;
#[path = "e2e/tunnels.rs"]
mod tunnels;
#[path = "e2e/upgrade.rs"]
mod upgrade;
#[path = "e2e/uplinks.rs"]
mod uplinks;
#[path = "e2e/versions.rs"]
mod versions;
#[path = "e2e/vlan.rs"]
mod vlan;
#[path = "e2e/weights.rs"]
mod weights;
#[path = "e2e/workers.rs"]
mod workers;
#[path = "e2e/zero_copy.rs"]
mod zero_copy;
