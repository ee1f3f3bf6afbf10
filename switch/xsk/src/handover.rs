//! Sending through a queue that another worker owns, with no second copy: the sender copies
//! into a UMEM frame that the owner supplied, and hands over its descriptor.

use std::sync::Arc;

use crossbeam::queue::ArrayQueue;
use crosspoint_frame::{Burst, Gather, Pick};

use crate::XskSocket;
use crate::tx::{NicOutcome, TX_ROOM, fill};

/// Frames that one worker may have on their way to another.
const DEPTH: usize = 128;

/// One direction between two workers. The queues are used by one producer and one consumer.
pub struct Handover {
    socket: Arc<XskSocket>,
    free: ArrayQueue<u64>,
    full: ArrayQueue<(u64, u32)>,
}

impl Handover {
    pub(crate) fn new(socket: Arc<XskSocket>) -> Handover {
        Handover {
            socket,
            free: ArrayQueue::new(DEPTH),
            // And one that the sender was filling while the owner counted.
            full: ArrayQueue::new(DEPTH + 1),
        }
    }

    /// Copies the picked frames into supplied UMEM frames and hands them to the owner.
    pub fn deliver(&self, burst: &Burst, picks: &[Pick]) -> NicOutcome {
        let mut outcome = NicOutcome::default();
        for pick in picks {
            let Some(frame) = burst.frames().get(usize::from(pick.frame)) else {
                continue;
            };
            if Gather::len_of(frame, *pick, 0) > TX_ROOM {
                outcome.small += 1;
                continue;
            }
            let Some(address) = self.free.pop() else {
                outcome.full += 1;
                continue;
            };
            let len = fill(self.socket.umem(), address, burst, frame, pick.tag);
            // It has room for all that `supply` gives out: it cannot be full.
            let _ = self.full.push((address, len));
            outcome.frames += 1;
            outcome.bytes += u64::from(len);
        }
        outcome
    }

    /// Whether frames wait for the owner.
    pub fn has_work(&self) -> bool {
        !self.full.is_empty()
    }

    pub(crate) fn take(&self) -> Option<(u64, u32)> {
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
