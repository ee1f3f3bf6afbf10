//! The tables of `show multicast`.

use crosspoint_config::limits::DEFAULT_BRIDGE;
use crosspoint_model::rows::MulticastTable;

use super::table::Align::{Left, Right};
use super::table::Table;

pub(super) fn multicast(all: &MulticastTable) -> String {
    if !all.snooping {
        return "Multicast is flooded: [multicast] snooping is off.\n".to_owned();
    }
    let bridge = |bridge: &Option<String>| bridge.as_deref().unwrap_or(DEFAULT_BRIDGE).to_owned();
    let mut text = match all.queriers.is_empty() {
        true => "Multicast is flooded: no querier was heard, or the switch waits for answers to its queries.\n".to_owned(),
        false => {
            let mut table = Table::new([
                ("QUERIER", Left),
                ("BRIDGE", Left),
                ("VLAN", Right),
                ("PORT", Left),
                ("LEFT", Right),
            ]);
            for row in &all.queriers {
                table.add([
                    row.address.clone(),
                    bridge(&row.bridge),
                    row.vlan.to_string(),
                    match row.own {
                        true => "this switch".to_owned(),
                        false => row.port.clone(),
                    },
                    match row.own {
                        true => "-".to_owned(),
                        false => format!("{}s", row.left_s),
                    },
                ]);
            }
            table.render()
        }
    };
    if !all.groups.is_empty() {
        let mut table = Table::new([
            ("GROUP", Left),
            ("BRIDGE", Left),
            ("VLAN", Right),
            ("PORTS", Left),
        ]);
        for row in &all.groups {
            table.add([
                row.group.clone(),
                bridge(&row.bridge),
                row.vlan.to_string(),
                row.ports.join(","),
            ]);
        }
        text += &table.render();
    }
    if all.missed + all.refused > 0 {
        text += &format!(
            "{} messages were lost, since too many came at once; {} memberships were over a limit.\n",
            all.missed, all.refused
        );
    }
    text
}
