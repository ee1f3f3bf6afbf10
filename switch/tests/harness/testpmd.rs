//! DPDK's testpmd with virtio-user ports: a guest's poll-mode driver without a guest.

use std::process::Command;

use super::{Lab, Process, s};

/// A port of a testpmd: a DPDK virtual device, as in `--vdev`.
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
    /// Starts it on core 0 with `ports`; `options` are testpmd's own. It uses no huge pages, and one memory region of
    /// `memory_mib`, which it clears first: the smaller, the sooner it is ready.
    pub fn start(
        lab: &Lab,
        name: &str,
        memory_mib: u32,
        ports: &[TestpmdPort],
        options: &str,
    ) -> Self {
        let mut command = Command::new("dpdk-testpmd");
        let eal = "--lcores 0@0,1@0 --no-pci --no-huge --no-shconf --single-file-segments";
        command.args(eal.split(' '));
        command.args(["-m", &memory_mib.to_string()]);
        // The widest vectors of the processor, and a log line about each port's path.
        command.args([
            "--force-max-simd-bitwidth=512",
            "--log-level=pmd.net.virtio.init:info",
        ]);
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
        self.process.wait_for("Checking link statuses", s(60));
        self.process.wait_for("testpmd>", s(20));
    }

    /// Types a command.
    pub fn command(&mut self, line: &str) {
        self.process.type_line(line);
    }

    /// What it has printed so far.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Stops forwarding and ends.
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
