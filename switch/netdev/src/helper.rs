//! The helper process: it opens netlink sockets in the network namespaces of veths' peers, for a process that has given up
//! the right to enter them.
//!
//! It does nothing else: a request is the number of a namespace, an answer is one byte, and with it the socket. It reads
//! nothing of guests or front ends.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::namespace::generic_socket_by_thread;

/// How long an answer may take: the helper may look at every process of the host.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(5);
const FOUND: u8 = 1;
const NOT_FOUND: u8 = 0;

/// How this process reaches other network namespaces.
pub(crate) enum Ways {
    /// It enters them, if it may.
    Own,
    /// A helper process does.
    Helper(Helper),
    /// Not at all.
    None,
}

static WAYS: OnceLock<Ways> = OnceLock::new();

pub(crate) fn ways() -> &'static Ways {
    WAYS.get().unwrap_or(&Ways::Own)
}

/// From now on this process enters no network namespace itself. `helper` is the connection to a process that does, in
/// [`serve`].
pub fn give_up_namespaces(helper: Option<UnixStream>) {
    let ways = match helper {
        Some(stream) => Ways::Helper(Helper(Mutex::new(Some(stream)))),
        None => Ways::None,
    };
    // A second call changes nothing: the right is gone.
    let _ = WAYS.set(ways);
}

/// The connection to the helper; `None` after an error.
pub(crate) struct Helper(Mutex<Option<UnixStream>>);

impl Helper {
    /// A socket in namespace `id`.
    pub(crate) fn ask(&self, id: i32) -> Option<OwnedFd> {
        let mut stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = ask(stream.as_mut()?, id);
        if answer.is_err() {
            // A late answer would be taken for that of the next request.
            *stream = None;
        }
        answer.ok().flatten()
    }
}

fn ask(stream: &mut UnixStream, id: i32) -> io::Result<Option<OwnedFd>> {
    stream.set_read_timeout(Some(ANSWER_TIME_MAX))?;
    stream.write_all(&id.to_ne_bytes())?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut bytes = [IoSliceMut::new(&mut byte)];
    // With a time limit, the kernel does not restart the call after a signal.
    let got = retry_on_intr(|| {
        let flags = RecvFlags::CMSG_CLOEXEC;
        recvmsg(&*stream, &mut bytes, &mut ancillary, flags)
    })?;
    if got.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let sockets = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok(sockets.last())
}

/// Answers requests until the other end is closed.
pub fn serve(mut stream: UnixStream) -> io::Result<()> {
    let mut id = [0; 4];
    loop {
        match stream.read_exact(&mut id) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            read => read?,
        }
        let socket = generic_socket_by_thread(i32::from_ne_bytes(id));
        match socket.and_then(Result::ok) {
            Some(socket) => {
                let fds = [socket.as_fd()];
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut ancillary = SendAncillaryBuffer::new(&mut space);
                ancillary.push(SendAncillaryMessage::ScmRights(&fds));
                let bytes = [IoSlice::new(&[FOUND])];
                sendmsg(&stream, &bytes, &mut ancillary, SendFlags::NOSIGNAL)?;
            }
            None => stream.write_all(&[NOT_FOUND])?,
        }
    }
}
