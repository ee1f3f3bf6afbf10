//! `crosspoint completions`, and the names of ports that the completions ask for.

use std::io::{Write, stdout};
use std::path::Path;
use std::process::ExitCode;

use clap::{Args, Command};
use clap_complete::Shell;
use crosspoint_model::client;
use crosspoint_model::request::Request;
use crosspoint_model::topic::Topic;
use serde_json::Value;

use crate::control::Socket;
use crate::help;

/// Print a shell's completions of this command line
#[derive(Args)]
#[command(after_long_help = help::COMPLETIONS)]
pub(crate) struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    /// Prints the completions of `command`.
    pub(crate) fn run(self, mut command: Command) -> ExitCode {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut command, "crosspoint", &mut text);
        let valued = options_with_values(&command);
        let script = String::from_utf8_lossy(&text).into_owned();
        let text = with_ports(self.shell, script, &valued);
        // The reader has closed the pipe.
        let _ = stdout().write_all(text.as_bytes());
        ExitCode::SUCCESS
    }
}

/// Print the names of the running switch's ports, for completions: nothing if there is no switch
#[derive(Args)]
pub(crate) struct Names {
    #[command(flatten)]
    socket: Socket,
}

impl Names {
    pub(crate) fn run(self) -> ExitCode {
        let names = names(&self.socket.socket).join("\n");
        let _ = writeln!(stdout(), "{names}");
        ExitCode::SUCCESS
    }
}

fn names(socket: &Path) -> Vec<String> {
    let answer = client::request(socket, &Request::Show(Topic::Ports));
    let ports = answer.ok().and_then(|answer| answer.as_array().cloned());
    let name = |port: &Value| port.get("name")?.as_str().map(str::to_owned);
    ports.unwrap_or_default().iter().filter_map(name).collect()
}

/// Commands that name a port as their first value, with the words before it.
const PORT_AFTER: &[&str] = &[
    "port set",
    "port remove",
    "port disable",
    "port enable",
    "show port",
    "show ports",
    "capture",
    "move",
    "trace",
];

/// A script that completes names of ports, too. Other shells complete commands and options only.
fn with_ports(shell: Shell, script: String, valued: &[String]) -> String {
    match shell {
        Shell::Bash => script + &bash(valued),
        Shell::Zsh => zsh(&script),
        Shell::Fish => script + &fish(),
        _ => script,
    }
}

/// The options that always have a value in the next word, of all commands, each once.
fn options_with_values(command: &Command) -> Vec<String> {
    let mut all: Vec<String> = command
        .get_subcommands()
        .flat_map(options_with_values)
        .collect();
    for option in command.get_opts() {
        let words = option.get_num_args();
        if option.get_action().takes_values() && words.is_none_or(|words| words.min_values() > 0) {
            all.extend(option.get_long().map(|name| format!("--{name}")));
            all.extend(option.get_short().map(|name| format!("-{name}")));
        }
    }
    all.sort();
    all.dedup();
    all
}

fn bash(valued: &[String]) -> String {
    let places: Vec<String> = PORT_AFTER
        .iter()
        .map(|words| format!("\":{words}\""))
        .collect();
    let places = places.join("|");
    let valued = valued.join("|");
    format!(
        r#"
# Names of ports, from the running switch.
_crosspoint_with_ports() {{
    _crosspoint "$@"
    local word words="" option=""
    # The words before, without options and their values.
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case "$option$word" in
            {valued}) option="$word " ;;
            # Bash takes --port=web apart.
            *=) option="${{option:-= }}" ;;
            -*|=*) option="" ;;
            *) words+="${{words:+ }}$word" ;;
        esac
    done
    case "$option:$words" in
        "--port :"*|{places})
            if [[ "$2" != -* ]]; then
                COMPREPLY=( $(compgen -W "$(crosspoint names 2>/dev/null)" -- "$2") )
            fi
            ;;
    esac
}}
complete -F _crosspoint_with_ports -o bashdefault -o default crosspoint
"#
    )
}

fn zsh(script: &str) -> String {
    let names = r#"
# Names of ports, from the running switch.
_crosspoint_ports() {
    compadd -- ${(f)"$(crosspoint names 2>/dev/null)"}
}
"#;
    let is_port = |line: &str| {
        let line = line.trim_start();
        let is_value = line.starts_with("':name --")
            || line.starts_with("'::name --")
            || line.starts_with("':port --");
        is_value || line.starts_with("'--port=[")
    };
    let mut text = String::new();
    for line in script.lines() {
        let line = match is_port(line) {
            true => line.replace(":_default", ":_crosspoint_ports"),
            false => line.to_owned(),
        };
        text.push_str(&line);
        text.push('\n');
        // The first line makes it a completion of this command.
        if line.starts_with("#compdef") {
            text.push_str(names);
        }
    }
    text
}

fn fish() -> String {
    let mut text = String::from("\n# Names of ports, from the running switch.\n");
    let mut add = |condition: &str, option: &str| {
        text.push_str(&format!(
            "complete -c crosspoint -n \"{condition}\" {option}-f -a \"(crosspoint names 2>/dev/null)\"\n"
        ));
    };
    for words in PORT_AFTER {
        let seen = words
            .split(' ')
            .map(|word| format!("__fish_seen_subcommand_from {word}"));
        add(&seen.collect::<Vec<_>>().join("; and "), "");
    }
    add("__fish_seen_subcommand_from show fdb", "-l port -r ");
    text
}
