//! `crosspoint reload`, and what it shares with `crosspoint port`.

use std::path::Path;
use std::process::ExitCode;

use crosspoint_control::api::Request;
use crosspoint_control::plan::{self, ReloadAnswer};

use crate::cli;

/// Have a running switch read its configuration again, and become what it says
///
/// A configuration with a mistake changes nothing. What needs a restart is said, and the rest is done; `crosspoint plan`
/// says beforehand what that would be. The exit status is 1 if anything failed.
#[derive(clap::Args)]
pub(crate) struct Reload {
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: cli::Socket,
}

impl Reload {
    pub(crate) fn run(self) -> ExitCode {
        change(&self.socket.socket, &Request::Reload {}, self.json)
    }
}

/// Asks for a change, and prints what became of it.
pub(crate) fn change(socket: &Path, request: &Request, json: bool) -> ExitCode {
    let Some((value, answer)) = cli::ask_as::<ReloadAnswer>(socket, request) else {
        return ExitCode::FAILURE;
    };
    cli::print(json, &value, || plan::render_reload(&answer));
    match answer.failed.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}
