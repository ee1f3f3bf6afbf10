//! Reserve, fill, publish: several workers deliver into one guest ring without a lock.
//!
//! A position counts ring entries from the ring's start in 64 bits and never wraps. Position `p` names available entry
//! `p` and its used entry, both at slot `p` modulo the ring's size.
//!
//! 1. *Reserve*: one compare-and-swap moves `head` past the entries that a burst needs. These entries and their used
//!    slots now belong to this worker alone.
//! 2. *Fill*: the worker copies frames into the buffers. No other worker waits for it yet.
//! 3. *Publish*: the worker marks its run ready, then moves `published` past every ready run that follows, including
//!    other workers' runs. This helping means that a worker that loses its core between marking and publishing blocks
//!    no other worker.
//!
//! The used index in guest memory has 16 bits. A helper that slept while exactly 65536 entries went by would find the
//! value it expects and move the index wrongly. This cannot happen: each worker shows where its reservation begins
//! (`busy`), and a worker whose reservation crosses a multiple of [`LAP`] positions first checks that no shown
//! reservation is more than a `LAP` behind. So `head` is never more than `2 * LAP` plus one reservation past an
//! unfinished reservation, the positions that a helper has read are at most one ring (32768) older than its own
//! reservation, and `2 * 8192 + 1024 + 32768` is less than 65536.

#[cfg(loom)]
use loom::sync::atomic::{AtomicU16, AtomicU64, Ordering, fence};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering, fence};

use crossbeam::utils::CachePadded;

/// Most entries of one reservation.
pub const MAX_RESERVATION: usize = 1024;
/// Interval, in positions, at which a reserving worker checks for stragglers. See the module documentation.
pub const LAP: u64 = 8192;
const IDLE: u64 = u64::MAX;

/// One worker's state in a ring. Only that worker writes it.
#[derive(Debug)]
struct Corner {
    /// First position of the reservation that the worker is filling or publishing; `IDLE` if there is none.
    busy: AtomicU64,
}

/// Reserved, ready and published positions of one ring.
#[derive(Debug)]
pub struct Reserve {
    head: CachePadded<AtomicU64>,
    published: CachePadded<AtomicU64>,
    /// Indexed by the slot of a run's first position: the end position of that run, once it is ready.
    ready: Box<[AtomicU64]>,
    corners: Box<[CachePadded<Corner>]>,
}

/// A run of entries that belongs to one worker until it is published.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a reservation that is not published holds up every later one"]
pub struct Reservation {
    start: u64,
    end: u64,
}

impl Reservation {
    /// The first position.
    #[inline(always)]
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Number of entries.
    #[inline(always)]
    pub fn len(&self) -> usize {
        (self.end - self.start) as usize
    }

    /// Whether there are no entries; never true for a reservation from [`Reserve::try_reserve`].
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }
}

impl Reserve {
    /// Creates the state of a ring of `size` entries (a power of two) that begins at `base`, for `workers` workers.
    pub fn new(size: u16, base: u64, workers: usize) -> Reserve {
        let idle = || {
            CachePadded::new(Corner {
                busy: AtomicU64::new(IDLE),
            })
        };
        Reserve {
            head: CachePadded::new(AtomicU64::new(base)),
            published: CachePadded::new(AtomicU64::new(base)),
            ready: (0..size).map(|_| AtomicU64::new(0)).collect(),
            corners: (0..workers).map(|_| idle()).collect(),
        }
    }

    /// Whether there is only one worker. Then a reservation is an addition and a publication is a store: a locked
    /// exchange of the used index would wait each time for a cache line that the driver polls.
    #[inline(always)]
    fn is_alone(&self) -> bool {
        self.corners.len() == 1
    }

    /// The first position that is not reserved.
    #[inline(always)]
    pub fn head(&self) -> u64 {
        self.head.load(Ordering::Acquire)
    }

    /// The position up to which entries have been returned to the driver.
    #[inline(always)]
    pub fn published(&self) -> u64 {
        self.published.load(Ordering::Acquire)
    }

    /// Number of entries from `head` on that the driver has made available (up to `avail`, 16 bits): never more than
    /// the ring's size, whatever the driver writes. `None` when the driver claims to have made more entries available
    /// than were returned to it.
    #[inline(always)]
    pub fn available(&self, head: u64, avail: u16) -> Option<usize> {
        let ahead = u64::from(avail.wrapping_sub(head as u16));
        let size = self.ready.len() as u64;
        let published = self.published();
        let taken = head.saturating_sub(published);
        if ahead + taken <= size {
            return Some(ahead as usize);
        }
        self.available_while_publishing(head, ahead, published)
    }

    /// Called when the driver seems to have made too many entries available. It may have seen the used index move
    /// before `published` did, since another worker is between the two stores. So ready entries count as returned here.
    /// No more is taken than `published` allows: a mark beyond it would hide a mark that `published` has not passed
    /// yet.
    #[cold]
    fn available_while_publishing(&self, head: u64, ahead: u64, published: u64) -> Option<usize> {
        let size = self.ready.len() as u64;
        let mut given_back = published;
        for _ in 0..size {
            let slot = self.ready.get((given_back & (size - 1)) as usize)?;
            let to = slot.load(Ordering::Acquire);
            if to <= given_back {
                break;
            }
            given_back = to;
        }
        let honest = ahead + head.saturating_sub(given_back) <= size;
        honest.then(|| size.saturating_sub(head.saturating_sub(published)) as usize)
    }

    /// Takes `count` entries at `head` for `worker`. `None` if another worker was faster, or a straggler must publish
    /// first.
    #[inline(always)]
    pub fn try_reserve(&self, worker: usize, head: u64, count: usize) -> Option<Reservation> {
        let end = head + count as u64;
        if self.is_alone() {
            self.head.store(end, Ordering::Relaxed);
            return Some(Reservation { start: head, end });
        }
        let busy = &self.corners.get(worker)?.busy;
        if head / LAP != end / LAP && self.straggler(worker, head) {
            return None;
        }
        // Before the exchange: a worker that sees the new head also sees this store (the exchange's release pairs with
        // the acquire of `head`).
        busy.store(head, Ordering::Relaxed);
        let won = self
            .head
            .compare_exchange(head, end, Ordering::AcqRel, Ordering::Relaxed);
        if won.is_err() {
            busy.store(IDLE, Ordering::Relaxed);
            return None;
        }
        Some(Reservation { start: head, end })
    }

    #[cold]
    fn straggler(&self, worker: usize, head: u64) -> bool {
        self.corners.iter().enumerate().any(|(other, corner)| {
            let busy = corner.busy.load(Ordering::Acquire);
            other != worker && busy != IDLE && busy + LAP < head
        })
    }

    /// Returns the entries to the driver, and every later run that is ready. The result is the positions `(old, new)`
    /// that *this* call moved the index over, for the decision to call the driver. Each move is returned by exactly one
    /// worker.
    #[inline(always)]
    pub fn publish(
        &self,
        worker: usize,
        run: Reservation,
        used_index: &AtomicU16,
    ) -> Option<(u64, u64)> {
        if self.is_alone() {
            used_index.store(run.end as u16, Ordering::Release);
            self.published.store(run.end, Ordering::Release);
            return Some((run.start, run.end));
        }
        let mask = self.ready.len() as u64 - 1;
        let slot = |position: u64| self.ready.get((position & mask) as usize);
        slot(run.start)?.store(run.end, Ordering::Release);
        // LOAD-BEARING: between the store of our mark above and the loads of the other workers' marks below. Without
        // it, two workers can each miss the other's mark, and a finished run stays unpublished.
        fence(Ordering::SeqCst);
        let mut moved: Option<(u64, u64)> = None;
        // Each iteration either moves past a run or finds that another worker has done so: at most one iteration per
        // ring entry.
        for _ in 0..=self.ready.len() {
            let from = self.published.load(Ordering::Acquire);
            // A mark from an older lap is at most `from`: not ready.
            let to = slot(from)?.load(Ordering::Acquire);
            if to <= from {
                break;
            }
            // Guest memory first, then `published`: a helper that runs between the two finds the index already moved,
            // and its failed exchange does no harm. Release: the used entries and the frames become visible before the
            // index.
            let _ = used_index.compare_exchange(
                from as u16,
                to as u16,
                Ordering::AcqRel,
                Ordering::Relaxed,
            );
            let won =
                self.published
                    .compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed);
            if won.is_ok() {
                moved = Some((moved.map_or(from, |(old, _)| old), to));
            }
        }
        self.corners
            .get(worker)?
            .busy
            .store(IDLE, Ordering::Release);
        moved
    }
}

impl Reserve {
    /// Ends a run that needs no publishing in order: in a packed ring each used descriptor carries its own state.
    /// Returns the run's positions.
    #[inline(always)]
    pub fn finish(&self, worker: usize, run: Reservation) -> (u64, u64) {
        if !self.is_alone()
            && let Some(corner) = self.corners.get(worker)
        {
            corner.busy.store(IDLE, Ordering::Release);
        }
        (run.start, run.end)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// In whatever order the runs are finished, the index moves past finished runs only, past each exactly once,
        /// and finally past all of them.
        #[test]
        fn runs_are_published_in_order_whatever_order_they_finish_in(
            base: u16, sizes in proptest::collection::vec(1usize..5, 1..8), seed: u64,
        ) {
            let ring = Reserve::new(64, base.into(), 8);
            let index = AtomicU16::new(base);
            let mut runs: Vec<(usize, Reservation)> = sizes.iter().enumerate()
                .map(|(w, n)| (w, ring.try_reserve(w, ring.head(), *n).unwrap())).collect();
            let end = ring.head();
            let (mut rng, mut covered) = (seed, 0);
            while !runs.is_empty() {
                rng = rng.wrapping_mul(6364136223846793005).wrapping_add(1);
                let (worker, run) = runs.swap_remove((rng >> 33) as usize % runs.len());
                if let Some((old, new)) = ring.publish(worker, run, &index) { covered += new - old; }
                let first_open = runs.iter().map(|(_, r)| r.start()).min().unwrap_or(end);
                prop_assert_eq!(ring.published(), first_open);
                prop_assert_eq!(index.load(Ordering::Relaxed), first_open as u16);
            }
            prop_assert_eq!(covered, end - u64::from(base));
        }
    }

    #[test]
    fn a_driver_that_offers_more_than_the_ring_holds_is_found_out() {
        let ring = Reserve::new(8, 0, 2);
        assert_eq!(ring.available(0, 8), Some(8));
        assert_eq!(ring.available(0, 9), None);
        let run = ring.try_reserve(0, 0, 3).unwrap();
        assert_eq!(ring.available(3, 8), Some(5));
        // Not returned yet, so making them available again is a fault.
        assert_eq!(ring.available(3, 9), None);
        let index = AtomicU16::new(0);
        assert_eq!(ring.publish(0, run, &index), Some((0, 3)));
        assert_eq!(ring.available(3, 11), Some(8));
    }

    /// The used index has 16 bits: no worker may lap a worker that sleeps while publishing.
    #[test]
    fn a_sleeping_worker_is_never_lapped() {
        let ring = Reserve::new(1024, 0, 2);
        let index = AtomicU16::new(0);
        let sleeper = ring.try_reserve(1, 0, 1).unwrap();
        // It has marked its run ready, has not published anything, and sleeps before it clears `busy`.
        ring.ready[0].store(1, Ordering::Release);
        let mut refused = false;
        for _ in 0..100_000 {
            let Some(run) = ring.try_reserve(0, ring.head(), 7) else {
                refused = true;
                break;
            };
            ring.publish(0, run, &index);
        }
        assert!(refused);
        assert!(ring.head() < 3 * LAP, "{}", ring.head());
        ring.publish(1, sleeper, &index);
        assert!(ring.try_reserve(0, ring.head(), 7).is_some());
    }

    /// The same with concurrent threads: every entry is owned once, and the index only moves forward.
    #[test]
    fn threads_share_a_ring_without_losing_an_entry() {
        const ENTRIES: u64 = 200_000;
        let ring = Reserve::new(256, 65_000, 3);
        let index = AtomicU16::new(65_000);
        let owned: Vec<AtomicU16> = (0..ENTRIES + 64).map(|_| AtomicU16::new(0)).collect();
        std::thread::scope(|scope| {
            for worker in 0..3 {
                let (ring, index, owned) = (&ring, &index, &owned);
                scope.spawn(move || {
                    loop {
                        let head = ring.head();
                        if head - 65_000 >= ENTRIES {
                            return;
                        }
                        let free = 256 - head.saturating_sub(ring.published()).min(256) as usize;
                        let n = free.min(1 + worker * 5);
                        if n == 0 {
                            std::thread::yield_now();
                            continue;
                        }
                        if let Some(run) = ring.try_reserve(worker, head, n) {
                            for p in run.start()..run.start() + run.len() as u64 {
                                owned[(p - 65_000) as usize].fetch_add(1, Ordering::Relaxed);
                            }
                            ring.publish(worker, run, index);
                        }
                    }
                });
            }
        });
        let end = ring.head();
        assert_eq!(ring.published(), end);
        assert_eq!(index.load(Ordering::Relaxed), end as u16);
        let taken = owned.iter().take((end - 65_000) as usize);
        assert!(taken.into_iter().all(|n| n.load(Ordering::Relaxed) == 1));
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;

    /// Two workers deliver at once; a third thread reads as the driver would. Under every interleaving: each entry is
    /// owned once, a used entry is written before the index passes it, the index never moves back, and when both
    /// workers are done everything is published.
    #[test]
    fn two_workers_publish_everything_and_the_index_never_lies() {
        // At most three preemptions, at any points: a full search of this model takes hours, and every known bug of
        // this kind needs at most two.
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(|| {
            let ring = Arc::new(Reserve::new(4, 0, 2));
            let index = Arc::new(AtomicU16::new(0));
            let used: Arc<Vec<AtomicU64>> = Arc::new((0..4).map(|_| AtomicU64::new(0)).collect());
            let workers: Vec<_> = (0..2)
                .map(|worker| {
                    let (ring, index, used) = (ring.clone(), index.clone(), used.clone());
                    loom::thread::spawn(move || {
                        for _ in 0..2 {
                            if let Some(run) = ring.try_reserve(worker, ring.head(), 1) {
                                used[run.start() as usize].fetch_add(1, Ordering::Relaxed);
                                return ring.publish(worker, run, &index).map_or(0, |(o, n)| n - o);
                            }
                        }
                        0
                    })
                })
                .collect();
            let seen = index.load(Ordering::Acquire);
            for entry in 0..seen {
                assert_eq!(used[usize::from(entry)].load(Ordering::Relaxed), 1);
            }
            assert!(index.load(Ordering::Acquire) >= seen);
            let moved: u64 = workers.into_iter().map(|w| w.join().unwrap()).sum();
            assert_eq!(ring.published(), ring.head());
            assert_eq!(index.load(Ordering::Acquire), ring.head() as u16);
            assert_eq!(moved, ring.head());
        });
    }
}
