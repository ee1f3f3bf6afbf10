//! Suppression of ARP and neighbour discovery: a request for an address that is bound to a port, or that its guest has leased
//! by DHCP, goes to that port alone.
//!
//! Nothing answers in the owner's place. So an answer is never out of date, and a station that checks whether a neighbour is still
//! alive asks the neighbour itself. Other ports would not have answered: they may not claim a bound address (`port_security`),
//! and have not leased one of another.
//!
//! A request is flooded as before if the address is of no port or of several, if the frame cannot reach the owner, and if it
//! is an announcement: every station is to know of that.

use std::net::{IpAddr, Ipv6Addr};

use crosspoint_frame::{Burst, Verdict};
use crosspoint_packet::Mac;
use crosspoint_packet::headers::{Fragment, Headers, Stop};

use crate::snapshot::Snapshot;
use crate::stages::port_security::{ARP, ICMPV6, SOLICITATION};

/// ARP over Ethernet for IPv4, and its operation "request" (RFC 826).
const ARP_REQUEST: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 1];
/// Solicited-node multicast addresses (RFC 4291, 2.7.1), and the Ethernet addresses that they are sent to (RFC 2464, 7).
const SOLICITED_NODE: [u8; 13] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff];
const SOLICITED_NODE_MAC: [u8; 3] = [0x33, 0x33, 0xff];
/// Bytes of a frame that are looked at: two tags, the IPv6 header and the target behind it. A solicitation with extension headers
/// is flooded.
const BYTES: usize = 14 + 8 + 40 + 24;

/// Sends the burst's requests for bound addresses to the ports of these addresses in place of a flood. Returns their number.
#[cold]
#[inline(never)]
pub(crate) fn suppress(burst: &mut Burst, ingress: u16, view: &Snapshot) -> u64 {
    let mut suppressed = 0;
    let mut bytes = [0; BYTES];
    for index in 0..burst.len() {
        let Some(frame) = burst.frames().get(index) else {
            break;
        };
        let may_ask = frame.dst == Mac::BROADCAST || frame.dst.bytes()[..3] == SOLICITED_NODE_MAC;
        if frame.verdict != Verdict::FLOOD || !may_ask {
            continue;
        }
        let at = (frame.bridge, frame.vlan, frame.stacked);
        let len = burst.read_beginning(frame, &mut bytes);
        let owner = bytes
            .get(..len)
            .and_then(requested_address)
            .and_then(|address| bound_port(address, at, ingress, view));
        if let (Some(owner), Some(frame)) = (owner, burst.frames_mut().get_mut(index)) {
            frame.verdict = Verdict::port(owner);
            suppressed += 1;
        }
    }
    suppressed
}

/// Returns the address that a request asks for; `None` for any other frame, and for an announcement.
fn requested_address(bytes: &[u8]) -> Option<IpAddr> {
    let headers = Headers::parse(bytes);
    if headers.ethertype == ARP {
        let packet = bytes.get(headers.network..)?;
        let (sender, target) = (address::<4>(packet, 14)?, address::<4>(packet, 24)?);
        let is_request = packet.first_chunk() == Some(&ARP_REQUEST) && sender != target;
        return is_request.then(|| IpAddr::from(target));
    }
    let is_plain = headers.ip_version == 6 && headers.extensions == 0;
    let is_icmp = headers.stop == Stop::Layer4 && headers.protocol == ICMPV6;
    let kind = bytes.get(headers.offset)?;
    if !is_plain || !is_icmp || headers.fragment != Fragment::No || *kind != SOLICITATION {
        return None;
    }
    let is_group = bytes
        .get(headers.network + 24..)?
        .starts_with(&SOLICITED_NODE);
    let target = Ipv6Addr::from(address::<16>(bytes, headers.offset + 8)?);
    is_group.then_some(IpAddr::V6(target))
}

fn address<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// Returns the port that the address is bound to in a VLAN of a bridge, if there is only one, or whose guest has leased it; and
/// if a frame from `ingress` reaches what is attached to it.
fn bound_port(
    address: IpAddr,
    (bridge, vlan, is_behind_tag): (u8, u16, bool),
    ingress: u16,
    view: &Snapshot,
) -> Option<u16> {
    let bindings = view.bindings_of(bridge)?;
    let carries = |number: &u16| {
        view.port(*number)
            .is_some_and(|port| port.vlan.carries(vlan))
    };
    let mut owners = bindings.ips().owners(address).filter(carries);
    let owner = match (owners.next(), owners.next()) {
        (owner, None) => owner,
        _ => return None,
    };
    let leased = || {
        // What is behind a further tag is another network's.
        let leases = view.leases.as_ref()?;
        let owner = leases.port_of((bridge, vlan), address);
        owner.filter(|owner| !is_behind_tag && carries(owner))
    };
    let owner = owner.or_else(leased)?;
    let (from, port) = (view.port(ingress)?, view.port(owner)?);
    let is_reached = port.is_attached() && from.reaches(port);
    (owner != ingress && is_reached).then_some(owner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arp(operation: u8, sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
        let head = [&[0xff; 6][..], &[2; 6], &[8, 6]].concat();
        let kind = [0, 1, 8, 0, 6, 4, 0, operation];
        [
            &head[..],
            &kind,
            &[2; 6],
            &sender,
            &[0; 6],
            &target,
            &[0; 18],
        ]
        .concat()
    }

    fn solicitation(kind: u8, group: [u8; 16], target: [u8; 16]) -> Vec<u8> {
        let head = [&[0x33, 0x33, 0xff, 0, 0, 9][..], &[2; 6], &[0x86, 0xdd]].concat();
        let ip = [
            &[0x60, 0, 0, 0, 0, 24, ICMPV6, 255][..],
            &[0xfe; 16],
            &group,
        ]
        .concat();
        [&head[..], &ip, &[kind, 0, 0, 0, 0, 0, 0, 0], &target].concat()
    }

    #[test]
    fn only_requests_ask_and_announcements_do_not() {
        let (own, other) = ([192, 0, 2, 1], [192, 0, 2, 9]);
        assert_eq!(requested_address(&arp(1, own, other)), Some(other.into()));
        // A station that has no address yet asks whether another has this one (RFC 5227, 2.1.1).
        assert_eq!(
            requested_address(&arp(1, [0; 4], other)),
            Some(other.into())
        );
        assert_eq!(requested_address(&arp(1, own, own)), None);
        assert_eq!(requested_address(&arp(2, own, other)), None);
        let target: [u8; 16] = "2001:db8::9".parse::<Ipv6Addr>().unwrap().octets();
        let mut group = [0; 16];
        group[..13].copy_from_slice(&SOLICITED_NODE);
        assert_eq!(
            requested_address(&solicitation(135, group, target)),
            Some(target.into())
        );
        assert_eq!(requested_address(&solicitation(136, group, target)), None);
        // To all nodes, or to one.
        assert_eq!(requested_address(&solicitation(135, target, target)), None);
        // Cut off anywhere.
        for len in 0..arp(1, own, other).len() {
            let cut = &arp(1, own, other)[..len];
            assert!(requested_address(cut).is_none_or(|address| address == IpAddr::from(other)));
        }
    }
}
