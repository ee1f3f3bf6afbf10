use thiserror::Error;

/// A rule of the ring that the guest broke. Its port is quarantined; the switch continues.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum RingFault {
    /// virtio 1.2, 2.7.6: the driver makes no more entries available than the ring has.
    #[error("the available index is {ahead} entries ahead of the used ones, in a ring of {size}")]
    AvailJump {
        /// Entries made available and not taken.
        ahead: u16,
        /// Ring size.
        size: u16,
    },
    /// A descriptor whose buffer spans too many memory regions: each needs a lookup.
    #[error(
        "the descriptor for {len} bytes at {address:#x} spans more than {most} memory regions: give the guest fewer, larger ones"
    )]
    Scattered {
        /// Guest physical address.
        address: u64,
        /// Bytes.
        len: u32,
        /// Maximum number of regions.
        most: u16,
    },
    /// One chain that takes more steps (descriptors and regions) than a whole burst may.
    #[error("a descriptor chain takes more than {most} steps to read")]
    ChainCostly {
        /// Maximum number of steps.
        most: u16,
    },
    /// virtio 1.2, 2.7.5: descriptors are numbered below the ring's size.
    #[error("descriptor index {index} is outside the table of {size}")]
    DescriptorIndex {
        /// The index as the guest wrote it.
        index: u16,
        /// Entries in the table.
        size: u16,
    },
    /// A buffer or an indirect table outside the memory that the front end shared.
    #[error("address {address:#x} with length {len} is outside the guest's memory")]
    Address {
        /// Guest physical address.
        address: u64,
        /// Bytes.
        len: u32,
    },
    /// virtio 1.2, 2.7.5.1: a chain is no longer than the ring, so a loop ends here too. Chains of more than 1024
    /// descriptors are not followed, whatever the ring's size.
    #[error("a descriptor chain is longer than {size} entries, or loops")]
    ChainTooLong {
        /// Entries of the ring or the table, at most 1024.
        size: u16,
    },
    /// virtio 1.2, 2.7.5.3.1: whole 16-byte entries, at least one; at most 1024, or the ring's
    /// size if that is more.
    #[error("an indirect table of {len} bytes: it must hold 1 to {size} descriptors of 16 bytes")]
    IndirectLength {
        /// Bytes, as the guest wrote them.
        len: u32,
        /// Maximum number of entries.
        size: u16,
    },
    /// virtio 1.2, 2.7.5.3.1: no table inside a table, and no indirect descriptor with F_NEXT.
    #[error(
        "an indirect descriptor where none is allowed (inside a table, in a chain, or not negotiated)"
    )]
    IndirectPlace,
    /// A device-writable descriptor in a frame to send, or a read-only one in a receive buffer.
    #[error("a descriptor of the wrong direction")]
    Direction,
    /// virtio 1.2, 2.8.6: a chain is made available as a whole, and is not changed after.
    #[error("a descriptor chain continues beyond the descriptors that the driver made available")]
    ChainCut,
    /// virtio 1.2, 2.8.6: buffer ids are numbered below the ring's size.
    #[error("buffer id {id} in a ring of {size}")]
    BufferId {
        /// As the guest wrote it.
        id: u16,
        /// Ring size.
        size: u16,
    },
    /// The front end truncated a file that it had shared as guest memory.
    #[error("a memory file was truncated while it was mapped: the guest's memory is gone")]
    MemoryLost,
}
