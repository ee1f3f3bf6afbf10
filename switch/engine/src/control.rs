//! Link-local control frames, and which of them pass.
//!
//! A bridge keeps what is for 01-80-C2-00-00-00 to 0F to the link that it came from (IEEE 802.1Q-2018, table 8-1): spanning
//! tree, link aggregation, discovery. A switch that takes no part in these hides its ports from each other's: a spanning
//! tree does not see a loop that goes through it. So ports may pass such frames on, to ports that take them. They are of
//! the link and in no VLAN: they pass as they are, without a tag, whatever VLANs the two ports carry.

use crosspoint_packet::Mac;

/// How many such addresses there are.
const ADDRESSES: u8 = 16;
/// The pause frame of IEEE 802.3: what a MAC says to the one at the other end of the wire, and to nobody else.
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

/// Some of these addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ControlAddresses(u16);

impl ControlAddresses {
    /// None of them.
    pub const NONE: ControlAddresses = ControlAddresses(0);

    /// These, and the one whose last byte is `last`, which is less than 16.
    pub const fn with(self, last: u8) -> ControlAddresses {
        ControlAddresses(self.0 | 1 << (last % ADDRESSES))
    }

    /// Whether there are none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether `address` is one of them.
    pub const fn has(self, address: Mac) -> bool {
        address.is_link_local_control() && self.0 >> (address.bytes()[5] % ADDRESSES) & 1 != 0
    }

    /// The addresses' last bytes, ascending.
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
