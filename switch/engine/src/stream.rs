//! A stream: one receive queue of one port, owned by one worker.

use std::sync::Arc;

use crosspoint_frame::{Burst, tsc};
use crosspoint_vring::{GuestTx, RingFault};
use crosspoint_xsk::XskRx;

use crate::counters::{PortCounters, QueueCounters};

/// Which stream: port number and queue number.
pub type StreamId = (u16, u16);

/// Where the frames come from.
pub enum Source {
    /// A guest's transmit ring.
    Guest(Box<GuestTx>),
    /// A NIC's receive ring.
    Nic(XskRx),
}

/// A receive queue and what its worker keeps of it.
pub struct Stream {
    /// Port and queue.
    pub id: StreamId,
    source: Source,
    counters: Arc<PortCounters>,
    received_at: u64,
    received: usize,
    reported: bool,
    /// Where its last burst went, port and queue: the next one probably goes there too.
    pub destination: Option<(u16, u16)>,
}

impl Stream {
    /// The stream of queue `id.1` of port `id.0`.
    pub fn new(id: StreamId, source: Source, counters: Arc<PortCounters>) -> Stream {
        Stream {
            id,
            source,
            counters,
            received_at: 0,
            received: 0,
            reported: false,
            destination: None,
        }
    }

    /// What `worker` counts of this queue.
    #[inline(always)]
    pub fn counters(&self, worker: usize) -> &QueueCounters {
        self.counters.at(worker, self.id.1)
    }

    /// What it reads from.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Takes a burst; returns how many frames it has.
    #[inline(always)]
    pub fn receive(&mut self, burst: &mut Burst) -> usize {
        burst.clear();
        self.received = match &mut self.source {
            Source::Nic(nic) => nic.receive(burst),
            Source::Guest(guest) => guest.receive(burst),
        };
        if self.received > 0 {
            self.received_at = tsc();
        }
        self.received
    }

    /// What the guest did wrong, until somebody has been told. Asked for when a burst is empty:
    /// a guest at fault gives no frames any more.
    #[inline(always)]
    pub fn unreported_fault(&self) -> Option<RingFault> {
        match &self.source {
            Source::Guest(guest) if !self.reported => guest.fault(),
            _ => None,
        }
    }

    /// Somebody has been told.
    pub fn set_reported(&mut self) {
        self.reported = true;
    }

    /// Gives back what `burst`, the last, was read from: its bytes are where they go.
    #[inline(always)]
    pub fn complete(&mut self, burst: &Burst, worker: usize) {
        match &mut self.source {
            Source::Nic(nic) => nic.complete(burst),
            Source::Guest(guest) => {
                guest.complete();
                let time = tsc().wrapping_sub(self.received_at);
                self.counters(worker)
                    .completion
                    .record(time, self.received as u64);
            }
        }
    }

    /// Calls the guest, if it waits for completions.
    #[inline(always)]
    pub fn flush(&mut self, worker: usize) {
        if let Source::Guest(guest) = &mut self.source
            && guest.flush()
        {
            self.counters(worker).calls.add(1);
        }
    }

    /// Asks to be woken when there is work, or not to be. Returns whether there is work now.
    pub fn set_wakeups(&mut self, wanted: bool) -> bool {
        match &mut self.source {
            Source::Nic(nic) => nic.has_work(),
            Source::Guest(guest) => guest.set_kicks(wanted) && guest.fault().is_none(),
        }
    }
}
