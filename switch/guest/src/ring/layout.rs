//! Where the parts of a ring lie.

use super::*;

/// Size and guest physical addresses of a ring. The fields are named for the split ring; a packed one has its
/// descriptor ring, driver and device event suppression area in the same places, aligned to 16, 4 and 4 bytes, and any
/// size up to 32768.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingLayout {
    /// Entries, a power of two up to 32768.
    pub size: u16,
    /// Descriptor table, aligned to 16 bytes.
    pub descriptors: u64,
    /// Available ring, aligned to 2 bytes.
    pub available: u64,
    /// Used ring, aligned to 4 bytes.
    pub used: u64,
}

impl RingLayout {
    /// The three consecutive parts from `address`, each beginning at a cache line.
    #[must_use]
    pub fn contiguous(size: u16, address: u64) -> Self {
        let descriptors = address.next_multiple_of(CACHE_LINE_LEN as u64);
        let available = descriptors + descriptors_len(size).next_multiple_of(CACHE_LINE_LEN) as u64;
        let used = available + available_len(size).next_multiple_of(CACHE_LINE_LEN) as u64;
        Self {
            size,
            descriptors,
            available,
            used,
        }
    }

    /// Bytes that [`RingLayout::contiguous`] needs from an address that is aligned to a cache line.
    #[must_use]
    pub fn contiguous_len(size: u16) -> usize {
        let layout = Self::contiguous(size, 0);
        (layout.used as usize + used_len(size)).next_multiple_of(CACHE_LINE_LEN)
    }
}

/// Size of the descriptor table in bytes (2.7).
#[must_use]
pub fn descriptors_len(size: u16) -> usize {
    DESCRIPTOR_LEN * usize::from(size)
}

/// Size of the available ring in bytes, with `used_event` (2.7).
#[must_use]
pub fn available_len(size: u16) -> usize {
    RING_HEADER_LEN + 2 * usize::from(size) + 2
}

/// Size of the used ring in bytes, with `avail_event` (2.7).
#[must_use]
pub fn used_len(size: u16) -> usize {
    RING_HEADER_LEN + USED_ELEMENT_LEN * usize::from(size) + 2
}
