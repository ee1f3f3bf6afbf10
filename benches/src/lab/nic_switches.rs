//! The measured switches, between the interfaces of [`wire`] or between a guest and one of them.

use crate::error::BenchError;
use crate::lab::{NEAR, PeerSwitch, Place, Ports, Running, Setup, crosspoint, wire};
use clap::ValueEnum;
use std::path::Path;

/// The peers' directory for files.
const PEER_FILES: &str = "/run/crosspoint-bench-nic";

/// A switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum NicSwitch {
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

/// Removes the bridge when dropped.
struct Bridge;

impl Drop for Bridge {
    fn drop(&mut self) {
        wire::remove_bridge();
    }
}

impl NicSwitch {
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
    pub fn start(self, has_guest: bool, place: &Place) -> Result<Running, BenchError> {
        wire::lay()?;
        let core = place.cores[0];
        let mut running = Running {
            workers: vec![(core, None)],
            ..Running::default()
        };
        match self {
            Self::Crosspoint => return start_crosspoint(has_guest, place),
            Self::Ovs => return start_peer("ovs-dpdk", has_guest, place),
            Self::Testpmd => return start_peer("testpmd-io", has_guest, place),
            Self::Bridge | Self::BridgeRps => {
                running._kept = Some(Box::new(Bridge));
                wire::bridge((self == Self::BridgeRps).then_some(core))?;
            }
            Self::None => {}
        }
        Ok(running)
    }
}

fn start_peer(kind: &str, has_guest: bool, place: &Place) -> Result<Running, BenchError> {
    let peer: PeerSwitch = kind.parse().map_err(BenchError::Usage)?;
    let ports = if has_guest { "mixed" } else { "af_xdp" };
    let files = Path::new(PEER_FILES);
    Ok(Running {
        ports: Ports {
            sockets: vec![files.join("a")],
            guests_listen: false,
        },
        ..peer.start_script(files, &format!("PORTS={ports}"), place)?
    })
}

fn start_crosspoint(has_guest: bool, place: &Place) -> Result<Running, BenchError> {
    let near = &NEAR[usize::from(has_guest)..];
    let setup = Setup {
        guests: usize::from(has_guest),
        interfaces: near.iter().map(|name| (*name).to_owned()).collect(),
        ..Setup::busy(place.cores[0])
    };
    let switch = crosspoint::start(&place.binary, &setup)?;
    Ok(switch.into_running(&place.cores))
}
