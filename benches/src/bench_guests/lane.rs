//! One direction: a transmit pump of one guest and a receive pump of the other.

use crate::error::BenchError;
use crate::options::{FCS_LEN, PairOptions};
use crate::trial::Configuration;
use crosspoint_frame::{Clock, tsc};
use crosspoint_guest::pump::FrameHead;
use crosspoint_guest::{RingError, RxPump, Sent, TxPump, TxPumpOptions};
use hdrhistogram::Histogram;
use std::time::Duration;

/// Low bits of a stamp: the time at which the first frame of a batch was due, in cycles since the trial's start. The bits
/// above are its sequence number.
const DUE_BITS: u32 = 48;
/// Below this rate, every frame's time is taken; above it, every eighth frame's.
const EVERY_FRAME: f64 = 1e6;
/// Sequence numbers have 16 bits: a step of more than this is a step back.
const AHEAD_MAX: u16 = u16::MAX / 2;

/// One direction.
pub struct Lane {
    tx: TxPump,
    rx: RxPump,
    sink: Sink,
    sent_before: u64,
}

impl Lane {
    /// From a guest's transmit ring to the other guest's receive ring. Only frames with this source address count.
    pub fn new(tx: TxPump, rx: RxPump, source: [u8; 6]) -> Self {
        Self {
            tx,
            rx,
            sink: Sink::new(source),
            sent_before: 0,
        }
    }

    /// Begins a trial at `start`, with `rate` frames per second in this direction.
    pub fn begin(&mut self, start: u64, rate: Option<f64>) {
        self.sent_before = self.tx.sent();
        let every_frame = rate.is_some_and(|rate| rate < EVERY_FRAME);
        self.sink.begin(start, self.tx.sent() as u16, every_frame);
    }

    /// Ends a trial, when nothing is in flight. Returns the lengths of runs of lost frames.
    pub fn end(&mut self) -> &Histogram<u64> {
        self.sink.end(self.tx.sent() as u16);
        &self.sink.loss_runs
    }

    /// Frames sent since the trial began.
    pub fn sent(&self) -> u64 {
        self.tx.sent() - self.sent_before
    }

    /// Sends up to `limit` frames; the first is due at time `due`, each further one `cycles` later.
    #[inline(always)]
    pub fn send(&mut self, limit: usize, due: u64, cycles: f64) -> Result<Sent, RingError> {
        self.sink.cycles = cycles;
        let since = due.saturating_sub(self.sink.start) & ((1 << DUE_BITS) - 1);
        let stamp = u64::from(self.tx.sent() as u16) << DUE_BITS | since;
        self.tx.poll_stamped(limit, stamp)
    }

    /// Takes back what the device has used. Returns how many frames it still has.
    pub fn reclaim(&mut self) -> Result<u16, RingError> {
        self.tx.drain()
    }

    /// Receives one batch.
    #[inline(always)]
    pub fn receive(&mut self) -> Result<u64, RingError> {
        Ok(self.rx.poll()?.frames.into())
    }

    /// Receives one batch, and takes the time of its first frame.
    #[inline(always)]
    pub fn receive_sampled(
        &mut self,
        clock: Clock,
        latency: &mut Histogram<u64>,
    ) -> Result<u64, RingError> {
        let sink = &self.sink;
        let mut sampled = false;
        let received = self.rx.poll_each(|head| {
            if !sampled {
                sampled = true;
                latency.saturating_record(sink.time_ns(head, tsc(), clock));
            }
        })?;
        Ok(received.frames.into())
    }

    /// Receives one batch, takes the times of every frame or every eighth, and records which are missing.
    #[inline(always)]
    pub fn receive_tracked(
        &mut self,
        clock: Clock,
        latency: &mut Histogram<u64>,
    ) -> Result<u64, RingError> {
        let sink = &mut self.sink;
        let received = self.rx.poll_each(|head| {
            if sink.is_ours(head) {
                sink.see(head.sequence());
                if head.sequence() & sink.sample_mask == 0 {
                    latency.saturating_record(sink.time_ns(head, tsc(), clock));
                }
            }
        })?;
        Ok(received.frames.into())
    }

    /// Sends a single frame, and receives a batch a millisecond later.
    pub fn try_one(&mut self) -> Result<u64, BenchError> {
        self.send(1, 0, 0.0)?;
        std::thread::sleep(Duration::from_millis(1));
        Ok(self.receive()?)
    }
}

/// A lane's record of the frames that it expects.
struct Sink {
    source: [u8; 6],
    start: u64,
    cycles: f64,
    expected: u16,
    sample_mask: u16,
    loss_runs: Histogram<u64>,
}

impl Sink {
    fn new(source: [u8; 6]) -> Self {
        Self {
            source,
            start: 0,
            cycles: 0.0,
            expected: 0,
            sample_mask: 0,
            loss_runs: Histogram::new_with_bounds(1, u16::MAX.into(), 3).expect("valid bounds"),
        }
    }

    fn begin(&mut self, start: u64, first: u16, every_frame: bool) {
        self.start = start;
        self.expected = first;
        self.sample_mask = if every_frame { 0 } else { 7 };
        self.loss_runs.reset();
    }

    /// All frames before `next` that have not arrived are lost.
    fn end(&mut self, next: u16) {
        let lost = next.wrapping_sub(self.expected);
        if lost > 0 {
            self.loss_runs.saturating_record(lost.into());
        }
    }

    #[inline(always)]
    fn is_ours(&self, head: &FrameHead) -> bool {
        head.bytes[6..12] == self.source
    }

    /// Records frame `sequence`; the missing frames before it are lost.
    #[inline(always)]
    fn see(&mut self, sequence: u16) {
        let lost = sequence.wrapping_sub(self.expected);
        if lost > AHEAD_MAX {
            return; // overtaken: already counted as lost
        }
        if lost > 0 {
            self.loss_runs.saturating_record(lost.into());
        }
        self.expected = sequence.wrapping_add(1);
    }

    /// Time from when the frame was due until `now`, at least 1.
    #[inline(always)]
    fn time_ns(&self, head: &FrameHead, now: u64, clock: Clock) -> u64 {
        let stamp = head.stamp();
        let behind_first = head.sequence().wrapping_sub((stamp >> DUE_BITS) as u16);
        let due = (stamp & ((1 << DUE_BITS) - 1)) + (f64::from(behind_first) * self.cycles) as u64;
        let cycles = now.saturating_sub(self.start).saturating_sub(due);
        (clock.ns(cycles) as u64).max(1)
    }
}

/// Settings of a lane's frames.
pub fn pump(
    configuration: &Configuration,
    options: &PairOptions,
    source: [u8; 6],
    destination: [u8; 6],
) -> TxPumpOptions {
    TxPumpOptions {
        frame_len: usize::from(configuration.size - FCS_LEN),
        source,
        destination,
        flows: configuration.flows,
        batch: options.burst.into(),
        ..TxPumpOptions::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_frame_lost_is_in_one_run(first: u16, arrives in prop::collection::vec(any::<bool>(), 1..500)) {
            let mut sink = Sink::new([0; 6]);
            sink.begin(0, first, true);
            let sequence = |i: usize| first.wrapping_add(i as u16);
            for i in (0..arrives.len()).filter(|i| arrives[*i]) {
                sink.see(sequence(i));
            }
            sink.end(sequence(arrives.len()));
            let runs = arrives.split(|arrived| *arrived).map(<[bool]>::len);
            let mut expected: Vec<u64> = runs.filter(|run| *run > 0).map(|run| run as u64).collect();
            expected.sort_unstable();
            let counted = sink.loss_runs.iter_recorded();
            let found: Vec<u64> = counted
                .flat_map(|run| std::iter::repeat_n(run.value_iterated_to(), run.count_at_value() as usize))
                .collect();
            prop_assert_eq!(found, expected);
        }
    }
}
