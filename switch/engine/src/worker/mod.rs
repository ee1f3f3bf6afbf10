//! A worker: one pinned thread that polls its streams and takes each burst from receiving to completion.

mod forward;
mod link;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crosspoint_frame::{Burst, tsc};
use crosspoint_vring::RingFault;
use crosspoint_vring::arming::before_calls;
use crosspoint_xsk::Flushed;

use crate::egress::tx::Tx;
use crate::egress::uplink;
use crate::schedule::Turn;
use crate::schedule::charge;
use crate::schedule::charge_doorbells;
use crate::schedule::charge_empty;
use crate::schedule::note_nic_user;
use crate::schedule::turn_of;
use crate::snapshot::Snapshot;
use crate::stages::Keys;
use crate::stream::Stream;
use crate::sync::sleep::Sleeper;
use crate::walk::LOOK;
use crate::walk::Walk;

use forward::{forward, send_out};
use link::INJECTED;
pub use link::{Injected, QUANTUM, Shared, Update, WorkerLink};

/// Longest sleep of a worker while a NIC queue holds frames that the kernel did not take.
const NIC_RETRY: Duration = Duration::from_millis(1);
/// Sleep time of a worker that has a stream without a wakeup source: it starts with the minimum and doubles up to the
/// maximum while no frames come.
const NAP_MIN: Duration = Duration::from_micros(50);
const NAP_MAX: Duration = Duration::from_millis(1);
/// The clock is read after this many empty polls, so that a burst is charged with no more of them.
const EMPTY_POLLS: usize = 16;
/// What an idle worker does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Idle {
    /// Keeps polling.
    Spin,
    /// Polls for this many cycles, then sleeps.
    SleepAfter(u64),
}

/// When a worker's last poll iteration ended, and when it last had work; cycles.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    then: u64,
    idle_since: u64,
}

impl Times {
    /// Returns the times before the first iteration.
    pub fn begin() -> Times {
        let now = tsc();
        Times {
            then: now,
            idle_since: now,
        }
    }
}

/// One worker.
pub struct Worker {
    index: usize,
    shared: Arc<Shared>,
    link: Arc<WorkerLink>,
    idle: Idle,
    sleeper: Sleeper,
    nap: Nap,
    view: Arc<Snapshot>,
    streams: Vec<Stream>,
    walk: Walk,
    /// Interval between two checks of quiet streams, cycles.
    look_cycles: u64,
    /// Whether the last iteration had no burst.
    is_idle: bool,
    /// The stream that the next poll iteration begins with, if one was put off.
    first: Option<u32>,
    /// Set if the iteration had exactly one burst while ports competed: its port and its cost in cycles.
    alone: Option<(u16, u64)>,
    /// Whether a stream was held back in the last iteration, so that there is work.
    has_held_back: bool,
    /// Number of streams of guests that have a NIC queue of their own.
    directs: usize,
    burst: Burst,
    keys: Keys,
    tx: Tx,
}

impl Worker {
    /// Creates worker number `index` with all the memory that it will ever need. Call it on the worker's thread: memory
    /// that this thread touches first is on its NUMA node.
    pub fn new(
        index: usize,
        shared: Arc<Shared>,
        link: Arc<WorkerLink>,
        view: Arc<Snapshot>,
        idle: Idle,
    ) -> Worker {
        let sleeper = Sleeper::new(link.waker.clone());
        let (streams, burst) = (Vec::new(), Burst::new());
        let tx = Tx::new(index, shared.quantum_cycles);
        let look_cycles = u128::from(shared.quantum_cycles) * LOOK.as_nanos() / QUANTUM.as_nanos();
        let look_cycles = look_cycles as u64;
        Worker {
            index,
            shared,
            link,
            idle,
            sleeper,
            nap: Nap::default(),
            view,
            streams,
            walk: Walk::new(0),
            look_cycles,
            is_idle: false,
            first: None,
            alone: None,
            has_held_back: false,
            directs: 0,
            burst,
            keys: Keys::default(),
            tx,
        }
    }

    /// Runs poll iterations until the workers are stopped.
    pub fn run(mut self) {
        let mut times = Times::begin();
        while !self.shared.stop.load(Ordering::Relaxed) {
            self.turn(&mut times);
        }
    }

    /// One poll iteration: updates, a walk over all streams, doorbells and calls, and sleep when there is nothing to do.
    #[inline(always)]
    pub fn turn(&mut self, times: &mut Times) {
        let injected = self.quiesce();
        let (polled, given_back, done) = self.iterate(times.then);
        let alone = self.alone.take();
        let bursts = injected + polled;
        let flushed = self.flush(bursts > 0 || given_back);
        let now = tsc();
        let cycles = now.wrapping_sub(times.then);
        times.then = now;
        self.link.counters.turns.record(cycles);
        if let Some((port, burst)) = alone {
            // No other port had work in this iteration.
            let weight = self.view.port(port).map_or(1, |port| port.weight);
            let rest = cycles.saturating_sub(burst);
            self.tx.shares.charge_aside(port, weight, rest);
        }
        if bursts > 0 || flushed.worked || self.has_held_back {
            self.link.counters.busy_cycles.add(cycles);
            self.link.counters.bursts.add(bursts);
            if flushed.taken > 0 {
                self.charge_others(&flushed, now.wrapping_sub(done));
            }
            times.idle_since = now;
            return;
        }
        self.link.counters.idle_cycles.add(cycles);
        if let Idle::SleepAfter(spin) = self.idle
            && now.wrapping_sub(times.idle_since) > spin
        {
            self.sleep(flushed.pending);
            times.then = tsc();
            times.idle_since = times.then;
            let slept = times.then.wrapping_sub(now);
            self.link.counters.sleep_cycles.add(slept);
        }
    }

    /// Counts the part of an iteration's end, `cycles` long, that was for other workers: their share of the frames for
    /// which doorbells were rung, since the doorbells take most of that time.
    fn charge_others(&self, flushed: &Flushed, cycles: u64) {
        let (taken, rung) = (u64::from(flushed.taken), u64::from(flushed.rung));
        // The kernel may have taken some of them before the doorbell, so `rung` can be less than `taken`.
        let share = cycles * taken / rung.max(taken).max(1);
        self.link.counters.others_cycles.add(share);
    }

    /// One walk over all streams, each burst to completion; `mark` is when the iteration began. Streams whose ports had
    /// more than their share wait while other ports want theirs; once the walk has taken a quantum, heavy bursts wait for
    /// the next one. Returns the number of bursts, whether a guest got buffers back without a burst, and when the last
    /// burst was done.
    #[inline(always)]
    fn iterate(&mut self, mut mark: u64) -> (u64, bool, u64) {
        let Worker {
            index,
            shared,
            link,
            view,
            streams,
            walk,
            look_cycles,
            is_idle,
            first,
            alone,
            has_held_back,
            burst,
            keys,
            tx,
            ..
        } = self;
        let tick = shared.tick.load(Ordering::Relaxed);
        let (mut bursts, mut given_back) = (0, false);
        if walk.look(mark, *look_cycles, *is_idle) {
            // The first busy stream must not be charged for this check.
            mark = tsc();
        }
        walk.resume(mark);
        let (begin, end) = walk.order(first.take());
        let (mut put_off, mut is_held_back, mut empty, mut is_quiet) = (None, false, 0, false);
        tx.shares.begin(mark);
        for place in (begin..end).chain(0..begin) {
            let Some(number) = walk.at(place) else {
                continue;
            };
            let Some(stream) = streams.get_mut(number as usize) else {
                continue;
            };
            match turn_of(stream, &mut tx.shares, mark) {
                Turn::Now => {}
                Turn::Ahead => {
                    stream.counters(*index).held_back.add(1);
                    is_held_back = true;
                    continue;
                }
                Turn::PutOff => {
                    put_off.get_or_insert(number);
                    continue;
                }
                Turn::Shaped(wait) => {
                    stream.counters(*index).rate_limited.add(1);
                    // For a shorter time it is not worth it.
                    if wait > *look_cycles {
                        walk.note_waiting(number, mark + wait);
                    }
                    continue;
                }
            }
            if stream.uplink.is_some() && uplink::waits(stream, view, tx, mark) {
                stream.counters(*index).uplink_waits.add(1);
                continue;
            }
            let count = stream.receive(burst);
            if count == 0 {
                if let Some(fault) = stream.unreported_fault()
                    && report(shared, stream.id.0, fault)
                {
                    stream.set_reported();
                }
                if stream.has_given_back() {
                    given_back = true;
                    walk.note_served(number);
                }
                is_quiet |= stream.note_empty();
                if stream.uplink.is_some() {
                    uplink::note_unused(stream, view);
                }
                empty += 1;
                if tx.shares.is_contended() {
                    mark = charge_empty(stream, view, mark, tx);
                } else if empty % EMPTY_POLLS == 0 {
                    // The next busy stream must not be charged for polling idle ones.
                    mark = tsc();
                }
                continue;
            }
            bursts += 1;
            walk.note_served(number);
            tx.prefetch(view, stream.destination, count);
            let direct = stream.take_direct();
            let is_direct = direct.is_some();
            tx.lend_direct(direct);
            let counters = stream.counters(*index);
            forward(burst, stream.id, view, tick, keys, tx, counters);
            if is_direct {
                stream.put_direct(tx.return_direct());
            }
            let before = mark;
            mark = stream.complete(burst, *index, before);
            charge(stream, view, count, (before, mark), tx);
            note_nic_user(stream.id.0, tx);
            stream.pay_for(burst, mark);
            if !tx.is_plain {
                let work = burst.reading() + tx.asked().sum();
                link.counters.burst_work_max.raise(work.into());
            }
            *alone = Some((stream.id.0, mark.wrapping_sub(before)));
            stream.destination = tx.last_destination();
            if tx.used_nics() {
                stream.has_used_nics = true;
                uplink::note(stream, view, tx, count, mark);
            } else if stream.uplink.is_some() {
                uplink::note_unused(stream, view);
            }
        }
        *first = put_off;
        *is_idle = bursts == 0;
        if is_quiet {
            walk.settle(streams);
        }
        walk.set_aside();
        if bursts != 1 || !tx.shares.is_contended() {
            *alone = None;
        } else {
            // This port pays for the doorbells with the rest of the iteration.
            tx.nic_users.clear();
        }
        if bursts == 0 && is_held_back {
            tx.shares.waste();
        }
        *has_held_back = is_held_back;
        (bursts, given_back, mark)
    }

    /// Rings NIC doorbells and calls guests, once per iteration. The result is pending while a NIC has not taken all
    /// frames, or has not sent all frames that lie in a guest's own memory.
    #[inline(always)]
    fn flush(&mut self, calls: bool) -> Flushed {
        if calls {
            before_calls();
            let calling = &self.link.calling;
            let mut before = tsc();
            while let Some(number) = self.walk.next_served() {
                let Some(stream) = self.streams.get_mut(number as usize) else {
                    continue;
                };
                calling.enter(stream.id.0);
                if stream.flush(self.index) {
                    let now = tsc();
                    let cycles = now.wrapping_sub(std::mem::replace(&mut before, now));
                    let weight = self.view.port(stream.id.0).map_or(1, |port| port.weight);
                    self.tx.shares.charge_aside(stream.id.0, weight, cycles);
                }
            }
            self.tx.call_guests(&self.view, calling);
            calling.leave();
        }
        let began = (!self.tx.nic_users.is_empty()).then(tsc);
        let mut flushed = self.tx.flush_nics();
        if let Some(began) = began {
            let cycles = tsc().wrapping_sub(began);
            charge_doorbells(&self.view, &flushed, cycles, &mut self.tx);
        }
        if self.directs > 0 {
            for stream in &mut self.streams {
                flushed.pending |= stream.flush_direct();
            }
        }
        flushed
    }

    /// The quiescent point: no reference into any mapping is held here. Returns the number of bursts of injected frames:
    /// 0 unless there was an update.
    #[inline(always)]
    fn quiesce(&mut self) -> u64 {
        let Worker {
            link,
            view,
            streams,
            walk,
            directs,
            tx,
            shared,
            idle,
            ..
        } = self;
        // Before the mailbox: when the control thread sees this quiescent point, it has every fault so far.
        while let Some((port, fault)) = tx.take_fault() {
            // If the list is full the fault is lost: the next burst for the ring finds it broken again.
            report(shared, port, fault);
        }
        let news = link.mailbox.quiesce(|update| {
            *idle = update.idle.unwrap_or(*idle);
            apply(update, view, (streams, walk), tx)
        });
        if news {
            *directs = streams.iter().filter(|stream| stream.is_direct()).count();
            return self.take_injected();
        }
        0
    }

    /// Takes the injected frames through all stages. Returns the number of bursts.
    #[cold]
    fn take_injected(&mut self) -> u64 {
        let Worker {
            index,
            shared,
            link,
            view,
            burst,
            keys,
            tx,
            ..
        } = self;
        let tick = shared.tick.load(Ordering::Relaxed);
        let mut bursts = 0;
        for _ in 0..INJECTED {
            let Some(injected) = link.injected.pop() else {
                break;
            };
            // The port was removed meanwhile.
            let Some(port) = view.port(injected.port) else {
                continue;
            };
            burst.clear();
            burst.push_copy(injected.bytes());
            let counters = port.counters.at(*index, 0);
            let id = (injected.port, 0);
            match injected.out {
                None => forward(burst, id, view, tick, keys, tx, counters),
                Some(vlan) => send_out(burst, id, vlan, view, tx, counters),
            }
            bursts += 1;
        }
        bursts
    }

    /// Sleeps, unless there is work.
    #[cold]
    fn sleep(&mut self, nic_pending: bool) {
        self.sleeper.announce();
        let mut work = self.tx.has_handoffs() || self.link.mailbox.has_news();
        work |= self.shared.stop.load(Ordering::SeqCst);
        let (mut is_nap, now, mut credit) = (false, tsc(), None::<u64>);
        for stream in &mut self.streams {
            let wait = stream.wait(now);
            let wait = wait.max(uplink::rate_wait_of(stream, &self.view, now));
            match stream.set_wakeups(true) {
                // Its frames wait for its rate.
                true if wait > 0 => credit = Some(credit.map_or(wait, |least| least.min(wait))),
                has_work => work |= has_work,
            }
            is_nap |= !stream.has_wakeup;
        }
        let credit = credit.map(|cycles| self.shared.duration_of(cycles));
        if !work {
            self.link.counters.sleeps.add(1);
            let (streams, index) = (&self.streams, self.index);
            let retry = nic_pending.then_some(NIC_RETRY);
            let bursts = self.link.counters.bursts.get();
            let nap = is_nap.then(|| self.nap.next(bursts));
            let at_most = [nap, retry, credit].into_iter().flatten().min();
            self.sleeper.sleep(at_most, |id| {
                if let Some(stream) = streams.iter().find(|stream| stream.id == id) {
                    stream.counters(index).kicks.add(1);
                }
            });
        }
        self.sleeper.retract();
        for stream in &mut self.streams {
            stream.set_wakeups(false);
        }
    }
}

/// Computes the length of the next nap.
#[derive(Default)]
struct Nap {
    last: Duration,
    /// The worker's burst count before the last nap.
    bursts: u64,
}

impl Nap {
    /// Returns the shortest length after work, else twice the last one. `bursts` is the worker's burst count.
    fn next(&mut self, bursts: u64) -> Duration {
        let has_worked = std::mem::replace(&mut self.bursts, bursts) != bursts;
        self.last = match has_worked {
            true => NAP_MIN,
            false => (2 * self.last).clamp(NAP_MIN, NAP_MAX),
        };
        self.last
    }
}

/// Reports a fault to the control thread; `false` when its list is full.
#[cold]
fn report(shared: &Shared, port: u16, fault: RingFault) -> bool {
    shared.faults.push((port, fault)).is_ok()
}

/// Applies an update and moves what it replaces into it. Nothing is allocated and nothing is freed.
fn apply(
    mut update: Update,
    view: &mut Arc<Snapshot>,
    (streams, walk): (&mut Vec<Stream>, &mut Walk),
    tx: &mut Tx,
) -> Update {
    std::mem::swap(view, &mut update.view);
    for stream in streams.drain(..) {
        if update.remove.contains(&stream.id) {
            update.removed.push(stream);
        } else {
            update.streams.push(stream);
        }
    }
    update.streams.append(&mut update.add);
    std::mem::swap(streams, &mut update.streams);
    if view.shapes || update.view.shapes {
        for stream in streams.iter_mut() {
            // The meter that it had is in the old snapshot too: nothing is freed here.
            let port = view.port(stream.id.0);
            stream.set_meter(port.and_then(|port| port.meter_out.clone()));
        }
    }
    std::mem::swap(walk, &mut update.walk);
    walk.restart(streams.len());
    for (port, nic) in &mut update.nics {
        tx.swap_nic(*port, nic);
    }
    tx.note_positions(&mut update.nic_positions);
    update
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn naps_grow_to_their_limit_while_nothing_comes_and_start_over_after_work() {
        let mut nap = Nap::default();
        let naps: Vec<u128> = (0..7).map(|_| nap.next(0).as_micros()).collect();
        assert_eq!(naps, [50, 100, 200, 400, 800, 1000, 1000]);
        assert_eq!(nap.next(1), NAP_MIN);
        assert_eq!(nap.next(1), 2 * NAP_MIN);
    }
}
