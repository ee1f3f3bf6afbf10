//! The commands.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use crosspoint_daemon::service::sandbox::{HELPER_COMMAND, run_helper};
use crosspoint_model::request::{Place, Request};

use crate::completions::{self, Completions};
use crate::control::ask;
use crate::man::ManPages;
use crate::show::Show;
use crate::supervise::{Supervise, UpgradeCommand};
use crate::top::Top;
use crate::{check, doctor, help, run};

/// A polling software switch for virtual machines.
#[derive(Parser)]
#[command(name = "crosspoint", version, about, after_long_help = help::ALL)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Run the switch in the foreground, until SIGTERM or SIGINT
    #[command(after_long_help = help::RUN)]
    Run {
        /// The configuration (TOML)
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    Supervise(Supervise),
    Upgrade(UpgradeCommand),
    /// Validate a configuration without starting anything
    #[command(after_long_help = help::CHECK)]
    Check {
        /// The configuration (TOML); `-` reads standard input, without the files of `ports_dir`
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Look at this host too: the workers' cores, groups, interfaces, and the folders of sockets
        #[arg(long)]
        host: bool,
    },
    /// Check whether this host is fit for the switch, and how to make it so
    ///
    /// The exit status gives the severity of the worst finding: 0 all is well, 3 a note, 4 a warning, 5 an error. It is 1 if
    /// the configuration cannot be read, and 2 if the command line is wrong.
    #[command(after_long_help = help::DOCTOR)]
    Doctor {
        /// The configuration (TOML) that is meant for this host; without it, only checks that need none are made
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Check all interfaces, not only those that are ports
        #[arg(long)]
        all: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Check whether a running switch works, for probes: exit status 0 if so, else 1
    Health(crate::health::Health),
    /// Gather what support needs to know about this host and the switch into one file
    Report(crate::report::Report),
    /// Move a guest's queue to another worker of a running switch
    #[command(after_long_help = help::MOVE)]
    Move {
        /// The port's name
        #[arg(add = completions::ports())]
        port: String,
        /// The queue's number
        queue: u16,
        /// The worker's number, as in `show workers`
        worker: usize,
        /// The running switch's control socket
        #[arg(
            long,
            value_name = "PATH",
            env = "CROSSPOINT_SOCKET",
            default_value = "/run/crosspoint/control.sock"
        )]
        socket: PathBuf,
    },
    /// Show frames and what happens to each: as lines, or as a file for Wireshark
    ///
    /// A worker never waits for a capture: frames that are read too slowly are missed, and counted. Only root and the
    /// daemon's user may capture. The exit status is 0 if the capture ended in order, also by Ctrl-C, and else 1.
    Capture(crate::capture::Capture),
    /// Explain what happens to a frame, stage by stage: VLAN, addresses, ports, queues, verdicts
    Trace(crate::trace::Trace),
    Keep(crate::keep::Keep),
    Plan(crate::plan::Plan),
    Port(crate::port::Port),
    Fdb(crate::fdb::Fdb),
    Set(crate::set::Set),
    Reload(crate::reload::Reload),
    Show(Show),
    Top(Top),
    Completions(Completions),
    Man(ManPages),
    /// Enters network namespaces for the daemon, which starts this itself
    #[command(name = HELPER_COMMAND, hide = true)]
    NamespaceHelper,
}

/// The command line of this process. If it is wrong, or asks for help, this ends the process.
fn parse() -> Cli {
    let first = match Cli::try_parse() {
        Ok(cli) => return cli,
        Err(error) if !error.use_stderr() => error.exit(),
        Err(error) => error,
    };
    match without_environment(Cli::command()).try_get_matches() {
        Ok(_) => first.exit(),
        Err(error) => error.exit(),
    }
}

/// The command line without environment variables. In usage lines clap shows an option that the environment gives as if it
/// were required.
fn without_environment(command: clap::Command) -> clap::Command {
    let command = command.mut_args(|arg| arg.env(None::<&'static str>));
    command.mut_subcommands(without_environment)
}

/// Runs the command of this process's command line.
pub fn run() -> ExitCode {
    completions::answer(Cli::command);
    match parse().command {
        Command::Run { config } => run::run(&config),
        Command::Supervise(supervise) => supervise.run(),
        Command::Upgrade(upgrade) => upgrade.run(),
        Command::Check { config, host } => check::check(&config, host),
        Command::Doctor { config, all, json } => doctor::doctor(config.as_deref(), all, json),
        Command::Health(health) => health.run(),
        Command::Report(report) => report.run(),
        Command::Move {
            port,
            queue,
            worker,
            socket,
        } => {
            let place = Place {
                port,
                queue,
                worker,
            };
            move_stream(place, &socket)
        }
        Command::Capture(capture) => capture.run(),
        Command::Trace(trace) => trace.run(),
        Command::Keep(keep) => keep.run(),
        Command::Plan(plan) => plan.run(),
        Command::Port(port) => port.run(),
        Command::Fdb(fdb) => fdb.run(),
        Command::Set(set) => set.run(),
        Command::Reload(reload) => reload.run(),
        Command::Show(show) => show.run(),
        Command::Top(top) => top.run(),
        Command::Completions(completions) => completions.run(),
        Command::Man(man) => man.run(&Cli::command()),
        Command::NamespaceHelper => match run_helper() {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
    }
}

/// Asks the running switch to move a stream, and prints the result.
pub(crate) fn move_stream(place: Place, socket: &Path) -> ExitCode {
    let text = format!(
        "{}:{} is polled by worker-{}",
        place.port, place.queue, place.worker
    );
    match ask(socket, &Request::Move(place)) {
        Some(_) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        None => ExitCode::FAILURE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_lines_do_not_ask_for_what_the_environment_gives() {
        fn is_plain(command: &clap::Command) -> bool {
            let mut args = command.get_arguments();
            args.all(|arg| arg.get_env().is_none()) && command.get_subcommands().all(is_plain)
        }
        assert!(!is_plain(&Cli::command()));
        assert!(is_plain(&without_environment(Cli::command())));
    }
}
