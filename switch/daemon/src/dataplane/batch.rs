//! Changes of several ports that reach the workers together: all rings of a switch stop, or start, within one poll iteration.

use crosspoint_engine::worker::Idle;

use super::admin::Parked;
use super::change::WorkerChange;
use super::nic_takeover::GivenUp;
use super::placement::Candidate;
use super::{Dataplane, Placed, State, worker};

/// A port's part of a change: by worker, streams that no worker had, and what is known of those that a worker gives up.
type Deferred = (Vec<WorkerChange>, Vec<Parked>, Vec<Placed>);

/// Changes that have not been published yet.
pub(super) struct Batch {
    changes: Vec<WorkerChange>,
    unserved: Vec<Parked>,
    released: Vec<Placed>,
    /// The workers as candidates for new streams: found once for all ports.
    pub(super) candidates: Option<Vec<Candidate>>,
}

impl Batch {
    pub(super) fn take(
        &mut self,
        changes: Vec<WorkerChange>,
        unserved: Vec<Parked>,
        released: Vec<Placed>,
    ) {
        for (all, one) in self.changes.iter_mut().zip(changes) {
            all.merge(one);
        }
        self.unserved.extend(unserved);
        self.released.extend(released);
    }
}

impl Dataplane {
    /// Changes of ports' rings wait from now on until [`end_batch`](Self::end_batch).
    pub(crate) fn begin_batch(&self) {
        let changes = self.changes();
        let mut state = self.lock();
        self.unregister_all(&std::mem::take(&mut state.released));
        state.batch = Some(Batch {
            changes,
            unserved: Vec::new(),
            released: Vec::new(),
            candidates: None,
        });
    }

    /// Publishes the changes since [`begin_batch`](Self::begin_batch), and waits until every worker has taken them. Returns
    /// what they have given up. If `rests` is set, the workers sleep afterwards: another process's workers run on the same
    /// cores.
    pub(crate) fn end_batch(&self, rests: bool) -> GivenUp {
        let mut given_up = GivenUp {
            streams: Vec::new(),
            nics: Vec::new(),
        };
        let mut state = self.lock();
        state.ahead = None;
        let Some(batch) = state.batch.take() else {
            return given_up;
        };
        let mut changes = batch.changes;
        for change in &mut changes {
            change.idle = Some(self.idle(rests));
        }
        for update in self.exchange(&mut state, changes) {
            given_up.streams.extend(update.removed);
            let nics = update.nics.into_iter();
            let nics = nics.filter_map(|(port, nic)| Some((port, nic?)));
            given_up.nics.extend(nics);
        }
        let mut released = batch.released;
        for Parked { stream, placed, .. } in batch.unserved {
            given_up.streams.push(stream);
            released.push(placed);
        }
        match rests {
            // This process is about to end; if not, its rings start again, and then there is time.
            true => state.released.extend(released),
            false => self.unregister_all(&released),
        }
        drop(state);
        given_up
    }

    fn unregister_all(&self, released: &[Placed]) {
        for placed in released {
            worker::unregister(&self.links[placed.worker], placed);
        }
    }

    /// What idle workers do: as configured, or sleep at once.
    fn idle(&self, rests: bool) -> Idle {
        match self.options.sleep_after {
            _ if rests => Idle::SleepAfter(0),
            None => Idle::Spin,
            Some(time) => Idle::SleepAfter(self.clock.cycles(time)),
        }
    }
}

impl State {
    /// Leaves a change to the batch, if there is one.
    pub(super) fn defer(
        &mut self,
        changes: Vec<WorkerChange>,
        unserved: Vec<Parked>,
        released: Vec<Placed>,
    ) -> Result<(), Deferred> {
        match &mut self.batch {
            Some(batch) => {
                batch.take(changes, unserved, released);
                Ok(())
            }
            None => Err((changes, unserved, released)),
        }
    }
}
