//! `crosspoint health`: wiring; the text is made in `crosspoint_model::health`.

use std::process::ExitCode;

use crosspoint_model::health;
use crosspoint_model::request::Request;

use crate::control::ask_as;

/// Arguments of `health`.
#[derive(clap::Args)]
pub(crate) struct Health {
    /// Check too whether every required port is up
    #[arg(long)]
    ready: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: crate::control::Socket,
}

impl Health {
    /// Asks the running switch, and prints its faults, if there are any.
    pub(crate) fn run(self) -> ExitCode {
        let answer = ask_as::<health::Health>(&self.socket.socket, &Request::Health {});
        let Some((value, health)) = answer else {
            return ExitCode::FAILURE;
        };
        let (well, text) = match self.ready {
            true => (health.ready, health.ready_text()),
            false => (health.live, health.live_text()),
        };
        match self.json {
            true => println!("{value:#}"),
            false => print!("{text}"),
        }
        match well {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        }
    }
}
