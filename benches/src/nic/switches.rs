//! The measured switches, between the interfaces of [`wire`] or between a guest and one of them.

use super::Path;
use super::wire::{self, NEAR};
use crate::backend::peer;
use crate::backend::process::Process;
use crate::error::BenchError;
use crate::interrupt;
use crate::options::{Peer, PlanOptions};
use crate::scrape::Counters;
use crate::threads::Thread;
use clap::ValueEnum;
use std::net::{SocketAddr, TcpListener};
use std::path::{self, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Longest wait for crosspoint to start.
const START_MAX: Duration = Duration::from_secs(20);
/// The peers' directory for files.
const PEER_FILES: &str = "/run/crosspoint-bench-nic";

/// A switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// One busy worker.
    Crosspoint,
    /// Open vSwitch with DPDK's net_af_xdp, one PMD thread.
    Ovs,
    /// DPDK's testpmd with net_af_xdp, mode io: no switching.
    Testpmd,
    /// The kernel's bridge, in the sender's softirq.
    Bridge,
    /// The same, moved to the switch's core by receive packet steering.
    BridgeRps,
    /// No switch: the generator's frames are counted at the near end.
    None,
}

/// Paths to the switches.
#[derive(Clone, Debug)]
pub struct Places {
    /// The crosspoint binary.
    pub crosspoint: PathBuf,
    /// The folder of the peers' scripts.
    pub peers: PathBuf,
    /// Start of the name of testpmd's polling thread.
    pub testpmd_thread: String,
}

/// A running switch. It stops when dropped.
pub struct Running {
    /// The thread that moves frames, if there is one.
    pub worker: Option<Thread>,
    /// Its metrics, if it is crosspoint.
    pub metrics: Option<SocketAddr>,
    /// Socket for a guest.
    pub socket: PathBuf,
    _stop: Stop,
}

/// What stops a switch when dropped; the fields drop in this order.
enum Stop {
    Crosspoint { _child: Process, _files: TempDir },
    Peer { _process: peer::Process },
    Bridge,
    Nothing,
}

impl Drop for Stop {
    fn drop(&mut self) {
        if matches!(self, Self::Bridge) {
            wire::remove_bridge();
        }
    }
}

impl Switch {
    /// Its name in tables.
    pub fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or(String::new(), |value| value.get_name().to_owned())
    }

    /// Whether it supports `path`.
    pub fn has(self, path: Path) -> bool {
        !path.has_guest() || matches!(self, Self::Crosspoint | Self::Ovs | Self::Testpmd)
    }

    /// Creates new wires, and starts the switch.
    pub fn start(
        self,
        path: Path,
        plan: &PlanOptions,
        places: &Places,
    ) -> Result<Running, BenchError> {
        wire::lay()?;
        let core = plan.switch_core;
        match self {
            Self::Crosspoint => crosspoint(path, core, &places.crosspoint),
            Self::Ovs => self.peer(
                path,
                plan,
                places,
                "ovs-dpdk.sh",
                &format!("pmd-c{core:02}"),
            ),
            Self::Testpmd => self.peer(path, plan, places, "testpmd.sh", &places.testpmd_thread),
            Self::Bridge | Self::BridgeRps => {
                let running = Running::without_thread(Stop::Bridge);
                wire::bridge((self == Self::BridgeRps).then_some(core))?;
                Ok(running)
            }
            Self::None => Ok(Running::without_thread(Stop::Nothing)),
        }
    }

    fn peer(
        self,
        path: Path,
        plan: &PlanOptions,
        places: &Places,
        script: &str,
        thread: &str,
    ) -> Result<Running, BenchError> {
        let script = places.peers.join(script);
        let ports = if path.has_guest() { "mixed" } else { "af_xdp" };
        let line = |what: &str| {
            format!(
                "PORTS={ports} RUN={PEER_FILES} PMD_CORE={} OTHER_CORE={} '{}' {what}",
                plan.switch_core,
                plan.generator_core,
                script.display()
            )
        };
        let peer = Peer {
            name: self.name(),
            start: line("start"),
            stop: line("stop"),
            ports: None,
            thread: thread.to_owned(),
        };
        let (worker, process) = peer::start(&peer, plan.switch_core)?;
        Ok(Running {
            worker,
            metrics: None,
            socket: path::Path::new(PEER_FILES).join("a"),
            _stop: Stop::Peer { _process: process },
        })
    }
}

impl Running {
    fn without_thread(stop: Stop) -> Self {
        Self {
            worker: None,
            metrics: None,
            socket: PathBuf::new(),
            _stop: stop,
        }
    }
}

fn crosspoint(path: Path, core: usize, binary: &path::Path) -> Result<Running, BenchError> {
    let failed = |what: String| BenchError::backend("crosspoint", what);
    let files =
        TempDir::with_prefix("crosspoint-bench-").map_err(BenchError::io("temporary directory"))?;
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let metrics = free.map_err(BenchError::io("a port for metrics"))?;
    let socket = files.path().join("a.sock");
    let text = configuration(path, core, metrics, files.path());
    let file = files.path().join("crosspoint.toml");
    std::fs::write(&file, text).map_err(BenchError::io("configuration"))?;
    let mut command = Command::new(binary);
    command.arg("run").arg("--config").arg(&file);
    let mut child = Process::spawn(&mut command, files.path().join("log"))?;
    let deadline = Instant::now() + START_MAX;
    let worker = loop {
        interrupt::check()?;
        let is_ready = Counters::read(metrics).is_ok() && (!path.has_guest() || socket.exists());
        let worker = Thread::named(child.id(), "worker-0");
        if let Some(worker) = worker.filter(|_| is_ready) {
            break worker;
        }
        if child.ended().is_some() || Instant::now() > deadline {
            return Err(failed(format!("does not start\n{}", child.log_tail())));
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    Ok(Running {
        worker: Some(worker),
        metrics: Some(metrics),
        socket,
        _stop: Stop::Crosspoint {
            _child: child,
            _files: files,
        },
    })
}

fn configuration(path: Path, core: usize, metrics: SocketAddr, files: &path::Path) -> String {
    let [a, b] = NEAR.map(|near| format!("type = \"xdp\"\ninterface = \"{near}\"\n"));
    let guest = format!(
        "type = \"vhost\"\nsocket = {:?}\nrole = \"server\"\n",
        files.join("a.sock")
    );
    let a = if path.has_guest() { guest } else { a };
    format!(
        "version = 1\n[workers]\ncores = [{core}]\npoll = \"busy\"\n[metrics]\nlisten = \"{metrics}\"\n\
         [control]\nsocket = {:?}\n[[port]]\nname = \"a\"\n{a}[[port]]\nname = \"b\"\n{b}",
        files.join("control.sock")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_port_is_the_guests_where_there_is_one() {
        let metrics = SocketAddr::from(([127, 0, 0, 1], 9999));
        let text = |path| configuration(path, 1, metrics, path::Path::new("/t"));
        assert_eq!(text(Path::NicToNic).matches("type = \"xdp\"").count(), 2);
        let mixed = text(Path::GuestToNic);
        assert!(mixed.contains("socket = \"/t/a.sock\""), "{mixed}");
        assert!(
            mixed.contains("interface = \"sb\"") && !mixed.contains("\"sa\""),
            "{mixed}"
        );
    }
}
