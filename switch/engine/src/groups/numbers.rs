//! Numbers of protocols, and addresses as connections have them.

use std::net::{IpAddr, Ipv6Addr};

/// IP protocols (the IANA registry of them).
pub(super) const ICMP: u8 = 1;
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const ICMPV6: u8 = 58;
pub(super) const SCTP: u8 = 132;
/// Protocols that are also headers before others: AH, mobility, HIP, shim6.
pub(super) const EXTENSION_PROTOCOLS: [u8; 4] = [51, 135, 139, 140];

/// Flags of a TCP header (RFC 9293, 3.1).
pub(super) const FIN: u8 = 1;
pub(super) const SYN: u8 = 2;
pub(super) const RST: u8 = 4;
pub(super) const ACK: u8 = 16;

/// Type and code of an echo request (RFC 792), and of one for IPv6 (RFC 4443).
pub(super) const ECHO: u16 = 8 << 8;
pub(super) const ECHO_V6: u16 = 128 << 8;

/// ICMP messages that quote a packet: destination unreachable, source quench, time exceeded and parameter problem (RFC
/// 792); those and packet too big (RFC 4443).
pub(super) fn is_error(protocol: u8, kind: u8) -> bool {
    match protocol {
        ICMP => matches!(kind, 3 | 4 | 11 | 12),
        _ => matches!(kind, 1..=4),
    }
}

/// The address as IPv4 or IPv6: connections have all addresses as IPv6 (RFC 4291, 2.5.5.2).
pub(super) fn address_of(address: u128) -> IpAddr {
    let address = Ipv6Addr::from_bits(address);
    match address.to_ipv4_mapped() {
        Some(address) => IpAddr::V4(address),
        None => IpAddr::V6(address),
    }
}
