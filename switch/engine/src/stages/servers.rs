//! Rogue servers: DHCP replies and IPv6 router advertisements from ports that must not send them.
//!
//! A guest that answers DHCP, or announces itself as a router, takes its neighbours' traffic. A port without `dhcp_server`
//! may send neither. Decided on the first bytes of a frame, which are what is delivered; a packet whose headers hide what it
//! is from these is refused too, if a server could send it (RFC 7113 for router advertisements, RFC 7610 for DHCPv6).

use crosspoint_frame::{Burst, Frame};
use crosspoint_packet::DropReason;
use crosspoint_packet::headers::{Fragment, Headers, Stop};

use crate::stages::port_security;

/// UDP ports that servers of DHCP (RFC 2131, 4.1) and DHCPv6 (RFC 8415, 7.2) send from.
const SERVER_PORTS: [u16; 2] = [67, 547];
/// Types of a router advertisement, and of a redirect, which only routers send (RFC 4861, 4.2 and 4.5).
const OF_ROUTERS: [u8; 2] = [134, 137];
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// Drops what only servers and routers send. A frame that is already dropped keeps its reason.
pub(crate) fn refuse(burst: &mut Burst) {
    for frame in burst.frames_mut() {
        // Nearly all frames: untagged IPv4 without options, and neither from a server's port nor a later fragment.
        if frame.head[12..15] == [0x08, 0x00, 0x45] {
            let is_udp = frame.head[23] == UDP;
            if !is_udp || frame.head[34..36] != SERVER_PORTS[0].to_be_bytes() {
                continue;
            }
        }
        if is_servers(frame) {
            frame.drop_for(DropReason::ServerNotAllowed);
        }
    }
}

/// Whether only a server or a router sends such a frame.
#[inline(never)]
fn is_servers(frame: &Frame) -> bool {
    let bytes = frame.headers();
    let headers = Headers::parse(bytes);
    let at = |offset: usize| bytes.get(headers.offset + offset).copied();
    // The transport header lies beyond the bytes that are decided on, or in another fragment (RFC 7112).
    let is_hidden = frame.len as usize > bytes.len() || headers.fragment == Fragment::First;
    let is_hidden_elsewhere = headers.ip_version == 0 && port_security::is_hidden(bytes, &headers);
    match (headers.ip_version, headers.stop, headers.protocol) {
        (4 | 6, Stop::Layer4, UDP) => match (at(0), at(1)) {
            (Some(high), Some(low)) => SERVER_PORTS.contains(&u16::from_be_bytes([high, low])),
            _ => is_hidden,
        },
        (6, Stop::Layer4, ICMPV6) => match at(0) {
            Some(kind) => OF_ROUTERS.contains(&kind),
            None => is_hidden,
        },
        // A router advertisement comes from a link-local address (RFC 4861, 4.2), and so does a DHCPv6 reply.
        (6, Stop::CutShort | Stop::TooManyExtensions, _) => {
            let source = bytes.get(headers.network + 8..headers.network + 10);
            let is_link_local =
                source.is_some_and(|source| source[0] == 0xfe && source[1] & 0xc0 == 0x80);
            is_link_local && headers.fragment != Fragment::Later
        }
        _ => is_hidden_elsewhere,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame with these bytes behind its link header, cut or padded to what a burst holds of it.
    fn is_dropped(ethertype: &[u8], packet: &[u8]) -> bool {
        let bytes = [&[2; 12][..], ethertype, packet].concat();
        let mut burst = Burst::new();
        let mut short = [0; 60];
        let len = bytes.len().min(60);
        short[..len].copy_from_slice(&bytes[..len]);
        burst.push_short(&short);
        let frame = &mut burst.frames_mut()[0];
        frame.len = bytes.len().max(60) as u32;
        refuse(&mut burst);
        burst.frames()[0].verdict == crosspoint_frame::Verdict::drop(DropReason::ServerNotAllowed)
    }

    fn ipv4(options: usize, protocol: u8, ports: [u16; 2]) -> Vec<u8> {
        let mut packet = vec![0; 20 + options + 8];
        (packet[0], packet[9]) = (0x45 + (options / 4) as u8, protocol);
        packet[20 + options..22 + options].copy_from_slice(&ports[0].to_be_bytes());
        packet[22 + options..24 + options].copy_from_slice(&ports[1].to_be_bytes());
        packet
    }

    fn ipv6(next: &[u8], source: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; 40];
        (packet[0], packet[6], packet[8], packet[9]) = (0x60, next[0], source, 0x80);
        // Each extension header of eight bytes names the next.
        for next in &next[1..] {
            packet.extend([*next, 0, 0, 0, 0, 0, 0, 0]);
        }
        packet.extend(payload);
        packet
    }

    #[test]
    fn what_only_servers_send_is_refused_however_it_is_wrapped() {
        let (v4, v6, tag): (&[u8], &[u8], &[u8]) = (&[8, 0], &[0x86, 0xdd], &[0x81, 0, 0, 7, 8, 0]);
        let udp =
            |source: u16| [source.to_be_bytes(), 546u16.to_be_bytes(), [0; 2], [0; 2]].concat();
        for (what, expected, ethertype, packet) in [
            ("a DHCP reply", true, v4, ipv4(0, 17, [67, 68])),
            (
                "a DHCP reply behind options",
                true,
                v4,
                ipv4(8, 17, [67, 68]),
            ),
            (
                "UDP behind more options than are seen",
                true,
                v4,
                ipv4(40, 17, [1, 2]),
            ),
            ("a tagged DHCP reply", true, tag, ipv4(0, 17, [67, 68])),
            ("a DHCP request", false, v4, ipv4(0, 17, [68, 67])),
            ("TCP from port 67", false, v4, ipv4(0, 6, [67, 68])),
            ("a DHCPv6 reply", true, v6, ipv6(&[17], 0xfe, &udp(547))),
            ("a DHCPv6 request", false, v6, ipv6(&[17], 0xfe, &udp(546))),
            (
                "a router advertisement",
                true,
                v6,
                ipv6(&[58], 0xfe, &[134, 0]),
            ),
            ("a redirect", true, v6, ipv6(&[58], 0xfe, &[137, 0])),
            (
                "a router advertisement that cannot be seen",
                true,
                v6,
                ipv6(&[0, 60, 58], 0xfe, &[134, 0]),
            ),
            (
                "options of another source that end beyond",
                false,
                v6,
                ipv6(&[0, 60, 58], 0x20, &[134, 0]),
            ),
            (
                "a first fragment without its transport header",
                true,
                v6,
                [ipv6(&[44], 0xfe, &[]), vec![58, 0, 0, 1, 0, 0, 0, 1]].concat(),
            ),
            (
                "a neighbour solicitation",
                false,
                v6,
                ipv6(&[58], 0xfe, &[135, 0]),
            ),
            ("ARP", false, &[8, 6], vec![0; 28]),
            (
                "a packet behind three tags",
                true,
                &[0x81, 0, 0, 0, 0x81, 0, 0, 0, 0x81, 0, 0, 0, 0x86, 0xdd],
                ipv6(&[58], 0xfe, &[134, 0]),
            ),
            (
                "a packet behind a SNAP header",
                true,
                &[0, 60, 0xaa, 0xaa, 3, 0, 0, 0, 8, 0],
                ipv4(0, 17, [67, 68]),
            ),
            ("spanning tree", false, &[0, 38, 0x42, 0x42, 3], vec![0; 35]),
            (
                "CDP",
                false,
                &[0, 60, 0xaa, 0xaa, 3, 0, 0, 0x0c, 0x20, 0],
                vec![0; 50],
            ),
        ] {
            assert_eq!(is_dropped(ethertype, &packet), expected, "{what}");
        }
    }
}
