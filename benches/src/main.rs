//! `crosspoint-bench`: frames per second and cycles per frame of crosspoint, and of other switches beside it.
//!
//! | module | what |
//! |---|---|
//! | [`options`] | the command line |
//! | [`vm`] | the plan of a run: rounds, switches in turn, configurations, trials |
//! | [`backend`] | what is measured: the crosspoint binary, or a peer that commands start and stop |
//! | [`bench_guests`] | generator and sink in this process |
//! | [`testpmd`] | DPDK's guests |
//! | [`watch`] | what is observed around each trial: placement, waiting, the switch's counters |
//! | [`placement`] | how far apart two cores are |
//! | [`threads`] | finding, pinning and scheduling threads; their waiting time |
//! | [`scrape`] | the switch's metrics |
//! | [`interrupt`] | SIGINT and SIGTERM |
//! | [`trial`] | what one trial measured, and why it is discarded |
//! | [`stats`] | medians and quartiles |
//! | [`report`] | the tables |

mod backend;
mod bench_guests;
mod error;
mod interrupt;
mod options;
mod placement;
mod report;
mod scrape;
mod stats;
mod testpmd;
mod threads;
mod trial;
mod vm;
mod watch;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let options::Command::Vm(options) = options::Cli::parse().command;
    match vm::run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}
