//! What a message of DHCP (RFC 2131) or DHCPv6 (RFC 8415) says of leases.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use crosspoint_engine::bridge::leases::DhcpMessage;
use crosspoint_packet::Mac;
use smoltcp::wire::{DhcpMessageType, DhcpPacket, DhcpRepr};

/// Kinds of DHCPv6 messages (RFC 8415, 7.3).
const V6_REPLY: u8 = 7;
const V6_RELEASE: u8 = 8;
const V6_DECLINE: u8 = 9;
/// Bytes of a DHCPv6 message before its options: the kind, and the number of the transaction.
const V6_HEAD_LEN: usize = 4;
/// Options of DHCPv6 (RFC 8415, 21): addresses of an interface, and one address.
const V6_IA_NA: u16 = 3;
const V6_IA_ADDRESS: u16 = 5;
/// Bytes of these before their own options. That of an address are the address and two lifetimes of four bytes.
const V6_IA_NA_LEN: usize = 12;
const V6_IA_ADDRESS_LEN: usize = 24;
/// Most addresses of one message.
const ADDRESSES_MAX: usize = 16;

/// What a message changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Change {
    /// The station with this MAC address has the address, for a time.
    Leased {
        address: IpAddr,
        mac: Mac,
        time: Duration,
    },
    /// No station has the address any more.
    Ended { address: IpAddr },
}

/// Reads a message. What is no message of DHCP changes nothing.
pub(super) fn read(message: &DhcpMessage) -> Vec<Change> {
    match message.is_v6 {
        false => read_v4(message).into_iter().collect(),
        true => read_v6(message),
    }
}

fn read_v4(message: &DhcpMessage) -> Option<Change> {
    let packet = DhcpPacket::new_checked(message.payload()).ok()?;
    let dhcp = DhcpRepr::parse(&packet).ok()?;
    let seconds = |time: u32| Duration::from_secs(time.into());
    match (message.is_of_server, dhcp.message_type) {
        // An answer to INFORM leases nothing, and has no time.
        (true, DhcpMessageType::Ack) if !dhcp.your_ip.is_unspecified() => Some(Change::Leased {
            address: dhcp.your_ip.into(),
            mac: Mac::new(dhcp.client_hardware_address.0),
            time: seconds(dhcp.lease_duration?),
        }),
        (false, DhcpMessageType::Release) => Some(Change::Ended {
            address: dhcp.client_ip.into(),
        }),
        // The client has found that another station uses it.
        (false, DhcpMessageType::Decline) => Some(Change::Ended {
            address: dhcp.requested_ip?.into(),
        }),
        _ => None,
    }
}

fn read_v6(message: &DhcpMessage) -> Vec<Change> {
    let payload = message.payload();
    let has_ended = match (message.is_of_server, payload.first()) {
        (true, Some(&V6_REPLY)) => false,
        (false, Some(&(V6_RELEASE | V6_DECLINE))) => true,
        _ => return Vec::new(),
    };
    let all = options(payload.get(V6_HEAD_LEN..).unwrap_or(&[]));
    let interfaces = all.filter(|(kind, _)| *kind == V6_IA_NA);
    let own = interfaces.flat_map(|(_, body)| options(body.get(V6_IA_NA_LEN..).unwrap_or(&[])));
    let addresses = own.filter(|(kind, _)| *kind == V6_IA_ADDRESS);
    let changes = addresses.filter_map(|(_, body)| {
        let (address, times) = body.get(..V6_IA_ADDRESS_LEN)?.split_first_chunk::<16>()?;
        let address = IpAddr::V6(Ipv6Addr::from(*address));
        let [.., a, b, c, d] = *times else {
            return None;
        };
        let valid = u32::from_be_bytes([a, b, c, d]);
        Some(match has_ended || valid == 0 {
            true => Change::Ended { address },
            // A client is known to the server by an identifier of its own; the answer goes to its MAC address.
            false => Change::Leased {
                address,
                mac: message.destination,
                time: Duration::from_secs(valid.into()),
            },
        })
    });
    changes.take(ADDRESSES_MAX).collect()
}

/// The options of DHCPv6 in these bytes: their numbers and bodies. Ends where one is cut off.
fn options(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let ([a, b, c, d], rest) = bytes.split_first_chunk::<4>()?;
        let len = usize::from(u16::from_be_bytes([*c, *d]));
        let (body, rest) = rest.split_at_checked(len)?;
        bytes = rest;
        Some((u16::from_be_bytes([*a, *b]), body))
    })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    const CLIENT: [u8; 6] = [0x52, 0x54, 0, 9, 0, 1];
    const LEASED: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);

    fn message(is_of_server: bool, is_v6: bool, payload: &[u8]) -> DhcpMessage {
        let place = (0, 0);
        let macs = [Mac::new([2, 0, 0, 0, 0, 1]), Mac::new(CLIENT)];
        DhcpMessage::new(1, place, (is_of_server, is_v6), macs, payload)
    }

    /// A message of DHCP by its fields (RFC 2131, 2; RFC 2132).
    fn v4(kind: u8, client: [u8; 4], yours: [u8; 4], options: &[u8]) -> Vec<u8> {
        let mut bytes = vec![
            if kind == 5 { 2 } else { 1 },
            1,
            6,
            0,
            1,
            2,
            3,
            4,
            0,
            0,
            0,
            0,
        ];
        bytes.extend(client);
        bytes.extend(yours);
        bytes.extend([0; 8]);
        bytes.extend(CLIENT);
        bytes.resize(236, 0);
        bytes.extend([0x63, 0x82, 0x53, 0x63, 53, 1, kind]);
        bytes.extend(options);
        bytes.push(255);
        bytes
    }

    #[test]
    fn an_ack_leases_and_a_release_ends_it() {
        let time = [51, 4, 0, 0, 14, 16];
        let ack = v4(5, [0; 4], LEASED.octets(), &time);
        let leased = Change::Leased {
            address: LEASED.into(),
            mac: Mac::new(CLIENT),
            time: Duration::from_secs(3600),
        };
        assert_eq!(read(&message(true, false, &ack)), [leased]);
        let ended = Change::Ended {
            address: LEASED.into(),
        };
        let server = [54, 4, 192, 0, 2, 1];
        let release = v4(7, LEASED.octets(), [0; 4], &server);
        assert_eq!(read(&message(false, false, &release)), [ended]);
        let asked = [&[50, 4][..], &LEASED.octets(), &server].concat();
        let decline = v4(4, [0; 4], [0; 4], &asked);
        assert_eq!(read(&message(false, false, &decline)), [ended]);
        // Of the wrong side; an answer to INFORM; an offer; a refusal.
        assert_eq!(read(&message(false, false, &ack)), []);
        assert_eq!(read(&message(true, false, &release)), []);
        for (kind, yours) in [(5, [0; 4]), (2, LEASED.octets()), (6, LEASED.octets())] {
            let other = v4(kind, [0; 4], yours, &time);
            assert_eq!(read(&message(true, false, &other)), [], "{kind}");
        }
    }

    /// A message of DHCPv6 with addresses and their valid lifetimes (RFC 8415, 8 and 21).
    fn v6(kind: u8, addresses: &[(Ipv6Addr, u32)]) -> Vec<u8> {
        let mut own = vec![0; V6_IA_NA_LEN];
        for (address, valid) in addresses {
            own.extend([0, 5, 0, 24]);
            own.extend(address.octets());
            own.extend([0, 0, 0, 1]);
            own.extend(valid.to_be_bytes());
        }
        let mut bytes = vec![kind, 1, 2, 3, 0, 1, 0, 2, 9, 9, 0, 3];
        bytes.extend((own.len() as u16).to_be_bytes());
        bytes.extend(own);
        bytes
    }

    #[test]
    fn a_reply_leases_and_so_on_for_dhcpv6() {
        let [one, two] = [1, 2].map(|last| Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last));
        let leased = |address: Ipv6Addr, seconds| Change::Leased {
            address: address.into(),
            mac: Mac::new(CLIENT),
            time: Duration::from_secs(seconds),
        };
        let ended = |address: Ipv6Addr| Change::Ended {
            address: address.into(),
        };
        let reply = v6(7, &[(one, 60), (two, 0)]);
        assert_eq!(
            read(&message(true, true, &reply)),
            [leased(one, 60), ended(two)]
        );
        assert_eq!(read(&message(false, true, &reply)), []);
        for kind in [8, 9] {
            let bytes = v6(kind, &[(one, 60)]);
            assert_eq!(read(&message(false, true, &bytes)), [ended(one)]);
            assert_eq!(read(&message(true, true, &bytes)), []);
        }
        let many = v6(7, &[(one, 60); 100]);
        assert!(read(&message(true, true, &many)).len() <= ADDRESSES_MAX);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(
            bytes in prop::collection::vec(any::<u8>(), 0..400),
            changed in (0usize..300, any::<u8>()),
            is_of_server in any::<bool>(),
            is_v6 in any::<bool>(),
        ) {
            read(&message(is_of_server, is_v6, &bytes));
            let mut ack = v4(5, [0; 4], LEASED.octets(), &bytes);
            if let Some(byte) = ack.get_mut(changed.0) {
                *byte = changed.1;
            }
            ack.truncate(bytes.len().max(changed.0));
            read(&message(is_of_server, is_v6, &ack));
        }
    }
}
