//! A guest's receive queue: the ring of buffers that frames are delivered into, by any worker.

mod packed;
mod plain;
mod queue;
mod ring;
mod split;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crosspoint_frame::{Burst, Pick};

use crate::packed::PackedRing;
use crate::ring::Ring;
use crate::{Features, Notifier, RingError, SplitRing};

pub use queue::{RxQueue, RxScratch};
use ring::RxRing;

/// A guest's receive queue. Shared by all workers.
pub enum GuestRx {
    /// Of a split ring.
    Split(RxQueue<SplitRing>),
    /// Of a packed ring.
    Packed(RxQueue<PackedRing>),
}

/// One call, whatever the layout.
macro_rules! either {
    ($queue:expr, $name:ident => $call:expr) => {
        match $queue {
            GuestRx::Split($name) => $call,
            GuestRx::Packed($name) => $call,
        }
    };
}

impl GuestRx {
    /// The queue, beginning at the ring's position `base`, as SET_VRING_BASE gives it; delivered
    /// to by `workers` workers. The driver is asked for no kicks: nobody waits for buffers.
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
                // What a predecessor left there may not be where we go on; helpers compare with it.
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

    /// The position from which a successor goes on, when no worker is delivering, as
    /// GET_VRING_BASE gives it.
    pub fn base(&self) -> u32 {
        either!(self, queue => queue.ring.base(queue.reserve.head()))
    }

    /// How many entries the ring has.
    pub fn size(&self) -> u16 {
        either!(self, queue => queue.ring.size())
    }

    /// How many buffers the driver offers at this moment. For anybody: it only looks. `None` for a packed ring, which
    /// would have to be read through, and where the driver says nonsense.
    pub fn offered(&self) -> Option<usize> {
        match self {
            GuestRx::Split(queue) => queue
                .ring
                .offered(&queue.reserve, queue.reserve.head(), 0)
                .ok(),
            GuestRx::Packed(_) => None,
        }
    }

    /// Whether the driver has ever offered a buffer here, as far as the ring tells.
    #[inline(always)]
    pub fn has_begun(&self) -> bool {
        either!(self, queue => queue.ring.has_begun(queue.reserve.head()))
    }

    /// Whether the driver shows that it has taken every frame that was delivered here: it waits for the next one, or offers
    /// as many buffers as the ring has entries. It cannot do so while a worker has yet to publish one.
    pub fn is_taken(&self) -> bool {
        either!(self, queue => {
            let head = queue.reserve.head();
            head == queue.begin || queue.ring.is_taken(head)
        })
    }

    /// Whether the driver takes a frame of this segmentation kind as it is.
    pub fn takes(&self, gso_type: u8) -> bool {
        either!(self, queue => queue.takes(gso_type))
    }

    /// Copies the picked frames into the guest's buffers and publishes them: one reservation,
    /// one index store, for all of them where the buffers allow. A guest that breaks the rules
    /// gets `faulty` copies, and what it did is left in the scratch. What it costs to find
    /// buffers that are not plain is bounded for the burst ([`RxScratch::begin_burst`]).
    #[inline(always)]
    pub fn deliver(
        &self,
        worker: usize,
        burst: &Burst,
        picks: &[Pick],
        scratch: &mut RxScratch,
    ) -> Outcome {
        either!(self, queue => queue.deliver(worker, burst, picks, scratch))
    }

    /// Asks for the lines that lead to the next `count` buffers. After a delivery: the next one
    /// finds them in the cache.
    #[inline(always)]
    pub fn prefetch_descriptors(&self, count: usize) {
        either!(self, queue => queue.ring.prefetch_descriptors(queue.reserve.head(), count));
    }

    /// Reads the entries of the next `count` buffers and asks for the buffers, to be written. While the frames that will
    /// go there are still on their way to the cache: both waits pass together. The next delivery finds what was read;
    /// nothing is taken.
    #[inline(always)]
    pub fn look(&self, count: usize, scratch: &mut RxScratch) {
        either!(self, queue => queue.look(count, scratch));
    }

    /// Calls the driver if it wants to know of what this worker has published since its last
    /// flush. Returns whether it did. The worker has passed a sequentially consistent fence
    /// since it published.
    #[inline(always)]
    pub fn flush(&self, worker: usize) -> bool {
        either!(self, queue => queue.flush(worker))
    }
}
/// What became of the copies of one `deliver`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Outcome {
    /// Copies delivered.
    pub frames: u32,
    /// Their bytes, headers of the ring not counted.
    pub bytes: u64,
    /// Copies dropped because the driver had offered no buffers.
    pub full: u32,
    /// Copies dropped because a buffer was too small and could not be joined with the next.
    pub small: u32,
    /// Copies dropped because other workers were faster, again and again.
    pub contended: u32,
    /// Copies dropped because the buffers are in so many pieces that the burst's work was used up.
    pub costly: u32,
    /// Copies dropped because the ring is broken.
    pub faulty: u32,
    /// Work that the ring's buffers asked for: of what each copy may ask for by itself,
    pub work: u32,
    /// and beyond that.
    pub excess: u32,
    /// Whether the worker must come back and [`flush`](GuestRx::flush).
    pub touched: bool,
}
