//! Plans which streams move to another worker, from measured loads. Pure: no clock, no threads; equal measurements give
//! equal plans.
//!
//! A worker that is busy for more than [`THRESHOLD`] of the time, [`WINDOWS`] windows in a row, gives streams to one
//! other worker: the one for which the busier of the two is least busy afterwards. It does so only if the busier of the
//! two is then expected to be less busy by [`MARGIN`] than the giver is now. This can take one large stream or many
//! small ones. With constant loads, each such plan lowers the sum of the squares of all workers' loads by at least 2
//! [`MARGIN`]², so moves come to an end, and the largest load does not grow. The load that is measured on a saturated
//! worker is less than what its guest would send. The next windows show more of it, and the planner waits for
//! [`WINDOWS`] of them.
//!
//! A worker that cannot give up streams because of a NIC is left alone for [`WINDOWS`] windows, then for twice as many,
//! and so on. A moved stream stays for [`STAY`] windows, so that no guest can make it move back and forth.

use std::collections::BTreeMap;

use crosspoint_engine::stream::StreamId;

/// A share of a worker's time, in thousandths.
pub(super) type Permille = u32;

/// All of a worker's time.
pub(super) const WHOLE: Permille = 1000;
/// Default load above which a worker is relieved.
pub(super) const THRESHOLD: Permille = 800;
/// Default for how much less busy than the giver the busier of the two workers must be after the move.
pub(super) const MARGIN: Permille = 100;
/// Windows in a row that a worker must be busy before it is relieved; a burst of load is over by then.
const WINDOWS: u32 = 3;

/// Windows for which a stream stays after a move.
const STAY: u32 = 6;

/// Load of a worker in the last window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct WorkerLoad {
    /// Its share of busy time.
    pub busy: Permille,
    /// The memory node of its core.
    pub node: Option<u32>,
    /// Whether it is stalled; a stalled worker takes nothing.
    pub stalled: bool,
}

/// Load of a stream in the last window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct StreamLoad {
    pub id: StreamId,
    pub worker: usize,
    /// Its share of its worker's time. The shares of a worker's streams add up to the worker's busy share, less what it
    /// does for other workers.
    pub share: Permille,
    /// The preferred memory node, if any.
    pub node: Option<u32>,
    /// Whether it may move to another worker.
    pub movable: bool,
}

/// A planned move of a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Move {
    pub id: StreamId,
    pub from: usize,
    pub to: usize,
}

/// Plans moves; remembers for how many windows each worker has been busy.
pub(super) struct Planner {
    threshold: Permille,
    margin: Permille,
    busy_windows: Vec<u32>,
    /// The most windows for which a worker is left alone.
    rest_max: u32,
    rests: Vec<Rest>,
    /// Moved streams, and the windows for which they must still stay.
    stays: BTreeMap<StreamId, u32>,
}

/// Windows for which a worker is left alone.
#[derive(Clone, Copy, Default)]
struct Rest {
    /// Windows left.
    left: u32,
    /// Length of the last rest.
    last: u32,
}

impl Planner {
    /// A planner with a threshold and a margin. A worker that cannot give anything up is tried again after at most
    /// `rest_max` windows.
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

    /// Records that a worker could not make its move. Returns whether that is new.
    pub fn put_off(&mut self, worker: usize) -> bool {
        let Some(rest) = self.rests.get_mut(worker) else {
            return true;
        };
        let is_new = rest.last == 0;
        rest.last = (2 * rest.last).max(WINDOWS).min(self.rest_max);
        rest.left = rest.last;
        is_new
    }

    /// Records that a worker made its move.
    pub fn gave_up(&mut self, worker: usize) {
        if let Some(rest) = self.rests.get_mut(worker) {
            *rest = Rest::default();
        }
    }

    /// Plans the moves after another window. Each worker gives to one other, or takes from one, or neither.
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
                    // The load will be different from now on.
                    self.busy_windows[worker] = 0;
                }
                self.stays.extend(ids.iter().map(|id| (*id, STAY)));
                let (from, to) = (giver, taker);
                moves.extend(ids.into_iter().map(|id| Move { id, from, to }));
            }
        }
        moves
    }

    /// The worker that takes streams from worker `from`, and the streams, such that the busier of the two is least busy
    /// afterwards; `None` if the gain is too small.
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

/// Which of `streams`, sorted largest first, move from the giver to the taker, and how busy the busier of the two is
/// afterwards.
fn even_out(
    mut giver: Permille,
    mut taker: Permille,
    streams: &[&StreamLoad],
) -> (Permille, Vec<StreamId>) {
    let mut ids = Vec::new();
    let mut left = Vec::new();
    // First the streams that leave the giver the busier of the two.
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
    // Then one more that makes the taker the busier one, if that is still a gain.
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

/// Whether a stream may move to a worker on memory node `node`: only to its own node, if any worker is there.
fn may_go(stream: &StreamLoad, node: Option<u32>, workers: &[WorkerLoad]) -> bool {
    let has_home = stream.node.is_some() && workers.iter().any(|worker| worker.node == stream.node);
    !has_home || node == stream.node
}

#[cfg(test)]
mod tests;
