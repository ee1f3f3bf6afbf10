//! `crosspoint reload`, and what it shares with `crosspoint port`.

use std::path::Path;
use std::process::ExitCode;

use crosspoint_model::plan::ReloadAnswer;
use crosspoint_model::request::Request;

use crate::control;
use crate::plan::render_reload;

/// Have a running switch read its configuration again, and apply it
///
/// A configuration with a mistake changes nothing. What needs a restart is reported, and the rest is applied; `crosspoint
/// plan` shows this beforehand. The exit status is 1 if anything failed.
#[derive(clap::Args)]
pub(crate) struct Reload {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: control::Socket,
}

impl Reload {
    pub(crate) fn run(self) -> ExitCode {
        change(&self.socket.socket, &Request::Reload {}, self.json)
    }
}

/// Requests a change, and prints its result.
pub(crate) fn change(socket: &Path, request: &Request, json: bool) -> ExitCode {
    let Some((value, answer)) = control::ask_as::<ReloadAnswer>(socket, request) else {
        return ExitCode::FAILURE;
    };
    control::print(json, &value, || render_reload(&answer));
    match answer.failed.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}
