//! Options of the dataplane and its ports, and changes to ports.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use super::bridges::PortBridges;
use crosspoint_config::{Addresses, LoopProtect, MacLimitAction};
use crosspoint_engine::bridge::fdb::Damping;
use crosspoint_engine::bridge::storm::StormLimits;
use crosspoint_engine::bridge::vlan::VlanPolicy;
use crosspoint_engine::snapshot::Egress;
use crosspoint_engine::stages::control::ControlAddresses;
use crosspoint_engine::stages::meter::RateLimits;
use crosspoint_engine::stream::Source;
use crosspoint_memory::GuestMemory;
use crosspoint_model::status::ShownState;
use crosspoint_vring::InflightRegion;
use crosspoint_xsk::{XskRx, XskTx};

use super::{BalanceOptions, Place};

/// Options of the dataplane, from the configuration.
#[derive(Clone, Debug)]
pub struct DataplaneOptions {
    /// The workers' cores, one worker for each.
    pub cores: Vec<usize>,
    /// Sleep after polling without work for this time; `None` for never.
    pub sleep_after: Option<Duration>,
    /// Entries of the forwarding database.
    pub fdb_capacity: usize,
    /// Time after which an address that was not seen is forgotten.
    pub fdb_ageing: Duration,
    /// How many moves of an address between ports are too many, so that it stays.
    pub fdb_damping: Damping,
    /// Expected number of NIC queues: workers divide packet memory among these. Further queues get memory of their own.
    pub nic_queues: usize,
    /// Whether streams move to other workers by measured load, and how often that is checked.
    pub balance: BalanceOptions,
}

/// Options of a port, from the configuration.
#[derive(Clone, Debug)]
pub struct PortOptions {
    /// Its name.
    pub name: String,
    /// "vhost" or "xdp".
    pub kind: &'static str,
    /// Its VLANs.
    pub vlan: VlanPolicy,
    /// Its VLANs as text.
    pub vlan_text: String,
    /// Maximum number of addresses learned on it; 0 for no limit.
    pub mac_limit: u32,
    /// What becomes of frames from addresses beyond it.
    pub mac_limit_action: MacLimitAction,
    /// Maximum number of queues (pairs).
    pub queues: usize,
    /// Whether TCP segments that come in here are joined for guests that accept large frames.
    pub joins: bool,
    /// The worker of all its streams; `None` if the switch chooses.
    pub worker: Option<usize>,
    /// Whether the switch is ready only while this port is up.
    pub required: bool,
    /// Its share of a busy worker's time, relative to other ports' weights; at least 1.
    pub weight: u32,
    /// Its bridges.
    pub bridges: PortBridges,
    /// Limits on the copies per second into which its frames may be flooded.
    pub storm: StormLimits,
    /// Limits on what its guest sends, and on what is sent to it.
    pub rates: RateLimits,
    /// The only source addresses that its frames may have; empty for any.
    pub addresses: Addresses,
    /// Whether it may send what DHCP servers and IPv6 routers send.
    pub dhcp_server: bool,
    /// Whether its frames reach uplinks only.
    pub isolated: bool,
    /// Which link-local control frames pass between it and other ports that have them too.
    pub forward_control: ControlAddresses,
    /// Whether it sends loop probes, and the action on a loop; `None`: it sends none.
    pub loop_protect: Option<LoopProtect>,
    /// Whether the operator has disabled it: nothing is received from it, and nothing is sent to it.
    pub disabled: bool,
}

impl Default for PortOptions {
    /// A guest's port with one queue pair, without VLANs and limits.
    fn default() -> PortOptions {
        PortOptions {
            name: String::new(),
            kind: "vhost",
            vlan: VlanPolicy::Unaware,
            vlan_text: String::new(),
            mac_limit: 0,
            mac_limit_action: MacLimitAction::Flood,
            queues: 1,
            joins: false,
            worker: None,
            required: false,
            weight: 1,
            bridges: PortBridges::default(),
            storm: StormLimits::default(),
            rates: RateLimits::default(),
            addresses: Addresses::default(),
            dhcp_server: true,
            isolated: false,
            forward_control: ControlAddresses::NONE,
            loop_protect: None,
            disabled: false,
        }
    }
}

/// State of a port, for `show`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PortState {
    /// Nothing is attached.
    Down,
    /// A front end is connected, but its rings do not run yet.
    Connected,
    /// Frames flow.
    Up,
    /// The guest broke a rule.
    Quarantined,
}

impl PortState {
    /// The state that is shown, unless the port is blocked.
    pub fn shown(self) -> ShownState {
        match self {
            PortState::Down => ShownState::Down,
            PortState::Connected => ShownState::Connected,
            PortState::Up => ShownState::Up,
            PortState::Quarantined => ShownState::Quarantined,
        }
    }

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        self.shown().as_str()
    }
}

/// A stream that a port gains, and what wakes its worker.
pub struct NewStream {
    /// Queue number.
    pub queue: u16,
    /// Source of its frames.
    pub source: Source,
    /// The guest's kick eventfd, if it gave one. Without it, a sleeping worker polls the stream periodically.
    pub kick: Option<OwnedFd>,
    /// The memory node of a guest's ring, if the kernel reports it.
    pub node: Option<u32>,
    /// Its place, if one was found ahead: that has its kick then.
    pub(crate) place: Option<Place>,
}

/// A change to one port.
#[derive(Default)]
pub struct PortChange {
    /// New destination of its frames.
    pub egress: Option<Egress>,
    /// Queues that are no longer read.
    pub remove: Vec<u16>,
    /// Queues that are read from now on.
    pub add: Vec<NewStream>,
    /// NIC transmit queues, each with its queue number: the first ones of the port, or an empty `Some` to remove them.
    pub nic: Option<Vec<(u16, XskTx)>>,
    /// New state and detail.
    pub state: Option<(PortState, String)>,
    /// New properties for `show`.
    pub properties: Option<BTreeMap<String, String>>,
    /// The guest's new memory. It is watched, since its files can be truncated at any time.
    pub memory: Option<Option<Arc<GuestMemory>>>,
    /// The guest's new inflight region, watched likewise.
    pub inflight: Option<Option<Arc<InflightRegion>>>,
}

impl PortChange {
    /// Gives a NIC's queues to workers: the number of each, and the halves of its socket, of which a queue that only receives
    /// has one.
    pub fn of_nic(halves: impl IntoIterator<Item = (u16, XskRx, Option<XskTx>)>) -> PortChange {
        let (mut add, mut nic) = (Vec::new(), Vec::new());
        for (queue, rx, tx) in halves {
            add.push(NewStream {
                queue,
                source: Source::Nic(rx),
                kick: None,
                node: None,
                place: None,
            });
            nic.extend(tx.map(|tx| (queue, tx)));
        }
        PortChange {
            add,
            nic: Some(nic),
            ..PortChange::default()
        }
    }
}
