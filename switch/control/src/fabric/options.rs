//! What the fabric, its ports, and changes to them are made of.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use crosspoint_engine::control::ControlAddresses;
use crosspoint_engine::fdb::Damping;
use crosspoint_engine::storm::StormLimits;
use crosspoint_engine::stream::Source;
use crosspoint_engine::view::Egress;
use crosspoint_engine::vlan::VlanPolicy;
use crosspoint_packet::Mac;
use crosspoint_vring::{GuestMemory, InflightRegion};
use crosspoint_xsk::XskTx;

use super::BalanceOptions;
use crate::config::LoopProtect;

/// What the fabric is made of, from the configuration.
#[derive(Clone, Debug)]
pub struct FabricOptions {
    /// One worker for each.
    pub cores: Vec<usize>,
    /// Sleep after polling in vain for so long; `None` for never.
    pub sleep_after: Option<Duration>,
    /// Entries of the forwarding database.
    pub fdb_capacity: usize,
    /// When an address that was not seen is forgotten.
    pub fdb_ageing: Duration,
    /// When an address has moved between ports too often, and so stays.
    pub fdb_damping: Damping,
    /// NIC queues that there will be: workers share packet memory among so many. More get memory of their own.
    pub nic_queues: usize,
    /// Whether streams go to other workers by measured load, and how often that is looked at.
    pub balance: BalanceOptions,
}

/// What a port is, from the configuration.
#[derive(Clone, Debug)]
pub struct PortOptions {
    /// Its name.
    pub name: String,
    /// "vhost" or "xdp".
    pub kind: &'static str,
    /// Its VLANs.
    pub vlan: VlanPolicy,
    /// The same, for people.
    pub vlan_text: String,
    /// Most addresses learned on it; 0 for no limit.
    pub mac_limit: u32,
    /// Most queues (pairs) it will have.
    pub queues: usize,
    /// Whether TCP segments that come in here are joined for guests that take large frames.
    pub joins: bool,
    /// The worker of all its streams; `None` where the switch chooses.
    pub worker: Option<usize>,
    /// Whether the switch is ready only while it is up.
    pub required: bool,
    /// Its part of a busy worker's time, beside other ports' weights; at least 1.
    pub weight: u32,
    /// Into how many copies its frames may be flooded, per second.
    pub storm: StormLimits,
    /// The only source addresses that its frames may have; none: any.
    pub addresses: Vec<Mac>,
    /// Which link-local control frames pass from it to other ports that have them too, and from those to it.
    pub forward_control: ControlAddresses,
    /// Whether it sends probes for loops, and what is done about one; `None`: it sends none.
    pub loop_protect: Option<LoopProtect>,
}

/// How a port is, for `show`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PortState {
    /// Nobody is there.
    Down,
    /// A front end is there, its rings are not.
    Connected,
    /// Frames flow.
    Up,
    /// The guest broke the rules.
    Quarantined,
}

impl PortState {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            PortState::Down => "down",
            PortState::Connected => "connected",
            PortState::Up => "up",
            PortState::Quarantined => "quarantined",
        }
    }
}

/// A stream that a port gains, and what wakes its worker.
pub struct NewStream {
    /// Queue number.
    pub queue: u16,
    /// Where its frames come from.
    pub source: Source,
    /// A guest's kicks, if it gave an eventfd for them. Without, a worker that sleeps looks from time to time.
    pub kick: Option<OwnedFd>,
    /// The memory node of a guest's ring, if the kernel tells.
    pub node: Option<u32>,
}

/// A change to one port.
#[derive(Default)]
pub struct PortChange {
    /// Where its frames go from now on.
    pub egress: Option<Egress>,
    /// Queues that are no longer read.
    pub remove: Vec<u16>,
    /// Queues that are read from now on.
    pub add: Vec<NewStream>,
    /// NIC queues for sending, each with the queue number: from none to some, or, empty and
    /// `Some`, to none.
    pub nic: Option<Vec<(u16, XskTx)>>,
    /// How the port is now.
    pub state: Option<(PortState, String)>,
    /// What `show` says of it besides.
    pub properties: Option<BTreeMap<String, String>>,
    /// The guest's memory from now on, to be watched: its files can be cut short at any time.
    pub memory: Option<Option<Arc<GuestMemory>>>,
    /// Its inflight region, likewise.
    pub inflight: Option<Option<Arc<InflightRegion>>>,
}
