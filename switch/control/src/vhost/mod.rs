//! Guest ports: a thread per port that talks vhost-user with one front end after the other.
//! A front end that says nothing, or nonsense, holds up nobody else.

mod device;
mod handler;
mod wire;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use thiserror::Error;
use vhost::vhost_user::{BackendReqHandler, Error as VhostError, VhostUserProtocolFeatures};

use crate::config::Role;
use crate::fabric::Fabric;
use device::Device;
use handler::Handler;

/// First pause before a client tries to connect again; it doubles up to the last.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LAST: Duration = Duration::from_secs(1);
/// Pause after a front end that went away at once, so that one that loops costs little.
const SERVER_PAUSE: Duration = Duration::from_millis(10);
const THREAD_STACK: usize = 256 << 10;

/// Why a guest port cannot be opened.
#[derive(Debug, Error)]
pub enum VhostPortError {
    /// Another process listens there.
    #[error(
        "port `{port}`: another process listens on {path}: give this port a socket of its own, or end that process"
    )]
    InUse {
        /// The port's name.
        port: String,
        /// The socket.
        path: PathBuf,
    },
    /// Something that is no socket is in the way.
    #[error("port `{port}`: {path} exists and is no socket: remove it, or name another path")]
    NoSocket {
        /// The port's name.
        port: String,
        /// What is in the way.
        path: PathBuf,
    },
    /// The kernel refused.
    #[error("port `{port}`: cannot listen on {path}: {why}")]
    Listen {
        /// The port's name.
        port: String,
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        why: io::Error,
    },
}

/// A guest port at work. Dropping it disconnects the guest.
pub struct VhostPort {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// Removed at the end, when we made it.
    listening: Option<PathBuf>,
}

struct Shared {
    stop: OwnedFd,
    stopping: std::sync::atomic::AtomicBool,
    /// The connection at hand, to be shut down from outside.
    connection: Mutex<Option<UnixStream>>,
}

enum Endpoint {
    Server(UnixListener),
    Client(PathBuf),
}

impl VhostPort {
    /// Opens port `number` of the fabric on `socket` and serves it from a thread of its own.
    pub fn open(
        fabric: Arc<Fabric>,
        number: u16,
        name: &str,
        socket: &Path,
        role: Role,
        queue_pairs: u16,
    ) -> Result<VhostPort, VhostPortError> {
        let fail = |why| VhostPortError::Listen {
            port: name.to_owned(),
            path: socket.to_owned(),
            why,
        };
        let endpoint = match role {
            Role::Server => Endpoint::Server(listen(name, socket)?),
            Role::Client => Endpoint::Client(socket.to_owned()),
        };
        let shared = Arc::new(Shared {
            stop: eventfd(0, EventfdFlags::CLOEXEC).map_err(|e| fail(e.into()))?,
            stopping: false.into(),
            connection: Mutex::new(None),
        });
        let serve = {
            let (shared, name) = (shared.clone(), name.to_owned());
            move || {
                let device = Device::new(fabric, number, &name, queue_pairs);
                serve(
                    &shared,
                    &name,
                    &endpoint,
                    &Arc::new(Handler(Mutex::new(device))),
                );
            }
        };
        let thread = Builder::new()
            .name(format!("port-{number}"))
            .stack_size(THREAD_STACK);
        Ok(VhostPort {
            shared,
            thread: Some(thread.spawn(serve).map_err(fail)?),
            listening: (role == Role::Server).then(|| socket.to_owned()),
        })
    }
}

impl Drop for VhostPort {
    fn drop(&mut self) {
        self.shared
            .stopping
            .store(true, std::sync::atomic::Ordering::SeqCst);
        let _ = rustix::io::write(&self.shared.stop, &1u64.to_ne_bytes());
        self.shared.shut_down();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        if let Some(path) = &self.listening {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Shared {
    fn stopping(&self) -> bool {
        self.stopping.load(std::sync::atomic::Ordering::SeqCst)
    }

    fn connection(&self) -> std::sync::MutexGuard<'_, Option<UnixStream>> {
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn shut_down(&self) {
        if let Some(connection) = &*self.connection() {
            let _ = connection.shutdown(std::net::Shutdown::Both);
        }
    }

    /// Waits for `fd`, or just for `time`; `false` when the port is to stop.
    fn wait(&self, fd: Option<&dyn AsFdDyn>, time: Option<Duration>) -> bool {
        let mut fds = vec![PollFd::new(&self.stop, PollFlags::IN)];
        fds.extend(fd.map(|fd| PollFd::from_borrowed_fd(fd.fd(), PollFlags::IN)));
        let timeout = time.and_then(|time| Timespec::try_from(time).ok());
        let _ = poll(&mut fds, timeout.as_ref());
        !self.stopping()
    }
}

/// `AsFd`, as a trait object.
trait AsFdDyn {
    fn fd(&self) -> std::os::fd::BorrowedFd<'_>;
}

impl AsFdDyn for UnixListener {
    fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.as_fd()
    }
}

/// Makes the socket, in place of one that a process left behind when it died.
fn listen(port: &str, path: &Path) -> Result<UnixListener, VhostPortError> {
    let (port, at) = (port.to_owned(), path.to_owned());
    if let Ok(there) = std::fs::symlink_metadata(path) {
        if !there.file_type().is_socket() {
            return Err(VhostPortError::NoSocket { port, path: at });
        }
        if UnixStream::connect(path).is_ok() {
            return Err(VhostPortError::InUse { port, path: at });
        }
        let _ = std::fs::remove_file(path);
    }
    if let Some(folder) = path.parent() {
        let _ = std::fs::create_dir_all(folder);
    }
    let listener = UnixListener::bind(path).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    listener.map_err(|why| VhostPortError::Listen {
        port,
        path: at,
        why,
    })
}

fn serve(shared: &Shared, name: &str, endpoint: &Endpoint, handler: &Arc<Handler>) {
    let mut pause = RETRY_FIRST;
    while !shared.stopping() {
        let connection = match endpoint {
            Endpoint::Server(listener) => accept(shared, listener),
            Endpoint::Client(path) => UnixStream::connect(path),
        };
        let Ok(connection) = connection else {
            shared.wait(None, Some(pause));
            pause = (pause * 2).min(RETRY_LAST);
            continue;
        };
        pause = RETRY_FIRST;
        tracing::info!(port = name, "front end connected");
        handler.device().connect();
        let end = converse(shared, connection, handler);
        handler.device().disconnect();
        *shared.connection() = None;
        match end {
            Ok(()) => tracing::info!(port = name, "front end disconnected"),
            Err(why) => tracing::warn!(port = name, "front end disconnected by us: {why}"),
        }
        shared.wait(None, Some(SERVER_PAUSE));
    }
}

fn accept(shared: &Shared, listener: &UnixListener) -> io::Result<UnixStream> {
    if !shared.wait(Some(listener), None) {
        return Err(io::ErrorKind::Interrupted.into());
    }
    let (connection, _) = listener.accept()?;
    connection.set_nonblocking(false)?;
    Ok(connection)
}

/// Handles messages until the front end goes, or says something that makes no sense.
fn converse(shared: &Shared, connection: UnixStream, handler: &Arc<Handler>) -> Result<(), String> {
    let clone = |c: &UnixStream| c.try_clone().map_err(|e| e.to_string());
    *shared.connection() = Some(clone(&connection)?);
    let mut crates = BackendReqHandler::from_stream(clone(&connection)?, handler.clone());
    while !shared.stopping() {
        let Some(header) = wire::peek(&connection).map_err(|e| e.to_string())? else {
            return Ok(());
        };
        match header.request {
            wire::SET_MEM_TABLE | wire::SET_VRING_ENABLE => {
                handle_ourselves(&connection, header, handler).map_err(|e| e.to_string())?;
            }
            _ => match crates.handle_request() {
                Ok(()) | Err(VhostError::InvalidParam) => {}
                Err(VhostError::Disconnected | VhostError::PartialMessage) => return Ok(()),
                Err(why) => return Err(format!("request {}: {why}", header.request)),
            },
        }
    }
    Ok(())
}

fn handle_ourselves(
    connection: &UnixStream,
    header: wire::Header,
    handler: &Arc<Handler>,
) -> io::Result<()> {
    let (payload, fds) = wire::receive(connection, header)?;
    let mut device = handler.device();
    let done = match header.request {
        wire::SET_MEM_TABLE => {
            let table = wire::memory_table(&payload, fds)?;
            device.set_memory(table).map_err(io::Error::other)
        }
        _ => {
            let (index, value) = wire::vring_state(&payload)?;
            device
                .set_vring_enable(index, value != 0)
                .map_err(|e| io::Error::other(e.to_string()))
        }
    };
    let reply_ack = device.protocol_features & VhostUserProtocolFeatures::REPLY_ACK.bits() != 0;
    if header.needs_reply() && reply_ack {
        wire::acknowledge(connection, header, done.is_ok())?;
    } else {
        // Without a reply the front end would go on in the belief that it worked.
        done?;
    }
    Ok(())
}
