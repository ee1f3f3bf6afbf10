//! Rows of security groups, their rules, sets of addresses, and connections.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A security group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GroupRow {
    /// Its name.
    pub name: String,
    /// Whether replies to what a rule allows pass without a rule.
    pub stateful: bool,
    /// Number of its rules.
    pub rules: usize,
    /// Names of the ports that have it.
    pub ports: Vec<String>,
    /// Connections of these ports, also those that other groups of theirs allow.
    pub connections: u64,
}

/// A rule of a security group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RuleRow {
    /// The group.
    pub group: String,
    /// Its place in the group, from 0.
    pub rule: usize,
    /// The rule in words: "in tcp 80,443 from any".
    pub text: String,
    /// How many new connections it has allowed; of a stateless group: frames. Counted since a port has had the group.
    pub hits: u64,
}

/// A set of addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SetRow {
    /// Its name.
    pub name: String,
    /// The file that it is read from; absent if the configuration lists its addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Its addresses and prefixes.
    pub addresses: Vec<String>,
    /// Names of the groups with rules for it.
    pub groups: Vec<String>,
}

/// Security groups, their rules, and sets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupTables {
    /// The groups, in the order of the configuration.
    pub groups: Vec<GroupRow>,
    /// Their rules, by group.
    pub rules: Vec<RuleRow>,
    /// The sets, in the order of the configuration.
    pub sets: Vec<SetRow>,
}

/// Connections that are tracked for ports with security groups.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ConnectionTable {
    /// Connections of the switch.
    pub used: usize,
    /// Connections that the table has room for.
    pub capacity: usize,
    /// Connections that were asked for; more than are in `connections` if there were more than the limit.
    pub found: usize,
    /// The connections, in no order.
    pub connections: Vec<ConnectionRow>,
}

/// A connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ConnectionRow {
    /// The port that it is tracked for.
    pub port: String,
    /// `in` if its first packet was sent to the guest, `out` if the guest sent it.
    pub direction: String,
    /// `tcp`, `udp`, `sctp`, `icmp`, `icmpv6`, or the protocol's number.
    pub protocol: String,
    /// The address that its first packet came from.
    pub source: String,
    /// The port there; the identifier of an echo request; 0 for protocols without.
    pub source_port: u16,
    /// The other address.
    pub destination: String,
    /// The port there.
    pub destination_port: u16,
    /// `syn_sent`, `syn_received`, `established`, `closing`, `closed`, `adopted` (its beginning was not seen), `one_way`,
    /// `answered`, `two_way` or `revoked` (changed rules do not allow it).
    pub state: String,
    /// Seconds since its last packet.
    pub idle_s: u32,
}
