//! `crosspoint completions`.

use std::io::{Write, stdout};
use std::process::ExitCode;

use clap::{Args, Command};
use clap_complete::Shell;

use crate::help;

/// Print a shell's completions of this command line
#[derive(Args)]
#[command(after_long_help = help::COMPLETIONS)]
pub(crate) struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    /// Prints the completions of `command`.
    pub(crate) fn run(self, mut command: Command) -> ExitCode {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut command, "crosspoint", &mut text);
        // The reader has closed the pipe.
        let _ = stdout().write_all(&text);
        ExitCode::SUCCESS
    }
}
