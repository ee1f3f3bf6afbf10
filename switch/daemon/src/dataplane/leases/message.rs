//! What a message of DHCP (RFC 2131) or DHCPv6 (RFC 8415) says of leases.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use crosspoint_engine::bridge::leases::DhcpMessage;
use crosspoint_packet::Mac;
use smoltcp::wire::{DhcpOpCode, DhcpPacket};

/// Options of DHCP (RFC 2132, 9), and kinds of messages.
const REQUESTED_ADDRESS: u8 = 50;
const LEASE_TIME: u8 = 51;
const KIND: u8 = 53;
const DISCOVER: u8 = 1;
const REQUEST: u8 = 3;
const DECLINE: u8 = 4;
const ACK: u8 = 5;
const NAK: u8 = 6;
const RELEASE: u8 = 7;
/// Kinds of DHCPv6 messages (RFC 8415, 7.3): those of a client that asks for addresses, and
const V6_ASKING: [u8; 4] = [1, 3, 5, 6];
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

/// What a message says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Said {
    /// The station with this MAC address asks for an address, by a request of this number.
    Asked { number: u32, mac: Mac },
    /// A server answers request `number` of the station with this MAC address: it has the address, for a time.
    Leased {
        number: u32,
        address: IpAddr,
        mac: Mac,
        time: Duration,
    },
    /// A server refuses the station with this MAC address its IPv4 address.
    Refused { mac: Mac },
    /// No station has the address any more.
    Ended { address: IpAddr },
}

/// Reads a message. What is no message of DHCP says nothing.
pub(super) fn read(message: &DhcpMessage) -> Vec<Said> {
    match message.to {
        IpAddr::V4(to) => read_v4(message, to).into_iter().collect(),
        IpAddr::V6(to) => read_v6(message, to),
    }
}

fn read_v4(message: &DhcpMessage, to: Ipv4Addr) -> Option<Said> {
    let packet = DhcpPacket::new_checked(message.payload()).ok()?;
    let is_of_server = packet.opcode() == DhcpOpCode::Reply;
    if is_of_server != message.is_of_server {
        return None;
    }
    // Of repeated options the first counts; the payload may be cut off behind it.
    let option = |kind: u8| {
        let mut options = packet.options();
        options
            .find(|option| option.kind == kind)
            .map(|option| option.data)
    };
    let word = |kind: u8| option(kind)?.first_chunk::<4>().copied();
    let (number, mac) = (
        packet.transaction_id(),
        Mac::new(packet.client_hardware_address().0),
    );
    match *option(KIND)?.first()? {
        // What a client sends has its own address; a relay's has not.
        DISCOVER | REQUEST if message.source == mac => Some(Said::Asked { number, mac }),
        ACK => {
            let address = packet.your_ip();
            // Sent to all stations, or to that address at the client: a router brings neither from elsewhere. An answer to
            // INFORM leases nothing, and has no time.
            let is_for_it = to.is_broadcast() || to == address && message.destination == mac;
            let is_station = !address.is_unspecified() && !address.is_multicast();
            (is_for_it && is_station).then_some(Said::Leased {
                number,
                address: address.into(),
                mac,
                time: Duration::from_secs(u32::from_be_bytes(word(LEASE_TIME)?).into()),
            })
        }
        NAK => Some(Said::Refused { mac }),
        RELEASE => Some(Said::Ended {
            address: packet.client_ip().into(),
        }),
        // The client has found that another station uses it.
        DECLINE => Some(Said::Ended {
            address: Ipv4Addr::from(word(REQUESTED_ADDRESS)?).into(),
        }),
        _ => None,
    }
}

fn read_v6(message: &DhcpMessage, to: Ipv6Addr) -> Vec<Said> {
    let payload = message.payload();
    let Some(&[kind, a, b, c]) = payload.first_chunk::<V6_HEAD_LEN>() else {
        return Vec::new();
    };
    let number = u32::from_be_bytes([0, a, b, c]);
    let mac = message.source;
    let has_ended = match (message.is_of_server, kind) {
        (false, kind) if V6_ASKING.contains(&kind) => return vec![Said::Asked { number, mac }],
        // A server or its relay answers to a link-local address, which no router passes on.
        (true, V6_REPLY) if to.is_unicast_link_local() => false,
        (false, V6_RELEASE | V6_DECLINE) => true,
        _ => return Vec::new(),
    };
    let all = options(payload.get(V6_HEAD_LEN..).unwrap_or(&[]));
    let interfaces = all.filter(|(kind, _)| *kind == V6_IA_NA);
    let own = interfaces.flat_map(|(_, body)| options(body.get(V6_IA_NA_LEN..).unwrap_or(&[])));
    let addresses = own.filter(|(kind, _)| *kind == V6_IA_ADDRESS);
    let said = addresses.filter_map(|(_, body)| {
        let (address, times) = body.get(..V6_IA_ADDRESS_LEN)?.split_first_chunk::<16>()?;
        let ip = Ipv6Addr::from(*address);
        let address = IpAddr::V6(ip);
        let [.., a, b, c, d] = *times else {
            return None;
        };
        let valid = u32::from_be_bytes([a, b, c, d]);
        let is_station = !ip.is_unicast_link_local() && !ip.is_multicast() && !ip.is_unspecified();
        match has_ended || valid == 0 {
            true => Some(Said::Ended { address }),
            // A client is known to the server by an identifier of its own; the answer goes to its MAC address.
            false => is_station.then_some(Said::Leased {
                number,
                address,
                mac: message.destination,
                time: Duration::from_secs(valid.into()),
            }),
        }
    });
    said.take(ADDRESSES_MAX).collect()
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
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    const CLIENT: [u8; 6] = [0x52, 0x54, 0, 9, 0, 1];
    const LEASED: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);
    const NUMBER: u32 = 0x0102_0304;
    const NEAR: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

    fn message(is_of_server: bool, to: impl Into<IpAddr>, payload: &[u8]) -> DhcpMessage {
        let (to, server, client) = (to.into(), Mac::new([2, 0, 0, 0, 0, 1]), Mac::new(CLIENT));
        let macs = if is_of_server {
            [server, client]
        } else {
            [client, server]
        };
        DhcpMessage::new(1, (0, 0), (is_of_server, to.is_ipv6()), macs, to, payload)
    }

    /// A message of DHCP by its fields (RFC 2131, 2; RFC 2132).
    pub(in super::super) fn v4(
        kind: u8,
        mac: [u8; 6],
        client: [u8; 4],
        yours: [u8; 4],
        options: &[u8],
    ) -> Vec<u8> {
        let is_of_server = matches!(kind, 2 | 5 | 6);
        let mut bytes = vec![
            if is_of_server { 2 } else { 1 },
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
        bytes.extend(mac);
        bytes.resize(236, 0);
        bytes.extend([0x63, 0x82, 0x53, 0x63, 53, 1, kind]);
        bytes.extend(options);
        bytes.push(255);
        bytes
    }

    #[test]
    fn what_clients_and_servers_say_by_dhcp() {
        let time = [51, 4, 0, 0, 14, 16];
        let of = |kind, client, yours, options: &[u8]| v4(kind, CLIENT, client, yours, options);
        let ack = of(5, [0; 4], LEASED.octets(), &time);
        let leased = Said::Leased {
            number: NUMBER,
            address: LEASED.into(),
            mac: Mac::new(CLIENT),
            time: Duration::from_secs(3600),
        };
        assert_eq!(read(&message(true, Ipv4Addr::BROADCAST, &ack)), [leased]);
        assert_eq!(read(&message(true, LEASED, &ack)), [leased]);
        // A router has brought it, to another address or to another station.
        let elsewhere = Ipv4Addr::new(192, 0, 2, 78);
        assert_eq!(read(&message(true, elsewhere, &ack)), []);
        let of_another = v4(5, [2; 6], [0; 4], LEASED.octets(), &time);
        assert_eq!(read(&message(true, LEASED, &of_another)), []);
        let asked = Said::Asked {
            number: NUMBER,
            mac: Mac::new(CLIENT),
        };
        for kind in [1, 3] {
            let request = of(kind, [0; 4], [0; 4], &[]);
            assert_eq!(
                read(&message(false, Ipv4Addr::BROADCAST, &request)),
                [asked]
            );
            let of_another = v4(kind, [2; 6], [0; 4], [0; 4], &[]);
            assert_eq!(read(&message(false, Ipv4Addr::BROADCAST, &of_another)), []);
        }
        let ended = Said::Ended {
            address: LEASED.into(),
        };
        // An identifier of a client that is no MAC address, as long as one with its type.
        let identifier = [61, 7, 0, b'g', b'u', b'e', b's', b't', b'1'];
        let release = of(7, LEASED.octets(), [0; 4], &identifier);
        assert_eq!(read(&message(false, elsewhere, &release)), [ended]);
        let declined = [&[50, 4][..], &LEASED.octets()].concat();
        let decline = of(4, [0; 4], [0; 4], &declined);
        assert_eq!(
            read(&message(false, Ipv4Addr::BROADCAST, &decline)),
            [ended]
        );
        let refused = Said::Refused {
            mac: Mac::new(CLIENT),
        };
        let nak = of(6, [0; 4], [0; 4], &[]);
        assert_eq!(read(&message(true, Ipv4Addr::BROADCAST, &nak)), [refused]);
        // Of the wrong side; an answer to INFORM; an offer.
        assert_eq!(read(&message(false, Ipv4Addr::BROADCAST, &ack)), []);
        assert_eq!(read(&message(true, Ipv4Addr::BROADCAST, &release)), []);
        for (kind, yours) in [(5, [0; 4]), (2, LEASED.octets())] {
            let other = of(kind, [0; 4], yours, &time);
            assert_eq!(
                read(&message(true, Ipv4Addr::BROADCAST, &other)),
                [],
                "{kind}"
            );
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
        let mut bytes = vec![kind, 2, 3, 4, 0, 1, 0, 2, 9, 9, 0, 3];
        bytes.extend((own.len() as u16).to_be_bytes());
        bytes.extend(own);
        bytes
    }

    #[test]
    fn what_clients_and_servers_say_by_dhcpv6() {
        let [one, two] = [1, 2].map(|last| Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last));
        let number = NUMBER & 0xff_ffff;
        let leased = |address: Ipv6Addr, seconds| Said::Leased {
            number,
            address: address.into(),
            mac: Mac::new(CLIENT),
            time: Duration::from_secs(seconds),
        };
        let ended = |address: Ipv6Addr| Said::Ended {
            address: address.into(),
        };
        let reply = v6(7, &[(one, 60), (two, 0)]);
        assert_eq!(
            read(&message(true, NEAR, &reply)),
            [leased(one, 60), ended(two)]
        );
        // A router has brought it; a router's own address.
        assert_eq!(read(&message(true, two, &reply)), []);
        assert_eq!(read(&message(true, NEAR, &v6(7, &[(NEAR, 60)]))), []);
        assert_eq!(read(&message(false, NEAR, &reply)), []);
        let mac = Mac::new(CLIENT);
        for kind in [1, 3, 5, 6] {
            let asks = v6(kind, &[(one, 60)]);
            assert_eq!(
                read(&message(false, NEAR, &asks)),
                [Said::Asked { number, mac }]
            );
        }
        for kind in [8, 9] {
            let bytes = v6(kind, &[(one, 60)]);
            assert_eq!(read(&message(false, NEAR, &bytes)), [ended(one)]);
            assert_eq!(read(&message(true, NEAR, &bytes)), []);
        }
        let many = v6(7, &[(one, 60); 100]);
        assert!(read(&message(true, NEAR, &many)).len() <= ADDRESSES_MAX);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(
            bytes in prop::collection::vec(any::<u8>(), 0..400),
            changed in (0usize..300, any::<u8>()),
            is_of_server in any::<bool>(),
            is_v6 in any::<bool>(),
        ) {
            let to = if is_v6 { IpAddr::V6(NEAR) } else { IpAddr::V4(LEASED) };
            read(&message(is_of_server, to, &bytes));
            let mut ack = v4(5, CLIENT, [0; 4], LEASED.octets(), &bytes);
            if let Some(byte) = ack.get_mut(changed.0) {
                *byte = changed.1;
            }
            ack.truncate(bytes.len().max(changed.0));
            read(&message(is_of_server, to, &ack));
        }
    }
}
