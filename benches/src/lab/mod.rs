//! Where something is measured: the switches, the threads and cores, and what is observed around a trial.
//!
//! | module | what |
//! |---|---|
//! | [`switches`], [`nic_switches`] | the measured switches |
//! | [`crosspoint`], [`peer`], [`process`] | the crosspoint binary; switches that commands start and stop; child processes |
//! | [`wire`] | the interfaces of the NICs' benches |
//! | [`metrics`], [`cpu_times`] | the switch's metrics, and the kernel's part of a core's time |
//! | [`machine`] | the machine on which it was measured |
//! | [`placement`] | how far apart two cores are, and their clocks |
//! | [`threads`] | finding, pinning and scheduling threads; their waiting time |
//! | [`schedule`] | switches in turn, and work on a core |
//! | [`observe`], [`watch`] | observations around each trial, and why it is discarded |

mod cpu_times;
pub mod crosspoint;
mod machine;
pub mod metrics;
mod nic_switches;
mod observe;
mod peer;
pub mod placement;
pub mod process;
mod schedule;
mod switches;
mod threads;
mod watch;
pub mod wire;

pub use cpu_times::CoreTimes;
pub use crosspoint::{Crosspoint, Setup};
pub use machine::Machine;
pub use metrics::Counters;
pub use nic_switches::NicSwitch;
pub use observe::{CLOCK_MIN, Discard, Observed, Shares};
pub use peer::Peer;
pub use placement::{Bounds, Placement, Probe, probe};
pub use process::{Process, START_MAX, STOP_MAX, is_socket, shell, wait_until};
pub use schedule::{REALTIME, in_turn, on_core};
pub use switches::{
    Need, PeerSwitch, Place, Ports, Running, Switch, TESTPMD_THREADS, lock_peers, peers_dir,
};
pub use threads::{FAVOUR, PRIORITY_MEASURE, PRIORITY_POLL, Thread, pin};
pub use watch::{Crew, Wait};
pub use wire::{FAR, NEAR, SPARE};
