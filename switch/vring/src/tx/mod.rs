//! A guest's transmit queue: the ring that its driver fills with frames to send.

mod packed;
mod split;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crosspoint_frame::{BURST, Burst, MAX_BURST_SEGMENTS, NEEDS_CSUM, Offload, Segment};
use crosspoint_packet::{MAX_FRAME_LEN, TAG_LEN, TAGS_MAX};

use crate::ring::Ring;
use crate::{Features, Glance, Notifier, RingError, RingFault};

pub use packed::PackedTx;
pub use split::SplitTx;

/// Longest chain that can be a frame: the longest frame, its tags and the ring's header. What is longer, or has
/// more pieces than a burst, goes on as a frame without bytes, to be dropped as oversize.
const MAX_CHAIN_LEN: u64 = (MAX_FRAME_LEN + TAG_LEN * TAGS_MAX as usize) as u64 + 12;

/// The one consumer of a guest's transmit ring. Owned by one worker.
#[allow(
    clippy::large_enum_variant,
    reason = "kept in a box by the stream that owns it"
)]
pub enum GuestTx {
    /// Of a split ring.
    Split(SplitTx),
    /// Of a packed ring.
    Packed(PackedTx),
}

/// One call, whatever the layout.
macro_rules! either {
    ($queue:expr, $name:ident => $call:expr) => {
        match $queue {
            GuestTx::Split($name) => $call,
            GuestTx::Packed($name) => $call,
        }
    };
}

impl GuestTx {
    /// The queue, beginning at the ring's position `base`, as SET_VRING_BASE gives it. Kicks are
    /// off: the worker polls.
    pub fn new(
        ring: impl Into<Ring>,
        features: Features,
        call: Arc<Notifier>,
        base: u32,
    ) -> Result<GuestTx, RingError> {
        Ok(match ring.into() {
            Ring::Split(ring) => {
                let base = base as u16;
                // What is there may be of an earlier life of the memory: the driver compares with it.
                ring.used_index().store(base, Ordering::Release);
                GuestTx::Split(SplitTx::new(ring, features, call, base))
            }
            Ring::Packed(ring) => {
                let at = ring.position(base).ok_or(RingError::Base { base })?;
                GuestTx::Packed(PackedTx::new(ring, features, call, at))
            }
        })
    }

    /// The position from which a successor goes on, when no burst is being handled and no batch is out, as
    /// GET_VRING_BASE gives it.
    pub fn base(&self) -> u32 {
        either!(self, queue => queue.base())
    }

    /// Takes up to a burst of frames off the ring into `burst`, which is empty. Their
    /// descriptors are held until [`complete`](Self::complete).
    ///
    /// Each burst is looked at one call early, if the driver has offered it by then: its misses
    /// overlap with the work on the burst before it. A frame that finds the queue empty is
    /// taken at once.
    #[inline(always)]
    pub fn receive(&mut self, burst: &mut Burst) -> usize {
        either!(self, queue => queue.receive(burst))
    }

    /// Whether the last burst was full, and more frames wait behind it.
    #[inline(always)]
    pub fn has_backlog(&self) -> bool {
        either!(self, queue => queue.has_backlog())
    }

    /// A look at whether the driver offers anything, for as long as nothing is taken. `None` if it does now, and of a queue
    /// at fault.
    pub fn glance(&self) -> Option<Glance> {
        either!(self, queue => queue.glance())
    }

    /// What the guest did wrong, if it did.
    pub fn fault(&self) -> Option<RingFault> {
        either!(self, queue => queue.fault())
    }

    /// Gives back every descriptor that the last [`receive`](Self::receive) took: their bytes
    /// have been copied to where they go.
    #[inline(always)]
    pub fn complete(&mut self) {
        either!(self, queue => queue.complete())
    }

    /// Takes over what [`complete`](Self::complete) would give back, to be given back later: somebody else still reads
    /// the bytes.
    #[inline(always)]
    pub fn take_batch(&mut self) -> Batch {
        either!(self, queue => queue.take_batch())
    }

    /// Gives back every descriptor of a batch. Batches go back in the order in which they were taken, and while one is
    /// out, [`complete`](Self::complete) is not called: rings are used in order.
    #[inline(always)]
    pub fn complete_batch(&mut self, batch: &Batch) {
        either!(self, queue => queue.complete_batch(batch))
    }

    /// Calls the driver if it wants to know of the completions since the last time. Returns
    /// whether it did. The worker has passed a sequentially consistent fence since it completed.
    #[inline(always)]
    pub fn flush(&mut self) -> bool {
        either!(self, queue => queue.flush())
    }

    /// Asks the driver for kicks, or for none. Returns whether there is work already: after
    /// asking, look before you sleep.
    pub fn set_kicks(&mut self, wanted: bool) -> bool {
        either!(self, queue => queue.set_kicks(wanted))
    }
}

/// Descriptors of one burst, held on beyond it.
#[derive(Clone)]
pub struct Batch {
    chains: [Chain; BURST],
    len: usize,
    /// The ring's position behind them.
    end: u64,
}

impl Default for Batch {
    fn default() -> Batch {
        Batch {
            chains: [Chain::default(); BURST],
            len: 0,
            end: 0,
        }
    }
}

impl Batch {
    /// How many frames they are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn chains(&self) -> &[Chain] {
        self.chains.get(..self.len).unwrap_or(&[])
    }
}

/// What is given back for a chain.
#[derive(Clone, Copy, Default)]
struct Chain {
    /// Buffer id, or head.
    id: u16,
    /// Of a packed ring, how many it takes there.
    entries: u16,
}

/// The pieces of one chain, collected.
struct Pieces<'p> {
    list: &'p mut Vec<Segment>,
    total: u64,
}

impl Pieces<'_> {
    fn new(list: &mut Vec<Segment>) -> Pieces<'_> {
        Pieces { list, total: 0 }
    }

    /// Adds `len` bytes at `ptr`, which the caller has just translated: a chain that is too long
    /// to be a frame is only measured on.
    fn push(&mut self, ptr: *mut u8, len: u32) {
        self.total += u64::from(len);
        if self.total <= MAX_CHAIN_LEN && self.list.len() < MAX_BURST_SEGMENTS {
            // SAFETY: translated for `len` bytes of the guest's memory, which stays mapped until
            // the worker's next quiescent point: the two `walk`s call this for nothing else.
            self.list.push(unsafe { Segment::new(ptr, len) });
        } else {
            self.total = MAX_CHAIN_LEN + 1;
        }
    }

    /// Adds the frame that the pieces make, after a header of `header_len` bytes, to the burst;
    /// `false` when there is no room for it.
    fn push_frame(self, burst: &mut Burst, header_len: usize) -> bool {
        if self.total > MAX_CHAIN_LEN {
            return burst.push_oversize();
        }
        let mut header = [0u8; 12];
        let found = take_header(self.list, header.get_mut(..header_len).unwrap_or(&mut []));
        let offload = if found {
            offload_of(&header)
        } else {
            Offload::default()
        };
        burst.push_segments(self.list, offload)
    }
}

#[inline(always)]
fn read_offload(whole: &Segment) -> Offload {
    let Some(header) = whole.read_array::<10>(0) else {
        return Offload::default();
    };
    // Nothing asked: flags and gso_type are both zero, nearly always.
    if header[0] & NEEDS_CSUM == 0 && header[1] == 0 {
        return Offload::default();
    }
    let mut bytes = [0; 12];
    bytes[..10].copy_from_slice(&header);
    offload_of(&bytes)
}

/// struct virtio_net_hdr (virtio 1.2, 5.1.6), little-endian; a legacy driver's is the guest's
/// own order, which is the same on every machine we run on.
fn offload_of(header: &[u8; 12]) -> Offload {
    let field = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    Offload {
        needs_csum: header[0] & NEEDS_CSUM != 0,
        finish: false,
        gso_type: header[1],
        hdr_len: field(2),
        gso_size: field(4),
        csum_start: field(6),
        csum_offset: field(8),
        any_size: false,
    }
}

/// Moves the header's bytes from the beginning of the pieces to `header`; `false`, and nothing
/// left of the pieces, when they are shorter.
fn take_header(pieces: &mut [Segment], header: &mut [u8]) -> bool {
    let mut got = 0;
    for piece in pieces {
        let n = piece.read(header.get_mut(got..).unwrap_or(&mut []));
        got += n;
        *piece = piece.skip(n);
    }
    got == header.len()
}
