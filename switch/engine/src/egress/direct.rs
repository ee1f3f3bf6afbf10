//! A guest's own NIC queue: frames leave from the guest's memory without a copy, and their buffers are given back when
//! the NIC has sent them.

use std::sync::Arc;

use crosspoint_frame::{BURST, Burst, TxEntry, tsc};
use crosspoint_vring::{Batch, GuestTx};
use crosspoint_xsk::{DirectStatus, DirectTx, NicOutcome};

/// Most bursts held while the NIC reads them. When the limit is reached, the guest waits.
const HELD_MAX: usize = 256;

/// One held burst.
#[derive(Clone, Default)]
struct Held {
    batch: Batch,
    /// Its frames that the NIC has not sent yet.
    outstanding: u32,
    received_at: u64,
}

/// The queue, and the bursts whose frames are in it.
pub struct Direct {
    tx: DirectTx,
    uplink: u16,
    /// A ring: `len` bursts from number `first` on, in the order in which they came.
    held: Box<[Held]>,
    first: usize,
    len: usize,
    /// Frames of the current burst that were sent through this queue.
    sending: u32,
    /// Frames of one delivery that must be copied.
    rest: Vec<TxEntry>,
    /// How long a NIC may take to send a frame before the queue is given up, cycles.
    patience: u64,
}

impl Direct {
    /// Creates the queue that sends through `tx` to the wire of port `uplink`. It is given up when a frame takes longer
    /// than `patience` cycles.
    pub fn new(tx: DirectTx, uplink: u16, patience: u64) -> Direct {
        Direct {
            tx,
            uplink,
            held: vec![Held::default(); HELD_MAX].into(),
            first: 0,
            len: 0,
            sending: 0,
            rest: Vec::with_capacity(BURST),
            patience,
        }
    }

    /// Returns the queue's status.
    pub fn status(&self) -> &Arc<DirectStatus> {
        self.tx.status()
    }

    /// Returns whether frames for port `port` go through this queue.
    #[inline(always)]
    pub(crate) fn leads_to(&self, port: u16) -> bool {
        port == self.uplink && !self.tx.status().is_lost()
    }

    /// Sends the picked frames of the current burst. Also returns those that must be copied instead.
    pub(crate) fn deliver(&mut self, burst: &Burst, picks: &[TxEntry]) -> (NicOutcome, &[TxEntry]) {
        self.rest.clear();
        let batch = self.place(self.len) as u16;
        let outcome = self.tx.deliver(burst, picks, batch, &mut self.rest);
        self.sending += outcome.frames;
        (outcome, &self.rest)
    }

    /// Returns the ring index of held burst number `i`.
    fn place(&self, i: usize) -> usize {
        (self.first + i) % HELD_MAX
    }

    /// Returns whether another burst may be taken from the guest.
    fn has_room(&self) -> bool {
        self.len < HELD_MAX && self.tx.has_room()
    }
}

/// A guest with its own NIC queue.
pub struct DirectGuest {
    guest: Box<GuestTx>,
    /// Taken out while a burst is delivered.
    direct: Option<Box<Direct>>,
}

impl DirectGuest {
    /// Combines a guest's transmit ring and its NIC queue.
    pub fn new(guest: Box<GuestTx>, direct: Box<Direct>) -> DirectGuest {
        DirectGuest {
            guest,
            direct: Some(direct),
        }
    }

    /// Returns the transmit ring.
    pub fn guest(&self) -> &GuestTx {
        &self.guest
    }

    /// Returns the NIC queue's status.
    pub fn status(&self) -> Option<&Arc<DirectStatus>> {
        self.direct.as_ref().map(|direct| direct.status())
    }

    pub(crate) fn guest_mut(&mut self) -> &mut GuestTx {
        &mut self.guest
    }

    pub(crate) fn direct_mut(&mut self) -> &mut Option<Box<Direct>> {
        &mut self.direct
    }

    /// Returns whether another burst would be taken.
    pub(crate) fn has_room(&self) -> bool {
        self.direct.as_ref().is_some_and(|direct| direct.has_room())
    }

    /// Receives a burst, unless too many are held.
    pub(crate) fn receive(&mut self, burst: &mut Burst) -> usize {
        match &self.direct {
            Some(direct) if direct.has_room() => self.guest.receive(burst),
            _ => 0,
        }
    }

    /// Holds the current burst, received at `received_at`, if the NIC still reads it or an earlier one; otherwise gives
    /// it back and returns `true`.
    pub(crate) fn complete(&mut self, received_at: u64) -> bool {
        let Some(direct) = &mut self.direct else {
            self.guest.complete();
            return true;
        };
        let outstanding = std::mem::take(&mut direct.sending);
        if outstanding == 0 && direct.len == 0 {
            self.guest.complete();
            return true;
        }
        let place = direct.place(direct.len);
        direct.held[place] = Held {
            batch: self.guest.take_batch(),
            outstanding,
            received_at,
        };
        direct.len += 1;
        false
    }

    /// Checks what the NIC has sent, and gives back, in order, the bursts that are sent completely. Calls `given_back`
    /// with the receive time and the number of frames of each.
    pub(crate) fn settle(&mut self, mut given_back: impl FnMut(u64, usize)) {
        let Some(direct) = &mut self.direct else {
            return;
        };
        if direct.len == 0 {
            return;
        }
        let held = &mut direct.held;
        direct.tx.reap(|batch| {
            if let Some(held) = held.get_mut(usize::from(batch)) {
                held.outstanding = held.outstanding.saturating_sub(1);
            }
        });
        while direct.len > 0 {
            let front = &direct.held[direct.first];
            if front.outstanding > 0 {
                if tsc().wrapping_sub(front.received_at) > direct.patience {
                    direct.tx.status().give_up();
                }
                break;
            }
            self.guest.complete_batch(&front.batch);
            given_back(front.received_at, front.batch.len());
            direct.first = direct.place(1);
            direct.len -= 1;
        }
    }

    /// Rings the doorbell. Returns whether frames are still unsent or held.
    pub(crate) fn flush(&mut self) -> bool {
        match &mut self.direct {
            Some(direct) => direct.tx.flush() || direct.len > 0,
            None => false,
        }
    }

    /// Returns whether the NIC holds no buffers of the guest, or the queue is lost.
    pub(crate) fn is_settled(&self) -> bool {
        self.direct
            .as_ref()
            .is_none_or(|direct| direct.len == 0 || direct.status().is_lost())
    }

    /// Closes the queue. Returns the ring, and the bursts that are still held.
    pub(crate) fn close(self) -> (Box<GuestTx>, Vec<Batch>) {
        let left = self.direct.map(|direct| {
            let held = (0..direct.len).map(|i| &direct.held[direct.place(i)]);
            held.map(|held| held.batch.clone()).collect()
        });
        (self.guest, left.unwrap_or_default())
    }
}
