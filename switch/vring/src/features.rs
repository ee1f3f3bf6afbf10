/// Maximum queue pairs of a port.
pub const MAX_QUEUE_PAIRS: u16 = 16;

/// Feature bits by name (virtio 1.2, 5.1.3 and 6; vhost-user's own bit 30).
pub mod feature {
    /// The device takes frames with partial checksums.
    pub const CSUM: u64 = 1 << 0;
    /// The driver takes frames with partial checksums.
    pub const GUEST_CSUM: u64 = 1 << 1;
    /// The driver takes large TCP frames over IPv4.
    pub const GUEST_TSO4: u64 = 1 << 7;
    /// The driver takes large TCP frames over IPv6.
    pub const GUEST_TSO6: u64 = 1 << 8;
    /// The driver takes large TCP frames with ECN.
    pub const GUEST_ECN: u64 = 1 << 9;
    /// The driver takes large UDP datagrams, which would be fragments on a wire.
    pub const GUEST_UFO: u64 = 1 << 10;
    /// The device takes large TCP frames over IPv4.
    pub const HOST_TSO4: u64 = 1 << 11;
    /// The device takes large TCP frames over IPv6.
    pub const HOST_TSO6: u64 = 1 << 12;
    /// The device takes large TCP frames with ECN.
    pub const HOST_ECN: u64 = 1 << 13;
    /// The device takes large UDP datagrams, to be fragmented.
    pub const HOST_UFO: u64 = 1 << 14;
    /// The driver takes several UDP datagrams as one frame, over IPv4.
    pub const GUEST_USO4: u64 = 1 << 54;
    /// The driver takes several UDP datagrams as one frame, over IPv6.
    pub const GUEST_USO6: u64 = 1 << 55;
    /// The device takes several UDP datagrams as one frame.
    pub const HOST_USO: u64 = 1 << 56;
    /// The configuration space has the largest MTU.
    pub const MTU: u64 = 1 << 3;
    /// The configuration space has the MAC address.
    pub const MAC: u64 = 1 << 5;
    /// A frame may span several receive buffers.
    pub const MRG_RXBUF: u64 = 1 << 15;
    /// The configuration space has the link status.
    pub const STATUS: u64 = 1 << 16;
    /// The driver announces itself when the device asks it to, after a migration.
    pub const GUEST_ANNOUNCE: u64 = 1 << 21;
    /// Several queue pairs.
    pub const MQ: u64 = 1 << 22;
    /// vhost: every write to guest memory is marked in the dirty log.
    pub const LOG_ALL: u64 = 1 << 26;
    /// Legacy: any descriptor layout. VERSION_1 implies it.
    pub const ANY_LAYOUT: u64 = 1 << 27;
    /// Indirect descriptor tables.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// `used_event` and `avail_event`.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// vhost-user: protocol features are negotiated, and rings start disabled.
    pub const PROTOCOL_FEATURES: u64 = 1 << 30;
    /// virtio 1.0 or later.
    pub const VERSION_1: u64 = 1 << 32;
    /// Packed rings (virtio 1.2, 2.8).
    pub const RING_PACKED: u64 = 1 << 34;
    /// Buffers are used in the order in which they were made available.
    pub const IN_ORDER: u64 = 1 << 35;

    /// Features that let a guest receive unfinished frames: large ones, or ones with a partial checksum.
    pub const RECEIVE_OFFLOADS: u64 =
        GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | GUEST_UFO | GUEST_USO4 | GUEST_USO6;
    /// Features that let a guest send such frames.
    pub const TRANSMIT_OFFLOADS: u64 =
        CSUM | HOST_TSO4 | HOST_TSO6 | HOST_ECN | HOST_UFO | HOST_USO;

    /// Names of the bits that the switch uses, for display.
    pub const NAMES: &[(u64, &str)] = &[
        (CSUM, "CSUM"),
        (GUEST_CSUM, "GUEST_CSUM"),
        (MTU, "MTU"),
        (GUEST_TSO4, "GUEST_TSO4"),
        (GUEST_TSO6, "GUEST_TSO6"),
        (GUEST_ECN, "GUEST_ECN"),
        (GUEST_UFO, "GUEST_UFO"),
        (HOST_TSO4, "HOST_TSO4"),
        (HOST_TSO6, "HOST_TSO6"),
        (HOST_ECN, "HOST_ECN"),
        (HOST_UFO, "HOST_UFO"),
        (GUEST_USO4, "GUEST_USO4"),
        (GUEST_USO6, "GUEST_USO6"),
        (HOST_USO, "HOST_USO"),
        (MAC, "MAC"),
        (MRG_RXBUF, "MRG_RXBUF"),
        (STATUS, "STATUS"),
        (GUEST_ANNOUNCE, "GUEST_ANNOUNCE"),
        (MQ, "MQ"),
        (LOG_ALL, "LOG_ALL"),
        (ANY_LAYOUT, "ANY_LAYOUT"),
        (INDIRECT_DESC, "INDIRECT_DESC"),
        (EVENT_IDX, "EVENT_IDX"),
        (PROTOCOL_FEATURES, "PROTOCOL_FEATURES"),
        (VERSION_1, "VERSION_1"),
        (RING_PACKED, "RING_PACKED"),
        (IN_ORDER, "IN_ORDER"),
    ];
}

/// `gso_type` in the header before a frame (virtio 1.2, 5.1.6).
mod gso {
    pub(super) const TCPV4: u8 = 1;
    pub(super) const UDP: u8 = 3;
    pub(super) const TCPV6: u8 = 4;
    pub(super) const UDP_L4: u8 = 5;
    /// TCP with the ECN bit: the congestion window may have been reduced. No other type has this bit.
    pub(super) const TCPV4_ECN: u8 = 0x81;
    pub(super) const TCPV6_ECN: u8 = 0x84;
}

/// Negotiated features, as the data path queries them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Features {
    bits: u64,
}

impl Features {
    /// Features from the bits that the driver acknowledged.
    pub fn new(acknowledged: u64) -> Features {
        Features { bits: acknowledged }
    }

    /// Features that a port with this many queue pairs offers. MQ and GUEST_ANNOUNCE are offered only with more than
    /// one pair: a front end that passes them to its driver without a control queue (User-Mode Linux) would make that
    /// driver refuse the device. The port adds MAC if it has an address.
    pub fn offered(queue_pairs: u16) -> u64 {
        use feature::*;
        let always = CSUM
            | GUEST_CSUM
            | MTU
            | MRG_RXBUF
            | STATUS
            | ANY_LAYOUT
            | INDIRECT_DESC
            | EVENT_IDX
            | PROTOCOL_FEATURES
            | VERSION_1
            | RING_PACKED
            | IN_ORDER
            | LOG_ALL
            | GUEST_TSO4
            | GUEST_TSO6
            | GUEST_ECN
            | GUEST_UFO
            | GUEST_USO4
            | GUEST_USO6
            | HOST_TSO4
            | HOST_TSO6
            | HOST_ECN
            | HOST_UFO
            | HOST_USO;
        match queue_pairs {
            1 => always,
            _ => always | MQ | GUEST_ANNOUNCE,
        }
    }

    /// Whether `bit` was acknowledged.
    #[inline(always)]
    pub fn has(self, bit: u64) -> bool {
        self.bits & bit != 0
    }

    /// The acknowledged bits.
    pub fn bits(self) -> u64 {
        self.bits
    }

    /// Whether the driver accepts a frame of this GSO type unchanged (virtio 1.2, 5.1.6); 0 is for frames that need no
    /// segmentation.
    #[inline(always)]
    pub fn takes(self, gso_type: u8) -> bool {
        gso_type == 0 || self.takes_large(gso_type)
    }

    #[cold]
    fn takes_large(self, gso_type: u8) -> bool {
        use feature::*;
        let kind = match gso_type {
            gso::TCPV4 => GUEST_TSO4,
            gso::TCPV6 => GUEST_TSO6,
            gso::TCPV4_ECN => GUEST_TSO4 | GUEST_ECN,
            gso::TCPV6_ECN => GUEST_TSO6 | GUEST_ECN,
            gso::UDP => GUEST_UFO,
            gso::UDP_L4 => GUEST_USO4 | GUEST_USO6,
            _ => return false,
        };
        // Each of them depends on GUEST_CSUM (virtio 1.2, 5.1.3.1).
        let needed = kind | GUEST_CSUM;
        self.bits & needed == needed
    }

    /// Length of the header before each frame: 12 bytes, or 10 for a legacy driver without
    /// mergeable buffers (virtio 1.2, 5.1.6.1).
    #[inline(always)]
    pub fn header_len(self) -> usize {
        if self.has(feature::MRG_RXBUF | feature::VERSION_1) {
            12
        } else {
            10
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Requirements of virtio 1.2, 5.1.3.1, 5.1.6.2 and 5.1.6.4 for each GSO type; no other type is accepted.
        #[test]
        fn a_large_frame_goes_whole_to_who_acknowledged_its_kind(bits: u64, gso_type: u8) {
            let needed: &[u32] = match gso_type {
                0 => &[],
                0x01 => &[1, 7],
                0x81 => &[1, 7, 9],
                0x03 => &[1, 10],
                0x04 => &[1, 8],
                0x84 => &[1, 8, 9],
                0x05 => &[1, 54, 55],
                _ => &[63],
            };
            // Exactly these bits, all bits but one, and any bits.
            let exactly = needed.iter().fold(0, |bits, bit| bits | 1 << bit);
            let known = gso_type == 0 || needed != [63];
            prop_assert_eq!(Features::new(exactly).takes(gso_type), known);
            for bit in needed {
                prop_assert!(!Features::new(!(1 << bit)).takes(gso_type));
            }
            prop_assert_eq!(Features::new(bits).takes(gso_type), known && bits & exactly == exactly);
        }
    }

    #[test]
    fn every_feature_that_is_offered_has_a_name() {
        let named = feature::NAMES.iter().fold(0, |bits, (bit, _)| bits | bit);
        assert_eq!(Features::offered(2) & !named, 0);
    }
}
