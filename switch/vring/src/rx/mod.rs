//! A guest's receive queue: a ring of buffers that any worker delivers frames into.

mod packed;
mod plain;
mod queue;
mod ring;
mod split;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crosspoint_frame::{Burst, TxEntry};
pub use queue::{RxQueue, RxScratch};
use ring::RxRing;

use crate::packed::PackedRing;
use crate::ring::Ring;
use crate::{Features, Notifier, RingError, SplitRing};

/// A guest's receive queue. Shared by all workers.
pub enum GuestRx {
    /// With a split ring.
    Split(RxQueue<SplitRing>),
    /// With a packed ring.
    Packed(RxQueue<PackedRing>),
}

/// Calls the same method on either layout.
macro_rules! either {
    ($queue:expr, $name:ident => $call:expr) => {
        match $queue {
            GuestRx::Split($name) => $call,
            GuestRx::Packed($name) => $call,
        }
    };
}

impl GuestRx {
    /// Creates the queue at the ring's position `base`, as SET_VRING_BASE gives it, for `workers` workers. The driver
    /// is asked for no kicks: no thread waits for buffers.
    pub fn new(
        ring: impl Into<Ring>,
        features: Features,
        call: Arc<Notifier>,
        base: u32,
        workers: usize,
    ) -> Result<GuestRx, RingError> {
        Ok(match ring.into() {
            Ring::Split(ring) => {
                let base = base as u16;
                ring.set_kicks(false, base);
                // A predecessor may have left another value; helpers compare with this index.
                ring.used_index().store(base, Ordering::Release);
                GuestRx::Split(RxQueue::new(ring, features, call, base.into(), workers))
            }
            Ring::Packed(ring) => {
                let at = ring.position(base).ok_or(RingError::Base { base })?;
                ring.set_kicks(false, at);
                GuestRx::Packed(RxQueue::new(ring, features, call, at, workers))
            }
        })
    }

    /// The position from which a successor continues, as GET_VRING_BASE returns it. Valid while no worker is
    /// delivering.
    pub fn base(&self) -> u32 {
        either!(self, queue => queue.ring.base(queue.reserve.head()))
    }

    /// Number of ring entries.
    pub fn size(&self) -> u16 {
        either!(self, queue => queue.ring.size())
    }

    /// Number of buffers that are available at this moment. Any thread may call it; it only reads. `None` for a packed
    /// ring, which would have to be scanned, and if the available index is invalid.
    pub fn offered(&self) -> Option<usize> {
        match self {
            GuestRx::Split(queue) => queue
                .ring
                .offered(&queue.reserve, queue.reserve.head(), 0)
                .ok(),
            GuestRx::Packed(_) => None,
        }
    }

    /// Whether the driver has ever made a buffer available here, as far as the ring shows.
    #[inline(always)]
    pub fn has_begun(&self) -> bool {
        either!(self, queue => queue.ring.has_begun(queue.reserve.head()))
    }

    /// Whether the ring shows that the driver has taken every delivered frame: it waits for the next one, or has made
    /// as many buffers available as the ring has entries. This cannot be true while a worker has a frame to publish.
    pub fn is_taken(&self) -> bool {
        either!(self, queue => {
            let head = queue.reserve.head();
            head == queue.begin || queue.ring.is_taken(head)
        })
    }

    /// Whether the driver accepts a frame of this GSO type unchanged.
    pub fn takes(&self, gso_type: u8) -> bool {
        either!(self, queue => queue.takes(gso_type))
    }

    /// Copies the picked frames into the guest's buffers and publishes them: one reservation and one index store for
    /// all frames, if the buffers allow it. If the guest breaks the ring's rules, copies count as `faulty`, and the
    /// fault is stored in the scratch. The work to find buffers that are not plain is bounded for the burst
    /// ([`RxScratch::begin_burst`]).
    #[inline(always)]
    pub fn deliver(
        &self,
        worker: usize,
        burst: &Burst,
        picks: &[TxEntry],
        scratch: &mut RxScratch,
    ) -> Outcome {
        either!(self, queue => queue.deliver(worker, burst, picks, scratch))
    }

    /// Prefetches the descriptors of the next `count` buffers after a delivery, for the next one.
    #[inline(always)]
    pub fn prefetch_descriptors(&self, count: usize) {
        either!(self, queue => queue.ring.prefetch_descriptors(queue.reserve.head(), count));
    }

    /// Reads the entries of the next `count` buffers and prefetches the buffers for writing, while the frames for them
    /// are still on their way to the cache: both waits overlap. Nothing is taken; the next delivery uses what was read.
    #[inline(always)]
    pub fn look(&self, count: usize, scratch: &mut RxScratch) {
        either!(self, queue => queue.look(count, scratch));
    }

    /// Calls the driver if it wants to know of what this worker has published since its last flush. Returns whether it
    /// called. The worker must have passed a sequentially consistent fence since it published.
    #[inline(always)]
    pub fn flush(&self, worker: usize) -> bool {
        either!(self, queue => queue.flush(worker))
    }
}
/// Result of one `deliver`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Outcome {
    /// Copies delivered.
    pub frames: u32,
    /// Bytes of these copies, without the ring's headers.
    pub bytes: u64,
    /// Copies dropped because no buffers were available.
    pub full: u32,
    /// Copies dropped because a buffer was too small and could not be merged with the next one.
    pub small: u32,
    /// Copies dropped after too many lost races against other workers.
    pub contended: u32,
    /// Copies dropped because the buffers have so many pieces that the burst's work budget ran out.
    pub costly: u32,
    /// Copies dropped because the ring is broken.
    pub faulty: u32,
    /// Work spent on the ring's buffers, up to the copies' own work.
    pub work: u32,
    /// Work spent on the ring's buffers beyond the copies' own work.
    pub excess: u32,
    /// Whether the worker must call [`flush`](GuestRx::flush) later.
    pub touched: bool,
}
