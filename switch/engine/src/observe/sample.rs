//! Sampling: of all received frames, one of N on average is copied, with its verdict.
//!
//! Each worker counts down to the next frame that it copies, over the frames of all ports. The distances are random and
//! geometric, as if a coin with probability 1/N were tossed for each frame: so the samples of every port are a fair
//! selection of that port's frames, and no sender can foresee which they are. Of a burst only the chosen frames are read.
//!
//! A worker never waits for the reader: a chosen frame for which no slot is free is counted as missed, by port. Copies are
//! not delivered in another way than without a sampler.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crosspoint_frame::{Burst, Clock, HeaderOp, tsc};

use super::tap::{Direction, Seen, Slot, Tap, Wanted};
use crate::MAX_PORTS;
use crate::egress::deliver::fate;
use crate::snapshot::Snapshot;
use crate::stream::StreamId;

/// One worker's state.
#[derive(Debug, Default)]
#[repr(align(128))]
struct ByWorker {
    /// The next chosen frame: 1 is the next one received.
    left: AtomicU64,
    /// State of the random numbers.
    random: AtomicU64,
}

/// A sampler: how often it copies, and its free and filled slots.
pub struct Sampler {
    every: u32,
    /// 1 / ln(1 - 1/N).
    scale: f64,
    tap: Arc<Tap>,
    workers: Box<[ByWorker]>,
    /// Chosen frames without a free slot, by port.
    missed: Box<[AtomicU64]>,
    /// When the port that had this number before was removed, cycles.
    since: Box<[AtomicU64]>,
}

impl Sampler {
    /// Creates a sampler of one frame of `every` on average, of which it keeps `snap_len` bytes, with `slots` slots, for a
    /// switch with `workers` workers. `seed` decides which frames it chooses.
    pub fn new(
        (every, snap_len): (u32, usize),
        slots: usize,
        workers: usize,
        clock: &Clock,
        seed: u64,
    ) -> Arc<Sampler> {
        let wanted = Wanted {
            port: None,
            queue: None,
            received: true,
            sent: false,
            dropped_only: false,
            snap_len,
            rate_max: u64::MAX,
            filter: None,
        };
        let numbers = || (0..MAX_PORTS).map(|_| AtomicU64::new(0)).collect();
        let every = every.max(1);
        let sampler = Sampler {
            every,
            scale: 1.0 / (-1.0 / f64::from(every)).ln_1p(),
            tap: Tap::new(wanted, slots, workers, clock),
            workers: (0..workers).map(|_| ByWorker::default()).collect(),
            missed: numbers(),
            since: numbers(),
        };
        for (number, of) in (0u64..).zip(&sampler.workers) {
            of.random.store(seed ^ mix(number), Ordering::Relaxed);
            of.left.store(sampler.distance(of), Ordering::Relaxed);
        }
        Arc::new(sampler)
    }

    /// Returns of how many frames one is chosen on average.
    pub fn every(&self) -> u32 {
        self.every
    }

    /// Returns the next sample of any worker, if there is one.
    pub fn next(&self) -> Option<Box<Slot>> {
        self.tap.next()
    }

    /// Returns a slot so that it can be filled again.
    pub fn give_back(&self, slot: Box<Slot>) {
        self.tap.give_back(slot);
    }

    /// Returns how many chosen frames of port `number` found no free slot.
    pub fn missed(&self, number: u16) -> u64 {
        let missed = self.missed.get(usize::from(number));
        missed.map_or(0, |missed| missed.load(Ordering::Relaxed))
    }

    /// Notes that port `number` was removed. Call it after every worker has passed a quiescent point without the port.
    pub fn note_removed(&self, number: u16) {
        if let Some(since) = self.since.get(usize::from(number)) {
            since.store(tsc(), Ordering::Relaxed);
        }
    }

    /// Returns whether a sample is from a port that has been removed since; another port may have its number.
    pub fn is_of_removed(&self, slot: &Slot) -> bool {
        let since = self.since.get(usize::from(slot.port));
        since.is_some_and(|since| slot.tsc < since.load(Ordering::Relaxed))
    }

    /// Samples a burst that was received on `id` and has been looked up.
    pub(super) fn received(&self, burst: &Burst, id: StreamId, view: &Snapshot, worker: usize) {
        let Some(of) = self.workers.get(worker) else {
            return;
        };
        let (left, count) = (of.left.load(Ordering::Relaxed), burst.len() as u64);
        match left.checked_sub(count) {
            Some(left) if left > 0 => of.left.store(left, Ordering::Relaxed),
            _ => self.choose(burst, id, view, (worker, of)),
        }
    }

    /// Copies the chosen frames of a burst that has at least one.
    #[inline(never)]
    fn choose(
        &self,
        burst: &Burst,
        id: StreamId,
        view: &Snapshot,
        (worker, of): (usize, &ByWorker),
    ) {
        let mut chosen = of.left.load(Ordering::Relaxed);
        while let Some(frame) = chosen
            .checked_sub(1)
            .and_then(|index| burst.frames().get(index as usize))
        {
            match self.tap.take(worker, burst, frame, HeaderOp::Keep) {
                Some(slot) => {
                    let seen = Seen {
                        worker,
                        serial: None,
                        id,
                        direction: Direction::Received,
                    };
                    self.tap.put(slot, seen, fate(frame, id.0, view));
                }
                None => {
                    if let Some(missed) = self.missed.get(usize::from(id.0)) {
                        missed.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
            chosen += self.distance(of);
        }
        let left = chosen.saturating_sub(burst.len() as u64).max(1);
        of.left.store(left, Ordering::Relaxed);
    }

    /// Returns the distance from one chosen frame to the next: 1 or more, `every` on average.
    fn distance(&self, of: &ByWorker) -> u64 {
        let state = of.random.load(Ordering::Relaxed).wrapping_add(GOLDEN);
        of.random.store(state, Ordering::Relaxed);
        // From 2^-53 to 1, so the logarithm is finite.
        let uniform = ((mix(state) >> 11) + 1) as f64 / (1u64 << 53) as f64;
        1 + (uniform.ln() * self.scale) as u64
    }
}

/// Step of SplitMix64: 2^64 divided by the golden ratio.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The output function of SplitMix64 (Steele, Lea, Flood 2014).
fn mix(state: u64) -> u64 {
    let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
