//! The tables of security groups, their rules, sets of addresses, and connections.

use crosspoint_model::rows::{ConnectionRow, ConnectionTable, GroupRow, RuleRow, SetRow};
use serde::Deserialize;
use serde_json::Value;

use super::format::{count, lasting_s, or_dash};
use super::render::Misshapen;
use super::table::Align::{Left, Right};
use super::table::{Table, printable};

/// The most names in a cell.
const NAMES_MAX: usize = 8;

/// A few names, and how many more there are.
fn names(all: &[String]) -> String {
    let shown = all[..all.len().min(NAMES_MAX)].join(",");
    match all.len().saturating_sub(NAMES_MAX) {
        0 if all.is_empty() => "-".to_owned(),
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

pub(super) fn groups(rows: &[GroupRow]) -> String {
    if rows.is_empty() {
        return "There are no security groups.\n".to_owned();
    }
    let mut table = Table::new([
        ("GROUP", Left),
        ("STATEFUL", Left),
        ("RULES", Right),
        ("CONNECTIONS", Right),
        ("PORTS", Left),
    ]);
    for row in rows {
        table.add([
            row.name.clone(),
            if row.stateful { "yes" } else { "no" }.to_owned(),
            row.rules.to_string(),
            count(row.connections),
            names(&row.ports),
        ]);
    }
    table.render()
}

pub(super) fn rules(rows: &[RuleRow]) -> String {
    if rows.is_empty() {
        return "There are no rules.\n".to_owned();
    }
    let mut table = Table::new([("GROUP", Left), ("HITS", Right), ("RULE", Left)]);
    for row in rows {
        table.add([row.group.clone(), count(row.hits), row.text.clone()]);
    }
    table.render()
}

pub(super) fn sets(rows: &[SetRow]) -> String {
    if rows.is_empty() {
        return "There are no sets.\n".to_owned();
    }
    let mut table = Table::new([
        ("SET", Left),
        ("ADDRESSES", Right),
        ("GROUPS", Left),
        ("FILE", Left),
    ]);
    for row in rows {
        table.add([
            row.name.clone(),
            row.addresses.len().to_string(),
            names(&row.groups),
            or_dash(row.file.clone(), |file| file),
        ]);
    }
    table.render()
}

/// Renders the addresses of the sets in the JSON of the topic `sets`: a line for each.
pub fn render_set(value: &Value) -> Result<String, Misshapen> {
    let topic = "sets";
    let rows = Vec::<SetRow>::deserialize(value).map_err(|cause| Misshapen { topic, cause })?;
    let addresses = rows.iter().flat_map(|row| &row.addresses);
    let lines: String = addresses.map(|one| printable(one) + "\n").collect();
    Ok(match lines.is_empty() {
        true => "There are no addresses in it.\n".to_owned(),
        false => lines,
    })
}

pub(super) fn connections(table: &ConnectionTable) -> String {
    let text = format!(
        "{} connections; there is room for {}.\n",
        table.used, table.capacity
    );
    if table.connections.is_empty() {
        return text;
    }
    let more = table.found.saturating_sub(table.connections.len());
    let more = match more {
        0 => String::new(),
        more => format!("and {more} more; --limit shows more\n"),
    };
    text + &connection_rows(&table.connections) + &more
}

fn connection_rows(rows: &[ConnectionRow]) -> String {
    let mut table = Table::new([
        ("PORT", Left),
        ("DIR", Left),
        ("PROTO", Left),
        ("SOURCE", Left),
        ("DESTINATION", Left),
        ("STATE", Left),
        ("IDLE", Right),
    ]);
    for row in rows {
        table.add([
            row.port.clone(),
            row.direction.clone(),
            row.protocol.clone(),
            end(&row.source, row.source_port),
            end(&row.destination, row.destination_port),
            row.state.clone(),
            lasting_s(u64::from(row.idle_s)),
        ]);
    }
    table.render()
}

/// An address and its port, if it has one.
fn end(address: &str, port: u16) -> String {
    match (port, address.contains(':')) {
        (0, _) => address.to_owned(),
        (port, true) => format!("[{address}]:{port}"),
        (port, false) => format!("{address}:{port}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_of_connections_tells_how_many_it_leaves_out() {
        let row = ConnectionRow {
            port: "web-1".to_owned(),
            direction: "in".to_owned(),
            protocol: "tcp".to_owned(),
            source: "2001:db8::1".to_owned(),
            source_port: 40000,
            destination: "192.0.2.1".to_owned(),
            destination_port: 0,
            state: "established".to_owned(),
            idle_s: 3,
        };
        let text = connections(&ConnectionTable {
            used: 12,
            capacity: 1024,
            found: 5,
            connections: vec![row],
        });
        assert!(text.starts_with("12 connections; there is room for 1024.\n"));
        assert!(text.contains("[2001:db8::1]:40000  192.0.2.1"), "{text}");
        assert!(text.ends_with("and 4 more; --limit shows more\n"), "{text}");
    }
}
