//! Guest ports: one thread per port that talks vhost-user with one front end after the other. A front end that is
//! silent or sends nonsense holds up no other port, and on its own port it gives way to the next front end.

mod access;
mod device;
mod handler;
mod held;
mod listening;
mod messages;
mod request;
mod wire;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

pub(crate) use access::group_number;
use crosspoint_config as config;
use crosspoint_config::Role;
use crosspoint_memory::{Kind, check_file};
use device::Device;
pub(crate) use device::Positions;
pub(crate) use device::offered;
pub use device::{QUARANTINE_FIRST, QUARANTINE_LAST};
use handler::Handler;
use listening::{Current, Listening, Ready};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use rustix::thread::{Pid, gettid};
use thiserror::Error;
use vhost::vhost_user::Error as VhostError;

use crate::dataplane::caller::{END_PAUSE, END_TIME_MAX};
use crate::dataplane::{Attachment, Dataplane};
use crate::handover;
use crate::ports::gate::Gate;
use crate::service::interrupt::interrupt;
use crate::service::socket_file::SocketFile;

/// First pause before a client tries to connect again; it doubles up to [`RETRY_LAST`], which is how long a guest that
/// begins to listen waits for the switch. A try costs some microseconds.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LAST: Duration = Duration::from_millis(200);
/// Pause after a front end that disconnects at once, so that one that reconnects in a loop costs little.
const SERVER_PAUSE: Duration = Duration::from_millis(10);
/// How long a silent front end keeps the port when another one waits. A front end that has sent a message keeps it
/// until it disconnects.
pub const SILENCE_MAX: Duration = Duration::from_secs(1);
/// The longest time from a message's first byte to its last, and the longest time to read a reply.
pub const MESSAGE_TIME_MAX: Duration = Duration::from_secs(5);
/// How long a listening front end may take to accept our connection.
const CONNECT_TIME_MAX: Duration = Duration::from_millis(500);
const THREAD_STACK: usize = 256 << 10;

/// Why a guest port cannot be opened.
#[derive(Debug, Error)]
pub enum VhostPortError {
    /// Another process listens on the socket.
    #[error(
        "port `{port}`: another process listens on {path}: give this port a socket of its own, or end that process"
    )]
    InUse {
        /// The port's name.
        port: String,
        /// The socket.
        path: PathBuf,
    },
    /// A file that is no socket is in the way.
    #[error("port `{port}`: {path} exists and is not a socket: remove it, or name another path")]
    NoSocket {
        /// The port's name.
        port: String,
        /// The file in the way.
        path: PathBuf,
    },
    /// The configured group does not exist.
    #[error(
        "port `{port}`: there is no group `{group}` (socket_group) in /etc/group: make it (groupadd --system {group}), or name another"
    )]
    NoGroup {
        /// The port's name.
        port: String,
        /// The group, as configured.
        group: String,
    },
    /// The socket's group cannot be set.
    #[error(
        "port `{port}`: cannot give {path} to group `{group}`: {why}: only a member of that group may do this, and root with CAP_CHOWN; with systemd, add SupplementaryGroups={group} to the service, and restart it"
    )]
    Group {
        /// The port's name.
        port: String,
        /// The socket.
        path: PathBuf,
        /// The group, as configured.
        group: String,
        /// The kernel's error.
        why: io::Error,
    },
    /// The kernel refused to listen.
    #[error("port `{port}`: cannot listen on {path}: {why}")]
    Listen {
        /// The port's name.
        port: String,
        /// The socket.
        path: PathBuf,
        /// The kernel's error.
        why: io::Error,
    },
}

/// An open guest port. Dropping it disconnects the guest.
pub struct VhostPort {
    name: String,
    dataplane: Arc<Dataplane>,
    attachment: Arc<Attachment>,
    shared: Arc<Shared>,
    handler: Arc<Handler>,
    /// When its threads were asked to end.
    ending: OnceLock<Instant>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    stop: OwnedFd,
    stopping: std::sync::atomic::AtomicBool,
    /// Whether the first attempt to connect to a listening front end is over, successful or not.
    asked: std::sync::atomic::AtomicBool,
    /// The port's thread.
    id: OnceLock<Pid>,
    /// Stops the port's thread between two messages.
    gate: Gate,
    /// The current connection, so that other threads can shut it down.
    connection: Mutex<Option<UnixStream>>,
    /// The file of our listening socket, if we listen: removed at the end.
    socket_file: Mutex<Option<SocketFile>>,
}

enum Endpoint {
    Server(Box<Listening>),
    Client(PathBuf),
}

impl VhostPort {
    /// Opens port `number` of the dataplane, and serves it on a thread of its own.
    pub fn open(
        dataplane: Arc<Dataplane>,
        number: u16,
        name: &str,
        config: &config::VhostPort,
    ) -> Result<VhostPort, VhostPortError> {
        let (socket, role) = (config.socket.as_path(), config.role);
        let fail = |why| VhostPortError::Listen {
            port: name.to_owned(),
            path: socket.to_owned(),
            why,
        };
        let (mut endpoint, file) = match role {
            Role::Server => {
                let (listening, file) = Listening::start(name, config)?;
                (Endpoint::Server(Box::new(listening)), Some(file))
            }
            Role::Client => (Endpoint::Client(socket.to_owned()), None),
        };
        let shared = Arc::new(Shared {
            stop: eventfd(0, EventfdFlags::CLOEXEC).map_err(|e| fail(e.into()))?,
            stopping: false.into(),
            // In the server role the front end connects by itself.
            asked: (role == Role::Server).into(),
            id: OnceLock::new(),
            gate: Gate::new(handover::is_taking_over()),
            connection: Mutex::new(None),
            socket_file: Mutex::new(file),
        });
        let vrings = 2 * usize::from(config.queue_pairs);
        let attachment = dataplane.attach(number, vrings).map_err(fail)?;
        let mut device = Device::new(dataplane.clone(), attachment.clone(), name, config.clone());
        if handover::is_taking_over() {
            device.begin_frozen();
        }
        let adopted = held::adopt(&mut device, name);
        // So that the device is visible at once.
        device.describe();
        let handler = Arc::new(Handler(Mutex::new(device)));
        let serve = {
            let (shared, name, handler) = (shared.clone(), name.to_owned(), handler.clone());
            move || {
                let _ = shared.id.set(gettid());
                shared.gate.enter();
                serve(&shared, &name, &mut endpoint, &handler, adopted);
            }
        };
        let thread = Builder::new()
            .name(format!("port-{number}"))
            .stack_size(THREAD_STACK);
        Ok(VhostPort {
            name: name.to_owned(),
            dataplane,
            attachment,
            shared,
            handler,
            ending: OnceLock::new(),
            thread: Some(thread.spawn(serve).map_err(fail)?),
        })
    }
}

impl Drop for VhostPort {
    fn drop(&mut self) {
        listening::forget(&self.name);
        let told = self.begin_end();
        // While the thread still has the socket open: see `SocketFile`. The thread creates no new socket any more.
        drop(self.shared.socket_file().take());
        // The thread may itself wait for its caller thread.
        let deadline = told + 2 * END_TIME_MAX;
        self.wait_for_thread(deadline);
        self.dataplane.detach(&self.attachment);
        self.attachment.caller.end(deadline + END_TIME_MAX);
    }
}

impl VhostPort {
    /// Whether it is known whether a listening front end is there.
    pub fn has_asked(&self) -> bool {
        self.shared.asked.load(std::sync::atomic::Ordering::SeqCst)
    }

    /// Asks its threads to end, once, and returns when that was. Does not wait.
    pub fn begin_end(&self) -> Instant {
        *self.ending.get_or_init(|| {
            self.shared
                .stopping
                .store(true, std::sync::atomic::Ordering::SeqCst);
            let _ = rustix::io::write(&self.shared.stop, &1u64.to_ne_bytes());
            self.shared.shut_down();
            Instant::now()
        })
    }

    /// Waits until the port's thread has ended, or leaves it behind: the front end's descriptors may hold it in
    /// uninterruptible sleep.
    fn wait_for_thread(&mut self, deadline: Instant) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        while !thread.is_finished() && Instant::now() < deadline {
            // This thread makes calls too, and a call can block (see `dataplane::watch`).
            if let Some(id) = self.shared.id.get() {
                interrupt(*id);
            }
            std::thread::sleep(END_PAUSE);
        }
        if thread.is_finished() {
            let _ = thread.join();
            return;
        }
        tracing::warn!(
            port = self.name,
            "its thread does not end: its front end blocks it through a descriptor that it gave. The thread is left running, and nothing that it does later has an effect"
        );
    }
}

impl Shared {
    fn stopping(&self) -> bool {
        self.stopping.load(std::sync::atomic::Ordering::SeqCst)
    }

    fn note_asked(&self) {
        self.asked.store(true, std::sync::atomic::Ordering::SeqCst);
    }

    fn connection(&self) -> std::sync::MutexGuard<'_, Option<UnixStream>> {
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn socket_file(&self) -> std::sync::MutexGuard<'_, Option<SocketFile>> {
        self.socket_file
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the socket's file, which is removed when the port ends. Does nothing if the port is already ending.
    fn keep_socket_file(&self, file: SocketFile) {
        let mut kept = self.socket_file();
        if !self.stopping() {
            *kept = Some(file);
        }
    }

    fn shut_down(&self) {
        if let Some(connection) = &*self.connection() {
            let _ = connection.shutdown(std::net::Shutdown::Both);
        }
    }

    /// Waits until one of `fds` is readable, and returns the index of the first. `None` when `time` has passed, or the
    /// port is to stop.
    fn wait(&self, fds: &[BorrowedFd<'_>], time: Option<Duration>) -> Option<usize> {
        let all = fds.iter().copied().chain([self.stop.as_fd()]);
        let mut polled: Vec<PollFd<'_>> = all
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
            .collect();
        let timeout = time.and_then(|time| Timespec::try_from(time).ok());
        self.gate.leave();
        let _ = poll(&mut polled, timeout.as_ref());
        self.gate.enter();
        let ready = polled.iter().position(|fd| !fd.revents().is_empty());
        ready.filter(|index| *index < fds.len() && !self.stopping())
    }
}

/// Serves one front end on port `number`, on the caller's thread, until `socket` is closed: a session of [`VhostPort`]
/// without the listener and the pause before the next session. For the fuzz target only.
#[cfg(fuzzing)]
pub fn converse_once(
    dataplane: Arc<Dataplane>,
    number: u16,
    config: &config::VhostPort,
    socket: UnixStream,
) {
    let shared = Shared {
        stop: eventfd(0, EventfdFlags::CLOEXEC).expect("a descriptor"),
        stopping: false.into(),
        asked: true.into(),
        id: OnceLock::new(),
        gate: Gate::default(),
        connection: Mutex::new(None),
        socket_file: Mutex::new(None),
    };
    let vrings = 2 * usize::from(config.queue_pairs);
    let attachment = dataplane.attach(number, vrings).expect("a port");
    let device = Device::new(dataplane, attachment, "fuzzed", config.clone());
    let handler = Arc::new(Handler(Mutex::new(device)));
    handler.device().describe();
    let connection = limit_message_time(socket).expect("a socket");
    handler.device().connect(&connection);
    session(
        &shared,
        connection,
        &mut Endpoint::Client(PathBuf::new()),
        &handler,
        false,
    )
    .ok();
}

/// Connects to a listening front end, which may have room for no further connection.
fn connect(shared: &Shared, path: &Path) -> io::Result<UnixStream> {
    // Outside, since that may take its time.
    shared.gate.leave();
    let connection = crosspoint_model::client::connect(path, CONNECT_TIME_MAX);
    shared.gate.enter();
    connection.map_err(io::Error::from)
}

/// Serves front ends: first the one whose session was adopted, if there is one.
fn serve(
    shared: &Shared,
    name: &str,
    endpoint: &mut Endpoint,
    handler: &Arc<Handler>,
    mut adopted: Option<UnixStream>,
) {
    let (mut pause, mut exhausted) = (RETRY_FIRST, false);
    while !shared.stopping() {
        if let Some(connection) = adopted.take() {
            log_end(name, session(shared, connection, endpoint, handler, true));
            continue;
        }
        let connection = match endpoint {
            Endpoint::Server(listening) => accept(shared, listening, handler),
            Endpoint::Client(path) => connect(shared, path),
        };
        let connection = match connection.and_then(limit_message_time) {
            Ok(connection) => connection,
            Err(why) => {
                shared.note_asked();
                note_exhaustion(name, &why, &mut exhausted);
                shared.wait(&[], Some(pause));
                pause = (pause * 2).min(RETRY_LAST);
                continue;
            }
        };
        (pause, exhausted) = (RETRY_FIRST, false);
        tracing::info!(port = name, "front end connected");
        handler.device().connect(&connection);
        log_end(name, session(shared, connection, endpoint, handler, false));
        shared.wait(&[], Some(SERVER_PAUSE));
    }
}

fn log_end(port: &str, end: Result<(), String>) {
    match end {
        Ok(()) => tracing::info!(port, "front end disconnected"),
        Err(why) => tracing::warn!(port, "front end disconnected by us: {why}"),
    }
}

fn accept(shared: &Shared, listening: &mut Listening, handler: &Handler) -> io::Result<UnixStream> {
    let mut note = |problem: Option<&str>| handler.device().note_socket(problem);
    match listening.wait(shared, (None, true), None, &mut note) {
        Some(_) => listening.accept(),
        None => Err(io::ErrorKind::Interrupted.into()),
    }
}

/// Sets timeouts: a message that has begun must arrive in time, or the session ends.
fn limit_message_time(connection: UnixStream) -> io::Result<UnixStream> {
    connection.set_read_timeout(Some(MESSAGE_TIME_MAX))?;
    connection.set_write_timeout(Some(MESSAGE_TIME_MAX))?;
    Ok(connection)
}

/// Logs once that no descriptor is left for a connection; the caller tries again.
fn note_exhaustion(name: &str, why: &io::Error, exhausted: &mut bool) {
    let errno = Errno::from_io_error(why);
    if matches!(errno, Some(Errno::MFILE | Errno::NFILE)) && !*exhausted {
        *exhausted = true;
        tracing::warn!(
            port = name,
            "no front end can connect: {why}; raise the limit of open files (LimitNOFILE)"
        );
    }
}

/// Waits for the next message, or a change of the guest's link. `None` when there will be no message: the port stops, or
/// this front end has sent nothing for [`SILENCE_MAX`] and another one waits.
fn wait_message(
    shared: &Shared,
    current: Current<'_>,
    endpoint: &mut Endpoint,
    handler: &Handler,
    has_spoken: bool,
) -> Option<Ready> {
    let Endpoint::Server(listening) = endpoint else {
        let (connection, link) = current;
        let ready = shared.wait(&[connection.as_fd(), link], None)?;
        return [Ready::Message, Ready::Link].get(ready).copied();
    };
    let mut note = |problem: Option<&str>| handler.device().note_socket(problem);
    let mut wait = |others, time| listening.wait(shared, (Some(current), others), time, &mut note);
    let ready = match has_spoken {
        true => wait(false, None),
        false => wait(false, Some(SILENCE_MAX)).or_else(|| wait(true, None)),
    };
    ready.filter(|ready| *ready != Ready::Another)
}

/// Runs a connected front end's session until its state is gone. `has_spoken`: it has sent messages to this process's
/// predecessor.
fn session(
    shared: &Shared,
    connection: UnixStream,
    endpoint: &mut Endpoint,
    handler: &Arc<Handler>,
    has_spoken: bool,
) -> Result<(), String> {
    shared.note_asked();
    let end = converse(shared, connection, endpoint, handler, has_spoken);
    let why = end
        .as_ref()
        .err()
        .map_or("it closed the connection", String::as_str);
    handler.device().disconnect(why);
    let last = shared.connection().take();
    if let Some(last) = last {
        close(last, &handler.device().attachment);
    }
    end
}

/// Checks the descriptors of the next message. A descriptor whose close can block is stopped here, unless the handler
/// will receive it: both parsers close descriptors that they reject.
fn screen(connection: &UnixStream, header: wire::Header, device: &Device) -> Result<(), String> {
    let peeked = wire::peek_descriptors(connection, header);
    let (fds, are_its_own) = peeked.map_err(|e| e.to_string())?;
    let check = |fd: &OwnedFd| match Kind::of(fd) {
        Kind::Eventfd => Ok(()),
        _ => check_file(fd),
    };
    let Err(why) = fds.iter().try_for_each(check) else {
        return Ok(());
    };
    let may_go_on = !are_its_own || wire::are_for_handler(connection, header, &fds);
    device.retire(fds);
    if may_go_on {
        return Ok(());
    }
    device.retire(wire::take_descriptors(connection).unwrap_or_default());
    Err(format!("request {}: {why}", header.request))
}

/// Closes a connection. Unread messages are dropped with it: if they have descriptors, closing those can block.
fn close(connection: UnixStream, attachment: &Attachment) {
    let unread = recv(
        &connection,
        &mut [0; 1],
        RecvFlags::PEEK | RecvFlags::DONTWAIT,
    );
    // A supervisor may hold a copy of the connection.
    let _ = connection.shutdown(std::net::Shutdown::Both);
    match unread {
        Ok((1.., _)) => attachment.caller.retire_any(Box::new(connection)),
        _ => drop(connection),
    }
}

/// Handles messages until the front end disconnects or sends an invalid one.
fn converse(
    shared: &Shared,
    connection: UnixStream,
    endpoint: &mut Endpoint,
    handler: &Arc<Handler>,
    mut has_spoken: bool,
) -> Result<(), String> {
    let clone = |c: &UnixStream| c.try_clone().map_err(|e| e.to_string());
    *shared.connection() = Some(clone(&connection)?);
    let crates = held::crates_end(clone(&connection)?, handler, has_spoken);
    let mut crates = crates.map_err(|e| e.to_string())?;
    let attachment = handler.device().attachment.clone();
    let current = (&connection, attachment.link.changed());
    while !shared.stopping() {
        if is_let_in(shared, current, handler) {
            continue;
        }
        match wait_message(shared, current, endpoint, handler, has_spoken) {
            Some(Ready::Link) => {
                handler.device().tell_link();
                continue;
            }
            Some(_) => {}
            None if shared.stopping() => return Ok(()),
            None => return Err("it sent no request, and another front end waited".to_owned()),
        }
        let Some(header) = wire::peek(&connection).map_err(|e| e.to_string())? else {
            return Ok(());
        };
        handler.device().note_request(header.request);
        handler.device().begin_message();
        screen(&connection, header, &handler.device())?;
        if messages::is_ours(header) {
            messages::handle(&connection, header, handler).map_err(|e| e.to_string())?;
        } else {
            match crates.handle_request() {
                Ok(()) => {}
                Err(VhostError::ReqHandlerError(why)) if device::is_refusal(&why) => {}
                Err(VhostError::Disconnected | VhostError::PartialMessage) => return Ok(()),
                Err(why) => return Err(format!("request {}: {why}", header.request)),
            }
        }
        has_spoken = true;
        let caller = handler.device().attachment.caller.clone();
        caller.probe();
        handler.device().end_quarantine();
        handler.device().describe();
        handler.device().end_message();
    }
    Ok(())
}

/// Waits while a device that was reset is in quarantine. Returns `true` when the pause is over and the device has been
/// readmitted. A message that arrives meanwhile is handled first, and so is a change of the link.
fn is_let_in(shared: &Shared, (connection, link): Current<'_>, handler: &Arc<Handler>) -> bool {
    let Some(left) = handler.device().quarantine_left() else {
        return false;
    };
    let fds = [connection.as_fd(), link];
    if shared.wait(&fds, Some(left)).is_some() {
        return false;
    }
    let mut device = handler.device();
    device.end_quarantine();
    device.describe();
    true
}
