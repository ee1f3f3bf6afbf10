//! `crosspoint man`.

use std::fs;
use std::io::{self, Write, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Command};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use crate::help;

/// Print the manual page crosspoint(1), or write it and the pages of all commands
#[derive(Args)]
#[command(name = "man", after_long_help = help::MAN)]
pub(crate) struct ManPages {
    /// Write crosspoint.1 and a page for every command into this directory, which is created if it is missing
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl ManPages {
    /// Prints or writes the pages of `command`.
    pub(crate) fn run(self, command: &Command) -> ExitCode {
        let command = built(command);
        let done = match &self.dir {
            Some(dir) => write_all(&command, dir),
            None => print(&command),
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

fn print(command: &Command) -> io::Result<()> {
    let text = page(&Man::new(command.clone()), command)?;
    // The reader has closed the pipe.
    let _ = stdout().write_all(&text);
    Ok(())
}

/// The command line without the `help` command: the pages contain the same text.
fn built(command: &Command) -> Command {
    let mut command = command.clone().disable_help_subcommand(true);
    command.build();
    command
}

fn write_all(command: &Command, dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    write(command, dir)
}

fn write(command: &Command, dir: &Path) -> io::Result<()> {
    for one in command.get_subcommands().filter(|one| !one.is_hide_set()) {
        write(one, dir)?;
    }
    let man = Man::new(command.clone());
    fs::write(dir.join(man.get_filename()), page(&man, command)?)
}

/// A page: clap's own, with the text after the options as separate sections.
fn page(man: &Man, command: &Command) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    if command.get_subcommands().next().is_some() {
        man.render_subcommands_section(&mut text)?;
    }
    let after = command.get_after_long_help().map(ToString::to_string);
    sections(&after.unwrap_or_default()).to_writer(&mut text)?;
    Ok(text)
}

/// A line such as `Examples:` begins a section; the section's lines stay as they are.
fn sections(text: &str) -> Roff {
    let mut roff = Roff::new();
    for part in text.split("\n\n") {
        let mut lines = part.lines();
        let heading = lines.next().unwrap_or_default().trim_end_matches(':');
        roff.control("SH", [heading.to_uppercase().as_str()]);
        roff.control("nf", []);
        for line in lines {
            roff.text([roman(line.trim_start())]);
        }
        roff.control("fi", []);
    }
    roff
}
