//! `crosspoint plan`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crosspoint_control::api::Request;
use crosspoint_control::plan::{self, PlanAnswer};

use crate::cli;

/// The status that says that there are changes.
const CHANGES: u8 = 2;

/// Show what a changed configuration would change in a running switch, and change nothing
///
/// The running switch reads the file, so its user must be allowed to. The exit status is 0 if nothing would change, 2 if
/// something would, and 1 if that cannot be said, for a mistake in the configuration for instance.
#[derive(clap::Args)]
pub(crate) struct Plan {
    /// The configuration (TOML); without it, the one that the switch was started with, as it is now
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: cli::Socket,
}

impl Plan {
    pub(crate) fn run(self) -> ExitCode {
        // The daemon's working directory is another.
        let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or(path.clone());
        let request = Request::Plan {
            config: self.config.as_ref().map(absolute),
        };
        let socket: &Path = &self.socket.socket;
        let answer = cli::ask_as::<PlanAnswer>(socket, &request);
        let Some((value, answer)) = answer else {
            return ExitCode::FAILURE;
        };
        cli::print(self.json, &value, || plan::render(&answer));
        match answer.is_empty() {
            true => ExitCode::SUCCESS,
            false => ExitCode::from(CHANGES),
        }
    }
}
