//! Security groups: packets pass if a rule allows them or they belong to a connection, and only then. The oracle is a slow
//! model with a list of rules and a map of connections; frames are made by etherparse.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::sync::Arc;

use crosspoint_engine::groups::{
    Connections, Direction, GroupPolicy, LinkParts, Rule, RuleTable, TcpFlags, Timeouts, Zone,
};
use crosspoint_engine::observe::explain::{Explained, Packet as Specimen, explain};
use crosspoint_frame::Offload;
use crosspoint_packet::{DropReason, IpNet, Mac};
use etherparse::PacketBuilder;
use proptest::prelude::*;

use crate::frames::host;
use crate::ports::{PortOptions, port};
use crate::single::Single;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const SYN: u8 = 2;
pub const ACK: u8 = 16;
pub const RST: u8 = 4;
pub const FIN: u8 = 1;

/// Ports 0 and 1 are guests with groups; port 2 is an uplink without, with two stations behind it.
const PORTS: usize = 3;

/// Station `number` has this address.
pub fn address(number: u8, v6: bool) -> IpAddr {
    match v6 {
        false => Ipv4Addr::new(10, 0, 0, number).into(),
        true => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number.into()).into(),
    }
}

/// The port of a station.
fn port_of(station: u8) -> usize {
    usize::from(station).min(PORTS - 1)
}

#[derive(Clone, Debug)]
pub struct Packet {
    pub from: u8,
    pub to: u8,
    pub v6: bool,
    pub protocol: u8,
    pub ports: (u16, u16),
    pub flags: u8,
    /// Sent to the broadcast address, and so to all ports.
    pub is_flooded: bool,
}

impl Packet {
    pub fn new(from: u8, to: u8, protocol: u8, ports: (u16, u16)) -> Packet {
        Packet {
            from,
            to,
            v6: false,
            protocol,
            ports,
            flags: if protocol == TCP { SYN } else { 0 },
            is_flooded: false,
        }
    }

    pub fn flags(self, flags: u8) -> Packet {
        Packet { flags, ..self }
    }

    pub fn at_port(self, port: u16) -> Packet {
        Packet {
            ports: (self.ports.0, port),
            ..self
        }
    }

    /// The packet that answers it.
    pub fn answer(&self) -> Packet {
        Packet {
            from: self.to,
            to: self.from,
            ports: (self.ports.1, self.ports.0),
            flags: if self.protocol == TCP { SYN | ACK } else { 0 },
            ..self.clone()
        }
    }

    pub fn frame(&self, payload: &[u8]) -> Vec<u8> {
        let dst = match self.is_flooded {
            true => [0xff; 6],
            false => host(port_of(self.to) as u8),
        };
        let link = PacketBuilder::ethernet2(host(port_of(self.from) as u8), dst);
        let (source, destination) = (address(self.from, self.v6), address(self.to, self.v6));
        let network = match (source, destination) {
            (IpAddr::V4(a), IpAddr::V4(b)) => link.ipv4(a.octets(), b.octets(), 64),
            (IpAddr::V6(a), IpAddr::V6(b)) => link.ipv6(a.octets(), b.octets(), 64),
            _ => unreachable!(),
        };
        let mut frame = Vec::new();
        let written = match self.protocol {
            TCP => {
                let mut transport = network.tcp(self.ports.0, self.ports.1, 1, 1024);
                for (flag, set) in [(SYN, 0), (ACK, 1), (RST, 2), (FIN, 3)] {
                    if self.flags & flag != 0 {
                        transport = match set {
                            0 => transport.syn(),
                            1 => transport.ack(1),
                            2 => transport.rst(),
                            _ => transport.fin(),
                        };
                    }
                }
                transport.write(&mut frame, payload)
            }
            UDP => network
                .udp(self.ports.0, self.ports.1)
                .write(&mut frame, payload),
            _ => {
                let id = self.ports.0.max(self.ports.1);
                match (self.v6, self.flags) {
                    (false, 0) => network
                        .icmpv4_echo_request(id, 1)
                        .write(&mut frame, payload),
                    (false, _) => network.icmpv4_echo_reply(id, 1).write(&mut frame, payload),
                    (true, 0) => network
                        .icmpv6_echo_request(id, 1)
                        .write(&mut frame, payload),
                    (true, _) => network.icmpv6_echo_reply(id, 1).write(&mut frame, payload),
                }
            }
        };
        written.unwrap();
        frame
    }
}

pub fn rule(
    direction: Direction,
    protocol: Option<u8>,
    ports: &[RangeInclusive<u16>],
    remote: Option<&[&str]>,
) -> Rule {
    Rule {
        name: String::new(),
        direction,
        ip_version: None,
        protocol,
        ports: ports.into(),
        icmp: None,
        remote: remote.map(|nets| nets.iter().map(|net| net.parse().unwrap()).collect()),
        link: LinkParts::default(),
        stateful: true,
    }
}

/// The switch: two guests with these rules, and an uplink.
pub struct Rig {
    pub single: Single,
    pub zones: [Arc<Zone>; 2],
    pub connections: Arc<Connections>,
    pub tables: [Arc<RuleTable>; 2],
}

impl Rig {
    pub fn new(rules: [Vec<Rule>; 2]) -> Rig {
        Rig::with(rules, 1000)
    }

    pub fn with(rules: [Vec<Rule>; 2], connections_max: u32) -> Rig {
        let tables = rules.map(|rules| Arc::new(RuleTable::compile(rules, 1).unwrap()));
        let zones = [1, 2].map(|id| Arc::new(Zone::new(id, connections_max)));
        let connections = Arc::new(Connections::new(4096, Timeouts::default()));
        let policy = |number: usize| {
            let (table, zone) = (tables.get(number)?.clone(), zones[number].clone());
            Some(Arc::new(GroupPolicy::new(table, zone, 0, false)))
        };
        let made = (0..PORTS).map(|number| {
            let options = PortOptions {
                groups: policy(number),
                ..PortOptions::default()
            };
            port(number as u16, &options, 1)
        });
        let table = connections.clone();
        let single = Single::start_with(made.collect(), Box::new([]), |view| {
            view.connections = Some(table);
        });
        Rig {
            single,
            zones,
            connections,
            tables,
        }
    }

    /// Changes the rules of guest 0.
    pub fn set_rules(&mut self, rules: Vec<Rule>, generation: u8, keeps: bool) {
        let rules = RuleTable::compile(rules, 1).unwrap();
        let zone = self.zones[0].clone();
        let policy = GroupPolicy::new(Arc::new(rules), zone, generation, keeps);
        self.single.change(|ports| {
            if let Some(port) = &mut ports[0] {
                port.groups = Some(Arc::new(policy));
            }
        });
    }

    fn explain(&self, from: usize, frame: &[u8]) -> Explained {
        let specimen = Specimen {
            ingress: from as u16,
            bytes: frame,
            len: frame.len() as u32,
            offload: Offload::default(),
            fate: None,
        };
        explain(specimen, &self.single.view, 0)
    }

    /// The ports that would get a frame from a port now.
    fn explained(&self, from: usize, frame: &[u8]) -> Vec<usize> {
        let explained = self.explain(from, frame);
        let copies = explained
            .copies
            .iter()
            .filter(|copy| copy.dropped.is_none());
        let ports = copies.map(|copy| usize::from(copy.port));
        ports.filter(|_| explained.dropped.is_none()).collect()
    }

    /// Why a frame of a port would be dropped now.
    pub fn explained_drop(&self, from: usize, frame: &[u8]) -> Option<DropReason> {
        self.explain(from, frame).dropped
    }

    /// Sends a frame from a port, and returns the ports that get it.
    pub fn send(&mut self, from: usize, frame: &[u8]) -> Vec<usize> {
        self.single.drivers[from].send(frame);
        self.single.drain_of(from);
        let drivers = self.single.drivers.iter_mut().enumerate();
        let got = drivers.map(|(number, driver)| (number, driver.received().concat()));
        let got: Vec<_> = got.filter(|(_, frames)| !frames.is_empty()).collect();
        for (_, frames) in &got {
            assert_eq!(frames[..], [frame.to_vec()]);
        }
        got.into_iter().map(|(number, _)| number).collect()
    }

    pub fn pass(&mut self, packet: &Packet) -> bool {
        !self
            .send(port_of(packet.from), &packet.frame(b"payload"))
            .is_empty()
    }

    pub fn drops(&self, port: usize) -> HashMap<DropReason, u64> {
        self.single
            .ledgers()
            .swap_remove(port)
            .drops
            .into_iter()
            .collect()
    }
}

/// Address and port.
type End = (IpAddr, u16);

/// A connection of the model: its originator's side, and which sides have sent FIN.
#[derive(Clone)]
struct Known {
    originator: (IpAddr, u16),
    fins: [bool; 2],
    is_closed: bool,
    /// While it is opened: whether the other side has answered the SYN.
    opening: Option<bool>,
}

/// Whether a packet fits the parts of a rule about the frame around it. No frame has a VLAN.
fn fits_link(link: &LinkParts, direction: Direction, packet: &Packet) -> bool {
    let mac = Mac::new(match direction {
        Direction::In => host(port_of(packet.from) as u8),
        Direction::Out if packet.is_flooded => [0xff; 6],
        Direction::Out => host(port_of(packet.to) as u8),
    });
    let is_tcp = packet.protocol == TCP;
    (link.macs.is_empty() || link.macs.contains(&mac))
        && (link.vlans.is_empty() || link.vlans.iter().any(|range| range.contains(&0)))
        && link
            .tcp_flags
            .is_none_or(|parts| is_tcp && parts.fit(packet.flags))
}

/// The slow model of one guest.
struct Model {
    station: u8,
    rules: Vec<Rule>,
    connections: HashMap<(u8, End, End), Known>,
    hits: Vec<u64>,
}

impl Model {
    fn allowing(&self, direction: Direction, packet: &Packet) -> Option<usize> {
        let remote = match direction {
            Direction::In => packet.from,
            Direction::Out => packet.to,
        };
        let remote = address(remote, packet.v6);
        let version = if packet.v6 { 6 } else { 4 };
        let service = match packet.protocol {
            TCP | UDP => packet.ports.1,
            _ if packet.v6 => {
                if packet.flags == 0 {
                    128 << 8
                } else {
                    129 << 8
                }
            }
            _ => {
                if packet.flags == 0 {
                    8 << 8
                } else {
                    0
                }
            }
        };
        self.rules.iter().position(|rule| {
            rule.direction == direction
                && rule.ip_version.is_none_or(|only| only == version)
                && rule.protocol.is_none_or(|only| only == packet.protocol)
                && (rule.ports.is_empty()
                    || rule.ports.iter().any(|range| range.contains(&service)))
                && rule.icmp.is_none_or(|(kind, code)| {
                    service >> 8 == kind.into()
                        && code.is_none_or(|code| service & 0xff == code.into())
                })
                && rule
                    .remote
                    .as_ref()
                    .is_none_or(|nets| nets.iter().any(|net| net.contains(&remote)))
                && fits_link(&rule.link, direction, packet)
        })
    }

    fn passes(&mut self, packet: &Packet) -> bool {
        let direction = match packet.from == self.station {
            true => Direction::Out,
            false => Direction::In,
        };
        let id = packet.ports.0.max(packet.ports.1);
        let is_echo = !matches!(packet.protocol, TCP | UDP);
        let is_reply = is_echo && packet.flags != 0;
        let ports = match (is_echo, is_reply) {
            (true, false) => (id, u16::MAX),
            (true, true) => (u16::MAX, id),
            _ => packet.ports,
        };
        let source = (address(packet.from, packet.v6), ports.0);
        let destination = (address(packet.to, packet.v6), ports.1);
        let key = (
            packet.protocol,
            source.min(destination),
            source.max(destination),
        );
        let has = |flag: u8| packet.protocol == TCP && packet.flags & flag != 0;
        let is_syn = packet.protocol == TCP && packet.flags == SYN;
        // What goes to all stations is in no connection.
        let known = self.connections.get(&key).filter(|_| !packet.is_flooded);
        // The other side's SYN is no part of a connection that it has answered.
        let is_foreign =
            |known: &Known| is_syn && known.originator != source && known.opening != Some(false);
        if known.is_none_or(|known| known.is_closed && is_syn || is_foreign(known)) {
            let is_new = known.is_none_or(|known| known.is_closed);
            let Some(rule) = self.allowing(direction, packet) else {
                return false;
            };
            self.hits[rule] += 1;
            let is_stateful = self.rules[rule].stateful && is_new;
            if !is_stateful || has(RST) || is_reply || packet.is_flooded {
                return true;
            }
            self.connections.insert(
                key,
                Known {
                    originator: source,
                    fins: [false; 2],
                    is_closed: false,
                    opening: is_syn.then_some(false),
                },
            );
            return true;
        }
        if let Some(known) = self.connections.get_mut(&key) {
            let side = usize::from(known.originator != source);
            known.fins[side] |= has(FIN);
            known.is_closed |= has(RST) || known.fins == [true; 2];
            known.opening = match (known.opening, side) {
                _ if has(RST) || has(FIN) => None,
                (Some(false), 1) if has(SYN) => Some(has(ACK)),
                (Some(false), 1) if has(ACK) => None,
                (Some(true), 0) if has(ACK) => None,
                (opening, _) => opening,
            };
        }
        true
    }
}

pub fn any_rule() -> impl Strategy<Value = Rule> {
    let nets = prop::sample::select(vec![
        "10.0.0.0/24",
        "10.0.0.0/31",
        "10.0.0.2/31",
        "10.0.0.3/32",
        "10.0.0.1/32",
        "2001:db8::/64",
        "2001:db8::2/127",
        "2001:db8::3/128",
        "0.0.0.0/0",
        "::/0",
    ]);
    let remote = prop::option::of(prop::collection::vec(nets, 0..4));
    let ports = prop::collection::vec(
        (0u16..6, 0u16..4).prop_map(|(first, more)| first..=first + more),
        0..3,
    );
    let protocol = prop::sample::select(vec![None, Some(TCP), Some(UDP), Some(1), Some(58)]);
    let version = prop::sample::select(vec![None, None, Some(4), Some(6)]);
    let icmp = prop::option::of((
        prop::sample::select(vec![0u8, 8, 128, 129]),
        prop::option::of(0u8..2),
    ));
    let macs = prop::collection::vec((0u8..3).prop_map(|port| Mac::new(host(port))), 0..3);
    let vlans = prop::sample::select(vec![vec![], vec![], vec![0..=0], vec![5..=9], vec![0..=9]]);
    let flags = (any::<u8>(), any::<u8>()).prop_map(|(set, clear)| TcpFlags {
        set: set & (SYN | ACK),
        clear: clear & (FIN | RST),
    });
    // Most rules say nothing of it, and some lists of rules have none that does.
    let link = prop::option::weighted(0.2, (macs, vlans, prop::option::of(flags)));
    (
        any::<bool>(),
        version,
        protocol,
        ports,
        icmp,
        remote,
        (prop::bool::weighted(0.8), link),
    )
        .prop_map(
            |(is_in, ip_version, protocol, ports, icmp, remote, (stateful, link))| {
                let (macs, vlans, flags) = link.unwrap_or_default();
                let has_ports = matches!(protocol, Some(TCP | UDP));
                let is_icmp = matches!(protocol, Some(1 | 58));
                Rule {
                    name: String::new(),
                    direction: if is_in { Direction::In } else { Direction::Out },
                    ip_version,
                    protocol,
                    ports: if has_ports {
                        ports.into()
                    } else {
                        Box::new([])
                    },
                    icmp: icmp.filter(|_| is_icmp),
                    remote: remote.map(|nets| {
                        nets.iter()
                            .map(|net| net.parse::<IpNet>().unwrap())
                            .collect()
                    }),
                    link: LinkParts {
                        macs: macs.into(),
                        vlans: vlans.into(),
                        tcp_flags: flags.filter(|_| protocol == Some(TCP)),
                        ethertype: None,
                    },
                    stateful,
                }
            },
        )
}

pub fn any_packet() -> impl Strategy<Value = Packet> {
    let flags = prop::sample::select(vec![
        SYN,
        SYN,
        SYN | ACK,
        ACK,
        ACK,
        FIN | ACK,
        RST,
        RST | ACK,
        0,
    ]);
    let protocol = prop::sample::select(vec![TCP, TCP, UDP, 1]);
    (
        0u8..4,
        0u8..4,
        any::<bool>(),
        protocol,
        (0u16..6, 0u16..6),
        flags,
        prop::bool::weighted(0.15),
    )
        .prop_filter("two ports", |(from, to, ..)| port_of(*from) != port_of(*to))
        .prop_map(|(from, to, v6, protocol, ports, flags, is_flooded)| {
            let protocol = if protocol == 1 && v6 { 58 } else { protocol };
            let flags = match protocol {
                TCP => flags,
                UDP => 0,
                _ => u8::from(flags == ACK),
            };
            Packet {
                from,
                to,
                v6,
                protocol,
                ports,
                flags,
                is_flooded,
            }
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Each packet reaches exactly the ports whose rules and connections, and its sender's, allow it by the model, and that an
    /// explanation names before it is sent; and each rule has decided as often as in the model.
    #[test]
    fn packets_pass_exactly_as_rules_and_connections_allow(
        rules in [prop::collection::vec(any_rule(), 0..8), prop::collection::vec(any_rule(), 0..80)],
        packets in prop::collection::vec(any_packet(), 1..150),
    ) {
        let mut rig = Rig::new(rules.clone());
        let mut models = [0u8, 1].map(|station| Model {
            station,
            rules: rules[usize::from(station)].clone(),
            connections: HashMap::new(),
            hits: vec![0; rules[usize::from(station)].len()],
        });
        for (number, packet) in packets.iter().enumerate() {
            let from = port_of(packet.from);
            let frame = packet.frame(format!("{number}").as_bytes());
            let explained = rig.explained(from, &frame);
            let got = rig.send(from, &frame);
            prop_assert_eq!(&got, &explained, "packet {}: {:?}", number, packet);
            let is_sent = models.get_mut(from).is_none_or(|model| model.passes(packet));
            let receivers = (0..PORTS).filter(|port| match packet.is_flooded {
                true => *port != from,
                false => *port == port_of(packet.to),
            });
            let mut expected = Vec::new();
            for receiver in receivers.filter(|_| is_sent) {
                if models.get_mut(receiver).is_none_or(|model| model.passes(packet)) {
                    expected.push(receiver);
                }
            }
            prop_assert_eq!(got, expected, "packet {}: {:?}", number, packet);
        }
        for (model, table) in models.iter().zip(&rig.tables) {
            for (rule, hits) in model.hits.iter().enumerate() {
                prop_assert_eq!(table.hits(rule), *hits, "rule {}", rule);
            }
        }
        rig.single.ledgers();
    }
}
