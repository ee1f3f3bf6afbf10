//! The table of `show bridges`.

use crosspoint_model::status::BridgeStatus;

use super::table::Align::{Left, Right};
use super::table::Table;

/// The most names of ports in a cell.
const PORTS_SHOWN_MAX: usize = 6;

pub(super) fn bridges(rows: &[BridgeStatus]) -> String {
    let mut table = Table::new([
        ("BRIDGE", Left),
        ("TAG", Left),
        ("ADDRESSES", Right),
        ("ROOM", Right),
        ("PORTS", Left),
    ]);
    for row in rows {
        let tag = match (&row.protocol, row.tag) {
            (Some(protocol), Some(vlan)) => format!("{protocol} {vlan}"),
            _ => "-".to_owned(),
        };
        table.add([
            row.name.clone(),
            tag,
            row.entries.to_string(),
            row.capacity.to_string(),
            ports(&row.ports),
        ]);
    }
    table.render()
}

fn ports(names: &[String]) -> String {
    let shown = names[..names.len().min(PORTS_SHOWN_MAX)].join(",");
    match names.len() {
        0 => "-".to_owned(),
        len if len <= PORTS_SHOWN_MAX => shown,
        len => format!("{shown} and {} more", len - PORTS_SHOWN_MAX),
    }
}
