//! A guest's receive queues, and which of them a flow goes to.
//!
//! Not every queue that a front end enables has a driver: Cloud Hypervisor enables all, and a driver of one queue fills one.
//! So frames are spread over those that have *joined*: where the driver has offered a buffer. A queue that joins takes flows
//! from others. Each of these goes over at a moment when the driver has taken all that was delivered to the queue it comes
//! from, so that it keeps its order.
//!
//! Flows go by the upper bits of their hash: a [bucket](BUCKETS) each. Where all buckets of a worker are where they belong
//! it is *settled*, and a choice is a multiplication; until then there is a table of where its buckets are.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use crossbeam::utils::CachePadded;
use crosspoint_vring::{GuestRx, MAX_QUEUE_PAIRS};

/// Flows go together by so many values of their hash: a power of two.
const BUCKETS: u32 = 256;
/// So many values are one bucket's.
const BUCKET: u32 = u32::MAX / BUCKETS + 1;
/// In place of a pair's number: no frame of the bucket has gone anywhere.
const NOWHERE: u8 = u8::MAX;

/// Where buckets are, by the number of the queue pair. One for all workers, since a stream that goes to another worker takes
/// its flows with it. Written by workers while they are not settled, or by the control thread while they do not need it.
type Table = [AtomicU8; BUCKETS as usize];

/// How far one worker has come.
#[derive(Default)]
struct Progress {
    /// The queues that all its buckets are spread over, a bit for each; 0 for none.
    settled: AtomicU32,
    /// Those that it is spreading them over,
    goal: AtomicU32,
    /// the next bucket to look at for that, and how many before it are where they belong.
    at: AtomicU32,
    done: AtomicU32,
}

/// A guest's receive queues; at least one.
pub struct GuestQueues {
    rings: Box<[Arc<GuestRx>]>,
    /// The queue pair that each is of.
    pairs: Box<[u8]>,
    /// Those whose driver has offered buffers, a bit for each. Bits are only added.
    joined: AtomicU32,
    progress: Box<[CachePadded<Progress>]>,
    /// Outlives a set of queues.
    table: Arc<Table>,
}

/// Queues to spread flows over.
#[derive(Clone, Copy)]
pub(crate) struct Spread {
    mask: u32,
    count: u32,
    /// Whether they are the first ones.
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

    /// The queue for a flow with this hash.
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
    /// These rings, each with the number of its queue pair, for `workers` workers. Where `before` was there, flows are taken
    /// to be where that had them; else nowhere.
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
            // Nobody wrote it while there was but one queue.
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

    /// No frame has gone anywhere, so all buckets are where they belong.
    fn settle_all(&self) {
        let spread = self.spread();
        for (number, bucket) in (0..).zip(self.table.iter()) {
            bucket.store(self.pair(spread.queue_of(number)), Ordering::Relaxed);
        }
        let settled = self.progress.iter().map(|progress| &progress.settled);
        settled.for_each(|settled| settled.store(spread.mask, Ordering::Relaxed));
    }

    /// How many there are.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.rings.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rings.is_empty()
    }

    /// Queue number `queue`.
    #[inline(always)]
    pub fn get(&self, queue: usize) -> Option<&Arc<GuestRx>> {
        self.rings.get(queue)
    }

    fn pair(&self, queue: u16) -> u8 {
        let pair = self.pairs.get(usize::from(queue));
        pair.copied().unwrap_or(NOWHERE)
    }

    /// The queues that flows belong to: those that have joined, and while there are none, all.
    #[inline(always)]
    pub(crate) fn spread(&self) -> Spread {
        let all = (1 << self.rings.len()) - 1;
        match self.joined.load(Ordering::Relaxed) {
            0 => Spread::new(all),
            joined => Spread::new(joined),
        }
    }

    /// The same, if all flows of a worker are there; else each is [placed](Self::place) by itself.
    #[inline(always)]
    pub(crate) fn settled(&self, worker: usize) -> Option<Spread> {
        let spread = self.spread();
        let progress = self.progress.get(worker)?;
        (progress.settled.load(Ordering::Relaxed) == spread.mask).then_some(spread)
    }

    /// Looks whether a queue has its first buffer, of which that is not known yet: the first such queue, since drivers use
    /// them in order, and one more in turn. Not all: their lines are the guest's to write, and each may be a miss. Returns
    /// whether there is a new one.
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

    /// The queue for a flow with this hash, while not all flows are where they belong: where it is.
    #[cold]
    #[inline(never)]
    pub(crate) fn place(&self, hash: u32) -> u16 {
        let place = self.table.get((hash / BUCKET) as usize);
        let current = place.and_then(|place| self.index_of(place.load(Ordering::Relaxed)));
        let Some(current) = current else {
            // Its queue is gone, and what was in that with it.
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

    /// Brings buckets of a worker to where they belong, up to the first that has to wait: for its driver, or since frames of
    /// the burst are for the queue where it is, and were not delivered yet, which `is_pending` says.
    #[cold]
    #[inline(never)]
    pub(crate) fn advance(&self, worker: usize, is_pending: impl Fn(u16) -> bool) {
        let Some(progress) = self.progress.get(worker) else {
            return;
        };
        let spread = self.spread();
        if progress.goal.swap(spread.mask, Ordering::Relaxed) != spread.mask {
            // What was settled before is not what the table will say.
            progress.settled.store(0, Ordering::Relaxed);
            progress.done.store(0, Ordering::Relaxed);
        }
        let mut at = progress.at.load(Ordering::Relaxed) % BUCKETS;
        let mut done = progress.done.load(Ordering::Relaxed);
        while done < BUCKETS {
            let is_there = self.bring(at, spread.queue_of(at), &is_pending);
            at = (at + 1) % BUCKETS;
            // Later buckets are looked at next, and this one again.
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

    /// Brings a bucket to the queue that it belongs to; `false` while the driver has not taken all from the one where it is.
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
