//! DPDK's testpmd with virtio-user ports: a guest's poll-mode driver without the guest.

use std::process::Command;
use std::time::Duration;

use super::{Lab, Process, s, wait_until};

/// One port of a testpmd: a DPDK virtual device, as in `--vdev`.
pub struct TestpmdPort(pub String);

impl TestpmdPort {
    /// A virtio-user port on the socket of guest port `name`.
    pub fn virtio(lab: &Lab, index: usize, name: &str, options: &str) -> Self {
        Self(format!(
            "net_virtio_user{index},path={},{options}",
            lab.socket(name).display()
        ))
    }
}

/// A testpmd that waits for commands.
pub struct Testpmd {
    process: Process,
}

impl Testpmd {
    /// Starts it on core 0 with `ports`; `options` are testpmd's own. It works without huge pages.
    pub fn start(lab: &Lab, name: &str, ports: &[TestpmdPort], options: &str) -> Self {
        let mut command = Command::new("dpdk-testpmd");
        let eal = "--lcores 0@0,1@0 --no-pci --no-huge --no-shconf -m 512 --single-file-segments";
        command.args(eal.split(' '));
        for port in ports {
            command.arg("--vdev").arg(&port.0);
        }
        command
            .args(["--", "-i", "--no-flush-rx", "--no-lsc-interrupt"])
            .args(options.split_whitespace());
        Self {
            process: Process::start(lab.dir(), name, &command),
        }
    }

    /// Waits until its ports have started.
    pub fn wait_ready(&mut self) {
        self.process.wait_for("Checking link statuses", s(20));
        self.process.wait_for("testpmd>", s(20));
    }

    /// Types a command.
    pub fn command(&mut self, line: &str) {
        self.process.type_line(line);
    }

    /// Waits until port `port` has transmitted `count` frames.
    pub fn wait_transmitted(&mut self, port: usize, count: u64) {
        wait_until(
            &format!("{count} frames out of testpmd's port {port}"),
            s(30),
            || {
                self.command(&format!("show port stats {port}"));
                std::thread::sleep(Duration::from_millis(50));
                (self.transmitted(port)? >= count).then_some(())
            },
        );
    }

    fn transmitted(&self, port: usize) -> Option<u64> {
        let log = self.process.log();
        let (_, last) = log.rsplit_once(&format!("NIC statistics for port {port} "))?;
        let (_, number) = last.split_once("TX-packets: ")?;
        number.split_whitespace().next()?.parse().ok()
    }

    /// Stops forwarding and ends, so that its pcap files are complete.
    pub fn quit(&mut self) {
        self.command("stop");
        self.command("quit");
        assert!(
            self.process.wait(s(10)).is_some(),
            "testpmd does not quit\n{}",
            self.process.log()
        );
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill();
    }
}
