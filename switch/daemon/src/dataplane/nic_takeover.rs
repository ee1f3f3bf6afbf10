//! NIC queues that go from one process of the switch to its successor.
//!
//! The successor maps the sockets while it prepares ([`Dataplane::map_nic`]). When the rings of guests stop, so do NIC queues
//! ([`Dataplane::begin_suspend_nics`]), and the places of their frames are written down ([`SuspendedNics::write`]). The
//! successor starts them in the batch in which it starts guests' rings ([`Dataplane::resume_nics`]); until the thread of the
//! uplink opens its port, nothing else knows of them ([`Dataplane::running_nic`]).

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::sync::{Arc, PoisonError};

use crosspoint_engine::egress::tx::NicTx;
use crosspoint_engine::snapshot::Egress;
use crosspoint_engine::stream::Stream;
use crosspoint_xsk::{
    FramePlaces, MappedSocket, SocketError, SocketRecord, XskRx, XskSocket, XskTx,
};

use super::{Dataplane, Placed, Port, PortChange, PortState, State};

/// A socket of the predecessor that a port is to go on with.
pub(crate) struct TakenSocket {
    /// Its queue, and the worker that has it.
    pub(crate) queue: u16,
    pub(crate) worker: usize,
    /// The interface's number.
    pub(crate) ifindex: u32,
    /// The longest frame that it sends, bytes, without tags.
    pub(crate) frame_len_max: u32,
    /// Whether larger frames may arrive, and whether they are sent whole.
    pub(crate) takes_large: bool,
    pub(crate) sends_large: bool,
    pub(crate) record: SocketRecord,
    /// The socket, and its packet memory.
    pub(crate) fds: [OwnedFd; 2],
}

/// What a port has of its predecessor.
#[derive(Default)]
pub(super) struct TakenNic {
    mapped: BTreeMap<u16, Mapped>,
    /// With the interface's number.
    running: BTreeMap<u16, (u32, Arc<XskSocket>)>,
    /// Queues whose records the supervisor keeps, with the sockets' descriptors: as long as these are open, the queues are busy.
    recorded: BTreeSet<u16>,
    /// Whether the sockets that run send large frames whole.
    sends_large: bool,
    /// Workers of the queues: sockets that share memory there share it here, and so need the same worker.
    workers: BTreeMap<u16, usize>,
}

struct Mapped {
    socket: MappedSocket,
    ifindex: u32,
    takes_large: bool,
    sends_large: bool,
}

impl TakenNic {
    /// The worker that a queue had at the predecessor.
    pub(super) fn worker(&self, queue: u16) -> Option<usize> {
        self.workers.get(&queue).copied()
    }
}

/// NIC queues that no worker has.
pub(crate) struct SuspendedNics {
    queues: Vec<Suspended>,
}

struct Suspended {
    port: u16,
    name: String,
    queue: u16,
    /// Whether frames are sent to the port.
    is_up: bool,
    rx: XskRx,
    /// A queue that only receives has none.
    tx: Option<XskTx>,
}

/// What workers have given up at the end of a batch.
pub(crate) struct GivenUp {
    /// Streams, with the positions of their rings.
    pub(crate) streams: Vec<Stream>,
    /// Egress queues to NIC ports, by port.
    pub(super) nics: Vec<(u16, Box<NicTx>)>,
}

impl Dataplane {
    /// Adds to the batch: workers give up all NIC queues of ports that are not disabled.
    pub(crate) fn begin_suspend_nics(&self) {
        let mut changes = self.changes();
        let mut released = Vec::new();
        let mut state = self.lock();
        let State { ports, balance, .. } = &mut *state;
        for (number, port) in ports.iter_mut().enumerate() {
            let Some(port) = port else { continue };
            let number = number as u16;
            let streams = std::mem::take(&mut port.streams).into_iter();
            let (of_nic, others) = streams.partition(|(_, placed)| placed.socket.is_some());
            port.streams = others;
            let of_nic: BTreeMap<u16, Placed> = of_nic;
            if of_nic.is_empty() {
                continue;
            }
            for (queue, placed) in of_nic {
                balance.note_left(&port.view.counters, queue, &placed);
                changes[placed.worker].remove.push((number, queue));
                released.push(placed);
            }
            changes
                .iter_mut()
                .for_each(|change| change.nics.push((number, None)));
        }
        // There is a batch; without one, nothing would be given up.
        let _ = state.defer(changes, Vec::new(), released);
    }

    /// Makes the two halves of each NIC queue out of what workers have given up.
    pub(crate) fn end_suspend_nics(&self, given_up: &mut GivenUp) -> SuspendedNics {
        let mut state = self.lock();
        let mut halves: Vec<(u16, XskTx)> = Vec::new();
        for (port, nic) in given_up.nics.drain(..) {
            if let NicTx::Own(tx) = *nic {
                halves.push((port, tx));
            }
        }
        let has_given_up = |number| {
            given_up
                .streams
                .iter()
                .any(|stream| stream.is_nic() && usize::from(stream.id.0) == number)
        };
        for (number, port) in state.ports.iter_mut().enumerate() {
            let port = port.iter_mut().filter(|_| has_given_up(number));
            let spare = port.flat_map(|port| port.spare.drain(..));
            halves.extend(spare.map(|tx| (number as u16, tx)));
        }
        let mut queues = Vec::new();
        for stream in given_up.streams.extract_if(.., |stream| stream.is_nic()) {
            let (number, queue) = stream.id;
            let port = state
                .ports
                .get(usize::from(number))
                .and_then(Option::as_ref);
            let (Some(port), Some(rx)) = (port, stream.into_nic()) else {
                continue;
            };
            let is_its = |(_, tx): &(u16, XskTx)| Arc::ptr_eq(tx.socket(), rx.socket());
            let at = halves.iter().position(is_its);
            queues.push(Suspended {
                port: number,
                name: port.options.name.clone(),
                queue,
                is_up: matches!(port.egress, Egress::Nic),
                rx,
                tx: at.map(|at| halves.swap_remove(at).1),
            });
        }
        SuspendedNics { queues }
    }

    /// Gives suspended NIC queues back to their workers, in the batch that has begun.
    pub(crate) fn take_back_nics(&self, suspended: SuspendedNics) {
        let mut of_ports: BTreeMap<u16, Vec<Halves>> = BTreeMap::new();
        for one in suspended.queues {
            let of_port = of_ports.entry(one.port).or_default();
            of_port.push((one.queue, one.rx, one.tx));
        }
        let mut state = self.lock();
        for (port, halves) in of_ports {
            let _ = self.change_locked(&mut state, port, PortChange::of_nic(halves));
        }
    }

    /// The supervisor has a record of a socket of port `number`.
    pub(crate) fn note_recorded(&self, number: u16, queue: u16) {
        if let Some(Some(port)) = self.lock().ports.get_mut(usize::from(number)) {
            port.taken.recorded.insert(queue);
        }
    }

    /// Takes the queues of port `number` whose records are of no use any more: their sockets do not run.
    pub(crate) fn take_unused_records(&self, number: u16) -> Vec<u16> {
        let mut state = self.lock();
        let Some(Some(port)) = state.ports.get_mut(usize::from(number)) else {
            return Vec::new();
        };
        let TakenNic {
            recorded, running, ..
        } = &mut port.taken;
        let unused = recorded.iter().copied();
        let unused: Vec<u16> = unused
            .filter(|queue| !running.contains_key(queue))
            .collect();
        recorded.retain(|queue| running.contains_key(queue));
        unused
    }

    /// Maps a socket of the predecessor for port `number`.
    pub(crate) fn map_nic(&self, number: u16, taken: TakenSocket) -> Result<(), SocketError> {
        let (to, queue) = ((taken.ifindex, u32::from(taken.queue)), taken.queue);
        let Some(memory) = self.memories.get(taken.worker) else {
            let why = format!("there is no worker {}", taken.worker);
            return Err(SocketError::of("taking its queue over", why));
        };
        let mut memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
        let limit = taken.frame_len_max;
        let socket = memory.map_socket(to, &taken.record, limit, taken.fds)?;
        drop(memory);
        if let Some(Some(port)) = self.lock().ports.get_mut(usize::from(number)) {
            port.taken.workers.insert(queue, taken.worker);
            let mapped = Mapped {
                socket,
                ifindex: taken.ifindex,
                takes_large: taken.takes_large,
                sends_large: taken.sends_large,
            };
            port.taken.mapped.insert(queue, mapped);
        }
        Ok(())
    }

    /// Gives mapped NIC queues to workers, in the batch that has begun. `text` is what the predecessor's
    /// [`SuspendedNics::write`] has written. Queues of ports of which anything is missing are closed: they are opened anew.
    pub(crate) fn resume_nics(&self, mut text: &[u8]) {
        let mut of_ports: BTreeMap<String, (bool, BTreeMap<u16, FramePlaces>)> = BTreeMap::new();
        while let Some((name, queue, is_up, places)) = read_one(&mut text) {
            let (up, queues) = of_ports.entry(name).or_default();
            *up = is_up;
            queues.insert(queue, places);
        }
        let mut state = self.lock();
        for number in 0..state.ports.len() {
            let Some(port) = &mut state.ports[number] else {
                continue;
            };
            let mapped = std::mem::take(&mut port.taken.mapped);
            if mapped.is_empty() {
                continue;
            }
            if port.options.disabled {
                // No frame is lost.
                port.taken.workers.clear();
                continue;
            }
            let found = of_ports.remove(&port.options.name);
            let Some((is_up, halves)) =
                found.and_then(|(is_up, places)| Some((is_up, resume(port, mapped, &places)?)))
            else {
                port.taken.workers.clear();
                tracing::warn!(
                    port = port.options.name,
                    "the sockets of the former process do not fit: they are opened anew, and frames are lost for a moment"
                );
                continue;
            };
            let change = PortChange {
                egress: Some(if is_up { Egress::Nic } else { Egress::Down }),
                state: Some((
                    if is_up {
                        PortState::Up
                    } else {
                        PortState::Down
                    },
                    "taken over from the predecessor".to_owned(),
                )),
                ..PortChange::of_nic(halves)
            };
            let _ = self.change_locked(&mut state, number as u16, change);
        }
    }

    /// Whether these send large frames whole.
    pub(crate) fn running_nic_sends_large(&self, number: u16) -> bool {
        let state = self.lock();
        let port = state
            .ports
            .get(usize::from(number))
            .and_then(Option::as_ref);
        port.is_some_and(|port| port.taken.sends_large)
    }

    /// The sockets of port `number` on interface number `ifindex` that run since they were taken over.
    pub(crate) fn running_nic(&self, number: u16, ifindex: u32) -> BTreeMap<u16, Arc<XskSocket>> {
        let state = self.lock();
        let port = state
            .ports
            .get(usize::from(number))
            .and_then(Option::as_ref);
        let running = port.into_iter().flat_map(|port| &port.taken.running);
        let running = running.filter(|(_, (index, _))| *index == ifindex);
        running
            .map(|(queue, (_, socket))| (*queue, socket.clone()))
            .collect()
    }

    /// The thread of port `number` has the sockets that were taken over, and closes them.
    pub(crate) fn own_nic(&self, number: u16) {
        if let Some(Some(port)) = self.lock().ports.get_mut(usize::from(number)) {
            port.taken.running.clear();
            // They are recorded again.
            port.taken.recorded.clear();
        }
    }

    /// Closes the sockets of port `number` that were taken over and that nothing else knows of; its queues may have other
    /// workers from now on. Returns the queues whose records have to be ended.
    pub(crate) fn close_taken_nic(&self, number: u16) -> Vec<u16> {
        let mut state = self.lock();
        let Some(Some(port)) = state.ports.get_mut(usize::from(number)) else {
            return Vec::new();
        };
        let taken = std::mem::take(&mut port.taken);
        let recorded = taken.recorded.iter().copied().collect();
        if taken.running.is_empty() {
            return recorded;
        }
        let change = PortChange {
            egress: Some(Egress::Down),
            remove: taken.running.keys().copied().collect(),
            nic: Some(Vec::new()),
            ..PortChange::default()
        };
        let changed = self.change_locked(&mut state, number, change);
        self.forget(&state, number);
        drop(state);
        drop((changed, taken));
        recorded
    }
}

/// A queue's number, and the two halves of its socket.
type Halves = (u16, XskRx, Option<XskTx>);

/// Makes the halves of all mapped queues of a port.
fn resume(
    port: &mut Port,
    mapped: BTreeMap<u16, Mapped>,
    places: &BTreeMap<u16, FramePlaces>,
) -> Option<Vec<Halves>> {
    let mut halves = Vec::with_capacity(mapped.len());
    let ifindexes: Vec<u32> = mapped.values().map(|mapped| mapped.ifindex).collect();
    for (queue, mapped) in mapped {
        let (mut rx, mut tx) = mapped.socket.resume(places.get(&queue)?)?;
        if mapped.takes_large {
            rx.expect_large();
        }
        if mapped.sends_large {
            tx.send_large(mapped.ifindex).ok()?;
        }
        halves.push((queue, rx, Some(tx)));
    }
    port.taken.sends_large = halves
        .iter()
        .flat_map(|(_, _, tx)| tx)
        .all(XskTx::sends_large);
    let sockets = halves.iter().zip(ifindexes);
    let sockets = sockets.map(|((queue, rx, _), index)| (*queue, (index, rx.socket().clone())));
    port.taken.running = sockets.collect();
    Some(halves)
}

impl SuspendedNics {
    /// Writes the places of all frames, for [`Dataplane::resume_nics`].
    pub(crate) fn write(&mut self) -> Vec<u8> {
        let mut text = Vec::new();
        for one in &mut self.queues {
            // Without both halves the port is opened anew.
            let Some(tx) = &mut one.tx else { continue };
            text.extend((one.name.len() as u16).to_ne_bytes());
            text.extend(one.name.as_bytes());
            text.extend(one.queue.to_ne_bytes());
            text.push(one.is_up.into());
            FramePlaces::of(tx).write(&mut text);
        }
        text
    }
}

/// Reads what [`SuspendedNics::write`] has written of one queue. `None` at the end, or if the rest is malformed.
fn read_one(text: &mut &[u8]) -> Option<(String, u16, bool, FramePlaces)> {
    let short = |text: &mut &[u8]| {
        let (word, rest) = text.split_first_chunk::<2>()?;
        *text = rest;
        Some(u16::from_ne_bytes(*word))
    };
    let len = short(text)?;
    let name = text.split_off(..usize::from(len))?;
    let name = String::from_utf8(name.to_vec()).ok()?;
    let queue = short(text)?;
    let is_up = *text.split_off_first()? != 0;
    Some((name, queue, is_up, FramePlaces::read(text)?))
}
