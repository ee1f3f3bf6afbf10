//! `crosspoint-bench`: measures crosspoint's rates and costs, and those of other switches beside it.
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
//! | [`idle`] | `idle`: the cost of an idle worker, how soon it wakes, and whether a wakeup is ever lost |
//! | [`wakes`] | wakes of a sleeping thread, and their times |
//! | [`churn`] | `churn`: the cost of guests and interfaces that come and go to those that stay |
//! | [`fairness`] | `fairness`: how much hostile guests take from other guests of their worker |
//! | [`neighbours`] | guests and interfaces that come and go |
//! | [`load`] | traffic at a given rate |
//! | [`steady`] | frames at a steady rate, and their losses |
//! | [`pair`] | two guests whose frames are distinguished from all others |
//! | [`random`] | unpredictable pauses |
//! | [`mask`] | `mask`: hides features between a vhost-user front end and a back end |
//! | [`turns`] | parts common to the plans of several subcommands |
//! | [`backend`] | the measured switches: the crosspoint binary, or a peer that commands start and stop |
//! | [`bench_guests`] | generator and sink in this process |
//! | [`large_guests`] | the same for large frames |
//! | [`guest`] | connecting guests to a switch |
//! | [`tcp`] | TCP frames as Linux sends them |
//! | [`testpmd`] | DPDK's guests |
//! | [`watch`] | observations around each trial: placement, waiting, the switch's counters |
//! | [`machine`] | the machine on which it was measured |
//! | [`placement`] | how far apart two cores are |
//! | [`threads`] | finding, pinning and scheduling threads; their waiting time |
//! | [`lines`] | `lines`: cache lines that cross between cores, and what they cost |
//! | [`scrape`] | the switch's metrics |
//! | [`scrapes`] | `scrape`: how long a scrape takes |
//! | [`interrupt`] | SIGINT and SIGTERM |
//! | [`trial`] | results of one trial, and why it is discarded |
//! | [`measure`] | the measurements of a load: maximum, search, latency |
//! | [`search`] | several loss ratios' throughputs in one search |
//! | [`latency`] | times at parts of a rate |
//! | [`results`], [`summary`], [`maxima`], [`plot`] | the results file of the suite, its report and plots; `report`: renders them again |
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
