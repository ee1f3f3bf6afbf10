//! `crosspoint set`: changes sets of addresses.

use std::process::ExitCode;

use crosspoint_model::request::{Request, SetAnswer, SetChange};

use crate::completions::sets;
use crate::{control, help};

/// Change a set of addresses of a running switch
///
/// Rules of security groups name such sets. A change takes effect at once, for all rules with the set. Without --keep it is
/// in no file: it lasts until a command takes it back or the switch ends. `crosspoint show sets` lists the sets.
#[derive(clap::Args)]
#[command(after_long_help = help::SET)]
pub(crate) struct Set {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Add addresses to a set
    Add(Change),
    /// Remove addresses from a set
    ///
    /// What connections do that the rules no longer allow is up to `on_change` in the section [connections].
    Remove(Change),
}

#[derive(clap::Args)]
struct Change {
    /// The set's name
    #[arg(add = sets())]
    set: String,
    /// IP addresses and prefixes
    #[arg(required = true, value_name = "ADDRESS")]
    addresses: Vec<String>,
    /// Also change the set's file, so that it is still so after a restart
    #[arg(long)]
    keep: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: control::Socket,
}

impl Set {
    pub(crate) fn run(self) -> ExitCode {
        let (change, is_added) = match self.action {
            Action::Add(change) => (change, true),
            Action::Remove(change) => (change, false),
        };
        let wanted = SetChange {
            set: change.set.clone(),
            addresses: change.addresses,
            keep: change.keep,
        };
        let request = match is_added {
            true => Request::SetAdd(wanted),
            false => Request::SetRemove(wanted),
        };
        let asked = control::ask_as::<SetAnswer>(&change.socket.socket, &request);
        let Some((value, answer)) = asked else {
            return ExitCode::FAILURE;
        };
        control::print(change.json, &value, || text(&change.set, is_added, &answer));
        ExitCode::SUCCESS
    }
}

fn text(set: &str, is_added: bool, answer: &SetAnswer) -> String {
    let done = if is_added { "added" } else { "removed" };
    let count = |number: usize| match number {
        1 => "1 address".to_owned(),
        number => format!("{number} addresses"),
    };
    let (changed, now) = (count(answer.changed), count(answer.addresses));
    format!("{changed} {done}; set {set} has {now}\n")
}
