//! Changes of several ports that reach the workers together: all rings of a switch stop, or start, within one poll iteration.

use crosspoint_engine::stream::Stream;
use crosspoint_engine::worker::Idle;

use super::admin::Parked;
use super::change::WorkerChange;
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
        self.lock().batch = Some(Batch {
            changes,
            unserved: Vec::new(),
            released: Vec::new(),
            candidates: None,
        });
    }

    /// Publishes the changes since [`begin_batch`](Self::begin_batch), and waits until every worker has taken them. Returns the
    /// removed streams, with their positions. If `rests` is set, the workers sleep afterwards: another process's workers run on
    /// the same cores.
    pub(crate) fn end_batch(&self, rests: bool) -> Vec<Stream> {
        let mut state = self.lock();
        let Some(batch) = state.batch.take() else {
            return Vec::new();
        };
        let mut changes = batch.changes;
        for change in &mut changes {
            change.idle = Some(self.idle(rests));
        }
        let mut removed = self.publish(&mut state, changes);
        let mut released = batch.released;
        for Parked { stream, placed } in batch.unserved {
            removed.push(stream);
            released.push(placed);
        }
        for placed in &released {
            worker::unregister(&self.links[placed.worker], placed);
        }
        drop(state);
        removed
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
