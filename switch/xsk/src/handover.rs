//! Sending through a queue that another worker owns, with no second copy: the sender copies
//! into UMEM frames that the owner supplied, and hands over their descriptors.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::queue::ArrayQueue;
use crosspoint_frame::{Burst, Pick};

use crate::XskSocket;
use crate::fill::{MAX_PIECES, fill};
use crate::tx::{NicOutcome, Way, way};

/// UMEM frames that one worker may have on their way to another.
const DEPTH: usize = 128;

/// One direction between two workers. The queues are used by one producer and one consumer.
pub struct Handover {
    socket: Arc<XskSocket>,
    free: ArrayQueue<u64>,
    full: ArrayQueue<libc::xdp_desc>,
    /// Descriptors put in since it was made, by the sender, and taken out, by the owner; each counted by one of them.
    pushed: AtomicU64,
    taken: AtomicU64,
}

impl Handover {
    pub(crate) fn new(socket: Arc<XskSocket>) -> Handover {
        Handover {
            socket,
            free: ArrayQueue::new(DEPTH),
            // And the frames that the sender was filling while the owner counted.
            full: ArrayQueue::new(DEPTH + MAX_PIECES),
            pushed: AtomicU64::new(0),
            taken: AtomicU64::new(0),
        }
    }

    /// The socket that it leads to.
    pub fn socket(&self) -> &Arc<XskSocket> {
        &self.socket
    }

    /// Copies the picked frames into supplied UMEM frames and hands them to the owner.
    pub fn deliver(&self, burst: &Burst, picks: &[Pick]) -> NicOutcome {
        let (mut outcome, mut pushed) = (NicOutcome::default(), 0);
        for pick in picks {
            let Some(frame) = burst.frames().get(usize::from(pick.frame)) else {
                continue;
            };
            // What lies in this UMEM is another worker's to exchange.
            let needed = match way(&self.socket, burst, frame, *pick, false) {
                Way::Copy(pieces) => pieces,
                Way::Exchange(_) | Way::Small => {
                    outcome.small += 1;
                    continue;
                }
                Way::Long => {
                    outcome.long += 1;
                    continue;
                }
            };
            // Only the owner adds to `free`, so what is there now stays there.
            if self.free.len() < needed {
                outcome.full += 1;
                continue;
            }
            let mut frames = [0; MAX_PIECES];
            let frames = &mut frames[..needed];
            for frame in frames.iter_mut() {
                *frame = self.free.pop().unwrap_or_default();
            }
            let filled = fill(&self.socket, burst, frame, pick.tag, frames);
            for desc in filled.descriptors() {
                // It has room for all that `supply` gives out: it cannot be full.
                let _ = self.full.push(*desc);
            }
            pushed += filled.descriptors().len() as u64;
            outcome.frames += 1;
            outcome.bytes += u64::from(filled.len());
        }
        // The one writer: no atomic addition.
        let before = self.pushed.load(Ordering::Relaxed);
        self.pushed.store(before + pushed, Ordering::Relaxed);
        outcome
    }

    /// How many descriptors the sender has put in since this was made, and how many of them the owner has taken. For the
    /// sender; what was taken is with the kernel when the owner next has come round.
    pub fn position(&self) -> (u64, u64) {
        let taken = self.taken.load(Ordering::Acquire);
        (self.pushed.load(Ordering::Relaxed), taken)
    }

    /// Whether frames wait for the owner.
    pub fn has_work(&self) -> bool {
        !self.full.is_empty()
    }

    /// The next descriptor; one that says so is followed by another of the same frame.
    pub(crate) fn take(&self) -> Option<libc::xdp_desc> {
        self.full.pop()
    }

    /// Counts what was taken. For the owner.
    pub(crate) fn count_taken(&self, count: u64) {
        let before = self.taken.load(Ordering::Relaxed);
        self.taken.store(before + count, Ordering::Release);
    }

    /// Tops the sender's frames up, as far as `free` goes.
    pub(crate) fn supply(&self, free: &mut Vec<u64>) {
        let out = self.free.len() + self.full.len();
        for _ in out..DEPTH {
            let Some(address) = free.pop() else { return };
            if let Err(address) = self.free.push(address) {
                free.push(address);
                return;
            }
        }
    }
}
