//! How a change to the port table reaches the workers.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crosspoint_engine::MAX_PORTS;
use crosspoint_engine::bridge::several::DEFAULT_BRIDGE;
use crosspoint_engine::egress::tx::NicTx;
use crosspoint_engine::snapshot::Snapshot;
use crosspoint_engine::stream::Source;
use crosspoint_engine::stream::Stream;
use crosspoint_engine::stream::StreamId;
use crosspoint_engine::worker::{Idle, Update};
use crosspoint_memory::GuestMemory;
use crosspoint_vring::InflightRegion;

use super::admin::Parked;
use super::{Dataplane, Placed, Port, PortChange, PortState, State, placement, worker};

/// Time after which a worker that has not reached a quiescent point is logged. The wait goes on: what the worker may
/// still use cannot be freed.
const PATIENCE: Duration = Duration::from_secs(5);

impl Dataplane {
    /// Applies a change to port `number` and waits until every worker uses it. Returns the removed streams, with their
    /// ring positions.
    ///
    /// A quarantined port gets no streams and no egress until a change sets its state.
    pub fn change(&self, number: u16, change: PortChange) -> io::Result<Vec<Stream>> {
        self.change_if(number, change, || true)
    }

    /// Applies the change only if `holds`, which is called under the lock.
    pub(super) fn change_if(
        &self,
        number: u16,
        change: PortChange,
        holds: impl FnOnce() -> bool,
    ) -> io::Result<Vec<Stream>> {
        let mut state = self.lock();
        if !holds() {
            return Err(io::Error::other("the port has been taken from its thread"));
        }
        let leaves = matches!(change.state, Some((PortState::Down, _)));
        let changed = self.change_locked(&mut state, number, change);
        if leaves {
            // All workers have reached a quiescent point, so no further faults of this guest can arrive.
            self.take_faults(&mut state, Some(number));
            self.take_stuck(&mut state, Some(number));
        }
        // The front end's objects are dropped without the lock, since a drop can block.
        drop(state);
        changed.map(|changed| changed.removed)
    }

    pub(super) fn change_locked(
        &self,
        state: &mut State,
        number: u16,
        mut change: PortChange,
    ) -> io::Result<Changed> {
        let mut updates: Vec<WorkerChange> =
            self.links.iter().map(|_| WorkerChange::default()).collect();
        let mut candidates = match change.add.is_empty() {
            true => Vec::new(),
            false => {
                let kept = state
                    .batch
                    .as_mut()
                    .and_then(|batch| batch.candidates.take());
                kept.unwrap_or_else(|| self.candidates(state))
            }
        };
        let nic_worker = |port: &Port, queue| self.nic_worker_of(port, number, queue);
        let busy_max = self.options.balance.busy_permille_max;
        let Some(Some(port)) = state.ports.get_mut(usize::from(number)) else {
            return Err(io::Error::other("no such port"));
        };
        let was_quarantined = port.state == PortState::Quarantined;
        if let Some((state, detail)) = change.state.take() {
            if state != port.state {
                port.since = Instant::now();
            }
            (port.state, port.detail) = (state, detail);
            port.reset_refusals();
        } else if was_quarantined {
            change.add.clear();
            change.egress = None;
        }
        if let Some(properties) = change.properties {
            port.properties = properties;
        }
        let memory_before = match change.memory {
            Some(memory) => std::mem::replace(&mut port.memory, memory),
            None => None,
        };
        let inflight_before = match change.inflight {
            Some(inflight) => std::mem::replace(&mut port.inflight, inflight),
            None => None,
        };
        if let Some(egress) = change.egress {
            port.set_egress(egress);
        }
        let (mut released, mut unserved) = (Vec::new(), Vec::new());
        for queue in change.remove {
            if let Some(parked) = port.parked.remove(&queue) {
                port.before.note_left(queue, &parked.placed);
                unserved.push(parked);
            } else if let Some(placed) = port.streams.remove(&queue) {
                let counters = &port.view.counters;
                state.balance.note_left(counters, queue, &placed);
                port.before.note_left(queue, &placed);
                updates[placed.worker].remove.push((number, queue));
                released.push(placed);
            }
        }
        for new in change.add {
            let of_place = new.place.as_ref().map(|place| place.worker);
            let worker = match (&new.source, of_place.or(port.options.worker)) {
                (Source::Nic(_), _) => nic_worker(port, new.queue),
                (_, Some(worker)) => worker,
                _ => placement::guest_worker(&candidates, new.node, busy_max),
            };
            candidates[worker].streams += 1;
            candidates[worker].fresh += 1;
            let queue = new.queue;
            let parked = Parked::new(port, number, worker, new);
            match port.options.disabled {
                true => drop(port.parked.insert(queue, parked)),
                false => self.serve(port, parked, &mut updates[worker]),
            }
        }
        if let Some(batch) = &mut state.batch
            && !candidates.is_empty()
        {
            batch.candidates = Some(candidates);
        }
        if let Some(queues) = change.nic {
            let workers: Vec<usize> = queues.iter().map(|(q, _)| nic_worker(port, *q)).collect();
            let queues = workers.into_iter().zip(queues).collect();
            placement::share_out(port, number, queues, &mut updates, &self.links);
        }
        let (updates, unserved, mut released) = match state.defer(updates, unserved, released) {
            Err(now) => now,
            Ok(()) => {
                return Ok(Changed {
                    removed: Vec::new(),
                    _released: Vec::new(),
                    _memory: memory_before,
                    _inflight: inflight_before,
                });
            }
        };
        let mut removed = self.publish(state, updates);
        for Parked { stream, placed, .. } in unserved {
            removed.push(stream);
            released.push(placed);
        }
        // Only now: a worker that slept on these descriptors has been woken and has applied the change.
        for placed in &released {
            worker::unregister(&self.links[placed.worker], placed);
        }
        Ok(Changed {
            removed,
            _released: released,
            _memory: memory_before,
            _inflight: inflight_before,
        })
    }

    /// Sends every worker the new snapshot and its own changes, and waits for all of them. Returns the streams that
    /// they gave up; everything else that was replaced is freed here.
    pub(super) fn publish(&self, state: &mut State, changes: Vec<WorkerChange>) -> Vec<Stream> {
        let retired = self.exchange(state, changes).into_iter();
        retired.flat_map(|update| update.removed).collect()
    }

    /// Like [`publish`](Self::publish), but returns each worker's update; fewer than the workers only when they stop.
    pub(super) fn exchange(&self, state: &mut State, changes: Vec<WorkerChange>) -> Vec<Update> {
        let last = state
            .ports
            .iter()
            .rposition(Option::is_some)
            .map_or(0, |n| n + 1);
        let ports = state
            .ports
            .iter()
            .take(last)
            .map(|port| port.as_ref().map(|p| p.view.clone()));
        let mut ports: Box<[_]> = ports.collect();
        state.mirrors.reserve(&mut ports);
        let mirrors = state.mirrors.resolve(&state.ports, &ports);
        let mut view = Snapshot::new(
            ports,
            self.fdb.clone(),
            state.view.flows,
            state.taps.clone().into(),
        )
        .with_bridges(state.bridges.view())
        .with_sampler(state.sampler.clone())
        .with_connections(state.groups.connections());
        let mut ports = state.ports.iter().flatten();
        let probes = ports.any(|port| port.options.loop_protect.is_some());
        for (bridge, statics) in self.statics(state) {
            view = match bridge {
                DEFAULT_BRIDGE => view.with_statics(statics),
                other => view.with_statics_of(other, statics),
            };
        }
        view.snooping = state.snooping.view();
        view.set_leases(state.leases.view());
        view.suppresses = state.suppresses;
        view.mirrors = mirrors;
        view.probes = probes.then(|| self.probes.clone());
        let view = Arc::new(view);
        state.view = view.clone();
        state.published += 1;
        let mut changes = changes.into_iter();
        for (number, link) in self.links.iter().enumerate() {
            let change = changes.next().unwrap_or_default();
            let streams = streams_of(state, number) + change.add.len() + change.remove.len();
            let mut update = Update::new(view.clone(), streams);
            update.removed = Vec::with_capacity(change.remove.len());
            (update.add, update.remove, update.nics) = (change.add, change.remove, change.nics);
            update.idle = change.idle;
            if change.asks_nic_positions {
                update.nic_positions = Vec::with_capacity(MAX_PORTS);
            }
            // The previous update was waited for, so there is room.
            let _ = link.mailbox.publish(update);
            link.waker.wake();
        }
        let mut all = Vec::with_capacity(self.links.len());
        for number in 0..self.links.len() {
            all.extend(self.await_retired(number));
        }
        self.put_statics(state);
        all
    }

    /// Waits until a worker has taken the update, and returns what that replaced; `None` when the workers stop.
    pub(super) fn await_retired(&self, worker: usize) -> Option<Update> {
        let link = self.links.get(worker)?;
        loop {
            match link.mailbox.wait_retired(PATIENCE, || ()) {
                Some(retired) => return Some(retired),
                None if self.shared.stop.load(Ordering::SeqCst) => return None,
                None => tracing::error!(
                    worker,
                    "has not reached a quiescent point: no port can change until it does"
                ),
            }
        }
    }

    /// Waits until every worker has passed a quiescent point. After that, nothing that was taken out of use before the
    /// call is still used.
    pub fn quiesce(&self) {
        let mut state = self.lock();
        drop(self.publish(&mut state, Vec::new()));
    }
}

/// What a change has taken out of use; no worker uses it any more.
pub(super) struct Changed {
    pub(super) removed: Vec<Stream>,
    _released: Vec<Placed>,
    _memory: Option<Arc<GuestMemory>>,
    _inflight: Option<Arc<InflightRegion>>,
}

/// What one worker gets besides the snapshot.
#[derive(Default)]
pub(super) struct WorkerChange {
    pub(super) add: Vec<Stream>,
    pub(super) remove: Vec<StreamId>,
    pub(super) nics: Vec<(u16, Option<Box<NicTx>>)>,
    /// Whether to report how far its queues and handoffs to NICs have come.
    pub(super) asks_nic_positions: bool,
    /// What it does when it has nothing to do, if that changes.
    pub(super) idle: Option<Idle>,
}

impl WorkerChange {
    /// Adds another change to this one.
    pub(super) fn merge(&mut self, other: WorkerChange) {
        self.add.extend(other.add);
        self.remove.extend(other.remove);
        self.nics.extend(other.nics);
        self.asks_nic_positions |= other.asks_nic_positions;
        self.idle = other.idle.or(self.idle);
    }
}

pub(super) fn streams_of(state: &State, worker: usize) -> usize {
    let ports = state.ports.iter().flatten();
    ports
        .flat_map(|port| port.streams.values())
        .filter(|placed| placed.worker == worker)
        .count()
}
