//! Checks whether a sender's offload request fits its frame.
//!
//! A receiver that takes such requests executes them, so a guest must not be able to make another guest's kernel write
//! what it could not send itself: a "checksum" in an IP address, or segments of a frame that is not TCP.

use crate::checksum::Partial;
use crate::headers::{Headers, Stop};
use crate::parse::{ETHERNET_LEN, ETHERTYPE_ARP, PROTO_TCP, PROTO_UDP, UDP_HEADER};
use crate::segment::{SegmentError, find_transport};

/// Offset of the checksum in a UDP header.
const UDP_CHECKSUM: u16 = 6;
/// Offset of the checksum in an ICMP and an ICMPv6 header, and their protocol numbers (RFC 792, RFC 4443).
const ICMP_CHECKSUM: u16 = 2;
/// Offset of the checksum in an SCTP header (RFC 9260, 3.1).
const SCTP_CHECKSUM: u16 = 8;
const PROTO_SCTP: u8 = 132;
const PROTO_ICMP: u8 = 1;
const PROTO_ICMPV6: u8 = 58;
/// Most tags that are skipped, two at a time, to find the headers after them; a frame with more is refused.
const TAGS_TAKEN_MAX: usize = 4;
/// Ports of DHCP and DHCPv6, both sides (RFC 2131, 4.1; RFC 8415, 7.2).
const DHCP_PORTS: [u16; 4] = [67, 68, 546, 547];

/// Returns whether a checksum may be requested at `place` (virtio 1.2, 5.1.6.2.1, `VIRTIO_NET_HDR_F_NEEDS_CSUM`): at the
/// frame's transport header, or further inside, in an encapsulated packet; never in the link or IP headers. `headers` is
/// the frame's beginning; `None` if more of it is needed. The caller checks that the place is within the frame.
pub fn is_checksum_place(headers: &[u8], frame_len: usize, place: Partial) -> Option<bool> {
    is_place_behind(headers, frame_len, place, TAGS_TAKEN_MAX)
}

/// The same for a frame of which up to `tags` more tags may be skipped.
fn is_place_behind(headers: &[u8], frame_len: usize, place: Partial, tags: usize) -> Option<bool> {
    let (start, offset) = (usize::from(place.start), place.offset);
    let found = Headers::parse(headers);
    let l4 = match find_transport(&found, frame_len) {
        Ok(l4) => l4,
        Err(SegmentError::Truncated) if headers.len() < frame_len => return None,
        // Other protocols may carry it further inside (HSR, NSH, PPPoE); but ARP has no checksum.
        Err(SegmentError::OtherProtocol) => {
            return match (found.stop, found.ethertype) {
                (Stop::TooManyTags, _) if tags > 0 => {
                    behind_tags(headers, frame_len, place, found.network, tags)
                }
                (Stop::TooManyTags, _) | (_, ETHERTYPE_ARP) => Some(false),
                _ => Some(start >= found.network),
            };
        }
        Err(_) => return Some(false),
    };
    Some(match l4.protocol {
        PROTO_TCP => start == l4.offset && offset == 16,
        PROTO_UDP => (start == l4.offset && offset == 6) || start >= l4.offset + UDP_HEADER,
        // An offset elsewhere would write into a message's type or addresses, after it was checked.
        PROTO_SCTP => start == l4.offset && offset == SCTP_CHECKSUM,
        PROTO_ICMP | PROTO_ICMPV6 => start == l4.offset && offset == ICMP_CHECKSUM,
        _ => start >= l4.offset,
    })
}

/// The same for a frame with a third tag, which begins at `third`: checks the frame without the first two.
fn behind_tags(
    headers: &[u8],
    frame_len: usize,
    place: Partial,
    third: usize,
    tags: usize,
) -> Option<bool> {
    let taken = third - ETHERNET_LEN;
    let start = usize::from(place.start).checked_sub(taken);
    let (Some(start), Some(headers)) = (start, headers.get(taken..)) else {
        return Some(false);
    };
    let place = Partial {
        start: start as u16,
        ..place
    };
    let left = tags.saturating_sub(2);
    is_place_behind(headers, frame_len.saturating_sub(taken), place, left)
}

/// Returns whether the checksum at `place` is that of a UDP header with a destination port of DHCP. DHCP clients read raw
/// frames, before they have an address, and many discard those with an unfinished checksum. `None` if more of the frame
/// is needed.
pub fn is_dhcp(headers: &[u8], frame_len: usize, place: Partial) -> Option<bool> {
    if place.offset != UDP_CHECKSUM {
        return Some(false);
    }
    let start = usize::from(place.start);
    let Some(&[high, low]) = headers.get(start + 2..start + 4) else {
        // For a tunnel the outer headers decide: a DHCP client does not read inner packets.
        let is_further_in =
            find_transport(&Headers::parse(headers), frame_len).is_ok_and(|l4| l4.offset != start);
        return (is_further_in || headers.len() >= frame_len).then_some(false);
    };
    // Ports first: hardly any frame has them.
    let is_port = DHCP_PORTS.contains(&u16::from_be_bytes([high, low]));
    let is_udp = || {
        let l4 = find_transport(&Headers::parse(headers), frame_len);
        l4.is_ok_and(|l4| (l4.protocol, l4.offset) == (PROTO_UDP, start))
    };
    Some(is_port && is_udp())
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    /// Else a guest could have the switch write another guest's address into neighbour discovery after it was checked.
    #[test]
    fn an_icmp_message_has_its_checksum_at_one_place() {
        let ip = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv6([1; 16], [2; 16], 255);
        let mut frame = Vec::new();
        ip.icmpv6_echo_request(1, 2)
            .write(&mut frame, &[0; 32])
            .unwrap();
        let head = frame.get(..64).unwrap();
        for start in 0..100 {
            for offset in 0..60 {
                let allowed = is_checksum_place(head, frame.len(), Partial { start, offset });
                assert_eq!(
                    allowed,
                    Some((start, offset) == (54, 2)),
                    "{start} {offset}"
                );
            }
        }
    }

    proptest! {
        /// In any frame, no place in link or IP headers is allowed; for TCP and UDP, the checksum's own place is.
        #[test]
        fn only_a_transports_checksum_may_be_asked_for(
            v6: bool, tcp: bool, payload in prop::collection::vec(any::<u8>(), 0..100), start in 0u16..120, offset in 0u16..64,
        ) {
            let eth = PacketBuilder::ethernet2([2; 6], [4; 6]);
            let ip = if v6 { eth.ipv6([1; 16], [2; 16], 9) } else { eth.ipv4([1; 4], [2; 4], 9) };
            let mut frame = Vec::new();
            match tcp {
                true => ip.tcp(1, 2, 3, 4).write(&mut frame, &payload).unwrap(),
                false => ip.udp(1, 2).write(&mut frame, &payload).unwrap(),
            }
            let transport = if v6 { 54 } else { 34 };
            let head = frame.get(..frame.len().min(64)).unwrap();
            let allowed = is_checksum_place(head, frame.len(), Partial { start, offset });
            if start < transport {
                prop_assert_eq!(allowed, Some(false));
            }
            let right = Partial { start: transport, offset: if tcp { 16 } else { 6 } };
            prop_assert_eq!(is_checksum_place(head, frame.len(), right), Some(true));
        }

        /// A checksum is found after up to six tags; a frame that consists only of tags is refused at once.
        #[test]
        fn tags_are_looked_behind_up_to_a_limit(tags in 0usize..120) {
            let mut frame = Vec::new();
            let ip = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([1; 4], [2; 4], 9);
            ip.udp(1, 2).write(&mut frame, &[0; 32]).unwrap();
            frame.splice(12..12, [0x81, 0, 0, 7].repeat(tags));
            let place = Partial { start: (34 + 4 * tags) as u16, offset: 6 };
            prop_assert_eq!(is_checksum_place(&frame, frame.len(), place), Some(tags <= 6));
        }

        #[test]
        fn any_bytes_are_looked_at_without_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..200), more in 0usize..100, start: u16, offset: u16,
        ) {
            let _ = is_checksum_place(&bytes, bytes.len() + more, Partial { start, offset });
        }
    }

    #[test]
    fn dhcp_is_udp_to_one_of_its_ports() {
        let is = |v6: bool, tcp: bool, port: u16, place: Partial| {
            let eth = PacketBuilder::ethernet2([2; 6], [4; 6]);
            let ip = if v6 {
                eth.ipv6([1; 16], [2; 16], 9)
            } else {
                eth.ipv4([1; 4], [2; 4], 9)
            };
            let mut frame = Vec::new();
            match tcp {
                true => ip.tcp(1, port, 3, 4).write(&mut frame, &[0; 9]),
                false => ip.udp(1, port).write(&mut frame, &[0; 9]),
            }
            .unwrap();
            is_dhcp(&frame, frame.len(), place) == Some(true)
        };
        for (v6, start) in [(false, 34), (true, 54)] {
            let place = Partial { start, offset: 6 };
            for port in 0..=1000 {
                let expected = [67, 68, 546, 547].contains(&port);
                assert_eq!(is(v6, false, port, place), expected, "{port}");
                assert!(!is(v6, true, port, place));
            }
            for (start, offset) in [(start, 16), (start + 2, 6), (start - 1, 6), (u16::MAX, 6)] {
                assert!(!is(v6, false, 67, Partial { start, offset }));
            }
        }
    }

    #[test]
    fn arp_has_no_checksum_and_other_protocols_may_carry_one() {
        let mut arp = [0u8; 60];
        arp[12..14].copy_from_slice(&[8, 6]);
        let place = Partial {
            start: 34,
            offset: 16,
        };
        assert_eq!(is_checksum_place(&arp, 60, place), Some(false));
        // HSR (IEC 62439-3), with TCP behind its tag.
        arp[12..14].copy_from_slice(&[0x89, 0x2f]);
        assert_eq!(is_checksum_place(&arp, 60, place), Some(true));
        let link = Partial {
            start: 6,
            offset: 0,
        };
        assert_eq!(is_checksum_place(&arp, 60, link), Some(false));
    }
}
