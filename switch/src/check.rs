//! `crosspoint check`.

use std::path::Path;
use std::process::ExitCode;

use crosspoint_config::Config;
use crosspoint_daemon::metrics::Access;
use miette::Diagnostic as _;

use crate::doctor::{self, Finding, Report, Severity};
use crate::run;

/// Validates a configuration without starting anything; with `host`, also whether it fits this host.
pub(crate) fn check(path: &Path, host: bool) -> ExitCode {
    let config = match run::load(path) {
        Ok(config) => config,
        Err(code) => return code,
    };
    let access = match Access::read(&config.metrics) {
        Ok(access) => access,
        Err(why) => {
            let help = why.help().map_or(String::new(), |help| help.to_string());
            eprintln!("error: {why}\nhelp: {help}");
            return ExitCode::FAILURE;
        }
    };
    println!("{}: fine, {} port(s)", path.display(), config.ports.len());
    for entry in config.waiting_statics() {
        let (name, port) = (entry.name(), &entry.port);
        println!("note: [[fdb]] {name} waits for port {port:?}, which is in no file");
    }
    for line in config.waiting_mirrors() {
        println!("note: {line}");
    }
    for line in config.bridge_warnings() {
        println!("note: {line}");
    }
    for line in config.group_warnings().iter().chain(access.warnings()) {
        println!("warning: {line}");
    }
    match host {
        true => check_host(&config),
        false => {
            println!(
                "not looked at: this host's cores, groups, interfaces and socket folders (add --host)"
            );
            ExitCode::SUCCESS
        }
    }
}

/// Prints the errors and warnings of this host for `config`. A warning is no failure: an interface may come later.
fn check_host(config: &Config) -> ExitCode {
    let report = match doctor::here(config) {
        Ok(report) => report,
        Err(why) => {
            eprintln!("error: {why}\nhelp: without --host no interface is looked at");
            return ExitCode::FAILURE;
        }
    };
    let is_concerned = |finding: &Finding| {
        finding.severity >= Severity::Warning && doctor::OF_CONFIGURATION.contains(&finding.id)
    };
    let findings = report.findings.into_iter().filter(is_concerned).collect();
    let wrong = Report { findings };
    if wrong.findings.is_empty() {
        println!(
            "this host: nothing is wrong with its cores, groups, interfaces and socket folders"
        );
        return ExitCode::SUCCESS;
    }
    println!("\nthis host:\n\n{}", wrong.text(false).trim_end());
    match wrong.worst() {
        Severity::Error => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    }
}
