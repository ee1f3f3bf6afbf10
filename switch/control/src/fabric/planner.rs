//! Which streams go to another worker, from what was measured. Pure: no clock, no threads; equal measurements make
//! equal plans.
//!
//! A worker that is busy for more than [`THRESHOLD`] of the time, [`WINDOWS`] windows in a row, gives up streams, to the
//! worker for which the busier of the two is then the least busy. It does so only where that one is expected to be less
//! busy by [`MARGIN`] than the giver is now: one large stream may be worth it, or many small ones together. With loads
//! that do not change, this makes the sum of the squares of all workers' loads smaller by at least 2 [`MARGIN`]², so
//! moves come to an end, and no load gets larger than the largest was. A load that is measured on a worker that cannot
//! keep up is less than what its guest would send: the next windows show more of it, and [`WINDOWS`] of them are waited
//! for.
//!
//! Whom a NIC keeps from giving anything up is left alone for [`WINDOWS`] windows, then for twice as many, and so on.
//! A stream that went stays for [`STAY`] windows, whatever its guest does: nobody can have it go to and fro.

use std::collections::BTreeMap;

use crosspoint_engine::stream::StreamId;

/// A share of a worker's time, in thousandths.
pub(super) type Permille = u32;

/// The whole of a worker's time.
pub(super) const WHOLE: Permille = 1000;
/// A worker that is busy for more than this is to be relieved, where nothing else is said.
pub(super) const THRESHOLD: Permille = 800;
/// By how much less busy than the giver was the busier of the two must be after the move, where nothing else is said.
pub(super) const MARGIN: Permille = 100;
/// So many windows in a row a worker is busy before it is relieved: a burst of load is over by then.
const WINDOWS: u32 = 3;

/// For so many windows a stream stays where it went.
const STAY: u32 = 6;

/// A worker, over the last window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct WorkerLoad {
    /// Its share of time with work.
    pub busy: Permille,
    /// The memory node of its core.
    pub node: Option<u32>,
    /// Whether it does not come round: it takes nothing.
    pub stalled: bool,
}

/// A stream, over the last window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct StreamLoad {
    pub id: StreamId,
    pub worker: usize,
    /// Its share of its worker's time. Those of all streams of a worker add up to what it is busy, less what it does for
    /// other workers.
    pub share: Permille,
    /// The memory node that it should be on, if any.
    pub node: Option<u32>,
    /// Whether it may go to another worker.
    pub movable: bool,
}

/// A stream that is to go to another worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Move {
    pub id: StreamId,
    pub from: usize,
    pub to: usize,
}

/// Remembers for how many windows each worker has been busy.
pub(super) struct Planner {
    threshold: Permille,
    margin: Permille,
    busy_windows: Vec<u32>,
    /// The most windows that a worker is left alone for.
    rest_max: u32,
    rests: Vec<Rest>,
    /// Streams that have gone, and for how many windows they still stay.
    stays: BTreeMap<StreamId, u32>,
}

/// For how many windows a worker is left alone.
#[derive(Clone, Copy, Default)]
struct Rest {
    /// Still.
    left: u32,
    /// The last time.
    last: u32,
}

impl Planner {
    /// With a threshold and a margin. A worker that cannot give anything up is asked again after `rest_max` windows at
    /// the latest.
    pub fn new(threshold: Permille, margin: Permille, rest_max: u32) -> Planner {
        Planner {
            threshold,
            margin,
            busy_windows: Vec::new(),
            rest_max,
            rests: Vec::new(),
            stays: BTreeMap::new(),
        }
    }

    /// Notes that a worker could not give up what it was to. Returns whether that is new.
    pub fn put_off(&mut self, worker: usize) -> bool {
        let Some(rest) = self.rests.get_mut(worker) else {
            return true;
        };
        let is_new = rest.last == 0;
        rest.last = (2 * rest.last).max(WINDOWS).min(self.rest_max);
        rest.left = rest.last;
        is_new
    }

    /// Notes that it could.
    pub fn gave_up(&mut self, worker: usize) {
        if let Some(rest) = self.rests.get_mut(worker) {
            *rest = Rest::default();
        }
    }

    /// What to do after another window. A worker gives to one other, or takes from one, or neither.
    pub fn plan(&mut self, workers: &[WorkerLoad], streams: &[StreamLoad]) -> Vec<Move> {
        self.busy_windows.resize(workers.len(), 0);
        self.rests.resize(workers.len(), Rest::default());
        let of_workers = self.busy_windows.iter_mut().zip(&mut self.rests);
        for ((windows, rest), worker) in of_workers.zip(workers) {
            let rests = rest.left > 0;
            rest.left = rest.left.saturating_sub(1);
            *windows = if worker.busy > self.threshold && !rests {
                *windows + 1
            } else {
                0
            };
        }
        self.stays.retain(|_, left| {
            *left -= 1;
            *left > 0
        });
        let mut takes_part: Vec<bool> = workers.iter().map(|worker| worker.stalled).collect();
        let mut givers: Vec<usize> = (0..workers.len())
            .filter(|worker| self.busy_windows[*worker] >= WINDOWS)
            .collect();
        givers.sort_by_key(|worker| (u32::MAX - workers[*worker].busy, *worker));
        let mut moves = Vec::new();
        for giver in givers {
            if takes_part[giver] {
                continue;
            }
            if let Some((taker, ids)) = self.relief(giver, workers, streams, &takes_part) {
                for worker in [giver, taker] {
                    takes_part[worker] = true;
                    // What is measured from now on is another load.
                    self.busy_windows[worker] = 0;
                }
                self.stays.extend(ids.iter().map(|id| (*id, STAY)));
                let (from, to) = (giver, taker);
                moves.extend(ids.into_iter().map(|id| Move { id, from, to }));
            }
        }
        moves
    }

    /// Who takes what from worker `from`, so that the busier of the two is left least busy, if it is worth it.
    fn relief(
        &self,
        from: usize,
        workers: &[WorkerLoad],
        streams: &[StreamLoad],
        takes_part: &[bool],
    ) -> Option<(usize, Vec<StreamId>)> {
        let of_giver = || streams.iter().filter(|stream| stream.worker == from);
        let goes = |one: &&StreamLoad| one.movable && !self.stays.contains_key(&one.id);
        let mut largest_first: Vec<&StreamLoad> = of_giver().filter(goes).collect();
        largest_first.sort_by_key(|stream| (u32::MAX - stream.share, stream.id));
        let takers = (0..workers.len()).filter(|to| *to != from && !takes_part[*to]);
        let ways = takers.map(|to| {
            let may_go = |stream: &&&StreamLoad| may_go(stream, workers[to].node, workers);
            let streams: Vec<&StreamLoad> = largest_first.iter().filter(may_go).copied().collect();
            let (then, ids) = even_out(workers[from].busy, workers[to].busy, &streams);
            (then, to, ids)
        });
        let (then, to, ids) = ways.min()?;
        (then + self.margin <= workers[from].busy).then_some((to, ids))
    }
}

/// Which of `streams`, largest first, go from a worker to another, and how busy the busier of the two is then.
fn even_out(
    mut giver: Permille,
    mut taker: Permille,
    streams: &[&StreamLoad],
) -> (Permille, Vec<StreamId>) {
    let mut ids = Vec::new();
    let mut left = Vec::new();
    // What leaves the giver the busier one.
    for stream in streams {
        match stream.share > 0 && taker + stream.share <= giver.saturating_sub(stream.share) {
            true => {
                giver -= stream.share;
                taker += stream.share;
                ids.push(stream.id);
            }
            false => left.push(stream),
        }
    }
    // One that does not, but is better than none.
    let with = |stream: &StreamLoad| {
        let giver = giver.saturating_sub(stream.share);
        giver.max(taker + stream.share)
    };
    let last = left.iter().map(|stream| (with(stream), stream.id)).min();
    match last {
        Some((then, id)) if then < giver.max(taker) => {
            ids.push(id);
            (then, ids)
        }
        _ => (giver.max(taker), ids),
    }
}

/// Whether a stream may go to a worker on memory node `node`: to its own node, if that has any worker.
fn may_go(stream: &StreamLoad, node: Option<u32>, workers: &[WorkerLoad]) -> bool {
    let has_home = stream.node.is_some() && workers.iter().any(|worker| worker.node == stream.node);
    !has_home || node == stream.node
}

#[cfg(test)]
mod tests;
