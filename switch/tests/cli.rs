//! Tests of the command line that need neither a daemon, nor root, nor a core of their own.

use crosspoint_model::schema;
use crosspoint_model::topic::Topic;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

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

/// The completions that bash offers after the last of `words`.
fn completed(dir: &Path, words: &[&str]) -> String {
    let file = dir.join("crosspoint.bash");
    fs::write(&file, printed(&["completions", "bash"])).expect("written");
    let script = "set -eu; . \"$1\"; shift; COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); \
        name=$(complete -p crosspoint | sed -E 's/.*-F ([^ ]+).*/\\1/'); COMPREPLY=(); \
        \"$name\" crosspoint \"${COMP_WORDS[COMP_CWORD]}\" \"${COMP_WORDS[COMP_CWORD - 1]}\" || true; \
        echo \"${COMPREPLY[*]}\"";
    let path = std::env::var("PATH").unwrap_or_default();
    let path = format!("{}:{path}", dir.display());
    let mut bash = Command::new("bash");
    bash.env("PATH", path);
    bash.args(["--norc", "-c", script, "bash"])
        .arg(&file)
        .args(words);
    let output = bash.output().expect("bash starts");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout)
        .expect("text")
        .trim()
        .to_owned()
}

#[test]
fn bash_completes_commands_topics_and_options() {
    let dir = tempfile::tempdir().expect("a directory");
    let complete = |words: &[&str]| completed(dir.path(), words);
    assert_eq!(complete(&["crosspoint", "sh"]), "show");
    assert_eq!(complete(&["crosspoint", "show", "po"]), "ports port");
    assert_eq!(complete(&["crosspoint", "show", "--wa"]), "--watch");
    assert_eq!(complete(&["crosspoint", "completions", "z"]), "zsh");
}

/// The program is found on the path, and answers with two names.
#[test]
fn bash_completes_names_of_ports_where_a_port_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let program = dir.path().join("crosspoint");
    fs::write(
        &program,
        "#!/bin/sh\n[ \"$1\" = names ] && printf 'web-1\\nweb-2\\ndb-1\\n'\n",
    )
    .expect("written");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("it may be run");
    let complete = |words: &[&str]| completed(dir.path(), words);
    for before in [
        &["port", "disable"][..],
        &["port", "set"],
        &["show", "port"],
        &["show", "fdb", "--port"],
        &["fdb", "flush", "--port"],
        &["capture"],
        &["trace"],
        &["trace", "--count", "3"],
        &["trace", "--count", "=", "3"],
        &["show", "fdb", "--port", "="],
        &["port", "disable", "--keep"],
        &["show", "port", "--json"],
        &["show", "--json", "ports", "--watch"],
        &["port", "set", "--socket", "/run/other.sock"],
    ] {
        let words = [&["crosspoint"], before, &["web"]].concat();
        assert_eq!(complete(&words), "web-1 web-2", "{words:?}");
    }
    assert_eq!(complete(&["crosspoint", "show", "web"]), "");
    assert_eq!(
        complete(&["crosspoint", "port", "disable", "--ke"]),
        "--keep"
    );
}

#[test]
fn every_shell_has_completions() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        assert!(printed(&["completions", shell]).contains("show"), "{shell}");
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
