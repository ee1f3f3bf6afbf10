//! `crosspoint-bench`: measures crosspoint's rates and costs, and those of other switches beside it.
//!
//! Each folder uses only those above it in this table.
//!
//! | module | what |
//! |---|---|
//! | [`error`], [`interrupt`], [`random`], [`stats`] | errors, signals, pauses, medians and quartiles |
//! | [`lab`] | switches, threads, placement, and what is observed around a trial |
//! | [`options`] | options that several subcommands have |
//! | [`load`] | the generators of traffic |
//! | [`trials`] | trials at the maximum and for latency, and whether they count |
//! | [`report`] | results, tables |
//! | [`scenarios`] | the subcommands |

mod error;
mod interrupt;
mod lab;
mod load;
mod options;
mod random;
mod report;
mod scenarios;
mod stats;
mod trials;

use clap::{Parser, Subcommand};
use scenarios::suite_options::SuiteOptions;
use scenarios::{
    churn, compare, fairness, feature_filter, idle, lines, nic, outage, scrape, soak, suite,
};
use std::process::ExitCode;

/// Measures crosspoint, and other switches beside it.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    /// What to measure.
    #[command(subcommand)]
    command: Command,
}

/// What to measure.
#[derive(Subcommand)]
enum Command {
    /// Scenarios of two guests and of many over one worker or more: rates, cycles per frame, latency
    Suite(Box<SuiteOptions>),
    /// Frames between NICs, and between guests and NICs: Mpps, the kernel's cycles and the switch's
    Nic(Box<nic::NicOptions>),
    /// The cost of an idle worker, and how soon it wakes
    Idle(Box<idle::IdleOptions>),
    /// The cost of guests and interfaces that come and go to those that stay
    Churn(Box<churn::ChurnOptions>),
    /// How much hostile guests take from other guests of their worker
    Fairness(Box<fairness::options::FairnessOptions>),
    /// Any switches with any measuring command, in turn: see uml.sh and veth.sh
    Compare(compare::CompareOptions),
    /// Proxy between a vhost-user front end and back ends that hides features; runs until killed
    Mask(feature_filter::FilterOptions),
    /// Cache lines that cross between a guest's core and the switch's: the cost of one, and their part of a frame's cycles
    Lines(Box<lines::LinesOptions>),
    /// Frames that two guests lose, and their longest gap, while a command does something to their switch: see outage.sh
    Outage(outage::OutageOptions),
    /// How long a scrape of a thousand queues takes, and whether workers notice
    Scrape(scrape::ScrapeOptions),
    /// All that can happen to a switch, in random order, for as long as one likes; ends with what guests noticed
    Soak(Box<soak::SoakOptions>),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Suite(options) => suite::run(&options),
        Command::Nic(options) => nic::run(&options),
        Command::Idle(options) => idle::run(&options),
        Command::Churn(options) => churn::run(&options),
        Command::Fairness(options) => fairness::run(&options),
        Command::Compare(options) => compare::run(&options),
        Command::Mask(options) => feature_filter::run(&options),
        Command::Lines(options) => lines::run(&options),
        Command::Outage(options) => outage::run(&options),
        Command::Scrape(options) => scrape::run(&options),
        Command::Soak(options) => soak::run(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
