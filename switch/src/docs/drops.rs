//! `DROPS.md`: every drop reason. The remedies below the table are written by hand.

use std::fmt::Write as _;

use crosspoint_packet::{DropReason, Side};

use super::{check_generated, read, repository};

#[test]
fn every_drop_reason_is_documented() {
    let mut table = String::from("| reason | counted at | meaning |\n|---|---|---|\n");
    for reason in DropReason::ALL {
        let side = match reason.side() {
            Side::Ingress => "in",
            Side::Egress => "out",
        };
        let (label, help) = (reason.label(), reason.help());
        let _ = writeln!(table, "| [`{label}`](#{label}) | {side} | {help} |");
    }
    check_generated("DROPS.md", &table);
}

#[test]
fn every_drop_reason_has_its_advice() {
    let text = read(&repository().join("switch/docs/DROPS.md"));
    let headings = text.lines().filter_map(|line| line.strip_prefix("### "));
    let labels = DropReason::ALL.iter().map(|reason| reason.label());
    assert!(
        headings.eq(labels),
        "DROPS.md: each reason has a section, in the order of the table"
    );
}
