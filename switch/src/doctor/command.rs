//! `crosspoint doctor`: wiring; the checks are in `crate::doctor`.

use std::io::{IsTerminal, Write, stdout};
use std::path::Path;
use std::process::ExitCode;

use crosspoint_config::{Config, PortKind};
use crosspoint_netdev::LinkError;

use crate::doctor::{Host, Report, examine};
use crate::run;

/// Checks the host, prints the findings, and exits with the status of the worst one.
pub(crate) fn doctor(config: Option<&Path>, all: bool, json: bool) -> ExitCode {
    let config = match config.map(run::load).transpose() {
        Ok(config) => config,
        Err(code) => return code,
    };
    let names = interfaces(config.as_ref(), all);
    let host = match Host::here(&run::affinity(), &names) {
        Ok(host) => host,
        Err(why) => {
            eprintln!("error: {why}\nhelp: without --config or --all no interface is checked");
            return ExitCode::FAILURE;
        }
    };
    let report = examine(&host, config.as_ref());
    let text = match json {
        true => format!("{:#}\n", report.json()),
        false => {
            let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            report.text(stdout().is_terminal() && !plain)
        }
    };
    // The reader has closed the pipe.
    let _ = stdout().write_all(text.as_bytes());
    ExitCode::from(report.worst().exit_status())
}

/// Examines this host for `config`, with its interfaces.
pub(crate) fn here(config: &Config) -> Result<Report, LinkError> {
    let host = Host::here(&run::affinity(), &interfaces(Some(config), false))?;
    Ok(examine(&host, Some(config)))
}

/// The interfaces that the configuration names, or all.
fn interfaces(config: Option<&Config>, all: bool) -> Vec<String> {
    let ports = config.map_or(&[][..], |config| &config.ports);
    let configured = ports.iter().filter_map(|port| match &port.kind {
        PortKind::Xdp(uplink) => Some(uplink.interface.clone()),
        PortKind::Vhost(_) => None,
    });
    let mut names: Vec<String> = configured.collect();
    if all {
        let others = Host::interfaces().into_iter();
        let others = others.filter(|name| !names.contains(name));
        names.extend(others.collect::<Vec<_>>());
    }
    names
}
