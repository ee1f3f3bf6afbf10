//! Reports of mistakes. Each case is one mistake; its snapshot is the whole report.
//!
//! After a change: `INSTA_UPDATE=always cargo nextest run -p crosspoint-config`, and review the difference.

use crosspoint_config::{Config, ConfigError, limits};

use crate::report::snapshot;

/// The beginning of a port without mistakes.
const GUEST: &str =
    "version = 1\n\n[[port]]\nname = \"web-1\"\ntype = \"vhost\"\nsocket = \"/run/web-1.sock\"\n";
const UPLINK: &str =
    "version = 1\n\n[[port]]\nname = \"up0\"\ntype = \"xdp\"\ninterface = \"enp1s0f0\"\n";
const WEB_2: &str =
    "\n[[port]]\nname = \"web-2\"\ntype = \"vhost\"\nsocket = \"/run/web-2.sock\"\n";
const WEB_3: &str =
    "\n[[port]]\nname = \"web-3\"\ntype = \"vhost\"\nsocket = \"/run/web-3.sock\"\n";

fn error(text: &str) -> ConfigError {
    Config::parse("switch.toml", text).expect_err("a mistake")
}

/// One test per case: the mistake's name, and a file with it.
macro_rules! mistakes {
    ($($case:ident: $($text:expr),+;)*) => {$(
        #[test]
        fn $case() {
            snapshot(stringify!($case), &error(&[$(&*$text),+].concat()));
        }
    )*};
}

mistakes! {
    // The grammar.
    text_without_quotes: "version = 1\n[workers]\npoll = busy\n";
    unclosed_quote: "version = 1\n[metrics]\nlisten = \"off\n[control]\n";
    key_given_twice: "version = 1\n[workers]\npoll = \"busy\"\npoll = \"adaptive\"\n";
    list_without_brackets: "version = 1\n[workers]\ncores = 2, 3\n";
    single_brackets_around_port: "version = 1\n[port]\nname = \"web-1\"\n";

    // The version.
    empty_file: "";
    other_version: "version = 2\nsomething = \"new\"\n";

    // Keys.
    misspelt_key: GUEST, "queue_pair = 2\n";
    misspelt_section: "version = 1\n[wokers]\npoll = \"busy\"\n";
    key_of_another_section: GUEST, "poll = \"busy\"\n";
    key_of_no_section: "version = 1\n[switch]\ncolour = \"blue\"\n";
    key_of_the_other_port_type: GUEST, "interface = \"enp1s0f0\"\n";
    key_of_a_guest_on_an_uplink: UPLINK, "socket = \"/run/up0.sock\"\nqueue_pairs = 2\n";

    // Types, words and ranges.
    wrong_type: GUEST, "queue_pairs = \"2\"\n";
    out_of_range: GUEST, "queue_pairs = 17\n";
    mode_of_a_socket_no_octal: GUEST, "socket_mode = \"0680\"\n";
    mode_of_a_socket_a_number: GUEST, "socket_mode = 660\n";
    mode_of_a_socket_with_more_bits: GUEST, "socket_mode = \"2770\"\n";
    group_with_a_blank: GUEST, "socket_group = \"no group\"\n";
    access_to_a_socket_of_the_front_end: GUEST, "role = \"client\"\nsocket_mode = \"0660\"\nsocket_group = \"kvm\"\n";
    mac_of_five_bytes: GUEST, "mac = \"52:54:00:12:34\"\n";
    mac_of_a_group: GUEST, "mac = \"53:54:00:12:34:56\"\n";
    mac_of_no_station: GUEST, "mac = \"00:00:00:00:00:00\"\n";
    mtu_too_small: GUEST, "mtu = 67\n";
    mac_of_an_uplink: UPLINK, "mac = \"52:54:00:12:34:56\"\n";
    mtu_too_large_of_an_uplink: UPLINK, "mtu = 65536\n";
    no_boolean: UPLINK, "gro = \"yes\"\n";
    boolean_as_a_word: UPLINK, "gro = yes\n";
    number_with_a_unit: UPLINK, "mtu = 9k\n";
    vlan_range_that_is_none: UPLINK, "vlan = { trunk = [1, \"200-100\"] }\n";
    vlan_in_a_range_twice: UPLINK, "vlan = { trunk = [150, \"100-199\"] }\n";
    keys_of_an_uplink_on_a_guest: GUEST, "gro = true\ntso = \"off\"\nbusy_poll = true\nhuge_pages = \"never\"\nchannels = 2\nrss = \"keep\"\n";
    fdb_of_an_unknown_port: GUEST, "[[fdb]]\nmac = \"52:54:00:00:00:01\"\nport = \"web-11\"\n";
    fdb_without_a_port: GUEST, "[[fdb]]\nmac = \"52:54:00:00:00:01\"\n";
    fdb_of_a_group: GUEST, "[[fdb]]\nmac = \"33:33:00:00:00:01\"\nport = \"web-1\"\n";
    fdb_beyond_the_vlans: GUEST, "[[fdb]]\nmac = \"52:54:00:00:00:01\"\nvlan = 4095\nport = \"web-1\"\n";
    fdb_with_a_key_of_a_port: GUEST, "[[fdb]]\nmac = \"52:54:00:00:00:01\"\nport = \"web-1\"\nweight = 2\n";
    fdb_as_a_table: GUEST, "[fdb]\nmac = \"52:54:00:00:00:01\"\nport = \"web-1\"\n";
    fdb_in_a_vlan_that_its_port_does_not_carry: GUEST, "vlan = { access = 100 }\n",
        "[[fdb]]\nmac = \"52:54:00:00:00:01\"\nvlan = 200\nport = \"web-1\"\n";
    fdb_without_a_vlan_on_a_port_with_one: GUEST, "vlan = { access = 100 }\n",
        "[[fdb]]\nmac = \"52:54:00:00:00:01\"\nvlan = 0\nport = \"web-1\"\n";
    fdb_on_a_trunk_without_native: GUEST, "vlan = { trunk = [100] }\n",
        "[[fdb]]\nmac = \"52:54:00:00:00:01\"\nport = \"web-1\"\n";
    // The second has the VLAN that the first has by its port.
    fdb_twice: GUEST, "vlan = { access = 100 }\n",
        "[[fdb]]\nmac = \"52:54:00:00:00:01\"\nport = \"web-1\"\n",
        "[[fdb]]\nmac = \"52:54:00:00:00:01\"\nvlan = 100\nport = \"web-1\"\n";
    fdb_of_an_address_bound_to_another_port: GUEST, "addresses = { mac = [\"52:54:00:00:00:01\"] }\n", WEB_2,
        "[[fdb]]\nmac = \"52:54:00:00:00:01\"\nport = \"web-2\"\n";
    slo_of_nothing: GUEST, "slo = {}\n";
    slo_misspelt: GUEST, "slo = { completion_p90 = \"20us\" }\n";
    slo_too_short: GUEST, "slo = { completion_p99 = \"0us\" }\n";
    slo_the_wrong_way_round: GUEST, "slo = { completion_p50 = \"20us\", completion_p99 = \"10us\" }\n";
    addresses_with_no_ip_address: GUEST, "addresses = { mac = [\"52:54:00:00:00:01\"], ip = [\"192.0.2\", \"192.0.2.1/24\"] }\n";
    addresses_with_an_empty_list_of_ip: GUEST, "addresses = { mac = [\"52:54:00:00:00:01\"], ip = [] }\n";
    addresses_of_ip_alone: GUEST, "addresses = { ip = [\"192.0.2.1\"] }\n";
    ip_address_on_two_ports: GUEST, "addresses = { mac = [\"52:54:00:00:00:01\"], ip = [\"192.0.2.1\"] }\n", WEB_2,
        "addresses = { mac = [\"52:54:00:00:00:02\"], ip = [\"192.0.2.0/24\", \"192.0.2.1/32\"] }\n";
    mirror_to_an_unknown_port: GUEST, "[[mirror]]\nname = \"ids\"\nto = \"web-11\"\n";
    mirror_to_itself: GUEST, "[[mirror]]\nname = \"ids\"\nports = [\"web-1\"]\nto = \"web-1\"\n";
    mirror_with_a_wrong_filter: GUEST, "[[mirror]]\nname = \"ids\"\nfilter = \"tcp prot 80\"\nto = \"web-1\"\n";
    mirror_of_no_ports: GUEST, "[[mirror]]\nname = \"ids\"\nports = []\nto = \"web-1\"\n";
    mirror_of_a_misspelt_pattern: GUEST, "[[mirror]]\nname = \"ids\"\nports = [\"web *\"]\nto = \"web-1\"\n";
    mirror_of_a_vlan_out_of_range: GUEST, "[[mirror]]\nname = \"ids\"\nvlans = [5000, \"9-5\"]\nto = \"web-1\"\n";
    mirror_twice: GUEST, WEB_2, "[[mirror]]\nname = \"ids\"\nto = \"web-1\"\n[[mirror]]\nname = \"ids\"\nto = \"web-2\"\n";
    limit_of_nothing: GUEST, "limit = {}\n";
    limit_without_a_rate: GUEST, "limit = { out = { burst = \"256KiB\" } }\n";
    limit_misspelt: GUEST, "limit = { out = { rate = \"1Gbit/s\", bursts = \"256KiB\" } }\n";
    limit_in_bytes: GUEST, "limit = { in = { rate = \"100MB/s\" } }\n";
    limit_too_low: GUEST, "limit = { in = { rate = \"1kbit/s\", packets = 500 } }\n";
    limit_of_an_uplink: UPLINK, "limit = { out = { rate = \"1Gbit/s\" } }\n";
    slo_of_an_uplink: UPLINK, "slo = { completion_p99 = \"20us\" }\n";
    weight_of_nothing: GUEST, "weight = 0\n";
    offloads_is_a_boolean: GUEST, "offloads = false\n";
    offloads_misspelt: GUEST, "offloads = { recieve = false }\n";
    offloads_of_one_kind: GUEST, "offloads = { transmit = \"off\" }\n";
    offloads_of_an_uplink: UPLINK, "offloads = { receive = false }\n";
    storm_is_a_number: GUEST, "storm = 1000\n";
    storm_misspelt: GUEST, "storm = { unknown = 1000 }\n";
    storm_with_a_unit: GUEST, "storm = { broadcast = \"100k\" }\n";
    control_as_a_word: UPLINK, "forward_control = \"stp\"\n";
    control_misspelt: UPLINK, "forward_control = [\"stpp\", \"01:80:c2:00:00:10\", 7]\n";
    control_of_one_wire: UPLINK, "forward_control = [\"pause\", \"01:80:c2:00:00:01\"]\n";
    loop_protect_misspelt: UPLINK, "loop_protect = { action = \"blok\", block_time = \"0s\", interval = \"1s\" }\n";
    loop_protect_as_a_word: UPLINK, "loop_protect = \"block\"\n";
    control_twice: UPLINK, "forward_control = [\"lldp\", \"01:80:c2:00:00:0e\"]\n";
    addresses_as_a_list: GUEST, "addresses = [\"52:54:00:12:34:56\"]\n";
    addresses_of_nothing: GUEST, "addresses = {}\n";
    addresses_that_are_none: GUEST, "addresses = { mac = [] }\n";
    addresses_that_are_wrong: GUEST, "addresses = { mac = [\"52:54:00:12:34\", \"01:00:5e:00:00:01\", \"00:00:00:00:00:00\", 7] }\n";
    address_twice: GUEST, "addresses = { mac = [\"52:54:00:12:34:56\", \"52:54:00:12:34:57\", \"52:54:00:12:34:56\"] }\n";
    address_of_two_ports: GUEST, "vlan = { access = 100 }\naddresses = { mac = [\"52:54:00:12:34:56\"] }\n",
        WEB_2, "vlan = { trunk = [100, 200] }\naddresses = { mac = [\"52:54:00:12:34:56\"] }\n";
    address_of_the_guest_itself_is_left_out: GUEST, "mac = \"52:54:00:12:34:56\"\naddresses = { mac = [\"52:54:00:12:34:57\"] }\n";
    moves_too_many: "version = 1\n[switch]\nfdb_moves_max = 101\n";
    moves_window_too_long: "version = 1\n[switch]\nfdb_moves_window = \"2h\"\n";
    no_channels: UPLINK, "channels = 0\n";
    queue_beyond_the_channels: UPLINK, "channels = 4\nqueues = [3, 4]\n";
    misspelt_word: UPLINK, "mode = \"zerocopy\"\n";
    unknown_port_type: "version = 1\n[[port]]\nname = \"t\"\ntype = \"tap\"\n";
    duration_without_unit: "version = 1\n[switch]\nfdb_ageing = 300\n";
    duration_too_short: "version = 1\n[switch]\nfdb_ageing = \"1s\"\n";
    duration_of_unknown_unit: "version = 1\n[workers]\nidle_spin = \"100ns\"\n";
    sflow_to_a_host_name: "version = 1\n[sflow]\ncollector = \"collector:6343\"\n";
    sflow_to_no_one: "version = 1\n[sflow]\nsampling = 512\nports = [\"web-*\"]\n";
    sflow_out_of_bounds: "version = 1\n[sflow]\ncollector = \"::1\"\nsampling = 0\nheader_len = 1500\npolling = \"10ms\"\n\
        agent = \"0.0.0.0\"\nports = [\"web 1\"]\n";
    ipfix_to_a_host_name: "version = 1\n[ipfix]\ncollector = \"collector:4739\"\n";
    ipfix_to_no_one: "version = 1\n[ipfix]\ndenied = 7\n";
    ipfix_of_two_versions: "version = 1\n[ipfix]\ncollector = \"192.0.2.5\"\nsource = \"2001:db8::1\"\n";
    ipfix_out_of_bounds: "version = 1\n[ipfix]\ncollector = \"::\"\ndomain = -1\nactive_timeout = \"11m\"\ntemplates = \"10ms\"\n\
        source = \"0.0.0.0\"\nbegins = 1\ndenied = 10001\nports = [\"web 1\"]\n";
    metrics_tls_without_a_key: "version = 1\n[metrics]\ntls = { certificate = \"metrics.crt\" }\n";
    metrics_tls_that_is_a_path: "version = 1\n[metrics]\ntls = \"metrics.crt\"\n";
    metrics_tls_with_another_key: "version = 1\n[metrics]\ntls = { certificate = \"a\", key = \"b\", ca = \"c\" }\n";
    metrics_token_in_place_of_a_file: "version = 1\n[metrics]\ntoken = \"secret\"\ntoken_file = \"\"\n";
    metrics_on_a_host_name: "version = 1\n[metrics]\nlisten = \"localhost:9477\"\n";
    cores_as_a_range: "version = 1\n[workers]\ncores = \"2-5\"\n";
    cores_wrong_in_three_ways: "version = 1\n[workers]\ncores = [\n    2,\n    -1,\n    2,\n    \"4\",\n]\n";
    worker_beyond_all: GUEST, "worker = 64\n";
    worker_beyond_the_cores: "version = 1\nworkers.cores = [2, 3]\n[[port]]\nname = \"a\"\ntype = \"vhost\"\nsocket = \"/run/a\"\nworker = 2\n";
    balance_misspelt: "version = 1\n[workers]\nbalance = \"on\"\n";
    balance_interval_too_short: "version = 1\n[workers]\nbalance_interval = \"1ms\"\n";
    no_cores: "version = 1\n[workers]\ncores = []\n";

    // Ports.
    port_without_anything: "version = 1\n\n[[port]]\nmac_limit = 0\n";
    two_ports_of_one_name: GUEST, "\n[[port]]\nname = \"web-1\"\ntype = \"vhost\"\nsocket = \"/run/web-2.sock\"\n";
    two_ports_of_one_socket: GUEST, "\n[[port]]\nname = \"web-2\"\ntype = \"vhost\"\nsocket = \"/run//web-1.sock\"\n";
    two_ports_of_one_interface: UPLINK, "\n[[port]]\nname = \"up1\"\ntype = \"xdp\"\ninterface = \"enp1s0f0\"\n";
    socket_of_control: "version = 1\n[[port]]\nname = \"a\"\ntype = \"vhost\"\nsocket = \"/run/crosspoint/control.sock\"\n";
    socket_path_is_relative: "version = 1\n[[port]]\nname = \"a\"\ntype = \"vhost\"\nsocket = \"web-1.sock\"\n";
    socket_path_too_long: "version = 1\n[control]\nsocket = \"/", "s".repeat(107), "\"\n";
    port_name_with_a_blank: "version = 1\n[[port]]\nname = \"web 1\"\ntype = \"vhost\"\nsocket = \"/run/a\"\n";
    interface_name_too_long: "version = 1\n[[port]]\nname = \"up0\"\ntype = \"xdp\"\ninterface = \"enp1s0f0np0.2000x\"\n";
    queue_listed_twice: UPLINK, "queues = [0, 1, 0]\n";

    // Guests' own queues.
    direct_without_queue: GUEST, "direct = { uplink = \"up0\" }\n";
    direct_misspelt: GUEST, "direct = { uplnk = \"up0\", queue = 3 }\n";
    direct_to_no_port: GUEST, "direct = { uplink = \"up0\", queue = 3 }\n";
    direct_to_a_guest: GUEST, "direct = { uplink = \"web-1\", queue = 3 }\n";
    direct_on_an_uplink: UPLINK, "direct = { uplink = \"up0\", queue = 3 }\n";
    direct_to_a_queue_that_is_taken: UPLINK, "queues = [2, 3]\n", WEB_2, "direct = { uplink = \"up0\", queue = 3 }\n";
    direct_beyond_the_channels: UPLINK, "channels = 3\n", WEB_2, "direct = { uplink = \"up0\", queue = 3 }\n";
    direct_of_two_guests: UPLINK, WEB_2, "direct = { uplink = \"up0\", queue = 3 }\n", WEB_3, "direct = { uplink = \"up0\", queue = 3 }\n";
    direct_to_an_uplink_that_is_wrong: UPLINK, "queues = \"some\"\nmtu = 1\n", WEB_2, "direct = { uplink = \"up0\", queue = 3 }\n";

    // VLANs.
    vlan_is_a_number: GUEST, "vlan = 100\n";
    vlan_id_out_of_range: GUEST, "vlan = { access = 4095 }\n";
    vlan_access_and_trunk: GUEST, "vlan = { access = 100, trunk = [200] }\n";
    vlan_of_nothing: GUEST, "vlan = {}\n";
    vlan_trunk_empty: GUEST, "vlan = { trunk = [] }\n";
    vlan_listed_twice: GUEST, "vlan = { trunk = [100, 200, 100] }\n";
    vlan_native_without_trunk: GUEST, "vlan = { native = 1 }\n";

    // Several at once, in the order of the file; columns count characters, not bytes.
    everything_at_once: "version = 1\ncolour = 1\n[workers]\npoll = \"lazy\"\n[[port]]\nname = \"äöü\"\nvlan = { \"ä\" = 1 }\n";
}

#[test]
fn cores_that_the_process_may_not_use() {
    let config = Config::parse("switch.toml", "version = 1\n[workers]\ncores = [2, 5, 9]\n")
        .expect("a configuration");
    snapshot(
        "cores_not_in_affinity",
        &config
            .resolve_cores(&[0, 1, 2, 3, 8])
            .expect_err("cores 5 and 9 are missing"),
    );
}

/// The number of workers from "auto" is known only when the switch starts.
#[test]
fn a_worker_that_the_cores_do_not_make() {
    let config = Config::parse("switch.toml", &[GUEST, "worker = 1\n"].concat());
    let config = config.expect("a configuration");
    assert!(config.resolve_cores(&[0, 1, 2]).is_ok());
    let error = config.resolve_cores(&[0, 1]).expect_err("one worker");
    snapshot("worker_that_the_cores_do_not_make", &error);
}

#[test]
fn a_line_too_long_to_read_is_not_shown() {
    let error = error(&format!("version = 1\nname = \"{}\"\n", "n".repeat(5000)));
    snapshot("long_line", &error);
}

#[test]
fn more_problems_than_anyone_reads_are_counted() {
    let lines: String = (0..1000)
        .map(|number| format!("key{number} = 0\n"))
        .collect();
    let error = error(&format!("version = 1\n{lines}"));
    assert_eq!(error.problems().count(), limits::PROBLEMS_MAX);
    assert_eq!(
        error.to_string(),
        "1000 problems in switch.toml (64 are listed)"
    );
}

#[test]
fn too_many_ports_are_refused_at_the_first_too_many() {
    let ports: String = (0..=limits::PORTS_MAX)
        .map(|n| format!("[[port]]\nname = \"p{n}\"\ntype = \"vhost\"\nsocket = \"/run/{n}\"\n"))
        .collect();
    let error = error(&format!("version = 1\n{ports}"));
    let problem = error.problems().next().expect("a problem");
    assert_eq!(problem.message(), "more than 1024 ports");
    assert_eq!(
        problem.line_and_column(),
        Some((2 + 4 * limits::PORTS_MAX, 1))
    );
}

#[test]
fn too_many_workers_are_refused() {
    let cores: Vec<usize> = (0..=limits::WORKERS_MAX).collect();
    let error = error(&format!("version = 1\nworkers.cores = {cores:?}\n"));
    assert_eq!(error.to_string(), "`cores` has 65 items, and may have 64");
}

#[test]
fn what_a_terminal_would_obey_is_not_printed() {
    let report = error("version = 1\nname = \"\u{1b}[2J\u{7}\"\n").render();
    assert!(!report.contains(['\u{1b}', '\u{7}']), "{report}");
}

/// The standard miette handler shows the same problems as [`ConfigError::render`].
#[test]
fn an_error_is_a_diagnostic() {
    use miette::Diagnostic as _;
    let one = error("");
    assert!(
        one.help().is_some()
            && one.source_code().is_some()
            && one.labels().is_some()
            && one.related().is_none()
    );
    let two = error("a = 1\n");
    assert_eq!(two.related().map(Iterator::count), Some(2));
    assert_eq!(two.to_string(), "2 problems in switch.toml");
}
