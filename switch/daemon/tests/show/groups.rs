//! Security groups of the status for tests.

use crosspoint_model::rows::{
    ConnectionRow, ConnectionTable, GroupRow, GroupTables, RuleRow, SetRow,
};

/// A group with two rules, on one port, and a set.
pub fn tables() -> GroupTables {
    let rule = |rule, text: &str, hits| RuleRow {
        group: "web".into(),
        rule,
        text: text.into(),
        hits,
    };
    GroupTables {
        groups: vec![GroupRow {
            name: "web".into(),
            stateful: true,
            rules: 2,
            ports: vec!["web-1".into()],
            connections: 1234,
        }],
        rules: vec![
            rule(0, "in tcp 80,443 from any", 1_234_567),
            rule(1, "in tcp 22 from set admins", 3),
        ],
        sets: vec![SetRow {
            name: "admins".into(),
            file: Some("/etc/crosspoint/admins.txt".into()),
            addresses: vec!["192.0.2.0/24".into(), "2001:db8::1".into()],
            groups: vec!["web".into()],
        }],
    }
}

/// A table with more connections than are shown.
pub fn connections() -> ConnectionTable {
    ConnectionTable {
        used: 1234,
        capacity: 524_288,
        found: 2,
        connections: vec![ConnectionRow {
            port: "web-1".into(),
            direction: "in".into(),
            protocol: "tcp".into(),
            source: "198.51.100.7".into(),
            source_port: 40_000,
            destination: "192.0.2.10".into(),
            destination_port: 443,
            state: "established".into(),
            idle_s: 5,
        }],
    }
}
