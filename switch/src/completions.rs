//! `crosspoint completions`, and what the completions ask the running switch for.
//!
//! A shell's script calls this program with the words so far, and the environment variable [`VARIABLE`] set. So all shells
//! complete the same, and a script need not change when commands do.

use std::ffi::OsString;
use std::io::{Write, stdout};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Command};
use clap_complete::Shell;
use clap_complete::engine::{ArgValueCandidates, CompletionCandidate};
use clap_complete::env::{CompleteEnv, Shells};
use crosspoint_config::limits::CONTROL_SOCKET_DEFAULT;
use crosspoint_model::client;
use crosspoint_model::request::Request;
use crosspoint_model::topic::Topic;
use serde_json::Value;

use crate::help;

const PROGRAM: &str = "crosspoint";
/// The environment variable by which a script asks for completions; its value is the shell's name.
const VARIABLE: &str = "CROSSPOINT_COMPLETE";
/// zsh loads the script when a completion is wanted first, and only then: the script has to answer that one too.
const ZSH_FIRST: &str = "\nif [[ \"$funcstack[1]\" = _crosspoint ]]; then\n    _clap_dynamic_completer_crosspoint \"$@\"\nfi\n";

/// Bash takes `--port=web` apart into three words, which clap reads as an option whose value is `=`: without that word it
/// reads them as they are meant.
const BASH_WORDS: &str = r#"
_crosspoint() {
    local word words=() before=0
    for word in "${COMP_WORDS[@]}"; do
        if [[ "$word" = "=" && "$before" -lt "$COMP_CWORD" ]]; then
            COMP_CWORD=$((COMP_CWORD - 1))
        else
            words+=("$word")
            before=$((before + 1))
        fi
    done
    COMP_WORDS=("${words[@]}")
    _clap_complete_crosspoint "$@"
}
complete -o nospace -o bashdefault -F _crosspoint crosspoint
"#;

/// Print a shell's completions of this command line
#[derive(Args)]
#[command(after_long_help = help::COMPLETIONS)]
pub(crate) struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub(crate) fn run(self) -> ExitCode {
        let mut text = Vec::new();
        let shells = Shells::builtins();
        // Each shell that can be named is among them, and writing to memory does not fail.
        if let Some(shell) = shells.completer(&self.shell.to_string()) {
            let _ = shell.write_registration(VARIABLE, PROGRAM, PROGRAM, PROGRAM, &mut text);
        }
        text.extend_from_slice(match self.shell {
            Shell::Bash => BASH_WORDS.as_bytes(),
            Shell::Zsh => ZSH_FIRST.as_bytes(),
            _ => b"",
        });
        // The reader may have closed the pipe.
        let _ = stdout().write_all(&text);
        ExitCode::SUCCESS
    }
}

/// Answers a shell's script, if one asks; then the process ends.
pub(crate) fn answer(command: fn() -> Command) {
    CompleteEnv::with_factory(command).var(VARIABLE).complete();
}

/// Completes the name of a port of the running switch. Nothing if there is no switch.
pub(crate) fn ports() -> ArgValueCandidates {
    ArgValueCandidates::new(|| candidates_of(Topic::Ports, &words()))
}

/// Completes the name of a bridge of the running switch.
pub(crate) fn bridges() -> ArgValueCandidates {
    ArgValueCandidates::new(|| candidates_of(Topic::Bridges, &words()))
}

/// Completes the name of a set of addresses of the running switch.
pub(crate) fn sets() -> ArgValueCandidates {
    ArgValueCandidates::new(|| candidates_of(Topic::Sets, &words()))
}

/// Completes the second value of `show`: the name of a port, a bridge, a group or a set, as the first one asks for it.
pub(crate) fn names_to_show() -> ArgValueCandidates {
    const TOPICS: [(&str, Topic); 5] = [
        ("bridges", Topic::Bridges),
        ("port", Topic::Ports),
        ("ports", Topic::Ports),
        ("rules", Topic::Groups),
        ("sets", Topic::Sets),
    ];
    ArgValueCandidates::new(|| {
        let words = words();
        let asks = |(name, _): &&(&str, Topic)| words.iter().any(|word| word == name);
        let topic = TOPICS.iter().find(asks);
        topic.map_or(Vec::new(), |(_, topic)| candidates_of(*topic, &words))
    })
}

/// The command line to complete, after this program's own arguments.
fn words() -> Vec<OsString> {
    std::env::args_os()
        .skip_while(|word| word != "--")
        .collect()
}

/// The names of the rows of a topic.
fn candidates_of(topic: Topic, words: &[OsString]) -> Vec<CompletionCandidate> {
    let answer = client::request(&socket(words), &Request::Show(topic));
    let rows = answer.ok().and_then(|answer| answer.as_array().cloned());
    let name = |row: &Value| row.get("name")?.as_str().map(CompletionCandidate::new);
    rows.unwrap_or_default().iter().filter_map(name).collect()
}

/// The control socket that the command line names, or else the environment's or the usual one.
fn socket(words: &[OsString]) -> PathBuf {
    let mut after = words.iter().skip_while(|word| *word != "--socket").skip(1);
    let named = after.next().filter(|word| !word.is_empty()).cloned();
    let named = named.or_else(|| std::env::var_os("CROSSPOINT_SOCKET"));
    named.map_or(PathBuf::from(CONTROL_SOCKET_DEFAULT), PathBuf::from)
}
