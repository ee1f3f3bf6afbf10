//! The table of `show mirrors`.

use crosspoint_config::vlan_list;
use crosspoint_model::status::MirrorStatus;

use super::format::count;
use super::table::Align::{Left, Right};
use super::table::Table;

pub(super) fn mirrors(rows: &[MirrorStatus]) -> String {
    if rows.is_empty() {
        return "There are no mirrors.\n".to_owned();
    }
    let mut table = Table::new([
        ("MIRROR", Left),
        ("PORTS", Left),
        ("DIRECTION", Left),
        ("VLANS", Left),
        ("TO", Left),
        ("COPIED", Right),
        ("MISSED", Right),
    ]);
    for row in rows {
        let to = match row.to_vlan {
            Some(vlan) => format!("{} VLAN {vlan}", row.to),
            None => row.to.clone(),
        };
        let cells = [
            row.name.clone(),
            row.ports.join(","),
            row.direction.clone(),
            row.vlans.as_deref().map_or("all".to_owned(), vlan_list),
            to,
            count(row.copied),
            count(row.missed),
        ];
        let mut notes: Vec<String> = row
            .filter
            .iter()
            .map(|text| format!("filter: {text}"))
            .collect();
        if !row.is_active {
            notes.push(format!("no copies are made: no port is named {}", row.to));
        }
        table.add_with_note(cells, notes.join("; "));
    }
    table.render()
}
