//! Tests of the filter language, with libpcap's compiler, in tcpdump, as the reference.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::process::{Command, Stdio};

use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::{Filter, OPERATIONS_MAX};

const MACS: [[u8; 6]; 4] = [
    [2, 0, 0, 0, 0, 1],
    [2, 0, 0, 0, 0, 2],
    [0xff; 6],
    [0x33, 0x33, 0, 0, 0, 1],
];
const PORTS: [u16; 5] = [53, 80, 443, 8080, 65535];
/// The longest payload of a frame here.
const PAYLOAD_MAX: usize = 100;

/// A frame's number of tags, and the frame.
type Tagged = (usize, Vec<u8>);

fn v4() -> impl Strategy<Value = [u8; 4]> {
    select(vec![
        [10, 0, 0, 1],
        [10, 0, 0, 2],
        [10, 1, 0, 1],
        [192, 168, 0, 1],
    ])
}

fn v6() -> impl Strategy<Value = [u8; 16]> {
    (select(vec![0xfd_u8, 0xfe]), 0..2_u8, 1..3_u8).prop_map(|(first, middle, last)| {
        let mut address = [0; 16];
        (address[0], address[7], address[15]) = (first, middle, last);
        address
    })
}

/// A transport header with its protocol: TCP, UDP, SCTP, ICMP, ICMPv6 or GRE.
fn transport() -> impl Strategy<Value = (u8, Vec<u8>)> {
    let port = || select(&PORTS[..]);
    let protocol = select(vec![6_u8, 6, 17, 132, 1, 58, 47]);
    (protocol, port(), port(), any::<u8>(), 0..PAYLOAD_MAX).prop_map(
        |(protocol, from, to, flags, payload)| {
            let mut bytes = [from.to_be_bytes(), to.to_be_bytes()].concat();
            bytes.resize(20 + payload, 0);
            bytes[12] = 0x50;
            bytes[13] = flags & 0x3f;
            (protocol, bytes)
        },
    )
}

fn ipv4() -> impl Strategy<Value = (u16, Vec<u8>)> {
    let fragment = select(vec![0_u16, 0, 0, 0x4000, 0x2000, 0x2001, 7]);
    (v4(), v4(), transport(), 5..8_usize, fragment).prop_map(
        |(from, to, (protocol, transport), words, fragment)| {
            let mut bytes = vec![0; words * 4];
            bytes[0] = 0x40 | words as u8;
            let total = (bytes.len() + transport.len()) as u16;
            bytes[2..4].copy_from_slice(&total.to_be_bytes());
            bytes[6..8].copy_from_slice(&fragment.to_be_bytes());
            bytes[9] = protocol;
            bytes[12..16].copy_from_slice(&from);
            bytes[16..20].copy_from_slice(&to);
            bytes.extend(transport);
            (0x0800, bytes)
        },
    )
}

/// Without extension headers: libpcap does not parse what follows them.
fn ipv6() -> impl Strategy<Value = (u16, Vec<u8>)> {
    (v6(), v6(), transport()).prop_map(|(from, to, (protocol, transport))| {
        let mut bytes = vec![0x60, 0, 0, 0];
        bytes.extend((transport.len() as u16).to_be_bytes());
        bytes.extend([protocol, 64]);
        bytes.extend([from, to].concat());
        bytes.extend(transport);
        (0x86dd, bytes)
    })
}

fn other() -> impl Strategy<Value = (u16, Vec<u8>)> {
    let kind = select(vec![0x0806_u16, 0x0806, 0x8035, 0x88cc]);
    (kind, v4(), v4()).prop_map(|(kind, from, to)| {
        let mut bytes = vec![0, 1, 8, 0, 6, 4, 0, 1];
        bytes.extend([&[2; 6][..], &from, &[0; 6], &to].concat());
        bytes.resize(46, 0);
        (kind, bytes)
    })
}

fn frame() -> impl Strategy<Value = Tagged> {
    let mac = || select(&MACS[..]);
    let tag = (
        select(vec![0x8100_u16, 0x8100, 0x88a8]),
        select(vec![0_u16, 100, 0xe0c8]),
    );
    let tags = prop::collection::vec(tag, 0..3);
    let network = prop_oneof![3 => ipv4(), 2 => ipv6(), 1 => other()];
    (mac(), mac(), tags, network).prop_map(|(dst, src, tags, (kind, network))| {
        let mut bytes = [dst, src].concat();
        for (kind, tci) in &tags {
            bytes.extend([kind.to_be_bytes(), tci.to_be_bytes()].concat());
        }
        bytes.extend(kind.to_be_bytes());
        bytes.extend(network);
        (tags.len(), bytes)
    })
}

/// A condition in the part of the language shared with libpcap.
fn condition() -> impl Strategy<Value = String> {
    let words = |all: &[&'static str]| select(all.to_vec());
    let side = || words(&["", "src ", "dst "]);
    let mac = select(vec![
        "02:00:00:00:00:01",
        "2:0:0:0:0:2",
        "ff:ff:ff:ff:ff:ff",
    ]);
    let address = || words(&["10.0.0.1", "10.0.0.2", "fd00::1", "fe00:0:0:1::2"]);
    let net = words(&[
        "10.0.0.0/8",
        "10.0.0.0/31",
        "0.0.0.0/0",
        "fd00::/16",
        "fe00::/7",
        "::/0",
    ]);
    let range = words(&["53-80", "0-65535", "443-443", "8080-65535"]);
    let transport = || words(&["", "tcp ", "udp "]);
    let address4 = words(&["10.0.0.1", "10.1.0.1", "192.168.0.1"]);
    prop_oneof![
        words(&[
            "ip",
            "ip6",
            "arp",
            "icmp",
            "icmp6",
            "tcp",
            "udp",
            "broadcast",
            "multicast"
        ])
        .prop_map(str::to_owned),
        words(&["ether broadcast", "ether multicast"]).prop_map(str::to_owned),
        (words(&["ether host ", "ether src ", "ether dst "]), mac)
            .prop_map(|(a, b)| format!("{a}{b}")),
        (side(), address()).prop_map(|(side, address)| format!("{side}host {address}")),
        (words(&["src ", "dst "]), address())
            .prop_map(|(side, address)| format!("{side}{address}")),
        (words(&["ip ", "arp "]), side(), address4).prop_map(|(a, b, c)| format!("{a}{b}host {c}")),
        (side(), net).prop_map(|(side, net)| format!("{side}net {net}")),
        (transport(), side(), select(&PORTS[..]))
            .prop_map(|(a, b, port)| format!("{a}{b}port {port}")),
        (transport(), side(), range).prop_map(|(a, b, range)| format!("{a}{b}portrange {range}")),
        (words(&["less", "greater"]), 30..200_u32).prop_map(|(a, len)| format!("{a} {len}")),
        // Values with the words of the previous value.
        (side(), select(&PORTS[..])).prop_map(|(side, port)| format!("({side}port 80 or {port})")),
        (side(), address())
            .prop_map(|(side, address)| format!("(not {side}host 10.0.0.1 and {address})")),
    ]
}

fn expression() -> impl Strategy<Value = String> {
    condition().prop_recursive(4, 12, 3, |inner| {
        let joint = select(vec!["and", "or", "&&", "||"]);
        prop_oneof![
            (inner.clone(), joint.clone(), inner.clone())
                .prop_map(|(a, b, c)| format!("{a} {b} {c}")),
            (inner.clone(), joint, inner.clone()).prop_map(|(a, b, c)| format!("({a}) {b} ({c})")),
            inner.clone().prop_map(|a| format!("not {a}")),
            inner.prop_map(|a| format!("!({a})")),
        ]
    })
}

/// Returns the indices of the frames that tcpdump selects.
fn tcpdump(expression: &str, frames: &[&[u8]]) -> BTreeSet<usize> {
    let mut child = Command::new("tcpdump")
        // -O: without its optimizer, which loses conditions (1.10.3 selects port 443 by
        // `vlan and vlan and (port 8080 and not port 443)`).
        .args(["-O", "-Z", "root", "-r", "-", "-w", "-", expression])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("tcpdump starts: apt install tcpdump");
    let mut input = child.stdin.take().expect("a pipe");
    let mut output = Vec::new();
    let mut complaint = String::new();
    std::thread::scope(|scope| {
        // tcpdump stops reading if the expression is wrong.
        scope.spawn(move || input.write_all(&savefile(frames)));
        let _ = child
            .stdout
            .take()
            .expect("a pipe")
            .read_to_end(&mut output);
        let mut errors = child.stderr.take().expect("a pipe");
        let _ = errors.read_to_string(&mut complaint);
    });
    let status = child.wait().expect("it ends");
    if complaint.contains("expression rejects all packets") {
        return BTreeSet::new();
    }
    assert!(status.success(), "{expression}: {complaint}");
    times(&output).collect()
}

/// Returns the frames as a pcap-savefile(5), with their indices as times.
fn savefile(frames: &[&[u8]]) -> Vec<u8> {
    let header = [0xa1b2_c3d4_u32, 4 << 16 | 2, 0, 0, 0xffff, 1];
    let mut file: Vec<u8> = header.map(u32::to_le_bytes).concat();
    for (place, frame) in frames.iter().enumerate() {
        let len = frame.len() as u32;
        file.extend([place as u32, 0, len, len].map(u32::to_le_bytes).concat());
        file.extend(*frame);
    }
    file
}

fn times(mut file: &[u8]) -> impl Iterator<Item = usize> {
    let word = |bytes: &[u8], at: usize| {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
    };
    file = file.get(24..).unwrap_or(&[]);
    std::iter::from_fn(move || {
        let (record, rest) = file.split_at_checked(16)?;
        file = &rest[word(record, 8)..];
        Some(word(record, 0))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// libpcap skips one tag per word `vlan`; our filters skip all tags.
    #[test]
    fn frames_are_selected_as_libpcap_selects_them(
        expression in expression(),
        frames in prop::collection::vec(frame(), 64),
    ) {
        let filter = Filter::parse(&expression).unwrap();
        for (tags, before) in ["", "vlan and ", "vlan and vlan and "].into_iter().enumerate() {
            let these: Vec<&[u8]> = frames.iter().filter(|(n, _)| *n == tags).map(|(_, f)| &f[..]).collect();
            let wanted = tcpdump(&format!("{before}({expression})"), &these);
            for (place, frame) in these.iter().enumerate() {
                prop_assert_eq!(filter.matches(frame), wanted.contains(&place), "{}: {:02x?}", &expression, frame);
                let beginning = &frame[..frame.len().min(super::BYTES_WANTED)];
                prop_assert_eq!(filter.matches_beginning(beginning, frame.len()), wanted.contains(&place));
            }
        }
    }
}

#[test]
fn vlans_and_flags_are_selected_as_libpcap_selects_them() {
    let mut runner = TestRunner::deterministic();
    let strategy = prop::collection::vec(frame(), 600);
    let frames = strategy.new_tree(&mut runner).unwrap().current();
    // In libpcap `vlan` moves the offset of the next tag, so it has no test for any of several tags.
    let few = frames.iter().filter(|(tags, _)| *tags < 2);
    let frames: Vec<&[u8]> = few.map(|(_, frame)| &frame[..]).collect();
    let cases = [
        ("vlan", "vlan"),
        ("not vlan", "not vlan"),
        ("vlan 100", "vlan 100"),
        (
            "not vlan and tcp syn",
            "ip and tcp[tcpflags] & tcp-syn != 0 or (ip6 proto 6 and ip6[53] & 2 != 0)",
        ),
        (
            "not vlan and (rst or (ip and fin))",
            "ip and tcp[tcpflags] & (tcp-rst|tcp-fin) != 0 or (ip6 proto 6 and ip6[53] & 4 != 0)",
        ),
    ];
    for (ours, theirs) in cases {
        let filter = Filter::parse(ours).unwrap();
        let is_wanted = |place: &usize| filter.matches(frames[*place]);
        let selected: BTreeSet<usize> = (0..frames.len()).filter(is_wanted).collect();
        let wanted = tcpdump(theirs, &frames);
        assert_eq!(selected, wanted, "{ours}");
        assert!(!selected.is_empty(), "{ours}");
    }
}

/// TCP from port 80 after extension headers.
fn extended(extensions: &[(u8, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; 12];
    bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 0]);
    let kinds = extensions.iter().map(|(kind, _)| *kind).chain([6]);
    let mut kinds = kinds.collect::<Vec<u8>>().into_iter();
    bytes.push(kinds.next().unwrap());
    bytes.extend([0; 33]);
    for (_, rest) in extensions {
        bytes.push(kinds.next().unwrap());
        bytes.extend(*rest);
    }
    bytes.extend([0, 80, 1, 187]);
    bytes.extend([0; 16]);
    bytes
}

#[test]
fn transport_is_found_behind_extension_headers_and_no_further_than_promised() {
    let option: (u8, &[u8]) = (60, &[0, 0, 0, 0, 0, 0, 0]);
    let long: (u8, &[u8]) = (0, &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let first: (u8, &[u8]) = (44, &[0, 0, 1, 0, 0, 0, 0]);
    let later: (u8, &[u8]) = (44, &[0, 0, 9, 0, 0, 0, 0]);
    let ah: (u8, &[u8]) = (51, &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let port = Filter::parse("tcp src port 80 and dst port 443").unwrap();
    let tcp = Filter::parse("tcp").unwrap();
    for extensions in [
        &[][..],
        &[option],
        &[long, option],
        &[first],
        &[long, first, ah],
        &[option; 8],
    ] {
        assert!(port.matches(&extended(extensions)), "{extensions:?}");
    }
    assert!(tcp.matches(&extended(&[later])) && !port.matches(&extended(&[later])));
    assert!(!tcp.matches(&extended(&[option; 9])));
}

#[test]
fn any_of_a_frames_tags_may_name_the_vlan() {
    let tags = [0x81, 0, 0, 100, 0x81, 0, 0xe0, 200, 8, 6];
    let frame = [&[0; 12][..], &tags].concat();
    let holds = |text: &str| Filter::parse(text).unwrap().matches(&frame);
    assert!(holds(
        "vlan 100 and vlan 200 and arp and not vlan 300 and not ip"
    ));
}

#[test]
fn mistakes_are_named_with_their_place() {
    let cases = [
        ("tcp prot 80", 5, "`and`, `or` or the end"),
        ("host", 5, "an IPv4 or IPv6 address"),
        ("host web-1", 6, "an IPv4 or IPv6 address"),
        ("net 10.0.0.1/8", 5, "no bits set behind its length"),
        ("net 10.0.0.0/33", 5, "no bits set behind its length"),
        ("port 65536", 6, "a port, 0 to 65535"),
        ("port http", 6, "a port, 0 to 65535"),
        ("portrange 9-8", 11, "the first not above the second"),
        ("vlan 4096", 6, "a VLAN, 0 to 4095"),
        ("ether host 10.0.0.1", 12, "a MAC address"),
        ("ether foo", 7, "a MAC address"),
        ("(ip or arp", 11, "`)`"),
        ("ip)", 3, "`and`, `or` or the end"),
        ("ip and", 7, "a condition such as"),
        ("80", 1, "a condition such as"),
        ("tcp host 10.0.0.1", 5, "behind `tcp` and `udp`"),
        ("arp port 80", 5, "behind `ip`, `ip6` and `arp`"),
        ("ip6 host 10.0.0.1", 10, "an IPv6 address"),
        ("ip host ::1", 9, "an IPv4 address"),
        ("src foo", 5, "`host`, `net`, `port`"),
        ("ü port 80", 1, "a condition such as"),
        ("less", 5, "a length in bytes"),
    ];
    for (text, column, expected) in cases {
        let error = Filter::parse(text).unwrap_err();
        assert_eq!(error.column, column, "{text}: {error}");
        assert!(error.expected.contains(expected), "{text}: {error}");
    }
}

#[test]
fn a_filter_has_bounds_and_says_so() {
    let alternatives = |n: usize| vec!["ip"; n].join(" or ");
    let most = OPERATIONS_MAX.div_ceil(2);
    assert!(Filter::parse(&alternatives(most)).is_ok());
    let error = Filter::parse(&alternatives(most + 1)).unwrap_err();
    assert!(error.expected.contains("64 conditions"), "{error}");
    let nested = |n: usize| "(".repeat(n) + "ip" + &")".repeat(n);
    assert!(Filter::parse(&nested(32)).is_ok());
    assert!(Filter::parse(&nested(33)).is_err() && Filter::parse(&"!".repeat(100_000)).is_err());
    // The deepest stack of results.
    let right = (1..32).fold("ip".to_owned(), |inner, _| format!("arp or ({inner})"));
    assert!(
        Filter::parse(&right)
            .unwrap()
            .matches(&[&[0; 12][..], &[8, 0]].concat())
    );
    assert!(Filter::parse(" ").unwrap().matches(&[]));
}

/// Words of the language and others, in any order.
fn words() -> impl Strategy<Value = String> {
    let word = prop_oneof![
        condition(),
        select(vec![
            "(",
            ")",
            "!",
            "not",
            "and",
            "or",
            "src",
            "dst",
            "host",
            "net",
            "port",
            "vlan",
            "ether",
            "1",
            "0x",
            "0x+1",
            "::1",
            "::/129",
            "1-",
            "1-2-3",
            "/",
            "fd00::/-1",
            "+1",
            "ü",
            "&",
            "|",
            "less",
            "tcp",
            "syn",
        ])
        .prop_map(str::to_owned),
        any::<String>(),
    ];
    prop::collection::vec(word, 0..24).prop_map(|words| words.join(" "))
}

proptest! {
    #[test]
    fn any_text_is_read_and_any_bytes_are_looked_at_without_panic(
        text in words(), expression in expression(), bytes in prop::collection::vec(any::<u8>(), 0..200), len: u16,
    ) {
        if let Err(error) = Filter::parse(&text) {
            prop_assert!(error.column >= 1 && error.column <= text.chars().count() + 1);
        }
        let filter = Filter::parse(&expression).unwrap();
        filter.matches_beginning(&bytes, len.into());
        filter.matches(&[&[0; 12], &[0x86, 0xdd, 0x60][..], &bytes].concat());
        filter.matches(&[&[0; 12], &[0x08, 0x00, 0x45][..], &bytes].concat());
    }
}
