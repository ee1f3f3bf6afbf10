//! Two tenants with the same addresses, each in a bridge of its own, and a host behind the kernel's own tags.

use crate::harness::{CommandGuest, Lab, Ledger, Metrics, s};

const CONFIG: &str = r#"
version = 1

[workers]
cores = [1]

[[bridge]]
name = "tenant-a"

[[bridge]]
name = "tenant-b"

[[port]]
name = "a"
type = "xdp"
interface = "up-a"
bridge = "tenant-a"

[[port]]
name = "b"
type = "xdp"
interface = "up-b"
bridge = "tenant-b"

[[port]]
name = "c"
type = "xdp"
interface = "up-c"
bridges = [{ vlan = 100, bridge = "tenant-a" }, { vlan = 200, bridge = "tenant-b", protocol = "802.1ad" }]
"#;

/// Number of cases in bridges.sh.
const CASES: usize = 10;

/// Runs in a guest whose kernel has devices for tags of both kinds, which this machine's kernel may lack.
#[test]
fn two_tenants_with_the_same_addresses_never_meet() {
    let lab = Lab::new(s(150));
    let files = [
        ("bridges.toml", CONFIG),
        ("bridges.sh", include_str!("bridges.sh")),
    ];
    let mut guest = CommandGuest::lab(&lab, &files);
    let text = guest.ask("sh /switch/bridges.sh", s(120));
    let cases: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("CASE "))
        .collect();
    assert_eq!(cases.len(), CASES, "{text}");
    assert!(cases.iter().all(|case| case.ends_with("=ok")), "{text}");
    let shown = |words: &[&str]| {
        let lines = text.lines().filter_map(|line| line.strip_prefix("SHOWN "));
        lines
            .into_iter()
            .any(|line| words.iter().all(|word| line.contains(word)))
    };
    assert!(shown(&["tenant-a", "802.1Q 100", "a,c"]), "{text}");
    assert!(shown(&["tenant-b", "802.1ad 200", "b,c"]), "{text}");
    assert!(shown(&["bridge", "tenant-b"]), "{text}");
    let metrics = guest.ask("cat /tmp/metrics", s(20));
    let ledger = Ledger::new(&Metrics::of_text(&metrics));
    assert_eq!(ledger.fault(), None, "{ledger}");
}
