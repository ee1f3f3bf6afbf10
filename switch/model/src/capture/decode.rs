//! A frame in one line, in tcpdump's style.

use std::fmt::Write;
use std::net::IpAddr;

use crosspoint_packet::Mac;
use etherparse::{
    LaxNetSlice, LaxSlicedPacket, LinkSlice, TcpSlice, TransportSlice, icmpv4, icmpv6,
};

/// Describes a frame of `len` bytes that begins with `bytes`: tags, addresses, protocol. With `link`, the MAC addresses come
/// first.
pub fn line(bytes: &[u8], len: u32, link: bool) -> String {
    let Ok(packet) = LaxSlicedPacket::from_ethernet(bytes) else {
        return format!("no Ethernet header, length {len}");
    };
    let mut out = String::new();
    let ethernet = match &packet.link {
        Some(LinkSlice::Ethernet2(ethernet)) => Some(ethernet),
        _ => None,
    };
    if let (true, Some(ethernet)) = (link || packet.net.is_none(), ethernet) {
        let (src, dst) = (
            Mac::new(ethernet.source()),
            Mac::new(ethernet.destination()),
        );
        let _ = write!(out, "{src} > {dst}, ");
    }
    for tag in packet.vlan_ids() {
        let _ = write!(out, "vlan {}, ", tag.value());
    }
    match &packet.net {
        Some(LaxNetSlice::Arp(arp)) => out += &arp_words(&arp.to_packet()),
        Some(net) => out += &ip(net, packet.transport.as_ref()),
        None => {
            let payloads = packet
                .link_exts
                .iter()
                .rev()
                .filter_map(|tag| tag.payload());
            let behind_tags = payloads.map(|payload| payload.ether_type).next();
            let kind = behind_tags.or(ethernet.map(|ethernet| ethernet.ether_type()));
            let _ = write!(out, "ethertype 0x{:04x}", kind.map_or(0, |kind| kind.0));
        }
    }
    let _ = write!(out, ", length {len}");
    out
}

fn arp_words(arp: &etherparse::ArpPacket) -> String {
    let address = |bytes: &[u8]| match <[u8; 4]>::try_from(bytes) {
        Ok(bytes) => IpAddr::from(bytes).to_string(),
        Err(_) => "?".to_owned(),
    };
    let (sender, target) = (
        address(arp.sender_protocol_addr()),
        address(arp.target_protocol_addr()),
    );
    let hardware = <[u8; 6]>::try_from(arp.sender_hw_addr()).map(Mac::new);
    match (arp.operation.0, hardware) {
        (1, _) => format!("ARP, request who-has {target} tell {sender}"),
        (2, Ok(mac)) => format!("ARP, reply {sender} is-at {mac}"),
        (other, _) => format!("ARP, operation {other}, {sender} > {target}"),
    }
}

fn ip(net: &LaxNetSlice<'_>, transport: Option<&TransportSlice<'_>>) -> String {
    let (version, src, dst): (_, IpAddr, IpAddr) = match net {
        LaxNetSlice::Ipv4(ip) => {
            let header = ip.header();
            ("IP", header.source().into(), header.destination().into())
        }
        LaxNetSlice::Ipv6(ip) => {
            let header = ip.header();
            ("IP6", header.source().into(), header.destination().into())
        }
        LaxNetSlice::Arp(_) => return String::new(),
    };
    let payload = net.ip_payload_ref();
    let protocol = payload.map_or(0, |payload| payload.ip_number.0);
    let is_fragment = payload.is_some_and(|payload| payload.fragmented);
    let ends = |from: u16, to: u16| format!("{version} {src}.{from} > {dst}.{to}");
    match transport {
        Some(TransportSlice::Tcp(tcp)) => {
            let ends = ends(tcp.source_port(), tcp.destination_port());
            format!("{ends}: TCP {}", flags(tcp))
        }
        Some(TransportSlice::Udp(udp)) => {
            format!("{}: UDP", ends(udp.source_port(), udp.destination_port()))
        }
        Some(TransportSlice::Icmpv4(icmp)) => {
            let words = match icmp.type_u8() {
                icmpv4::TYPE_ECHO_REQUEST => echo("request", icmp.bytes5to8()),
                icmpv4::TYPE_ECHO_REPLY => echo("reply", icmp.bytes5to8()),
                icmpv4::TYPE_DEST_UNREACH => format!("unreachable, code {}", icmp.code_u8()),
                other => format!("type {other}, code {}", icmp.code_u8()),
            };
            format!("{version} {src} > {dst}: ICMP {words}")
        }
        Some(TransportSlice::Icmpv6(icmp)) => {
            let words = match icmp.type_u8() {
                icmpv6::TYPE_ECHO_REQUEST => echo("request", icmp.bytes5to8()),
                icmpv6::TYPE_ECHO_REPLY => echo("reply", icmp.bytes5to8()),
                icmpv6::TYPE_NEIGHBOR_SOLICITATION => "neighbor solicitation".to_owned(),
                icmpv6::TYPE_NEIGHBOR_ADVERTISEMENT => "neighbor advertisement".to_owned(),
                icmpv6::TYPE_ROUTER_SOLICITATION => "router solicitation".to_owned(),
                icmpv6::TYPE_ROUTER_ADVERTISEMENT => "router advertisement".to_owned(),
                other => format!("type {other}, code {}", icmp.code_u8()),
            };
            format!("{version} {src} > {dst}: ICMP6 {words}")
        }
        _ => {
            let kind = if is_fragment {
                "fragment of protocol"
            } else {
                "protocol"
            };
            format!("{version} {src} > {dst}: {kind} {protocol}")
        }
    }
}

fn echo(kind: &str, [a, b, c, d]: [u8; 4]) -> String {
    let (id, number) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    format!("echo {kind}, id {id}, seq {number}")
}

/// TCP flags as tcpdump prints them: `S`, `.` for an acknowledgment.
fn flags(tcp: &TcpSlice<'_>) -> String {
    let all = [
        (tcp.syn(), 'S'),
        (tcp.fin(), 'F'),
        (tcp.rst(), 'R'),
        (tcp.psh(), 'P'),
        (tcp.urg(), 'U'),
        (tcp.ack(), '.'),
    ];
    let set: String = all.iter().filter(|(is, _)| *is).map(|(_, c)| *c).collect();
    format!("[{}]", if set.is_empty() { "none" } else { &set })
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    fn built(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut frame = Vec::new();
        write(&mut frame);
        frame
    }

    #[test]
    fn a_line_says_who_and_what() {
        let link = || PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let v4 = || link().ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
        let id = etherparse::VlanId::try_new(100).unwrap();
        let tcp = built(|out| {
            v4().tcp(1234, 80, 7, 100)
                .syn()
                .ack(8)
                .write(out, b"x")
                .unwrap()
        });
        assert_eq!(
            line(&tcp, 55, false),
            "IP 10.0.0.1.1234 > 10.0.0.2.80: TCP [S.], length 55"
        );
        let udp = built(|out| {
            let ip = link().single_vlan(id).ipv6([1; 16], [2; 16], 64);
            ip.udp(5, 53).write(out, &[]).unwrap();
        });
        let text = line(&udp, 66, true);
        assert!(
            text.starts_with("02:00:00:00:00:01 > 02:00:00:00:00:02, vlan 100, IP6 101:"),
            "{text}"
        );
        assert!(text.ends_with(".53: UDP, length 66"), "{text}");
        let ping = built(|out| v4().icmpv4_echo_request(7, 3).write(out, &[0; 8]).unwrap());
        assert!(line(&ping, 50, false).contains("10.0.0.2: ICMP echo request, id 7, seq 3"));
        // Cut off behind the IP header, as a short capture is.
        let cut = line(&tcp[..34], 1500, false);
        assert!(
            cut.starts_with("IP 10.0.0.1 > 10.0.0.2: protocol 6"),
            "{cut}"
        );
        let arp = [
            &[0xff; 6][..],
            &[
                2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 10, 0, 0, 1,
            ],
            &[0; 6],
            &[10, 0, 0, 2],
        ];
        assert_eq!(
            line(&arp.concat(), 60, false),
            "ARP, request who-has 10.0.0.2 tell 10.0.0.1, length 60"
        );
        let other = [&[2; 12][..], &[0x88, 0xcc, 1]].concat();
        let text = line(&other, 60, false);
        assert_eq!(
            text,
            "02:02:02:02:02:02 > 02:02:02:02:02:02, ethertype 0x88cc, length 60"
        );
        assert_eq!(line(&[1], 1, false), "no Ethernet header, length 1");
    }

    proptest! {
        #[test]
        fn any_bytes_make_one_plain_line(
            kind in prop::sample::select(vec![0x0800_u16, 0x86dd, 0x0806, 0x8100, 0x88cc]),
            bytes in prop::collection::vec(any::<u8>(), 0..120), len: u32,
        ) {
            let frame = [&[2; 12][..], &kind.to_be_bytes(), &bytes].concat();
            for text in [line(&frame, len, true), line(&bytes, len, false)] {
                prop_assert!(!text.contains(|c: char| c.is_control()), "{}", text);
            }
        }
    }
}
