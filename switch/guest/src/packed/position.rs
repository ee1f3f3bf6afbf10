//! Positions in a packed ring.

use super::*;

/// A position in a packed ring: a slot and the wrap counter there (2.8.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// From 0 to the ring size, exclusive.
    pub slot: u16,
    /// The wrap counter: true in the first lap, false in the second, and so on.
    pub wrap: bool,
}

impl Position {
    /// Start of both sides (2.8.1).
    pub const START: Self = Self {
        slot: 0,
        wrap: true,
    };

    /// The form used by vhost-user's `SET_VRING_BASE` and the event areas: the slot, and the wrap counter in bit 15.
    #[must_use]
    pub fn from_bits(bits: u16) -> Self {
        Self {
            slot: bits & !POSITION_WRAP,
            wrap: bits & POSITION_WRAP != 0,
        }
    }

    /// The inverse of [`Position::from_bits`].
    #[must_use]
    pub fn to_bits(self) -> u16 {
        self.slot | if self.wrap { POSITION_WRAP } else { 0 }
    }

    /// Position of a ring of `size` slots after `descriptors` from the start.
    #[must_use]
    pub fn after(descriptors: u16, size: u16) -> Self {
        let size = size.max(1);
        Self {
            slot: descriptors % size,
            wrap: (descriptors / size).is_multiple_of(2),
        }
    }

    /// The position `descriptors` further on (at most one lap) in a ring of `size` slots.
    #[inline(always)]
    #[must_use]
    pub fn advance(self, descriptors: u16, size: u16) -> Self {
        let slot = u32::from(self.slot) + u32::from(descriptors);
        match slot.checked_sub(size.into()) {
            None => Self {
                slot: slot as u16,
                ..self
            },
            Some(slot) => Self {
                slot: slot as u16,
                wrap: !self.wrap,
            },
        }
    }

    /// `AVAIL` and `USED` of a descriptor that the driver makes available here.
    #[inline(always)]
    pub(super) fn available_bits(self) -> u16 {
        if self.wrap { DESC_F_AVAIL } else { DESC_F_USED }
    }

    /// Whether `flags`, found here, are those of a used descriptor.
    #[inline(always)]
    pub(super) fn is_used(self, flags: u16) -> bool {
        flags & WRAP_BITS == if self.wrap { WRAP_BITS } else { 0 }
    }
}

/// Progress of a packed ring, for code that reconnects it while a pump owns it. A split ring has its used index for
/// this; a packed ring has nothing in memory.
#[derive(Clone, Debug)]
pub struct Progress {
    pub(super) descriptors: Window,
    pub(super) size: u16,
    pub(super) used: Arc<AtomicU16>,
}

impl Progress {
    /// Position where the driver expects the next used descriptor.
    #[must_use]
    pub fn used_position(&self) -> Position {
        Position::from_bits(self.used.load(Acquire))
    }

    /// Position where the device has stopped, if all buffers have one descriptor and it wrote a used descriptor for
    /// each. If the device is running, the answer may be outdated.
    #[must_use]
    pub fn device_position(&self) -> Position {
        loop {
            let taken = self.used_position();
            let mut at = taken;
            for _ in 0..self.size {
                if super::used::load_used(self.descriptors.view(), at).is_none() {
                    break;
                }
                at = at.advance(1, self.size);
            }
            // A pump that has taken more meanwhile may have overwritten the descriptors that were read here.
            if self.used_position() == taken {
                return at;
            }
        }
    }
}
