//! A guest's transmit queue: the ring that its driver fills with frames to send.

mod packed;
mod split;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crosspoint_frame::{BURST, Burst, MAX_BURST_SEGMENTS, NEEDS_CSUM, Offload, Segment};
use crosspoint_packet::{MAX_FRAME_LEN, TAG_LEN, TAGS_MAX};
pub use packed::PackedTx;
pub use split::SplitTx;

use crate::ring::Ring;
use crate::{Features, Glance, Notifier, RingError, RingFault};

/// Longest chain that can be a frame: the longest frame, its tags and the ring's header. A longer chain, or one with
/// more pieces than a burst, becomes a frame without bytes, which is dropped as oversize.
const MAX_CHAIN_LEN: u64 = (MAX_FRAME_LEN + TAG_LEN * TAGS_MAX as usize) as u64 + 12;

/// The only consumer of a guest's transmit ring. Owned by one worker.
#[allow(
    clippy::large_enum_variant,
    reason = "kept in a box by the stream that owns it"
)]
pub enum GuestTx {
    /// With a split ring.
    Split(SplitTx),
    /// With a packed ring.
    Packed(PackedTx),
}

/// Calls the same method on either layout.
macro_rules! either {
    ($queue:expr, $name:ident => $call:expr) => {
        match $queue {
            GuestTx::Split($name) => $call,
            GuestTx::Packed($name) => $call,
        }
    };
}

impl GuestTx {
    /// Creates the queue at the ring's position `base`, as SET_VRING_BASE gives it. Kicks are off, since the worker
    /// polls.
    pub fn new(
        ring: impl Into<Ring>,
        features: Features,
        call: Arc<Notifier>,
        base: u32,
    ) -> Result<GuestTx, RingError> {
        Ok(match ring.into() {
            Ring::Split(ring) => {
                let base = base as u16;
                // The index in memory may be from an earlier use of the memory, and the driver compares with it.
                ring.used_index().store(base, Ordering::Release);
                GuestTx::Split(SplitTx::new(ring, features, call, base))
            }
            Ring::Packed(ring) => {
                let at = ring.position(base).ok_or(RingError::Base { base })?;
                GuestTx::Packed(PackedTx::new(ring, features, call, at))
            }
        })
    }

    /// The position from which a successor continues, as GET_VRING_BASE returns it. Valid while no burst is being
    /// handled and no batch is outstanding.
    pub fn base(&self) -> u32 {
        either!(self, queue => queue.base())
    }

    /// Takes up to a burst of frames off the ring into `burst`, which must be empty. Their descriptors are held until
    /// [`complete`](Self::complete).
    ///
    /// Each burst is prefetched one call early, if the driver has made it available by then, so that its cache misses
    /// overlap with the work on the previous burst. A frame that arrives in an empty queue is taken at once.
    #[inline(always)]
    pub fn receive(&mut self, burst: &mut Burst) -> usize {
        either!(self, queue => queue.receive(burst))
    }

    /// Whether the last burst was full and more frames wait behind it.
    #[inline(always)]
    pub fn has_backlog(&self) -> bool {
        either!(self, queue => queue.has_backlog())
    }

    /// Returns a glance at the ring, to see later whether the driver has made a frame available, valid while no frame
    /// is taken. `None` if a frame is available now, or the queue is at fault.
    pub fn glance(&self) -> Option<Glance> {
        either!(self, queue => queue.glance())
    }

    /// The rule that the guest broke, if any.
    pub fn fault(&self) -> Option<RingFault> {
        either!(self, queue => queue.fault())
    }

    /// Returns every descriptor that the last [`receive`](Self::receive) took: the frames' bytes have been copied.
    #[inline(always)]
    pub fn complete(&mut self) {
        either!(self, queue => queue.complete())
    }

    /// Takes the descriptors that [`complete`](Self::complete) would return, to return them later: their bytes are
    /// still being read.
    #[inline(always)]
    pub fn take_batch(&mut self) -> Batch {
        either!(self, queue => queue.take_batch())
    }

    /// Returns every descriptor of a batch. Batches must be completed in the order in which they were taken, and
    /// [`complete`](Self::complete) must not be called while one is outstanding: rings are used in order.
    #[inline(always)]
    pub fn complete_batch(&mut self, batch: &Batch) {
        either!(self, queue => queue.complete_batch(batch))
    }

    /// Calls the driver if it wants to know of the completions since the last flush. Returns whether it called. The
    /// worker must have passed a sequentially consistent fence since it completed.
    #[inline(always)]
    pub fn flush(&mut self) -> bool {
        either!(self, queue => queue.flush())
    }

    /// Asks the driver for kicks, or for none. Returns whether there is work already: check this after asking and
    /// before sleeping.
    pub fn set_kicks(&mut self, wanted: bool) -> bool {
        either!(self, queue => queue.set_kicks(wanted))
    }
}

/// Descriptors of one burst, held beyond it.
#[derive(Clone)]
pub struct Batch {
    chains: [Chain; BURST],
    len: usize,
    /// The ring's position after them.
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
    /// Number of frames.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no frames.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn chains(&self) -> &[Chain] {
        self.chains.get(..self.len).unwrap_or(&[])
    }
}

/// What is returned to the driver for a chain.
#[derive(Clone, Copy, Default)]
struct Chain {
    /// Buffer id, or head descriptor index.
    id: u16,
    /// In a packed ring, the number of entries that the chain takes.
    entries: u16,
}

/// Collects the pieces of one chain.
struct Pieces<'p> {
    list: &'p mut Vec<Segment>,
    total: u64,
}

impl Pieces<'_> {
    fn new(list: &mut Vec<Segment>) -> Pieces<'_> {
        Pieces { list, total: 0 }
    }

    /// Adds `len` bytes at `ptr`, which the caller has just translated. Of a chain too long to be a frame, only the
    /// length is counted.
    fn push(&mut self, ptr: *mut u8, len: u32) {
        self.total += u64::from(len);
        if self.total <= MAX_CHAIN_LEN && self.list.len() < MAX_BURST_SEGMENTS {
            // SAFETY: translated for `len` bytes of the guest's memory, which stays mapped until the worker's next
            // quiescent point: the two `walk` functions call this with nothing else.
            self.list.push(unsafe { Segment::new(ptr, len) });
        } else {
            self.total = MAX_CHAIN_LEN + 1;
        }
    }

    /// Adds the frame that the pieces form, after a header of `header_len` bytes, to the burst. Returns `false` if
    /// there is no room for it.
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
    // No offload: flags and gso_type are both zero, nearly always.
    if header[0] & NEEDS_CSUM == 0 && header[1] == 0 {
        return Offload::default();
    }
    let mut bytes = [0; 12];
    bytes[..10].copy_from_slice(&header);
    offload_of(&bytes)
}

/// Decodes struct virtio_net_hdr (virtio 1.2, 5.1.6), little-endian. A legacy driver uses the guest's byte order, which
/// is the same on every supported machine.
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

/// Moves the header's bytes from the beginning of the pieces to `header`. If the pieces are shorter, returns `false`
/// and consumes them.
fn take_header(pieces: &mut [Segment], header: &mut [u8]) -> bool {
    let mut got = 0;
    for piece in pieces {
        let n = piece.read(header.get_mut(got..).unwrap_or(&mut []));
        got += n;
        *piece = piece.skip(n);
    }
    got == header.len()
}
