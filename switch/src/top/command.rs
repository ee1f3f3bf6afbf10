//! `crosspoint top`: wiring; the screen is in `crate::top`.

use std::io::{IsTerminal, stdin, stdout};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use clap::Args;
use miette::Diagnostic;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

use crate::show::seconds;
use crate::top::{Options, View};
use crate::{control, help, top};

/// Watch a running switch: its current traffic, drops and completion times
///
/// All values are per second, over the time since the previous refresh. Keys: 1 to 9 or Tab choose the view, left and right
/// the column to sort by, r reverses the order, / filters, Enter shows one line in full, p pauses, + and - change the
/// interval, ? explains the keys, q ends.
#[derive(Args)]
#[command(after_long_help = help::TOP)]
pub(crate) struct Top {
    /// The first view
    #[arg(long, value_name = "VIEW", default_value = "ports")]
    view: View,
    /// The column to sort by, by its heading, such as RX-PPS
    #[arg(long, value_name = "COLUMN")]
    sort: Option<String>,
    /// Reverse the order
    #[arg(long)]
    reverse: bool,
    /// Only lines that contain this text
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,
    /// Seconds from one refresh to the next, 0.1 to 3600
    #[arg(long, short, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    interval: Duration,
    /// Print text, for scripts, instead of filling the screen
    #[arg(long, short)]
    batch: bool,
    /// With --batch: end after this many refreshes
    #[arg(long, short = 'n', value_name = "N", requires = "batch")]
    count: Option<u64>,
    #[command(flatten)]
    socket: crate::control::Socket,
}

impl Top {
    pub(crate) fn run(self) -> ExitCode {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let options = Options {
            socket: self.socket.socket,
            view: self.view,
            sort: self.sort,
            reverse: self.reverse,
            filter: self.filter,
            interval: self.interval,
            colour: !plain,
        };
        let at_terminal = stdin().is_terminal() && stdout().is_terminal();
        if !self.batch && !at_terminal {
            eprintln!("error: `top` needs a terminal to fill");
            eprintln!(
                "help: `crosspoint top --batch` prints text, as does `crosspoint show ports --watch`"
            );
            return ExitCode::FAILURE;
        }
        let stop = Arc::new(AtomicUsize::new(0));
        for signal in [SIGTERM, SIGINT, SIGHUP, SIGQUIT] {
            let value = usize::try_from(signal).unwrap_or_default();
            // A batch has nothing to restore, and a signal's default action ends it properly.
            if self.batch {
                break;
            }
            if let Err(why) = signal_hook::flag::register_usize(signal, stop.clone(), value) {
                eprintln!("error: signals cannot be caught: {why}");
                return ExitCode::FAILURE;
            }
        }
        let ended = match self.batch {
            true => top::batch(options, self.count),
            false => top::screen(options, &stop),
        };
        match (ended, stop.load(Ordering::Relaxed)) {
            (Ok(()), 0) => ExitCode::SUCCESS,
            // The exit status that shells use.
            (Ok(()), signal) => ExitCode::from(128 + u8::try_from(signal).unwrap_or_default()),
            (Err(why), _) => {
                eprintln!("error: {why}");
                if let Some(help) = why.help() {
                    eprintln!("help: {help}");
                }
                match why {
                    top::TopError::NoColumn { .. } => ExitCode::from(control::MISUSE),
                    _ => ExitCode::FAILURE,
                }
            }
        }
    }
}
