//! Sending: the transmit and completion rings of one NIC queue.

use std::ops::Range;
use std::sync::Arc;

use crosspoint_frame::{Burst, Frame, Gather, HeaderOp, TxEntry};
use crosspoint_packet::TAG_LEN;

use crate::fill::{Filled, MAX_PIECES, fill, pieces, rewrite};
use crate::large::{self, LargeTx, Sent};
use crate::ring::Ring;
use crate::umem::Half;
use crate::{FRAME_SIZE, Handoff, RING_SIZE, SocketError, XskSocket};

/// Most doorbells per flush in copy mode.
pub(crate) const MAX_WAKEUPS: u32 = RING_SIZE / 32;

/// Most flushes that handed off frames wait for when a queue is suspended.
const SUSPEND_FLUSHES: usize = 16;

/// Result of one `deliver` to a NIC.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NicOutcome {
    /// Copies delivered.
    pub frames: u32,
    /// Their bytes.
    pub bytes: u64,
    /// Copies dropped because no transmit frame was free.
    pub full: u32,
    /// Copies dropped because they need more than one UMEM frame, and the socket does not support that.
    pub small: u32,
    /// Copies dropped because they are longer than the interface's MTU allows.
    pub long: u32,
    /// Copies dropped because the kernel does not take such a large frame.
    pub refused: u32,
}

impl NicOutcome {
    /// Adds another result.
    pub fn add(&mut self, other: NicOutcome) {
        self.frames += other.frames;
        self.bytes += other.bytes;
        self.full += other.full;
        self.small += other.small;
        self.long += other.long;
        self.refused += other.refused;
    }

    /// Returns the number of dropped copies.
    pub fn dropped(&self) -> u32 {
        self.full + self.small + self.long + self.refused
    }
}

/// Result of one [`XskTx::flush`], or the sum of several.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Flushed {
    /// Whether frames still wait to be sent.
    pub pending: bool,
    /// Whether there was work: frames were handed off, or the kernel took frames that it had left before.
    pub worked: bool,
    /// Descriptors that other workers had handed off.
    pub taken: u32,
    /// Descriptors in the ring before the doorbell, including the handed off ones.
    pub rung: u32,
}

impl Flushed {
    /// Adds the result of another queue.
    pub fn add(&mut self, other: Flushed) {
        self.pending |= other.pending;
        self.worked |= other.worked;
        self.taken += other.taken;
        self.rung += other.rung;
    }
}

/// Whether the memory that a frame arrived in can be sent. With the crate `xsk-rs` every sent frame begins at the same
/// offset of its memory, and a received one may begin elsewhere.
const EXCHANGES: bool = cfg!(not(feature = "xsk-rs"));

/// How a copy of a frame is sent, or why it is not.
pub(crate) enum TxAction {
    /// It is copied to this many UMEM frames.
    Copy(usize),
    /// The memory that it is in is sent: these places of the burst's lease.
    Exchange(Range<usize>),
    /// It is longer than the MTU allows.
    Long,
    /// It needs more UMEM frames than the socket can send.
    Small,
}

/// Returns whether the copy that `pick` asks for is longer than the interface's limit `frame_len_max`, bytes, without up
/// to two tags.
#[inline(always)]
pub(crate) fn is_long(frame: &Frame, pick: TxEntry, frame_len_max: u32) -> bool {
    is_longer(
        Gather::len_of(frame, pick, 0),
        frame,
        pick.tag,
        frame_len_max,
    )
}

/// The same for a part of the copy that has the copy's tag and `len` bytes.
#[inline(always)]
pub(crate) fn is_longer(len: usize, frame: &Frame, tag: HeaderOp, frame_len_max: u32) -> bool {
    let tags = tag.tags_of_copy(frame.tags);
    len > frame_len_max as usize + TAG_LEN * usize::from(tags)
}

/// Returns how the copy that `pick` asks for leaves through `socket`. With `may_exchange` the frame's memory may be sent.
#[inline(always)]
pub(crate) fn way(
    socket: &XskSocket,
    burst: &Burst,
    frame: &Frame,
    pick: TxEntry,
    may_exchange: bool,
) -> TxAction {
    let len = Gather::len_of(frame, pick, 0);
    if is_long(frame, pick, socket.frame_len_max()) {
        return TxAction::Long;
    }
    if may_exchange && EXCHANGES {
        let places = burst
            .lease()
            .span(usize::from(pick.frame), socket.umem().identity());
        if !places.is_empty() && rewrite::is_possible(burst, frame, &places) {
            return TxAction::Exchange(places);
        }
    }
    match pieces(len) {
        1 => TxAction::Copy(1),
        n if socket.multi_buffer() && n <= MAX_PIECES => TxAction::Copy(n),
        _ => TxAction::Small,
    }
}

/// Rings the doorbell up to `most` times, while the kernel asks for it, `wake` returns `true`, and the ring gets emptier.
/// The ring may stay the same twice, since some kernels report their progress late. After that the queue behind it is
/// probably full, and other work waits for this worker. Returns how many descriptors were in the ring before, and how
/// many are in it now.
#[inline(always)]
pub(crate) fn ring_doorbell(
    tx: &Ring<libc::xdp_desc>,
    most: u32,
    mut wake: impl FnMut() -> bool,
) -> (u32, u32) {
    let before = tx.pending();
    let (mut pending, mut vain) = (before, 0);
    for _ in 0..most {
        if pending == 0 || vain == 2 || !tx.needs_wakeup() || !wake() {
            break;
        }
        let now = tx.pending();
        vain = if now < pending { 0 } else { vain + 1 };
        pending = now;
    }
    (before, pending)
}

/// Sending half of a socket. Owned by one worker.
pub struct XskTx {
    socket: Arc<XskSocket>,
    tx: Ring<libc::xdp_desc>,
    completion: Ring<u64>,
    /// This half's frames that are not in flight.
    free: Vec<u64>,
    /// Handoffs from workers without a queue of their own, each with the descriptors taken from it of a frame that is not
    /// complete yet.
    handoffs: Vec<(Arc<Handoff>, Vec<libc::xdp_desc>)>,
    /// Descriptors given to the kernel, and those that it has completed.
    submitted: u64,
    completed: u64,
    /// Sends large TCP frames whole, if enabled.
    large: Option<LargeTx>,
}

impl XskTx {
    pub(crate) fn new(
        socket: Arc<XskSocket>,
        tx: Ring<libc::xdp_desc>,
        completion: Ring<u64>,
    ) -> XskTx {
        let free = socket.umem().frames_of(Half::tx(socket.slot()));
        XskTx::resume(socket, tx, completion, free)
    }

    /// Goes on with rings in use: `free` are the frames of this half that are not in flight.
    pub(crate) fn resume(
        socket: Arc<XskSocket>,
        tx: Ring<libc::xdp_desc>,
        completion: Ring<u64>,
        mut free: Vec<u64>,
    ) -> XskTx {
        let in_flight = (RING_SIZE as usize).saturating_sub(free.len());
        // So that it never grows.
        free.reserve_exact(in_flight);
        XskTx {
            socket,
            tx,
            completion,
            free,
            handoffs: Vec::new(),
            submitted: in_flight as u64,
            completed: 0,
            large: None,
        }
    }

    /// Ends the handoffs, whose frames are sent first, and returns the frames of this half that are not in flight. For the
    /// control thread, when no worker has this half or a handoff to it.
    pub fn suspend(&mut self) -> &[u64] {
        for _ in 0..SUSPEND_FLUSHES {
            if !self.has_handoffs() {
                break;
            }
            self.flush();
        }
        for (handoff, partial) in std::mem::take(&mut self.handoffs) {
            // What a full ring did not take is not sent.
            let left = std::iter::from_fn(|| handoff.take()).chain(partial);
            let left = left.map(|desc| desc.addr - desc.addr % u64::from(FRAME_SIZE));
            self.free.extend(left);
            handoff.end(&mut self.free);
        }
        self.reap();
        &self.free
    }

    /// Enables sending large TCP frames whole, through interface number `ifindex`, which is the socket's. It must be a
    /// software interface that takes such frames, with a single transmit queue, since the kernel chooses the queue of
    /// such frames. Call before the socket is passed to its worker. Needs CAP_NET_RAW and copy mode.
    pub fn send_large(&mut self, ifindex: u32) -> Result<(), SocketError> {
        self.large = Some(LargeTx::new(ifindex)?);
        Ok(())
    }

    /// Returns whether large TCP frames are sent whole.
    pub fn sends_large(&self) -> bool {
        self.large.is_some()
    }

    /// Returns whether the copy of this large frame with `tag` is sent whole; otherwise it must be cut.
    pub fn takes(&self, burst: &Burst, frame: &Frame, tag: HeaderOp) -> bool {
        let limit = self.socket.frame_len_max();
        self.sends_large() && large::goes_whole(burst, frame, tag, limit)
    }

    /// Returns the socket.
    pub fn socket(&self) -> &Arc<XskSocket> {
        &self.socket
    }

    /// Makes one of `count` handoffs for other workers to send through this queue. Call before the socket is passed to its
    /// worker.
    pub fn make_handoff(&mut self, count: usize) -> Arc<Handoff> {
        let handoff = Arc::new(Handoff::new(self.socket.clone(), count));
        // Now, since its first frames may come before the owner looks.
        handoff.supply(&mut self.free);
        let partial = Vec::with_capacity(MAX_PIECES);
        self.handoffs.push((handoff.clone(), partial));
        handoff
    }

    /// Sends the picked frames: in place if they are in this socket's UMEM and no other receiver needs them, else as
    /// copies in UMEM frames; large ones whole if possible.
    pub fn deliver(&mut self, burst: &Burst, picks: &[TxEntry]) -> NicOutcome {
        match self.large {
            None => self.deliver_plain(burst, picks),
            Some(_) => self.deliver_mixed(burst, picks),
        }
    }

    /// Keeps the order: consecutive frames of one kind are sent together.
    #[inline(never)]
    fn deliver_mixed(&mut self, burst: &Burst, picks: &[TxEntry]) -> NicOutcome {
        let mut outcome = NicOutcome::default();
        let is_large = |pick: &TxEntry| {
            let frame = burst.frames().get(usize::from(pick.frame));
            frame.is_some_and(|frame| frame.offload.gso_type != 0)
        };
        for run in picks.chunk_by(|one, next| is_large(one) == is_large(next)) {
            outcome.add(match run.first().is_some_and(is_large) {
                true => self.deliver_large(burst, run),
                false => self.deliver_plain(burst, run),
            });
        }
        outcome
    }

    /// Sends large frames. They do not use the ring, so all frames in the ring are sent first.
    fn deliver_large(&mut self, burst: &Burst, picks: &[TxEntry]) -> NicOutcome {
        let mut outcome = NicOutcome::default();
        ring_doorbell(&self.tx, MAX_WAKEUPS, || self.socket.wake_tx());
        let in_order = self.tx.pending() == 0;
        let limit = self.socket.frame_len_max();
        for pick in picks {
            let Some(frame) = burst.frames().get(usize::from(pick.frame)) else {
                continue;
            };
            let sent = match &self.large {
                _ if large::is_long(burst, frame, pick.tag, limit) => {
                    outcome.long += 1;
                    continue;
                }
                Some(large) if in_order => large.send(burst, frame, pick.tag),
                _ => Sent::Full,
            };
            match sent {
                Sent::Whole(len) => {
                    outcome.frames += 1;
                    outcome.bytes += len as u64;
                }
                Sent::Full => outcome.full += 1,
                Sent::Refused => outcome.refused += 1,
                // The caller counts copies without a result as `PortDown`.
                Sent::Down => {}
            }
        }
        outcome
    }

    /// Sends frames that need no segmentation.
    #[inline(always)]
    fn deliver_plain(&mut self, burst: &Burst, picks: &[TxEntry]) -> NicOutcome {
        let mut outcome = NicOutcome::default();
        let room = self.tx.room() as usize;
        let (mut descs, mut reaped) = (0, false);
        for pick in picks {
            let Some(frame) = burst.frames().get(usize::from(pick.frame)) else {
                continue;
            };
            let way = way(&self.socket, burst, frame, *pick, true);
            let needed = match &way {
                TxAction::Copy(pieces) => *pieces,
                TxAction::Exchange(places) => places.len(),
                TxAction::Long => {
                    outcome.long += 1;
                    continue;
                }
                TxAction::Small => {
                    outcome.small += 1;
                    continue;
                }
            };
            if self.free.len() < needed && !std::mem::replace(&mut reaped, true) {
                self.reap();
            }
            if self.free.len() < needed || room - descs < needed {
                outcome.full += 1;
                continue;
            }
            let mut frames = [0; MAX_PIECES];
            let frames = &mut frames[..needed];
            let kept = self.free.len() - needed;
            frames.copy_from_slice(self.free.get(kept..).unwrap_or(&[]));
            self.free.truncate(kept);
            let filled = match way {
                TxAction::Exchange(places) => {
                    rewrite::send_in_place(&self.socket, burst, frame, pick.tag, places, frames)
                }
                _ => fill(&self.socket, burst, frame, pick.tag, frames),
            };
            // All or, if one of our addresses were wrong, none: then nothing is sent.
            let made = filled.descriptors().len();
            if made < needed {
                self.free.extend_from_slice(frames);
                outcome.small += 1;
                continue;
            }
            self.set(descs, &filled);
            descs += made;
            outcome.frames += 1;
            outcome.bytes += u64::from(filled.len());
        }
        self.submit(descs);
        outcome
    }

    fn submit(&mut self, descs: usize) {
        self.submitted += descs as u64;
        self.tx.submit(descs as u32);
    }

    /// Returns how many descriptors the kernel was given since the socket was opened, and how many of them it has
    /// completed: their frames are sent, or are queued where no later frame overtakes them.
    pub fn position(&mut self) -> (u64, u64) {
        self.reap();
        (self.submitted, self.completed)
    }

    /// Returns how many UMEM frames are free for frames to send, and how many there are without those that handoffs keep.
    /// Frames that were sent are taken back when few are free.
    pub fn room(&mut self) -> (usize, usize) {
        let kept: usize = self
            .handoffs
            .iter()
            .map(|(handoff, _)| handoff.depth())
            .sum();
        let size = (RING_SIZE as usize).saturating_sub(kept).max(1);
        if self.free.len() < size / 4 {
            self.reap();
        }
        (self.free.len(), size)
    }

    fn set(&mut self, at: usize, filled: &Filled) {
        for (i, desc) in filled.descriptors().iter().enumerate() {
            self.tx.set((at + i) as u32, *desc);
        }
    }

    /// Takes what other workers have handed off, and wakes the kernel if it asks for that.
    pub fn flush(&mut self) -> Flushed {
        let taken = match self.handoffs.is_empty() {
            true => 0,
            false => self.take_handovers(),
        };
        // In copy mode the kernel takes a number of frames per call and then stops: continue until it has them all. They
        // may complete much later (a receiving socket holds the buffer), so completions do not show this. In zero-copy
        // the driver takes them asynchronously, maybe on another core: a second call would be useless.
        let most = if self.socket.zero_copy() {
            1
        } else {
            MAX_WAKEUPS
        };
        let (rung, left) = ring_doorbell(&self.tx, most, || self.socket.wake_tx());
        Flushed {
            pending: left > 0,
            worked: taken > 0 || left < rung,
            taken,
            rung,
        }
    }

    /// Returns whether other workers have handed off frames for this queue.
    pub fn has_handoffs(&self) -> bool {
        self.handoffs.iter().any(|(handoff, _)| handoff.has_work())
    }

    /// Takes handed-off descriptors. Returns how many.
    fn take_handovers(&mut self) -> u32 {
        self.reap();
        let room = self.tx.room() as usize;
        let mut sent = 0;
        for (handoff, partial) in &mut self.handoffs {
            let mut taken = 0;
            // Frame by frame: the descriptors of a frame must be consecutive.
            while room - sent >= MAX_PIECES
                && let Some(desc) = handoff.take()
            {
                taken += 1;
                partial.push(desc);
                if desc.options & libc::XDP_PKT_CONTD == 0 {
                    for desc in partial.drain(..) {
                        self.tx.set(sent as u32, desc);
                        sent += 1;
                    }
                }
            }
            if taken > 0 {
                handoff.count_taken(taken);
            }
            handoff.supply(&mut self.free);
        }
        self.submit(sent);
        sent as u32
    }

    /// Takes back the UMEM frames that the kernel has sent.
    fn reap(&mut self) {
        let done = self.completion.filled();
        for i in 0..done {
            let address = self.completion.get(i);
            // As many as were taken from `free`, so there is room: no allocation.
            self.free.push(address - address % u64::from(FRAME_SIZE));
        }
        self.completion.release(done);
        self.completed += u64::from(done);
    }
}
