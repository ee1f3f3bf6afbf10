//! `crosspoint`: the command line. Wiring only; the work is in the packages below.

mod capture;
mod cli;
mod completions;
#[cfg(test)]
mod docs;
mod doctor;
mod health;
mod help;
mod man;
mod plan;
mod port;
mod reload;
mod report;
mod run;
mod show;
mod top;
mod trace;

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
        cli::Command::Capture(capture) => capture.run(),
        cli::Command::Trace(trace) => trace.run(),
        cli::Command::Plan(plan) => plan.run(),
        cli::Command::Port(port) => port.run(),
        cli::Command::Reload(reload) => reload.run(),
        cli::Command::Show(show) => show.run(),
        cli::Command::Top(top) => top.run(),
        cli::Command::Completions(completions) => completions.run(),
        cli::Command::Man(man) => man.run(),
    }
}
