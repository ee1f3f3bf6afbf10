//! Rows of addresses that are bound to ports.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::status::Status;

/// An address that a port may claim, by its `addresses`, or that its guest has leased by DHCP.
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
    /// When its lease ends, seconds from now; absent for an address of the configuration.
    #[serde(default)]
    pub lease_s: Option<u64>,
}

/// The bindings, by port in the order of the configuration: MAC addresses first, leases last.
pub fn bindings(status: &Status) -> Vec<BindingRow> {
    let of_port = status.ports.iter().flat_map(|port| {
        let row = |address: &String| BindingRow {
            address: address.clone(),
            port: port.name.clone(),
            bridge: port.bridge.clone(),
            vlan: port.vlan.clone(),
            exclusive: !address.contains('/'),
            lease_s: None,
        };
        let addresses = port.addresses_allowed.iter().chain(&port.ip_allowed);
        let leases = port.leases.iter().map(|lease| BindingRow {
            exclusive: port.ip_allowed.contains(&lease.address),
            lease_s: Some(lease.left_s),
            ..row(&lease.address)
        });
        addresses
            .map(row)
            .chain(leases)
            .collect::<Vec<BindingRow>>()
    });
    of_port.collect()
}
