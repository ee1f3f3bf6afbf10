//! `crosspoint`: the command line. Wiring only; the work is in the packages below.

mod cli;
#[cfg(test)]
mod docs;
mod doctor;
mod health;
mod plan;
mod port;
mod reload;
mod report;
mod run;

use std::process::ExitCode;

use clap::Parser;
use crosspoint_control::api::Place;

fn main() -> ExitCode {
    match cli::Cli::parse().command {
        cli::Command::Run { config } => run::run(&config),
        cli::Command::Check { config } => run::check(&config),
        cli::Command::Doctor { config, all, json } => doctor::doctor(config.as_deref(), all, json),
        cli::Command::Health(health) => health.run(),
        cli::Command::Report(report) => report.run(),
        cli::Command::Move {
            port,
            queue,
            worker,
            socket,
        } => {
            let place = Place {
                port,
                queue,
                worker,
            };
            cli::move_stream(place, &socket)
        }
        cli::Command::Plan(plan) => plan.run(),
        cli::Command::Port(port) => port.run(),
        cli::Command::Reload(reload) => reload.run(),
        cli::Command::Show {
            what,
            name,
            json,
            socket,
        } => cli::show(what, name, json, &socket),
    }
}
