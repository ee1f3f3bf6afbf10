//! What of the switch travels with a guest that migrates: its connections, by SET_DEVICE_STATE_FD and CHECK_DEVICE_STATE
//! (vhost-user protocol, "Migrating back-end state").
//!
//! The front end passes a descriptor of its own. It may be of any kind, and a thread that reads or writes it could block. The
//! protocol lets a back end answer with another one. So the front end reads from a pipe of the switch, and writes to a memory
//! file of the switch, whose size is sealed.
//!
//! The state is a line of JSON, the connections as the engine writes them, and a last line that shows that it is whole.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use crosspoint_config::limits::PORT_CONNECTIONS_MAX;
use crosspoint_engine::groups::{Arrived, EXPORTED_LEN};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use serde::{Deserialize, Serialize};
use vhost::vhost_user::VhostUserProtocolFeatures;

use super::Device;

/// The most connections that a state may have.
const CONNECTIONS_MAX: usize = PORT_CONNECTIONS_MAX as usize;
/// The longest first line, bytes.
const HEAD_MAX: usize = 4096;
/// The longest connection that is understood, bytes: another version may add to it.
const CONNECTION_LEN_MAX: usize = 256;
const FORMAT: &str = "crosspoint guest";
const VERSION: u32 = 1;
const END: &[u8] = b"\nend\n";
/// Size of a state's file, bytes. Memory is taken only for what the front end writes.
const FILE_LEN: u64 = (HEAD_MAX + CONNECTIONS_MAX * CONNECTION_LEN_MAX + END.len()) as u64;
/// How long a front end may stop reading.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a thread that writes takes to see that it is to end.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How long an answer waits for the end of a thread whose front end says that it has read all.
const END_MAX: Duration = Duration::from_millis(250);
/// The most transfers of a front end, of which each may keep one page of a pipe.
const SAVES_MAX: u32 = 64;
const PIPE_LEN: usize = 4096;
const THREAD_STACK: usize = 64 << 10;
/// Connections that are read at once.
const CHUNK: usize = 1024;

/// The first line.
#[derive(Serialize, Deserialize)]
struct Head {
    format: String,
    version: u32,
    connection_len: usize,
    connections: usize,
}

/// A transfer that has begun.
#[derive(Default)]
pub(super) struct Transfer {
    writing: Option<Writing>,
    /// What the front end writes the state to, until it asks whether all is well.
    pub(super) incoming: Option<File>,
    /// Whether a state is being saved: after an upgrade or a crash meanwhile, no thread writes it any more.
    pub(super) is_saving: bool,
    /// How many this front end has begun to save.
    saves: u32,
    /// Whether a state was taken: the guest brings its connections along.
    pub(super) has_state: bool,
}

/// The thread that writes a state.
struct Writing {
    thread: JoinHandle<io::Result<()>>,
    is_over: Arc<AtomicBool>,
}

impl Transfer {
    /// Ends a transfer that is under way.
    pub(super) fn end(&mut self) {
        (self.incoming, self.is_saving) = (None, false);
        if let Some(writing) = self.writing.take() {
            writing.is_over.store(true, Ordering::Relaxed);
            // It looks every few milliseconds.
            let _ = writing.thread.join();
        }
    }
}

impl Device {
    /// Whether the state of the guest is offered to front ends.
    pub(in super::super) fn offers_state(&self) -> bool {
        let wanted = self.config.migrate_connections;
        wanted.unwrap_or_else(|| self.dataplane.has_groups(&self.name))
    }

    /// Whether the front end may save or restore a state.
    pub(in super::super) fn may_have_state(&self) -> Result<(), String> {
        match self.protocol_features & VhostUserProtocolFeatures::DEVICE_STATE.bits() {
            0 => Err("the front end has not acknowledged DEVICE_STATE".into()),
            _ => Ok(()),
        }
    }

    /// The front end saves the guest's state: returns what it reads it from.
    pub(in super::super) fn save_state(&mut self) -> Result<File, String> {
        self.transfer.end();
        self.transfer.saves += 1;
        if self.transfer.saves > SAVES_MAX {
            return Err(format!("its state was saved {SAVES_MAX} times already"));
        }
        let connections = self
            .dataplane
            .connections_to_leave(&self.name, CONNECTIONS_MAX);
        let count = connections.len() / EXPORTED_LEN;
        let head = head(count).map_err(|why| why.to_string())?;
        let made = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK);
        let (reader, writer) = made.map_err(|why| format!("no pipe for its state: {why}"))?;
        // Front ends read until the end, and would take "nothing yet" for an error.
        rustix::fs::fcntl_setfl(&reader, rustix::fs::OFlags::empty())
            .map_err(|why| why.to_string())?;
        // A front end may keep what it does not read.
        let _ = fcntl_setpipe_size(&writer, PIPE_LEN);
        let is_over = Arc::new(AtomicBool::new(false));
        let ends = is_over.clone();
        let thread = Builder::new()
            .name("cp-state".to_owned())
            .stack_size(THREAD_STACK)
            .spawn(move || send([&head, &connections, END], writer, &ends));
        let thread = thread.map_err(|why| format!("no thread that writes its state: {why}"))?;
        self.transfer.writing = Some(Writing { thread, is_over });
        (self.transfer.is_saving, self.kept.has_changed) = (true, true);
        tracing::info!(
            port = self.name,
            "the guest migrates: {count} connections travel with it"
        );
        Ok(File::from(reader))
    }

    /// The front end restores the guest's state: returns what it writes it to.
    pub(in super::super) fn restore_state(&mut self) -> Result<File, String> {
        self.transfer.end();
        let file = state_file().map_err(|why| format!("no file for its state: {why}"))?;
        let copy = file.try_clone().map_err(|why| why.to_string())?;
        self.transfer.incoming = Some(file);
        self.kept.has_changed = true;
        Ok(copy)
    }

    /// The front end asks whether the state was written, or what it has written is a state.
    pub(in super::super) fn check_state(&mut self) -> Result<(), String> {
        if let Some(file) = self.transfer.incoming.take() {
            self.kept.has_changed = true;
            self.take_state(&file)?;
            self.transfer.has_state = true;
            return Ok(());
        }
        let was_saving = std::mem::take(&mut self.transfer.is_saving);
        self.kept.has_changed |= was_saving;
        let Some(writing) = self.transfer.writing.take() else {
            return match was_saving {
                true => Err("another process of the switch was writing the state".to_owned()),
                false => Ok(()),
            };
        };
        let deadline = Instant::now() + END_MAX;
        while !writing.thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        writing.is_over.store(true, Ordering::Relaxed);
        match writing.thread.join() {
            Ok(Ok(())) => Ok(()),
            Ok(Err(why)) => Err(format!("the front end did not read the whole state: {why}")),
            Err(_) => Err("the thread that writes its state has failed".to_owned()),
        }
    }

    fn take_state(&self, file: &File) -> Result<(), String> {
        let mut arrived = Arrived::default();
        let mut has_groups = true;
        read(file, |connections| {
            let here = self.dataplane.connections_arrive(&self.name, connections);
            has_groups &= here.is_some();
            let here = here.unwrap_or_default();
            arrived.taken += here.taken;
            arrived.denied += here.denied;
            arrived.left += here.left;
        })?;
        let Arrived {
            taken,
            denied,
            left,
        } = arrived;
        match has_groups {
            true => tracing::info!(
                port = self.name,
                "the guest has arrived: {taken} of its connections go on, {denied} are not allowed here, {left} are left out"
            ),
            false => tracing::info!(
                port = self.name,
                "the guest has arrived; the port has no groups, and needs none of its connections"
            ),
        }
        Ok(())
    }

    /// Notes that the guest comes from another switch, or from before this one was started, and does not bring its connections
    /// along: its rings have been in use, and none of them by a session here.
    pub(super) fn note_arrival(&self) {
        let has_been_used = |vring: &super::Vring| vring.running && vring.resumes;
        if !self.transfer.has_state && self.vrings.iter().any(has_been_used) {
            self.dataplane.note_arrival(&self.name);
        }
    }
}

/// A file of fixed size that the front end writes to.
fn state_file() -> rustix::io::Result<File> {
    let file = memfd_create(
        "crosspoint-state",
        MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
    )?;
    ftruncate(&file, FILE_LEN)?;
    let size = SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    fcntl_add_seals(&file, size)?;
    Ok(File::from(file))
}

/// The first line of a state with as many connections.
fn head(connections: usize) -> serde_json::Result<Vec<u8>> {
    let head = Head {
        format: FORMAT.to_owned(),
        version: VERSION,
        connection_len: EXPORTED_LEN,
        connections,
    };
    let mut line = serde_json::to_vec(&head)?;
    line.push(b'\n');
    Ok(line)
}

/// Reads a state: passes its connections to `take`, some at a time, once it is known that it is whole.
fn read(file: &File, mut take: impl FnMut(&[u8])) -> Result<(), String> {
    // The front end may still write: everything is read once, and what was read is checked.
    let not_read = |why: io::Error| format!("its state cannot be read: {why}");
    let mut head = vec![0; HEAD_MAX];
    file.read_exact_at(&mut head, 0).map_err(not_read)?;
    let end = head.iter().position(|byte| *byte == b'\n');
    let head: Option<Head> = end.and_then(|end| serde_json::from_slice(&head[..end]).ok());
    let (Some(begin), Some(head)) = (end, head.filter(|head| head.format == FORMAT)) else {
        return Err("its state is not that of a crosspoint: another switch has written it".into());
    };
    if head.version != VERSION {
        return Err(format!(
            "its state is of version {}, and this switch knows version {VERSION}",
            head.version
        ));
    }
    let len = head.connection_len;
    if !(EXPORTED_LEN..=CONNECTION_LEN_MAX).contains(&len) || head.connections > CONNECTIONS_MAX {
        return Err(format!(
            "its state has {} connections of {len} bytes, and at most {CONNECTIONS_MAX} of {EXPORTED_LEN} to {CONNECTION_LEN_MAX} are possible",
            head.connections
        ));
    }
    let at = (begin + 1) as u64;
    let mut last = [0; END.len()];
    let end = at + (head.connections * len) as u64;
    file.read_exact_at(&mut last, end).map_err(not_read)?;
    if last != END {
        return Err("its state is cut off".into());
    }
    let mut chunk = vec![0; CHUNK * len];
    let mut known = Vec::with_capacity(CHUNK * EXPORTED_LEN);
    for first in (0..head.connections).step_by(CHUNK) {
        let count = CHUNK.min(head.connections - first);
        let chunk = &mut chunk[..count * len];
        let from = at + (first * len) as u64;
        file.read_exact_at(chunk, from).map_err(not_read)?;
        known.clear();
        for connection in chunk.chunks_exact(len) {
            known.extend(&connection[..EXPORTED_LEN]);
        }
        take(&known);
    }
    Ok(())
}

/// Writes the parts of a state to a front end that reads them, or does not.
fn send(parts: [&[u8]; 3], pipe: OwnedFd, is_over: &AtomicBool) -> io::Result<()> {
    let mut pipe = File::from(pipe);
    let mut last = Instant::now();
    for mut left in parts {
        while !left.is_empty() {
            if is_over.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            match pipe.write(left) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => (left, last) = (&left[count..], Instant::now()),
                Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
                Err(why)
                    if why.kind() == io::ErrorKind::WouldBlock && last.elapsed() < PATIENCE =>
                {
                    let wait = Timespec {
                        tv_sec: 0,
                        tv_nsec: LOOK_AGAIN.as_nanos() as i64,
                    };
                    let _ = poll(&mut [PollFd::new(&pipe, PollFlags::OUT)], Some(&wait));
                }
                Err(why) => return Err(why),
            }
        }
    }
    Ok(())
}
