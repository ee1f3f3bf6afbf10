use std::fmt;
use std::net::Ipv6Addr;

/// A MAC address as the low 48 bits of a little-endian word: byte 0 on the wire is bits 0-7.
///
/// One register instead of six bytes, because the data path compares and hashes it per frame.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Mac(u64);

impl Mac {
    /// ff:ff:ff:ff:ff:ff.
    pub const BROADCAST: Mac = Mac(0xffff_ffff_ffff);
    const MASK: u64 = 0xffff_ffff_ffff;

    /// Makes an address from its six bytes, in wire order.
    pub const fn new(bytes: [u8; 6]) -> Mac {
        let [a, b, c, d, e, f] = bytes;
        Mac(u64::from_le_bytes([a, b, c, d, e, f, 0, 0]))
    }

    /// Makes an address from the low 48 bits of `word`; the rest is ignored.
    #[inline(always)]
    pub const fn from_le_word(word: u64) -> Mac {
        Mac(word & Mac::MASK)
    }

    /// Returns the address as the low 48 bits of a word.
    #[inline(always)]
    pub const fn to_word(self) -> u64 {
        self.0
    }

    /// Returns the six bytes in wire order.
    pub const fn bytes(self) -> [u8; 6] {
        let [a, b, c, d, e, f, _, _] = self.0.to_le_bytes();
        [a, b, c, d, e, f]
    }

    /// Returns the link-local IPv6 address that the station makes of its address (RFC 4291, appendix A).
    pub fn link_local(self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.bytes();
        let word = |high, low| u16::from_be_bytes([high, low]);
        Ipv6Addr::new(
            0xfe80,
            0,
            0,
            0,
            word(a ^ 2, b),
            word(c, 0xff),
            word(0xfe, d),
            word(e, f),
        )
    }

    /// Returns whether the group bit is set: broadcast or multicast (IEEE 802-2014, 8.4).
    #[inline(always)]
    pub const fn is_group(self) -> bool {
        self.0 & 1 != 0
    }

    /// Returns whether the address is valid as a frame's source: not a group address, not all zero.
    #[inline(always)]
    pub const fn is_valid_source(self) -> bool {
        !self.is_group() && self.0 != 0
    }

    /// Returns whether it is 01:80:c2:00:00:00 to 0f: link-local control (STP, LLDP, pause), which a bridge does not
    /// forward (IEEE 802.1Q-2018, table 8-1).
    #[inline(always)]
    pub const fn is_link_local_control(self) -> bool {
        self.0 & 0xf0ff_ffff_ffff == 0x0000_00c2_8001
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.bytes();
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_survive_the_word() {
        let mac = Mac::new([0x52, 0x54, 0, 0xaa, 0xbb, 0x01]);
        assert_eq!(mac.bytes(), [0x52, 0x54, 0, 0xaa, 0xbb, 0x01]);
        assert_eq!(mac.to_string(), "52:54:00:aa:bb:01");
        assert!(mac.is_valid_source());
    }

    #[test]
    fn only_the_sixteen_reserved_group_addresses_are_link_local_control() {
        for last in 0..=0xff {
            let mac = Mac::new([0x01, 0x80, 0xc2, 0, 0, last]);
            assert_eq!(mac.is_link_local_control(), last < 0x10, "{mac}");
        }
        assert!(!Mac::new([0x01, 0x80, 0xc2, 0, 1, 0]).is_link_local_control());
        assert!(!Mac::BROADCAST.is_link_local_control());
        assert!(Mac::BROADCAST.is_group() && !Mac::BROADCAST.is_valid_source());
        assert!(!Mac::default().is_valid_source());
    }
}
