//! `COMMANDS.md`: the `--help` text of every command.

use std::fmt::Write as _;

use clap::{Arg, Command, CommandFactory};

use super::{cell, check_generated};
use crate::cli::Cli;

#[test]
fn every_command_is_documented() {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let mut text = String::new();
    describe(&command, &mut text);
    check_generated("COMMANDS.md", &text);
}

fn describe(command: &Command, text: &mut String) {
    let name = command.get_bin_name().unwrap_or(command.get_name());
    let about = command.get_long_about().or(command.get_about());
    let about = about.map(ToString::to_string).unwrap_or_default();
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage:").trim();
    let _ = write!(
        text,
        "\n## {name}\n\n{about}\n\n```text\n{usage}\n```\n\n| | |\n|---|---|\n"
    );
    let subcommands = || command.get_subcommands().filter(|one| !one.is_hide_set());
    for one in subcommands() {
        let about = one.get_about().map(ToString::to_string);
        let (own, about) = (one.get_name(), about.unwrap_or_default());
        let link = format!("{name}-{own}").replace(' ', "-");
        let _ = writeln!(text, "| [`{own}`](#{link}) | {} |", cell(&about));
    }
    let is_told = |arg: &&Arg| !arg.is_hide_set() && !matches!(arg.get_id().as_str(), "help");
    for arg in command.get_arguments().filter(is_told) {
        text.push_str(&argument(arg));
    }
    let after = command.get_after_long_help().map(ToString::to_string);
    for section in after.iter().flat_map(|text| text.split("\n\n")) {
        let (heading, lines) = section.split_once('\n').unwrap_or((section, ""));
        let language = match heading.starts_with("Example") {
            true => "sh",
            false => "text",
        };
        let lines: Vec<&str> = lines.lines().map(|l| l.trim_start_matches("  ")).collect();
        let _ = write!(
            text,
            "\n{heading}\n\n```{language}\n{}\n```\n",
            lines.join("\n")
        );
    }
    for one in subcommands() {
        describe(one, text);
    }
}

/// A row: the argument's form, and its meaning.
fn argument(arg: &Arg) -> String {
    let help = arg.get_long_help().or(arg.get_help());
    let mut help = help.map(ToString::to_string).unwrap_or_default();
    let values: Vec<String> = arg
        .get_possible_values()
        .iter()
        .filter(|value| !value.is_hide_set() && arg.get_action().takes_values())
        .map(|value| match value.get_help() {
            Some(help) => format!("`{}`: {help}", value.get_name()),
            None => format!("`{}`", value.get_name()),
        })
        .collect();
    if !values.is_empty() {
        let _ = write!(help, ". One of: {}", values.join("; "));
    }
    if arg.get_action().takes_values() {
        for default in arg
            .get_default_values()
            .iter()
            .filter(|one| !one.is_empty())
        {
            let _ = write!(help, ". Default: `{}`", default.display());
        }
    }
    if let Some(variable) = arg.get_env() {
        let _ = write!(help, ". Also by the environment: `{}`", variable.display());
    }
    let written = arg.to_string();
    let short = arg.get_short().filter(|_| arg.get_long().is_some());
    let short = short.map_or(String::new(), |c| format!("`-{c}`, "));
    format!("| {short}`{}` | {} |\n", cell(&written), cell(&help))
}
