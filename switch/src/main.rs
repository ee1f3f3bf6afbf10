//! `crosspoint`: the command line. Wiring only; the work is in the packages below.

mod cli;
mod doctor;
mod run;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match cli::Cli::parse().command {
        cli::Command::Run { config } => run::run(&config),
        cli::Command::Check { config } => run::check(&config),
        cli::Command::Doctor { config, all, json } => doctor::doctor(config.as_deref(), all, json),
        cli::Command::Show {
            what,
            name,
            json,
            socket,
        } => cli::show(what, name, json, &socket),
    }
}
