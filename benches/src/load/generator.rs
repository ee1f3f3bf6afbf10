//! The work of one generator's thread: it visits its guests in turn, as fast as possible.

use crate::error::BenchError;
use crate::load::{Offered, Quiet};
use crosspoint_frame::{Clock, tsc};
use crosspoint_guest::pump::{BATCH_MAX, FrameHead};
use crosspoint_guest::{ForwardPump, RxPump, TxPump};
use hdrhistogram::Histogram;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Longest wait for the last frames of a trial.
const DRAIN_MAX: Duration = Duration::from_millis(500);
/// After this long without a frame, none is in flight.
const DRAIN_QUIET: Duration = Duration::from_millis(2);
/// The same after a job that lasts until it is stopped: in it, each frame counts, also if the switch was off its core.
const DRAIN_QUIET_STREAM: Duration = Duration::from_millis(100);
/// At full rate: the time of a frame is taken in one of this many polls.
const SAMPLE_EVERY: u64 = 8;
/// At a given rate above [`SAMPLE_ALL_BELOW`]: one of this many frames' times is taken, whatever its place in a burst.
const SAMPLE_MASK: u16 = 7;
/// Frames per second.
const SAMPLE_ALL_BELOW: f64 = 2e6;
/// If a generator was away for longer, it makes no frames for the time beyond: the switch must not suffer for it.
pub const AWAY: Duration = Duration::from_micros(100);
/// Visits after the end, for frames that were due by then.
const LAST_VISITS: u32 = 64;
/// Low bits of a stamp: cycles from the trial's start until the first frame of a burst was due, plus one. The bits above are
/// its sequence number, from which the later due times of the others follow. Without a rate, all frames of a burst are due
/// when it is made.
const DUE_BITS: u32 = 48;
/// The length of one of this many iterations is recorded.
const ITERATION_EVERY: u64 = 8;
/// Most batches that one visit receives: one receiver may have several senders.
const BATCHES_MAX: u32 = 4;

/// One queue of a guest, as it is visited.
pub enum GuestQueue {
    /// Generates frames.
    Send(Sender),
    /// Forwards received frames.
    Forward(Box<ForwardPump>),
    /// Counts frames.
    Receive(Sink),
    /// Guests without traffic, except for single frames.
    Quiet(Box<Quiet>),
}

/// A guest's transmit queue.
pub struct Sender {
    /// The queue.
    pub tx: TxPump,
    /// Offset of its frames, as a part of a frame's time, so that senders do not all send at the same time: 0 to 1.
    pub phase: f64,
    /// Frames sent in the current trial.
    pub sent: u64,
    due: u64,
    /// Frames that were due, and have been given up.
    dropped: u64,
}

/// A guest's receive queue.
pub struct Sink {
    /// The queue.
    pub rx: RxPump,
    polls: u64,
}

/// A job of a generator.
#[derive(Clone, Debug)]
pub struct Job {
    /// Time stamp at which to begin.
    pub start: u64,
    /// Its length.
    pub time: Duration,
    /// It lasts until this is set, instead.
    pub until: Option<Arc<AtomicBool>>,
    /// If a generator was away for longer, it makes no frames for the time beyond.
    pub away: Duration,
    /// Frames per second of each sender; if absent, as many as possible.
    pub rate: Option<f64>,
    /// Frames of all senders per second.
    pub rate_of_all: Option<f64>,
    /// Most frames that one poll sends.
    pub burst: usize,
    /// Frames that a sender keeps while its ring is full.
    pub backlog: u64,
}

/// The longest time without a frame, cycles, excluding times at which the generator did not run.
#[derive(Clone, Copy, Debug, Default)]
struct Gap {
    present: Option<u64>,
    /// The longest so far.
    longest: u64,
}

impl Gap {
    /// Records that `cycles` more have passed, and whether a frame arrived.
    fn pass(&mut self, cycles: u64, arrived: bool) {
        // Before the first frame there is no gap.
        let present = self.present.map(|gap| gap + cycles);
        self.longest = self.longest.max(present.unwrap_or(0));
        self.present = if arrived { Some(0) } else { present };
    }
}

impl Sender {
    /// A sender with this offset.
    pub fn new(tx: TxPump, phase: f64) -> Self {
        Self {
            tx,
            phase,
            sent: 0,
            due: 0,
            dropped: 0,
        }
    }

    /// Sends frames that are due, or a burst. If the time is over, nothing more becomes due.
    #[inline(always)]
    fn visit(
        &mut self,
        pace: &mut Pace,
        elapsed: Option<u64>,
        offered: &mut Offered,
    ) -> Result<(), BenchError> {
        let limit = match pace.cycles_per_frame {
            None => pace.burst,
            Some(cycles) => {
                if let Some(elapsed) = elapsed {
                    self.due = (elapsed as f64 / cycles + self.phase) as u64;
                }
                let held = self.due - self.sent - self.dropped;
                held.min(pace.burst as u64) as usize
            }
        };
        if limit == 0 {
            return Ok(());
        }
        let gone = self.sent + self.dropped;
        let stamp = pace.stamp(gone, self.phase, self.tx.sent() as u16);
        let sent = self.tx.poll_stamped(limit, stamp)?;
        self.sent += u64::from(sent.frames);
        offered.polls += 1;
        if sent.full {
            offered.polls_full += 1;
            if pace.cycles_per_frame.is_some() {
                let held = self.due - self.sent - self.dropped;
                self.dropped += held.saturating_sub(pace.backlog);
            }
        }
        Ok(())
    }

    /// Whether frames that were due are still to be sent.
    fn is_behind(&self) -> bool {
        self.due > self.sent + self.dropped
    }
}

impl Sink {
    /// A sink on `rx`.
    pub fn new(rx: RxPump) -> Self {
        Self { rx, polls: 0 }
    }

    /// Receives frames that are there, within bounds.
    #[inline(always)]
    fn visit(&mut self, pace: &Pace, offered: &mut Offered) -> Result<u64, BenchError> {
        let mut frames = 0;
        for _ in 0..BATCHES_MAX {
            let batch = self.receive(pace, offered)?;
            frames += batch;
            if batch < BATCH_MAX as u64 {
                break;
            }
        }
        Ok(frames)
    }

    /// Receives one batch, and inspects as many frames as the pace allows.
    #[inline(always)]
    fn receive(&mut self, pace: &Pace, offered: &mut Offered) -> Result<u64, BenchError> {
        self.polls += 1;
        if pace.cycles_per_frame.is_some() {
            return self.receive_noted(pace, offered);
        }
        let received = if self.polls.is_multiple_of(SAMPLE_EVERY) {
            let mut sampled = false;
            self.rx.poll_each(|head| {
                if !sampled && head.stamp() > 0 {
                    sampled = true;
                    pace.record(head, &mut offered.latency_ns);
                }
            })?
        } else {
            self.rx.poll()?
        };
        Ok(u64::from(received.frames))
    }

    /// The same, and inspects each frame.
    #[inline(always)]
    fn receive_noted(&mut self, pace: &Pace, offered: &mut Offered) -> Result<u64, BenchError> {
        let mut frames = 0;
        self.rx.poll_each(|head| {
            if head.stamp() == 0 {
                return; // an announcement of a receiver
            }
            frames += 1;
            if head.sequence() & pace.sample_mask == 0 {
                pace.record(head, &mut offered.latency_ns);
            }
        })?;
        Ok(frames)
    }
}

/// The rate at which frames become due.
struct Pace {
    clock: Clock,
    cycles_per_frame: Option<f64>,
    burst: usize,
    backlog: u64,
    sample_mask: u16,
    start: u64,
    now: u64,
    /// Cycles that the thread was away, for which it made no frames.
    skipped: u64,
    away: u64,
}

impl Pace {
    fn new(job: &Job, clock: Clock) -> Self {
        let all = job.rate_of_all.is_some_and(|rate| rate < SAMPLE_ALL_BELOW);
        Self {
            clock,
            cycles_per_frame: job.rate.map(|rate| clock.hz() / rate),
            burst: job.burst,
            backlog: job.backlog,
            sample_mask: if all { 0 } else { SAMPLE_MASK },
            start: job.start,
            now: job.start,
            skipped: 0,
            away: clock.cycles(job.away),
        }
    }

    /// The stamp of a burst: when its next frame was due. The sender has sent or given up `gone` frames, and that frame has
    /// this sequence number.
    #[inline(always)]
    fn stamp(&self, gone: u64, phase: f64, sequence: u16) -> u64 {
        let since = match self.cycles_per_frame {
            Some(cycles) => ((gone + 1) as f64 - phase).max(0.0) * cycles,
            None => self
                .now
                .saturating_sub(self.start)
                .saturating_sub(self.skipped) as f64,
        };
        let since = (since as u64 + self.skipped + 1) & ((1 << DUE_BITS) - 1);
        u64::from(sequence) << DUE_BITS | since
    }

    /// Records the time of a frame. A late frame of an earlier trial may seem to arrive before it was due; then nothing is
    /// recorded.
    #[inline(always)]
    fn record(&self, head: &FrameHead, latency: &mut Histogram<u64>) {
        if let Some(since_due) = tsc().checked_sub(self.due(head)) {
            let ns = self.clock.ns(since_due) as u64;
            latency.saturating_record(ns.max(1));
        }
    }

    /// The time when a frame was due, from its stamp and its sequence number.
    #[inline(always)]
    fn due(&self, head: &FrameHead) -> u64 {
        let stamp = head.stamp();
        let behind_first = head.sequence().wrapping_sub((stamp >> DUE_BITS) as u16);
        let later = f64::from(behind_first) * self.cycles_per_frame.unwrap_or(0.0);
        self.start + (stamp & ((1 << DUE_BITS) - 1)) + later as u64 - 1
    }

    /// Reads the clock. Returns the time for which frames are made, cycles.
    #[inline(always)]
    fn tick(&mut self, now: u64) -> u64 {
        let step = now.saturating_sub(self.now);
        self.skipped += step.saturating_sub(self.away);
        self.now = now;
        now.saturating_sub(self.start).saturating_sub(self.skipped)
    }
}

/// Runs `job`, and then receives until nothing is in flight.
pub fn run(queues: &mut [GuestQueue], job: &Job, clock: Clock) -> Result<Offered, BenchError> {
    let (mut offered, mut gap) = (Offered::default(), Gap::default());
    let mut pace = Pace::new(job, clock);
    begin(queues, job)?;
    while tsc() < job.start {
        discard(queues)?;
    }
    let end = job.start + clock.cycles(job.time);
    let (mut now, mut count) = (tsc(), 0_u64);
    let is_over = |now: u64| match &job.until {
        Some(flag) => flag.load(Ordering::Relaxed),
        None => now >= end,
    };
    while !is_over(now) {
        let away = pace.skipped;
        let arrived = visit_all(queues, &mut pace, &mut offered, true)?;
        offered.arrived_within += arrived;
        let began = std::mem::replace(&mut now, tsc());
        let passed = now.saturating_sub(began);
        if job.until.is_some() {
            let ran = passed.saturating_sub(pace.skipped - away);
            gap.pass(ran, arrived > 0);
        }
        if count.is_multiple_of(ITERATION_EVERY) {
            let ns = clock.ns(passed) as u64;
            offered.iterations_ns.saturating_record(ns.max(1));
        }
        count += 1;
    }
    offered.away_ns = clock.ns(pace.skipped) as u64;
    offered.longest_gap_ns = clock.ns(gap.longest) as u64;
    offered.arrived = offered.arrived_within;
    offered.seconds = now.saturating_sub(job.start) as f64 / clock.hz();
    finish(queues, &mut pace, &mut offered)?;
    let quiet = match job.until {
        Some(_) => DRAIN_QUIET_STREAM,
        None => DRAIN_QUIET,
    };
    offered.arrived += drain(queues, &mut pace, &mut offered, quiet)?;
    for queue in queues.iter() {
        if let GuestQueue::Send(sender) = queue {
            offered.sent += sender.sent;
            offered.refused += sender.dropped;
            offered.due += match job.rate {
                Some(_) => sender.due,
                None => sender.sent,
            };
        }
    }
    Ok(offered)
}

fn begin(queues: &mut [GuestQueue], job: &Job) -> Result<(), BenchError> {
    for queue in queues {
        match queue {
            GuestQueue::Send(sender) => (sender.sent, sender.due, sender.dropped) = (0, 0, 0),
            GuestQueue::Quiet(quiet) => quiet.begin(job.start)?,
            GuestQueue::Receive(_) | GuestQueue::Forward(_) => {}
        }
    }
    Ok(())
}

/// Discards frames that are not of this trial: receivers' announcements, if the switch had not learned their destination.
fn discard(queues: &mut [GuestQueue]) -> Result<(), BenchError> {
    for queue in queues {
        if let GuestQueue::Receive(sink) = queue {
            sink.rx.poll()?;
        }
    }
    Ok(())
}

/// Visits every guest once. Returns the number of frames that arrived. `makes`: whether more frames become due.
#[inline(always)]
fn visit_all(
    queues: &mut [GuestQueue],
    pace: &mut Pace,
    offered: &mut Offered,
    makes: bool,
) -> Result<u64, BenchError> {
    let mut arrived = 0;
    for queue in queues {
        match queue {
            GuestQueue::Send(sender) => {
                let elapsed = pace.tick(tsc());
                sender.visit(pace, makes.then_some(elapsed), offered)?;
            }
            GuestQueue::Forward(pump) => {
                pump.poll()?;
            }
            GuestQueue::Receive(sink) => arrived += sink.visit(pace, offered)?,
            GuestQueue::Quiet(quiet) => quiet.visit(tsc(), &mut offered.first_ns)?,
        }
    }
    Ok(arrived)
}

/// Sends frames that were due at the end, unless the rings are full: the end of a trial within a burst must not lose frames.
fn finish(
    queues: &mut [GuestQueue],
    pace: &mut Pace,
    offered: &mut Offered,
) -> Result<(), BenchError> {
    if pace.cycles_per_frame.is_none() {
        return Ok(());
    }
    for _ in 0..LAST_VISITS {
        let behind =
            |queue: &GuestQueue| matches!(queue, GuestQueue::Send(sender) if sender.is_behind());
        if !queues.iter().any(behind) {
            break;
        }
        offered.arrived += visit_all(queues, pace, offered, false)?;
    }
    Ok(())
}

/// Receives until nothing is in flight. Returns the number of frames that arrived meanwhile.
fn drain(
    queues: &mut [GuestQueue],
    pace: &mut Pace,
    offered: &mut Offered,
    quiet_for: Duration,
) -> Result<u64, BenchError> {
    let deadline = Instant::now() + DRAIN_MAX;
    let (mut frames, mut quiet_since) = (0, Instant::now());
    loop {
        let mut quiet = true;
        for queue in queues.iter_mut() {
            quiet &= match queue {
                GuestQueue::Send(sender) => sender.tx.drain()? == 0,
                GuestQueue::Forward(pump) => pump.poll()?.frames == 0 && pump.in_flight()? == 0,
                GuestQueue::Receive(sink) => {
                    let arrived = sink.visit(pace, offered)?;
                    frames += arrived;
                    arrived == 0
                }
                GuestQueue::Quiet(_) => true,
            };
        }
        // Read after a poll: this thread may have been off its core meanwhile.
        let now = Instant::now();
        if !quiet {
            quiet_since = now;
        }
        if now - quiet_since > quiet_for || now > deadline {
            return Ok(frames);
        }
    }
}

#[cfg(test)]
mod tests;
