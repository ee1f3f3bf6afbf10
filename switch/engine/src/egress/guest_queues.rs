//! A guest's receive queues, and the choice of the queue for a flow.
//!
//! Not every queue that a front end enables is used by a driver: Cloud Hypervisor enables all, and a driver of one queue
//! fills one. So frames are spread over queues that have *joined*: those where the driver has offered a buffer. A queue
//! that joins takes over flows from other queues. Each flow moves when the driver has taken all frames delivered to its
//! old queue, so that it keeps its order.
//!
//! The upper bits of a flow's hash give its [bucket](BUCKETS). A worker is *settled* when all its buckets are at their
//! target queues; then choosing a queue is one multiplication. Until then a table gives each bucket's queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use crossbeam::utils::CachePadded;
use crosspoint_vring::{GuestRx, MAX_QUEUE_PAIRS};

/// Number of buckets that flows are grouped into by their hash: a power of two.
const BUCKETS: u32 = 256;
/// Number of hash values per bucket.
const BUCKET: u32 = u32::MAX / BUCKETS + 1;
/// Instead of a pair's number: no frame of the bucket has been sent yet.
const NOWHERE: u8 = u8::MAX;

/// Queue pair number of each bucket. Shared by all workers, since a stream that moves to another worker takes its flows
/// with it. Workers write it while they are not settled; the control thread writes it while they do not use it.
type Table = [AtomicU8; BUCKETS as usize];

/// One worker's progress in moving buckets.
#[derive(Default)]
struct Progress {
    /// The queues that all its buckets are spread over, a bit for each; 0 while it is not settled.
    settled: AtomicU32,
    /// The queues that it is moving them to,
    goal: AtomicU32,
    /// the next bucket to check, and how many buckets before it are at their target.
    at: AtomicU32,
    done: AtomicU32,
}

/// A guest's receive queues, at least one.
pub struct GuestQueues {
    rings: Box<[Arc<GuestRx>]>,
    /// Queue pair number of each ring.
    pairs: Box<[u8]>,
    /// Queues where the driver has offered buffers, a bit for each. Bits are only added.
    joined: AtomicU32,
    progress: Box<[CachePadded<Progress>]>,
    /// Kept when the set of queues is replaced.
    table: Arc<Table>,
}

/// Queues to spread flows over.
#[derive(Clone, Copy)]
pub(crate) struct Spread {
    mask: u32,
    count: u32,
    /// Whether the mask consists of the lowest bits.
    dense: bool,
}

impl Spread {
    #[inline(always)]
    fn new(mask: u32) -> Spread {
        let count = mask.count_ones();
        Spread {
            mask,
            count,
            dense: mask.trailing_ones() == count,
        }
    }

    /// Returns the queue for a flow with this hash.
    #[inline(always)]
    pub(crate) fn queue(self, hash: u32) -> u16 {
        self.queue_of(hash / BUCKET)
    }

    #[inline(always)]
    fn queue_of(self, bucket: u32) -> u16 {
        // The high bits choose, without a division (Lemire 2016).
        let nth = bucket * self.count / BUCKETS;
        match self.dense {
            true => nth as u16,
            false => nth_bit(self.mask, nth),
        }
    }
}

#[cold]
fn nth_bit(mask: u32, nth: u32) -> u16 {
    let mut rest = mask;
    for _ in 0..nth {
        rest &= rest.wrapping_sub(1);
    }
    // A mask has more bits than `nth`.
    rest.trailing_zeros() as u16 % MAX_QUEUE_PAIRS
}

impl GuestQueues {
    /// Creates the queues from these rings, each with its queue pair number, for `workers` workers. With `before`, flows
    /// are taken to be on the queues that it had them on; otherwise on none.
    ///
    /// Rings beyond [`MAX_QUEUE_PAIRS`] get no frames.
    pub fn new(
        rings: Vec<(u8, Arc<GuestRx>)>,
        workers: usize,
        before: Option<&GuestQueues>,
    ) -> GuestQueues {
        let (pairs, rings): (Vec<u8>, Vec<Arc<GuestRx>>) =
            rings.into_iter().take(MAX_QUEUE_PAIRS.into()).unzip();
        let bits = (0..).zip(&rings).filter(|(_, ring)| ring.has_begun());
        let joined = bits.fold(0, |mask, (index, _)| mask | 1 << index);
        let table = match before {
            Some(before) => before.table.clone(),
            None => Arc::new(std::array::from_fn(|_| AtomicU8::new(NOWHERE))),
        };
        if let Some([only]) = before.map(|before| &*before.pairs) {
            // With only one queue, no worker wrote the table.
            let all = table.iter();
            all.for_each(|bucket| bucket.store(*only, Ordering::Relaxed));
        }
        let queues = GuestQueues {
            rings: rings.into(),
            pairs: pairs.into(),
            joined: AtomicU32::new(joined),
            progress: (0..workers).map(|_| CachePadded::default()).collect(),
            table,
        };
        if before.is_none() {
            queues.settle_all();
        }
        queues
    }

    /// Settles all workers: no frame has been sent, so every bucket can be put at its target.
    fn settle_all(&self) {
        let spread = self.spread();
        for (number, bucket) in (0..).zip(self.table.iter()) {
            bucket.store(self.pair(spread.queue_of(number)), Ordering::Relaxed);
        }
        let settled = self.progress.iter().map(|progress| &progress.settled);
        settled.for_each(|settled| settled.store(spread.mask, Ordering::Relaxed));
    }

    /// Returns the number of queues.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.rings.len()
    }

    /// Returns whether there are no queues.
    pub fn is_empty(&self) -> bool {
        self.rings.is_empty()
    }

    /// Returns queue number `queue`.
    #[inline(always)]
    pub fn get(&self, queue: usize) -> Option<&Arc<GuestRx>> {
        self.rings.get(queue)
    }

    fn pair(&self, queue: u16) -> u8 {
        let pair = self.pairs.get(usize::from(queue));
        pair.copied().unwrap_or(NOWHERE)
    }

    /// Returns the target queues of flows: those that have joined, or all while none has.
    #[inline(always)]
    pub(crate) fn spread(&self) -> Spread {
        let all = (1 << self.rings.len()) - 1;
        match self.joined.load(Ordering::Relaxed) {
            0 => Spread::new(all),
            joined => Spread::new(joined),
        }
    }

    /// Returns the same if all flows of a worker are at their targets; otherwise each flow is [placed](Self::place)
    /// individually.
    #[inline(always)]
    pub(crate) fn settled(&self, worker: usize) -> Option<Spread> {
        let spread = self.spread();
        let progress = self.progress.get(worker)?;
        (progress.settled.load(Ordering::Relaxed) == spread.mask).then_some(spread)
    }

    /// Checks whether a queue that has not joined has its first buffer now. Only two queues are checked: the first one,
    /// since drivers use them in order, and one other in rotation. The guest writes their cache lines, so each check may
    /// miss. Returns whether a queue joined.
    #[inline(always)]
    pub(crate) fn look(&self, turn: usize) -> bool {
        let joined = self.joined.load(Ordering::Relaxed);
        joined.count_ones() as usize != self.rings.len() && self.look_for_new(joined, turn)
    }

    #[inline(never)]
    fn look_for_new(&self, joined: u32, turn: usize) -> bool {
        let next = [joined.trailing_ones() as usize, turn % self.rings.len()];
        let mut new = 0;
        for index in next.into_iter().filter(|index| joined & 1 << index == 0) {
            if self.get(index).is_some_and(|ring| ring.has_begun()) {
                new |= 1 << index;
            }
        }
        if new != 0 {
            self.joined.fetch_or(new, Ordering::Relaxed);
        }
        new != 0
    }

    /// Returns the current queue of a flow with this hash, while not all flows are at their targets.
    #[cold]
    #[inline(never)]
    pub(crate) fn place(&self, hash: u32) -> u16 {
        let place = self.table.get((hash / BUCKET) as usize);
        let current = place.and_then(|place| self.index_of(place.load(Ordering::Relaxed)));
        let Some(current) = current else {
            // Its queue was removed, with all frames in it.
            let belongs = self.spread().queue(hash);
            if let Some(place) = place {
                place.store(self.pair(belongs), Ordering::Relaxed);
            }
            return belongs;
        };
        current
    }

    fn index_of(&self, pair: u8) -> Option<u16> {
        let index = self.pairs.iter().position(|known| *known == pair);
        index.map(|index| index as u16)
    }

    /// Moves a worker's buckets to their targets, up to the first one that must wait: for the driver, or because the
    /// burst has undelivered frames for its current queue, for which `is_pending` returns `true`.
    #[cold]
    #[inline(never)]
    pub(crate) fn advance(&self, worker: usize, is_pending: impl Fn(u16) -> bool) {
        let Some(progress) = self.progress.get(worker) else {
            return;
        };
        let spread = self.spread();
        if progress.goal.swap(spread.mask, Ordering::Relaxed) != spread.mask {
            // The table will differ from what was settled before.
            progress.settled.store(0, Ordering::Relaxed);
            progress.done.store(0, Ordering::Relaxed);
        }
        let mut at = progress.at.load(Ordering::Relaxed) % BUCKETS;
        let mut done = progress.done.load(Ordering::Relaxed);
        while done < BUCKETS {
            let is_there = self.bring(at, spread.queue_of(at), &is_pending);
            at = (at + 1) % BUCKETS;
            // The next call continues with later buckets, and checks this one again.
            done = if is_there { done + 1 } else { 0 };
            if !is_there {
                break;
            }
        }
        progress.at.store(at, Ordering::Relaxed);
        progress.done.store(done, Ordering::Relaxed);
        if done == BUCKETS {
            progress.settled.store(spread.mask, Ordering::Relaxed);
        }
    }

    /// Moves a bucket to its target queue; `false` while the driver has not taken all frames from its current queue.
    fn bring(&self, bucket: u32, belongs: u16, is_pending: &impl Fn(u16) -> bool) -> bool {
        let Some(place) = self.table.get(bucket as usize) else {
            return true;
        };
        let current = self.index_of(place.load(Ordering::Relaxed));
        if let Some(current) = current.filter(|current| *current != belongs) {
            let ring = self.get(current.into());
            if is_pending(current) || !ring.is_none_or(|ring| ring.is_taken()) {
                return false;
            }
        }
        if current != Some(belongs) {
            place.store(self.pair(belongs), Ordering::Relaxed);
        }
        true
    }
}
