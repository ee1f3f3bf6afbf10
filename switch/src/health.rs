//! `crosspoint health`: wiring; the text is made in `crosspoint_model::health`.

use std::process::ExitCode;

use crosspoint_model::health;
use crosspoint_model::request::Request;

use crate::control::ask;

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
        let Some(value) = ask(&self.socket.socket, &Request::Health {}) else {
            return ExitCode::FAILURE;
        };
        let health = match serde_json::from_value::<health::Health>(value.clone()) {
            Ok(health) => health,
            Err(why) => {
                eprintln!("error: the daemon is another version of crosspoint: {why}");
                return ExitCode::FAILURE;
            }
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
