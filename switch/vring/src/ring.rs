//! A ring of either layout.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::packed::PackedRing;
use crate::{Features, InflightQueue, MemoryCell, RingAddresses, RingError, SplitRing, feature};

/// A ring of either layout.
pub enum Ring {
    /// virtio 1.2, 2.7.
    Split(SplitRing),
    /// virtio 1.2, 2.8.
    Packed(PackedRing),
}

impl Ring {
    /// The ring that the negotiated features ask for.
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

    /// Where a device goes on that has its predecessor's notes; `None` if they say nothing.
    pub fn resume_noted(&self, inflight: &InflightQueue) -> Option<u32> {
        match self {
            Ring::Split(_) => None,
            Ring::Packed(ring) => {
                let at = ring.position(inflight.packed_base()?)?;
                Some(ring.base(ring.resume(at, inflight)))
            }
        }
    }

    /// Notes where the ring stands, from `base` on.
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

    /// Where a device goes on that was told `base` by SET_VRING_BASE, or that has noted it
    /// itself (`own`).
    ///
    /// What was told is not always so: after a back end that died, the front end knows of
    /// nothing that it did since. In a split ring the used index is what the guest has really
    /// seen, unless the driver's own index is further from it than the ring is long, and not from
    /// what was told: then it is of an earlier life of that memory, and the driver has not seen
    /// it. A packed ring has marks; they are asked only where the front end believes to be at
    /// the very beginning, and is not. (At the beginning the wrap counter is 1; User-Mode Linux
    /// says 0 all the same.)
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
