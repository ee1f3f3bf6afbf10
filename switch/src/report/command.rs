//! `crosspoint report`: wiring; the archive is made in `crate::report`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::report::{Archive, Wanted};
use crate::{report as bundle, run};

/// Arguments of `report`.
#[derive(clap::Args)]
pub(crate) struct Report {
    /// The archive to write; it must not exist. Default: crosspoint-report-SECONDS.tar.gz, in the current directory
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// The configuration (TOML); default: the running switch's, or else /etc/crosspoint/crosspoint.toml
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The running switch's control socket; default: the one in the configuration, or else /run/crosspoint/control.sock
    #[arg(long, value_name = "PATH", env = "CROSSPOINT_SOCKET")]
    socket: Option<PathBuf>,
    /// The service's name in systemd, for its log
    #[arg(long, value_name = "UNIT", default_value = "crosspoint.service")]
    unit: String,
}

impl Report {
    /// Gathers and writes the archive, and lists its contents.
    pub(crate) fn run(self) -> ExitCode {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let folder = format!("crosspoint-report-{}", now.unwrap_or_default().as_secs());
        let path = self
            .out
            .unwrap_or_else(|| PathBuf::from(format!("{folder}.tar.gz")));
        let archive = bundle::gather(&Wanted {
            config: self.config,
            socket: self.socket,
            unit: self.unit,
            affinity: run::affinity(),
        });
        if let Err(why) = archive.write(&path, &folder) {
            eprintln!(
                "error: cannot write {}: {why}\nhelp: name another file with --out",
                path.display()
            );
            return ExitCode::FAILURE;
        }
        print!("{}", contents(&archive));
        println!("\nwritten to {}, which only you can read", path.display());
        println!(
            "It has names and addresses (ports, sockets, interfaces, MAC addresses), no frames and no guest's memory."
        );
        ExitCode::SUCCESS
    }
}

fn contents(archive: &Archive) -> String {
    let mut text = String::from("in it:\n");
    for file in archive.files() {
        let cut = if file.cut { ", its end" } else { "" };
        text.push_str(&format!(
            "  {} ({} bytes{cut}, from {})\n",
            file.path, file.bytes, file.from
        ));
    }
    if !archive.missing().is_empty() {
        text.push_str("not in it:\n");
    }
    for missing in archive.missing() {
        text.push_str(&format!("  {}: {}\n", missing.path, missing.why));
    }
    text
}
