//! `crosspoint plan`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crosspoint_model::plan::PlanAnswer;
use crosspoint_model::request::Request;

use crate::control;

/// The exit status if there are changes. No other command has it: 2 would also be a wrong command line.
const CHANGES: u8 = 6;

/// Show what a changed configuration would change in a running switch, and change nothing
///
/// The running switch reads the file, so its user must be allowed to. The exit status is 0 if nothing would change, 6 if
/// something would, and 1 if that cannot be determined, for instance because of a mistake in the configuration.
#[derive(clap::Args)]
pub(crate) struct Plan {
    /// The configuration (TOML); without it, the file that the switch was started with, as it is now
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: control::Socket,
}

impl Plan {
    pub(crate) fn run(self) -> ExitCode {
        // The daemon has another working directory.
        let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or(path.clone());
        let request = Request::Plan {
            config: self.config.as_ref().map(absolute),
        };
        let socket: &Path = &self.socket.socket;
        let answer = control::ask_as::<PlanAnswer>(socket, &request);
        let Some((value, answer)) = answer else {
            return ExitCode::FAILURE;
        };
        control::print(self.json, &value, || super::render(&answer));
        match answer.is_empty() {
            true => ExitCode::SUCCESS,
            false => ExitCode::from(CHANGES),
        }
    }
}
