//! What passes without a rule: without it no station could use the network. Each kind is as narrow as its protocol allows, so
//! that it is no channel for anything else.

use std::net::Ipv6Addr;

use crosspoint_frame::Frame;
use crosspoint_packet::headers::{Headers, Stop};

use super::key::Ends;
use super::numbers::ICMPV6;
use super::packet::bytes_at;
use crate::stages::port_security::is_hidden;

const ARP: u16 = 0x0806;
/// Reverse ARP (RFC 903): by it a switch tells the network where a guest is after it has moved.
const RARP: u16 = 0x8035;
/// Length of ARP for Ethernet and IPv4, bytes; and the most that its frame has, padded, with tags.
const ARP_LEN: usize = 28;
const ARP_FRAME_MAX: u32 = 72;
/// Hop limit that receivers require of neighbour discovery (RFC 4861, 7.1).
const HOPS: u8 = 255;
const IGMP: u8 = 2;
/// DHCP for IPv6 has its servers in this group (RFC 8415, 7.1).
const DHCP_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
const BROADCAST: u128 = 0xffff_ffff_ffff;

/// ARP; and link-local control frames, as far as the port forwards them.
pub(super) fn is_link_frame(frame: &Frame, headers: &Headers) -> bool {
    match headers.ethertype {
        ARP | RARP => {
            // Hardware Ethernet or IEEE 802, protocol IPv4, and the lengths of their addresses.
            const KINDS: [[u8; 6]; 2] = [[0, 1, 8, 0, 6, 4], [0, 6, 8, 0, 6, 4]];
            let is_known = bytes_at(frame.headers(), headers.network)
                .is_some_and(|kind| KINDS.contains(&kind));
            let is_whole = frame.len as usize >= headers.network + ARP_LEN;
            is_known && is_whole && frame.len <= ARP_FRAME_MAX
        }
        _ => {
            // Receivers take IP from any group address.
            let is_ip = headers.ip_version != 0 || matches!(headers.stop, Stop::BadHeader);
            frame.dst.is_link_local_control() && !is_ip && !is_hidden(frame.headers(), headers)
        }
    }
}

fn v6_at(bytes: &[u8], at: usize) -> Option<Ipv6Addr> {
    bytes_at::<16>(bytes, at).map(Ipv6Addr::from)
}

/// Neighbour discovery (RFC 4861, 4). A solicitation for one station goes to the address that it asks about: others would be
/// packets for any station, also behind a router.
pub(super) fn is_discovery(bytes: &[u8], headers: &Headers) -> bool {
    if headers.ip_version != 6 || headers.protocol != ICMPV6 || headers.extensions > 0 {
        return false;
    }
    let (hops, at) = (bytes.get(headers.network + 7).copied(), headers.offset);
    let (destination, target) = (v6_at(bytes, headers.network + 24), v6_at(bytes, at + 8));
    let is_near = destination.is_some_and(|to| to.is_multicast() || to.is_unicast_link_local());
    let is_its = match bytes_at(bytes, at) {
        Some([133 | 134 | 137, 0]) => is_near,
        Some([135, 0]) => is_near || destination == target,
        Some([136, 0]) => true,
        _ => false,
    };
    is_its && hops == Some(HOPS)
}

/// What hosts tell switches of the groups that they listen to: IGMP (RFC 2236, RFC 3376), and the same for IPv6 (RFC 2710,
/// RFC 3810).
pub(super) fn is_membership(bytes: &[u8], headers: &Headers) -> bool {
    let at = headers.network;
    match headers.ip_version {
        4 => {
            let is_to_group = bytes.get(at + 16).is_some_and(|first| *first >= 224);
            headers.protocol == IGMP && bytes.get(at + 8) == Some(&1) && is_to_group
        }
        _ => {
            let is_to_group = bytes.get(at + 24) == Some(&0xff);
            let is_message = matches!(bytes.get(headers.offset), Some(130..=132 | 143));
            let is_icmp = headers.protocol == ICMPV6 && is_message;
            is_icmp && bytes.get(at + 7) == Some(&1) && is_to_group
        }
    }
}

/// DHCP (RFC 2131, 4.1; RFC 8415, 7.2): returns whether it goes to a server. A client asks all servers of its network, and
/// not one beyond it; and for IPv6 all that is said is between addresses of the link.
pub(super) fn dhcp(version: u8, ends: &Ends, is_to_group: bool) -> Option<bool> {
    let (source, destination) = (
        Ipv6Addr::from_bits(ends.source),
        Ipv6Addr::from_bits(ends.destination),
    );
    match (version, ends.source_port, ends.destination_port) {
        (4, 68, 67) => (is_to_group || ends.destination == BROADCAST).then_some(true),
        (4, 67, 68) => Some(false),
        (6, 546, 547) => {
            let is_near = destination == DHCP_SERVERS || destination.is_unicast_link_local();
            (is_near && source.is_unicast_link_local()).then_some(true)
        }
        (6, 547, 546) => {
            (source.is_unicast_link_local() && destination.is_unicast_link_local()).then_some(false)
        }
        _ => None,
    }
}
