//! The client's side of the control socket.

mod connect;
mod frames;

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use connect::connect;
pub use frames::{Closer, Frames, Traces};
use miette::Diagnostic;
use rustix::io::Errno;
use rustix::net::{self, RecvFlags};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use thiserror::Error;

use crate::request::{REQUEST_TIME_MAX, Request};

/// The longest that the daemon may be silent.
const TIME_MAX: Duration = Duration::from_secs(10);
/// The longest that it may be silent during a change, which takes a while with many NICs.
const CHANGE_TIME_MAX: Duration = Duration::from_secs(60);
/// The longest reply: the largest forwarding database takes 40 MiB.
const REPLY_BYTES_MAX: u64 = 256 << 20;

/// Why the daemon gave no answer.
#[derive(Debug, Error, Diagnostic)]
pub enum ClientError {
    /// There is no such socket.
    #[error("there is no control socket {}", path.display())]
    #[diagnostic(help(
        "is crosspoint running? if its configuration has another [control] socket, name that one with --socket"
    ))]
    Missing {
        /// The socket.
        path: PathBuf,
    },
    /// The socket exists, but no process listens on it.
    #[error("no process answers on the control socket {}", path.display())]
    #[diagnostic(help(
        "is crosspoint running? a daemon that was killed leaves its socket file behind, and the next start replaces it; use --socket to name another socket"
    ))]
    Dead {
        /// The socket.
        path: PathBuf,
    },
    /// The user has no permission.
    #[error("no permission to talk to the control socket {}", path.display())]
    #[diagnostic(help("run this as root, or as a member of the socket's group"))]
    Denied {
        /// The socket.
        path: PathBuf,
    },
    /// The daemon is overloaded or stopped.
    #[error("crosspoint did not answer on {} in time", path.display())]
    #[diagnostic(help("too many clients may be connected, or the process may be stopped"))]
    Silent {
        /// The socket.
        path: PathBuf,
    },
    /// Any other error of the kernel.
    #[error("cannot talk to the control socket {}: {cause}", path.display())]
    #[diagnostic(help("is this crosspoint's socket? use --socket to name another one"))]
    Io {
        /// The socket.
        path: PathBuf,
        /// The kernel's error.
        #[source]
        cause: io::Error,
    },
    /// The answer is not a reply of crosspoint.
    #[error("the process that answers on {} is not crosspoint: {cause}", path.display())]
    #[diagnostic(help("name crosspoint's socket with --socket"))]
    NoReply {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        cause: serde_json::Error,
    },
    /// The daemon refuses the request.
    #[error("crosspoint refuses: {error}")]
    #[diagnostic(help("{help}"))]
    Refused {
        /// What is wrong, in the daemon's words.
        error: String,
        /// What to do about it.
        help: String,
        /// Which lines of a configuration are wrong and why, if that is the cause.
        report: Option<String>,
    },
}

/// The two shapes of a reply.
#[derive(Deserialize)]
#[serde(untagged)]
enum Reply<T> {
    Ok {
        ok: T,
    },
    Error {
        error: String,
        help: String,
        #[serde(default)]
        report: Option<String>,
    },
}

/// Sends a request to the daemon at `path`, and returns what its reply's `ok` holds.
pub fn request(path: &Path, request: &Request) -> Result<Value, ClientError> {
    Client::new(path).request(request)
}

/// A client of several requests. The connection stays open between requests, as long as the daemon lets it.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    daemon: BufReader<UnixStream>,
    used: Instant,
}

impl Client {
    /// A client of the daemon at `path`; it connects at its first request.
    pub fn new(path: &Path) -> Client {
        Client {
            path: path.to_owned(),
            open: None,
        }
    }

    /// Sends a request, and returns what the reply's `ok` holds. After an error, the next request is made on a new
    /// connection.
    ///
    /// No request is sent twice: a daemon that disconnects during a request is an error, even if another has taken its
    /// place.
    pub fn request<T: DeserializeOwned>(&mut self, request: &Request) -> Result<T, ClientError> {
        let path = &self.path;
        // A connection that the daemon has closed, or is about to close, is not used again.
        let kept = self.open.take().filter(Open::is_usable);
        let connect = || Open::new(path);
        let open = kept.map_or_else(connect, Ok);
        let mut open = open.map_err(|cause| explain(path, cause))?;
        let line = open
            .exchange(request)
            .map_err(|cause| explain(path, cause))?;
        let ok = ok_of(path, &line)?;
        self.open = Some(open);
        Ok(ok)
    }
}

/// What a reply's `ok` holds.
fn ok_of<T: DeserializeOwned>(path: &Path, line: &[u8]) -> Result<T, ClientError> {
    match serde_json::from_slice(line) {
        Ok(Reply::Ok { ok }) => Ok(ok),
        Ok(Reply::Error {
            error,
            help,
            report,
        }) => Err(ClientError::Refused {
            error,
            help,
            report,
        }),
        Err(cause) => Err(ClientError::NoReply {
            path: path.to_owned(),
            cause,
        }),
    }
}

impl Open {
    fn new(path: &Path) -> io::Result<Open> {
        let daemon = connect(path, TIME_MAX)?;
        Ok(Open {
            daemon: BufReader::new(daemon),
            used: Instant::now(),
        })
    }

    /// Whether the connection can be used again: the daemon has sent nothing unasked, has not hung up, and will not close an
    /// idle connection soon.
    fn is_usable(&self) -> bool {
        let daemon = self.daemon.get_ref();
        let quiet = match net::recv(
            daemon,
            &mut [0_u8; 1][..],
            RecvFlags::PEEK | RecvFlags::DONTWAIT,
        ) {
            Err(Errno::AGAIN) => true,
            Ok(_) | Err(_) => false,
        };
        quiet && self.daemon.buffer().is_empty() && self.used.elapsed() < REQUEST_TIME_MAX / 2
    }

    fn exchange(&mut self, request: &Request) -> io::Result<Vec<u8>> {
        let is_change = matches!(
            request,
            Request::Move(_)
                | Request::Plan { .. }
                | Request::Reload {}
                | Request::PortAdd(_)
                | Request::PortRemove(_)
                | Request::PortSet(_)
                | Request::FdbFlush(_)
                | Request::FdbAdd(_)
                | Request::FdbRemove(_)
                | Request::SetAdd(_)
                | Request::SetRemove(_)
        );
        let time_max = if is_change { CHANGE_TIME_MAX } else { TIME_MAX };
        self.daemon.get_ref().set_read_timeout(Some(time_max))?;
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        self.daemon.get_mut().write_all(&line)?;
        line.clear();
        let mut reply = (&mut self.daemon).take(REPLY_BYTES_MAX);
        reply.read_until(b'\n', &mut line)?;
        self.used = Instant::now();
        Ok(line)
    }
}

fn explain(path: &Path, cause: io::Error) -> ClientError {
    let path = path.to_owned();
    match Errno::from_io_error(&cause) {
        Some(Errno::NOENT | Errno::NOTDIR) => ClientError::Missing { path },
        Some(Errno::CONNREFUSED) => ClientError::Dead { path },
        Some(Errno::ACCESS | Errno::PERM) => ClientError::Denied { path },
        Some(Errno::AGAIN | Errno::TIMEDOUT) => ClientError::Silent { path },
        _ => ClientError::Io { path, cause },
    }
}
