//! What is counted. Each counter has one writer, a worker, so counting is a plain add with no
//! lock; the control thread reads whenever it likes and sums over workers.
//!
//! The ledger, exact whenever nothing is in flight:
//! for every port, `rx_frames + flood_copies + segment_copies = delivered_copies + dropped_copies`; and in all,
//! delivered copies are the `tx_frames` of all ports and dropped copies the drops of all reasons.

use std::sync::atomic::{AtomicU64, Ordering};

use crosspoint_packet::DropReason;

use crate::{BurstSizes, Latency, Turns};

/// A counter with one writer.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

/// As it is at this moment.
impl Clone for Counter {
    fn clone(&self) -> Counter {
        Counter(AtomicU64::new(self.get()))
    }
}

impl Counter {
    /// Adds `n`. For the one writer: this is no atomic addition.
    #[inline(always)]
    pub fn add(&self, n: u64) {
        self.0.store(
            self.0.load(Ordering::Relaxed).wrapping_add(n),
            Ordering::Relaxed,
        );
    }

    /// Makes it `n`, if that is more. For the one writer.
    #[inline(always)]
    pub fn raise(&self, n: u64) {
        if n > self.0.load(Ordering::Relaxed) {
            self.0.store(n, Ordering::Relaxed);
        }
    }

    /// The value. For anybody.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One queue of one port, as one worker sees it.
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
    /// Segments that large frames taken from here were cut into, for ports that do not take
    /// such, less one for each copy.
    pub segment_copies: Counter,
    /// Copies of frames taken from here that went on within a large frame, joined to the one
    /// before them, for ports that take such.
    pub joined_copies: Counter,
    /// Copies of frames taken from here that were delivered, to any port.
    pub delivered_copies: Counter,
    /// Copies of frames taken from here that were dropped, for any reason, at any port.
    pub dropped_copies: Counter,
    /// Bursts taken from the port; their frames are `rx_frames`.
    pub rx_bursts: BurstSizes,
    /// Bursts delivered to the port; their copies are `tx_frames`.
    pub tx_bursts: BurstSizes,
    /// Cycles that its worker spent on these bursts, looking for the next one included.
    pub cycles: Counter,
    /// Poll iterations in which the queue was not read, since its port was ahead of others that wanted their share.
    pub held_back: Counter,
    /// Times that the guest's kick woke the worker.
    pub kicks: Counter,
    /// Times that the guest was called.
    pub calls: Counter,
    /// Drops, by reason: those of [`Side::Ingress`](crosspoint_packet::Side) of frames taken
    /// from here, those of `Egress` of copies that were going here.
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

/// All queues of one port. Outlives the guests that come and go.
#[derive(Debug)]
pub struct PortCounters {
    queues: usize,
    by_worker: Box<[QueueCounters]>,
}

impl PortCounters {
    /// Counters of a port with `queues` queues, in a switch with `workers` workers.
    pub fn new(workers: usize, queues: usize) -> PortCounters {
        let queues = queues.max(1);
        let by_worker = (0..workers * queues)
            .map(|_| QueueCounters::default())
            .collect();
        PortCounters { queues, by_worker }
    }

    /// The same counts, with room for `queues` queues, if those are more. Nobody may count in these any more.
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

    /// How many queues are counted.
    pub fn queues(&self) -> usize {
        self.queues
    }

    /// What `worker` counts of `queue`. A queue there is none of counts as the last.
    #[inline(always)]
    pub fn at(&self, worker: usize, queue: u16) -> &QueueCounters {
        let queue = usize::from(queue).min(self.queues - 1);
        let index = (worker * self.queues + queue).min(self.by_worker.len() - 1);
        &self.by_worker[index]
    }

    /// What every worker has counted of `queue`.
    pub fn of_queue(&self, queue: usize) -> impl Iterator<Item = &QueueCounters> {
        self.by_worker.iter().skip(queue).step_by(self.queues)
    }

    /// Sum over workers of one counter of `queue`.
    pub fn sum(&self, queue: usize, counter: impl Fn(&QueueCounters) -> &Counter) -> u64 {
        self.of_queue(queue)
            .map(|of_worker| counter(of_worker).get())
            .sum()
    }
}

/// What a worker counts of itself.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct WorkerCounters {
    /// Cycles of iterations that found work.
    pub busy_cycles: Counter,
    /// Of those: for other workers, whose frames leave through its NIC queues.
    pub others_cycles: Counter,
    /// Cycles of iterations that found none.
    pub idle_cycles: Counter,
    /// Cycles asleep.
    pub sleep_cycles: Counter,
    /// Turns of the loop, and how long each took: so long a frame waited at most until it was noticed. All of them
    /// together took `busy_cycles` and `idle_cycles`.
    pub turns: Turns,
    /// Times it went to sleep.
    pub sleeps: Counter,
    /// Bursts handled.
    pub bursts: Counter,
    /// The most that one of them has asked for, in units of [`Work`](crosspoint_frame::Work).
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
        // Never fewer.
        assert_eq!(before.with_queues(2, 1).sum(1, |c| &c.rx_frames), 14);
    }
}
