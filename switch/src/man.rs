//! `crosspoint man`.

use std::io::{self, Write, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, CommandFactory};
use clap_mangen::Man;

use crate::cli::Cli;
use crate::help;

/// Print the manual page crosspoint(1), or write it and those of all commands
#[derive(Args)]
#[command(name = "man", after_long_help = help::MAN)]
pub(crate) struct ManPages {
    /// Write crosspoint.1 and a page for every command into this directory, which is made if it is missing
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl ManPages {
    pub(crate) fn run(self) -> ExitCode {
        let done = match &self.dir {
            Some(dir) => write_all(dir),
            None => print(),
        };
        let Err(why) = done else {
            return ExitCode::SUCCESS;
        };
        let place = self.dir.unwrap_or_else(|| PathBuf::from("standard output"));
        eprintln!("error: cannot write to {}: {why}", place.display());
        eprintln!("help: name a directory that you may write to with --dir");
        ExitCode::FAILURE
    }
}

fn print() -> io::Result<()> {
    let mut text = Vec::new();
    Man::new(Cli::command()).render(&mut text)?;
    // Who reads only the beginning has read enough.
    let _ = stdout().write_all(&text);
    Ok(())
}

fn write_all(dir: &Path) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    clap_mangen::generate_to(Cli::command().disable_help_subcommand(true), dir)
}
