//! What runs is written to the files, and nothing else in them changes.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::PathBuf;

use crosspoint_config::{
    Config, FileChanges, KeepError, Port, StaticEntry, parse_changes, parse_mac,
};
use proptest::prelude::*;
use proptest::sample::select;

use crate::folder::{Files, MAIN, guest, names};

/// A main file that an administrator wrote, without `ports_dir`.
const BY_HAND: &str = r#"# The switch of rack 7.
version = 1

[workers]
cores = [1, 2]   # isolated

# Guests of the shop.

# The shop's front.
[[port]]
name = "web-1"   # do not rename
type = "vhost"
socket = "/run/web-1.sock"
  weight = 2     # a heavy one
vlan = { access = 100 }  # the shop's VLAN

# Its database.
[[port]]
type = "vhost"
name = "db-1"
socket = "/run/db-1.sock"
vlan.trunk = [
    100,    # the shop
    200,    # backups
]

[[port]]
name = "up0"
type = "xdp"
interface = "eno1"
  [port.limit]
  in = { rate = "1Gbit/s" }   # by contract

[[fdb]]   # the router
mac = "52:54:00:00:00:01"
port = "up0"
# The end.
"#;

/// The running switch, and the ports of its files as it has read them.
struct Switch {
    files: Files,
    running: Config,
    known: Vec<Port>,
}

impl Switch {
    fn new(main: &str, files: &[(&str, &str)]) -> Switch {
        let files = Files::new(main, files);
        let running = files
            .load()
            .unwrap_or_else(|error| panic!("{}", error.render()));
        let known = running.ports.clone();
        Switch {
            files,
            running,
            known,
        }
    }

    /// Changes a running port, as `crosspoint port set` does.
    fn set(&mut self, name: &str, words: &[&str]) {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let set = parse_changes(&words).expect("a change");
        let changed = self.running.with_port_set(name, &set);
        self.running = changed.unwrap_or_else(|error| panic!("{}", error.render()));
    }

    fn changes(
        &self,
        change: impl FnOnce(&mut FileChanges<'_>) -> Result<(), KeepError>,
    ) -> Result<(), KeepError> {
        let main = self.files.main();
        let mut changes = FileChanges::begin(&main, &self.running)?;
        change(&mut changes)?;
        changes.prepare()?.commit()
    }

    fn keep(&self, name: &str) -> Result<PathBuf, KeepError> {
        let of = |ports: &[Port]| ports.iter().find(|port| port.name == name).cloned();
        let mut path = PathBuf::new();
        let port = of(&self.running.ports).expect("it runs");
        self.changes(|changes| {
            path = changes.set_port(of(&self.known).as_ref(), &port)?;
            Ok(())
        })?;
        Ok(path)
    }

    fn remove(&self, name: &str) -> Result<(), KeepError> {
        self.changes(|changes| changes.remove_port(name).map(drop))
    }

    fn text(&self) -> String {
        fs::read_to_string(self.files.main()).expect("it is there")
    }

    fn loaded(&self) -> Config {
        let loaded = self.files.load();
        loaded.unwrap_or_else(|error| panic!("{}\n{}", error.render(), self.text()))
    }
}

/// The lines that are new, and those that are gone.
fn differences(before: &str, after: &str) -> (Vec<String>, Vec<String>) {
    let lines = |text: &str, other: &str| {
        let other: Vec<&str> = other.split('\n').collect();
        let lines = text.split('\n').filter(|line| !other.contains(line));
        lines.map(str::to_owned).collect()
    };
    (lines(after, before), lines(before, after))
}

#[test]
fn a_port_of_the_main_file_is_changed_there_and_every_other_line_stays() {
    let mut switch = Switch::new(BY_HAND, &[]);
    switch.set("web-1", &["weight=5", "vlan.access=300", "admin=down"]);
    switch.set(
        "db-1",
        &["vlan.trunk+=300", "vlan.trunk-=200", "vlan.native=7"],
    );
    switch.set("up0", &["limit.in.rate=2Gbit/s", "limit.in.packets=5k/s"]);
    for name in ["web-1", "db-1", "up0"] {
        assert_eq!(switch.keep(name).expect(name), switch.files.main());
    }
    assert_eq!(switch.loaded(), switch.running);
    let text = switch.text();
    insta::with_settings!({snapshot_path => "../snapshots"}, { insta::assert_snapshot!(text); });
    let (_, gone) = differences(BY_HAND, &text);
    let changed = ["weight = 2", "access = 100", "200,", "rate = \"1Gbit"];
    assert!(
        gone.iter()
            .all(|line| changed.iter().any(|known| line.contains(known))),
        "{gone:?}"
    );
    // Nothing differs any more, so nothing is written.
    let inode = || {
        fs::metadata(switch.files.main())
            .expect("it is there")
            .ino()
    };
    let before = inode();
    switch.keep("web-1").expect("it is there");
    assert_eq!(inode(), before);
}

#[test]
fn a_removed_port_leaves_the_files_with_the_comments_directly_above_it() {
    let switch = Switch::new(BY_HAND, &[]);
    switch.remove("web-1").expect("it is there");
    let text = switch.text();
    let (new, gone) = differences(BY_HAND, &text);
    assert_eq!(new, [""; 0]);
    assert_eq!(gone.len(), 5, "{gone:?}");
    assert!(gone.contains(&"# The shop's front.".to_owned()));
    assert!(
        text.contains("# Guests of the shop.\n\n# Its database.\n[[port]]"),
        "{text}"
    );
    assert_eq!(names(&switch.loaded()), ["db-1", "up0"]);
    switch.remove("db-1").expect("it is there");
    assert_eq!(names(&switch.loaded()), ["up0"]);
    // The address would be on no port.
    let why = switch.remove("up0").expect_err("it is needed");
    assert!(
        matches!(&why, KeepError::Refused { problem } if problem.contains("up0")),
        "{why}"
    );
    assert_eq!(names(&switch.loaded()), ["up0"]);
    assert!(matches!(
        switch.remove("db-1"),
        Err(KeepError::Nowhere { .. })
    ));
}

#[test]
fn a_new_port_gets_a_file_of_its_own_or_a_table_in_the_main_file() {
    let add = |switch: &mut Switch| {
        let words = ["name=new", "type=vhost", "socket=/run/new", "weight=3"].map(str::to_owned);
        let table = crosspoint_config::parse_assignments(&words).expect("a port");
        switch.running = switch.running.with_port(&table).expect("a port");
    };
    let mut switch = Switch::new(BY_HAND, &[]);
    add(&mut switch);
    assert_eq!(switch.keep("new").expect("it is new"), switch.files.main());
    assert_eq!(switch.loaded(), switch.running);
    let table = "\n[[port]]\nname = \"new\"\ntype = \"vhost\"\nsocket = \"/run/new\"\nweight = 3\n";
    assert_eq!(switch.text(), [BY_HAND, table].concat());

    let mut switch = Switch::new(MAIN, &[]);
    add(&mut switch);
    let path = switch.keep("new").expect("it is new");
    assert_eq!(path, switch.files.folder().join("new.toml"));
    let mode = fs::metadata(&path).expect("it is there").mode();
    assert_eq!(mode & 0o777, 0o644);
    assert_eq!(switch.loaded(), switch.running);
    // A version that does not know a key can read it, as long as that key was not set.
    assert!(
        fs::read_to_string(&path)
            .expect("it is there")
            .ends_with(table)
    );
    switch.known = switch.loaded().ports;
    switch.set("new", &["mac_limit=4"]);
    switch.keep("new").expect("it has a file");
    assert_eq!(switch.loaded(), switch.running);
    switch.remove("new").expect("it has a file");
    assert!(!path.exists());
    assert_eq!(
        fs::read_dir(switch.files.folder())
            .expect("it is there")
            .count(),
        0
    );

    switch.files.write("new.toml", &guest("other", "other"));
    assert!(matches!(
        switch.keep("new"),
        Err(KeepError::InTheWay { .. })
    ));
}

#[test]
fn a_file_with_several_ports_keeps_the_others() {
    let two = ["# A\n", &guest("a", "a"), "\n# B\n", &guest("b", "b")].concat();
    let mut switch = Switch::new(MAIN, &[("two.toml", &two)]);
    switch.set("a", &["weight=9"]);
    switch.files.write("wrong.toml", "[[port]");
    let path = switch.keep("a").expect("it can be changed");
    let text = || fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text(), two.replace("/run/a\"\n", "/run/a\"\nweight = 9\n"));
    switch.remove("a").expect("it can be removed");
    assert_eq!(text(), ["# B\n", &guest("b", "b")].concat());
    switch.remove("b").expect("it can be removed");
    assert!(!path.exists());
}

#[test]
fn what_others_have_changed_is_not_overwritten() {
    let mut switch = Switch::new(BY_HAND, &[]);
    switch.set("web-1", &["weight=5"]);
    let edited = BY_HAND.replace("weight = 2 ", "weight = 3 ");
    fs::write(switch.files.main(), &edited).expect("it is ours");
    let why = switch.keep("web-1").expect_err("it was edited");
    assert!(matches!(&why, KeepError::Changed { .. }), "{why}");
    // The change of another port does not matter.
    switch.set("db-1", &["weight=4"]);
    switch.keep("db-1").expect("it was not edited");
    assert!(switch.text().contains("weight = 3 "));

    let edited = BY_HAND.replace("[workers]", "[worker]");
    fs::write(switch.files.main(), &edited).expect("it is ours");
    let why = switch.keep("web-1").expect_err("it has a mistake");
    assert!(
        matches!(&why, KeepError::Mistake { problem, .. } if problem.contains("worker")),
        "{why}"
    );
    assert_eq!(switch.text(), edited);

    let edited = ["ports_dir = \"ports.d\"\n", BY_HAND].concat();
    fs::write(switch.files.main(), &edited).expect("it is ours");
    let why = switch.keep("web-1").expect_err("it has another folder");
    assert!(matches!(&why, KeepError::OtherFolder { .. }), "{why}");
    assert_eq!(switch.text(), edited);
}

#[test]
fn a_kept_file_has_its_mode_and_its_owner_and_stays_behind_its_link() {
    let mut switch = Switch::new(BY_HAND, &[]);
    let (link, target) = (switch.files.main(), switch.files.folder().join("real"));
    fs::rename(&link, &target).expect("both are ours");
    symlink(&target, &link).expect("it is free");
    fs::set_permissions(&target, fs::Permissions::from_mode(0o640)).expect("it is ours");
    let is_root = chown(&target, Some(12), Some(34)).is_ok();
    switch.set("web-1", &["weight=5"]);
    switch.keep("web-1").expect("it can be written");
    assert_eq!(fs::read_link(&link).expect("a link"), target);
    let now = fs::metadata(&target).expect("it is there");
    assert_eq!(now.mode() & 0o7777, 0o640);
    assert!(!is_root || (now.uid(), now.gid()) == (12, 34));
    assert_eq!(switch.loaded(), switch.running);
    assert_eq!(
        fs::read_dir(switch.files.folder())
            .expect("it is there")
            .count(),
        1
    );
}

#[test]
fn line_ends_and_a_byte_order_mark_stay() {
    let text = ["\u{feff}", &BY_HAND.replace('\n', "\r\n")].concat();
    let mut switch = Switch::new(&text, &[]);
    switch.set("web-1", &["weight=5", "mac_limit=3"]);
    switch.keep("web-1").expect("it can be written");
    let changed = switch
        .text()
        .replace("mac_limit = 3\r\n", "")
        .replace("weight = 5", "weight = 2");
    assert_eq!(changed, text);
    switch.remove("db-1").expect("it is there");
    assert_eq!(names(&switch.loaded()), ["web-1", "up0"]);
    // With both kinds, it is not known which one a new line should have.
    let mixed = BY_HAND.replacen('\n', "\r\n", 3);
    let mut switch = Switch::new(&mixed, &[]);
    switch.set("web-1", &["weight=5"]);
    assert!(matches!(
        switch.keep("web-1"),
        Err(KeepError::NotAlone { .. })
    ));
    assert_eq!(switch.text(), mixed);
}

#[test]
fn the_comments_in_a_list_stay_beside_their_items() {
    for (list, word, changed) in [
        ("[1, 2, 3]", "vlan.trunk-=2", "[1, 3]"),
        ("[ 1, 2 ] # all", "vlan.trunk-=1", "[ 2 ] # all"),
        ("[1] # all", "vlan.trunk+=2", "[1, 2] # all"),
        (
            "[\n # both\n 1, # one\n 2, # two\n]",
            "vlan.trunk-=1",
            "[\n 2, # two\n]",
        ),
        (
            "[\n 1, # one\n 2 # two\n]",
            "vlan.trunk-=2",
            "[\n 1 # one\n]",
        ),
        (
            "[\n 1, # one\n 2 # two\n]",
            "vlan.trunk+=4",
            "[\n 1, # one\n 2, # two\n 4\n]",
        ),
        (
            "[\n 1, # one\n 3, # three\n]",
            "vlan.trunk+=4",
            "[\n 1, # one\n 3, # three\n 4,\n]",
        ),
    ] {
        let main = |list: &str| {
            let table = guest("a", "a");
            format!("version = 1\n{table}vlan.native = 9\nvlan.trunk = {list}\n# The end.\n")
        };
        let mut switch = Switch::new(&main(list), &[]);
        switch.set("a", &[word]);
        switch.keep("a").expect("it can be written");
        assert_eq!(switch.text(), main(changed));
        assert_eq!(switch.loaded(), switch.running);
    }
}

#[test]
fn ports_in_one_list_are_changed_too() {
    let list = "version = 1\nport = [\n  { name = \"a\", type = \"vhost\", socket = \"/a\" }, # first\n  { name = \"b\", type = \"vhost\", socket = \"/b\" }, # second\n]\n";
    let mut switch = Switch::new(list, &[]);
    switch.set("a", &["weight=2"]);
    switch.keep("a").expect("it can be written");
    assert_eq!(
        switch.text(),
        list.replace("\"/a\" }", "\"/a\", weight = 2 }")
    );
    switch.remove("a").expect("it is there");
    assert_eq!(names(&switch.loaded()), ["b"]);
}

#[test]
fn a_port_whose_keys_are_spread_over_the_file_is_not_removed() {
    let spread = [
        "version = 1\n",
        &guest("a", "a"),
        "[workers]\n[port.vlan]\naccess = 1\n",
    ]
    .concat();
    let switch = Switch::new(&spread, &[]);
    assert!(matches!(
        switch.remove("a"),
        Err(KeepError::NotAlone { .. })
    ));
    assert_eq!(switch.text(), spread);
}

#[test]
fn static_addresses_are_changed_where_they_are() {
    let entry = |mac: &str, vlan, port: &str| StaticEntry {
        bridge: None,
        mac: parse_mac(mac).expect("an address"),
        vlan,
        port: port.to_owned(),
    };
    let (first, second) = ("52:54:00:00:00:01", "52:54:00:00:00:02");
    let switch = Switch::new(BY_HAND, &[]);
    let set = |entry: StaticEntry| switch.changes(|changes| changes.set_static(&entry).map(drop));
    set(entry(first, Some(0), "up0")).expect("nothing to do");
    assert_eq!(switch.text(), BY_HAND);
    set(entry(first, Some(100), "web-1")).expect("another VLAN");
    set(entry(second, Some(100), "web-1")).expect("another address");
    let fdb = |switch: &Switch| -> Vec<String> {
        let fdb = switch.loaded().fdb;
        fdb.iter()
            .map(|entry| format!("{} {}", entry.name(), entry.port))
            .collect()
    };
    assert_eq!(
        fdb(&switch),
        [
            "52:54:00:00:00:01 up0",
            "52:54:00:00:00:01 vlan 100 web-1",
            "52:54:00:00:00:02 vlan 100 web-1"
        ]
    );
    set(entry(second, Some(100), "db-1")).expect("another port");
    assert!(switch.text().starts_with(BY_HAND));
    assert_eq!(fdb(&switch)[2], "52:54:00:00:00:02 vlan 100 db-1");
    let remove = |mac: &str, vlan| {
        let mac = parse_mac(mac).expect("an address");
        switch.changes(|changes| changes.remove_statics(mac, vlan))
    };
    remove(first, (None, None)).expect("it is there twice");
    assert_eq!(fdb(&switch), ["52:54:00:00:00:02 vlan 100 db-1"]);
    assert!(matches!(
        remove(first, (None, None)),
        Err(KeepError::StaticNowhere { .. })
    ));
    remove(second, (None, Some(100))).expect("it is there");
    assert!(switch.text().ends_with("# The end.\n"), "{}", switch.text());

    // With a folder, new ones are in a file there.
    let switch = Switch::new(&[MAIN, &guest("a", "a")].concat(), &[]);
    let own = switch.files.folder().join("fdb.toml");
    let set = |entry: StaticEntry| switch.changes(|changes| changes.set_static(&entry).map(drop));
    set(entry(first, Some(0), "a")).expect("it is new");
    set(entry(second, Some(0), "later")).expect("its port may come");
    assert_eq!(switch.loaded().fdb.len(), 2);
    for mac in [first, second] {
        let mac = parse_mac(mac).expect("an address");
        switch
            .changes(|changes| changes.remove_statics(mac, (None, None)))
            .expect("it is there");
    }
    assert!(!own.exists());
}

/// Tables as people write them, and which port each has.
const TABLES: [(&str, &str); 6] = [
    (
        "a",
        "[[port]]\nname = \"a\"\ntype = \"vhost\"\nsocket = \"/run/a\"\n",
    ),
    (
        "b",
        "# the second\n[[port]] # here\n\"name\" = 'b'\ntype=\"vhost\"\nsocket=\"/run/b\"\nvlan.trunk = [1, 2,\n 3]\n\n# its weight\nweight=7 # seven\n",
    ),
    (
        "c",
        "[[port]]\nname = \"c\"\ntype = \"vhost\"\nsocket = \"/run/c\"\nvlan = {access=5}\n[port.limit.out]\nrate = \"1Gbit/s\"\n[port.storm]\nbroadcast = 9\n",
    ),
    (
        "d",
        "\t[[port]]\n\tname = \"d\"\n\ttype = \"vhost\"\n\tsocket = \"/run/d\"\n\tlimit = { in = { rate = \"1Gbit/s\" }, out = { packets = \"5k/s\" } }\n",
    ),
    (
        "e",
        "[[port]]\ntype = \"xdp\"\ninterface = \"eno1\"\nname = \"e\"\nqueues = [ 0, 1 ] # two\nadmin = \"down\"",
    ),
    (
        "f",
        "[[port]]\nname = \"f\"\ntype = \"xdp\"\ninterface = \"eno2\"\naddresses = { mac = [\n  \"52:54:00:00:00:09\", # nine\n] }\n",
    ),
];
/// Other parts of a file.
const BETWEEN: [&str; 5] = [
    "",
    "# a remark\n",
    "\n# a remark\n\n\n",
    "[[fdb]]\nmac = \"52:54:00:00:00:01\"\nport = \"a\"\n",
    "   \n[log]\nlevel = 'warn' # less\n",
];
const CHANGES: [&str; 16] = [
    "weight=3",
    "weight=7",
    "weight=",
    "mac_limit=5",
    "admin=down",
    "admin=up",
    "vlan={access=9}",
    "vlan={trunk=[1,2,9],native=4}",
    "vlan=",
    "limit.out.rate=3Gbit/s",
    "limit.in.rate=",
    "limit=",
    "storm.broadcast=77",
    "forward_control=stp,lldp",
    "addresses.mac+=52:54:00:00:00:0a",
    "loop_protect={}",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is set at whatever ports: the file then says what runs, and all text outside of these ports is the same.
    #[test]
    fn a_kept_file_is_what_runs_and_all_else_in_it_stays(
        tables in proptest::sample::subsequence(&TABLES[..], 1..=TABLES.len()).prop_shuffle(),
        between in proptest::collection::vec(select(&BETWEEN[..]), TABLES.len()),
        sets in proptest::collection::vec((0..TABLES.len(), select(&CHANGES[..])), 1..6),
        is_kept_at_once in any::<bool>(),
    ) {
        let mut pieces = vec!["version = 1\n"];
        for (at, (_, table)) in tables.iter().enumerate() {
            let is_new = |piece: &&&str| !pieces.contains(*piece) || !piece.contains('[');
            let has_port = |piece: &&&str| !piece.contains("fdb") || tables.iter().any(|(name, _)| *name == "a");
            pieces.extend(Some(&between[at]).filter(is_new).filter(has_port).copied());
            pieces.push(table);
            pieces.push("\n");
        }
        let main: String = pieces.concat();
        let mut switch = Switch::new(&main, &[]);
        let mut changed: Vec<&str> = Vec::new();
        for (at, word) in sets {
            let (name, _) = tables[at % tables.len()];
            let set = parse_changes(&[word.to_owned()]).expect("a change");
            // Not every change fits every port.
            let Ok(config) = switch.running.with_port_set(name, &set) else {
                continue;
            };
            switch.running = config;
            changed.push(name);
            if is_kept_at_once {
                switch.keep(name).map_err(|why| TestCaseError::fail(format!("{why}: {word}\n{main}")))?;
                switch.known = switch.loaded().ports;
            }
        }
        for name in &changed {
            switch.keep(name).map_err(|why| TestCaseError::fail(format!("{why}\n{main}")))?;
            switch.known = switch.loaded().ports;
        }
        let text = switch.text();
        prop_assert_eq!(switch.loaded(), switch.running.clone(), "{}", text);
        let mut rest = &*text;
        for piece in pieces.iter().filter(|piece| !piece.trim().is_empty()) {
            let is_changed = tables.iter().any(|(name, table)| table == piece && changed.contains(name));
            if is_changed {
                continue;
            }
            let at = rest.find(piece);
            prop_assert!(at.is_some(), "{piece:?} is not in\n{text}\nwhich was\n{main}");
            rest = &rest[at.unwrap_or_default() + piece.len()..];
        }
        // Removing them again leaves the others.
        for name in changed {
            if switch.running.without_port(name).is_ok() && (name != "a" || !text.contains("fdb")) {
                switch.running = switch.running.without_port(name).expect("it is there");
                switch.remove(name).map_err(|why| TestCaseError::fail(format!("{why}\n{text}")))?;
            }
        }
        prop_assert_eq!(switch.loaded(), switch.running.clone());
    }

    /// No text makes a change panic, or write what cannot be read.
    #[test]
    fn damaged_files_are_changed_or_refused(
        at in 0..BY_HAND.len(), len in 0..20usize, piece in "[\\[\\]\\{\\}\"'#=\n\r a-z.]{0,5}",
    ) {
        let mut switch = Switch::new(BY_HAND, &[]);
        switch.set("web-1", &["weight=5", "vlan.access=7"]);
        let end = (at + len).min(BY_HAND.len());
        let text = [&BY_HAND[..at], &piece, &BY_HAND[end..]].concat();
        fs::write(switch.files.main(), &text).expect("it is ours");
        let was_right = switch.files.load().is_ok();
        if switch.keep("web-1").is_ok() {
            let port = |config: &Config| config.ports.iter().find(|port| port.name == "web-1").cloned();
            prop_assert_eq!(port(&switch.loaded()), port(&switch.running));
        } else {
            prop_assert_eq!(switch.text(), text);
        }
        if switch.remove("db-1").is_ok() {
            prop_assert!(was_right && switch.files.load().is_ok());
        }
    }
}
