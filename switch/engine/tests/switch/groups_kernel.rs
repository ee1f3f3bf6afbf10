//! Linux as the reference for security groups: nftables with connection tracking, in a network namespace, gets the same rules and
//! the same packets; both must let the same packets pass.
//!
//! The kernel routes between two tap devices. Each of our rules becomes one or more rules of nftables.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use crosspoint_engine::groups::{Direction, Rule};
use crosspoint_packet::IpNet;
use proptest::prelude::*;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::groups::{ACK, FIN, Packet, RST, Rig, SYN, TCP, UDP, address, any_rule, rule};
use crate::netns::{self, ip};

/// The guest's station, and those that the kernel has behind its other device.
const GUEST: u8 = 0;
const OTHERS: [u8; 2] = [2, 3];
/// Destination port of a packet that passes always, and shows that the one before it has been decided on.
const MARK: u16 = 4789;

/// The address of both of the router's devices.
const ROUTER: [u8; 6] = [2, 0, 0, 0, 1, 0];

/// The kernel as a router with a filter.
struct Router {
    guest: File,
    others: File,
}

impl Router {
    /// Makes the router in a namespace of the calling thread.
    fn new(rules: &[Rule], is_stateful: bool) -> Router {
        netns::namespace();
        let open = |name: &str| netns::tap(name, 0);
        let (guest, others) = (open("guest"), open("others"));
        for (setting, value) in [
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
            ("ipv4/conf/guest/rp_filter", "0"),
            ("ipv4/conf/others/rp_filter", "0"),
        ] {
            std::fs::write(format!("/proc/sys/net/{setting}"), value).expect(setting);
        }
        for name in ["guest", "others"] {
            ip(&format!("link set {name} address 02:00:00:00:01:00 up"));
        }
        for station in [GUEST, OTHERS[0], OTHERS[1]] {
            let device = if station == GUEST { "guest" } else { "others" };
            for v6 in [false, true] {
                let to = address(station, v6);
                let family = if v6 { "-6" } else { "-4" };
                let len = if v6 { 128 } else { 32 };
                ip(&format!("{family} route add {to}/{len} dev {device}"));
                let mac = format!("02:00:00:00:00:{station:02x}");
                ip(&format!(
                    "neigh add {to} lladdr {mac} dev {device} nud permanent"
                ));
            }
        }
        nft(&script(rules, is_stateful));
        // Sequence numbers of the packets are not those of connections.
        for setting in ["tcp_be_liberal", "tcp_ignore_invalid_rst"] {
            let path = format!("/proc/sys/net/netfilter/nf_conntrack_{setting}");
            std::fs::write(path, "1").expect(setting);
        }
        Router { guest, others }
    }

    /// Sends a packet through the router. Returns whether it comes out.
    fn passes(&mut self, packet: &Packet) -> bool {
        let is_out = packet.from == GUEST;
        let mark = Packet::new(packet.from, packet.to, UDP, (MARK, MARK));
        for (packet, payload) in [(packet, &b"this one"[..]), (&mark, b"the mark")] {
            let mut frame = packet.frame(payload);
            frame[..6].copy_from_slice(&ROUTER);
            let from = if is_out {
                &mut self.guest
            } else {
                &mut self.others
            };
            from.write_all(&frame).expect("the kernel takes it");
        }
        let to = if is_out {
            &mut self.others
        } else {
            &mut self.guest
        };
        comes_before_mark(to)
    }
}

/// Whether a frame with "this one" comes out of a tap before one with "the mark".
pub fn comes_before_mark(tap: &mut File) -> bool {
    let (mut has_passed, mut bytes) = (false, [0; 2048]);
    loop {
        let mut ready = [PollFd::new(&*tap, PollFlags::IN)];
        let limit = Timespec::try_from(Duration::from_secs(5)).unwrap();
        assert_eq!(poll(&mut ready, Some(&limit)).unwrap(), 1, "no mark comes");
        let len = tap.read(&mut bytes).expect("a frame");
        let has = |text: &[u8]| bytes[..len].windows(text.len()).any(|part| part == text);
        // Others are the kernel's own.
        has_passed |= has(b"this one");
        if has(b"the mark") {
            return has_passed;
        }
    }
}

/// Gives `nft` a script.
pub fn nft(script: &str) {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("nftables is installed");
    let input = child.stdin.as_mut().expect("it is piped");
    input.write_all(script.as_bytes()).expect("it reads");
    drop(child.stdin.take());
    assert!(child.wait().expect("it ends").success(), "{script}");
}

/// The rules for nftables. All that they do not accept is dropped.
fn script(rules: &[Rule], is_stateful: bool) -> String {
    let mut text = format!(
        "table inet t {{\n chain r {{\n  type filter hook prerouting priority raw;\n  udp dport {MARK} notrack\n }}\n \
         chain c {{\n  type filter hook forward priority filter; policy drop;\n  udp dport {MARK} accept\n"
    );
    if is_stateful {
        text += "  ct state established,related accept\n";
    }
    for rule in rules {
        for condition in conditions(rule) {
            text += &format!("  {condition} accept\n");
        }
    }
    text + " }\n}\n"
}

fn conditions(rule: &Rule) -> Vec<String> {
    let is_in = rule.direction == Direction::In;
    // nftables refuses what contradicts itself, and here it allows nothing that is sent.
    let of_icmp = rule.icmp.and(rule.protocol);
    let of_icmp = of_icmp.map(|protocol| if protocol == 1 { 4 } else { 6 });
    if of_icmp.is_some()
        && rule
            .ip_version
            .is_some_and(|version| of_icmp != Some(version))
    {
        return Vec::new();
    }
    let version = rule.ip_version.or(of_icmp);
    let mut parts = vec![match is_in {
        true => "iifname others oifname guest".to_owned(),
        false => "iifname guest oifname others".to_owned(),
    }];
    parts.extend(
        rule.ip_version
            .map(|version| format!("meta nfproto ipv{version}")),
    );
    parts.extend(
        rule.protocol
            .map(|protocol| format!("meta l4proto {protocol}")),
    );
    if !rule.ports.is_empty() {
        // Ranges of a rule may overlap, and those of an anonymous set may not.
        let ports: std::collections::BTreeSet<u16> = rule.ports.iter().cloned().flatten().collect();
        let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
        parts.push(format!("th dport {{ {} }}", ports.join(", ")));
    }
    if let (Some((kind, code)), Some(protocol)) = (rule.icmp, rule.protocol) {
        let name = if protocol == 1 { "icmp" } else { "icmpv6" };
        parts.push(format!("{name} type {kind}"));
        parts.extend(code.map(|code| format!("{name} code {code}")));
    }
    if let Some(flags) = rule.link.tcp_flags {
        let mask = flags.set | flags.clear;
        parts.push(format!("tcp flags & {mask:#x} == {:#x}", flags.set));
    }
    let start = parts.join(" ");
    let side = if is_in { "saddr" } else { "daddr" };
    match &rule.remote {
        None => vec![start],
        Some(nets) => {
            let each = nets.iter().filter_map(|net| match net {
                IpNet::V4(net) if version != Some(6) => Some(format!("{start} ip {side} {net}")),
                IpNet::V6(net) if version != Some(4) => Some(format!("{start} ip6 {side} {net}")),
                _ => None,
            });
            each.collect()
        }
    }
}

/// What two sides of a connection send in turn: whether it is the originator, and the flags of TCP.
const SESSION: [(bool, u8); 8] = [
    (true, SYN),
    (false, SYN | ACK),
    (true, ACK),
    (false, ACK),
    (true, FIN | ACK),
    (false, ACK),
    (false, FIN | ACK),
    (true, ACK),
];

/// What happens next.
#[derive(Clone, Debug)]
enum Event {
    /// A session goes on. What does not pass is sent again.
    Next(usize),
    /// The side that has not begun it sends a SYN.
    SynFromOther(usize),
    /// A side ends it; the next session has the same ports.
    Reset(usize, bool),
    /// A datagram, or an echo request or reply.
    Datagram(Packet),
}

/// Sessions are between the guest and others, over both versions of IP, begun by either side.
fn opening(session: usize) -> Packet {
    let other = OTHERS[session % 2];
    let (from, to) = match session / 2 % 2 {
        0 => (GUEST, other),
        _ => (other, GUEST),
    };
    Packet {
        v6: session / 4 % 2 == 1,
        ..Packet::new(
            from,
            to,
            TCP,
            (100 + session as u16, session as u16 % 5 + 1),
        )
    }
}

const SESSIONS: usize = 32;

fn any_event() -> impl Strategy<Value = Event> {
    let other = prop::sample::select(OTHERS.to_vec());
    let protocol = prop::sample::select(vec![UDP, 1]);
    let datagram = (
        any::<bool>(),
        other,
        any::<bool>(),
        protocol,
        (1u16..6, 1u16..6),
        any::<bool>(),
    );
    let datagram = datagram.prop_map(|(is_out, other, v6, protocol, ports, is_reply)| {
        let (from, to) = if is_out {
            (GUEST, other)
        } else {
            (other, GUEST)
        };
        let protocol = if protocol == 1 && v6 { 58 } else { protocol };
        Packet {
            v6,
            flags: u8::from(is_reply && protocol != UDP),
            ..Packet::new(from, to, protocol, ports)
        }
    });
    prop_oneof![
        12 => (0..SESSIONS).prop_map(Event::Next),
        2 => (0..SESSIONS).prop_map(Event::SynFromOther),
        1 => (0..SESSIONS, any::<bool>()).prop_map(|(session, side)| Event::Reset(session, side)),
        4 => datagram.prop_map(Event::Datagram),
    ]
}

/// Compares what becomes of each packet.
fn compare(rules: &[Rule], events: &[Event], is_stateful: bool) -> Result<(), TestCaseError> {
    let everything = [Direction::In, Direction::Out].map(|way| rule(way, None, &[], None));
    let mut rig = Rig::new([rules.to_vec(), everything.to_vec()]);
    let mut router = Router::new(rules, is_stateful);
    let (mut steps, mut was_reset) = ([0; SESSIONS], [false; SESSIONS]);
    for (number, event) in events.iter().enumerate() {
        let of = |session: usize, is_original: bool, flags: u8| match is_original {
            true => opening(session).flags(flags),
            false => opening(session).answer().flags(flags),
        };
        let (packet, session) = match event {
            Event::Datagram(packet) => (packet.clone(), None),
            // A session that is over stays so: when it counts as closed differs.
            Event::Next(session) => match SESSION.get(steps[*session]) {
                Some((is_original, flags)) => (of(*session, *is_original, *flags), Some(*session)),
                None => continue,
            },
            // After a reset the kernel takes a SYN for a part of the old connection until it is answered.
            Event::SynFromOther(session)
                if (1..5).contains(&steps[*session]) && !was_reset[*session] =>
            {
                (of(*session, false, SYN), None)
            }
            // Until there was an answer, the kernel compares each packet with the rules.
            Event::Reset(session, side) if (2..5).contains(&steps[*session]) => {
                (of(*session, *side, RST | ACK), None)
            }
            _ => continue,
        };
        let theirs = router.passes(&packet);
        let ours = rig.pass(&packet);
        prop_assert_eq!(ours, theirs, "event {}: {:?}, {:?}", number, event, packet);
        match (event, session) {
            (Event::Reset(session, _), _) if ours => {
                steps[*session] = 0;
                was_reset[*session] = true;
            }
            (_, Some(session)) if ours => steps[session] += 1,
            _ => {}
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nftables_lets_the_same_packets_pass(
        rules in prop::collection::vec(any_rule(), 0..12),
        events in prop::collection::vec(any_event(), 1..250),
        is_stateful in any::<bool>(),
    ) {
        let rules: Vec<Rule> = rules
            .into_iter()
            .map(|mut rule| {
                // A router's filter does not see the guest's VLANs and stations.
                rule.link.macs = [].into();
                rule.link.vlans = [].into();
                rule.stateful = is_stateful;
                rule
            })
            .collect();
        // Each case in a thread, since a thread has one namespace.
        let compared = thread::scope(|scope| {
            let case = scope.spawn(|| compare(&rules, &events, is_stateful));
            case.join().expect("it does not panic")
        });
        compared?;
    }
}
