//! `crosspoint`: the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    crosspoint::cli::run()
}
