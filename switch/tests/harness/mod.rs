//! The parts of the end-to-end tests.

mod attacker;
mod exchange;
mod frames;
mod host;
mod lab;
mod lab_guest;
mod ledger;
mod linux;
pub mod metrics;
mod process;
mod qmp;
mod switch;
mod testpmd;

use std::time::{Duration, Instant};

pub use attacker::Attacker;
pub use exchange::{Exchange, connect_pair, connect_to, ping_pong};
pub use frames::{flow_of, frame, mac, number_of, tagged, udp};
pub use host::{Host, iperf3, iperf3_at_least, iperf3_with};
pub use lab::{HugePages, Lab};
pub use lab_guest::{CommandGuest, QEMU_SWITCH};
pub use ledger::Ledger;
pub use linux::LinuxGuest;
pub use metrics::{Metrics, Sample};
pub use process::{Process, run};
pub use qmp::Qmp;
pub use switch::{Switch, binary, guest, xdp};
pub use testpmd::{Testpmd, TestpmdPort};

/// Polls `condition` until it returns a value.
pub fn wait_until<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A number of seconds.
pub const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
