//! `crosspoint keep`.

use std::fmt::Write as _;
use std::process::ExitCode;

use crosspoint_model::plan::KeepAnswer;
use crosspoint_model::request::Request;

use crate::control;
use crate::show::printable;

/// Write what runs and is in no file to the files, so that a restart does not lose it
///
/// Each port that was added or changed by a command without --keep gets its own file in `ports_dir`. A port of the main file
/// is not written: the answer says what to change there. Other ports are not touched. The exit status is 1 if anything could
/// not be written.
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
        match answer.not_kept.is_empty() {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        }
    }
}

/// The result: a line for each port that was written; for each other one the reason, what to do, and its table.
fn render(answer: &KeepAnswer) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    for port in &answer.kept {
        let path = printable(&port.path.display().to_string());
        let _ = writeln!(text, "kept port {}: {path}", printable(&port.name));
    }
    for port in &answer.not_kept {
        let _ = writeln!(
            text,
            "! port {} is not kept: {}",
            printable(&port.name),
            printable(&port.error)
        );
        let _ = writeln!(text, "  help: {}", printable(&port.help));
        for line in port.table.lines() {
            let _ = writeln!(text, "    {}", printable(line));
        }
    }
    if text.is_empty() {
        text.push_str("everything that runs is in the files\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use crosspoint_model::plan::{KeptPort, NotKept};

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
            not_kept: vec![NotKept {
                name: "up0".to_owned(),
                error: "port \"up0\" is in the main file".to_owned(),
                help: "change that file by hand".to_owned(),
                table: "[[port]]\nname = \"up0\"\n".to_owned(),
            }],
        };
        let expected = "kept port web-1: /etc/crosspoint/ports.d/web-1.toml\n\
            ! port up0 is not kept: port \"up0\" is in the main file\n  \
              help: change that file by hand\n    [[port]]\n    name = \"up0\"\n";
        assert_eq!(render(&answer), expected);
    }
}
