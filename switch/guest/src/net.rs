//! virtio-net constants and the header in front of each frame.

/// Feature bits, as masks (virtio 1.2, sections 5.1.3 and 6; vhost-user for bit 30).
pub mod features {
    /// The device handles packets with a partial checksum (5.1.3).
    pub const CSUM: u64 = 1 << 0;
    /// The driver handles packets with a partial checksum (5.1.3).
    pub const GUEST_CSUM: u64 = 1 << 1;
    /// The device reports a maximum MTU (5.1.3).
    pub const MTU: u64 = 1 << 3;
    /// The driver takes TSOv4 frames (5.1.3).
    pub const GUEST_TSO4: u64 = 1 << 7;
    /// The driver takes TSOv6 frames (5.1.3).
    pub const GUEST_TSO6: u64 = 1 << 8;
    /// The driver takes TSO frames with ECN (5.1.3).
    pub const GUEST_ECN: u64 = 1 << 9;
    /// The driver takes UFO frames (5.1.3).
    pub const GUEST_UFO: u64 = 1 << 10;
    /// The device takes TSOv4 frames (5.1.3).
    pub const HOST_TSO4: u64 = 1 << 11;
    /// The device takes TSOv6 frames (5.1.3).
    pub const HOST_TSO6: u64 = 1 << 12;
    /// The device takes TSO frames with ECN (5.1.3).
    pub const HOST_ECN: u64 = 1 << 13;
    /// The device takes UFO frames (5.1.3).
    pub const HOST_UFO: u64 = 1 << 14;
    /// A received frame may span several buffers (5.1.3).
    pub const MRG_RXBUF: u64 = 1 << 15;
    /// The configuration space has a link status (5.1.3).
    pub const STATUS: u64 = 1 << 16;
    /// There is a control queue (5.1.3).
    pub const CTRL_VQ: u64 = 1 << 17;
    /// The guest can announce itself after migration (5.1.3).
    pub const GUEST_ANNOUNCE: u64 = 1 << 21;
    /// Several queue pairs (5.1.3).
    pub const MQ: u64 = 1 << 22;
    /// vhost: the device logs what it writes (`VHOST_F_LOG_ALL`). Never seen by a driver, and set during a migration
    /// only.
    pub const LOG_ALL: u64 = 1 << 26;
    /// vhost-user: there are protocol features to negotiate. Never seen by a driver.
    pub const PROTOCOL_FEATURES: u64 = 1 << 30;
    /// Indirect descriptor tables (2.7.5.3).
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// `used_event` and `avail_event` fields (2.7.7, 2.7.9).
    pub const EVENT_IDX: u64 = 1 << 29;
    /// Not a legacy device (6).
    pub const VERSION_1: u64 = 1 << 32;
    /// Packed rings (2.8).
    pub const RING_PACKED: u64 = 1 << 34;
    /// Buffers are used in the order in which they were made available (2.7.8).
    pub const IN_ORDER: u64 = 1 << 35;
}

/// Length of the header if `VERSION_1` or `MRG_RXBUF` is negotiated (virtio 1.2, 5.1.6).
pub const HEADER_LEN: usize = 12;
/// Length of the header of a legacy device without `MRG_RXBUF`: no `num_buffers` (virtio 1.2, 5.1.6.1).
pub const HEADER_LEN_LEGACY: usize = 10;
/// `flags`: the receiver or the device must complete the checksum from `csum_start` on.
pub const HDR_F_NEEDS_CSUM: u8 = 1;
/// `flags`: the checksum has been verified.
pub const HDR_F_DATA_VALID: u8 = 2;
/// `gso_type`: not a GSO frame.
pub const GSO_NONE: u8 = 0;
/// `gso_type`: TCP over IPv4.
pub const GSO_TCPV4: u8 = 1;
/// `gso_type`: one UDP datagram, to be fragmented.
pub const GSO_UDP: u8 = 3;
/// `gso_type`: TCP over IPv6.
pub const GSO_TCPV6: u8 = 4;

/// Length of the header with `features`.
#[must_use]
pub fn header_len(features: u64) -> usize {
    if features & (features::VERSION_1 | features::MRG_RXBUF) != 0 {
        HEADER_LEN
    } else {
        HEADER_LEN_LEGACY
    }
}

/// `struct virtio_net_hdr` (virtio 1.2, 5.1.6). Offsets and sizes are bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VirtioNetHdr {
    /// `HDR_F_*`.
    pub flags: u8,
    /// `GSO_*`.
    pub gso_type: u8,
    /// Bytes of Ethernet, IP and TCP headers (a hint).
    pub hdr_len: u16,
    /// Payload bytes of each segment.
    pub gso_size: u16,
    /// Start of the checksummed bytes, from the start of the frame.
    pub csum_start: u16,
    /// Position of the checksum, from `csum_start`.
    pub csum_offset: u16,
    /// Buffers that this frame fills; only with `MRG_RXBUF`, else 0 or 1.
    pub num_buffers: u16,
}

impl VirtioNetHdr {
    /// The header as stored in guest memory, little-endian. Legacy guests use the first 10 bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0] = self.flags;
        bytes[1] = self.gso_type;
        for (i, field) in [
            self.hdr_len,
            self.gso_size,
            self.csum_start,
            self.csum_offset,
            self.num_buffers,
        ]
        .into_iter()
        .enumerate()
        {
            bytes[2 + 2 * i..4 + 2 * i].copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }

    /// The inverse of [`VirtioNetHdr::to_bytes`].
    #[must_use]
    pub fn from_bytes(bytes: [u8; HEADER_LEN]) -> Self {
        let field = |i: usize| u16::from_le_bytes([bytes[2 + 2 * i], bytes[3 + 2 * i]]);
        Self {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: field(0),
            gso_size: field(1),
            csum_start: field(2),
            csum_offset: field(3),
            num_buffers: field(4),
        }
    }
}
