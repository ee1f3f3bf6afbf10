//! A ring of either layout.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crosspoint_memory::MemoryCell;

use crate::packed::PackedRing;
use crate::{Features, InflightQueue, RingAddresses, RingError, SplitRing, feature};

/// A ring of either layout.
pub enum Ring {
    /// virtio 1.2, 2.7.
    Split(SplitRing),
    /// virtio 1.2, 2.8.
    Packed(PackedRing),
}

impl Ring {
    /// Creates the ring with the layout that the negotiated features select.
    pub fn new(
        memory: Arc<MemoryCell>,
        size: u32,
        at: RingAddresses,
        features: Features,
    ) -> Result<Ring, RingError> {
        let event_idx = features.has(feature::EVENT_IDX);
        if features.has(feature::RING_PACKED) {
            Ok(Ring::Packed(PackedRing::new(memory, size, at, event_idx)?))
        } else {
            Ok(Ring::Split(SplitRing::new(memory, size, at, event_idx)?))
        }
    }

    /// The position at which a device continues, from its predecessor's records; `None` if they have no position.
    pub fn resume_noted(&self, inflight: &InflightQueue) -> Option<u32> {
        match self {
            Ring::Split(_) => None,
            Ring::Packed(ring) => {
                let at = ring.position(inflight.packed_base()?)?;
                Some(ring.base(ring.resume(at, inflight)))
            }
        }
    }

    /// Starts recording the ring's position in the inflight region, beginning with `base`.
    pub fn track(&mut self, inflight: InflightQueue, base: u32) {
        match self {
            Ring::Split(ring) => ring.track(inflight, base as u16),
            Ring::Packed(ring) => {
                if let Some(at) = ring.position(base) {
                    ring.track(inflight, at);
                }
            }
        }
    }

    /// The position at which a device continues after SET_VRING_BASE with `base`, or after recording `base` itself
    /// (`own`).
    ///
    /// The front end's base is not always correct: after a back end crashed, the front end does not know what the back
    /// end had done. In a split ring the used index is what the guest has really seen. The exception: the driver's
    /// index is more than the ring's size away from the used index, but not from the base. Then the used index is from
    /// an earlier use of that memory, and the driver has not seen it. A packed ring has AVAIL and USED flags; they are
    /// used only if the front end's base is the start of the ring and this is not consistent with the flags. (At the
    /// start the wrap counter is 1; User-Mode Linux sends 0 nevertheless.)
    pub fn resume_at(&self, base: u32, own: bool) -> Result<u32, RingError> {
        match self {
            Ring::Split(ring) => {
                let used = ring.used_index().load(Ordering::Acquire);
                let avail = ring.avail_index();
                let is_within = |index: u16| avail.wrapping_sub(index) <= ring.size();
                match is_within(base as u16) && !is_within(used) {
                    true => Ok(u32::from(base as u16)),
                    false => Ok(used.into()),
                }
            }
            Ring::Packed(ring) => {
                let at = ring.position(base).ok_or(RingError::Base { base })?;
                let beginning = at.is_multiple_of(ring.size().into()) && !own;
                let found = beginning.then(|| ring.find_position(at)).flatten();
                Ok(ring.base(found.unwrap_or(at)))
            }
        }
    }
}

impl From<SplitRing> for Ring {
    fn from(ring: SplitRing) -> Ring {
        Ring::Split(ring)
    }
}

impl From<PackedRing> for Ring {
    fn from(ring: PackedRing) -> Ring {
        Ring::Packed(ring)
    }
}
