//! One guest's device: what its front end has sent, and the rings that follow from it.
//!
//! Front ends send messages in various orders, so no message starts or stops a ring by itself: each changes the
//! device's state, and then [`Device::reconcile`] starts or stops rings to match it.

mod describe;
mod direct;
mod link;
mod memory;
mod messages;
mod quarantine;
mod record;
mod rings;
mod transfer;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use crosspoint_config as config;
use crosspoint_engine::egress::guest_queues::GuestQueues;
use crosspoint_engine::snapshot::Egress;
use crosspoint_engine::stream::Stream;
use crosspoint_memory::{DirtyLog, MemoryCell};
use crosspoint_vring::{
    Features, GuestRx, GuestTx, InflightRegion, MAX_RING_SIZE, Ring, RingAddresses, RingError,
    feature,
};
use describe::Notes;
use direct::DirectQueue;
pub(super) use memory::MAX_MEMORY_SLOTS;
pub(crate) use messages::offered;
use quarantine::Pause;
pub use quarantine::{QUARANTINE_FIRST, QUARANTINE_LAST};
pub(crate) use record::Positions;
pub(super) use record::Session;
pub(super) use record::record_name;
use record::{InflightFile, KeptFiles};
use rings::{OwnInflight, node_of};
use transfer::Transfer;
use vhost::vhost_user::{Error, Result};

use crate::dataplane::caller::END_TIME_MAX;
use crate::dataplane::{Attachment, Dataplane, NewStream, Place, PortChange, PortState};
use crate::handover;

/// State of one vring.
#[derive(Default)]
struct Vring {
    size: u32,
    addresses: Option<RingAddresses>,
    /// The ring's next index, from SET_VRING_BASE or from when the ring was stopped.
    base: u32,
    /// Whether this side set `base` when it stopped the ring.
    base_is_own: bool,
    /// Whether the inflight region may hold the index of a previous back end and has not been read yet.
    inherits: bool,
    /// Whether the front end has given a kick descriptor, or has declared that there is none.
    started: bool,
    kick: Option<OwnedFd>,
    /// A copy of the call descriptor, kept for the session's record.
    call: Option<OwnedFd>,
    own: Option<OwnInflight>,
    /// Whether it ran when it was frozen.
    was_running: bool,
    /// The memory node of the ring, once it was asked for: the kernel takes some microseconds for the answer.
    node: Option<Option<u32>>,
    /// Its place at a worker, if it is about to start with many others.
    place: Option<Place>,
    enabled: bool,
    running: bool,
    /// Whether it was not at its beginning when it started.
    resumes: bool,
    /// The receive ring, while it runs.
    rx: Option<Arc<GuestRx>>,
}

/// Error reply to a valid message that cannot be done: sent if a reply was asked for, and the session continues. The
/// reason has been logged. The `vhost` crate's own errors, for invalid messages, end the session.
pub(super) fn refusal() -> Error {
    Error::ReqHandlerError(io::ErrorKind::InvalidInput.into())
}

/// Whether an error is a [`refusal`].
pub(super) fn is_refusal(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidInput
}

impl Vring {
    fn note_base(&mut self, base: u32) {
        (self.base, self.base_is_own) = (base, true);
    }
}

/// A guest's device.
pub(super) struct Device {
    dataplane: Arc<Dataplane>,
    pub(super) attachment: Arc<Attachment>,
    name: String,
    queue_pairs: u16,
    offered: u64,
    features: Features,
    pub(super) protocol_features: u64,
    /// The channel for our requests to the front end.
    channel: Option<OwnedFd>,
    memory: Option<Arc<MemoryCell>>,
    /// The dirty log, in which writes are marked once the front end acknowledges LOG_ALL.
    log: Option<Arc<DirtyLog>>,
    inflight: Option<Arc<InflightRegion>>,
    vrings: Vec<Vring>,
    /// The running receive rings, as workers have them.
    queues: Option<Arc<GuestQueues>>,
    config: config::VhostPort,
    direct: DirectQueue,
    notes: Notes,
    pause: Pause,
    /// The connection of the current front end, for the session's record.
    connection: Option<UnixStream>,
    kept: KeptFiles,
    transfer: Transfer,
    /// Whether no ring may run: another process takes over, or has not handed over yet.
    frozen: bool,
    /// Receive rings that are being frozen.
    stopping: Vec<(usize, Arc<GuestRx>)>,
}

impl Device {
    pub(super) fn new(
        dataplane: Arc<Dataplane>,
        attachment: Arc<Attachment>,
        name: &str,
        config: config::VhostPort,
    ) -> Device {
        let queue_pairs = config.queue_pairs;
        Device {
            dataplane,
            attachment,
            name: name.to_owned(),
            queue_pairs,
            offered: messages::offered(&config),
            features: Features::default(),
            protocol_features: 0,
            channel: None,
            memory: None,
            log: None,
            inflight: None,
            vrings: (0..2 * queue_pairs).map(|_| Vring::default()).collect(),
            queues: None,
            config,
            direct: DirectQueue::default(),
            notes: Notes::default(),
            pause: Pause::default(),
            connection: None,
            kept: KeptFiles::default(),
            transfer: Transfer::default(),
            frozen: false,
            stopping: Vec::new(),
        }
    }

    pub(super) fn offered(&self) -> u64 {
        self.offered
    }

    pub(super) fn queue_pairs(&self) -> u16 {
        self.queue_pairs
    }

    fn vring(&mut self, index: u32) -> Result<&mut Vring> {
        let (name, pairs) = (&self.name, self.queue_pairs);
        self.vrings.get_mut(index as usize).ok_or_else(|| {
            tracing::warn!(
                port = name,
                "the front end names vring {index}: `queue_pairs = {pairs}` has {}",
                2 * pairs
            );
            refusal()
        })
    }

    /// Logs the reason, and returns an error for the front end.
    pub(super) fn refused(&self, why: &str) -> Error {
        tracing::warn!(port = self.name, "refused: {why}");
        refusal()
    }

    /// Sets the features that the driver acknowledged. Bits that were not offered are an error.
    pub(super) fn set_features(&mut self, acknowledged: u64) -> Result<()> {
        if acknowledged & !self.offered != 0 {
            tracing::warn!(
                port = self.name,
                "the front end acknowledges features {:#x}, not offered",
                acknowledged & !self.offered
            );
            return Err(refusal());
        }
        let new = Features::new(acknowledged);
        let changed = new.bits() ^ self.features.bits();
        // Only LOG_ALL changes when a migration begins or ends: no ring is stopped for it.
        if changed & !feature::LOG_ALL != 0 {
            self.stop_all();
        }
        self.features = new;
        if changed & feature::LOG_ALL != 0 {
            self.apply_log();
        }
        // Without protocol features rings are enabled from the start (vhost-user protocol,
        // "Ring states").
        if !new.has(feature::PROTOCOL_FEATURES) {
            self.vrings
                .iter_mut()
                .for_each(|vring| vring.enabled = true);
        }
        self.reconcile();
        Ok(())
    }

    pub(super) fn set_vring_num(&mut self, index: u32, size: u32) -> Result<()> {
        let name = self.name.clone();
        let vring = self.vring(index)?;
        if vring.running || !size.is_power_of_two() || size > MAX_RING_SIZE {
            tracing::warn!(
                port = name,
                "vring {index}: size {size} while it runs, or no power of two up to 32768"
            );
            return Err(refusal());
        }
        vring.size = size;
        Ok(())
    }

    pub(super) fn set_vring_addresses(&mut self, index: u32, at: RingAddresses) -> Result<()> {
        if self.vring(index)?.addresses != Some(at) {
            self.stop(&[index]);
            self.vring(index)?.addresses = Some(at);
            self.reconcile();
        }
        Ok(())
    }

    pub(super) fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let has_region = self.inflight.is_some();
        let vring = self.vring(index)?;
        if vring.running {
            return Err(Error::InvalidOperation(
                "the ring runs: GET_VRING_BASE stops it",
            ));
        }
        (vring.base, vring.base_is_own) = (base, false);
        // Its position is in no region but one that the front end keeps.
        if !has_region {
            vring.inherits = false;
        }
        Ok(())
    }

    /// Stops the ring and returns its next index.
    pub(super) fn get_vring_base(&mut self, index: u32) -> Result<u32> {
        self.vring(index)?;
        self.stop(&[index]);
        let vring = self.vring(index)?;
        vring.started = false;
        vring.kick = None;
        let base = vring.base;
        self.reconcile();
        self.note_reset();
        Ok(base)
    }

    pub(super) fn set_vring_kick(&mut self, index: u32, kick: Option<File>) -> Result<()> {
        let kick = kick
            .map(OwnedFd::from)
            .and_then(|kick| self.eventfd(index, kick));
        self.vring(index)?;
        self.stop(&[index]);
        let vring = self.vring(index)?;
        vring.kick = kick;
        vring.place = None;
        vring.started = true;
        self.kept.has_changed = true;
        self.reconcile();
        Ok(())
    }

    pub(super) fn set_vring_call(&mut self, index: u32, call: Option<File>) -> Result<()> {
        let running = self.vring(index)?.running;
        let copy = call.as_ref().filter(|_| handover::is_supervised());
        let copy = copy.and_then(|call| call.try_clone().ok().map(OwnedFd::from));
        self.kept.has_changed = true;
        let caller = &self.attachment.caller;
        let (old, accepted) = caller.set(index as usize, call.map(OwnedFd::from));
        // One that is refused can be of a kind whose every close blocks.
        let (copy, refused) = match &accepted {
            Ok(()) => (copy, None),
            Err(_) => (None, copy),
        };
        let before = std::mem::replace(&mut self.vring(index)?.call, copy);
        self.retire(before);
        self.retire(refused);
        if let Err(why) = accepted {
            tracing::warn!(
                port = self.name,
                "vring {index}: {why}: its driver gets no calls (interrupts)"
            );
        }
        let caller = &self.attachment.caller;
        if running {
            // Workers may write to the old descriptor until each has reached a quiescent point.
            self.dataplane.quiesce();
            // A call to the old descriptor after the front end stopped reading it would be lost; an extra call does no
            // harm.
            caller.notifier(index as usize).call();
        }
        if let Some(old) = old {
            caller.retire(old);
        }
        Ok(())
    }

    /// Removes and closes all call descriptors, except what the front end holds up. No worker makes a call any more.
    fn end_calls(&self) {
        let caller = &self.attachment.caller;
        for index in 0..self.vrings.len() {
            if let (Some(old), _) = caller.set(index, None) {
                caller.retire(old);
            }
        }
        caller.end(Instant::now() + END_TIME_MAX);
    }

    pub(super) fn set_vring_enable(&mut self, index: u32, enabled: bool) -> Result<()> {
        let vring = self.vring(index)?;
        if vring.enabled != enabled {
            vring.enabled = enabled;
            if !enabled {
                self.stop(&[index]);
            }
            self.reconcile();
        }
        if !enabled {
            self.note_reset();
        }
        Ok(())
    }

    /// The front end has disconnected because of `why`: nothing of the guest is used after this.
    pub(super) fn disconnect(&mut self, why: &str) {
        self.forget_record();
        self.forget_rings();
        for index in 0..self.vrings.len() {
            let call = self.vrings[index].call.take();
            self.retire(call);
        }
        self.pause = Pause::default();
        self.transfer.end();
        self.transfer = Transfer::default();
        self.vrings.iter_mut().for_each(|v| *v = Vring::default());
        self.protocol_features = 0;
        self.notes = self.notes.after(why);
        let state = Some((PortState::Down, self.absent()));
        let properties = Some(BTreeMap::new());
        self.change(PortChange {
            egress: Some(Egress::Down),
            state,
            properties,
            memory: Some(None),
            inflight: Some(None),
            ..PortChange::default()
        });
        self.memory = None;
        self.direct = DirectQueue::default();
        self.log = None;
        self.inflight = None;
        let channel = self.channel.take();
        self.retire(channel);
        self.end_calls();
        self.dataplane.forget_attached(&self.attachment);
        self.describe();
    }

    /// A front end has connected: the previous one's state is dropped.
    pub(super) fn connect(&mut self, connection: &UnixStream) {
        self.connection = connection
            .try_clone()
            .ok()
            .filter(|_| handover::is_supervised());
        self.make_mark();
        self.notes.connections += 1;
        self.attachment.link.note_seen();
        let state = Some((PortState::Connected, self.setting_up()));
        self.change(PortChange {
            state,
            ..PortChange::default()
        });
        self.describe();
    }

    fn change(&self, change: PortChange) -> Vec<Stream> {
        let changed = self.dataplane.change_attached(&self.attachment, change);
        changed.unwrap_or_default()
    }

    fn port_detail(&self) -> String {
        self.dataplane.port_detail(&self.attachment)
    }

    pub(super) fn port_state(&self) -> PortState {
        self.dataplane.port_state(self.attachment.number())
    }

    fn stop_all(&mut self) {
        let all: Vec<u32> = (0..self.vrings.len() as u32).collect();
        self.stop(&all);
    }

    /// Stops rings, waits until no worker uses them, and records their next indices.
    fn stop(&mut self, which: &[u32]) {
        let running = |vring: &Vring| vring.running;
        let which: Vec<usize> = which
            .iter()
            .map(|index| *index as usize)
            .filter(|index| self.vrings.get(*index).is_some_and(running))
            .collect();
        if which.is_empty() {
            return;
        }
        let mut stopped = Vec::new();
        for index in &which {
            self.vrings[*index].running = false;
            stopped.extend(self.vrings[*index].rx.take().map(|rx| (*index, rx)));
        }
        let transmit = which.iter().filter(|index| *index % 2 == 1);
        let egress = Some(self.egress());
        let streams = self.change(PortChange {
            egress,
            remove: transmit.map(|index| (index / 2) as u16).collect(),
            ..PortChange::default()
        });
        for (index, rx) in stopped {
            self.vrings[index].note_base(rx.base());
        }
        for stream in streams {
            let stream = stream.end_direct(direct::PATIENCE);
            if let (Some(tx), (_, queue)) = (stream.guest(), stream.id) {
                self.vrings[2 * usize::from(queue) + 1].note_base(tx.base());
            }
        }
        if which.contains(&direct::VRING) {
            self.direct.close();
        }
    }

    /// The port's current egress. Flows keep their queues.
    fn egress(&mut self) -> Egress {
        let rings: Vec<_> = (0..)
            .zip(self.vrings.iter().step_by(2))
            .filter_map(|(pair, vring)| Some((pair, vring.rx.clone()?)))
            .collect();
        if rings.is_empty() {
            self.queues = None;
            return Egress::Down;
        }
        let queues = GuestQueues::new(rings, self.dataplane.workers(), self.queues.as_deref());
        let queues = Arc::new(queues);
        self.queues = Some(queues.clone());
        Egress::Guest(queues)
    }

    /// Starts every ring that can run and does not, and shows that.
    fn reconcile(&mut self) {
        if self.start_rings() {
            self.show_properties();
        }
    }

    /// Shows what was negotiated.
    fn show_properties(&self) {
        if let Some(memory) = &self.memory {
            let properties = self.properties(memory.get());
            self.dataplane.show_properties(&self.attachment, properties);
        }
    }

    /// Starts every ring that can run and does not. Returns whether the port has changed.
    fn start_rings(&mut self) -> bool {
        if self.frozen || self.port_state() == PortState::Quarantined {
            return false;
        }
        let Some(memory) = self.memory.clone() else {
            return false;
        };
        let mut add = Vec::new();
        let mut started = false;
        for index in 0..self.vrings.len() {
            match self.start(index, &memory) {
                Ok(Some(new)) => add.extend(new),
                Ok(None) => continue,
                Err(why) => {
                    tracing::warn!(port = self.name, "vring {index} cannot be started: {why}");
                    continue;
                }
            }
            started = true;
        }
        if started && !std::mem::replace(&mut self.notes.has_run, true) {
            self.note_arrival();
        }
        // Also when the last ring has stopped, since the port is then no longer up.
        let has_changed = started || self.port_state() != self.state().0;
        if has_changed {
            let egress = Some(self.egress());
            self.change(PortChange {
                egress,
                add,
                state: Some(self.state()),
                ..PortChange::default()
            });
        }
        has_changed
    }

    /// Starts vring `index` if it is ready. Returns the stream if it is a transmit ring.
    fn start(
        &mut self,
        index: usize,
        memory: &Arc<MemoryCell>,
    ) -> std::result::Result<Option<Option<NewStream>>, RingError> {
        let (features, workers) = (self.features, self.dataplane.workers());
        self.ensure_inflight(index);
        let vring = &mut self.vrings[index];
        let (false, true, true, Some(at)) =
            (vring.running, vring.started, vring.enabled, vring.addresses)
        else {
            return Ok(None);
        };
        let mut ring = Ring::new(memory.clone(), vring.size, at, features)?;
        let packed = features.has(feature::RING_PACKED);
        let region = self.inflight.as_ref();
        let inflight = region.and_then(|region| region.queue(index, vring.size, packed));
        let own = vring.own.as_ref();
        let own = || own.and_then(|own| own.region.queue(0, vring.size, packed));
        let inflight = inflight.or_else(own);
        let inherits = std::mem::take(&mut vring.inherits);
        let noted = inflight
            .as_ref()
            .filter(|_| inherits)
            .and_then(|inflight| ring.resume_noted(inflight));
        let base = match noted {
            Some(base) => base,
            None => ring.resume_at(vring.base, vring.base_is_own)?,
        };
        if let Some(inflight) = inflight {
            ring.track(inflight, base);
        }
        // Only the lower half is compared; the upper half is a packed ring's used position.
        if base as u16 != vring.base as u16 {
            tracing::info!(
                port = self.name,
                "vring {index}: the front end gave base {:#x}, but the ring itself is at {:#x}, which is used",
                vring.base as u16,
                base as u16
            );
        }
        vring.resumes = !matches!(base, 0 | 0x8000 | 0x8000_8000);
        let call = self.attachment.caller.notifier(index);
        if index.is_multiple_of(2) {
            let rx = GuestRx::new(ring, features, call, base, workers)?;
            vring.running = true;
            vring.rx = Some(Arc::new(rx));
            return Ok(Some(None));
        }
        let tx = GuestTx::new(ring, features, call, base)?;
        vring.running = true;
        let place = vring.place.take();
        let kick = vring.kick.as_ref().filter(|_| place.is_none());
        let kick = kick.and_then(|kick| kick.try_clone().ok());
        // The guest's driver runs on the node of its ring. One of the two areas was just read, so its page is in our page
        // table.
        let node = vring
            .node
            .take()
            .unwrap_or_else(|| node_of(memory.get(), at));
        let source = self.with_direct(index, Box::new(tx), memory.get());
        Ok(Some(Some(NewStream {
            queue: (index / 2) as u16,
            source,
            kick,
            node,
            place,
        })))
    }
}
