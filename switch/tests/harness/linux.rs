//! Real Linux guests, by the scripts of deploy/guest, and the same jobs on a host.

use std::path::PathBuf;
use std::process::Command;

use super::{Host, Lab, Process, s};

/// A guest (or a host's job), by its console.
pub struct LinuxGuest {
    console: Process,
}

fn script(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/guest")).join(name)
}

impl LinuxGuest {
    /// A User-Mode Linux guest on the socket of guest port `port`.
    pub fn uml(lab: &Lab, port: &str, options: &str) -> Self {
        Self::boot(lab, "uml.sh", port, options)
    }

    /// A QEMU guest on the socket of guest port `port`.
    pub fn qemu(lab: &Lab, port: &str, options: &str) -> Self {
        Self::boot(lab, "qemu.sh", port, options)
    }

    fn boot(lab: &Lab, name: &str, port: &str, options: &str) -> Self {
        let mut command = Command::new(script(name));
        command
            .arg("--socket")
            .arg(lab.socket(port))
            .args(options.split_whitespace());
        Self {
            console: Process::start(lab.dir(), &format!("console-{port}"), &command),
        }
    }

    /// The server of ping, iperf3 and the checksum service, on a host.
    pub fn service(lab: &Lab, host: &Host<'_>) -> Self {
        let command = host.command(&format!("{} server", script("peer-service.sh").display()));
        let mut service = Self {
            console: Process::start(lab.dir(), &format!("service-{}", host.interface), &command),
        };
        service.wait_ready();
        service
    }

    /// Waits until a server can be used.
    pub fn wait_ready(&mut self) {
        self.console.wait_for("GUEST-READY", s(60));
    }

    /// Waits for what the console shows.
    pub fn wait_for(&mut self, text: &str) {
        self.console.wait_for(text, s(60));
    }

    /// What the console showed.
    pub fn log(&self) -> String {
        self.console.log()
    }

    /// Waits for a client's end: ping, TCP both ways and every byte of a file must have got across.
    pub fn must_succeed(&mut self) {
        self.console.wait_for("CLIENT-DONE", s(90));
        let log = self.console.log();
        let results = || log.lines().filter_map(|line| line.strip_prefix("RESULT "));
        for good in ["ping=ok", "sha=ok", "iperf3_mbps=", "iperf3_reverse_mbps="] {
            assert!(
                results().any(|result| result.starts_with(good)),
                "no {good}:\n{log}"
            );
        }
        let bad = |result: &str| result.ends_with("=fail") || result.ends_with("=bad");
        assert!(!results().any(bad), "{log}");
        results().for_each(|result| eprintln!("{result}"));
    }

    /// SIGKILL: the guest ends with all its processes.
    pub fn kill(&mut self) {
        self.console.kill();
    }
}
