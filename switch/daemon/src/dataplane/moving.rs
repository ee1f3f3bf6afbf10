//! Moves a stream from one worker to another: no frame is lost, no frame overtakes another of its flow, and other ports
//! are not affected.
//!
//! 1. The first worker gives the stream up between two poll iterations. By then each frame that it took from the stream
//!    is in a guest's ring, on the transmit ring of a NIC's queue, or in a handoff to one. A guest's ring keeps the
//!    order of later deliveries. On the way to a NIC, a frame that the other worker sends through another queue could
//!    overtake.
//! 2. So the move waits for everything that was given to NICs until then: until it has been taken from handoffs and the
//!    kernel has completed it. If that takes too long, the first worker gets the stream back. There is no wait if no
//!    frame of the stream ever went to a NIC. The move does not wait for NICs that are down either, since they may be
//!    down for days: frames that they hold may be sent after later ones when the outage ends.
//! 3. From now on the guest's kick wakes the other worker. No kick is missed meanwhile: a worker that takes a stream on
//!    polls it before it sleeps, and only then asks for kicks.
//! 4. The other worker takes the stream on.
//!
//! During the move the guest's frames wait in its ring, as they do for a busy worker.

use std::time::{Duration, Instant};

use crosspoint_engine::egress::tx::NicPosition;
use crosspoint_engine::snapshot::Egress;
use crosspoint_engine::snapshot::Snapshot;
use crosspoint_engine::stream::StreamId;
use thiserror::Error;

use super::measured::Measured;
use super::{Dataplane, Placed, Port, State, WorkerChange};

/// The longest time that NICs may make no progress. Meanwhile the guest waits, and no port can change.
const STILL_TIME_MAX: Duration = Duration::from_millis(20);
/// The longest time that NICs may take in total.
const SEND_TIME_MAX: Duration = Duration::from_millis(100);
/// Interval between two checks of the NICs' progress.
const LOOK: Duration = Duration::from_micros(100);

/// Why a stream cannot move to another worker.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum MoveError {
    /// There is no such port.
    #[error("no port is named {name:?}")]
    NoPort {
        /// The name that was asked for.
        name: String,
    },
    /// The port has no such stream now.
    #[error("no worker polls queue {queue} of port {port}: its ring does not run")]
    NoStream {
        /// The port.
        port: String,
        /// The queue.
        queue: u16,
    },
    /// There is no such worker.
    #[error("there is no worker {worker}: the last one is {last}")]
    NoWorker {
        /// The worker that was asked for.
        worker: usize,
        /// The highest worker number.
        last: usize,
    },
    /// The stream is a NIC's queue.
    #[error(
        "queue {queue} of port {port} is a NIC's: it stays with the worker that has its packet memory"
    )]
    Nic {
        /// The port.
        port: String,
        /// The queue.
        queue: u16,
    },
    /// The guest has a NIC's queue of its own.
    #[error(
        "queue {queue} of port {port} has a NIC's queue of its own (`direct`), and stays with it"
    )]
    Direct {
        /// The port.
        port: String,
        /// The queue.
        queue: u16,
    },
    /// The configuration names the port's worker.
    #[error("port {port} is pinned: its configuration has `worker = {worker}`")]
    Pinned {
        /// The port.
        port: String,
        /// Its worker.
        worker: usize,
    },
    /// A worker is stalled, and the move would have to wait for it.
    #[error("worker-{worker} makes no progress: no queue can move until it does")]
    Stalled {
        /// Its number.
        worker: usize,
    },
    /// A NIC has not sent in time what the stream's worker gave it.
    #[error(
        "a NIC has not sent in time the frames that worker-{from} gave it, and later frames would overtake them: the queue stays there"
    )]
    PutOff {
        /// The stream's worker.
        from: usize,
    },
    /// The kick cannot be registered with the other worker.
    #[error("kicks of queue {queue} of port {port} cannot wake another worker: {why}")]
    Kick {
        /// The port.
        port: String,
        /// The queue.
        queue: u16,
        /// The kernel's error.
        why: String,
    },
    /// The workers are stopping.
    #[error("the switch is shutting down")]
    Ending,
}

impl MoveError {
    /// What the operator can do about it.
    pub fn help(&self) -> &'static str {
        match self {
            MoveError::NoPort { .. } | MoveError::NoStream { .. } | MoveError::NoWorker { .. } => {
                "`crosspoint show workers` lists the workers, and the queues that each polls"
            }
            MoveError::Nic { .. } | MoveError::Direct { .. } => {
                "`worker = N` in the port's configuration sets the worker that it starts with"
            }
            MoveError::Pinned { .. } => {
                "remove `worker` from the port's configuration, or change it"
            }
            MoveError::Stalled { .. } => "the daemon's log shows the reason",
            MoveError::PutOff { .. } => "try again when that NIC sends again, or has less to send",
            MoveError::Kick { .. } => {
                "the user's epoll watches may be used up: see fs.epoll.max_user_watches"
            }
            MoveError::Ending => "repeat the command when the switch has started again",
        }
    }
}

/// Whether balancing may move a stream to another worker.
pub(super) fn is_movable(port: &Port, placed: &Placed) -> bool {
    placed.socket.is_none() && placed.direct.is_none() && port.options.worker.is_none()
}

impl Dataplane {
    /// Makes `worker` poll queue `queue` of the guest port named `name` from now on.
    pub fn move_stream(&self, name: &str, queue: u16, worker: usize) -> Result<(), MoveError> {
        let mut state = self.lock();
        let is_it = |port: &Option<Port>| port.as_ref().is_some_and(|p| p.options.name == name);
        let number = state.ports.iter().position(is_it);
        let number = number.ok_or_else(|| MoveError::NoPort {
            name: name.to_owned(),
        })?;
        self.move_locked(&mut state, (number as u16, queue), worker)
    }

    pub(super) fn move_locked(
        &self,
        state: &mut State,
        id: StreamId,
        to: usize,
    ) -> Result<(), MoveError> {
        let from = self.check_move(state, id, to)?;
        if from == to {
            return Ok(());
        }
        // A change waits for every worker, and the port table is locked during the wait.
        let mut workers = 0..self.links.len();
        if let Some(worker) = workers.find(|worker| self.watch.stalls(*worker).0) {
            return Err(MoveError::Stalled { worker });
        }
        let mut changes = self.changes();
        changes[from].remove.push(id);
        changes.iter_mut().for_each(|c| c.asks_nic_positions = true);
        let mut given_up = self.exchange(state, changes);
        let positions = given_up
            .iter_mut()
            .map(|update| std::mem::take(&mut update.nic_positions));
        let positions: Vec<_> = positions.collect();
        let stream = given_up
            .into_iter()
            .flat_map(|update| update.removed)
            .next();
        let stream = stream.ok_or(MoveError::Ending)?;
        let is_sent = !stream.has_used_nics || self.wait_sent(state, from, positions);
        let result = match is_sent {
            true => self.replace(state, id, to),
            false => Err(MoveError::PutOff { from }),
        };
        match &result {
            Ok(()) => state.balance.moves[to] += 1,
            Err(MoveError::PutOff { .. }) => state.balance.put_off[from] += 1,
            Err(_) => {}
        }
        let mut changes = self.changes();
        changes[if result.is_ok() { to } else { from }]
            .add
            .push(stream);
        drop(self.publish(state, changes));
        result
    }

    pub(super) fn changes(&self) -> Vec<WorkerChange> {
        self.links.iter().map(|_| WorkerChange::default()).collect()
    }

    /// Returns the worker that has the stream, if the stream may move to worker `to`.
    fn check_move(&self, state: &State, id: StreamId, to: usize) -> Result<usize, MoveError> {
        let (number, queue) = id;
        let port = state
            .ports
            .get(usize::from(number))
            .and_then(Option::as_ref);
        let name = || port.map_or(String::new(), |port| port.options.name.clone());
        let placed = port.and_then(|port| port.streams.get(&queue));
        let placed = placed.ok_or_else(|| MoveError::NoStream {
            port: name(),
            queue,
        })?;
        if to >= self.links.len() {
            let last = self.links.len() - 1;
            return Err(MoveError::NoWorker { worker: to, last });
        }
        if placed.socket.is_some() {
            return Err(MoveError::Nic {
                port: name(),
                queue,
            });
        }
        if placed.direct.is_some() {
            return Err(MoveError::Direct {
                port: name(),
                queue,
            });
        }
        match port.and_then(|port| port.options.worker) {
            Some(worker) if worker != to => Err(MoveError::Pinned {
                port: name(),
                worker,
            }),
            _ => Ok(placed.worker),
        }
    }

    /// Records the stream's new worker, and makes its kicks wake that worker. No worker has the stream meanwhile. After
    /// an error nothing has changed.
    fn replace(&self, state: &mut State, id: StreamId, to: usize) -> Result<(), MoveError> {
        let Some(Some(port)) = state.ports.get_mut(usize::from(id.0)) else {
            return Ok(());
        };
        let Some(placed) = port.streams.get_mut(&id.1) else {
            return Ok(());
        };
        if let Some(kick) = &placed.kick
            && placed.has_wakeup
        {
            let registered = self.links[to].waker.register_kick(id, kick);
            registered.map_err(|why| MoveError::Kick {
                port: port.options.name.clone(),
                queue: id.1,
                why: why.to_string(),
            })?;
            let _ = self.links[placed.worker].waker.unregister(kick);
        }
        let counters = &port.view.counters;
        state.balance.note_left(counters, id.1, placed);
        placed.worker = to;
        placed.measured = Measured::from_now(counters, to, id.1);
        Ok(())
    }

    /// Waits until NICs have sent what worker `from` had given them at the time of `positions` (of all workers).
    /// Returns whether they have.
    fn wait_sent(
        &self,
        state: &mut State,
        from: usize,
        mut positions: Vec<Vec<NicPosition>>,
    ) -> bool {
        let view = state.view.clone();
        let mut patience = Patience::new(Instant::now());
        let mut look_again = |state: &mut State, positions: &[Vec<NicPosition>]| {
            if patience.is_over(Instant::now(), done_by(from, positions)) {
                return None;
            }
            std::thread::sleep(LOOK);
            self.nic_positions(state)
        };
        let handed = handed(from, &positions, &view);
        // One more read after the last frame was taken: the worker that took it may have reported its position before
        // that.
        let mut looks = !handed.is_empty();
        while looks {
            looks = !are_taken(&handed, from, &positions);
            match look_again(state, &positions) {
                Some(now) => positions = now,
                None => return false,
            }
        }
        let given = given(from, &handed, &positions, &view);
        while !are_sent(&given, &positions) {
            match look_again(state, &positions) {
                Some(now) => positions = now,
                None => return false,
            }
        }
        true
    }

    /// How far all workers' queues and handoffs to NICs have come; `None` when the workers stop.
    fn nic_positions(&self, state: &mut State) -> Option<Vec<Vec<NicPosition>>> {
        let mut changes = self.changes();
        changes.iter_mut().for_each(|c| c.asks_nic_positions = true);
        let updates = self.exchange(state, changes);
        let all = updates.len() == self.links.len();
        all.then(|| {
            updates
                .into_iter()
                .map(|update| update.nic_positions)
                .collect()
        })
    }
}

/// Time limit for waiting on NICs: they must make progress, and the total is bounded.
struct Patience {
    end: Instant,
    still_end: Instant,
    done: u64,
}

impl Patience {
    fn new(now: Instant) -> Patience {
        Patience {
            end: now + SEND_TIME_MAX,
            still_end: now + STILL_TIME_MAX,
            done: 0,
        }
    }

    /// `done` grows with any progress.
    fn is_over(&mut self, now: Instant, done: u64) -> bool {
        if done != self.done {
            (self.done, self.still_end) = (done, now + STILL_TIME_MAX);
        }
        now > self.end || now > self.still_end
    }
}

/// A number that grows while NICs make progress with what worker `from` may have given them.
fn done_by(from: usize, positions: &[Vec<NicPosition>]) -> u64 {
    let of = |(worker, way): (usize, &NicPosition)| match way {
        NicPosition::Own { completed, .. } => *completed,
        NicPosition::Remote { taken, .. } if worker == from => *taken,
        NicPosition::Remote { .. } => 0,
    };
    let all = positions.iter().enumerate();
    all.flat_map(|(worker, ways)| ways.iter().map(move |way| (worker, way)))
        .map(of)
        .fold(0, u64::wrapping_add)
}

/// Whether frames for a NIC port are being sent.
fn is_up(view: &Snapshot, port: u16) -> bool {
    let port = view.port(port);
    port.is_some_and(|port| !matches!(port.egress, Egress::Down))
}

/// Port and total number of frames of each handoff that a worker has used.
fn handed(from: usize, positions: &[Vec<NicPosition>], view: &Snapshot) -> Vec<(u16, u64)> {
    let ways = positions.get(from).into_iter().flatten();
    let handed = ways.filter_map(|way| match way {
        NicPosition::Remote { port, pushed, .. } if *pushed > 0 && is_up(view, *port) => {
            Some((*port, *pushed))
        }
        _ => None,
    });
    handed.collect()
}

/// Whether all of `handed` was taken, regardless of later handoffs.
fn are_taken(handed: &[(u16, u64)], from: usize, positions: &[Vec<NicPosition>]) -> bool {
    handed.iter().all(|(port, pushed)| {
        let mut ways = positions.get(from).into_iter().flatten();
        ways.any(|way| {
            matches!(way, NicPosition::Remote { port: p, taken, .. } if p == port && taken >= pushed)
        })
    })
}

/// The queues that may hold the worker's frames: of each port that is up, the worker's own queue, and every worker's
/// queue if the worker used a handoff for that port. Each entry is the worker, the port, and how much was submitted to
/// that queue.
fn given(
    from: usize,
    handed: &[(u16, u64)],
    positions: &[Vec<NicPosition>],
    view: &Snapshot,
) -> Vec<(usize, u16, u64)> {
    let through_others = |port: u16| handed.iter().any(|(handed, _)| *handed == port);
    let all = positions
        .iter()
        .enumerate()
        .flat_map(|(worker, ways)| ways.iter().map(move |way| (worker, way)));
    let own = all.filter_map(|(worker, way)| match way {
        NicPosition::Own {
            port, submitted, ..
        } if (worker == from || through_others(*port)) && is_up(view, *port) => {
            Some((worker, *port, *submitted))
        }
        _ => None,
    });
    own.collect()
}

/// Whether the kernel has completed all of `given`.
fn are_sent(given: &[(usize, u16, u64)], positions: &[Vec<NicPosition>]) -> bool {
    given.iter().all(|(worker, port, submitted)| {
        let mut ways = positions.get(*worker).into_iter().flatten();
        ways.any(|way| {
            matches!(way, NicPosition::Own { port: p, completed, .. } if p == port && completed >= submitted)
        })
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crosspoint_engine::bridge::fdb::Fdb;
    use crosspoint_engine::bridge::fdb::Quota;
    use crosspoint_engine::bridge::vlan::VlanPolicy;
    use crosspoint_engine::observe::counters::PortCounters;
    use crosspoint_engine::snapshot::PortSnapshot;
    use crosspoint_packet::FlowHasher;

    use super::*;

    fn own(port: u16, submitted: u64, completed: u64) -> NicPosition {
        NicPosition::Own {
            port,
            submitted,
            completed,
        }
    }

    fn remote(port: u16, pushed: u64, taken: u64) -> NicPosition {
        NicPosition::Remote {
            port,
            pushed,
            taken,
        }
    }

    /// A snapshot whose ports have these egresses.
    fn view(ports: &[Egress]) -> Snapshot {
        let port = |egress: &Egress| PortSnapshot {
            name: "port".into(),
            bridge: 0,
            tags: None,
            vlan: Arc::new(VlanPolicy::Unaware),
            egress: egress.clone(),
            counters: Arc::new(PortCounters::new(1, 1)),
            quota: Arc::new(Quota::new(0)),
            joins: false,
            weight: 1,
            storm: None,
            meter_out: None,
            meter_in: None,
            uplink_share: None,
            sources: None,
            groups: None,
            is_server: true,
            is_isolated: false,
            is_uplink: false,
            control: crosspoint_engine::stages::control::ControlAddresses::NONE,
        };
        Snapshot::new(
            ports.iter().map(|egress| Some(port(egress))).collect(),
            Arc::new(Fdb::new(0, [0, 1])),
            FlowHasher::new(0),
            Box::new([]),
        )
    }

    #[test]
    fn what_a_worker_gave_to_its_own_queues_and_through_others_is_waited_for_and_nothing_else() {
        let view = view(&[
            Egress::Nic,
            Egress::Nic,
            Egress::Nic,
            Egress::Nic,
            Egress::Down,
        ]);
        let positions = [
            vec![
                own(0, 10, 4),
                remote(1, 5, 5),
                remote(3, 0, 0),
                own(4, 8, 0),
            ],
            vec![own(0, 99, 0), own(1, 7, 6), own(2, 50, 0), own(3, 9, 0)],
        ];
        let handed = handed(0, &positions, &view);
        assert_eq!(handed, [(1, 5)]);
        let given = given(0, &handed, &positions, &view);
        assert_eq!(given, [(0, 0, 10), (1, 1, 7)]);
        assert!(!are_sent(&given, &positions));
        // Other workers go on meanwhile; the move does not wait for them.
        let later = [
            vec![own(0, 12, 10), remote(1, 5, 5)],
            vec![own(0, 200, 3), own(1, 20, 7), own(2, 60, 0)],
        ];
        assert!(are_sent(&given, &later));
        // A queue that is gone reports nothing.
        assert!(!are_sent(&given, &[vec![own(0, 12, 10)], vec![]]));
    }

    #[test]
    fn who_floods_the_same_handover_keeps_no_other_waiting() {
        let taken = |pushed, taken| are_taken(&[(1, 40)], 0, &[vec![remote(1, pushed, taken)]]);
        assert!(!taken(40, 0) && !taken(1000, 39));
        // The handoff is never empty.
        assert!(taken(1000, 40) && taken(2000, 1872));
    }

    #[test]
    fn nics_are_waited_for_while_they_get_on_with_it_and_not_for_ever() {
        let (start, step) = (Instant::now(), STILL_TIME_MAX * 3 / 4);
        let mut still = Patience::new(start);
        assert!(!still.is_over(start + step, 0) && still.is_over(start + 2 * step, 0));
        let mut busy = Patience::new(start);
        let turns =
            (1u32..).take_while(|turn| !busy.is_over(start + *turn * step, u64::from(*turn)));
        let turns = turns.count() as u32;
        assert!((4..10).contains(&turns), "{turns}");
    }
}
