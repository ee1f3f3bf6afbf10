//! `crosspoint keep`.

use std::fmt::Write as _;
use std::process::ExitCode;

use crosspoint_model::plan::{KeepAnswer, KeptPort, NotKept};
use crosspoint_model::request::Request;

use crate::control;
use crate::show::printable;

/// Write what runs and is in no file to the files, so that a restart does not lose it
///
/// A port that was changed by a command without --keep is changed in its file, which may be the main file: only the keys
/// that differ; comments and all other lines stay. A port that was added gets its own file in `ports_dir`, and static
/// addresses of `crosspoint fdb add` go to the file fdb.toml there; without `ports_dir` both go to the main file. Changes of
/// sets go to the set's file, or to the main file. Before
/// anything is written, the new files are read as at a start. The exit status is 1 if anything could not be written: the
/// answer has the reason, and what to write by hand.
#[derive(clap::Args)]
pub(crate) struct Keep {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: control::Socket,
}

impl Keep {
    pub(crate) fn run(self) -> ExitCode {
        let answer = control::ask_as::<KeepAnswer>(&self.socket.socket, &Request::Keep {});
        let Some((value, answer)) = answer else {
            return ExitCode::FAILURE;
        };
        control::print(self.json, &value, || render(&answer));
        let not_kept = [
            &answer.not_kept,
            &answer.not_kept_fdb,
            &answer.not_kept_sets,
        ];
        match not_kept.iter().all(|all| all.is_empty()) {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        }
    }
}

/// The result: a line for each port that was written; for each other one the reason, what to do, and its table.
fn render(answer: &KeepAnswer) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let kept = answer.kept.iter().map(|one| ("port", one));
    let kept = kept.chain(answer.kept_fdb.iter().map(|one| ("fdb", one)));
    for (what, one) in kept.chain(answer.kept_sets.iter().map(|one| ("set", one))) {
        let KeptPort { name, path } = one;
        let path = printable(&path.display().to_string()).to_string();
        let _ = writeln!(text, "kept {what} {}: {path}", printable(name));
    }
    let not_kept = answer.not_kept.iter().map(|one| ("port", one));
    let not_kept = not_kept.chain(answer.not_kept_fdb.iter().map(|one| ("fdb", one)));
    for (what, one) in not_kept.chain(answer.not_kept_sets.iter().map(|one| ("set", one))) {
        text.push_str(&not_kept_text(what, one));
    }
    if text.is_empty() {
        text.push_str("everything that runs is in the files\n");
    }
    text
}

fn not_kept_text(what: &str, one: &NotKept) -> String {
    let (name, error) = (printable(&one.name), printable(&one.error));
    let mut text = format!(
        "! {what} {name} is not kept: {error}\n  help: {}\n",
        printable(&one.help)
    );
    for line in one.table.lines() {
        let _ = writeln!(text, "    {}", printable(line));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_kept_is_said_with_what_to_write() {
        let nothing = render(&KeepAnswer::default());
        assert_eq!(nothing, "everything that runs is in the files\n");
        let answer = KeepAnswer {
            kept: vec![KeptPort {
                name: "web-1".to_owned(),
                path: "/etc/crosspoint/ports.d/web-1.toml".into(),
            }],
            kept_fdb: vec![KeptPort {
                name: "52:54:00:00:00:01 vlan 100".to_owned(),
                path: "/etc/crosspoint/ports.d/fdb.toml".into(),
            }],
            not_kept_fdb: Vec::new(),
            kept_sets: Vec::new(),
            not_kept_sets: Vec::new(),
            not_kept: vec![NotKept {
                name: "up0".to_owned(),
                error: "cannot write /etc/crosspoint/crosspoint.toml".to_owned(),
                help: "change that file by hand".to_owned(),
                table: "[[port]]\nname = \"up0\"\n".to_owned(),
            }],
        };
        let expected = "kept port web-1: /etc/crosspoint/ports.d/web-1.toml\n\
            kept fdb 52:54:00:00:00:01 vlan 100: /etc/crosspoint/ports.d/fdb.toml\n\
            ! port up0 is not kept: cannot write /etc/crosspoint/crosspoint.toml\n  \
              help: change that file by hand\n    [[port]]\n    name = \"up0\"\n";
        assert_eq!(render(&answer), expected);
    }
}
