//! The commands, and `crosspoint show`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use crosspoint_control::api::{self, Request};
use crosspoint_control::show::{self, Topic};
use miette::Diagnostic;

/// A polling software switch for virtual machines.
#[derive(Parser)]
#[command(version, about)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Run the switch in the foreground, until SIGTERM or SIGINT
    Run {
        /// The configuration (TOML)
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Validate a configuration without starting anything
    Check {
        /// The configuration (TOML)
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Show what a running switch knows
    Show {
        /// What to show: ports, queues, workers, fdb or drops
        topic: Topic,
        /// As JSON
        #[arg(long)]
        json: bool,
        /// The running switch's control socket
        #[arg(
            long,
            value_name = "PATH",
            env = "CROSSPOINT_SOCKET",
            default_value = "/run/crosspoint/control.sock"
        )]
        socket: PathBuf,
    },
}

/// Asks the running switch, and prints what it says.
pub(crate) fn show(topic: Topic, json: bool, socket: &Path) -> ExitCode {
    let value = match api::request(socket, &Request::Show(topic)) {
        Ok(value) => value,
        Err(error) => {
            eprintln!("error: {error}");
            if let Some(help) = error.help() {
                eprintln!("help: {help}");
            }
            return ExitCode::FAILURE;
        }
    };
    let text = if json {
        serde_json::to_string_pretty(&value).map_err(|e| e.to_string())
    } else {
        show::render(topic, &value).map_err(|e| e.to_string())
    };
    match text {
        Ok(text) => {
            println!("{}", text.trim_end());
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}
