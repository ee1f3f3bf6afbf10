//! Tests of the command line that need neither root, nor a core of their own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crosspoint_model::client::Client;
use crosspoint_model::request::Request;
use crosspoint_model::schema;
use crosspoint_model::topic::Topic;
use serde_json::Value;
use tempfile::TempDir;

fn crosspoint(words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_crosspoint"));
    command.args(words).env_remove("CROSSPOINT_SOCKET");
    command.output().expect("it starts")
}

fn printed(words: &[&str]) -> String {
    let output = crosspoint(words);
    assert!(output.status.success(), "{words:?}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

/// The shells whose completions are tried, each with the program that prints what it offers.
const SHELLS: [&str; 3] = ["bash", "zsh", "fish"];

/// What the shell offers in place of the last of `words`, sorted. `socket` is the running switch's.
fn completed(shell: &str, socket: &Path, words: &[&str]) -> Vec<String> {
    let dir = tempfile::tempdir().expect("a directory");
    // zsh wants the name with an underscore.
    let file = dir.path().join("_crosspoint");
    fs::write(&file, printed(&["completions", shell])).expect("written");
    let program = Path::new(env!("CARGO_BIN_EXE_crosspoint"));
    let bin = program.parent().expect("a folder").display();
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(shell);
    match shell {
        "bash" => command.args(["--norc", "-c", BASH, "bash"]),
        "zsh" => command.args(["-f", "-c", ZSH, "zsh"]),
        _ => command.args(["--no-config", "-c", FISH]),
    };
    command.arg(&file).args(words);
    command
        .env("PATH", format!("{bin}:{path}"))
        .env("CROSSPOINT_SOCKET", socket)
        .env("HOME", dir.path());
    let output = command
        .output()
        .unwrap_or_else(|why| panic!("{shell} does not start ({why}): apt install {shell}"));
    assert!(output.status.success(), "{shell}: {output:?}");
    let text = String::from_utf8(output.stdout).expect("text");
    let mut words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
    words.sort_unstable();
    words
}

const BASH: &str = r#"
set -eu
. "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_TYPE=9; COMPREPLY=()
name=$(complete -p crosspoint | sed -E 's/.*-F ([^ ]+).*/\1/')
"$name" crosspoint "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}" || true
printf '%s\n' "${COMPREPLY[@]}"
"#;

/// An interactive zsh on a pseudo-terminal, in which the key is pressed; `compadd` prints what is offered.
const ZSH: &str = r#"
zmodload zsh/zpty
folder=${1:h}; shift
zpty inner zsh -f -i
zpty -w inner "PROMPT=; fpath=($folder \$fpath); autoload -Uz compinit; compinit -u -D"
zpty -w inner "compadd() { [[ \" \$* \" = *' -'[OAD]' '* ]] && { builtin compadd \"\$@\"; return }; typeset -a hits; builtin compadd -A hits \"\$@\"; print -rl -- '<'\${^hits}'>'; builtin compadd \"\$@\" }"
zpty -w inner "complete-once() { zle complete-word; print; print -r -- DONE }; zle -N complete-once; bindkey '^I' complete-once"
zpty -w inner "print -r -- RE''ADY"
while zpty -r inner line && [[ $line != READY* ]]; do :; done
zpty -w -n inner "${(j: :)@}"$'\t'
while zpty -r inner line; do
    [[ $line =~ '<([^<>]*)>' ]] && print -r -- $match[1]
    [[ $line = *DONE* ]] && break
done
zpty -d inner
"#;

const FISH: &str = r#"
source $argv[1]
complete --do-complete "$argv[2..]" | string replace --regex '\t.*' ''; or true
"#;

#[test]
fn bash_zsh_and_fish_complete_commands_topics_and_options() {
    let nowhere = Path::new("/nowhere/control.sock");
    for shell in SHELLS {
        let complete = |words: &[&str]| completed(shell, nowhere, words);
        assert_eq!(complete(&["crosspoint", "sh"]), ["show"], "{shell}");
        assert_eq!(
            complete(&["crosspoint", "show", "po"]),
            ["port", "ports"],
            "{shell}"
        );
        assert_eq!(
            complete(&["crosspoint", "show", "--wa"]),
            ["--watch"],
            "{shell}"
        );
        assert_eq!(
            complete(&["crosspoint", "completions", "z"]),
            ["zsh"],
            "{shell}"
        );
    }
}

/// A running switch with three ports; it ends with the value.
struct Daemon {
    process: Child,
    socket: PathBuf,
    _dir: TempDir,
}

impl Daemon {
    fn start() -> Daemon {
        let dir = tempfile::tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name);
        let port = |name: &str| {
            format!(
                "[[port]]\nname = {name:?}\ntype = \"vhost\"\nsocket = {:?}\n",
                path(name)
            )
        };
        let ports = ["web-1", "web-2", "db-1"].map(port).concat();
        let socket = path("control.sock");
        let text = format!(
            "version = 1\n[metrics]\nlisten = \"off\"\n[control]\nsocket = {socket:?}\n{ports}"
        );
        let file = path("switch.toml");
        fs::write(&file, text).expect("written");
        let mut command = Command::new(env!("CARGO_BIN_EXE_crosspoint"));
        let command = command.args(["run", "--config"]).arg(&file);
        let process = command.stderr(Stdio::null()).spawn().expect("it starts");
        let daemon = Daemon {
            process,
            socket,
            _dir: dir,
        };
        let start = Instant::now();
        while daemon.ports() != 3 {
            assert!(
                start.elapsed() < Duration::from_secs(60),
                "it does not answer"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        daemon
    }

    /// The number of ports that it shows.
    fn ports(&self) -> usize {
        let answer = Client::new(&self.socket).request(&Request::Show(Topic::Ports));
        answer.map_or(0, |ports: Vec<Value>| ports.len())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn bash_zsh_and_fish_complete_names_of_ports_where_a_port_is_named() {
    let daemon = Daemon::start();
    let socket = daemon.socket.to_str().expect("a plain path");
    // Bash takes --port=web apart.
    let apart = ["crosspoint", "show", "fdb", "--port", "=", "web"];
    assert_eq!(
        completed("bash", &daemon.socket, &apart),
        ["web-1", "web-2"]
    );
    for shell in SHELLS {
        let complete = |words: &[&str]| completed(shell, &daemon.socket, words);
        for before in [
            &["port", "disable"][..],
            &["port", "set"],
            &["port", "remove"],
            &["show", "port"],
            &["show", "ports"],
            &["show", "fdb", "--port"],
            &["fdb", "flush", "--port"],
            &["fdb", "add", "52:54:00:00:00:01", "--port"],
            &["capture"],
            &["trace"],
            &["trace", "--count", "3"],
            &["port", "disable", "--keep"],
            &["show", "port", "--json"],
            &["show", "--json", "ports"],
            &["port", "set", "--socket", socket],
            &["move"],
        ] {
            let words = [&["crosspoint"], before, &["web"]].concat();
            assert_eq!(complete(&words), ["web-1", "web-2"], "{shell}: {words:?}");
        }
        let nothing: [&str; 0] = [];
        assert_eq!(complete(&["crosspoint", "show", "web"]), nothing, "{shell}");
        assert_eq!(
            complete(&["crosspoint", "show", "fdb", "web"]),
            nothing,
            "{shell}"
        );
        let option = complete(&["crosspoint", "port", "disable", "--ke"]);
        assert_eq!(option, ["--keep"], "{shell}");
    }
}

#[test]
fn every_shell_has_completions() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = printed(&["completions", shell]);
        assert!(script.contains("CROSSPOINT_COMPLETE"), "{shell}: {script}");
    }
}

#[test]
fn every_command_has_a_manual_page_with_examples_and_exit_statuses_that_groff_takes() {
    let dir = tempfile::tempdir().expect("a directory");
    let pages = dir.path().join("man1");
    printed(&["man", "--dir", pages.to_str().expect("a plain path")]);
    let top = fs::read_to_string(pages.join("crosspoint.1")).expect("it is written");
    assert_eq!(printed(&["man"]), top);
    let names = fs::read_dir(&pages).expect("a directory");
    let names: Vec<_> = names.map(|entry| entry.expect("an entry").path()).collect();
    for command in [
        "run",
        "check",
        "doctor",
        "move",
        "show",
        "top",
        "completions",
        "man",
    ] {
        let page = pages.join(format!("crosspoint-{command}.1"));
        let text = fs::read_to_string(&page).expect("every command has a page");
        assert!(
            text.contains(".SH EXAMPLES") && text.contains(".SH \"EXIT STATUS\""),
            "{text}"
        );
    }
    for page in names {
        let mut groff = Command::new("groff");
        let groff = groff.args(["-man", "-ww", "-z", "-Tutf8"]).arg(&page);
        let output = groff
            .output()
            .expect("groff starts: apt install groff-base");
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && complaints.is_empty(),
            "{page:?}: {complaints}"
        );
    }
}

#[test]
fn top_without_a_terminal_names_what_needs_none() {
    let output = crosspoint(&["top"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("--batch") && text.contains("--watch"),
        "{text}"
    );
}

#[test]
fn a_batch_and_a_watch_without_a_daemon_fail_and_name_the_socket() {
    for words in [&["top", "--batch"][..], &["show", "ports", "--watch"]] {
        let words = [words, &["--socket", "/nowhere/control.sock"]].concat();
        let output = crosspoint(&words);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(
            text.contains("/nowhere/control.sock") && text.contains("help:"),
            "{text}"
        );
    }
}

#[test]
fn a_topic_that_there_is_not_is_told_with_those_that_there_are() {
    let output = crosspoint(&["show", "prots"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("ports") && text.contains("latency"), "{text}");
}

/// OPERATING.md has the table of exit statuses.
#[test]
fn a_wrong_command_line_ends_with_status_2_before_a_daemon_is_asked() {
    let help = printed(&["--help"]);
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let commands = commands.take_while(|line| !line.is_empty());
    let commands = commands.filter_map(|line| line.split_whitespace().next());
    let mut lines: Vec<Vec<&str>> = commands
        .filter(|command| *command != "help")
        .map(|command| vec![command, "--nonsense"])
        .collect();
    assert!(lines.len() > 15, "{lines:?}");
    lines.extend(
        [
            "",
            "nonsense",
            "capture a --count 0",
            "capture a --filter fish",
            "check",
            "completions fish-and-chips",
            "fdb add",
            "fdb flush --vlan 5000",
            "move a b c",
            "plan --config",
            "port add",
            "port add a nonsense",
            "port set a",
            "port set a a.b.c.d=1",
            "show config x",
            "show fdb zz!",
            "show port",
            "show ports --moves",
            "show ports --watch 0",
            "show queues --sort rx",
            "show workers 1",
            "top --batch --sort nonsense",
            "trace a --frame zz",
            "trace a --frame 00 --vlan 5000",
        ]
        .map(|line| line.split_whitespace().collect()),
    );
    for words in lines {
        let output = crosspoint(&words);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{words:?}: {text}");
        let is_told = text.contains("error: ") || words.is_empty();
        assert!(is_told && output.stdout.is_empty(), "{words:?}: {text}");
    }
}

/// A closed session or a lost connection must not leave a program behind that loops without end.
#[test]
fn top_ends_with_its_terminal() {
    const CLOSE: &str = "
import os, pty, sys, time
pid, terminal = pty.fork()
if pid == 0:
    os.execv(sys.argv[1], [sys.argv[1], 'top', '--socket', '/nonexistent'])
time.sleep(1)
os.read(terminal, 1)
os.close(terminal)
for _ in range(100):
    if os.waitpid(pid, os.WNOHANG)[0]:
        sys.exit(0)
    time.sleep(0.1)
os.kill(pid, 9)
sys.exit('it goes on without a terminal')
";
    let ended = Command::new("python3")
        .args(["-c", CLOSE, env!("CARGO_BIN_EXE_crosspoint")])
        .output()
        .expect("python3 runs");
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{said}");
}

#[test]
fn check_says_what_it_did_not_look_at_and_with_host_looks_at_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("switch.toml");
    let config = "version = 1\n[[port]]\nname = \"lo\"\ntype = \"xdp\"\ninterface = \"lo\"\n\
        [[port]]\nname = \"web-1\"\ntype = \"vhost\"\nsocket = \"/nowhere/at/all/web-1.sock\"\n";
    fs::write(&file, config).expect("it is ours");
    let file = file.to_str().expect("a plain path");
    let text = printed(&["check", "--config", file]);
    assert!(text.contains("fine, 2 port(s)\n"), "{text}");
    assert!(
        text.contains("not looked at: this host's cores, groups, interfaces"),
        "{text}"
    );
    let output = crosspoint(&["check", "--host", "--config", file]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for expected in [
        "lo: it is the host's loopback interface",
        "/nowhere/at/all: it does not exist",
    ] {
        assert!(text.contains(expected), "{text}");
    }
    assert!(!text.contains("not looked at"), "{text}");
}

/// Reading a FIFO without a writer would block without end.
#[test]
fn a_fifo_is_refused_with_what_to_do_and_standard_input_is_read() {
    let dir = tempfile::tempdir().expect("a directory");
    let fifo = dir.path().join("switch.toml");
    let made = Command::new("mkfifo").arg(&fifo).status();
    assert!(made.expect("mkfifo runs").success());
    let fifo = fifo.to_str().expect("a plain path");
    for words in [
        &["check", "--config", fifo][..],
        &["doctor", "--config", fifo],
        &["run", "--config", fifo],
        &[
            "port",
            "add",
            "--file",
            fifo,
            "--socket",
            "/nowhere/control.sock",
        ],
    ] {
        let output = crosspoint(words);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{words:?}");
        assert!(text.contains("it is a FIFO, not a regular file"), "{text}");
        assert!(text.contains(fifo) && text.contains("help: "), "{text}");
    }
    for (text, succeeds) in [("version = 1\n", true), ("version = 2\n", false)] {
        let file = dir.path().join("stdin.toml");
        fs::write(&file, text).expect("it is ours");
        let mut command = Command::new("sh");
        command.args(["-c", "cat \"$1\" | \"$0\" check --config -"]);
        command.arg(env!("CARGO_BIN_EXE_crosspoint")).arg(&file);
        let output = command.output().expect("sh runs");
        assert_eq!(output.status.success(), succeeds, "{output:?}");
    }
}

#[test]
fn the_schema_in_the_documentation_is_of_these_types_and_has_every_topic() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/show-schema.json");
    let generated = serde_json::to_value(schema::of_show()).expect("JSON");
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        let text = format!("{generated:#}\n");
        std::fs::write(&path, text).expect("deploy/ can be written");
    }
    let written = std::fs::read_to_string(&path).expect("a file of this repository");
    let written: Value = serde_json::from_str(&written).expect("JSON");
    assert!(
        written == generated,
        "deploy/show-schema.json is stale: write it with UPDATE_SCHEMA=1, and raise SCHEMA_VERSION"
    );
    for topic in Topic::ALL {
        assert!(!generated["properties"][topic.name()].is_null(), "{topic}");
    }
}
