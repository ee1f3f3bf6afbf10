//! A guest's device, its memory and rings.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A guest's device, and its front end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DeviceStatus {
    /// The switch's role on the socket: "server" (the switch listens) or "client" (the front end listens).
    pub role: String,
    /// The vhost-user socket.
    pub socket: String,
    /// Front ends that have connected since the daemon started, including the current one.
    pub connections: u64,
    /// Why the last front end disconnected; absent before the first has.
    pub last_end: Option<String>,
    /// Why no front end can connect: the socket was removed or replaced, and cannot be created again; absent without a
    /// problem.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket_problem: Option<String>,
    /// The last request of the previous front end; absent if there is none.
    #[serde(default)]
    pub last_request: Option<String>,
    /// Number of consecutive front ends that left before a ring of theirs ran; 0 if the last one's ran.
    #[serde(default)]
    pub early_ends: u64,
    /// The features that the driver acknowledged, by name.
    pub features: Vec<String>,
    /// The vhost-user protocol features that the front end acknowledged, by name.
    pub protocol_features: Vec<String>,
    /// The device status that the front end has set, its bits by name; absent if it does not report it (no protocol
    /// feature STATUS).
    pub device_status: Option<Vec<String>>,
    /// "split" or "packed".
    pub ring_type: String,
    /// The guest's MAC address in the configuration, if any.
    pub mac: Option<String>,
    /// The MTU announced to the guest, bytes.
    pub mtu: u16,
    /// The MTU that the front end has set (NET_SET_MTU), if any.
    pub mtu_set: Option<u16>,
    /// The guest's memory.
    pub memory: Vec<MemoryRegionStatus>,
    /// Its rings, by index.
    pub vrings: Vec<VringStatus>,
}

/// A region of a guest's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MemoryRegionStatus {
    /// The guest's address of it.
    pub guest_address: u64,
    /// Bytes.
    pub size: u64,
}

/// One of a guest's rings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VringStatus {
    /// Its number: queue pair n has vrings 2n and 2n + 1.
    pub index: u16,
    /// "receive" or "transmit", as seen by the guest.
    pub direction: String,
    /// Number of entries; 0 before the front end has set it.
    pub size: u32,
    /// Whether the front end has enabled it.
    pub enabled: bool,
    /// Whether workers use it.
    pub running: bool,
    /// The available index at which it was last set or stopped; a running ring has advanced from there, or from its
    /// used index. For a packed ring: 15 bits, and the wrap counter.
    pub base: u16,
    /// Whether the front end has given a descriptor for kicks.
    pub has_kick: bool,
    /// Whether the front end has given a descriptor for calls.
    pub has_call: bool,
}
