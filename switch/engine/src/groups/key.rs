//! What a connection is known by: the ends of its packets, its VLAN, and its port's zone.

/// Addresses and ports of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Ends {
    pub(super) source: u128,
    pub(super) destination: u128,
    pub(super) source_port: u16,
    pub(super) destination_port: u16,
}

/// A connection's key: its two ends, the lower one first, so that both directions have the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Key {
    pub(super) words: [u64; 6],
}

/// Where a connection is: its VLAN, and the number of its port's zone.
pub(super) type At = (u16, u32);

/// In the last word: the key of a datagram's fragments.
const IS_FRAGMENTS: u64 = 1 << 63;

impl Key {
    /// Becomes the key of a packet's connection. Returns whether the packet comes from the lower end.
    #[inline(always)]
    pub(super) fn set(&mut self, ends: &Ends, protocol: u8, at: At) -> bool {
        let source = (ends.source, ends.source_port);
        let destination = (ends.destination, ends.destination_port);
        let is_from_low = source <= destination;
        match is_from_low {
            true => self.put(source, destination, protocol, at),
            false => self.put(destination, source, protocol, at),
        }
        is_from_low
    }

    /// The key of the fragments of a datagram, whose number takes the place of the ports. IPv4 numbers the datagrams of each
    /// protocol by themselves (RFC 791, 3.2), IPv6 those of all (RFC 8200, 4.5), and `protocol` is 0.
    pub(super) fn of_fragments(ends: &Ends, protocol: u8, at: At) -> Key {
        let source = (ends.source, ends.source_port);
        let destination = (ends.destination, ends.destination_port);
        let mut key = Key::default();
        key.put(source, destination, protocol, at);
        key.words[4] |= IS_FRAGMENTS;
        key
    }

    #[inline(always)]
    fn put(&mut self, low: (u128, u16), high: (u128, u16), protocol: u8, (vlan, zone): At) {
        self.words[0] = low.0 as u64;
        self.words[1] = (low.0 >> 64) as u64;
        self.words[2] = high.0 as u64;
        self.words[3] = (high.0 >> 64) as u64;
        self.words[4] = u64::from(low.1) | u64::from(high.1) << 16 | u64::from(protocol) << 32;
        self.words[5] = u64::from(vlan) | u64::from(zone) << 32;
    }

    /// Whether it is the key of a flow as [`set`](Self::set) makes it.
    pub(super) fn is_flow(&self) -> bool {
        let mut same = Key::default();
        let at = (self.vlan(), self.zone());
        same.set(&self.ends(), self.protocol(), at) && same == *self
    }

    pub(super) fn vlan(&self) -> u16 {
        self.words[5] as u16
    }

    pub(super) fn zone(&self) -> u32 {
        (self.words[5] >> 32) as u32
    }

    pub(super) fn set_zone(&mut self, zone: u32) {
        self.words[5] = self.words[5] & 0xffff_ffff | u64::from(zone) << 32;
    }

    pub(super) fn protocol(&self) -> u8 {
        (self.words[4] >> 32) as u8
    }

    /// Its ends, as a packet from the lower one has them.
    pub(super) fn ends(&self) -> Ends {
        let address = |at: usize| u128::from(self.words[at]) | u128::from(self.words[at + 1]) << 64;
        Ends {
            source: address(0),
            destination: address(2),
            source_port: self.words[4] as u16,
            destination_port: (self.words[4] >> 16) as u16,
        }
    }
}

impl Ends {
    /// The ends of a packet in the opposite direction.
    pub(super) fn turned(self) -> Ends {
        Ends {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
        }
    }
}

#[cfg(all(test, not(loom)))]
pub(super) mod tests {
    use super::*;

    /// The key of a packet, and whether the packet comes from the lower end.
    pub(in crate::groups) fn of(ends: &Ends, protocol: u8, at: At) -> (Key, bool) {
        let mut key = Key::default();
        let is_from_low = key.set(ends, protocol, at);
        (key, is_from_low)
    }

    /// Both directions of a connection have one key, and different connections different ones.
    #[test]
    fn both_directions_have_one_key() {
        let ends = Ends {
            source: 7,
            destination: 5,
            source_port: 1,
            destination_port: 2,
        };
        let ((key, is_low), (back, is_back_low)) =
            (of(&ends, 17, (0, 9)), of(&ends.turned(), 17, (0, 9)));
        assert_eq!((key, is_low, is_back_low), (back, false, true));
        assert_eq!(
            (key.ends(), key.protocol(), key.zone()),
            (ends.turned(), 17, 9)
        );
        for other in [
            of(&ends, 6, (0, 9)).0,
            of(&ends, 17, (0, 8)).0,
            of(&ends, 17, (1, 9)).0,
            Key::of_fragments(&ends, 17, (0, 9)),
        ] {
            assert_ne!(key, other);
        }
        let of_protocol = |protocol| Key::of_fragments(&ends, protocol, (0, 9));
        assert_ne!(of_protocol(6), of_protocol(17));
    }
}
