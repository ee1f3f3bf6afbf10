//! Requests to the kernel, and their answers.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd as _, IntoRawFd as _, OwnedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NetlinkDeserializable, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable, NlasIterator,
};
use netlink_sys::{Socket, SocketAddr};
use thiserror::Error;

/// Why the kernel refused a request.
#[derive(Debug, Error)]
#[error("{what}: {why}{}", said.as_ref().map_or(String::new(), |said| format!(" ({said})")))]
pub struct LinkError {
    /// The operation that failed.
    pub what: &'static str,
    /// The kernel's error.
    #[source]
    pub why: io::Error,
    /// The kernel's message, if any (its "extended ack").
    pub said: Option<String>,
}

impl LinkError {
    pub(crate) fn new(what: &'static str, why: impl Into<io::Error>) -> LinkError {
        LinkError {
            what,
            why: why.into(),
            said: None,
        }
    }

    /// Returns whether there is no such interface, or no longer.
    pub fn is_gone(&self) -> bool {
        self.is(rustix::io::Errno::NODEV)
    }

    /// Returns whether the driver, or the kernel, does not support the operation.
    pub fn is_unsupported(&self) -> bool {
        self.is(rustix::io::Errno::OPNOTSUPP)
    }

    fn is(&self, errno: rustix::io::Errno) -> bool {
        self.why.raw_os_error() == Some(errno.raw_os_error())
    }
}

/// The attribute with the kernel's error message (NLMSGERR_ATTR_MSG).
const ERROR_WORDS: u16 = 1;
/// Bytes of `struct nlmsghdr`.
const HEADER_BYTES: usize = 16;

/// A netlink socket that sends requests and waits for the answers.
pub(crate) struct Requests {
    socket: Socket,
    sequence: u32,
}

impl AsFd for Requests {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Requests {
    /// Opens a socket. `protocol` is NETLINK_ROUTE or NETLINK_GENERIC.
    pub(crate) fn open(protocol: isize) -> Result<Requests, LinkError> {
        let open = || {
            let mut socket = Socket::new(protocol)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            // Without these, errors are only numbers; with both, a message follows the request's header.
            let _ = socket.set_ext_ack(true);
            let _ = socket.set_cap_ack(true);
            Ok(socket)
        };
        Ok(Requests {
            socket: open().map_err(|why: io::Error| LinkError::new("a netlink socket", why))?,
            sequence: 0,
        })
    }

    /// With a socket that [`open`](Self::open) has opened in another process.
    pub(crate) fn of(socket: OwnedFd) -> Requests {
        // SAFETY: the descriptor is owned, and nothing else closes it.
        let socket = unsafe { Socket::from_raw_fd(socket.into_raw_fd()) };
        Requests {
            socket,
            sequence: 0,
        }
    }

    /// Like [`open`](Self::open); the kernel then selects what a dump names, such as an interface's routes.
    pub(crate) fn open_strict(protocol: isize) -> Result<Requests, LinkError> {
        let requests = Requests::open(protocol)?;
        let strict = requests.socket.set_netlink_get_strict_chk(true);
        strict.map_err(|why| LinkError::new("a netlink socket", why))?;
        Ok(requests)
    }

    /// Sends a request, and returns the answers before the acknowledgement.
    pub(crate) fn ask<M>(&mut self, what: &'static str, message: M) -> Result<Vec<M>, LinkError>
    where
        M: NetlinkSerializable + NetlinkDeserializable + Into<NetlinkPayload<M>>,
    {
        self.exchange(what, message, NLM_F_ACK)
    }

    /// Requests a list, and returns it.
    pub(crate) fn dump<M>(&mut self, what: &'static str, message: M) -> Result<Vec<M>, LinkError>
    where
        M: NetlinkSerializable + NetlinkDeserializable + Into<NetlinkPayload<M>>,
    {
        self.exchange(what, message, NLM_F_DUMP)
    }

    fn exchange<M>(
        &mut self,
        what: &'static str,
        message: M,
        flags: u16,
    ) -> Result<Vec<M>, LinkError>
    where
        M: NetlinkSerializable + NetlinkDeserializable + Into<NetlinkPayload<M>>,
    {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        request.header.sequence_number = self.sequence;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        let fail = |why| LinkError::new(what, why);
        self.socket.send(&bytes, 0).map_err(fail)?;
        let mut answers = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full().map_err(fail)?;
            for bytes in messages(&datagram) {
                let message = NetlinkMessage::<M>::deserialize(bytes)
                    .map_err(|why| fail(io::Error::other(why)))?;
                // An answer to an earlier request that ended with an error.
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                    NetlinkPayload::Done(done) if done.code < 0 => {
                        return Err(fail(io::Error::from_raw_os_error(-done.code)));
                    }
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(answers),
                    NetlinkPayload::Error(error) => {
                        return Err(LinkError {
                            said: words(&error.header),
                            ..fail(error.to_io())
                        });
                    }
                    _ => {}
                }
            }
        }
    }
}

/// Returns the messages of a datagram, each as bytes.
pub(crate) fn messages(datagram: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let len = NetlinkBuffer::new_checked(rest).ok()?.length() as usize;
        let message = rest.get(..len)?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// Returns the kernel's error message, which follows the header of the request.
fn words(error: &[u8]) -> Option<String> {
    let attributes = NlasIterator::new(error.get(HEADER_BYTES..)?);
    let words = attributes
        .filter_map(Result::ok)
        .find(|attribute| attribute.kind() == ERROR_WORDS)?;
    let text = String::from_utf8_lossy(words.value());
    Some(text.trim_end_matches('\0').to_owned())
}
