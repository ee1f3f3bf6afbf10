//! Linux as the reference for rules by MAC address, VLAN and Ethernet type: a bridge with nftables, in a network namespace, gets
//! the same rules and the same frames; both must let the same frames pass.

use std::fs::File;
use std::io::Write;
use std::thread;

use crosspoint_engine::groups::{Direction, LinkParts, Rule};
use crosspoint_packet::Mac;
use proptest::prelude::*;

use crate::frames::host;
use crate::groups::{Packet, Rig, UDP, rule};
use crate::groups_kernel::{comes_before_mark, nft};
use crate::netns::{self, ip};

const GUEST: u8 = 0;
/// Stations behind the uplink.
const OTHERS: [u8; 3] = [2, 3, 4];
const UPLINK: usize = 2;
const VLANS: [u16; 3] = [5, 7, 9];
/// Types that are neither IP nor what always passes.
const TYPES: [u16; 3] = [0x1234, 0x88b5, 0x9000];
/// Type of the frame that passes always, and shows that the one before it has been decided on.
const MARK: u16 = 0x88b6;

/// A frame: the way, the station at the other end, its VLAN, and its type; IP with UDP if that is `None`.
#[derive(Clone, Debug)]
struct Sent {
    is_out: bool,
    other: u8,
    vlan: Option<u16>,
    ethertype: Option<u16>,
    ports: (u16, u16),
}

impl Sent {
    fn ends(&self) -> (u8, u8) {
        match self.is_out {
            true => (GUEST, self.other),
            false => (self.other, GUEST),
        }
    }

    fn frame(&self, text: &[u8]) -> Vec<u8> {
        let (from, to) = self.ends();
        let mut frame = match self.ethertype {
            None => Packet::new(from, to, UDP, self.ports).frame(text),
            Some(ethertype) => {
                let mut frame = [&[0; 12], &ethertype.to_be_bytes()[..], text].concat();
                frame.resize(60, 0);
                frame
            }
        };
        frame[..6].copy_from_slice(&host(to));
        frame[6..12].copy_from_slice(&host(from));
        if let Some(vlan) = self.vlan {
            let tag = [[0x81, 0], vlan.to_be_bytes()].concat();
            frame.splice(12..12, tag);
        }
        frame
    }
}

/// The kernel as a bridge with a filter.
struct Bridge {
    guest: File,
    others: File,
}

impl Bridge {
    /// Makes the bridge in a namespace of the calling thread.
    fn new(rules: &[Rule]) -> Bridge {
        netns::namespace();
        let open = |name: &str| netns::tap(name, 0);
        let (guest, others) = (open("guest"), open("others"));
        ip("link add name bridge type bridge mcast_snooping 0 forward_delay 0");
        for name in ["guest", "others"] {
            ip(&format!("link set {name} master bridge up"));
        }
        ip("link set bridge up");
        nft(&script(rules));
        Bridge { guest, others }
    }

    fn passes(&mut self, sent: &Sent) -> bool {
        let mark = Sent {
            vlan: None,
            ethertype: Some(MARK),
            ..sent.clone()
        };
        let (from, to) = match sent.is_out {
            true => (&mut self.guest, &mut self.others),
            false => (&mut self.others, &mut self.guest),
        };
        for frame in [sent.frame(b"this one"), mark.frame(b"the mark")] {
            from.write_all(&frame).expect("the kernel takes it");
        }
        comes_before_mark(to)
    }
}

/// The rules for nftables. All that they do not accept is dropped.
fn script(rules: &[Rule]) -> String {
    let mut text = format!(
        "table bridge t {{\n chain c {{\n  type filter hook forward priority filter; policy drop;\n  ether type {MARK:#x} accept\n"
    );
    for rule in rules {
        for condition in conditions(rule) {
            text += &format!("  {condition} accept\n");
        }
    }
    text + " }\n}\n"
}

/// Conditions of nftables that together are those of a rule: a tagged and an untagged frame need one each.
fn conditions(rule: &Rule) -> Vec<String> {
    let (way, side) = match rule.direction {
        Direction::In => ("iifname others oifname guest", "saddr"),
        Direction::Out => ("iifname guest oifname others", "daddr"),
    };
    let mut all = way.to_owned();
    let link = &rule.link;
    if !link.macs.is_empty() {
        let macs: Vec<String> = link.macs.iter().map(Mac::to_string).collect();
        all += &format!(" ether {side} {{ {} }}", macs.join(", "));
    }
    let is_in =
        |vlan: u16| link.vlans.is_empty() || link.vlans.iter().any(|all| all.contains(&vlan));
    let kind = link.ethertype.unwrap_or(0x0800);
    let udp = match link.ethertype {
        None if !rule.ports.is_empty() => {
            let ports = rule.ports.iter().cloned().flatten();
            let ports: std::collections::BTreeSet<String> =
                ports.map(|port| port.to_string()).collect();
            let ports: Vec<String> = ports.into_iter().collect();
            format!(" udp dport {{ {} }}", ports.join(", "))
        }
        _ => String::new(),
    };
    let mut conditions = Vec::new();
    if is_in(0) {
        conditions.push(format!("{all} ether type {kind:#x}{udp}"));
    }
    for vlan in VLANS.into_iter().filter(|vlan| is_in(*vlan)) {
        conditions.push(format!("{all} vlan id {vlan} vlan type {kind:#x}{udp}"));
    }
    conditions
}

fn any_link_rule() -> impl Strategy<Value = Rule> {
    let stations = OTHERS.to_vec();
    let macs = prop::collection::vec(prop::sample::select(stations), 0..3);
    let vlans = prop::sample::select(vec![
        vec![],
        vec![0..=0],
        vec![5..=7],
        vec![0..=9],
        vec![9..=9],
    ]);
    let ethertype = prop::option::of(prop::sample::select(TYPES.to_vec()));
    let ports = prop::collection::vec(
        (1u16..6, 0u16..3).prop_map(|(first, more)| first..=first + more),
        0..2,
    );
    (any::<bool>(), macs, vlans, ethertype, ports).prop_map(
        |(is_in, macs, vlans, ethertype, ports)| {
            let direction = if is_in { Direction::In } else { Direction::Out };
            let macs: Vec<Mac> = macs
                .into_iter()
                .map(|station| Mac::new(host(station)))
                .collect();
            // A rule for a type has no part that is of IP.
            let (protocol, ports) = match ethertype {
                Some(_) => (None, Vec::new()),
                None => (Some(UDP), ports),
            };
            Rule {
                link: LinkParts {
                    macs: macs.into(),
                    vlans: vlans.into(),
                    tcp_flags: None,
                    ethertype,
                },
                stateful: false,
                ..rule(direction, protocol, &ports, None)
            }
        },
    )
}

fn any_frame() -> impl Strategy<Value = Sent> {
    let vlan = prop::option::of(prop::sample::select(VLANS.to_vec()));
    let ethertype = prop::option::of(prop::sample::select(TYPES.to_vec()));
    let other = prop::sample::select(OTHERS.to_vec());
    (any::<bool>(), other, vlan, ethertype, (1u16..6, 1u16..9)).prop_map(
        |(is_out, other, vlan, ethertype, ports)| Sent {
            is_out,
            other,
            vlan,
            ethertype,
            ports,
        },
    )
}

fn compare(rules: &[Rule], frames: &[Sent]) -> Result<(), TestCaseError> {
    let everything = [Direction::In, Direction::Out].map(|way| rule(way, None, &[], None));
    let mut rig = Rig::new([rules.to_vec(), everything.to_vec()]);
    let mut bridge = Bridge::new(rules);
    for sent in frames {
        let (from, to) = match sent.is_out {
            true => (usize::from(GUEST), UPLINK),
            false => (UPLINK, usize::from(GUEST)),
        };
        let ours = rig.send(from, &sent.frame(b"this one")).contains(&to);
        prop_assert_eq!(ours, bridge.passes(sent), "{:?}", sent);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_bridge_of_linux_lets_the_same_frames_pass(
        rules in prop::collection::vec(any_link_rule(), 0..8),
        frames in prop::collection::vec(any_frame(), 1..120),
    ) {
        // Each case in a thread, since a thread has one namespace.
        let compared = thread::scope(|scope| {
            let case = scope.spawn(|| compare(&rules, &frames));
            case.join().expect("it does not panic")
        });
        compared?;
    }
}
