//! Sending from a guest's own memory: a socket whose packet memory is the guest's whole memory.
//!
//! A frame leaves as several descriptors. The first is in our memory: the frame's first bytes as they were read once and
//! checked, so that a guest that rewrites them changes nothing. Then come the guest's bytes in place. The last is in our
//! memory again, a copy of the frame's last few bytes: kernel and driver complete descriptors in order, so when this one
//! completes, all the others have been sent.
//!
//! Kernel interface: Documentation/networking/af_xdp.rst (unaligned chunks, multi-buffer), and
//! `xp_unaligned_validate_desc` of net/xdp/xsk_queue.h for the descriptors that are valid.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crosspoint_frame::{Burst, Frame, Gather, HeaderOp, Prefix, Segment, SegmentMut, TxEntry};
use crosspoint_memory::Contiguous;

use crate::fill::{Filled, MAX_PIECES, METADATA_LEN, checksum_request};
use crate::memory::does_zero_copy;
use crate::ring::Ring;
use crate::socket::{Bound, Opening, Registration, Woken, wake_tx};
use crate::tx::{MAX_WAKEUPS, is_long, ring_doorbell};
use crate::{BindMode, FRAME_SIZE, NicOutcome, RING_SIZE, SocketError, SocketOptions};

/// Most frames in flight at a time.
pub const DIRECT_FRAMES: usize = RING_SIZE as usize / 2;

/// Bytes of our memory per frame: a page, since no descriptor may cross a page boundary.
const SLOT_LEN: usize = FRAME_SIZE as usize;
/// Offset in a slot of a frame's first bytes, with room for a checksum request before them; and the most bytes there.
const HEAD_AT: usize = 64;
const HEAD_ROOM: usize = 1024 - HEAD_AT;
/// Offset in a slot of bytes from the frame's middle that are not in the guest's memory.
const MIDDLE_AT: usize = 1024;
const MIDDLE_ROOM: usize = 1024;
/// Offset in a slot of the last bytes, or of a short frame as a whole. A descriptor at or after this offset is the last
/// of its frame.
const TAIL_AT: usize = 2048 + 64;
const TAIL_ROOM: usize = SLOT_LEN - TAIL_AT;
/// Number of last bytes of a frame that are copied.
const TAIL_LEN: usize = 64;
/// Frames up to this many bytes are copied whole: one descriptor costs less than three.
const WHOLE_MAX: usize = 256;
/// Most descriptors of one frame in zero-copy: the smallest limit of the drivers that take several (`xdp_zc_max_segs`; 8
/// in i40e and ice). With more, the kernel would lose the frame and its completion.
const ZERO_COPY_PIECES: usize = 8;

/// State shared by the sending worker and the control thread.
#[derive(Debug)]
pub struct DirectStatus {
    zero_copy: bool,
    lost: AtomicBool,
}

impl DirectStatus {
    /// Returns whether the NIC reads the guest's memory itself.
    pub fn zero_copy(&self) -> bool {
        self.zero_copy
    }

    /// Returns whether the queue was given up: the interface is gone, or does not send.
    #[inline(always)]
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    /// Gives the queue up.
    pub fn give_up(&self) {
        self.lost.store(true, Ordering::Relaxed);
    }
}

/// Sending half of a socket on a guest's memory. Owned by one worker; dropped on the control thread.
pub struct DirectTx {
    // In this order: the kernel releases the memory before it is unmapped.
    tx: Ring<libc::xdp_desc>,
    completion: Ring<u64>,
    fd: OwnedFd,
    slots: Slots,
    status: Arc<DirectStatus>,
    /// The longest frame, bytes, without tags.
    frame_len_max: Arc<AtomicU32>,
    /// Free slots.
    free: Vec<u16>,
    /// Per slot: the sender's batch number of the frame.
    batches: Box<[u16]>,
}

impl DirectTx {
    /// Bytes of our own memory, before the guest's.
    pub const OWN_LEN: usize = DIRECT_FRAMES * SLOT_LEN;

    /// Opens a socket on queue `queue` of interface number `ifindex` in mode `bind`; with [`BindMode::Auto`], zero-copy
    /// if the driver does that for frames in several pieces. `memory` begins with [`OWN_LEN`](Self::OWN_LEN) bytes of our
    /// own. All of it is pinned while the socket is open. The longest frame is the current value of `frame_len_max`.
    pub fn open(
        (ifindex, queue): (u32, u32),
        bind: BindMode,
        memory: Contiguous,
        frame_len_max: Arc<AtomicU32>,
    ) -> Result<DirectTx, SocketError> {
        let to = (ifindex, queue);
        let options = SocketOptions {
            bind,
            multi_buffer: true,
            busy_poll: false,
            pages: crate::Pages::Small,
            frame_len_max: frame_len_max.load(Ordering::Relaxed),
        };
        if bind == BindMode::Auto && does_zero_copy(to, &options) {
            let way = SocketOptions {
                bind: BindMode::ZeroCopy,
                ..options
            };
            // The driver may still refuse such large memory, or unaligned chunks.
            if let Ok(bound) = open_in_way(to, &way, &memory) {
                return Ok(DirectTx::new(bound, memory, frame_len_max));
            }
        }
        let way = SocketOptions {
            bind: match bind {
                BindMode::ZeroCopy => BindMode::ZeroCopy,
                BindMode::Auto | BindMode::Copy => BindMode::Copy,
            },
            ..options
        };
        let bound = open_in_way(to, &way, &memory)?;
        Ok(DirectTx::new(bound, memory, frame_len_max))
    }

    fn new(bound: Bound, memory: Contiguous, frame_len_max: Arc<AtomicU32>) -> DirectTx {
        DirectTx {
            tx: bound.tx,
            completion: bound.completion,
            fd: bound.fd,
            slots: Slots {
                memory,
                zero_copy: bound.zero_copy,
                finishes_checksums: bound.finishes_checksums,
            },
            status: Arc::new(DirectStatus {
                zero_copy: bound.zero_copy,
                lost: AtomicBool::new(false),
            }),
            frame_len_max,
            free: (0..DIRECT_FRAMES as u16).rev().collect(),
            batches: vec![0; DIRECT_FRAMES].into(),
        }
    }

    /// Returns the queue's status.
    pub fn status(&self) -> &Arc<DirectStatus> {
        &self.status
    }

    /// Returns whether there is room for a burst, even one of large frames that are cut into segments of ordinary size:
    /// some 230, of 4 or 5 descriptors each.
    #[inline(always)]
    pub fn has_room(&self) -> bool {
        self.free.len() >= DIRECT_FRAMES * 3 / 4 && self.tx.room() >= RING_SIZE * 3 / 4
    }

    /// Sends the picked frames, as part of `batch`. Those that must be copied instead are added to `rest`, which has room
    /// for all picks; the result does not count them.
    pub fn deliver(
        &mut self,
        burst: &Burst,
        picks: &[TxEntry],
        batch: u16,
        rest: &mut Vec<TxEntry>,
    ) -> NicOutcome {
        let mut outcome = NicOutcome::default();
        let room = self.tx.room() as usize;
        let limit = self.frame_len_max.load(Ordering::Relaxed);
        let mut descs = 0;
        for pick in picks {
            let Some(frame) = burst.frames().get(usize::from(pick.frame)) else {
                continue;
            };
            if is_long(frame, *pick, limit) {
                outcome.long += 1;
                continue;
            }
            let Some(slot) = self.free.last().copied() else {
                outcome.full += 1;
                continue;
            };
            let Some(filled) = self.slots.fill(slot, burst, frame, pick.tag) else {
                rest.push(*pick);
                continue;
            };
            let count = filled.descriptors().len();
            if room - descs < count {
                outcome.full += 1;
                continue;
            }
            self.free.pop();
            if let Some(of_slot) = self.batches.get_mut(usize::from(slot)) {
                *of_slot = batch;
            }
            for desc in filled.descriptors() {
                self.tx.set(descs as u32, *desc);
                descs += 1;
            }
            outcome.frames += 1;
            outcome.bytes += u64::from(filled.len());
        }
        self.tx.submit(descs as u32);
        outcome
    }

    /// Calls `sent` with the batch of each frame that has been sent completely.
    #[inline(always)]
    pub fn reap(&mut self, mut sent: impl FnMut(u16)) {
        let done = self.completion.filled();
        if done == 0 {
            return;
        }
        for i in 0..done {
            let at = self.completion.get(i) as usize;
            let (slot, within) = (at / SLOT_LEN, at % SLOT_LEN);
            if within >= TAIL_AT
                && let Some(batch) = self.batches.get(slot)
            {
                // As many as were taken from `free`, so there is room: no allocation.
                self.free.push(slot as u16);
                sent(*batch);
            }
        }
        self.completion.release(done);
    }

    /// Wakes the kernel if it asks for that. Returns whether the kernel has not taken all frames yet.
    pub fn flush(&mut self) -> bool {
        // As in `XskTx::flush`.
        let most = if self.status.zero_copy {
            1
        } else {
            MAX_WAKEUPS
        };
        ring_doorbell(&self.tx, most, || match wake_tx(self.fd.as_fd()) {
            Woken::GoOn => true,
            Woken::Later => false,
            Woken::Gone => {
                self.status.give_up();
                false
            }
        });
        self.tx.pending() > 0
    }
}

/// Opens a socket on `memory` in one mode.
fn open_in_way(
    to: (u32, u32),
    options: &SocketOptions,
    memory: &Contiguous,
) -> Result<Bound, SocketError> {
    // Checksum requests only in copy mode. If a piece begins at a page's start, its request would be in the page before;
    // pages have no order, so in zero-copy the kernel refuses that.
    let ask = options.bind == BindMode::Copy;
    let asking = Registration::Guest(memory, ask);
    let plain = Registration::Guest(memory, false);
    match Opening::new(&asking) {
        Ok(opening) => opening.bind_plain(to, options, &asking),
        // Linux before 6.8 does not know the requests.
        Err(_) if ask => Opening::new(&plain)?.bind_plain(to, options, &plain),
        Err(why) => Err(why),
    }
}

/// Memory that frames are sent from.
struct Slots {
    memory: Contiguous,
    /// Whether the NIC reads the memory itself.
    zero_copy: bool,
    finishes_checksums: bool,
}

impl Slots {
    /// Makes the descriptors of a frame; `slot` takes the bytes that are not sent in place. `None` if it needs too many
    /// descriptors, or its headers are too long.
    #[inline(always)]
    fn fill(&self, slot: u16, burst: &Burst, frame: &Frame, tag: HeaderOp) -> Option<Filled> {
        let prefix = Prefix::new(&[], frame, tag);
        let gather = Gather::new(&prefix, burst, frame);
        let kept = frame.head_len().saturating_add_signed(tag.growth());
        let mut head_len = kept;
        if frame.offload.needs_csum {
            // The kernel supports a checksum only within the first descriptor.
            let end =
                usize::from(frame.offload.csum_start) + usize::from(frame.offload.csum_offset) + 2;
            head_len = head_len.max(end.saturating_add_signed(tag.growth()));
        }
        let whole = Whole {
            slot: usize::from(slot) * SLOT_LEN,
            frame,
            tag,
            gather: &gather,
        };
        let len = gather.len();
        if len <= WHOLE_MAX || head_len + TAIL_LEN >= len {
            return self.fill_whole(&whole, len);
        }
        let rest = Rest::new(burst.segments(frame));
        // If it must be copied, it still uses this queue: through another queue it could overtake frames of its flow.
        self.fill_pieces(&whole, (kept, head_len, len), rest)
            .or_else(|| self.fill_whole(&whole, len))
    }

    /// Copies a frame whole.
    fn fill_whole(&self, whole: &Whole<'_>, len: usize) -> Option<Filled> {
        if len > TAIL_ROOM {
            return None;
        }
        let at = whole.slot + TAIL_AT;
        let to = self.memory.own_mut(at, len)?;
        let options = self.request(whole, at)?;
        if whole.frame.offload.needs_csum && options == 0 {
            let offload = &whole.frame.offload;
            whole.gather.copy_finished(offload, whole.tag, &[to]);
        } else {
            whole.gather.copy_to(to);
        }
        let mut filled = Filled::one(desc(at as u64, len));
        filled.finish(options);
        Some(filled)
    }

    /// Copies only the beginning and the end of a frame. The first `kept` bytes were already read when it was received.
    fn fill_pieces(
        &self,
        whole: &Whole<'_>,
        (kept, mut head_len, len): (usize, usize, usize),
        mut rest: Rest<'_>,
    ) -> Option<Filled> {
        if head_len > HEAD_ROOM {
            return None;
        }
        let at = whole.slot + HEAD_AT;
        let head = self.memory.own_mut(at, HEAD_ROOM)?;
        whole.gather.write_head(head);
        rest.copy(head_len - kept, head.skip(kept))?;
        // Bytes that follow and are not in the guest's memory, such as the end of a long header made here, need no
        // descriptor of their own.
        while let Some(run) = rest.peek()
            && head_len + run.len() <= HEAD_ROOM
            && head_len + run.len() + TAIL_LEN < len
            && self.memory.offset_of(run.ptr(), run.len()).is_none()
        {
            rest.copy(run.len(), head.skip(head_len))?;
            head_len += run.len();
        }
        let options = self.request(whole, at)?;
        if options == 0
            && let Some((place, sum)) = whole.gather.checksum(&whole.frame.offload, whole.tag)
        {
            head.skip(place).write(&sum.to_be_bytes());
        }
        let mut filled = Filled::one(desc(at as u64, head_len));
        let middle = len - head_len - TAIL_LEN;
        self.push_middle(whole.slot, middle, &mut rest, &mut filled)?;
        let at = whole.slot + TAIL_AT;
        rest.copy(TAIL_LEN, self.memory.own_mut(at, TAIL_LEN)?)?;
        filled.push(desc(at as u64, TAIL_LEN));
        filled.finish(options);
        Some(filled)
    }

    /// Adds the next `len` bytes, in place if they are in the registered memory. `None` if they take too many
    /// descriptors, or too many bytes must be copied.
    fn push_middle(
        &self,
        slot: usize,
        mut len: usize,
        rest: &mut Rest<'_>,
        filled: &mut Filled,
    ) -> Option<()> {
        let most = if self.zero_copy {
            ZERO_COPY_PIECES
        } else {
            MAX_PIECES
        };
        let mut copied = 0;
        while len > 0 {
            let mut run = rest.next(len)?;
            len -= run.len();
            if self.memory.offset_of(run.ptr(), run.len()).is_none() {
                let at = slot + MIDDLE_AT + copied;
                copied += run.len();
                if copied > MIDDLE_ROOM || filled.descriptors().len() + 1 >= most {
                    return None;
                }
                self.memory.own_mut(at, run.len())?.write_segment(&run);
                filled.push(desc(at as u64, run.len()));
                continue;
            }
            while !run.is_empty() {
                let at = self.memory.offset_of(run.ptr(), run.len())?;
                let n = run.len().min(piece_max(at, self.zero_copy));
                if filled.descriptors().len() + 1 >= most {
                    return None;
                }
                filled.push(desc(at, n));
                run = run.skip(n);
            }
        }
        Some(())
    }

    /// Requests the checksum of a frame whose data begins at `at` from the kernel, if it takes such requests. Returns the
    /// descriptor options for that, or 0.
    #[inline(always)]
    fn request(&self, whole: &Whole<'_>, at: usize) -> Option<u32> {
        if !whole.frame.offload.needs_csum || !self.finishes_checksums {
            return Some(0);
        }
        let before = METADATA_LEN as usize;
        let to = self.memory.own_mut(at - before, before)?;
        to.write_array(&checksum_request(whole.frame, whole.tag));
        Some(libc::XDP_TX_METADATA)
    }
}

/// A frame to be sent, and the offset of its slot.
struct Whole<'a> {
    slot: usize,
    frame: &'a Frame,
    tag: HeaderOp,
    gather: &'a Gather<'a>,
}

/// Returns the longest piece that may begin at `at`. It ends with the page: in zero-copy the next page may be at any
/// address, and in copy mode some drivers get a fragment per page too (IFF_TX_SKB_NO_LINEAR). The kernel would cut a
/// frame with more fragments than a packet buffer takes into two, and the second would begin with unchecked bytes.
#[inline(always)]
fn piece_max(at: u64, zero_copy: bool) -> usize {
    let page = SLOT_LEN - at as usize % SLOT_LEN;
    match zero_copy {
        true => page,
        // A chunk, less the room for a request before a frame.
        false => page.min(SLOT_LEN - METADATA_LEN as usize),
    }
}

#[inline(always)]
fn desc(addr: u64, len: usize) -> libc::xdp_desc {
    libc::xdp_desc {
        addr,
        len: len as u32,
        options: 0,
    }
}

/// The rest of a frame's segments that is still to be sent.
struct Rest<'a> {
    segments: &'a [Segment],
    used: usize,
}

impl Rest<'_> {
    fn new(segments: &[Segment]) -> Rest<'_> {
        Rest { segments, used: 0 }
    }

    /// Takes the next contiguous bytes, at least one and at most `most`; `None` at the end.
    #[inline(always)]
    fn next(&mut self, most: usize) -> Option<Segment> {
        loop {
            let (first, others) = self.segments.split_first()?;
            let run = first.skip(self.used).first(most);
            if !run.is_empty() {
                self.used += run.len();
                return Some(run);
            }
            (self.segments, self.used) = (others, 0);
        }
    }

    /// Returns the next contiguous bytes without taking them.
    #[inline(always)]
    fn peek(&self) -> Option<Segment> {
        let mut used = self.used;
        for segment in self.segments {
            let run = segment.skip(used);
            if !run.is_empty() {
                return Some(run);
            }
            used = 0;
        }
        None
    }

    /// Copies the next `len` bytes; `None` if there are fewer, or no room.
    #[inline(always)]
    fn copy(&mut self, mut len: usize, mut to: SegmentMut) -> Option<()> {
        while len > 0 {
            let run = self.next(len)?;
            let n = to.write_segment(&run);
            if n < run.len() {
                return None;
            }
            to = to.skip(n);
            len -= n;
        }
        Some(())
    }
}

#[cfg(test)]
mod tests;
