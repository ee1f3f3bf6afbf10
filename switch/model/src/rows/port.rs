//! Rows of ports and guests.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::queue::{QueueRow, queue};
use super::{DropRow, SloRow, all_drops, drops_at, shares, slo, total};
use crate::plan::Unkept;
use crate::status::{
    DeviceStatus, LimitStatus, LoopProtectStatus, PortConnections, PortStatus, QueueStatus,
    ShownState, Status, StormStatus, VlanStatus,
};

macro_rules! port_row {
    (events { $($(#[doc = $event_doc:literal])+ $event:ident;)+ }) => {
        /// A port; its counts are sums over its queues.
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
        pub struct PortRow {
            /// Its name.
            pub name: String,
            /// `vhost` or `xdp`.
            pub kind: String,
            /// `up`, `connected`, `down`, `quarantined` or `blocked`.
            pub state: ShownState,
            /// Why it is not up, or further details of its state; may be empty.
            pub detail: String,
            /// Whether the switch is ready only while it is up.
            #[serde(default)]
            pub required: bool,
            /// How it differs from the files; absent if it does not.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub unkept: Option<Unkept>,
            /// `unaware`, `access 100` or `trunk 100,200 native 1`.
            pub vlan: String,
            /// The same, as numbers.
            #[serde(default)]
            pub vlans: VlanStatus,
            /// Addresses learned on it.
            pub addresses: u32,
            /// The only source addresses that its frames may have; empty: any.
            #[serde(default)]
            pub addresses_allowed: Vec<String>,
            /// The only IP addresses and prefixes that its frames may claim; empty: any.
            #[serde(default)]
            pub ip_allowed: Vec<String>,
            /// Its security groups; empty: none, and everything may pass.
            #[serde(default)]
            pub groups: Vec<String>,
            /// The connections that are tracked for it; absent if it has no security groups.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub connections: Option<PortConnections>,
            /// Whether it is part of a loop.
            #[serde(default)]
            pub looping: bool,
            /// The other ends of loops that probes have found; its own name, if its own probe came back to it.
            #[serde(default)]
            pub looping_with: Vec<String>,
            /// How loops that its probes find are handled; absent if it sends no probes.
            #[serde(default)]
            pub loop_protect: Option<LoopProtectStatus>,
            /// Kinds of link-local control frames that pass from it to other ports, and from those to it.
            #[serde(default)]
            pub forward_control: Vec<String>,
            /// Its weight for shares of a busy worker's time.
            #[serde(default)]
            pub weight: u32,
            /// Limits of flooded copies of its frames, per second; 0 for no limit.
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
            /// Further properties.
            #[schemars(with = "PropertiesOfPort")]
            pub properties: BTreeMap<String, String>,
            /// The longest frame that it takes, less its Ethernet header, bytes; null if its kind has no such limit, or it is
            /// not attached.
            #[serde(default)]
            pub mtu: Option<u32>,
            /// The sizes of a guest's rings, by index; empty while none is attached, and for xdp.
            #[serde(default)]
            pub ring_sizes: Vec<u32>,
            /// How many queues it has.
            pub queues: usize,
            /// Frames from the port into the switch.
            pub rx_packets: u64,
            /// Their bytes.
            pub rx_bytes: u64,
            /// Copies delivered to the port.
            pub tx_packets: u64,
            /// Their bytes.
            pub tx_bytes: u64,
            /// Drops counted at the port, for all reasons.
            pub drops: u64,
            /// Its part of the time of one worker in the last seconds, percent; with several workers, the sum. Null before it has
            /// run.
            #[serde(default)]
            pub share_percent: Option<f64>,
            /// Poll iterations in which one of its queues was not read, because the port was ahead of its fair share.
            #[serde(default)]
            pub held_back: u64,
            /// Drops there of frames whose senders were above their shares (`over_share`).
            #[serde(default)]
            pub over_share: u64,
            /// Floods of its frames that its storm limits dropped (`storm_broadcast`, `storm_multicast`, `storm_unknown_unicast`).
            #[serde(default)]
            pub floods_dropped: u64,
            $($(#[doc = $event_doc])+ #[serde(default)] pub $event: u64,)+
            /// The state of its service level objectives; null if it has none.
            #[serde(default)]
            pub slo: Option<SloRow>,
        }

        /// The row of a port.
        pub fn port(port: &PortStatus) -> PortRow {
            let sum = |read: fn(&QueueStatus) -> u64| port.queues.iter().map(read).fold(0, total);
            PortRow {
                name: port.name.clone(),
                kind: port.kind.clone(),
                state: port.state,
                detail: port.detail.clone(),
                required: port.required,
                unkept: None,
                vlan: port.vlan.clone(),
                vlans: port.vlans.clone(),
                addresses: port.addresses,
                addresses_allowed: port.addresses_allowed.clone(),
                ip_allowed: port.ip_allowed.clone(),
                groups: port.groups.clone(),
                connections: port.connections,
                weight: port.weight,
                looping: port.looping,
                looping_with: port.looping_with.clone(),
                loop_protect: port.loop_protect,
                forward_control: port.forward_control.clone(),
                storm: port.storm,
                dhcp_server: port.dhcp_server,
                isolated: port.isolated,
                bridge: port.bridge.clone(),
                bridges: port.bridges.clone(),
                limit: port.limit,
                properties: port.properties.clone(),
                mtu: mtu(port),
                ring_sizes: ring_sizes(port),
                queues: port.queues.len(),
                rx_packets: sum(|q| q.rx_packets),
                rx_bytes: sum(|q| q.rx_bytes),
                tx_packets: sum(|q| q.tx_packets),
                tx_bytes: sum(|q| q.tx_bytes),
                drops: sum(all_drops),
                share_percent: None,
                held_back: shares::held_back(port),
                over_share: shares::drops_for(port, shares::is_over_share),
                floods_dropped: shares::drops_for(port, shares::is_storm),
                $($event: port.$event,)+
                slo: port.slo.as_ref().map(slo::row),
            }
        }
    };
}
crosspoint_engine::port_counters!(port_row);

/// Properties of a port: each is a text for people. What programs need has keys of its own, with numbers and lists.
#[derive(JsonSchema)]
#[allow(dead_code, reason = "only its schema is used")]
struct PropertiesOfPort {
    /// xdp: the name of the interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    interface: Option<String>,
    /// xdp: `native` or `generic`.
    #[serde(skip_serializing_if = "Option::is_none")]
    xdp: Option<String>,
    /// xdp: `zero-copy` or `copy`.
    #[serde(skip_serializing_if = "Option::is_none")]
    copy: Option<String>,
    /// xdp: how large TCP frames leave.
    #[serde(skip_serializing_if = "Option::is_none")]
    tso: Option<String>,
    /// xdp: the implementation of AF_XDP in this build.
    #[serde(skip_serializing_if = "Option::is_none")]
    af_xdp: Option<String>,
    /// xdp: the interface's MTU; as a number in `mtu` of the port.
    #[serde(skip_serializing_if = "Option::is_none")]
    mtu: Option<String>,
    /// vhost: the negotiated features; as a list in `features` of `device`.
    #[serde(skip_serializing_if = "Option::is_none")]
    features: Option<String>,
    /// vhost: the sizes of the running rings; as numbers in `ring_sizes` of the port.
    #[serde(skip_serializing_if = "Option::is_none")]
    ring_sizes: Option<String>,
    /// vhost: how many memory regions the guest has.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_regions: Option<String>,
    /// vhost: their bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_bytes: Option<String>,
    /// vhost: the uplink's queue that is the guest's own, or why it has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    direct: Option<String>,
    /// vhost: queues without a kick that can wake a worker.
    #[serde(skip_serializing_if = "Option::is_none")]
    polled_queues: Option<String>,
    /// vhost: present if a thread of the port calls the guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    calls: Option<String>,
}

/// The interface's MTU, or the device's.
fn mtu(port: &PortStatus) -> Option<u32> {
    let of_interface = port.properties.get("mtu");
    let of_interface = of_interface.and_then(|mtu| mtu.parse().ok());
    of_interface.or(port.device.as_ref().map(|device| device.mtu.into()))
}

fn ring_sizes(port: &PortStatus) -> Vec<u32> {
    let sizes = port.properties.get("ring_sizes");
    let sizes = sizes.map_or("", String::as_str).split(' ');
    sizes.filter_map(|size| size.parse().ok()).collect()
}

/// All ports.
pub fn ports(status: &Status) -> Vec<PortRow> {
    let shares = shares::shares(status);
    let row = |one: &PortStatus| PortRow {
        share_percent: shares.get(one.name.as_str()).copied(),
        ..port(one)
    };
    status.ports.iter().map(row).collect()
}

/// Everything known about one port.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct PortDetail {
    /// Its row in the list of ports; its keys are part of this object.
    #[serde(flatten)]
    pub port: PortRow,
    /// Seconds since its state last changed.
    pub state_for_s: u64,
    /// The guest's device and its front end; null for xdp.
    pub device: Option<DeviceStatus>,
    /// Its queues, by number.
    pub per_queue: Vec<QueueRow>,
    /// Drops at it, by queue and reason; those that are not zero.
    pub drops_by_reason: Vec<DropRow>,
}

/// One port, in full.
pub fn port_detail(all: &Status, status: &PortStatus) -> PortDetail {
    let queues = status.queues.iter();
    PortDetail {
        port: PortRow {
            share_percent: shares::shares(all).get(status.name.as_str()).copied(),
            ..port(status)
        },
        state_for_s: status.state_for_s,
        device: status.device.clone(),
        per_queue: queues.map(|one| queue(&status.name, one)).collect(),
        drops_by_reason: drops_at(all, status),
    }
}

/// A guest: its device and its front end.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GuestRow {
    /// Name of the port.
    pub port: String,
    /// `up`, `connected`, `down` or `quarantined`.
    pub state: ShownState,
    /// Seconds since its state last changed.
    pub state_for_s: u64,
    /// The device; its keys are part of this object.
    #[serde(flatten)]
    pub device: DeviceStatus,
}

/// All guests.
pub fn guests(status: &Status) -> Vec<GuestRow> {
    let row = |port: &PortStatus| {
        Some(GuestRow {
            port: port.name.clone(),
            state: port.state,
            state_for_s: port.state_for_s,
            device: port.device.clone()?,
        })
    };
    status.ports.iter().filter_map(row).collect()
}
