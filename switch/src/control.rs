//! What commands share: the control socket and its answers.

use std::path::{Path, PathBuf};

use crosspoint_model::client::{self, ClientError};
use crosspoint_model::request::Request;
use miette::Diagnostic;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The exit status of a command line that is wrong, as of one that clap refuses.
pub(crate) const MISUSE: u8 = 2;

/// The control socket of the running switch.
#[derive(clap::Args)]
pub(crate) struct Socket {
    /// The running switch's control socket
    #[arg(
        long,
        value_name = "PATH",
        env = "CROSSPOINT_SOCKET",
        default_value = "/run/crosspoint/control.sock"
    )]
    pub(crate) socket: PathBuf,
}

/// Sends a request to the running switch. If there is no answer, prints the reason.
pub(crate) fn ask(socket: &Path, request: &Request) -> Option<Value> {
    let answer = client::request(socket, request);
    // The text in other reports is not of a file that the user wrote.
    let reads_files = matches!(request, Request::Plan { .. } | Request::Reload {});
    let say = |error: &ClientError| {
        if let ClientError::Refused {
            report: Some(report),
            ..
        } = error
            && reads_files
        {
            // The report has the mistakes, and how to fix each.
            eprintln!("{report}");
            eprintln!("error: crosspoint refuses this configuration; nothing was changed");
            return;
        }
        eprintln!("error: {error}");
        if let Some(help) = error.help() {
            eprintln!("help: {help}");
        }
    };
    answer.inspect_err(say).ok()
}

/// Sends a request to the running switch; returns the answer as JSON and as `T`.
pub(crate) fn ask_as<T: DeserializeOwned>(socket: &Path, request: &Request) -> Option<(Value, T)> {
    let value = ask(socket, request)?;
    let answer = T::deserialize(&value);
    let say = |error: &serde_json::Error| {
        eprintln!("error: this is not an answer of this version of crosspoint: {error}");
        eprintln!("help: restart the daemon after an update, or ask it with its own version");
    };
    answer.inspect_err(say).ok().map(|answer| (value, answer))
}

/// Prints an answer, as JSON or as text.
pub(crate) fn print(json: bool, value: &Value, text: impl FnOnce() -> String) {
    match json {
        true => println!("{value:#}"),
        false => print!("{}", text()),
    }
}
