//! Handoff: sends through a queue that another worker owns, without a second copy. The sender copies into UMEM frames
//! that the owner supplied, and hands their descriptors off.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::queue::ArrayQueue;
use crosspoint_frame::{Burst, TxEntry};

use crate::fill::{MAX_PIECES, fill};
use crate::tx::{NicOutcome, TxAction, way};
use crate::{RING_SIZE, XskSocket};

/// A handoff from one worker to another. Each queue has one producer and one consumer.
pub struct Handoff {
    socket: Arc<XskSocket>,
    /// Most UMEM frames in it.
    depth: usize,
    free: ArrayQueue<u64>,
    full: ArrayQueue<libc::xdp_desc>,
    /// Descriptors pushed, counted by the sender, and taken, counted by the owner, since the handoff was made.
    pushed: AtomicU64,
    taken: AtomicU64,
}

impl Handoff {
    /// Most UMEM frames in a handoff from one worker to another: what arrives while the owner sleeps or is busy for a while.
    const DEPTH_MAX: usize = 512;
    /// The same if many workers share a queue.
    const DEPTH_MIN: usize = 64;

    /// Makes one of `count` handoffs to the owner of `socket`. Together they take at most half of the queue's frames, unless
    /// there are more than 16.
    pub(crate) fn new(socket: Arc<XskSocket>, count: usize) -> Handoff {
        let share = RING_SIZE as usize / 2 / count.max(1);
        let depth = share.clamp(Self::DEPTH_MIN, Self::DEPTH_MAX);
        Handoff {
            socket,
            depth,
            free: ArrayQueue::new(depth),
            // Plus the frames that the sender was filling while the owner counted.
            full: ArrayQueue::new(depth + MAX_PIECES),
            pushed: AtomicU64::new(0),
            taken: AtomicU64::new(0),
        }
    }

    /// Returns the owner's socket.
    pub fn socket(&self) -> &Arc<XskSocket> {
        &self.socket
    }

    /// Copies the picked frames into supplied UMEM frames and hands them off to the owner.
    pub fn deliver(&self, burst: &Burst, picks: &[TxEntry]) -> NicOutcome {
        let (mut outcome, mut pushed) = (NicOutcome::default(), 0);
        for pick in picks {
            let Some(frame) = burst.frames().get(usize::from(pick.frame)) else {
                continue;
            };
            // Only the owner may exchange memory of this UMEM.
            let needed = match way(&self.socket, burst, frame, *pick, false) {
                TxAction::Copy(pieces) => pieces,
                TxAction::Exchange(_) | TxAction::Small => {
                    outcome.small += 1;
                    continue;
                }
                TxAction::Long => {
                    outcome.long += 1;
                    continue;
                }
            };
            // Only this thread takes from `free`, so these frames stay there.
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
                // It has room for all frames that `supply` gives out, so it cannot be full.
                let _ = self.full.push(*desc);
            }
            pushed += filled.descriptors().len() as u64;
            outcome.frames += 1;
            outcome.bytes += u64::from(filled.len());
        }
        // Single writer: no atomic addition.
        let before = self.pushed.load(Ordering::Relaxed);
        self.pushed.store(before + pushed, Ordering::Relaxed);
        outcome
    }

    /// Returns how many descriptors the sender has pushed since the handoff was made, and how many of them the owner has
    /// taken. For the sender; the kernel has the taken ones at the owner's next quiescent point.
    pub fn position(&self) -> (u64, u64) {
        let taken = self.taken.load(Ordering::Acquire);
        (self.pushed.load(Ordering::Relaxed), taken)
    }

    /// Returns how many UMEM frames there are for frames to hand off, and how many there are at most. For the sender.
    pub fn room(&self) -> (usize, usize) {
        (self.free.len(), self.depth)
    }

    /// Returns the most UMEM frames in it.
    pub(crate) fn depth(&self) -> usize {
        self.depth
    }

    /// Returns whether frames wait for the owner.
    pub fn has_work(&self) -> bool {
        !self.full.is_empty()
    }

    /// Takes the next descriptor. With `XDP_PKT_CONTD`, the next one belongs to the same frame.
    pub(crate) fn take(&self) -> Option<libc::xdp_desc> {
        self.full.pop()
    }

    /// Counts taken descriptors. For the owner.
    pub(crate) fn count_taken(&self, count: u64) {
        let before = self.taken.load(Ordering::Relaxed);
        self.taken.store(before + count, Ordering::Release);
    }

    /// Takes the sender's frames back: no worker has this handoff any more.
    pub(crate) fn end(&self, free: &mut Vec<u64>) {
        free.extend(std::iter::from_fn(|| self.free.pop()));
    }

    /// Refills the sender's frames from `free`, as far as possible.
    pub(crate) fn supply(&self, free: &mut Vec<u64>) {
        let out = self.free.len() + self.full.len();
        for _ in out..self.depth {
            let Some(address) = free.pop() else { return };
            if let Err(address) = self.free.push(address) {
                free.push(address);
                return;
            }
        }
    }
}
