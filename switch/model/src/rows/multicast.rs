//! Rows of multicast groups and of those that ask for reports.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What snooping knows of multicast.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MulticastTable {
    /// Whether snooping is on.
    pub snooping: bool,
    /// The groups with members, by bridge, VLAN and address.
    pub groups: Vec<MulticastGroupRow>,
    /// Queriers, by bridge and VLAN. Where there is none, multicast is flooded.
    pub queriers: Vec<QuerierRow>,
    /// Ports' messages that were lost because too many came at once.
    pub missed: u64,
    /// Memberships that were not taken because the port, or the switch, has as many as it may.
    pub refused: u64,
}

/// A multicast group with members.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MulticastGroupRow {
    /// Its address.
    pub group: String,
    /// Its VLAN; 0 for none.
    pub vlan: u16,
    /// Its bridge; absent for the default bridge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
    /// Names of the ports that have joined it.
    pub ports: Vec<String>,
}

/// A router or switch that asks stations for their groups.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct QuerierRow {
    /// Its address.
    pub address: String,
    /// The VLAN; 0 for none.
    pub vlan: u16,
    /// The bridge; absent for the default bridge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
    /// Whether it is this switch. Its address then differs at each port.
    #[serde(default)]
    pub own: bool,
    /// Name of the port that it is behind; empty for this switch.
    pub port: String,
    /// Seconds for which it is still known without another query; 0 for this switch.
    pub left_s: u64,
}
