//! `crosspoint-bench`: what crosspoint does in a second and what it costs, and other switches beside it.
//!
//! | module | what |
//! |---|---|
//! | [`options`] | the command line |
//! | [`vm`] | `vm`: rounds, switches in turn, configurations, trials |
//! | [`tso`] | `tso`: the same for large frames |
//! | [`nic`] | `nic`: scenarios with NICs |
//! | [`suite`] | `suite`: scenarios of two guests and of many |
//! | [`compare`] | `compare`: the same for any switches and any measuring command |
//! | [`cost`] | `cost`: copying, checksumming and cutting frames, without a switch |
//! | [`idle`] | `idle`: what an idle worker costs, how soon it wakes, and whether a wakeup is ever lost |
//! | [`wakes`] | waking what sleeps, and timing it |
//! | [`churn`] | `churn`: what guests and interfaces that come and go cost those that stay |
//! | [`fairness`] | `fairness`: what hostile guests take from the others of their worker |
//! | [`neighbours`] | those that come and go |
//! | [`load`] | traffic that can be asked for |
//! | [`steady`] | frames at a steady rate, and what does not get through |
//! | [`pair`] | two guests whose frames are told from all others |
//! | [`random`] | pauses that nobody can foresee |
//! | [`mask`] | `mask`: hides features between a vhost-user front end and a back end |
//! | [`turns`] | what these plans have in common |
//! | [`backend`] | what is measured: the crosspoint binary, or a peer that commands start and stop |
//! | [`bench_guests`] | generator and sink in this process |
//! | [`large_guests`] | the same for large frames |
//! | [`guest`] | connecting guests to a switch |
//! | [`tcp`] | TCP frames as Linux sends them |
//! | [`testpmd`] | DPDK's guests |
//! | [`watch`] | what is observed around each trial: placement, waiting, the switch's counters |
//! | [`machine`] | on what machine it was measured |
//! | [`placement`] | how far apart two cores are |
//! | [`threads`] | finding, pinning and scheduling threads; their waiting time |
//! | [`lines`] | `lines`: cache lines that cross between cores, and what they cost |
//! | [`scrape`] | the switch's metrics |
//! | [`scrapes`] | `scrape`: how long reading them takes |
//! | [`interrupt`] | SIGINT and SIGTERM |
//! | [`trial`] | what one trial measured, and why it is discarded |
//! | [`measure`] | what is done with a load: maximum, search, latency |
//! | [`search`] | several loss ratios' throughputs in one search |
//! | [`latency`] | times at parts of a rate |
//! | [`results`], [`summary`], [`maxima`], [`plot`] | the file of the suite, its report and plots; `report`: these again |
//! | [`stats`] | medians and quartiles |
//! | [`report`], [`samples`] | the tables |

mod backend;
mod bench_guests;
mod churn;
mod compare;
mod cost;
mod error;
mod fairness;
mod guest;
mod idle;
mod interrupt;
mod large_guests;
mod latency;
mod lines;
mod load;
mod machine;
mod mask;
mod maxima;
mod measure;
mod neighbours;
mod nic;
mod options;
mod pair;
mod placement;
mod plot;
mod random;
mod report;
mod results;
mod samples;
mod scrape;
mod scrapes;
mod search;
mod stats;
mod steady;
mod suite;
mod summary;
mod tcp;
mod testpmd;
mod threads;
mod trial;
mod tso;
mod turns;
mod vm;
mod wakes;
mod watch;

use clap::Parser;
use options::Command;
use std::process::ExitCode;

fn main() -> ExitCode {
    let done = match options::Cli::parse().command {
        Command::Vm(options) => vm::run(&options),
        Command::Report(options) => results::report(&options),
        Command::Tso(options) => tso::run(&options),
        Command::Suite(options) => suite::run(&options),
        Command::Cost(options) => cost::run(&options),
        Command::Nic(options) => nic::run(&options),
        Command::Churn(options) => churn::run(&options),
        Command::Fairness(options) => fairness::run(&options),
        Command::Idle(options) => idle::run(&options),
        Command::Compare(options) => compare::run(&options),
        Command::Mask(options) => mask::run(&options),
        Command::Lines(options) => lines::run(&options),
        Command::Scrape(options) => scrapes::run(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}
