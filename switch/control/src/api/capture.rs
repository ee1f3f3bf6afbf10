//! Frames over the control socket, both sides. The messages are described in [`capture`](crate::capture).

use std::io::{self, BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::de::DeserializeOwned;
use tokio::io::AsyncWriteExt;

use super::client::{self, ClientError, TIME_MAX};
use super::server::{self, Asked};
use super::{Request, socket};
use crate::capture::trace::Trace;
use crate::capture::{self, Begin, Client, Message, TraceWanted, Wanted, read_message};

/// A request that takes over the connection.
pub(super) enum Job {
    Capture(Wanted),
    Trace(TraceWanted),
}

/// The job that a line asks for, if any.
pub(super) fn wanted(line: &[u8]) -> Option<Job> {
    match serde_json::from_slice(line) {
        Ok(Request::Capture(wanted)) => Some(Job::Capture(wanted)),
        Ok(Request::Trace(wanted)) => Some(Job::Trace(wanted)),
        _ => None,
    }
}

/// Tells the threads of all jobs when the server ends.
#[derive(Default)]
pub(super) struct EndOnDrop(pub(super) Arc<AtomicBool>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Sends frames to a client on a separate thread, until it has enough or disconnects. Frames are confidential: only users
/// that may change the switch may see them.
pub(super) async fn show_frames(
    client: tokio::io::BufReader<tokio::net::UnixStream>,
    asked: Asked,
    job: Job,
) {
    let mut client = client.into_inner();
    let (uid, pid) = match asked.peer {
        Some(peer) => (Some(peer.uid()), peer.pid()),
        None => (None, None),
    };
    let may = server::may_change(uid, rustix::process::geteuid().as_raw());
    let fabric = asked.source.fabric().filter(|_| may);
    let Some(fabric) = fabric else {
        let why = match may {
            true => "there are no frames to look at",
            false => "only root and the daemon's user may look at frames",
        };
        let help = "`crosspoint show` works for every user who may connect".to_owned();
        if let Ok(reply) = server::refuse(why.to_owned(), help) {
            let _ = client.write_all(&reply).await;
        }
        return;
    };
    let Ok(socket) = client.into_std() else {
        return;
    };
    let task = tokio::task::spawn_blocking(move || {
        let mut client = Client {
            socket,
            stop: &asked.ending,
            pid,
            uid,
        };
        // Errors are the client's, which notices them.
        let _ = match &job {
            Job::Capture(wanted) => capture::capture(&fabric, wanted, &mut client),
            Job::Trace(wanted) => capture::follow(&fabric, wanted, &mut client),
        };
    });
    let _ = task.await;
}

/// A capture, on the client's side.
pub struct Frames {
    /// The daemon's first answer.
    pub begin: Begin,
    daemon: BufReader<UnixStream>,
}

/// Ends a capture or a trace, from any thread.
pub struct Closer(UnixStream);

impl Closer {
    /// Asks the daemon to end it. What it has recorded so far still arrives.
    pub fn close(&self) {
        // A daemon that has disconnected has ended it already.
        let _ = self.0.shutdown(Shutdown::Write);
    }
}

impl Frames {
    /// Asks the daemon at `path` for frames.
    pub fn ask(path: &Path, wanted: &Wanted) -> Result<Frames, ClientError> {
        let mut daemon = open(path, &Request::Capture(wanted.clone()))?;
        let begin = answer(path, &mut daemon)?.unwrap_or_default();
        // From now on the daemon may be silent for as long as no frame is captured.
        let waits = daemon.get_ref().set_read_timeout(None);
        waits.map_err(|cause| client::explain(path, cause))?;
        Ok(Frames { begin, daemon })
    }

    /// Returns a handle that ends the capture.
    pub fn closer(&self) -> io::Result<Closer> {
        Ok(Closer(self.daemon.get_ref().try_clone()?))
    }

    /// Whether the next message has begun to arrive, so that reading it does not wait.
    pub fn has_more(&self) -> bool {
        !self.daemon.buffer().is_empty()
    }
}

impl Iterator for Frames {
    type Item = io::Result<Message>;

    /// The next message; the last is [`Message::End`], unless the daemon disconnects.
    fn next(&mut self) -> Option<io::Result<Message>> {
        read_message(&mut self.daemon).transpose()
    }
}

/// A trace, on the client's side.
pub struct Traces {
    path: std::path::PathBuf,
    daemon: BufReader<UnixStream>,
}

impl Traces {
    /// Asks the daemon at `path` what happens to frames.
    pub fn ask(path: &Path, wanted: &TraceWanted) -> Result<Traces, ClientError> {
        let daemon = open(path, &Request::Trace(wanted.clone()))?;
        let waits = daemon.get_ref().set_read_timeout(None);
        waits.map_err(|cause| client::explain(path, cause))?;
        let path = path.to_owned();
        Ok(Traces { path, daemon })
    }

    /// Returns a handle that ends the trace.
    pub fn closer(&self) -> io::Result<Closer> {
        Ok(Closer(self.daemon.get_ref().try_clone()?))
    }
}

impl Iterator for Traces {
    type Item = Result<Trace, ClientError>;

    fn next(&mut self) -> Option<Result<Trace, ClientError>> {
        answer(&self.path, &mut self.daemon).transpose()
    }
}

fn open(path: &Path, request: &Request) -> Result<BufReader<UnixStream>, ClientError> {
    let open = || -> io::Result<_> {
        let mut daemon = socket::connect(path, TIME_MAX)?;
        daemon.set_read_timeout(Some(TIME_MAX))?;
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        daemon.write_all(&line)?;
        Ok(BufReader::with_capacity(1 << 18, daemon))
    };
    open().map_err(|cause| client::explain(path, cause))
}

/// Reads an answer's line; `None` at the end.
fn answer<T: DeserializeOwned>(
    path: &Path,
    daemon: &mut BufReader<UnixStream>,
) -> Result<Option<T>, ClientError> {
    let mut line = Vec::new();
    let read = daemon.read_until(b'\n', &mut line);
    match read.map_err(|cause| client::explain(path, cause))? {
        0 => Ok(None),
        _ => {
            let ok = client::ok_of(path, &line)?;
            let value = serde_json::from_value(ok);
            value.map(Some).map_err(|cause| ClientError::NoReply {
                path: path.to_owned(),
                cause,
            })
        }
    }
}
