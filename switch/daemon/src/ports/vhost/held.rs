//! A guest port while its session goes from one process of the switch to another.

use std::io::{self, Write};
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use crosspoint_engine::stream::Stream;
use rustix::io::{DupFlags, dup3};
use vhost::vhost_user::BackendReqHandler;

use super::device::{Device, Positions, Session, record_name};
use super::handler::Handler;
use super::{VhostPort, wire};
use crate::handover::{self, Descriptors};

impl VhostPort {
    /// Lets the port's thread handle no further message.
    pub(crate) fn begin_hold(&self) {
        self.shared.gate.hold();
    }

    /// Whether the port's thread handles no message, for which this waits until `deadline`.
    pub(crate) fn is_outside(&self, deadline: Instant) -> bool {
        self.shared.gate.is_outside(deadline)
    }

    /// Disconnects a front end that does not end its message.
    pub(crate) fn shut(&self) {
        tracing::warn!(
            port = self.name,
            "its front end is disconnected: it does not end its message, and a hand-over waits for it"
        );
        self.shared.shut_down();
    }

    /// Lets the port's thread go on.
    pub(crate) fn release(&self) {
        self.shared.gate.release();
    }

    /// Begins to stop the rings of a held port.
    pub(crate) fn begin_freeze(&self) {
        self.handler.device().begin_freeze();
    }

    /// The port's number.
    pub(crate) fn number(&self) -> u16 {
        self.handler.device().attachment.number()
    }

    /// The most rings that it can have.
    pub(crate) fn ring_count(&self) -> usize {
        2 * usize::from(self.handler.device().queue_pairs())
    }

    /// Returns their positions, when the workers have given up `streams`.
    pub(crate) fn end_freeze(&self, streams: Vec<Stream>) -> Positions {
        self.handler.device().end_freeze(streams)
    }

    /// Records and shows the port after [`thaw`](Self::thaw), and calls its guest.
    pub(crate) fn settle(&self) {
        self.handler.device().settle();
    }

    /// Records and shows the port's state.
    pub(crate) fn describe(&self) {
        self.handler.device().describe();
    }

    /// Starts the rings of a held port. `was_started`: another process may have used them since they were frozen.
    pub(crate) fn thaw(&self, positions: Option<&Positions>, was_started: bool) {
        self.handler.device().thaw(positions, was_started);
    }
}

/// Goes on with the session of this process's predecessor, if there is one. Returns its connection.
pub(super) fn adopt(device: &mut Device, name: &str) -> Option<UnixStream> {
    let record = handover::take(&record_name(name))?;
    let mut fds = Descriptors::of(record.fds);
    let session = serde_json::from_slice::<Session>(&record.body).map_err(|why| why.to_string());
    let session = session.and_then(|session| {
        device.check_session(&session)?;
        Ok(session)
    });
    let session = match session {
        Ok(session) => session,
        // The operator would not expect that a guest is disconnected.
        Err(why) if handover::is_preparing() => {
            handover::refuse_and_end(&format!("port {name}: {why}"))
        }
        Err(why) => {
            disconnect_later(name, &why, fds.take(Some(0)).map(UnixStream::from));
            return None;
        }
    };
    match device.adopt(session, fds) {
        Ok(connection) => Some(connection),
        Err(refused) => {
            disconnect_later(name, &refused.why, refused.connection);
            None
        }
    }
}

/// Disconnects a front end whose session cannot be taken over, once its predecessor does not serve it any more.
fn disconnect_later(port: &str, why: &str, connection: Option<UnixStream>) {
    tracing::warn!(
        port,
        "its front end is disconnected, since its session cannot be taken over: {why}"
    );
    handover::disconnect_later(record_name(port), connection);
}

/// The `vhost` crate's end of `connection`, a socket of its own for the same connection.
///
/// The crate notes what was negotiated, refuses what was not, and acknowledges only if that was. The front end says it once. So
/// for an adopted session the crate first hears on another socket what the predecessor has heard.
pub(super) fn crates_end(
    connection: UnixStream,
    handler: &Arc<Handler>,
    is_adopted: bool,
) -> io::Result<BackendReqHandler<Handler>> {
    let negotiated = handler.device().protocol_features;
    if !is_adopted {
        return Ok(BackendReqHandler::from_stream(connection, handler.clone()));
    }
    let (socket, mut said) = UnixStream::pair()?;
    let number = socket.as_raw_fd();
    let mut crates = BackendReqHandler::from_stream(socket, handler.clone());
    let value = negotiated.to_ne_bytes();
    // Without protocol features the front end may be about to set them: the crate acknowledges only to one that it has told of
    // features.
    let heard = [
        (wire::GET_FEATURES, &[][..]),
        (wire::SET_PROTOCOL_FEATURES, &value),
    ];
    for (request, payload) in heard.into_iter().take(1 + usize::from(negotiated != 0)) {
        said.write_all(&wire::message(request, payload))?;
        crates.handle_request().map_err(io::Error::other)?;
    }
    // SAFETY: `crates` owns the open descriptor `number` beyond this block, and is not used in it. This second owner is never
    // dropped, and what it does leaves the number open.
    let mut place = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(number) });
    dup3(&connection, &mut place, DupFlags::CLOEXEC)?;
    Ok(crates)
}
