//! Counters. Each counter has one writer, a worker, so counting is a plain add without a lock; the control thread can
//! read at any time, and sums over workers.
//!
//! The ledger, exact whenever nothing is in flight:
//! for every port, `rx_frames + flood_copies + segment_copies + mirror_copies = delivered_copies + dropped_copies`; and in all,
//! delivered copies are the `tx_frames` of all ports and dropped copies the drops of all reasons.
//!
//! `counter_lists.rs` has the list of the counters.

use std::collections::BTreeMap;
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

/// A counter for each [`DropReason`], at the reason's number.
#[derive(Clone, Debug)]
pub struct DropCounters([Counter; DropReason::COUNT]);

impl Default for DropCounters {
    fn default() -> DropCounters {
        DropCounters(std::array::from_fn(|_| Counter::default()))
    }
}

impl std::ops::Deref for DropCounters {
    type Target = [Counter; DropReason::COUNT];

    #[inline(always)]
    fn deref(&self) -> &[Counter; DropReason::COUNT] {
        &self.0
    }
}

macro_rules! queue_counters_struct {
    (
        traffic { $($(#[doc = $traffic_doc:literal])+ $traffic:ident as $_public:ident;)+ }
        ledger { $($(#[doc = $ledger_doc:literal])+ $ledger:ident;)+ }
        events { $($(#[doc = $event_doc:literal])+ $event:ident;)+ }
        time { $($(#[doc = $time_doc:literal])+ $time:ident;)+ }
    ) => {
        /// One worker's counters of one queue of one port: those of [`queue_counters`](crate::queue_counters), and what is
        /// no single number.
        #[derive(Clone, Debug, Default)]
        #[repr(align(128))]
        pub struct QueueCounters {
            $($(#[doc = $traffic_doc])+ pub $traffic: Counter,)+
            $($(#[doc = $ledger_doc])+ pub $ledger: Counter,)+
            /// Bursts taken from the port; their frames are `rx_frames`.
            pub rx_bursts: BurstSizes,
            /// Bursts delivered to the port; their copies are `tx_frames`.
            pub tx_bursts: BurstSizes,
            $($(#[doc = $time_doc])+ pub $time: Counter,)+
            $($(#[doc = $event_doc])+ pub $event: Counter,)+
            /// Drops by reason: reasons of [`Side::Ingress`](crosspoint_packet::Side) count frames taken from here, those of
            /// `Egress` count copies for this queue.
            pub drops: DropCounters,
            /// Time from reading a guest's descriptor to completing it, cycles.
            pub completion: Latency,
        }
    };
}
crate::queue_counters!(queue_counters_struct);

macro_rules! queue_counters_by_name {
    (
        traffic { $($(#[doc = $traffic_doc:literal])+ $traffic:ident as $_public:ident;)+ }
        ledger { $($(#[doc = $ledger_doc:literal])+ $ledger:ident;)+ }
        events { $($(#[doc = $event_doc:literal])+ $event:ident;)+ }
        time { $($(#[doc = $time_doc:literal])+ $time:ident;)+ }
    ) => {
        impl QueueCounters {
            /// The counters that are single numbers, each with its name; drops have their reason's label.
            fn named(&self) -> impl Iterator<Item = (&'static str, &Counter)> {
                let single = [
                    $((stringify!($traffic), &self.$traffic),)+
                    $((stringify!($ledger), &self.$ledger),)+
                    $((stringify!($event), &self.$event),)+
                    $((stringify!($time), &self.$time),)+
                ];
                let drops = DropReason::ALL.iter().map(|reason| reason.label()).zip(self.drops.iter());
                single.into_iter().chain(drops)
            }
        }
    };
}
crate::queue_counters!(queue_counters_by_name);

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

    /// Returns, by queue, the counters that are not zero, by name, over all workers: for another process.
    pub fn by_name(&self) -> Vec<BTreeMap<String, u64>> {
        let of_queue = |queue| {
            let mut sums = BTreeMap::new();
            for (name, counter) in self.of_queue(queue).flat_map(QueueCounters::named) {
                if counter.get() > 0 {
                    *sums.entry(name.to_owned()).or_default() += counter.get();
                }
            }
            sums
        };
        (0..self.queues).map(of_queue).collect()
    }

    /// Adds counts of another process, as [`by_name`](Self::by_name) gives them, to those of `worker`, which must not count
    /// meanwhile. Unknown names are ignored; queues beyond the last are counted with it.
    pub fn add_by_name(&self, worker: usize, counted: &[BTreeMap<String, u64>]) {
        for (queue, sums) in (0u16..).zip(counted) {
            for (name, counter) in self.at(worker, queue).named() {
                counter.add(sums.get(name).copied().unwrap_or(0));
            }
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

macro_rules! worker_counters_struct {
    (
        cycles { $($(#[doc = $cycles_doc:literal])+ $cycles:ident = $_state:literal;)+ }
        events { $($(#[doc = $event_doc:literal])+ $event:ident;)+ }
        maxima { $($(#[doc = $maximum_doc:literal])+ $maximum:ident;)+ }
        moves { $($_by_control_thread:tt)+ }
    ) => {
        /// A worker's own counters: those of [`worker_counters`](crate::worker_counters) that it counts, and what only the
        /// switch itself reads.
        #[derive(Debug, Default)]
        #[repr(align(128))]
        pub struct WorkerCounters {
            $($(#[doc = $cycles_doc])+ pub $cycles: Counter,)+
            /// The part of `busy_cycles` spent on frames of other workers that leave through its NIC queues.
            pub others_cycles: Counter,
            /// Number and length of poll iterations. A frame waits at most one iteration until it is noticed. All of them
            /// together took `busy_cycles` plus `idle_cycles`.
            pub turns: Turns,
            $($(#[doc = $event_doc])+ pub $event: Counter,)+
            $($(#[doc = $maximum_doc])+ pub $maximum: Counter,)+
        }
    };
}
crate::worker_counters!(worker_counters_struct);

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

    /// What is counted for each plain burst lies in two cache lines, wherever the list has it.
    #[test]
    fn counters_of_plain_bursts_share_two_cache_lines() {
        let line = |offset: usize| offset / 64;
        let first = line(std::mem::offset_of!(QueueCounters, rx_frames));
        let last = line(std::mem::offset_of!(QueueCounters, cycles));
        assert_eq!(last - first, 1);
        assert_eq!(align_of::<QueueCounters>(), 128);
        assert_eq!(align_of::<WorkerCounters>(), 128);
    }
}
