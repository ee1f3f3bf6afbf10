//! Guests' own NIC queues: finds the uplink of one, and gives up those that no longer send.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use crosspoint_engine::stream::Stream;

use super::{Dataplane, Placed, State, WorkerChange};

/// An uplink, as needed to open a queue of its interface.
pub struct Uplink {
    /// Its port number.
    pub number: u16,
    /// Its interface.
    pub interface: String,
    /// Whether the NIC reads and writes packet memory directly.
    pub zero_copy: bool,
    /// Longest frame that it sends, bytes, without a tag; it follows the interface's MTU.
    pub frame_len_max: Arc<AtomicU32>,
}

impl Dataplane {
    /// The port named `name`, if there is one: `Some(None)` if it is no uplink or is not open.
    pub fn uplink(&self, name: &str) -> Option<Option<Uplink>> {
        let state = self.lock();
        let mut ports = state.ports.iter().enumerate();
        let (number, port) = ports
            .find_map(|(n, port)| Some((n, port.as_ref().filter(|p| p.options.name == name)?)))?;
        let open = || {
            let socket = port.placed().find_map(|placed| placed.socket.as_ref())?;
            Some(Uplink {
                number: number as u16,
                interface: port.properties.get("interface")?.clone(),
                zero_copy: socket.zero_copy(),
                frame_len_max: socket.frame_limit(),
            })
        };
        Some(open())
    }

    /// Converts `time` to cycles.
    pub fn cycles(&self, time: Duration) -> u64 {
        self.clock.cycles(time)
    }

    /// Closes queues that no longer send; their guests continue with copies.
    pub(super) fn end_lost_directs(&self, state: &mut State) {
        let is_lost = |placed: &Placed| {
            placed
                .direct
                .as_ref()
                .is_some_and(|direct| direct.is_lost())
        };
        let ports = (0..).zip(&state.ports);
        let lost = ports.flat_map(|(number, port)| {
            let streams = port.iter().flat_map(|port| &port.streams);
            let lost = streams.filter(|(_, placed)| is_lost(placed));
            lost.map(move |(queue, placed)| ((number, *queue), placed.worker))
        });
        let lost: Vec<((u16, u16), usize)> = lost.collect();
        if lost.is_empty() {
            return;
        }
        // All at once, under the lock, so no other port changes meanwhile.
        let mut changes: Vec<_> = self.links.iter().map(|_| WorkerChange::default()).collect();
        for (id, worker) in &lost {
            Dataplane::note_lost_direct(state, *id);
            changes[*worker].remove.push(*id);
        }
        let removed = self.publish(state, changes);
        let mut changes: Vec<_> = self.links.iter().map(|_| WorkerChange::default()).collect();
        for stream in Stream::end_directs(removed) {
            let of = lost.iter().find(|(id, _)| *id == stream.id);
            if let Some((_, worker)) = of {
                changes[*worker].add.push(stream);
            }
        }
        drop(self.publish(state, changes));
    }

    fn note_lost_direct(state: &mut State, id: (u16, u16)) {
        const WHY: &str = "the interface is down or gone, or has sent nothing for seconds";
        if let Some(Some(port)) = state.ports.get_mut(usize::from(id.0)) {
            tracing::warn!(port = %port.view.name,
                "its own queue is given up, and its frames are copied until it reconnects: {WHY}");
            let text = format!("given up, frames are copied: {WHY}");
            port.properties.insert("direct".to_owned(), text);
            if let Some(placed) = port.streams.get_mut(&id.1) {
                placed.direct = None;
            }
        }
    }
}
