//! Link-local control frames, and which of them pass between ports.
//!
//! A bridge does not forward frames for 01-80-C2-00-00-00 to 0F (IEEE 802.1Q-2018, table 8-1): spanning tree, link
//! aggregation, discovery. A switch that drops them without running these protocols hides the networks behind its ports
//! from each other: a spanning tree does not see a loop through the switch. So ports can be configured to pass such
//! frames to other ports that take them. The frames belong to the link and are in no VLAN: they pass unchanged and
//! untagged, whatever VLANs the two ports carry.

use crosspoint_packet::Mac;

/// Number of such addresses.
const ADDRESSES: u8 = 16;
/// The pause frame of IEEE 802.3: it is only for the MAC at the other end of the wire.
pub const PAUSE: u8 = 1;

/// The names of the addresses that have one, by their last byte.
pub const NAMES: &[(&str, u8)] = &[
    ("stp", 0x00),
    ("lacp", 0x02),
    ("dot1x", 0x03),
    ("provider-stp", 0x08),
    ("provider-mvrp", 0x0d),
    ("lldp", 0x0e),
];

/// A set of these addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ControlAddresses(u16);

impl ControlAddresses {
    /// The empty set.
    pub const NONE: ControlAddresses = ControlAddresses(0);

    /// Adds the address whose last byte is `last`, which is less than 16.
    pub const fn with(self, last: u8) -> ControlAddresses {
        ControlAddresses(self.0 | 1 << (last % ADDRESSES))
    }

    /// Returns whether the set is empty.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Returns whether `address` is in the set.
    pub const fn has(self, address: Mac) -> bool {
        address.is_link_local_control() && self.0 >> (address.bytes()[5] % ADDRESSES) & 1 != 0
    }

    /// Returns the addresses' last bytes, ascending.
    pub fn iter(self) -> impl Iterator<Item = u8> {
        (0..ADDRESSES).filter(move |last| self.0 >> last & 1 != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_had_by_its_last_byte_and_no_other_is() {
        let some = ControlAddresses::NONE.with(0).with(0xe);
        for last in 0..=255 {
            let address = Mac::new([1, 0x80, 0xc2, 0, 0, last]);
            assert_eq!(some.has(address), last == 0 || last == 0xe);
            assert!(!some.has(Mac::new([1, 0x80, 0xc2, 0, 1, last])));
        }
        assert!(some.iter().eq([0, 0xe]));
        assert!(ControlAddresses::NONE.is_empty() && !some.is_empty());
    }
}
