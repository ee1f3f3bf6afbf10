//! Security groups and sets: their meaning, the messages about mistakes, and how plans and files have them.

use std::path::Path;

use crosspoint_config::plan::{How, Plan, When};
use crosspoint_config::{Config, Group, OnChange, Peer, RuleDirection};

use crate::report::{error, parse, snapshot};

/// A guest with the group "web".
const GUEST: &str = "[[port]]\nname = \"web-1\"\ntype = \"vhost\"\nsocket = \"/run/web-1.sock\"\ngroups = [\"web\"]\n";
const GROUP: &str = "[[group]]\nname = \"web\"\n";
const UPLINK: &str =
    "[[port]]\nname = \"up0\"\ntype = \"xdp\"\ninterface = \"enp1s0f0\"\ngroups = [\"web\"]\n";

fn group(rules: &str) -> String {
    format!("{GUEST}{GROUP}rules = [{rules}]\n")
}

/// One test per case: the mistake's name, and the lines with it.
macro_rules! mistakes {
    ($($case:ident: $text:expr;)*) => {$(
        #[test]
        fn $case() {
            snapshot(stringify!($case), &error(AsRef::<str>::as_ref(&$text)));
        }
    )*};
}

mistakes! {
    group_that_is_unknown: format!("{GUEST}[[group]]\nname = \"webs\"\n");
    group_of_an_uplink: format!("{UPLINK}{GROUP}");
    group_twice: format!("{GUEST}{GROUP}{GROUP}");
    group_twice_at_a_port: format!("{}{GROUP}", GUEST.replace("[\"web\"]", "[\"web\", \"web\"]"));
    group_rule_of_an_unknown_set: format!("{}[[set]]\nname = \"admins\"\naddresses = []\n", group("{ direction = \"in\", from = { set = \"admin\" } }"));
    group_rule_of_an_unknown_group: group("{ direction = \"in\", from = { group = \"db\" } }");
    group_rule_with_the_other_side: group("{ direction = \"in\", to = \"any\" }, { direction = \"out\", from = \"any\" }");
    group_rule_without_a_direction: group("{ protocol = \"tcp\" }");
    group_rule_that_is_no_table: group("\"tcp\"");
    group_rule_of_an_unknown_protocol: group("{ direction = \"in\", protocol = \"tpc\", port = 22 }");
    group_rule_with_ports_of_no_protocol: group("{ direction = \"in\", port = 22 }, { direction = \"in\", protocol = \"icmp\", ports = [22] }");
    group_rule_with_wrong_ports: group("{ direction = \"in\", protocol = \"tcp\", ports = [\"90-80\", 65536, \"http\"] }");
    group_rule_with_no_ports: group("{ direction = \"in\", protocol = \"tcp\", ports = [] }");
    group_rule_with_two_lists_of_ports: group("{ direction = \"in\", protocol = \"tcp\", port = 22, ports = [23] }");
    group_rule_with_a_type_of_no_protocol: group("{ direction = \"in\", protocol = \"tcp\", icmp_type = 8 }, { direction = \"in\", protocol = \"icmp\", icmp_code = 8 }");
    group_rule_of_another_version: group("{ direction = \"in\", ip = 6, protocol = \"icmp\" }, { direction = \"in\", ip = 5 }, { direction = \"in\", ip = 6, from = \"192.0.2.1\" }");
    group_rule_with_wrong_addresses: group("{ direction = \"in\", from = \"anyone\" }, { direction = \"in\", from = [\"192.0.2.1/24\"] }, { direction = \"in\", from = [] }, { direction = \"in\", from = 5 }");
    group_rule_of_a_set_and_a_group: group("{ direction = \"in\", from = { set = \"a\", group = \"web\" } }, { direction = \"in\", from = {} }");
    group_rule_with_an_unknown_key: group("{ direction = \"in\", protcol = \"tcp\" }");
    group_rule_with_wrong_flags: group("{ direction = \"in\", protocol = \"tcp\", tcp_flags = \"syn,ak\" }, { direction = \"in\", protocol = \"udp\", tcp_flags = \"syn\" }, { direction = \"in\", protocol = \"tcp\", tcp_flags = \"syn,!syn\" }");
    group_rule_with_wrong_ethertypes: group("{ direction = \"in\", ethertype = 0x86dd }, { direction = \"in\", ethertype = 0x5ff }, { direction = \"in\", ethertype = 0x8100 }, { direction = \"in\", ethertype = 0x8863, protocol = \"tcp\" }");
    group_rule_with_wrong_stations: group("{ direction = \"in\", mac = [] }, { direction = \"in\", mac = [\"01:00:5e:00:00:01\"] }, { direction = \"in\", vlans = [0, \"9-5\"] }");
    querier_without_snooping: "[multicast]\nquerier = true\n";
    set_with_neither: "[[set]]\nname = \"admins\"\n";
    set_with_both: "[[set]]\nname = \"admins\"\naddresses = [\"192.0.2.1\"]\nfile = \"/nowhere/admins.txt\"\n";
    set_with_a_missing_file: "[[set]]\nname = \"admins\"\nfile = \"/nowhere/admins.txt\"\n";
    set_with_a_wrong_address: "[[set]]\nname = \"admins\"\naddresses = [\"192.0.2.1/33\"]\n";
    set_twice: "[[set]]\nname = \"admins\"\naddresses = []\n[[set]]\nname = \"admins\"\naddresses = []\n";
    connections_out_of_range: "[connections]\nmax = 10\nudp = \"0s\"\non_change = \"drop\"\n";
    connections_of_a_port_out_of_range: format!("{GUEST}connections_max = 0\n{GROUP}");
    connections_rate_out_of_range: format!("{GUEST}connections_rate = 10000001\n{GROUP}");
    connections_rate_with_a_unit: format!("{GUEST}connections_rate = \"1k\"\n{GROUP}");
}

#[test]
fn a_rule_may_name_stations_vlans_flags_and_another_type() {
    let text = group(
        "{ direction = \"out\", protocol = \"tcp\", tcp_flags = \"syn,!ack\", mac = [\"52:54:00:00:00:09\"], vlans = [7, \"9-10\"] }, \
         { direction = \"in\", ethertype = 0x8863 }",
    );
    let config = parse(&text);
    let rules = config.groups[0].effective_rules();
    let texts: Vec<String> = rules.iter().map(|rule| rule.text()).collect();
    assert_eq!(
        texts,
        [
            "out tcp flags syn,!ack to any mac 52:54:00:00:00:09 vlan 7,9,10",
            "in ethertype 0x8863 from any",
        ]
    );
    // What is written is read again as the same.
    assert_eq!(
        parse(&format!("{GUEST}{}", config.groups[0].to_toml())).groups,
        config.groups
    );
}

#[test]
fn a_port_with_more_rules_than_the_limit_is_refused_at_its_groups() {
    let rule = "{ direction = \"in\" },".repeat(2049);
    let both = GUEST.replace("[\"web\"]", "[\"web\", \"db\"]");
    let groups = format!("{GROUP}rules = [{rule}]\n[[group]]\nname = \"db\"\nrules = [{rule}]\n");
    let error = error(&format!("{both}{groups}"));
    let text = error.problems().next().expect("a problem").to_string();
    assert_eq!(
        text,
        "the groups of port \"web-1\" have 4098 rules, and may have 4096"
    );
}

#[test]
fn a_group_has_its_rules_in_one_form() {
    let rules = "{ direction = \"in\", protocol = \"tcp\", ports = [80, \"8000-8080\"], from = { set = \"admins\" } },
        { direction = \"in\", protocol = 1, icmp_type = 3, icmp_code = 4 },
        { direction = \"out\", ip = 6, to = [\"2001:db8::/32\", \"2001:db9::1\"] },
        { direction = \"out\", protocol = \"udp\", port = 53, to = \"192.0.2.53\" }";
    let set = "[[set]]\nname = \"admins\"\naddresses = [\"192.0.2.0/24\"]\n";
    let config = parse(&format!("{}{set}", group(rules)));
    let texts: Vec<String> = config.groups[0]
        .effective_rules()
        .iter()
        .map(crosspoint_config::GroupRule::text)
        .collect();
    assert_eq!(
        texts,
        [
            "in tcp 80,8000-8080 from set admins",
            "in icmp type 3 code 4 from any",
            "out ip6 to 2001:db8::/32,2001:db9::1",
            "out udp 53 to 192.0.2.53",
        ]
    );
    assert_eq!(config.ports[0].groups(), ["web"]);
    let again = Config::parse("again", &config.to_toml(|_| None));
    assert_eq!(again.expect("what is written can be read"), config);
}

#[test]
fn a_group_without_rules_allows_everything_out_and_its_own_members_in() {
    let config = parse(&format!("{GUEST}{GROUP}"));
    let rules = config.groups[0].effective_rules();
    assert_eq!(rules[0].text(), "out to any");
    assert_eq!(rules[1].text(), "in from group web");
    assert_eq!(rules[1].direction, RuleDirection::In);
    assert_eq!(rules[1].peer, Peer::Group("web".to_owned()));
    let none = parse(&group(""));
    assert_eq!(none.groups[0].effective_rules(), []);
}

#[test]
fn groups_of_a_running_port_change_one_by_one() {
    let config = parse(&format!("{GUEST}{GROUP}[[group]]\nname = \"ssh\"\n"));
    let set = |config: &Config, word: &str| {
        let changes = crosspoint_config::parse_changes(&[word.to_owned()]).expect("a change");
        config
            .with_port_set("web-1", &changes)
            .expect("a right change")
    };
    let both = set(&config, "groups+=ssh");
    assert_eq!(both.ports[0].groups(), ["web", "ssh"]);
    let plan = Plan::between(&config, &both);
    assert_eq!(plan.change[0].how, How::InPlace);
    assert_eq!(set(&both, "groups-=web").ports[0].groups(), ["ssh"]);
    let none = set(&set(&both, "groups-=web"), "groups-=ssh");
    assert!(none.ports[0].groups().is_empty());
    assert_eq!(
        set(&none, "groups=web,ssh").ports[0].groups(),
        ["web", "ssh"]
    );
    let unknown = crosspoint_config::parse_changes(&["groups+=shh".to_owned()]).expect("a change");
    let error = config
        .with_port_set("web-1", &unknown)
        .expect_err("an unknown group");
    assert!(
        error.render().contains("did you mean \"ssh\"?"),
        "{}",
        error.render()
    );
}

#[test]
fn a_sets_file_is_read_beside_the_configuration_and_a_change_of_it_is_planned() {
    let folder = tempfile::tempdir().expect("a folder");
    let main = folder.path().join("switch.toml");
    let file = folder.path().join("admins.txt");
    let text = "version = 1\n[[set]]\nname = \"admins\"\nfile = \"admins.txt\"\n";
    std::fs::write(&main, text).expect("a file");
    let load = |lines: &str| {
        std::fs::write(&file, lines).expect("a file");
        Config::load(&main)
    };
    let before = load("# admins\n192.0.2.9\n192.0.2.0/25 # office\n\n2001:db8::1\n").expect("fine");
    let shown = |config: &Config| {
        let all = config.set_addresses(&config.sets[0]).iter();
        Vec::from_iter(all.map(crosspoint_config::prefix_text))
    };
    assert_eq!(shown(&before), ["192.0.2.0/25", "192.0.2.9", "2001:db8::1"]);
    assert_eq!(before.sets[0].file.as_deref(), Some(&*file));

    let after = load("192.0.2.9\n192.0.2.10\n2001:db8::1\n").expect("fine");
    let plan = Plan::between(&before, &after);
    assert_eq!(plan.entries[0].name, "admins");
    assert_eq!(
        plan.entries[0].keys[0].text(),
        "addresses [\"192.0.2.0/25\"] -> [\"192.0.2.10\"]"
    );

    let error = load("192.0.2.9\n192.0.2.1000\n192.0.2.1/24\n").expect_err("wrong lines");
    let text = error
        .render()
        .replace(&*folder.path().to_string_lossy(), "/etc/crosspoint");
    insta::with_settings!({snapshot_path => "../snapshots", prepend_module_to_snapshot => false, omit_expression => true}, {
        insta::assert_snapshot!("config_set_with_a_wrong_line_of_its_file", text);
    });
}

#[test]
fn a_set_changes_without_its_file_being_read_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("admins.txt");
    std::fs::write(&file, "192.0.2.1\n").expect("a file");
    let lines = format!(
        "{GUEST}{GROUP}[[set]]\nname = \"admins\"\nfile = {:?}\n[[set]]\nname = \"none\"\naddresses = []\n",
        Path::new(&file)
    );
    let config = parse(&lines);
    std::fs::remove_file(&file).expect("a file");
    let net = |text: &str| crosspoint_config::parse_address(text).expect("an address");
    let (more, added) = config
        .with_set_changed("admins", &[net("192.0.2.7"), net("192.0.2.1")], true)
        .expect("a set");
    assert_eq!(added, 1);
    assert_eq!(more.set_addresses(&more.sets[0]).len(), 2);
    let (less, removed) = more
        .with_set_changed("admins", &[net("192.0.2.1")], false)
        .expect("a set");
    assert_eq!((removed, less.set_addresses(&less.sets[0]).len()), (1, 1));
    let (own, _) = less
        .with_set_changed("none", &[net("2001:db8::/32")], true)
        .expect("a set");
    // A change of a port does not read the file, either.
    let changes = crosspoint_config::parse_changes(&["groups=".to_owned()]).expect("a change");
    let changed = own.with_port_set("web-1", &changes).expect("a port");
    assert_eq!(changed.set_files, own.set_files);
    assert_eq!(changed.sets, own.sets);
    let error = own
        .with_set_changed("admin", &[], true)
        .expect_err("no set");
    assert!(error.render().contains("did you mean \"admins\"?"));
}

#[test]
fn what_of_groups_has_no_effect_is_known_beforehand() {
    let config = parse(&format!("{GUEST}{GROUP}[[group]]\nname = \"db\"\n"));
    assert_eq!(
        config.group_warnings(),
        [
            "[[group]] db is in `groups` of no port",
            "rules for group web do not match port web-1: the addresses are not known; add `addresses.ip`",
        ]
    );
    let known =
        "addresses = { mac = [\"52:54:00:00:00:01\"], ip = [\"192.0.2.1\"] }\n".to_owned() + GROUP;
    assert_eq!(
        parse(&format!("{GUEST}{known}")).group_warnings(),
        [""; 0].map(str::to_owned)
    );
}

#[test]
fn timeouts_change_at_once_and_the_size_of_the_table_at_a_restart() {
    let before = parse(&format!("{GUEST}{GROUP}"));
    let after = parse(&format!(
        "{GUEST}{GROUP}[connections]\nmax = 1000\nudp = \"10s\"\non_change = \"keep\"\n"
    ));
    assert_eq!(after.connections.on_change, OnChange::Keep);
    let plan = Plan::between(&before, &after);
    let settings: Vec<(&str, When)> = plan
        .settings
        .iter()
        .map(|setting| (setting.diff.key, setting.when))
        .collect();
    assert_eq!(
        settings,
        [
            ("connections.max", When::NeedsRestart),
            ("connections.on_change", When::AtOnce),
            ("connections.udp", When::AtOnce),
        ]
    );
}

#[test]
fn a_changed_rule_is_a_change_of_its_group() {
    let before = parse(&group("{ direction = \"out\" }"));
    let after = parse(&group(
        "{ direction = \"out\" }, { direction = \"in\", protocol = 47 }",
    ));
    let plan = Plan::between(&before, &after);
    assert_eq!(plan.entries.len(), 1);
    assert_eq!(
        (plan.entries[0].list, &*plan.entries[0].name),
        ("group", "web")
    );
    assert_eq!(plan.entries[0].keys[0].key, "rules");
    let group: &Group = &after.groups[0];
    assert_eq!(
        group.to_toml(),
        "[[group]]\nname = \"web\"\nstateful = true\nrules = [\n    { direction = \"out\" },\n    { direction = \"in\", protocol = 47 },\n]\n"
    );
}

#[test]
fn a_kept_change_of_a_set_is_in_its_own_file_or_in_the_main_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let (main, file) = (
        folder.path().join("switch.toml"),
        folder.path().join("blocked.txt"),
    );
    let text = "version = 1\n\n# Who may log in.\n[[set]]\nname = \"admins\"\naddresses = [\"192.0.2.1\"] # office\n\n[[set]]\nname = \"blocked\"\nfile = \"blocked.txt\"\n";
    std::fs::write(&main, text).expect("a file");
    std::fs::write(&file, "# by hand\n198.51.100.1\n").expect("a file");
    let running = Config::load(&main).expect("fine");
    let net = |text: &str| crosspoint_config::parse_address(text).expect("an address");
    let write = |set: usize, text: &str, is_added| {
        let set = &running.sets[set];
        crosspoint_config::prepare_set(&main, &running, set, &[net(text)], is_added)
            .and_then(crosspoint_config::PreparedSet::commit)
            .unwrap_or_else(|why| panic!("{why}"))
    };
    assert_eq!(write(0, "2001:db8::/32", true), main);
    assert_eq!(write(1, "198.51.100.1", false), file);
    let text = std::fs::read_to_string(&main).expect("a file");
    assert!(
        text.contains("# Who may log in.\n[[set]]\nname = \"admins\"\n"),
        "{text}"
    );
    let now = Config::load(&main).expect("fine");
    let shown = |set: usize| {
        let all = now.set_addresses(&now.sets[set]).iter();
        Vec::from_iter(all.map(crosspoint_config::prefix_text))
    };
    assert_eq!(shown(0), ["192.0.2.1", "2001:db8::/32"]);
    assert!(shown(1).is_empty());
    let text = std::fs::read_to_string(&file).expect("a file");
    assert_eq!(text, "# by hand\n");
}

#[test]
fn a_set_file_that_would_not_be_read_is_not_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let (main, file) = (
        folder.path().join("switch.toml"),
        folder.path().join("blocked.txt"),
    );
    let text = "version = 1\n[[set]]\nname = \"blocked\"\nfile = \"blocked.txt\"\n";
    std::fs::write(&main, text).expect("a file");
    std::fs::write(&file, "198.51.100.1\n").expect("a file");
    let running = Config::load(&main).expect("fine");
    let refused = |text: &str, told: &str| {
        std::fs::write(&file, text).expect("a file");
        let net = crosspoint_config::parse_address("192.0.2.1").expect("an address");
        let set = &running.sets[0];
        let why = crosspoint_config::prepare_set(&main, &running, set, &[net], true);
        let why = why.expect_err("it is wrong").to_string();
        assert!(why.contains(told), "{why}");
        assert_eq!(std::fs::read_to_string(&file).expect("a file"), text);
    };
    refused("# x\n198.51.100.1/8\n", "blocked.txt:2: a line must be");
    let many = |count: u32| -> String {
        let one = |n| format!("{}\n", std::net::Ipv4Addr::from_bits(n));
        (1..=count).map(one).collect()
    };
    refused(
        &many(65_536),
        "would have 65537 addresses, and may have 65536",
    );
    refused(&"#".repeat(6 << 20), "would be longer than 6291456 bytes");
}

#[test]
fn all_sets_together_have_a_bound() {
    let folder = tempfile::tempdir().expect("a folder");
    let addresses = (0..65_536).map(|n| format!("{}\n", std::net::Ipv4Addr::from_bits(n)));
    std::fs::write(
        folder.path().join("many.txt"),
        addresses.collect::<String>(),
    )
    .expect("a file");
    let main = folder.path().join("switch.toml");
    let set = |number: usize| format!("[[set]]\nname = \"s{number}\"\nfile = \"many.txt\"\n");
    let load = |count: usize| {
        let sets: String = (0..count).map(set).collect();
        std::fs::write(&main, format!("version = 1\n{sets}")).expect("a file");
        Config::load(&main)
    };
    let full = load(16).unwrap_or_else(|why| panic!("{}", why.render()));
    let net = crosspoint_config::parse_address("2001:db8::1").expect("an address");
    let why = full
        .with_set_changed("s0", &[net], true)
        .expect_err("no room");
    assert!(
        why.render().contains("has 65537 addresses") || why.render().contains("would have"),
        "{}",
        why.render()
    );
    let why = load(18).expect_err("too many").render();
    assert!(
        why.contains("all sets together have more than 1048576 addresses"),
        "{why}"
    );
    assert!(!why.contains("2 problems"), "the last is not read: {why}");
}

/// With a watched folder the configuration is read often, and sets may have files of megabytes.
#[test]
fn a_set_file_is_read_again_only_if_it_has_changed() {
    let folder = tempfile::tempdir().expect("a folder");
    let (main, file) = (
        folder.path().join("switch.toml"),
        folder.path().join("blocked.txt"),
    );
    let text = "version = 1\n[[set]]\nname = \"blocked\"\nfile = \"blocked.txt\"\n";
    std::fs::write(&main, text).expect("a file");
    std::fs::write(&file, "198.51.100.1\n").expect("a file");
    let load = || {
        let config = Config::load(&main).unwrap_or_else(|why| panic!("{}", why.render()));
        config.set_files["blocked"].clone()
    };
    let pause = || std::thread::sleep(std::time::Duration::from_millis(1100));
    // What was written a moment ago may be written again in the same step of the clock.
    assert!(!std::sync::Arc::ptr_eq(&load(), &load()));
    pause();
    let first = load();
    assert!(std::sync::Arc::ptr_eq(&first, &load()));
    // As long as before, and with the old time.
    let time = std::fs::metadata(&file)
        .and_then(|it| it.modified())
        .expect("a time");
    std::fs::write(&file, "198.51.100.2\n").expect("a file");
    let open = std::fs::File::options()
        .write(true)
        .open(&file)
        .expect("a file");
    open.set_modified(time).expect("a time");
    let second = load();
    assert_ne!(first, second);
    pause();
    // Another file in its place.
    let other = folder.path().join("new.txt");
    std::fs::write(&other, "198.51.100.3\n").expect("a file");
    std::fs::rename(&other, &file).expect("renamed");
    assert_ne!(load(), second);
    std::fs::write(&file, "nonsense\n").expect("a file");
    assert!(Config::load(&main).is_err());
}
