//! Sending: the transmit and completion rings of one NIC queue.

use std::sync::Arc;

use crosspoint_frame::{Burst, Frame, Gather, Pick, Prefix, TagOp, copy_plain};

use crate::ring::Ring;
use crate::umem::TX_START;
use crate::{FRAME_SIZE, Handover, RING_SIZE, Umem, XskSocket};

/// Most doorbells in one flush.
const MAX_WAKEUPS: u32 = RING_SIZE / 32;

/// Bytes of the longest frame that one UMEM frame takes.
pub(crate) const TX_ROOM: usize = (FRAME_SIZE - TX_START) as usize;

/// What became of the copies of one `deliver` to a NIC.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NicOutcome {
    /// Copies delivered.
    pub frames: u32,
    /// Their bytes.
    pub bytes: u64,
    /// Copies dropped because no transmit frame was free.
    pub full: u32,
    /// Copies dropped because they do not fit a UMEM frame.
    pub small: u32,
}

/// The sending half of a socket. Owned by one worker.
pub struct XskTx {
    socket: Arc<XskSocket>,
    tx: Ring<libc::xdp_desc>,
    completion: Ring<u64>,
    /// Frames that nobody uses: the second half of the UMEM, less what is on its way.
    free: Vec<u64>,
    /// Where workers without a queue of their own put frames for this one.
    handovers: Vec<Arc<Handover>>,
}

impl XskTx {
    pub(crate) fn new(
        socket: Arc<XskSocket>,
        tx: Ring<libc::xdp_desc>,
        completion: Ring<u64>,
    ) -> XskTx {
        let second_half = RING_SIZE..2 * RING_SIZE;
        let free = second_half
            .map(|i| u64::from(i) * u64::from(FRAME_SIZE) + u64::from(TX_START))
            .collect();
        XskTx {
            socket,
            tx,
            completion,
            free,
            handovers: Vec::new(),
        }
    }

    /// The socket that it sends through.
    pub fn socket(&self) -> &Arc<XskSocket> {
        &self.socket
    }

    /// Makes a way for another worker to send through this queue. Before the socket is handed
    /// to its worker.
    pub fn make_handover(&mut self) -> Arc<Handover> {
        let handover = Arc::new(Handover::new(self.socket.clone()));
        self.handovers.push(handover.clone());
        handover
    }

    /// Copies the picked frames into free UMEM frames and hands them to the kernel.
    pub fn deliver(&mut self, burst: &Burst, picks: &[Pick]) -> NicOutcome {
        let mut outcome = NicOutcome::default();
        if self.free.len() < picks.len() {
            self.reap();
        }
        let room = self.tx.room();
        for pick in picks {
            let Some(frame) = burst.frames().get(usize::from(pick.frame)) else {
                continue;
            };
            if Gather::len_of(frame, *pick, 0) > TX_ROOM {
                outcome.small += 1;
                continue;
            }
            let address = if outcome.frames < room {
                self.free.pop()
            } else {
                None
            };
            let Some(address) = address else {
                outcome.full += 1;
                continue;
            };
            let len = fill(self.socket.umem(), address, burst, frame, pick.tag);
            self.tx.set(
                outcome.frames,
                libc::xdp_desc {
                    addr: address,
                    len,
                    options: 0,
                },
            );
            outcome.frames += 1;
            outcome.bytes += u64::from(len);
        }
        self.tx.submit(outcome.frames);
        outcome
    }

    /// Takes what other workers have handed over, and wakes the kernel if it wants to be woken.
    /// Returns whether frames still wait to be sent.
    pub fn flush(&mut self) -> bool {
        if !self.handovers.is_empty() {
            self.take_handovers();
        }
        for _ in 0..MAX_WAKEUPS {
            // In copy mode the kernel takes a number of frames per call and then stops: go on
            // until it has them all. What it has taken may complete much later (a receiving
            // socket holds the buffer), so completions say nothing here.
            if self.tx.pending() == 0 || !self.tx.needs_wakeup() || !self.socket.wake_tx() {
                break;
            }
        }
        self.tx.pending() > 0
    }

    /// Whether other workers have left frames for this queue.
    pub fn has_handovers(&self) -> bool {
        self.handovers.iter().any(|handover| handover.has_work())
    }

    fn take_handovers(&mut self) {
        self.reap();
        let mut room = self.tx.room();
        let mut sent = 0;
        for handover in &self.handovers {
            while room > 0
                && let Some((address, len)) = handover.take()
            {
                self.tx.set(
                    sent,
                    libc::xdp_desc {
                        addr: address,
                        len,
                        options: 0,
                    },
                );
                sent += 1;
                room -= 1;
            }
            handover.supply(&mut self.free);
        }
        self.tx.submit(sent);
    }

    /// Takes back the frames that the kernel has sent.
    fn reap(&mut self) {
        let done = self.completion.filled();
        for i in 0..done {
            // As many as were taken from `free`, so there is room: no allocation.
            self.free.push(self.completion.get(i));
        }
        self.completion.release(done);
    }
}

/// Copies one frame to the UMEM frame at `address`, its checksum completed: a NIC port gives
/// the kernel finished frames. Returns the length.
#[inline(always)]
pub(crate) fn fill(umem: &Umem, address: u64, burst: &Burst, frame: &Frame, tag: TagOp) -> u32 {
    let Some(to) = umem.frame_mut(address) else {
        return 0;
    };
    if tag == TagOp::Keep && !frame.offload.needs_csum {
        return copy_plain(&[], frame, burst, to) as u32;
    }
    let prefix = Prefix::new(&[], frame, tag);
    let gather = Gather::new(&prefix, burst, frame);
    let len = gather.copy_to(to);
    gather.complete_checksum(&frame.offload, tag, &[to]);
    len as u32
}
