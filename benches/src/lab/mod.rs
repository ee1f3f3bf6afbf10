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

pub mod cpu_times;
pub mod crosspoint;
pub mod machine;
pub mod metrics;
pub mod nic_switches;
pub mod observe;
pub mod peer;
pub mod placement;
pub mod process;
pub mod schedule;
pub mod switches;
pub mod threads;
pub mod watch;
pub mod wire;
