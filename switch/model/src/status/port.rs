//! Ports, their limits and objectives.

use std::collections::BTreeMap;

use crosspoint_config::LoopAction;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::device::DeviceStatus;
use super::groups::PortConnections;
use super::queue::QueueStatus;
use super::state::ShownState;

macro_rules! port_status {
    (events { $($(#[doc = $event_doc:literal])+ $event:ident;)+ }) => {
        /// One port.
        #[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
        pub struct PortStatus {
            /// Its name.
            pub name: String,
            /// "vhost" or "xdp".
            pub kind: String,
            /// Its state.
            pub state: ShownState,
            /// The reason for its state, or details about it, as text.
            pub detail: String,
            /// Whether the switch is ready only while this port is up.
            #[serde(default)]
            pub required: bool,
            /// "unaware", "access 100" or "trunk 100,200 native 1".
            pub vlan: String,
            /// The same, as numbers.
            #[serde(default)]
            pub vlans: VlanStatus,
            /// Addresses learned on it.
            pub addresses: u32,
            $($(#[doc = $event_doc])+ #[serde(default)] pub $event: u64,)+
            /// Its share of a busy worker's time, relative to other ports' weights.
            #[serde(default)]
            pub weight: u32,
            /// Limits on the copies into which its frames may be flooded.
            #[serde(default)]
            pub storm: StormStatus,
            /// Whether it may send what DHCP servers and IPv6 routers send.
            #[serde(default)]
            pub dhcp_server: bool,
            /// Whether its frames reach uplinks only.
            #[serde(default)]
            pub isolated: bool,
            /// Its bridge.
            #[serde(default)]
            pub bridge: String,
            /// Other bridges whose frames it has, each with its tag: "tenant-a: 802.1Q tag 100".
            #[serde(default)]
            pub bridges: Vec<String>,
            /// Limits of what its guest sends and of what is sent to it.
            #[serde(default)]
            pub limit: LimitStatus,
            /// The only source addresses that its frames may have; empty for any.
            #[serde(default)]
            pub addresses_allowed: Vec<String>,
            /// The only IP addresses and prefixes that its frames may claim; empty for any.
            #[serde(default)]
            pub ip_allowed: Vec<String>,
            /// The addresses that its guest has leased by DHCP, if that is noted.
            #[serde(default)]
            pub leases: Vec<LeaseStatus>,
            /// Its security groups; empty for none.
            #[serde(default)]
            pub groups: Vec<String>,
            /// The connections that are tracked for it; absent if it has no security groups.
            #[serde(default)]
            pub connections: Option<PortConnections>,
            /// Whether a loop goes through it: a probe has gone round one, or addresses move between it and another port
            /// thousands of times a second.
            #[serde(default)]
            pub looping: bool,
            /// The other ends of loops that probes have gone round; its own name if its own probe came back to it.
            #[serde(default)]
            pub looping_with: Vec<String>,
            /// The other end of the loop that it is blocked for; its own name if its own probe came back to it.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub blocked_with: Option<String>,
            /// The action on loops that its probes go round; absent if it sends none.
            #[serde(default)]
            pub loop_protect: Option<LoopProtectStatus>,
            /// Which link-local control frames pass between it and others, as configured.
            #[serde(default)]
            pub forward_control: Vec<String>,
            /// For xdp: "native" or "generic", and "zero-copy" or "copy"; for vhost: role and features.
            pub properties: BTreeMap<String, String>,
            /// Its queues, by number. Each has both directions.
            pub queues: Vec<QueueStatus>,
            /// Seconds since its state last changed.
            pub state_for_s: u64,
            /// Status of a guest's device; absent for xdp.
            pub device: Option<DeviceStatus>,
            /// Its service level objectives; absent if it has none.
            #[serde(default)]
            pub slo: Option<SloStatus>,
        }
    };
}
crosspoint_engine::port_counters!(port_status);

/// The action on loops that a port's probes go round.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LoopProtectStatus {
    /// Whether a port is blocked.
    #[schemars(with = "String")]
    pub action: LoopAction,
    /// Shortest time that it is blocked, seconds.
    pub block_time_s: f64,
}

/// A port's VLANs: `access`, or `trunk` and perhaps `native`. All are null for a port that does not look at VLANs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VlanStatus {
    /// The VLAN of its frames, which have no tag.
    pub access: Option<u16>,
    /// The VLANs of its frames that have a tag, ascending.
    pub trunk: Option<Vec<u16>>,
    /// With `trunk`: the VLAN of frames without a tag; null if these are dropped.
    pub native: Option<u16>,
}

/// Limits of a port's rates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LimitStatus {
    /// What its guest sends: it waits in the guest's ring.
    pub out: RateStatus,
    /// What is sent to its guest: frames beyond it are dropped as `rate_exceeded`.
    pub r#in: RateStatus,
}

/// A rate limit; 0 for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RateStatus {
    /// Bits per second of Ethernet frames, without preamble and checksum.
    pub bits_per_s: u64,
    /// Bytes that may come at once.
    pub burst_bytes: u64,
    /// Packets per second.
    pub packets_per_s: u64,
}

/// A port's storm control: flooded copies per second; 0 for no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StormStatus {
    /// Of broadcasts.
    pub broadcast: u32,
    /// Of frames for other group addresses.
    pub multicast: u32,
    /// Of frames for addresses that are known on no port.
    pub unknown_unicast: u32,
}

/// An address that a guest has leased by DHCP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LeaseStatus {
    /// The IP address.
    pub address: String,
    /// The MAC address of the station that has leased it.
    pub mac: String,
    /// The VLAN; 0 for none.
    pub vlan: u16,
    /// When the lease ends, seconds from now.
    pub left_s: u64,
}

/// A port's service level objectives, and whether they were met in the last minute, over all its queues.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SloStatus {
    /// Length of the measured time, seconds: a minute, or less until one has passed.
    pub window_s: f64,
    /// Descriptors completed for the guest in that time.
    pub completions: u64,
    /// The objective for the median, if any.
    pub completion_p50: Option<ObjectiveStatus>,
    /// The objective for the 99th percentile, if any.
    pub completion_p99: Option<ObjectiveStatus>,
}

/// An objective and the measured time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ObjectiveStatus {
    /// The objective, nanoseconds.
    pub objective_ns: u64,
    /// The measured time, accurate to an eighth, nanoseconds; absent if nothing was completed.
    pub measured_ns: Option<u64>,
}

impl ObjectiveStatus {
    /// Whether it was met; `None` if nothing was completed.
    pub fn is_met(&self) -> Option<bool> {
        Some(self.measured_ns? <= self.objective_ns)
    }
}
