//! A front end's session as a record, so that the next process of the switch goes on with it, and the front end sees nothing.
//!
//! The record has all that front ends say only once. It is written again after each message that changes it. Ring positions
//! are not in it: after a crash they are what the guest's memory and the inflight region say, and at an upgrade they come
//! last, when the rings have stopped ([`Device::freeze`]).

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::Builder;
use std::time::{Duration, Instant};

use crosspoint_engine::snapshot::Egress;
use crosspoint_engine::stream::Stream;
use crosspoint_memory::{DirtyLog, GuestMemory, Kind, MemoryCell, RegionSpec, check_file};
use crosspoint_vring::{Features, InflightRegion, MAX_RING_SIZE, RingAddresses};
use rustix::fs::{MemfdFlags, memfd_create};
use serde::{Deserialize, Serialize};

use super::memory::MAX_MEMORY_SLOTS;
use super::rings::OwnInflight;
use super::{Device, Vring};
use crate::dataplane::{PortChange, PortState};
use crate::handover::{self, Counted, Descriptors};

/// How long a guest's own NIC queue may take to send what it has, while all rings stand still.
const SEND_PATIENCE: Duration = Duration::from_millis(20);

const CALLS_STACK: usize = 64 << 10;

/// Number of a descriptor of the record.
type Fd = usize;

/// The body of a session's record.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub(in super::super) struct Session {
    /// The socket of the port, by which a successor recognizes it.
    socket: PathBuf,
    connection: Fd,
    features: u64,
    protocol_features: u64,
    status: u8,
    mtu: Option<u16>,
    connections: u64,
    has_run: bool,
    channel: Option<Fd>,
    memory: Vec<Region>,
    log: Option<(Fd, u64, u64)>,
    inflight: Option<Inflight>,
    vrings: Vec<VringRecord>,
    quarantine: Option<Quarantine>,
    /// A file with one byte, which is not 0 while a message is handled: after a crash meanwhile the state of the front end is
    /// unknown.
    in_message: Option<Fd>,
    /// The file to which the front end writes the state of a guest that arrives.
    #[serde(default)]
    incoming: Option<Fd>,
    /// Whether a thread writes the state of a guest that leaves.
    #[serde(default)]
    saving: bool,
}

#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
struct Region {
    guest_address: u64,
    size: u64,
    user_address: u64,
    mmap_offset: u64,
    file: Fd,
}

#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
struct Inflight {
    file: Fd,
    offset: u64,
    len: u64,
    queues: u16,
    ring_size: u16,
    /// The layout for which it was set.
    packed: bool,
}

#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
struct VringRecord {
    size: u32,
    addresses: Option<[u64; 3]>,
    base: u32,
    started: bool,
    enabled: bool,
    /// Whether its position is in the inflight region or in the ring.
    inherits: bool,
    /// The switch's own inflight region of a packed ring.
    own_inflight: Option<Fd>,
    kick: Option<Fd>,
    call: Option<Fd>,
}

/// A port in quarantine stays there.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
struct Quarantine {
    detail: String,
    last_s: Option<u64>,
    left_ms: Option<u64>,
}

/// Descriptors that are kept for the record alone.
#[derive(Default)]
pub(super) struct KeptFiles {
    pub(super) log: Option<(File, u64, u64)>,
    pub(super) inflight: Option<InflightFile>,
    /// The last body that was sent.
    sent: Option<Session>,
    /// Whether a descriptor has changed since.
    pub(super) has_changed: bool,
    in_message: Option<File>,
}

/// The file of an inflight region, and what it is for.
pub(super) struct InflightFile {
    pub(super) file: File,
    pub(super) span: (u64, u64),
    pub(super) queues: u16,
    pub(super) ring_size: u16,
    pub(super) packed: bool,
}

/// Positions of a port's rings, by vring: the body of record `positions` has one for each port.
pub(crate) type Positions = Vec<Option<u32>>;

/// A session that cannot be taken over, since its guest or front end has made that impossible.
pub(in super::super) struct NotAdopted {
    pub(in super::super) why: String,
    /// What is to be shut down once no other process serves it.
    pub(in super::super) connection: Option<UnixStream>,
}

/// Name of the record of a port's session.
pub(in super::super) fn record_name(port: &str) -> String {
    format!("session/{port}")
}

impl Device {
    /// Sends the session's record if it differs from the last one.
    pub(super) fn record(&mut self) {
        if !handover::is_supervised() || self.frozen {
            return;
        }
        let Some(connection) = &self.connection else {
            return;
        };
        let mut fds = Counted::default();
        let session = self.session(connection, &mut fds);
        if self.kept.sent.as_ref() == Some(&session) && !self.kept.has_changed {
            return;
        }
        // If it cannot be sent, the next message tries again.
        let is_sent = handover::put(&record_name(&self.name), &session, fds.all());
        (self.kept.sent, self.kept.has_changed) = (Some(session), !is_sent);
    }

    /// Ends the record: the front end has disconnected.
    pub(super) fn forget_record(&mut self) {
        self.connection = None;
        if self.kept.sent.is_some() {
            handover::forget(&record_name(&self.name));
        }
        self.kept = KeptFiles::default();
    }

    fn session<'a>(&'a self, connection: &'a UnixStream, fds: &mut Counted<'a>) -> Session {
        let files = self.direct.files.iter();
        let inflight = self.kept.inflight.as_ref();
        let quarantined = self.port_state() == PortState::Quarantined;
        Session {
            socket: self.config.socket.clone(),
            connection: fds.add(connection),
            features: self.features.bits(),
            protocol_features: self.protocol_features,
            status: self.notes.status,
            mtu: self.notes.mtu,
            connections: self.notes.connections,
            has_run: self.notes.has_run,
            channel: fds.add_some(self.channel.as_ref()),
            memory: files
                .map(|(spec, file)| Region {
                    guest_address: spec.guest_address,
                    size: spec.size,
                    user_address: spec.user_address,
                    mmap_offset: spec.mmap_offset,
                    file: fds.add(file),
                })
                .collect(),
            log: self
                .kept
                .log
                .as_ref()
                .map(|(file, offset, size)| (fds.add(file), *offset, *size)),
            inflight: inflight.map(|inflight| Inflight {
                file: fds.add(&inflight.file),
                offset: inflight.span.0,
                len: inflight.span.1,
                queues: inflight.queues,
                ring_size: inflight.ring_size,
                packed: inflight.packed,
            }),
            vrings: self.vrings.iter().map(|vring| vring.record(fds)).collect(),
            quarantine: quarantined.then(|| self.pause.record(self.port_detail())),
            in_message: fds.add_some(self.kept.in_message.as_ref()),
            incoming: fds.add_some(self.transfer.incoming.as_ref()),
            saving: self.transfer.is_saving,
        }
    }

    /// Goes on with a predecessor's session. Returns its connection, or why that cannot be: the front end is then
    /// disconnected, and may connect again.
    pub(in super::super) fn adopt(
        &mut self,
        session: Session,
        mut fds: Descriptors,
    ) -> Result<UnixStream, NotAdopted> {
        let connection = fds.take(Some(session.connection)).ok_or(NotAdopted {
            why: "it has no connection".to_owned(),
            connection: None,
        })?;
        let connection = UnixStream::from(connection);
        let adopted = connection.try_clone().map_err(|why| why.to_string());
        let adopted = adopted.and_then(|copy| {
            self.adopt_mark(fds.take(session.in_message))?;
            self.adopt_files(&session, &mut fds)?;
            self.connection = Some(copy);
            Ok(())
        });
        self.retire(fds.rest());
        if let Err(why) = adopted {
            self.disconnect(&why);
            return Err(NotAdopted {
                why,
                connection: Some(connection),
            });
        }
        self.notes.has_run = session.has_run;
        self.notes.connections = session.connections;
        self.attachment.link.note_seen();
        let state = match &session.quarantine {
            Some(quarantine) => {
                self.pause
                    .adopt(quarantine.last_s, quarantine.left_ms, Instant::now());
                (PortState::Quarantined, quarantine.detail.clone())
            }
            None => (PortState::Connected, self.setting_up()),
        };
        let egress = session.quarantine.is_some().then_some(Egress::Quarantined);
        self.change(PortChange {
            state: Some(state),
            egress,
            memory: Some(self.memory.as_ref().map(|cell| cell.shared())),
            inflight: Some(self.inflight.clone()),
            ..PortChange::default()
        });
        self.kept.has_changed = true;
        (0..self.vrings.len()).for_each(|index| self.prefault(index));
        self.reconcile();
        Ok(connection)
    }

    /// What the port's configuration must still allow.
    pub(in super::super) fn check_session(&self, session: &Session) -> Result<(), String> {
        if session.socket != self.config.socket {
            return Err("the port has another socket now".to_owned());
        }
        if session.vrings.len() > self.vrings.len() {
            return Err("the port has fewer queues now".to_owned());
        }
        if session.features & !self.offered != 0 {
            return Err("the port offers fewer features now".to_owned());
        }
        let is_size = |size: u32| size == 0 || (size.is_power_of_two() && size <= MAX_RING_SIZE);
        if session.vrings.iter().any(|vring| !is_size(vring.size))
            || session.memory.len() > MAX_MEMORY_SLOTS
        {
            return Err("its record is malformed".to_owned());
        }
        Ok(())
    }

    /// The mark of a message in progress: if it is set, the predecessor crashed before it had recorded what the message said.
    fn adopt_mark(&mut self, file: Option<OwnedFd>) -> Result<(), String> {
        let Some(file) = file.map(File::from) else {
            return Ok(());
        };
        let mut mark = [0];
        let read = file.read_at(&mut mark, 0).map_err(|why| why.to_string())?;
        self.kept.in_message = Some(file);
        match read == 1 && mark == [1] {
            true => Err("the switch ended while it handled a message of it".to_owned()),
            false => Ok(()),
        }
    }

    /// A message is about to be read.
    pub(in super::super) fn begin_message(&mut self) {
        self.mark_message(1);
    }

    /// The message has been handled, and what it has changed is recorded.
    pub(in super::super) fn end_message(&mut self) {
        self.mark_message(0);
    }

    /// Makes the mark of messages, for a front end that has connected.
    pub(super) fn make_mark(&mut self) {
        if handover::is_supervised() {
            let made = memfd_create("crosspoint-message", MemfdFlags::CLOEXEC);
            self.kept.in_message = made.ok().map(File::from);
        }
    }

    fn mark_message(&mut self, mark: u8) {
        if let Some(file) = &self.kept.in_message {
            let _ = file.write_at(&[mark], 0);
        }
    }

    fn adopt_files(&mut self, session: &Session, fds: &mut Descriptors) -> Result<(), String> {
        let features = Features::new(session.features);
        self.features = features;
        self.protocol_features = session.protocol_features;
        (self.notes.status, self.notes.mtu) = (session.status, session.mtu);
        self.channel = fds.take(session.channel);
        self.transfer.incoming = fds.take(session.incoming).map(File::from);
        self.transfer.is_saving = session.saving;
        let mut file = |number: Fd| -> Result<File, String> {
            let fd = fds.take(Some(number)).ok_or("a descriptor is missing")?;
            check_file(&fd).map_err(|why| why.to_string())?;
            Ok(File::from(fd))
        };
        let mut table = Vec::with_capacity(session.memory.len());
        for region in &session.memory {
            table.push((region.spec(), file(region.file)?));
        }
        if let Some((number, offset, size)) = session.log {
            let kept = file(number)?;
            let log = DirtyLog::map(&kept, offset, size).map_err(|why| why.to_string())?;
            self.log = Some(Arc::new(log));
            self.kept.log = Some((kept, offset, size));
        }
        if let Some(inflight) = &session.inflight {
            let kept = file(inflight.file)?;
            let (span, packed) = ((inflight.offset, inflight.len), inflight.packed);
            let (queues, size) = (inflight.queues, inflight.ring_size);
            let region = InflightRegion::map(&kept, span, queues.into(), size, packed);
            self.inflight = Some(Arc::new(region.map_err(|why| why.to_string())?));
            self.kept.inflight = Some(InflightFile {
                file: kept,
                span,
                queues,
                ring_size: size,
                packed,
            });
        }
        if !table.is_empty() {
            let files = self.copies_of(&table);
            let memory = GuestMemory::map(table).map_err(|why| why.to_string())?;
            let memory = memory.with_log(self.effective_log());
            self.direct.files = files;
            self.memory = Some(MemoryCell::new(Arc::new(memory)));
        }
        for (index, record) in session.vrings.iter().enumerate() {
            let kick = fds
                .take(record.kick)
                .filter(|kick| Kind::of(kick) == Kind::Eventfd);
            let call = fds.take(record.call);
            let vring = &mut self.vrings[index];
            *vring = Vring::of(record, kick);
            vring.call = call.as_ref().and_then(|call| call.try_clone().ok());
            if let Some(own) = fds.take(record.own_inflight) {
                vring.own = OwnInflight::map(File::from(own), record.size);
            }
            if let (_, Err(why)) = self.attachment.caller.set(index, call) {
                tracing::warn!(
                    port = self.name,
                    "vring {index}: {why}: its driver gets no calls (interrupts)"
                );
            }
        }
        Ok(())
    }

    /// Begins to stop all rings until [`thaw`](Self::thaw); the workers have done so when the batch ends.
    pub(in super::super) fn begin_freeze(&mut self) {
        self.frozen = true;
        let mut transmit = Vec::new();
        for (index, vring) in self.vrings.iter_mut().enumerate() {
            self.stopping.extend(vring.rx.take().map(|rx| (index, rx)));
            vring.was_running = std::mem::take(&mut vring.running);
            if vring.was_running && index % 2 == 1 {
                transmit.push((index / 2) as u16);
            }
        }
        let egress = Some(self.egress());
        self.change(PortChange {
            egress,
            remove: transmit,
            ..PortChange::default()
        });
    }

    /// Returns the positions of the rings that have stopped; `streams` are their transmit rings.
    pub(in super::super) fn end_freeze(&mut self, streams: Vec<Stream>) -> Positions {
        let mut positions: Positions = vec![None; self.vrings.len()];
        for (index, rx) in std::mem::take(&mut self.stopping) {
            positions[index] = Some(rx.base());
        }
        for stream in streams {
            let stream = stream.end_direct(SEND_PATIENCE);
            if let (Some(tx), (_, queue)) = (stream.guest(), stream.id)
                && let Some(position) = positions.get_mut(2 * usize::from(queue) + 1)
            {
                *position = Some(tx.base());
            }
        }
        self.direct.close();
        for (vring, position) in self.vrings.iter_mut().zip(&positions) {
            if let Some(position) = position {
                vring.note_base(*position);
            }
        }
        positions
    }

    /// Keeps all rings stopped until [`thaw`](Self::thaw).
    pub(in super::super) fn begin_frozen(&mut self) {
        self.frozen = true;
    }

    /// Starts the rings: at `positions`, if the predecessor has sent them, or where they stopped. If `was_started` is set,
    /// another process may have used them since then. [`settle`](Self::settle) it after the batch.
    pub(in super::super) fn thaw(&mut self, positions: Option<&Positions>, was_started: bool) {
        self.frozen = false;
        if was_started {
            for vring in self.vrings.iter_mut().filter(|vring| vring.was_running) {
                (vring.base_is_own, vring.inherits) = (false, true);
            }
        }
        for (vring, position) in self.vrings.iter_mut().zip(positions.into_iter().flatten()) {
            if let Some(position) = position {
                vring.note_base(*position);
                vring.inherits = false;
            }
        }
        self.start_rings();
    }

    /// Records and shows the device after [`thaw`](Self::thaw), and calls the guest: a process that has ended may have owed it
    /// a call.
    pub(in super::super) fn settle(&mut self) {
        self.show_properties();
        self.describe();
        let caller = self.attachment.caller.clone();
        let running = self.vrings.iter().map(|vring| vring.running);
        let running: Vec<bool> = running.collect();
        if !running.contains(&true) {
            return;
        }
        // On a thread of its own, which is left behind if a front end makes a call block.
        let calls = move || {
            caller.probe();
            let called = (0..).zip(running).filter(|(_, running)| *running);
            for (vring, _) in called {
                caller.notifier(vring).call();
            }
        };
        let thread = Builder::new()
            .name("cp-calls".to_owned())
            .stack_size(CALLS_STACK);
        if let Err(why) = thread.spawn(calls) {
            tracing::warn!(
                port = self.name,
                "its guest is not called, and may wait for its next frame: {why}"
            );
        }
    }
}

impl Region {
    fn spec(&self) -> RegionSpec {
        RegionSpec {
            guest_address: self.guest_address,
            size: self.size,
            user_address: self.user_address,
            mmap_offset: self.mmap_offset,
        }
    }
}

impl Vring {
    fn record<'a>(&'a self, fds: &mut Counted<'a>) -> VringRecord {
        VringRecord {
            size: self.size,
            addresses: self
                .addresses
                .map(|at| [at.descriptors, at.available, at.used]),
            base: self.base,
            started: self.started,
            enabled: self.enabled,
            inherits: self.running || self.inherits,
            own_inflight: fds.add_some(self.own.as_ref().map(|own| &own.file)),
            kick: fds.add_some(self.kick.as_ref()),
            call: fds.add_some(self.call.as_ref()),
        }
    }

    fn of(record: &VringRecord, kick: Option<OwnedFd>) -> Vring {
        let addresses = record
            .addresses
            .map(|[descriptors, available, used]| RingAddresses {
                descriptors,
                available,
                used,
            });
        Vring {
            size: record.size,
            addresses,
            base: record.base,
            inherits: record.inherits,
            started: record.started,
            kick,
            enabled: record.enabled,
            ..Vring::default()
        }
    }
}

impl super::quarantine::Pause {
    fn record(&self, detail: String) -> Quarantine {
        let now = Instant::now();
        Quarantine {
            detail,
            last_s: self.last.map(|last| last.as_secs()),
            // Rounded, so that the record does not change with time.
            left_ms: self.left(now).map(|left| left.as_secs() * 1000),
        }
    }

    fn adopt(&mut self, last_s: Option<u64>, left_ms: Option<u64>, now: Instant) {
        self.last = last_s.map(Duration::from_secs);
        self.until = left_ms.map(|left| now + Duration::from_millis(left.min(60_000)));
    }
}
