//! The measured switches, between the interfaces of [`wire`] or between a guest and one of them.

use super::crosspoint::{self, Setup};
use super::peer::{self, Peer, Ports};
use super::switches::Running;
use super::wire::{self, NEAR};
use crate::error::BenchError;
use clap::ValueEnum;
use std::path::{Path, PathBuf};

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

/// Paths to the switches, and their cores.
#[derive(Clone, Debug)]
pub struct Places {
    /// The core of the switch's worker.
    pub switch_core: usize,
    /// The core of everything else.
    pub generator_core: usize,
    /// The crosspoint binary.
    pub crosspoint: PathBuf,
    /// The folder of the peers' scripts.
    pub peers: PathBuf,
    /// Start of the name of testpmd's polling thread.
    pub testpmd_thread: String,
}

/// Removes the bridge when dropped.
struct Bridge;

impl Drop for Bridge {
    fn drop(&mut self) {
        wire::remove_bridge();
    }
}

impl Switch {
    /// Its name in tables.
    pub fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or(String::new(), |value| value.get_name().to_owned())
    }

    /// Whether it can have a guest, not only interfaces.
    pub fn has_guests(self) -> bool {
        matches!(self, Self::Crosspoint | Self::Ovs | Self::Testpmd)
    }

    /// Creates new wires, and starts the switch between both, or between a guest and the second.
    pub fn start(self, has_guest: bool, places: &Places) -> Result<Running, BenchError> {
        wire::lay()?;
        let core = places.switch_core;
        match self {
            Self::Crosspoint => start_crosspoint(has_guest, places),
            Self::Ovs => self.peer(has_guest, places, "ovs-dpdk.sh", &format!("pmd-c{core:02}")),
            Self::Testpmd => self.peer(has_guest, places, "testpmd.sh", &places.testpmd_thread),
            Self::Bridge | Self::BridgeRps => {
                let running = Running {
                    workers: vec![(core, None)],
                    _kept: Some(Box::new(Bridge)),
                    ..Running::default()
                };
                wire::bridge((self == Self::BridgeRps).then_some(core))?;
                Ok(running)
            }
            Self::None => Ok(Running {
                workers: vec![(core, None)],
                ..Running::default()
            }),
        }
    }

    fn peer(
        self,
        has_guest: bool,
        places: &Places,
        script: &str,
        thread: &str,
    ) -> Result<Running, BenchError> {
        let script = places.peers.join(script);
        let ports = if has_guest { "mixed" } else { "af_xdp" };
        let line = |what: &str| {
            format!(
                "PORTS={ports} RUN={PEER_FILES} PMD_CORE={} OTHER_CORE={} '{}' {what}",
                places.switch_core,
                places.generator_core,
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
        let (worker, process) = peer::start(&peer, places.switch_core)?;
        let ports = Ports {
            sockets: vec![Path::new(PEER_FILES).join("a")],
            guests_listen: false,
        };
        Ok(Running {
            ports,
            workers: vec![(places.switch_core, worker)],
            metrics: None,
            _kept: Some(Box::new(process)),
        })
    }
}

fn start_crosspoint(has_guest: bool, places: &Places) -> Result<Running, BenchError> {
    let near = &NEAR[usize::from(has_guest)..];
    let setup = Setup {
        guests: usize::from(has_guest),
        interfaces: near.iter().map(|name| (*name).to_owned()).collect(),
        ..Setup::busy(places.switch_core)
    };
    let switch = crosspoint::start(&places.crosspoint, &setup)?;
    Ok(Running {
        ports: switch.ports.clone(),
        workers: vec![(places.switch_core, Some(switch.worker))],
        metrics: Some(switch.metrics),
        _kept: Some(Box::new(switch)),
    })
}
