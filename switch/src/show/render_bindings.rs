//! The table of `show bindings`.

use crosspoint_model::rows::BindingRow;

use super::table::Align::Left;
use super::table::Table;

pub(super) fn bindings(rows: &[BindingRow]) -> String {
    if rows.is_empty() {
        return "No port has `addresses`, and no guest's lease is known.\n".to_owned();
    }
    let mut table = Table::new([
        ("ADDRESS", Left),
        ("PORT", Left),
        ("BRIDGE", Left),
        ("VLAN", Left),
        ("OTHERS", Left),
        ("LEASE", Left),
    ]);
    for row in rows {
        table.add([
            row.address.clone(),
            row.port.clone(),
            row.bridge.clone(),
            row.vlan.clone(),
            match row.exclusive {
                true => "may not claim it".to_owned(),
                false => "may claim it".to_owned(),
            },
            row.lease_s
                .map_or("-".to_owned(), |left| format!("{left} s left")),
        ]);
    }
    table.render()
}
