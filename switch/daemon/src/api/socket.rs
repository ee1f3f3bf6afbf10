//! The socket's file: created with the right mode, never taken from a living daemon, and removed when it is no longer
//! served.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crosspoint_model::client::connect;
use miette::Diagnostic;
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use thiserror::Error;

use crate::service::sandbox::explain;
use crate::service::socket_file::{
    ENDING_PAUSE, ENDING_TIME_MAX, SocketFile, own_socket, set_mode,
};

/// The daemon's user and its group may connect.
const MODE: u32 = 0o660;
/// The directory may be readable by all: the socket's own mode protects it.
const DIRECTORY_MODE: u32 = 0o755;
/// Connections that the kernel queues while the server has its maximum number of clients.
const BACKLOG: i32 = 1024;
/// How long another daemon that starts in the same directory may hold the lock.
pub(super) const LOCK_TIME_MAX: Duration = Duration::from_secs(2);
/// How long a living daemon may take to accept the connection.
const ANSWER_TIME_MAX: Duration = Duration::from_millis(500);

/// Why the control socket cannot be served.
#[derive(Debug, Error, Diagnostic)]
pub enum SocketError {
    /// A living process serves it.
    #[error("a running process answers on {}", path.display())]
    #[diagnostic(help(
        "if it is another crosspoint, stop it first, or give this one another [control] socket"
    ))]
    Busy {
        /// The socket.
        path: PathBuf,
    },
    /// A file of that name exists and is not a socket.
    #[error("{} exists and is not a socket", path.display())]
    #[diagnostic(help("move the file away, or choose another [control] socket"))]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// The file system refused an operation.
    #[error("cannot {what} {}: {cause}", path.display())]
    #[diagnostic(help(
        "the daemon's user must be able to write the directory of [control] socket"
    ))]
    Io {
        /// The operation.
        what: &'static str,
        /// The socket, or its directory.
        path: PathBuf,
        /// The kernel's error.
        #[source]
        cause: io::Error,
    },
}

/// Makes an error of an operation on a file.
fn failed<E: Into<io::Error>>(what: &'static str, path: &Path) -> impl Fn(E) -> SocketError {
    let path = path.to_owned();
    move |cause| SocketError::Io {
        what,
        path: path.clone(),
        cause: explain(&path, cause.into()),
    }
}

/// Listens at `path`, in a directory that is created if it is missing.
///
/// A socket left by a process that died is replaced. Two daemons that start at the same time could each take the other's new
/// socket for a stale one; therefore all of this happens under a lock on the directory, which is waited for with `patience`.
pub(super) fn listen(
    path: &Path,
    patience: Duration,
) -> Result<(UnixListener, SocketFile), SocketError> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if !directory.exists() {
        let mut make = DirBuilder::new();
        make.recursive(true).mode(DIRECTORY_MODE);
        make.create(directory)
            .map_err(failed("create the directory", directory))?;
        tracing::warn!(
            "the folder {} of the control socket did not exist; it has been made, with mode {DIRECTORY_MODE:o} as the umask allows",
            directory.display()
        );
    }
    let _lock = lock(directory, patience)?;
    remove_stale_in_time(path, patience.min(ENDING_TIME_MAX))?;

    let address = SocketAddrUnix::new(path).map_err(failed("use the path", path))?;
    let socket = unconnected(SocketFlags::NONBLOCK).map_err(failed("open a socket for", path))?;
    net::bind(&socket, &address).map_err(failed("create", path))?;
    let file = SocketFile::of(path).map_err(failed("look at", path))?;
    // No client can connect before `listen`, so the mode that umask gave the socket until then does no harm.
    let own = own_socket(path).map_err(failed("look at", path))?;
    set_mode(&own, MODE).map_err(failed("set the mode of", path))?;
    net::listen(&socket, BACKLOG).map_err(failed("listen on", path))?;
    Ok((UnixListener::from(socket), file))
}

/// Locks the directory until the file that is returned is closed.
fn lock(directory: &Path, patience: Duration) -> Result<File, SocketError> {
    let file = File::open(directory).map_err(failed("open", directory))?;
    let deadline = Instant::now() + patience;
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(cause) => return Err(failed("lock", directory)(cause)),
        }
    }
}

/// Like [`remove_stale`], but waits with `patience` while a process answers there: a killed daemon takes a moment to end.
fn remove_stale_in_time(path: &Path, patience: Duration) -> Result<(), SocketError> {
    let deadline = Instant::now() + patience;
    loop {
        match remove_stale(path) {
            Err(SocketError::Busy { .. }) if Instant::now() < deadline => {
                std::thread::sleep(ENDING_PAUSE);
            }
            done => return done,
        }
    }
}

/// Removes the socket of a process that died. Anything else there is left alone and is an error.
fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let file = match fs::symlink_metadata(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at", path)(error)),
    };
    let path_owned = || path.to_owned();
    if !file.file_type().is_socket() {
        return Err(SocketError::NotASocket { path: path_owned() });
    }
    match connect(path, ANSWER_TIME_MAX) {
        Err(Errno::CONNREFUSED) => fs::remove_file(path).map_err(failed("remove the stale", path)),
        Err(Errno::NOENT) => Ok(()),
        // The queue is full, or it is a socket of another type: a process is there.
        Ok(_) | Err(Errno::AGAIN | Errno::PROTOTYPE) => {
            Err(SocketError::Busy { path: path_owned() })
        }
        Err(cause) => Err(failed("find out whether a process answers on", path)(cause)),
    }
}

fn unconnected(flags: SocketFlags) -> Result<std::os::fd::OwnedFd, Errno> {
    let flags = flags | SocketFlags::CLOEXEC;
    net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}
