//! `METRICS.md`: every metric.

use std::fmt::Write as _;

use crosspoint_daemon::metrics::families;

use super::{cell, check_generated};

/// Endings of names, and the unit that each implies. The first match counts.
const UNITS: [(&str, &str); 6] = [
    ("_seconds", "seconds"),
    ("_bytes_total", "bytes"),
    ("_cycles_total", "cycles"),
    ("_hertz", "hertz"),
    ("_frames", "frames"),
    ("_packets_total", "frames"),
];

#[test]
fn every_metric_is_documented() {
    let mut table = String::from("| metric | type | labels | unit | |\n|---|---|---|---|---|\n");
    for family in families() {
        let kind = format!("{:?}", family.kind).to_lowercase();
        let unit = UNITS.iter().find(|(end, _)| family.name.ends_with(end));
        let unit = unit.map_or("", |(_, unit)| unit);
        let labels = family.labels.join(", ");
        let _ = writeln!(
            table,
            "| `{}` | {kind} | {labels} | {unit} | {} |",
            family.name,
            cell(family.help)
        );
    }
    check_generated("METRICS.md", &table);
}
