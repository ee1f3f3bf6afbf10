//! Ports that the operator has disabled. Whatever is attached to such a port stays attached, and the port's thread or driver
//! goes on changing it; but no worker polls its streams, and no frame is sent to it.

use std::io;
use std::time::Instant;

use crosspoint_engine::snapshot::Egress;
use crosspoint_engine::stream::Source;
use crosspoint_engine::stream::Stream;

use super::measured::Measured;
use super::{Dataplane, NewStream, Placed, Port, PortState, State, WorkerChange, worker};

/// A stream that no worker has, and what it needs to be given to one.
pub(super) struct Parked {
    pub(super) stream: Stream,
    pub(super) placed: Placed,
    /// Whether `placed` says already what wakes the worker.
    is_registered: bool,
}

impl Parked {
    /// Prepares a new stream of port `number` for `worker`.
    pub(super) fn new(port: &Port, number: u16, worker: usize, new: NewStream) -> Parked {
        let socket = match &new.source {
            Source::Nic(nic) => Some(nic.socket().clone()),
            Source::Guest(_) | Source::Direct(_) => None,
        };
        let direct = match &new.source {
            Source::Direct(guest) => guest.status().cloned(),
            _ => None,
        };
        let counters = port.view.counters.clone();
        let is_registered = new.place.is_some();
        let (kick, has_wakeup) = match new.place {
            Some(place) => place.take(),
            None => (new.kick, false),
        };
        let placed = Placed {
            worker,
            kick,
            has_wakeup,
            node: if socket.is_some() {
                port.node
            } else {
                new.node
            },
            socket,
            direct,
            measured: Measured::from_now(&counters, worker, new.queue),
        };
        let stream = Stream::new((number, new.queue), new.source, counters);
        Parked {
            stream,
            placed,
            is_registered,
        }
    }
}

/// The egress that workers see.
pub(super) fn shown_egress(egress: &Egress, disabled: bool) -> Egress {
    match disabled {
        true => Egress::Disabled,
        false => egress.clone(),
    }
}

impl Port {
    /// Sets the destination of its frames; workers see it unless the port is disabled.
    pub(super) fn set_egress(&mut self, egress: Egress) {
        self.view.egress = shown_egress(&egress, self.options.disabled);
        self.egress = egress;
    }

    /// Queues whose streams run, or would run if the port were not disabled.
    pub(super) fn queues_with_streams(&self) -> Vec<u16> {
        let all = self.streams.keys().chain(self.parked.keys());
        all.copied().collect()
    }

    /// What is known about these streams.
    pub(super) fn placed(&self) -> impl Iterator<Item = &Placed> {
        let parked = self.parked.values().map(|parked| &parked.placed);
        self.streams.values().chain(parked)
    }

    /// The detail of a disabled port: how to enable it, and what is attached to it.
    pub(super) fn why_disabled(&self) -> String {
        let name = &self.options.name;
        let attached = match self.state {
            PortState::Up => "its guest or interface is ready",
            PortState::Connected => "its front end is connected",
            PortState::Down => "nothing is attached",
            PortState::Quarantined => "its guest is quarantined",
        };
        format!("by the operator; {attached}; to enable it: crosspoint port enable {name}")
    }
}

impl Dataplane {
    /// Registers what wakes the stream's worker, and adds the stream to the worker's changes.
    pub(super) fn serve(&self, port: &mut Port, parked: Parked, update: &mut WorkerChange) {
        let Parked {
            mut stream,
            mut placed,
            is_registered,
        } = parked;
        let (id, waker) = (stream.id, &self.links[placed.worker].waker);
        // A wait on a socket costs time for each frame that it sends or receives. A worker that never sleeps does not
        // wait, so it needs no registration.
        let sleeps = self.options.sleep_after.is_some();
        let registered = match (&placed.socket, &placed.kick) {
            _ if is_registered => placed
                .has_wakeup
                .then_some(())
                .ok_or_else(|| io::Error::other("its kick descriptor cannot be waited for")),
            (Some(socket), _) if sleeps => waker.register_nic(id, &**socket),
            (Some(_), _) => Ok(()),
            (_, Some(kick)) => waker.register_kick(id, kick),
            (_, None) => Err(io::Error::other("there is no kick descriptor")),
        };
        placed.has_wakeup = registered.is_ok() || (!sleeps && placed.kick.is_none());
        if let Err(why) = registered
            && sleeps
        {
            tracing::info!(port = %port.view.name, queue = id.1,
                "a kick cannot wake a sleeping worker, which polls the queue every millisecond instead: {why}");
        }
        placed.measured = Measured::from_now(&port.view.counters, placed.worker, id.1);
        stream.has_wakeup = placed.has_wakeup;
        update.add.push(stream);
        port.streams.insert(id.1, placed);
    }

    /// Disables or enables port `number`, whose options say the same already.
    pub(super) fn set_disabled(&self, state: &mut State, number: u16, disabled: bool) {
        match disabled {
            true => self.park(state, number),
            false => self.unpark(state, number),
        }
    }

    /// Takes the port's streams from the workers, and forgets its addresses.
    fn park(&self, state: &mut State, number: u16) {
        let mut updates = self.changes();
        let State { ports, balance, .. } = &mut *state;
        let Some(Some(port)) = ports.get_mut(usize::from(number)) else {
            return;
        };
        port.since = Instant::now();
        port.view.egress = Egress::Disabled;
        port.calls.set_link(true);
        let placed = std::mem::take(&mut port.streams);
        for (queue, placed) in &placed {
            balance.note_left(&port.view.counters, *queue, placed);
            updates[placed.worker].remove.push((number, *queue));
        }
        let mut given_up = self.publish(state, updates);
        let mut parked = placed.into_iter().filter_map(|(queue, placed)| {
            worker::unregister(&self.links[placed.worker], &placed);
            let index = given_up.iter().position(|stream| stream.id.1 == queue)?;
            let stream = given_up.swap_remove(index);
            let is_registered = false;
            Some((
                queue,
                Parked {
                    stream,
                    placed,
                    is_registered,
                },
            ))
        });
        if let Some(Some(port)) = state.ports.get_mut(usize::from(number)) {
            port.parked.extend(&mut parked);
            tracing::info!(port = %port.view.name, "disabled: no frame is taken from it or sent to it");
        }
        drop(parked);
        self.forget(state, number);
    }

    /// Gives the port's streams back to their workers.
    fn unpark(&self, state: &mut State, number: u16) {
        let mut updates = self.changes();
        let Some(Some(port)) = state.ports.get_mut(usize::from(number)) else {
            return;
        };
        port.since = Instant::now();
        port.view.egress = port.egress.clone();
        port.calls.set_link(false);
        for parked in std::mem::take(&mut port.parked).into_values() {
            let worker = parked.placed.worker;
            self.serve(port, parked, &mut updates[worker]);
        }
        tracing::info!(port = %port.view.name, "enabled");
        drop(self.publish(state, updates));
    }
}
