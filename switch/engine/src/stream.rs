//! Stream: one receive queue of one port, owned by one worker.

use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crosspoint_frame::{BURST, Burst, tsc};
use crosspoint_vring::{Batch, Glance, GuestTx, RingFault};
use crosspoint_xsk::XskRx;

use crate::egress::direct::Direct;
use crate::egress::direct::DirectGuest;
use crate::egress::uplink::UplinkWait;
use crate::observe::counters::PortCounters;
use crate::observe::counters::QueueCounters;
use crate::shares::Shares;
use crate::stages::meter::{Meter, Size};

/// Identifies a stream: port number and queue number.
pub type StreamId = (u16, u16);

/// Source of a stream's frames.
pub enum Source {
    /// A guest's transmit ring.
    Guest(Box<GuestTx>),
    /// A guest's transmit ring, and a NIC queue that only this guest uses.
    Direct(Box<DirectGuest>),
    /// A NIC's receive ring.
    Nic(XskRx),
}

/// A guest's stream is quiet after this many empty polls in a row.
const QUIET_POLLS: u32 = 128;
/// How long a NIC may continue to read after its queue was closed: the kernel closes it some 20 ms later.
const CLOSING: Duration = Duration::from_millis(100);
/// Interval between two checks whether a NIC has sent everything.
const LOOK: Duration = Duration::from_millis(1);

/// A receive queue and its worker's state for it.
pub struct Stream {
    /// Port and queue.
    pub id: StreamId,
    source: Source,
    counters: Arc<PortCounters>,
    received_at: u64,
    received: usize,
    /// How many frames the next burst may have, and the cost of bursts in cycles.
    frames_max: usize,
    burst_cycles: u64,
    /// Number of empty polls in a row.
    empty_polls: u32,
    reported: bool,
    /// For a guest with its own NIC queue: the worker that last served it, and whether buffers were given back for which
    /// the guest has not been called yet.
    worker: usize,
    gave_back: bool,
    /// Port and queue that its last burst went to: the next one probably goes there too.
    pub destination: Option<(u16, u16)>,
    /// Whether any of its frames went to a NIC: they may still be in transmission.
    pub has_used_nics: bool,
    /// Set while an uplink that it sends through is full.
    pub(crate) uplink: Option<UplinkWait>,
    /// Limit of what its guest sends.
    meter: Option<Arc<Meter>>,
    /// Mean size of a frame of its last burst, if its rate is limited.
    mean: Size,
    /// Whether new work wakes a sleeping worker. If not, the worker polls from time to time.
    pub has_wakeup: bool,
}

impl Stream {
    /// Creates the stream of queue `id.1` of port `id.0`.
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
            uplink: None,
            meter: None,
            mean: Size::default(),
            has_wakeup: true,
        }
    }

    /// Returns the counters of `worker` for this queue.
    #[inline(always)]
    pub fn counters(&self, worker: usize) -> &QueueCounters {
        self.counters.at(worker, self.id.1)
    }

    /// Returns the source.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Returns the guest's ring, if the source is a guest.
    pub fn guest(&self) -> Option<&GuestTx> {
        match &self.source {
            Source::Guest(guest) => Some(guest),
            Source::Direct(direct) => Some(direct.guest()),
            Source::Nic(_) => None,
        }
    }

    /// Returns the NIC's receiving half, if the source is a NIC.
    pub fn into_nic(self) -> Option<XskRx> {
        match self.source {
            Source::Nic(rx) => Some(rx),
            Source::Guest(_) | Source::Direct(_) => None,
        }
    }

    /// Returns whether its guest has its own NIC queue.
    pub fn is_direct(&self) -> bool {
        matches!(self.source, Source::Direct(_))
    }

    /// Takes out the guest's own NIC queue, for the delivery of a burst; `None` if it has none.
    #[inline(always)]
    pub fn take_direct(&mut self) -> Option<Box<Direct>> {
        match &mut self.source {
            Source::Direct(direct) => direct.direct_mut().take(),
            _ => None,
        }
    }

    /// Puts that queue back.
    pub fn put_direct(&mut self, lent: Option<Box<Direct>>) {
        if let Source::Direct(direct) = &mut self.source {
            *direct.direct_mut() = lent;
        }
    }

    /// Gives back the buffers that the guest's own queue has sent.
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

    /// Returns whether buffers were given back outside a burst, and the guest has not been called for them.
    #[inline(always)]
    pub fn has_given_back(&self) -> bool {
        self.gave_back
    }

    /// Rings the doorbell of the guest's own queue. Returns whether the NIC still has frames to send.
    pub fn flush_direct(&mut self) -> bool {
        match &mut self.source {
            Source::Direct(direct) => direct.flush(),
            _ => false,
        }
    }

    /// Sets the limit of what its guest sends.
    pub(crate) fn set_meter(&mut self, meter: Option<Arc<Meter>>) {
        // A NIC's frames are other ports', so they are not limited here.
        self.meter = meter.filter(|_| !self.is_nic());
    }

    /// Returns the cycles after `now` until its rate allows another burst; 0 if it allows one now.
    #[inline(always)]
    pub(crate) fn wait(&self, now: u64) -> u64 {
        self.meter.as_ref().map_or(0, |meter| meter.wait(now))
    }

    /// Pays for a burst that was taken, if its rate is limited.
    #[inline(always)]
    pub(crate) fn pay_for(&mut self, burst: &Burst, now: u64) {
        if let Some(meter) = &self.meter {
            let size = Size::of_burst(burst);
            meter.take(size, now);
            self.mean = size.mean(burst.len());
        }
    }

    /// Ends the guest's own queue: waits until the NIC has sent all its frames, at most `patience`, and gives all buffers
    /// back. Later frames of the guest are copied. For the control thread, while no worker has the stream.
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

    /// Ends the own queues of several guests, like [`end_direct`](Self::end_direct), but all at once and without waiting
    /// for frames that are being sent.
    #[must_use = "the streams go on without the queues"]
    pub fn end_directs(streams: Vec<Stream>) -> Vec<Stream> {
        let closed: Vec<_> = streams.into_iter().map(Stream::close).collect();
        if closed.iter().any(|(_, left)| !left.is_empty()) {
            sleep(CLOSING);
        }
        let all = closed.into_iter();
        all.map(|(stream, left)| stream.give_back(&left)).collect()
    }

    /// Closes a guest's own queue. Returns the bursts that it holds, to be given back when the NIC does not read them any
    /// more.
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

    /// Gives bursts back. The next worker of the stream calls the guest: a call can block forever, and there is a way to
    /// free a worker from that.
    fn give_back(mut self, left: &[Batch]) -> Stream {
        if let Source::Guest(guest) = &mut self.source {
            for batch in left {
                guest.complete_batch(batch);
            }
            self.gave_back = true;
        }
        self
    }

    /// Returns whether the source is a NIC.
    #[inline(always)]
    pub fn is_nic(&self) -> bool {
        matches!(self.source, Source::Nic(_))
    }

    /// Returns whether a guest's last burst was full and more frames wait behind it.
    #[inline(always)]
    pub fn has_backlog(&self) -> bool {
        self.guest().is_some_and(GuestTx::has_backlog)
    }

    /// Returns whether a guest has frames to send now. It may have to look at the guest's ring: unlike
    /// [`has_backlog`](Self::has_backlog), it also knows of frames behind those that were read ahead.
    pub(crate) fn has_frames(&self) -> bool {
        self.has_backlog() || self.guest().is_some_and(|guest| guest.glance().is_none())
    }

    /// Returns the cost of its bursts, cycles: that of the last one, or an eighth less than the previous value, whichever
    /// is more.
    #[inline(always)]
    pub fn burst_cycles(&self) -> u64 {
        self.burst_cycles
    }

    /// Notes an empty poll. Returns whether it is time to check if the stream is [quiet](crate::walk).
    #[inline(always)]
    pub fn note_empty(&mut self) -> bool {
        self.burst_cycles -= self.burst_cycles / 8;
        self.empty_polls = self.empty_polls.wrapping_add(1);
        self.empty_polls.is_multiple_of(QUIET_POLLS)
    }

    /// Returns a glance of a guest's ring if the ring has been empty for long. Other sources are always polled.
    pub(crate) fn glance_if_quiet(&self) -> Option<Glance> {
        match &self.source {
            // Not while a call for given back buffers is due.
            Source::Guest(guest) if self.empty_polls >= QUIET_POLLS && !self.gave_back => {
                guest.glance()
            }
            _ => None,
        }
    }

    /// Notes the cost of the last burst, of `count` frames, and sizes the next one by it.
    #[inline(always)]
    pub fn note_burst(&mut self, count: usize, cycles: u64, shares: &Shares) {
        self.empty_polls = 0;
        self.burst_cycles = cycles.max(self.burst_cycles - self.burst_cycles / 8);
        self.frames_max = shares.frames_max(count, cycles, self.frames_max);
    }

    /// Receives a burst; returns its number of frames.
    #[inline(always)]
    pub fn receive(&mut self, burst: &mut Burst) -> usize {
        burst.clear();
        let mut frames_max = self.frames_max;
        if let Some(meter) = &self.meter {
            frames_max = frames_max.min(meter.frames(self.mean, tsc()));
        }
        if let Some(wait) = &self.uplink {
            frames_max = frames_max.min(wait.frames_max);
        }
        burst.set_frames_max(frames_max);
        self.received = match &mut self.source {
            // NIC streams record no completion latency.
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

    /// Returns the guest's fault until it has been reported. Checked when a burst is empty: a guest at fault gives no
    /// more frames.
    #[inline(always)]
    pub fn unreported_fault(&self) -> Option<RingFault> {
        match &self.source {
            Source::Guest(guest) if !self.reported => guest.fault(),
            Source::Direct(direct) if !self.reported => direct.guest().fault(),
            _ => None,
        }
    }

    /// Marks the fault as reported.
    pub fn set_reported(&mut self) {
        self.reported = true;
    }

    /// Gives back the buffers of `burst`, the last one: its bytes have been copied. Counts the time since `mark`, when
    /// the worker ended its previous work, and returns the time now.
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

    /// Calls the guest if it waits for completions. Returns whether it was called.
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

    /// Enables or disables the wakeup for new work. Returns whether there is work now.
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
