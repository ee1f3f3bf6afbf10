//! Rows of addresses that are bound to ports.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::status::Status;

/// An address that a port may claim, by its `addresses`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BindingRow {
    /// The MAC or IP address, or a prefix.
    pub address: String,
    /// Name of the port.
    pub port: String,
    /// Name of the port's bridge.
    pub bridge: String,
    /// The VLANs in which it is bound: "unaware", "access 100" or "trunk 100,200 native 1".
    pub vlan: String,
    /// Whether no other port of these VLANs may claim it: not so for a prefix.
    pub exclusive: bool,
}

/// The bindings, by port in the order of the configuration: MAC addresses first.
pub fn bindings(status: &Status) -> Vec<BindingRow> {
    let of_port = status.ports.iter().flat_map(|port| {
        let row = |address: &String| BindingRow {
            address: address.clone(),
            port: port.name.clone(),
            bridge: port.bridge.clone(),
            vlan: port.vlan.clone(),
            exclusive: !address.contains('/'),
        };
        let addresses = port.addresses_allowed.iter().chain(&port.ip_allowed);
        addresses.map(row).collect::<Vec<BindingRow>>()
    });
    of_port.collect()
}
