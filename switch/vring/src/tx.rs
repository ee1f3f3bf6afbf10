//! A guest's transmit queue: the ring that its driver fills with frames to send.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use crosspoint_frame::{BURST, Burst, MAX_BURST_SEGMENTS, Offload, Segment, prefetch_read};
use crosspoint_packet::{MAX_FRAME_LEN, TAG_LEN};

use crate::chain::{self, Direction};
use crate::{Features, Notifier, RingFault, SplitRing, feature};

/// VIRTIO_NET_HDR_F_NEEDS_CSUM (virtio 1.2, 5.1.6).
pub(crate) const F_NEEDS_CSUM: u8 = 1;

/// Longest chain that can be a frame: the longest frame, its tag and the ring's header. What is longer, or has
/// more pieces than a burst, goes on as a frame without bytes, to be dropped as oversize.
const MAX_CHAIN_LEN: u64 = (MAX_FRAME_LEN + TAG_LEN) as u64 + 12;

/// The one consumer of a guest's transmit ring. Owned by one worker.
pub struct GuestTx {
    ring: SplitRing,
    features: Features,
    call: Arc<Notifier>,
    /// Position of the next entry to take; as much of it as the ring's indices have.
    next: u16,
    /// Position of the next used entry: `next` less what the current burst holds.
    used: u16,
    /// Used position at the last decision to call.
    called: u16,
    /// Whether a decision was made yet. What a predecessor completed it may not have called for,
    /// so the first one is for calling.
    decided: bool,
    /// How far the driver had offered when last looked.
    avail: u16,
    /// Heads of the burst being handled.
    heads: [u16; BURST],
    held: usize,
    /// Frames from `next` on that have been looked at and asked for, and not taken.
    ahead: Lookahead,
    /// Set when the guest broke a rule: nothing is taken any more.
    fault: Option<RingFault>,
}

/// A burst in waiting: its descriptors have been read, its bytes are on their way to the cache.
struct Lookahead {
    heads: [u16; BURST],
    /// Buffers of single descriptors; null where there is more to a chain.
    buffers: [(*mut u8, u32); BURST],
    len: usize,
}

// SAFETY: the pointers are addresses in the ring's memory, which the queue holds.
unsafe impl Send for Lookahead {}

impl GuestTx {
    /// The queue, beginning at ring position `base`. Kicks are off: the worker polls.
    pub fn new(ring: SplitRing, features: Features, call: Arc<Notifier>, base: u16) -> GuestTx {
        let mut queue = GuestTx {
            ring,
            features,
            call,
            next: base,
            used: base,
            called: base,
            decided: false,
            avail: base,
            heads: [0; BURST],
            held: 0,
            ahead: Lookahead {
                heads: [0; BURST],
                buffers: [(std::ptr::null_mut(), 0); BURST],
                len: 0,
            },
            fault: None,
        };
        queue.set_kicks(false);
        queue
    }

    /// The position from which a successor goes on, when no burst is being handled.
    pub fn base(&self) -> u16 {
        self.next
    }

    /// Takes up to a burst of frames off the ring into `burst`, which is empty. Their
    /// descriptors are held until [`complete`](Self::complete).
    ///
    /// Each burst is looked at one call early, if the driver has offered it by then: its misses
    /// overlap with the work on the burst before it. A frame that finds the queue empty is
    /// taken at once.
    pub fn receive(&mut self, burst: &mut Burst) -> usize {
        if self.ahead.len == 0 {
            self.look_ahead();
        }
        let count = self.ahead.len;
        if count == 0 {
            return 0;
        }
        self.heads = self.ahead.heads;
        let (mut taken, mut budget) = (0, chain::BUDGET);
        for i in 0..count {
            if !self.push(burst, self.ahead.buffers[i], self.heads[i], &mut budget) {
                break;
            }
            taken += 1;
        }
        self.held = taken;
        self.next = self.next.wrapping_add(taken as u16);
        self.look_ahead();
        taken
    }

    /// What the guest did wrong, if it did.
    pub fn fault(&self) -> Option<RingFault> {
        self.fault
    }

    /// Reads the descriptors of the next burst and asks for its bytes, in passes, so that the
    /// misses of a whole burst overlap; and asks for the descriptors of the one after it.
    fn look_ahead(&mut self) {
        let Lookahead {
            heads,
            buffers,
            len,
        } = &mut self.ahead;
        *len = 0;
        // The driver's index bounces between the cores: look only when what is known runs out.
        if usize::from(self.avail.wrapping_sub(self.next)) < BURST {
            self.avail = self.ring.avail_index();
        }
        let (offered, size) = (self.avail.wrapping_sub(self.next), self.ring.size());
        if offered == 0 || self.fault.is_some() {
            return;
        }
        if offered > size {
            self.fault = Some(RingFault::AvailJump {
                ahead: offered,
                size,
            });
            return;
        }
        let count = usize::from(offered).min(BURST);
        for (i, head) in heads.iter_mut().take(count).enumerate() {
            *head = self.ring.avail_entry(self.next.wrapping_add(i as u16));
            self.ring.prefetch_descriptor(*head);
        }
        for (buffer, head) in buffers.iter_mut().zip(heads).take(count) {
            *buffer = chain::single(&self.ring, *head, Direction::Read);
            prefetch_read(buffer.0);
            prefetch_read(buffer.0.wrapping_add(64));
        }
        *len = count;
        let after = usize::from(offered).min(2 * BURST);
        for i in (count..after).step_by(4) {
            let head = self.ring.avail_entry(self.next.wrapping_add(i as u16));
            self.ring.prefetch_descriptor(head);
        }
        for i in (0..count).step_by(8) {
            self.ring.prefetch_used(self.next.wrapping_add(i as u16));
        }
    }

    /// Adds the frame of one chain to the burst; `false` when it has no room for it, or the
    /// chain is at fault. An empty burst has room for any.
    #[inline(always)]
    fn push(
        &mut self,
        burst: &mut Burst,
        (ptr, len): (*mut u8, u32),
        head: u16,
        budget: &mut u32,
    ) -> bool {
        let header = self.features.header_len();
        if !ptr.is_null() && len as usize >= header {
            // SAFETY: `ptr` was translated for `len` bytes of the memory that the ring holds.
            let whole = unsafe { Segment::new(ptr, len) };
            let offload = read_offload(&whole);
            return burst.push_contiguous(whole.skip(header), offload);
        }
        self.push_chain(burst, head, budget)
    }

    #[cold]
    fn push_chain(&mut self, burst: &mut Burst, head: u16, budget: &mut u32) -> bool {
        let mut pieces = burst.take_scratch();
        let pushed = match self.collect(head, &mut pieces, budget) {
            Err(fault) => {
                self.fault = Some(fault);
                false
            }
            Ok(Chain::OutOfBudget) => false,
            Ok(Chain::Oversize) => burst.push_oversize(),
            Ok(Chain::Frame) => {
                let mut header = [0u8; 12];
                let header_len = self.features.header_len();
                let found =
                    take_header(&mut pieces, header.get_mut(..header_len).unwrap_or(&mut []));
                let offload = if found {
                    offload_of(&header)
                } else {
                    Offload::default()
                };
                burst.push_segments(&pieces, offload)
            }
        };
        burst.put_scratch(pieces);
        pushed
    }

    /// Lists the pieces of a chain.
    fn collect(
        &self,
        head: u16,
        pieces: &mut Vec<Segment>,
        budget: &mut u32,
    ) -> Result<Chain, RingFault> {
        let indirect = self.features.has(feature::INDIRECT_DESC);
        let mut total = 0u64;
        let all = chain::walk(
            &self.ring,
            head,
            Direction::Read,
            indirect,
            budget,
            &mut |ptr, len| {
                total += u64::from(len);
                if total <= MAX_CHAIN_LEN && pieces.len() < MAX_BURST_SEGMENTS {
                    // SAFETY: `walk` translated `len` bytes of the memory that the ring holds.
                    pieces.push(unsafe { Segment::new(ptr, len) });
                } else {
                    total = MAX_CHAIN_LEN + 1;
                }
            },
        )?;
        Ok(match (all, total <= MAX_CHAIN_LEN) {
            (false, _) => Chain::OutOfBudget,
            (true, false) => Chain::Oversize,
            (true, true) => Chain::Frame,
        })
    }

    /// Gives back every descriptor that the last [`receive`](Self::receive) took: their bytes
    /// have been copied to where they go.
    pub fn complete(&mut self) {
        let held = std::mem::take(&mut self.held);
        if held == 0 {
            return;
        }
        for (i, head) in self.heads.iter().take(held).enumerate() {
            self.ring
                .set_used(self.used.wrapping_add(i as u16), *head, 0);
        }
        self.used = self.used.wrapping_add(held as u16);
        self.ring.used_index().store(self.used, Ordering::Release);
    }

    /// Calls the driver if it wants to know of the completions since the last time. Returns
    /// whether it did. The worker has passed a sequentially consistent fence since it completed.
    #[inline(always)]
    pub fn flush(&mut self) -> bool {
        if self.called == self.used {
            return false;
        }
        let old = std::mem::replace(&mut self.called, self.used);
        let first = !std::mem::replace(&mut self.decided, true);
        (first || self.ring.wants_call(old, self.used)) && self.call.call()
    }

    /// Asks the driver for kicks, or for none. Returns whether there is work already: after
    /// asking, look before you sleep.
    pub fn set_kicks(&mut self, wanted: bool) -> bool {
        self.ring.set_kicks(wanted, self.next);
        // LOAD-BEARING: our wish is visible before we look at the ring; the driver adds an entry
        // before it looks at our wish. Without it a wakeup is lost.
        fence(Ordering::SeqCst);
        self.ring.avail_index() != self.next
    }
}

/// What a chain turned out to be.
enum Chain {
    /// A frame, or at least not too long for one.
    Frame,
    /// Too long.
    Oversize,
    /// To be looked at in the next burst.
    OutOfBudget,
}

#[inline(always)]
fn read_offload(whole: &Segment) -> Offload {
    let Some(header) = whole.read_array::<10>(0) else {
        return Offload::default();
    };
    // Nothing asked: flags and gso_type are both zero, nearly always.
    if header[0] & F_NEEDS_CSUM == 0 && header[1] == 0 {
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
        needs_csum: header[0] & F_NEEDS_CSUM != 0,
        gso_type: header[1],
        hdr_len: field(2),
        gso_size: field(4),
        csum_start: field(6),
        csum_offset: field(8),
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
