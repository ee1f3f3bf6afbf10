//! Bridges: their meaning, the messages about mistakes, and how plans and files have them.

use crosspoint_config::plan::{How, Plan};
use crosspoint_config::{BridgeTag, Config, TagProtocol};

use crate::report::{error, parse, snapshot};

const BRIDGES: &str =
    "[[bridge]]\nname = \"tenant-a\"\n[[bridge]]\nname = \"tenant-b\"\nfdb_capacity = 57344\n";

fn guest(name: &str, keys: &str) -> String {
    format!(
        "[[port]]\nname = \"{name}\"\ntype = \"vhost\"\nsocket = \"/run/{name}.sock\"\n{keys}\n"
    )
}

fn uplink(name: &str, keys: &str) -> String {
    format!("[[port]]\nname = \"{name}\"\ntype = \"xdp\"\ninterface = \"{name}\"\n{keys}\n")
}

/// One test per case: the mistake's name, and the lines with it.
macro_rules! mistakes {
    ($($case:ident: $text:expr;)*) => {$(
        #[test]
        fn $case() {
            snapshot(stringify!($case), &error(&format!("{BRIDGES}{}", $text)));
        }
    )*};
}

mistakes! {
    bridge_that_is_unknown: guest("web-1", "bridge = \"tenant-c\"") + &uplink("up0", "bridges = [{ vlan = 1, bridge = \"tenant\" }]");
    bridge_with_the_name_of_the_default_one: "[[bridge]]\nname = \"default\"\n";
    bridge_twice: "[[bridge]]\nname = \"tenant-a\"\n";
    bridge_tags_of_a_guest: guest("web-1", "bridges = [{ vlan = 1, bridge = \"tenant-a\" }]");
    bridge_tags_that_are_the_same: uplink("up0", "bridges = [{ vlan = 7, bridge = \"tenant-a\" }, { vlan = 7, bridge = \"tenant-b\" }]");
    bridge_with_two_tags: uplink("up0", "bridges = [{ vlan = 7, bridge = \"tenant-a\" }, { vlan = 8, bridge = \"tenant-a\" }]");
    bridge_with_a_tag_on_each_uplink: uplink("up0", "bridges = [{ vlan = 7, bridge = \"tenant-a\" }]") + &uplink("up1", "bridges = [{ vlan = 8, bridge = \"tenant-a\" }]");
    bridge_tag_of_a_mirror: uplink("up0", "bridges = [{ vlan = 7, bridge = \"tenant-a\" }]") + "[[mirror]]\nname = \"ids\"\nto = \"up0\"\nto_vlan = 7\n";
    bridge_tag_of_the_default_one: uplink("up0", "bridge = \"tenant-a\"\nbridges = [{ vlan = 7, bridge = \"default\" }]");
    bridge_that_is_the_ports_own: uplink("up0", "bridge = \"tenant-a\"\nbridges = [{ vlan = 7, bridge = \"tenant-a\" }]");
    bridge_tag_of_an_own_vlan: uplink("up0", "vlan = { trunk = [\"1-9\"] }\nbridges = [{ vlan = 7, bridge = \"tenant-a\" }]");
    bridge_tag_of_an_unknown_protocol: uplink("up0", "bridges = [{ vlan = 7, bridge = \"tenant-a\", protocol = \"qinq\" }, { vlan = 4095, bridge = \"tenant-b\" }, {}]");
    static_address_of_a_bridge_that_its_port_is_not_in: guest("web-1", "bridge = \"tenant-a\"") + "[[fdb]]\nmac = \"52:54:00:00:00:01\"\nport = \"web-1\"\nbridge = \"tenant-b\"\n";
    address_of_two_ports_of_a_bridge: guest("web-1", "bridge = \"tenant-a\"\naddresses = { mac = [\"52:54:00:00:00:01\"] }") + &guest("web-2", "bridge = \"tenant-a\"\naddresses = { mac = [\"52:54:00:00:00:01\"] }");
}

#[test]
fn tenants_may_have_the_same_addresses_and_uplinks_have_a_tag_for_each() {
    let addresses = "addresses = { mac = [\"52:54:00:00:00:01\"], ip = [\"192.0.2.1\"] }\n";
    let tags = "bridges = [{ vlan = 100, bridge = \"tenant-a\" }, { vlan = 100, bridge = \"tenant-b\", protocol = \"802.1ad\" }]";
    let text = [
        BRIDGES.to_owned(),
        guest("a", &format!("bridge = \"tenant-a\"\n{addresses}")),
        guest("b", &format!("bridge = \"tenant-b\"\n{addresses}")),
        guest("c", addresses),
        uplink("up0", tags),
        // Static addresses of two bridges, and one of a bridge that the uplink has behind a tag.
        "[[fdb]]\nmac = \"52:54:00:00:00:02\"\nport = \"a\"\n".to_owned(),
        "[[fdb]]\nmac = \"52:54:00:00:00:02\"\nport = \"up0\"\nbridge = \"tenant-b\"\n".to_owned(),
    ]
    .concat();
    let config = parse(&text);
    let [a, b, c, up0] = &config.ports[..] else {
        panic!("four ports");
    };
    assert_eq!(
        [&*a.bridge, &b.bridge, &c.bridge],
        ["tenant-a", "tenant-b", "default"]
    );
    assert_eq!(config.bridges[1].fdb_capacity, 57_344);
    let tag = |bridge: &str, protocol| BridgeTag {
        vlan: 100,
        bridge: bridge.to_owned(),
        protocol,
    };
    let expected = [
        tag("tenant-a", TagProtocol::Vlan),
        tag("tenant-b", TagProtocol::Service),
    ];
    assert_eq!(up0.bridge_tags(), expected);
    assert!(up0.has_untagged_only() && !up0.carries_in("default", 5));
    assert!(up0.carries_in("default", 0) && up0.carries_in("tenant-b", 5));
    assert!(config.bridge_warnings().is_empty());
    assert_eq!(
        config
            .fdb
            .iter()
            .map(|entry| config.place_of(entry))
            .collect::<Vec<_>>(),
        [
            Some(("tenant-a".to_owned(), 0)),
            Some(("tenant-b".to_owned(), 0))
        ]
    );
    let written = config.to_toml(|_| None);
    let again = Config::parse("switch.toml", &written).expect("it is right");
    assert_eq!(again, config);

    let unused = parse(BRIDGES);
    assert_eq!(unused.bridge_warnings().len(), 2);
}

#[test]
fn a_port_changes_its_bridge_in_place() {
    let text = |bridge: &str, tags: &str| {
        parse(
            &[
                BRIDGES,
                &guest("web-1", &format!("bridge = \"{bridge}\"")),
                &uplink("up0", tags),
            ]
            .concat(),
        )
    };
    let before = text("tenant-a", "");
    let after = text(
        "tenant-b",
        "bridges = [{ vlan = 7, bridge = \"tenant-a\" }]",
    );
    let plan = Plan::between(&before, &after);
    let changes: Vec<_> = plan
        .change
        .iter()
        .map(|diff| (&*diff.name, diff.how))
        .collect();
    assert_eq!(changes, [("web-1", How::InPlace), ("up0", How::InPlace)]);
}
