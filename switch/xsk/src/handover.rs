//! Sending through a queue that another worker owns, with no second copy: the sender copies
//! into UMEM frames that the owner supplied, and hands over their descriptors.

use std::sync::Arc;

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
}

impl Handover {
    pub(crate) fn new(socket: Arc<XskSocket>) -> Handover {
        Handover {
            socket,
            free: ArrayQueue::new(DEPTH),
            // And the frames that the sender was filling while the owner counted.
            full: ArrayQueue::new(DEPTH + MAX_PIECES),
        }
    }

    /// Copies the picked frames into supplied UMEM frames and hands them to the owner.
    pub fn deliver(&self, burst: &Burst, picks: &[Pick]) -> NicOutcome {
        let mut outcome = NicOutcome::default();
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
            outcome.frames += 1;
            outcome.bytes += u64::from(filled.len());
        }
        outcome
    }

    /// Whether frames wait for the owner.
    pub fn has_work(&self) -> bool {
        !self.full.is_empty()
    }

    /// The next descriptor; one that says so is followed by another of the same frame.
    pub(crate) fn take(&self) -> Option<libc::xdp_desc> {
        self.full.pop()
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
