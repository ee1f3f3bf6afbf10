//! A switch for unit tests.

use std::sync::Arc;
use std::time::Duration;

use crosspoint_engine::bridge::fdb::Damping;

use super::{BalanceOptions, Dataplane, DataplaneOptions};

/// Starts it, without ports: its workers sleep on one core, the first that this process may use.
pub(super) fn start(workers: usize) -> Arc<Dataplane> {
    let set = rustix::thread::sched_getaffinity(None).expect("an affinity");
    let mut all = 0..rustix::thread::CpuSet::MAX_CPU;
    let core = all.find(|core| set.is_set(*core)).expect("a core");
    let options = DataplaneOptions {
        cores: vec![core; workers],
        sleep_after: Some(Duration::from_micros(1)),
        fdb_capacity: 1024,
        fdb_ageing: Duration::from_secs(300),
        fdb_damping: Damping::OFF,
        nic_queues: 0,
        balance: BalanceOptions::default(),
    };
    Dataplane::start(options).expect("workers start")
}
