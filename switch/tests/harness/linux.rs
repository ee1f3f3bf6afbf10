//! Real Linux guests, booted by the scripts of deploy/guest, and the same jobs on a host.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::{Host, Lab, Process, s, wait_until};

/// A guest (or a host's job), controlled by its console.
pub struct LinuxGuest {
    console: Process,
    /// Number of typed lines.
    orders: u32,
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
            orders: 0,
        }
    }

    /// The server for ping, iperf3 and the checksum service, on a host.
    pub fn service(lab: &Lab, host: &Host<'_>) -> Self {
        let command = host.command(&format!("{} server", script("peer-service.sh").display()));
        let mut service = Self {
            console: Process::start(lab.dir(), &format!("service-{}", host.interface), &command),
            orders: 0,
        };
        service.wait_ready();
        service
    }

    /// A client on a host: `job` of deploy/guest/net-job.sh with these peers, which transfers `blob_mib` in each direction.
    pub fn client(lab: &Lab, host: &Host<'_>, job: &str, peers: &str, blob_mib: u32) -> Self {
        let script = script("peer-service.sh");
        let mut command = host.command(&format!("{} {job} {peers}", script.display()));
        command.env("BLOB_MIB", blob_mib.to_string());
        let name = format!("client-{job}-{}-{peers}", host.interface);
        Self {
            console: Process::start(lab.dir(), &name, &command),
            orders: 0,
        }
    }

    /// Waits until a server is ready.
    pub fn wait_ready(&mut self) {
        self.console.wait_for("GUEST-READY", s(60));
    }

    /// Runs a shell command in a guest with `--job orders`. Returns its output.
    pub fn run(&mut self, line: &str) -> String {
        self.orders += 1;
        let (begin, end) = (
            format!("ORDER-{}\n", self.orders),
            format!("END-OF-ORDER-{}", self.orders),
        );
        let number = self.orders;
        self.console.type_line(&format!(
            "echo ORDER-{number}; {{ {line}; }} 2>&1; echo END-OF-ORDER-{number}"
        ));
        self.console.wait_for(&end, s(60));
        let log = self.console.log();
        let answer = log.split_once(&begin).expect("it began").1;
        answer.split_once(&end).expect("it ended").0.to_owned()
    }

    /// Waits until the console has shown `text` this many times.
    pub fn wait_for_times(&mut self, text: &str, times: usize, limit: Duration) {
        let shown = || self.console.log().matches(text).count() >= times;
        let what = format!("{times} times {text:?} on the console");
        wait_until(&what, limit, || shown().then_some(()));
    }

    /// Waits until the console has shown `text`.
    pub fn wait_for(&mut self, text: &str) {
        self.console.wait_for(text, s(60));
    }

    /// The console's output.
    pub fn log(&self) -> String {
        self.console.log()
    }

    /// Waits for a client's end: ping, TCP in both directions and every byte of a file in both directions must have got
    /// across, to each of its peers.
    pub fn must_succeed(&mut self) {
        let goods = [
            "ping=ok",
            "sha=ok",
            "fetch=ok",
            "iperf3_mbps=",
            "iperf3_reverse_mbps=",
        ];
        self.must_have(&goods);
    }

    /// Like [`LinuxGuest::must_succeed`], for a client whose job is ping and the file.
    pub fn must_transfer_both_ways(&mut self) {
        self.must_have(&["ping=ok", "sha=ok", "fetch=ok"]);
    }

    /// Like [`LinuxGuest::must_succeed`], for a client whose job is only the file, in one direction or the other.
    pub fn must_transfer(&mut self) {
        self.must_have(&[]);
        let log = self.console.log();
        let good = log.contains("RESULT sha=ok") || log.contains("RESULT fetch=ok");
        assert!(good, "{log}");
    }

    fn must_have(&mut self, goods: &[&str]) {
        self.console.wait_for("CLIENT-DONE", s(150));
        let log = self.console.log();
        let results = |part: &str| {
            let of_line = |line: &str| line.strip_prefix("RESULT ").map(str::to_owned);
            part.lines().filter_map(of_line).collect::<Vec<_>>()
        };
        // If there are lines of peers, nothing was tested before the first of them.
        let parts = log.split("PEER ").collect::<Vec<_>>();
        for part in &parts[usize::from(parts.len() > 1)..] {
            for good in goods {
                let is = |result: &String| result.starts_with(good);
                assert!(results(part).iter().any(is), "no {good}:\n{part}\n{log}");
            }
        }
        let bad = |result: &String| result.ends_with("=fail") || result.ends_with("=bad");
        assert!(!results(&log).iter().any(bad), "{log}");
        results(&log)
            .iter()
            .for_each(|result| eprintln!("{result}"));
    }

    /// SIGKILL: the guest ends with all its processes.
    pub fn kill(&mut self) {
        self.console.kill();
    }
}
