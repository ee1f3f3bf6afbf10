//! Counters. Each counter has one writer, a worker, so counting is a plain add without a lock; the control thread can
//! read at any time, and sums over workers.
//!
//! The ledger, exact whenever nothing is in flight:
//! for every port, `rx_frames + flood_copies + segment_copies = delivered_copies + dropped_copies`; and in all,
//! delivered copies are the `tx_frames` of all ports and dropped copies the drops of all reasons.

use std::sync::atomic::{AtomicU64, Ordering};

use crosspoint_packet::DropReason;

use crate::observe::BurstSizes;
use crate::observe::Latency;
use crate::observe::Turns;

/// A counter with one writer.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

/// Copies the current value.
impl Clone for Counter {
    fn clone(&self) -> Counter {
        Counter(AtomicU64::new(self.get()))
    }
}

impl Counter {
    /// Adds `n`. For the single writer only: this is not an atomic addition.
    #[inline(always)]
    pub fn add(&self, n: u64) {
        self.0.store(
            self.0.load(Ordering::Relaxed).wrapping_add(n),
            Ordering::Relaxed,
        );
    }

    /// Sets it to `n` if that is more. For the single writer only.
    #[inline(always)]
    pub fn raise(&self, n: u64) {
        if n > self.0.load(Ordering::Relaxed) {
            self.0.store(n, Ordering::Relaxed);
        }
    }

    /// Returns the value. Any thread may call it.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One worker's counters of one queue of one port.
#[derive(Clone, Debug, Default)]
#[repr(align(128))]
pub struct QueueCounters {
    /// Frames taken from the port.
    pub rx_frames: Counter,
    /// Their bytes.
    pub rx_bytes: Counter,
    /// Copies delivered to the port.
    pub tx_frames: Counter,
    /// Their bytes.
    pub tx_bytes: Counter,
    /// Copies that flooding made of frames taken from here, less one for each frame.
    pub flood_copies: Counter,
    /// Segments that large frames taken from here were cut into, for ports that do not take large frames, less one for
    /// each copy.
    pub segment_copies: Counter,
    /// Copies of frames taken from here that were joined to the frame before them, for ports that take large frames.
    pub joined_copies: Counter,
    /// Copies of frames taken from here that were delivered, to any port.
    pub delivered_copies: Counter,
    /// Copies of frames taken from here that were dropped, for any reason, at any port.
    pub dropped_copies: Counter,
    /// Bursts taken from the port; their frames are `rx_frames`.
    pub rx_bursts: BurstSizes,
    /// Bursts delivered to the port; their copies are `tx_frames`.
    pub tx_bursts: BurstSizes,
    /// Cycles that the worker spent on these bursts, including polling for the next one.
    pub cycles: Counter,
    /// Poll iterations in which the queue was not read because its port was ahead of other ports that wanted their share.
    pub held_back: Counter,
    /// Times that the guest's kick woke the worker.
    pub kicks: Counter,
    /// Times that the guest was called.
    pub calls: Counter,
    /// Drops by reason: reasons of [`Side::Ingress`](crosspoint_packet::Side) count frames taken from here, those of
    /// `Egress` count copies for this queue.
    pub drops: [Counter; DropReason::COUNT],
    /// Time from reading a guest's descriptor to completing it, cycles.
    pub completion: Latency,
}

impl QueueCounters {
    /// Counts `n` drops for `reason`.
    #[inline(always)]
    pub fn drop(&self, reason: DropReason, n: u32) {
        if n > 0
            && let Some(counter) = self.drops.get(reason as usize)
        {
            counter.add(u64::from(n));
        }
    }
}

/// Counters of all queues of one port. Kept while guests come and go.
#[derive(Debug)]
pub struct PortCounters {
    queues: usize,
    by_worker: Box<[QueueCounters]>,
}

impl PortCounters {
    /// Creates counters of a port with `queues` queues, in a switch with `workers` workers.
    pub fn new(workers: usize, queues: usize) -> PortCounters {
        let queues = queues.max(1);
        let by_worker = (0..workers * queues)
            .map(|_| QueueCounters::default())
            .collect();
        PortCounters { queues, by_worker }
    }

    /// Returns a copy with room for `queues` queues, if these are more. The original must not be written any more.
    pub fn with_queues(&self, workers: usize, queues: usize) -> PortCounters {
        let queues = queues.max(self.queues);
        let known = self.by_worker.chunks(self.queues);
        let counted = known.map(Some).chain(std::iter::repeat(None)).take(workers);
        let by_worker = counted.flat_map(|of_worker| {
            let of_worker = of_worker.unwrap_or_default().iter().cloned();
            let more = std::iter::repeat_with(QueueCounters::default);
            of_worker.chain(more).take(queues)
        });
        PortCounters {
            queues,
            by_worker: by_worker.collect(),
        }
    }

    /// Returns the number of queues.
    pub fn queues(&self) -> usize {
        self.queues
    }

    /// Returns the counters of `worker` for `queue`. An out-of-range queue counts as the last one.
    #[inline(always)]
    pub fn at(&self, worker: usize, queue: u16) -> &QueueCounters {
        let queue = usize::from(queue).min(self.queues - 1);
        let index = (worker * self.queues + queue).min(self.by_worker.len() - 1);
        &self.by_worker[index]
    }

    /// Returns every worker's counters of `queue`.
    pub fn of_queue(&self, queue: usize) -> impl Iterator<Item = &QueueCounters> {
        self.by_worker.iter().skip(queue).step_by(self.queues)
    }

    /// Returns the sum over workers of one counter of `queue`.
    pub fn sum(&self, queue: usize, counter: impl Fn(&QueueCounters) -> &Counter) -> u64 {
        self.of_queue(queue)
            .map(|of_worker| counter(of_worker).get())
            .sum()
    }
}

/// A worker's own counters.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct WorkerCounters {
    /// Cycles of iterations that found work.
    pub busy_cycles: Counter,
    /// The part of `busy_cycles` spent on frames of other workers that leave through its NIC queues.
    pub others_cycles: Counter,
    /// Cycles of iterations that found no work.
    pub idle_cycles: Counter,
    /// Cycles asleep.
    pub sleep_cycles: Counter,
    /// Number and length of poll iterations. A frame waits at most one iteration until it is noticed. All of them
    /// together took `busy_cycles` plus `idle_cycles`.
    pub turns: Turns,
    /// Number of times that it went to sleep.
    pub sleeps: Counter,
    /// Bursts processed.
    pub bursts: Counter,
    /// The largest cost of one burst, in units of [`Work`](crosspoint_frame::Work).
    pub burst_work_max: Counter,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_stay_where_they_are_when_there_are_more_queues() {
        let before = PortCounters::new(2, 2);
        for (worker, queue) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let counters = before.at(worker, queue);
            counters
                .rx_frames
                .add(1 + 10 * worker as u64 + u64::from(queue));
            counters.completion.record(1000, 7);
            counters.rx_bursts.record(3);
        }
        let after = before.with_queues(2, 5);
        assert_eq!(after.queues(), 5);
        for (worker, queue) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let (old, new) = (before.at(worker, queue), after.at(worker, queue));
            assert_eq!(old.rx_frames.get(), new.rx_frames.get());
            assert_eq!(new.completion.sum(), 7000);
            assert_eq!(new.rx_bursts.count(), 1);
        }
        assert_eq!(after.sum(4, |c| &c.rx_frames), 0);
        assert_eq!(after.sum(0, |c| &c.rx_frames), 12);
        // The number of queues never shrinks.
        assert_eq!(before.with_queues(2, 1).sum(1, |c| &c.rx_frames), 14);
    }
}
