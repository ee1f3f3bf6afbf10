//! Frames over the control socket: the client's side.

use std::io::{self, BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use super::{ClientError, TIME_MAX, connect, explain, ok_of};
use crate::capture::{Begin, Message, TraceWanted, Wanted, read_message};
use crate::request::Request;
use crate::trace::Trace;

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
        waits.map_err(|cause| explain(path, cause))?;
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

/// A trace, on the client's side.
pub struct Traces {
    path: PathBuf,
    daemon: BufReader<UnixStream>,
}

impl Traces {
    /// Asks the daemon at `path` what happens to frames.
    pub fn ask(path: &Path, wanted: &TraceWanted) -> Result<Traces, ClientError> {
        let daemon = open(path, &Request::Trace(wanted.clone()))?;
        let waits = daemon.get_ref().set_read_timeout(None);
        waits.map_err(|cause| explain(path, cause))?;
        let path = path.to_owned();
        Ok(Traces { path, daemon })
    }

    /// Returns a handle that ends the trace.
    pub fn closer(&self) -> io::Result<Closer> {
        Ok(Closer(self.daemon.get_ref().try_clone()?))
    }
}

impl Iterator for Frames {
    type Item = io::Result<Message>;

    /// The next message; the last is [`Message::End`], unless the daemon disconnects.
    fn next(&mut self) -> Option<io::Result<Message>> {
        read_message(&mut self.daemon).transpose()
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
        let mut daemon = connect(path, TIME_MAX)?;
        daemon.set_read_timeout(Some(TIME_MAX))?;
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        daemon.write_all(&line)?;
        Ok(BufReader::with_capacity(1 << 18, daemon))
    };
    open().map_err(|cause| explain(path, cause))
}

/// Reads an answer's line; `None` at the end.
fn answer<T: DeserializeOwned>(
    path: &Path,
    daemon: &mut BufReader<UnixStream>,
) -> Result<Option<T>, ClientError> {
    let mut line = Vec::new();
    let read = daemon.read_until(b'\n', &mut line);
    match read.map_err(|cause| explain(path, cause))? {
        0 => Ok(None),
        _ => {
            let ok = ok_of(path, &line)?;
            let value = serde_json::from_value(ok);
            value.map(Some).map_err(|cause| ClientError::NoReply {
                path: path.to_owned(),
                cause,
            })
        }
    }
}
