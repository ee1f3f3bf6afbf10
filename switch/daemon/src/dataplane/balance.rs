//! Measures what workers and streams cost, and moves streams to other workers accordingly.
//!
//! A window is the time between two samples of the counters, [`BalanceOptions::interval`] long. After each window the
//! [`Planner`] decides what to move. What is shown covers the time since the sample before the last one, so that it
//! always covers at least one window.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crosspoint_config::Workers;
use crosspoint_engine::observe::counters::PortCounters;
use crosspoint_engine::stream::StreamId;
use crosspoint_engine::worker::WorkerLink;
use crosspoint_frame::tsc;

use super::measured::Measured;
use super::moving::MoveError;
use super::placement::{self, Candidate};
use super::planner::{MARGIN, Move, Permille, Planner, StreamLoad, THRESHOLD, WHOLE, WorkerLoad};
use super::{Dataplane, Placed, Port};

/// The most streams that move in one call of [`Dataplane::housekeep`]: it has other work, and each move may have to wait
/// for NICs.
const MOVES_MAX: usize = 4;
/// The longest time that a worker is left alone after a NIC prevented its moves.
const REST_MAX: Duration = Duration::from_secs(60);

/// Balancing, from the configuration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BalanceOptions {
    /// Whether streams move to other workers by measured load.
    pub auto: bool,
    /// Length of the window over which loads are measured; no shorter than the time between two calls of
    /// [`Dataplane::housekeep`].
    pub interval: Duration,
    /// A worker that is busy for more than this is relieved, thousandths of the time.
    pub busy_permille_max: u32,
    /// By how much a move must lower the load of the busier of the two workers, thousandths of the time.
    pub gain_permille_min: u32,
}

impl Default for BalanceOptions {
    fn default() -> BalanceOptions {
        BalanceOptions {
            auto: true,
            interval: Workers::default().balance_interval,
            busy_permille_max: THRESHOLD,
            gain_permille_min: MARGIN,
        }
    }
}

/// Indices of the last two samples: what is shown is measured since the older one, and the newer one begins the window.
const SHOWN: usize = 0;
const WINDOW: usize = 1;

/// All workers' counters at one moment.
struct Sample {
    at: u64,
    /// Busy, idle and sleeping cycles, and the busy cycles spent for other workers.
    workers: Vec<[u64; 4]>,
}

impl Sample {
    fn take(links: &[Arc<WorkerLink>]) -> Sample {
        let of = |link: &Arc<WorkerLink>| {
            let counters = &link.counters;
            [
                counters.busy_cycles.get(),
                counters.idle_cycles.get(),
                counters.sleep_cycles.get(),
                counters.others_cycles.get(),
            ]
        };
        let workers = links.iter().map(of).collect();
        Sample { at: tsc(), workers }
    }
}

/// What is kept from window to window.
pub(super) struct State {
    options: BalanceOptions,
    samples: [Sample; 2],
    sampled: Instant,
    planner: Planner,
    /// By worker: the cycles, since both samples, of streams that it no longer has.
    left: Vec<[u64; 2]>,
    /// Moves of the last plan that are still to be made.
    planned: VecDeque<Planned>,
    /// By worker: the streams that it got from others.
    pub moves: Vec<u64>,
    /// By worker: the streams whose move was put off.
    pub put_off: Vec<u64>,
}

/// A move, and how busy its two workers were.
struct Planned {
    one: Move,
    from_busy: Permille,
    to_busy: Permille,
}

/// A new planner that remembers no moves.
fn planner(options: &BalanceOptions) -> Planner {
    Planner::new(
        options.busy_permille_max,
        options.gain_permille_min,
        rest_max(options.interval),
    )
}

impl State {
    pub fn new(links: &[Arc<WorkerLink>], options: &BalanceOptions) -> State {
        State {
            options: *options,
            samples: [Sample::take(links), Sample::take(links)],
            sampled: Instant::now(),
            planner: planner(options),
            left: vec![[0; 2]; links.len()],
            planned: VecDeque::new(),
            moves: vec![0; links.len()],
            put_off: vec![0; links.len()],
        }
    }
}

impl State {
    /// Keeps the cycles of a stream that its worker gives up, so that they are not attributed to the worker's other
    /// streams.
    pub fn note_left(&mut self, counters: &PortCounters, queue: u16, placed: &Placed) {
        let now = counters.at(placed.worker, queue).cycles.get();
        let left = self.left[placed.worker].iter_mut();
        for (left, before) in left.zip(placed.measured.cycles) {
            *left += now.saturating_sub(before);
        }
    }
}

/// [`REST_MAX`] in windows.
fn rest_max(interval: Duration) -> u32 {
    let windows = REST_MAX.as_millis() / interval.as_millis().max(1);
    windows.max(1) as u32
}

/// How a worker spent the time since a sample, in shares that add up to 1.
#[derive(Clone, Copy, Default)]
pub(super) struct Shares {
    pub busy: f64,
    pub idle: f64,
    pub sleep: f64,
}

/// Loads measured since a sample.
pub(super) struct Loads {
    pub cycles: u64,
    pub workers: Vec<Shares>,
    /// By worker: the summed cycles of its streams, and of streams that have left it.
    sums: Vec<u64>,
    /// By worker: the share of its time that it spent for other workers, whose frames leave through its NIC queues.
    /// Moving one of its own streams does not change that.
    others: Vec<f64>,
    since: usize,
}

impl Loads {
    /// The share of its worker's time that a stream takes. Work for all streams of a worker together, such as doorbells
    /// and calls, is divided in proportion: the shares add up to the worker's busy share, less what it does for other
    /// workers.
    pub fn of_stream(&self, port: &Port, queue: u16, placed: &Placed) -> f64 {
        let (sum, busy) = (self.sums[placed.worker], self.workers[placed.worker].busy);
        let busy = (busy - self.others[placed.worker]).max(0.0);
        // The counter may have advanced since the sum was taken.
        let cycles = cycles_since(self.since, port, queue, placed).min(sum);
        busy * cycles as f64 / sum.max(1) as f64
    }
}

fn cycles_since(since: usize, port: &Port, queue: u16, placed: &Placed) -> u64 {
    let now = port.view.counters.at(placed.worker, queue).cycles.get();
    now.saturating_sub(placed.measured.cycles[since])
}

fn permille(share: f64) -> Permille {
    (share * f64::from(WHOLE)).round() as Permille
}

impl Dataplane {
    /// Loads of workers and streams since the sample before the last.
    pub(super) fn shown_loads(&self, state: &super::State) -> Loads {
        self.loads(state, SHOWN)
    }

    fn loads(&self, state: &super::State, since: usize) -> Loads {
        let (before, now) = (&state.balance.samples[since], Sample::take(&self.links));
        let cycles = now.at.saturating_sub(before.at);
        let pairs = now.workers.iter().zip(&before.workers).zip(&self.links);
        let workers = pairs.map(|((now, before), link)| {
            let of = |kind: usize| now[kind].wrapping_sub(before[kind]);
            shares([of(0), of(1), of(2)], cycles, link.waker.is_asleep())
        });
        let workers = workers.collect();
        let pairs = now.workers.iter().zip(&before.workers);
        let others = pairs.map(|(now, before)| now[3].wrapping_sub(before[3]) as f64);
        let others = others.map(|others| others / cycles.max(1) as f64).collect();
        let left = state.balance.left.iter();
        let mut sums: Vec<u64> = left.map(|left| left[since]).collect();
        for port in state.ports.iter().flatten() {
            for (queue, placed) in &port.streams {
                sums[placed.worker] += cycles_since(since, port, *queue, placed);
            }
        }
        Loads {
            cycles,
            workers,
            sums,
            others,
            since,
        }
    }

    /// The workers as candidates for a new stream.
    pub(super) fn candidates(&self, state: &super::State) -> Vec<Candidate> {
        let loads = self.shown_loads(state);
        let workers = loads.workers.iter().zip(&self.nodes);
        let mut candidates: Vec<Candidate> = workers
            .map(|(shares, node)| Candidate {
                busy: permille(shares.busy),
                fresh: 0,
                streams: 0,
                node: *node,
                stalled: false,
            })
            .collect();
        for (worker, candidate) in candidates.iter_mut().enumerate() {
            candidate.stalled = self.watch.stalls(worker).0;
        }
        let ports = state.ports.iter().flatten();
        for placed in ports.flat_map(|port| port.streams.values()) {
            let candidate = &mut candidates[placed.worker];
            candidate.streams += 1;
            candidate.fresh += usize::from(placed.measured.fresh);
        }
        candidates
    }

    /// The worker of queue `queue` of NIC port `number`.
    pub(super) fn nic_worker(&self, state: &super::State, number: u16, queue: u16) -> usize {
        let port = state
            .ports
            .get(usize::from(number))
            .and_then(Option::as_ref);
        port.map_or(0, |port| self.nic_worker_of(port, number, queue))
    }

    /// The worker of queue `queue` of NIC port `number`, and the one that its configuration names.
    pub(crate) fn worker_of_nic(&self, number: u16, queue: u16) -> (usize, Option<usize>) {
        let state = self.lock();
        let port = state
            .ports
            .get(usize::from(number))
            .and_then(Option::as_ref);
        let configured = port.and_then(|port| port.options.worker);
        (self.nic_worker(&state, number, queue), configured)
    }

    pub(super) fn nic_worker_of(&self, port: &Port, number: u16, queue: u16) -> usize {
        let by_node = || placement::nic_worker(number, queue, &self.nodes, port.node);
        let before = port.taken.worker(queue).or(port.options.worker);
        before.unwrap_or_else(by_node)
    }

    /// Sets the memory node of the NIC of port `number`. Call it while the port has no queues: their workers depend on
    /// it.
    pub fn set_node(&self, number: u16, node: Option<u32>) {
        if let Some(Some(port)) = self.lock().ports.get_mut(usize::from(number)) {
            port.node = node;
        }
    }

    /// Changes the balancing options. Moves that were planned but not made are forgotten.
    pub fn set_balance(&self, auto: bool, interval: Duration) {
        let balance = &mut self.lock().balance;
        (balance.options.auto, balance.options.interval) = (auto, interval);
        balance.planner = planner(&balance.options);
        balance.planned.clear();
    }

    /// At the end of a window, begins the next window and plans moves, unless moves of the last plan are left. In every
    /// call, makes some of the planned moves.
    pub(super) fn balance(&self) {
        let mut state = self.lock();
        if state.balance.sampled.elapsed() >= state.balance.options.interval {
            if state.balance.options.auto && state.balance.planned.is_empty() {
                let loads = self.loads(&state, WINDOW);
                let moves = self.plan(&mut state, &loads);
                let busy = |worker: usize| permille(loads.workers[worker].busy);
                let planned = moves.into_iter().map(|one| Planned {
                    one,
                    from_busy: busy(one.from),
                    to_busy: busy(one.to),
                });
                state.balance.planned = planned.collect();
            }
            self.begin_window(&mut state);
            // Retries streams that a NIC or a stalled worker kept away from their pinned worker.
            for number in 0..state.ports.len() {
                self.gather(&mut state, number as u16);
            }
        }
        drop(state);
        for _ in 0..MOVES_MAX {
            // One lock per move, so that others who wait for the port table get it in between.
            let mut state = self.lock();
            let Some(planned) = state.balance.planned.pop_front() else {
                break;
            };
            self.carry_out(&mut state, &planned);
        }
    }

    fn plan(&self, state: &mut super::State, loads: &Loads) -> Vec<Move> {
        let workers = loads.workers.iter().zip(&self.nodes);
        let workers: Vec<WorkerLoad> = workers
            .enumerate()
            .map(|(worker, (shares, node))| WorkerLoad {
                busy: permille(shares.busy),
                node: *node,
                stalled: self.watch.stalls(worker).0,
            })
            .collect();
        let mut streams = Vec::new();
        for (number, port) in (0..).zip(&state.ports) {
            let of_port = port.iter().flat_map(|port| {
                let each = port.streams.iter();
                each.map(move |(queue, placed)| StreamLoad {
                    id: (number, *queue),
                    worker: placed.worker,
                    share: permille(loads.of_stream(port, *queue, placed)),
                    node: placed.node,
                    movable: super::moving::is_movable(port, placed),
                })
            });
            streams.extend(of_port);
        }
        state.balance.planner.plan(&workers, &streams)
    }

    fn begin_window(&self, state: &mut super::State) {
        let [shown, window] = &mut state.balance.samples;
        *shown = std::mem::replace(window, Sample::take(&self.links));
        state.balance.sampled = Instant::now();
        for left in &mut state.balance.left {
            *left = [left[WINDOW], 0];
        }
        for port in state.ports.iter_mut().flatten() {
            for (queue, placed) in &mut port.streams {
                let now = port.view.counters.at(placed.worker, *queue).cycles.get();
                let [_, window] = placed.measured.cycles;
                placed.measured = Measured {
                    cycles: [window, now],
                    fresh: false,
                };
            }
        }
    }

    fn carry_out(&self, state: &mut super::State, planned: &Planned) {
        let one = planned.one;
        if state.worker_of(one.id) != Some(one.from) {
            return; // another move was faster
        }
        let name = state.view.port(one.id.0).map(|port| port.name.clone());
        let (name, queue) = (name.unwrap_or_default(), one.id.1);
        let (from, to) = (planned.from_busy / 10, planned.to_busy / 10);
        match self.move_locked(state, one.id, one.to) {
            Ok(()) => {
                state.balance.planner.gave_up(one.from);
                tracing::info!(port = %name, queue,
                    "moves from worker-{} ({from} % busy) to worker-{} ({to} % busy)", one.from, one.to);
            }
            Err(MoveError::PutOff { from: worker }) => {
                // The same NIC would put the other moves off too.
                let balance = &mut state.balance;
                balance.planned.retain(|other| other.one.from != worker);
                if balance.planner.put_off(worker) {
                    tracing::info!(port = %name, queue,
                        "stays with worker-{worker} ({from} % busy): a NIC has not sent the frames that it holds; \
                         the move is counted as put off, and is tried again");
                }
            }
            Err(why) => {
                tracing::debug!(port = %name, queue, "stays with worker-{}: {why}", one.from);
            }
        }
    }
}

impl super::State {
    /// The worker that has a stream.
    pub(super) fn worker_of(&self, id: StreamId) -> Option<usize> {
        let port = self.ports.get(usize::from(id.0))?.as_ref()?;
        port.streams.get(&id.1).map(|placed| placed.worker)
    }
}

/// Shares of `total` cycles, from a worker's counted busy, idle and sleeping cycles. A poll iteration or a sleep is
/// counted only when it ends.
fn shares([busy, idle, sleep]: [u64; 3], total: u64, is_asleep: bool) -> Shares {
    let busy = busy.min(total);
    let idle = idle.min(total - busy);
    let rest = total - busy - idle;
    // The rest is sleep, part of which may lie before the sample, or a poll iteration that has not ended.
    let sleep = match is_asleep {
        true => rest,
        false => sleep.min(rest),
    };
    let busy = busy + rest - sleep;
    let of_total = |cycles: u64| cycles as f64 / total.max(1) as f64;
    Shares {
        busy: of_total(busy),
        idle: of_total(idle),
        sleep: of_total(sleep),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn shares_add_up_whatever_was_counted(
            counted in prop::array::uniform3(0u64..2_000_000), total in 1u64..1_000_000, is_asleep: bool
        ) {
            let shares = shares(counted, total, is_asleep);
            let all = [shares.busy, shares.idle, shares.sleep];
            prop_assert!(all.iter().all(|share| (0.0..=1.0).contains(share)), "{all:?}");
            prop_assert!((all.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{all:?}");
        }
    }

    #[test]
    fn a_long_sleep_is_sleep_before_it_ends_and_a_turn_that_does_not_end_is_work() {
        let sleeps = shares([100, 200, 0], 1000, true);
        assert_eq!((sleeps.busy, sleeps.sleep), (0.1, 0.7));
        let stuck = shares([100, 200, 0], 1000, false);
        assert_eq!((stuck.busy, stuck.sleep), (0.8, 0.0));
        // It slept a little, and then did not get its core.
        let preempted = shares([100, 200, 50], 1000, false);
        assert_eq!((preempted.busy, preempted.sleep), (0.75, 0.05));
        // A long sleep that began before the sample.
        let woken = shares([100, 200, 50_000], 1000, false);
        assert_eq!((woken.busy, woken.sleep), (0.1, 0.7));
    }
}
