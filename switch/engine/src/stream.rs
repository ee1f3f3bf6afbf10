//! A stream: one receive queue of one port, owned by one worker.

use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crosspoint_frame::{BURST, Burst, tsc};
use crosspoint_vring::{Batch, Glance, GuestTx, RingFault};
use crosspoint_xsk::XskRx;

use crate::counters::{PortCounters, QueueCounters};
use crate::direct::{Direct, DirectGuest};
use crate::shares::Shares;

/// Which stream: port number and queue number.
pub type StreamId = (u16, u16);

/// Where the frames come from.
pub enum Source {
    /// A guest's transmit ring.
    Guest(Box<GuestTx>),
    /// A guest's transmit ring, and a NIC's queue that is this guest's own.
    Direct(Box<DirectGuest>),
    /// A NIC's receive ring.
    Nic(XskRx),
}

/// After so many polls in a row that found nothing a guest's stream is quiet.
const QUIET_POLLS: u32 = 128;
/// How long a NIC may go on reading after its queue was closed: the kernel closes it some 20 ms later.
const CLOSING: Duration = Duration::from_millis(100);
/// Between two looks whether a NIC has sent everything.
const LOOK: Duration = Duration::from_millis(1);

/// A receive queue and what its worker keeps of it.
pub struct Stream {
    /// Port and queue.
    pub id: StreamId,
    source: Source,
    counters: Arc<PortCounters>,
    received_at: u64,
    received: usize,
    /// How many frames the next burst may have, and what bursts take, cycles.
    frames_max: usize,
    burst_cycles: u64,
    /// How many polls in a row have found nothing.
    empty_polls: u32,
    reported: bool,
    /// Of a guest with a queue of its own: the worker that it was last served by, and whether something was given back
    /// that the guest has not been called for.
    worker: usize,
    gave_back: bool,
    /// Where its last burst went, port and queue: the next one probably goes there too.
    pub destination: Option<(u16, u16)>,
    /// Whether anything of it ever went to a NIC: then it may be on its way still.
    pub has_used_nics: bool,
    /// Whether anything wakes a worker that sleeps when there is work: if not, the worker looks from time to time.
    pub has_wakeup: bool,
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
            frames_max: BURST,
            burst_cycles: 0,
            empty_polls: 0,
            reported: false,
            worker: 0,
            gave_back: false,
            destination: None,
            has_used_nics: false,
            has_wakeup: true,
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

    /// The guest's ring that it reads from, if it does.
    pub fn guest(&self) -> Option<&GuestTx> {
        match &self.source {
            Source::Guest(guest) => Some(guest),
            Source::Direct(direct) => Some(direct.guest()),
            Source::Nic(_) => None,
        }
    }

    /// Whether its guest has a NIC's queue of its own.
    pub fn is_direct(&self) -> bool {
        matches!(self.source, Source::Direct(_))
    }

    /// The guest's own queue, to be lent to who delivers the burst; `None` if it has none.
    #[inline(always)]
    pub fn take_direct(&mut self) -> Option<Box<Direct>> {
        match &mut self.source {
            Source::Direct(direct) => direct.direct_mut().take(),
            _ => None,
        }
    }

    /// Takes it back.
    pub fn put_direct(&mut self, lent: Option<Box<Direct>>) {
        if let Source::Direct(direct) = &mut self.source {
            *direct.direct_mut() = lent;
        }
    }

    /// Gives back what the guest's own queue has sent.
    #[cold]
    fn settle(&mut self) {
        let counters = self.counters.at(self.worker, self.id.1);
        if let Source::Direct(direct) = &mut self.source {
            direct.settle(|received_at, frames| {
                let time = tsc().wrapping_sub(received_at);
                counters.completion.record(time, frames as u64);
                self.gave_back = true;
            });
        }
    }

    /// Whether something was given back besides whole bursts at hand, and the guest has not been called for it.
    #[inline(always)]
    pub fn has_given_back(&self) -> bool {
        self.gave_back
    }

    /// The doorbell of the guest's own queue. Returns whether the NIC has frames still to send.
    pub fn flush_direct(&mut self) -> bool {
        match &mut self.source {
            Source::Direct(direct) => direct.flush(),
            _ => false,
        }
    }

    /// Ends the guest's own queue: waits until the NIC has sent what it has, no longer than `patience`, and gives
    /// everything back. What the guest sends from now on is copied. For the control thread, when no worker has the
    /// stream.
    #[must_use = "the stream goes on without the queue"]
    pub fn end_direct(mut self, patience: Duration) -> Stream {
        let deadline = Instant::now() + patience;
        while let Source::Direct(direct) = &mut self.source {
            direct.flush();
            if direct.is_settled() || Instant::now() > deadline {
                break;
            }
            sleep(LOOK);
            self.settle();
        }
        let (stream, left) = self.close();
        if !left.is_empty() {
            sleep(CLOSING);
        }
        stream.give_back(&left)
    }

    /// Ends the own queues of several guests as [`end_direct`](Self::end_direct) does, all at once and without waiting
    /// for what they have sent.
    #[must_use = "the streams go on without the queues"]
    pub fn end_directs(streams: Vec<Stream>) -> Vec<Stream> {
        let closed: Vec<_> = streams.into_iter().map(Stream::close).collect();
        if closed.iter().any(|(_, left)| !left.is_empty()) {
            sleep(CLOSING);
        }
        let all = closed.into_iter();
        all.map(|(stream, left)| stream.give_back(&left)).collect()
    }

    /// Closes a guest's own queue. Returns the bursts that it holds: to be given back when nobody reads them any more.
    fn close(self) -> (Stream, Vec<Batch>) {
        match self.source {
            Source::Direct(direct) => {
                let (guest, left) = direct.close();
                let source = Source::Guest(guest);
                (Stream { source, ..self }, left)
            }
            source => (Stream { source, ..self }, Vec::new()),
        }
    }

    /// Gives bursts back. The guest is called by the worker that has the stream next: calling can last for ever, and
    /// workers are freed from that.
    fn give_back(mut self, left: &[Batch]) -> Stream {
        if let Source::Guest(guest) = &mut self.source {
            for batch in left {
                guest.complete_batch(batch);
            }
            self.gave_back = true;
        }
        self
    }

    /// Whether it is a NIC's queue.
    #[inline(always)]
    pub fn is_nic(&self) -> bool {
        matches!(self.source, Source::Nic(_))
    }

    /// Whether the last burst of a guest was full, and more frames wait behind it.
    #[inline(always)]
    pub fn has_backlog(&self) -> bool {
        self.guest().is_some_and(GuestTx::has_backlog)
    }

    /// What its bursts take, cycles: the last one, or an eighth less than was known before it.
    #[inline(always)]
    pub fn burst_cycles(&self) -> u64 {
        self.burst_cycles
    }

    /// Notes that a poll found nothing. Returns whether it is time to ask whether the stream is [quiet](crate::walk).
    #[inline(always)]
    pub fn note_empty(&mut self) -> bool {
        self.burst_cycles -= self.burst_cycles / 8;
        self.empty_polls = self.empty_polls.wrapping_add(1);
        self.empty_polls.is_multiple_of(QUIET_POLLS)
    }

    /// A look at a guest's ring, once that has been empty for long. Others are polled always.
    pub(crate) fn glance_if_quiet(&self) -> Option<Glance> {
        match &self.source {
            // What it gave back it has not been called for yet.
            Source::Guest(guest) if self.empty_polls >= QUIET_POLLS && !self.gave_back => {
                guest.glance()
            }
            _ => None,
        }
    }

    /// Notes what the last burst, of `count` frames, took, and sizes the next one by it.
    #[inline(always)]
    pub fn note_burst(&mut self, count: usize, cycles: u64, shares: &Shares) {
        self.empty_polls = 0;
        self.burst_cycles = cycles.max(self.burst_cycles - self.burst_cycles / 8);
        self.frames_max = shares.frames_max(count, cycles, self.frames_max);
    }

    /// Takes a burst; returns how many frames it has.
    #[inline(always)]
    pub fn receive(&mut self, burst: &mut Burst) -> usize {
        burst.clear();
        burst.set_frames_max(self.frames_max);
        self.received = match &mut self.source {
            // Nobody asks when.
            Source::Nic(nic) => return nic.receive(burst),
            Source::Guest(guest) => guest.receive(burst),
            Source::Direct(_) => self.receive_direct(burst),
        };
        if self.received > 0 {
            self.received_at = tsc();
        }
        self.received
    }

    #[inline(never)]
    fn receive_direct(&mut self, burst: &mut Burst) -> usize {
        self.settle();
        match &mut self.source {
            Source::Direct(direct) => direct.receive(burst),
            _ => 0,
        }
    }

    /// What the guest did wrong, until somebody has been told. Asked for when a burst is empty:
    /// a guest at fault gives no frames any more.
    #[inline(always)]
    pub fn unreported_fault(&self) -> Option<RingFault> {
        match &self.source {
            Source::Guest(guest) if !self.reported => guest.fault(),
            Source::Direct(direct) if !self.reported => direct.guest().fault(),
            _ => None,
        }
    }

    /// Somebody has been told.
    pub fn set_reported(&mut self) {
        self.reported = true;
    }

    /// Gives back what `burst`, the last, was read from: its bytes are where they go. Counts the time since `mark`,
    /// when the worker was done with what it did before, and returns the time now.
    #[inline(always)]
    pub fn complete(&mut self, burst: &Burst, worker: usize, mark: u64) -> u64 {
        let is_back = match &mut self.source {
            Source::Nic(nic) => {
                nic.complete(burst);
                false
            }
            Source::Guest(guest) => {
                guest.complete();
                true
            }
            Source::Direct(direct) => {
                self.worker = worker;
                direct.complete(self.received_at)
            }
        };
        let (now, counters) = (tsc(), self.counters(worker));
        if is_back {
            let time = now.wrapping_sub(self.received_at);
            counters.completion.record(time, self.received as u64);
        }
        counters.cycles.add(now.wrapping_sub(mark));
        now
    }

    /// Calls the guest, if it waits for completions. Returns whether it did.
    #[inline(always)]
    pub fn flush(&mut self, worker: usize) -> bool {
        self.gave_back = false;
        let called = match &mut self.source {
            Source::Guest(guest) => guest.flush(),
            Source::Direct(direct) => direct.guest_mut().flush(),
            Source::Nic(_) => false,
        };
        if called {
            self.counters(worker).calls.add(1);
        }
        called
    }

    /// Asks to be woken when there is work, or not to be. Returns whether there is work now.
    pub fn set_wakeups(&mut self, wanted: bool) -> bool {
        match &mut self.source {
            Source::Nic(nic) => nic.has_work(),
            Source::Guest(guest) => guest.set_kicks(wanted) && guest.fault().is_none(),
            Source::Direct(direct) => {
                let has_room = direct.has_room();
                let guest = direct.guest_mut();
                guest.set_kicks(wanted) && guest.fault().is_none() && has_room
            }
        }
    }
}
