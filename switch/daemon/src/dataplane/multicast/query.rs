//! Queries of multicast groups, as frames: IGMP version 3 (RFC 3376, 4.1) and MLD version 2 (RFC 3810, 5.1). Stations that know
//! only earlier versions read them as queries of these.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use crosspoint_packet::{Mac, checksum};

/// How long stations may take to answer a query for all groups (RFC 3376, 8.3).
pub(super) const QUERY_RESPONSE_INTERVAL: Duration = Duration::from_secs(10);
/// How long those of one group may take (RFC 3376, 8.8), and a station that is alone behind its port.
pub(super) const LAST_MEMBER_RESPONSE_INTERVAL: Duration = Duration::from_secs(1);
/// Time between two queries for all groups (RFC 3376, 8.2), and the same as stations and other queriers are told: seconds, below
/// 128.
pub(super) const QUERY_INTERVAL: Duration = Duration::from_secs(125);
const INTERVAL_CODE: u8 = QUERY_INTERVAL.as_secs() as u8;
/// The robustness variable (RFC 3376, 8.1): reports are sent twice.
const ROBUSTNESS: u8 = 2;

const ALL_SYSTEMS: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 1);
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const IGMP: u8 = 2;
const IGMP_QUERY: u8 = 0x11;
const ICMPV6: u8 = 58;
const MLD_QUERY: u8 = 130;

/// Returns a query from the station `source`: for a group, or for all groups of the family that the unspecified address `group` is
/// of. Stations may take as long as `answers` to answer.
pub(super) fn frame(source: Mac, group: IpAddr, answers: Duration) -> Vec<u8> {
    match group {
        IpAddr::V4(group) => igmp(source, group, answers),
        IpAddr::V6(group) => mld(source, group, answers),
    }
}

/// From 0.0.0.0, since the switch has no address (RFC 4541, 2.1.1): another querier with an address takes over.
fn igmp(source: Mac, group: Ipv4Addr, answers: Duration) -> Vec<u8> {
    let to = if group.is_unspecified() {
        ALL_SYSTEMS
    } else {
        group
    };
    // In tenths of a second.
    let answers = (answers.as_millis() / 100) as u8;
    let mut message = [
        &[IGMP_QUERY, answers, 0, 0][..],
        &group.octets(),
        &[ROBUSTNESS, INTERVAL_CODE, 0, 0],
    ]
    .concat();
    put_checksum(&mut message, 2, 0);
    let len = (24 + message.len()) as u16;
    // With the option "router alert" (RFC 2113), to be looked at by routers on the way; not for more than one hop.
    let mut header = [
        &[0x46, 0xc0][..],
        &len.to_be_bytes(),
        &[0, 0, 0, 0, 1, IGMP, 0, 0],
        &Ipv4Addr::UNSPECIFIED.octets(),
        &to.octets(),
        &[0x94, 4, 0, 0],
    ]
    .concat();
    put_checksum(&mut header, 10, 0);
    let [_, b, c, d] = to.octets();
    let station = Mac::new([1, 0, 0x5e, b & 0x7f, c, d]);
    let link = [&station.bytes()[..], &source.bytes(), &[0x08, 0x00]].concat();
    let mut frame = [&link[..], &header, &message].concat();
    frame.resize(frame.len().max(60), 0);
    frame
}

fn mld(source: Mac, group: Ipv6Addr, answers: Duration) -> Vec<u8> {
    let to = if group.is_unspecified() {
        ALL_NODES
    } else {
        group
    };
    let answers_ms = answers.as_millis() as u16;
    let mut message = [
        &[MLD_QUERY, 0, 0, 0][..],
        &answers_ms.to_be_bytes(),
        &[0, 0],
        &group.octets(),
        &[ROBUSTNESS, INTERVAL_CODE, 0, 0],
    ]
    .concat();
    let own = source.link_local();
    let len = message.len() as u16;
    // The pseudo-header (RFC 8200, 8.1).
    let pseudo = [
        &own.octets()[..],
        &to.octets(),
        &[0, 0],
        &len.to_be_bytes(),
        &[0, 0, 0, ICMPV6],
    ];
    put_checksum(&mut message, 2, checksum::sum(&pseudo.concat(), 0));
    // Behind hop-by-hop options with "router alert" (RFC 2711), and padding.
    let options = [ICMPV6, 0, 5, 2, 0, 0, 1, 0];
    let header = [
        &[0x60, 0, 0, 0][..],
        &(len + options.len() as u16).to_be_bytes(),
        &[0, 1],
        &own.octets(),
        &to.octets(),
    ]
    .concat();
    let [.., c, d, e, f] = to.octets();
    let station = Mac::new([0x33, 0x33, c, d, e, f]);
    let link = [&station.bytes()[..], &source.bytes(), &[0x86, 0xdd]].concat();
    [&link[..], &header, &options, &message].concat()
}

/// Writes the checksum of `bytes`, whose field is still zero, to `at`; `sum` is that of what counts besides.
fn put_checksum(bytes: &mut [u8], at: usize, sum: u64) {
    let value = checksum::finish(checksum::sum(bytes, sum));
    if let Some(field) = bytes.get_mut(at..at + 2) {
        field.copy_from_slice(&value.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use etherparse::{NetHeaders, PacketHeaders};

    use super::*;

    const SOURCE: Mac = Mac::new([2, 0xa, 0xb, 0xc, 0, 3]);

    /// Another implementation reads the headers; all checksums are right.
    #[test]
    fn queries_are_as_the_rfcs_say() {
        for group in ["0.0.0.0", "239.1.2.3", "::", "ff05::1:3"] {
            let group: IpAddr = group.parse().unwrap();
            let bytes = frame(SOURCE, group, QUERY_RESPONSE_INTERVAL);
            assert!((60..=90).contains(&bytes.len()), "{}", bytes.len());
            let read = PacketHeaders::from_ethernet_slice(&bytes).unwrap();
            let (to, message) = match read.net.unwrap() {
                NetHeaders::Ipv4(header, _) => {
                    assert_eq!(header.calc_header_checksum(), header.header_checksum);
                    assert_eq!((header.time_to_live, header.source), (1, [0; 4]));
                    let at = 14 + 24;
                    let message = &bytes[at..at + 12];
                    assert_eq!(checksum::fold(checksum::sum(message, 0)), 0xffff);
                    (IpAddr::from(header.destination), message.to_vec())
                }
                NetHeaders::Ipv6(header, extensions) => {
                    assert!(extensions.hop_by_hop_options.is_some());
                    assert_eq!(header.hop_limit, 1);
                    assert_eq!(header.source, SOURCE.link_local().octets());
                    let message = &bytes[14 + 40 + 8..];
                    let icmp = etherparse::Icmpv6Slice::from_slice(message).unwrap();
                    assert!(icmp.is_checksum_valid(header.source, header.destination));
                    (IpAddr::from(header.destination), message.to_vec())
                }
                other => panic!("{other:?}"),
            };
            assert_eq!(bytes[0] & 1, 1);
            match group.is_unspecified() {
                true => assert!(to == IpAddr::V4(ALL_SYSTEMS) || to == IpAddr::V6(ALL_NODES)),
                false => assert_eq!(to, group),
            }
            match group {
                IpAddr::V4(group) => assert_eq!(message[4..8], group.octets()),
                IpAddr::V6(group) => assert_eq!(message[8..24], group.octets()),
            }
        }
    }
}
