//! The status of security groups: the connections of a port, and the table of all.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The connections that are tracked for a port with security groups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PortConnections {
    /// Connections now.
    pub connections: u32,
    /// TCP connections among them that are not established yet.
    pub half_open: u32,
    /// The most that it may have.
    pub max: u32,
    /// Connections that have begun.
    pub created: u64,
    /// Connections that were refused, because the port or the table had too many.
    pub refused: u64,
    /// The most that may begin in a second, in each direction; 0 for no limit.
    #[serde(default)]
    pub rate: u32,
    /// Connections that were refused, because more began in a second than may.
    #[serde(default)]
    pub rate_refused: u64,
}

/// The table of connections of the switch. It is made when a port has security groups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ConnectionsStatus {
    /// Connections now.
    pub used: usize,
    /// Connections that the table has room for.
    pub capacity: usize,
    /// Memory of the table, bytes.
    pub bytes: usize,
}
