//! vhost-user messages that are handled outside the `vhost` crate, because it refuses them in the form that real front
//! ends send. The header is peeked at; other messages are left for the crate.
//!
//! - SET_MEM_TABLE: User-Mode Linux sends a payload larger than its regions need.
//! - SET_VRING_ENABLE: QEMU sends it before SET_FEATURES.
//! - SEND_RARP, NET_SET_MTU, SET_STATUS and GET_STATUS: the crate does not know them.
//! - SET_LOG_FD: the crate ends the session.
//! - SET_BACKEND_REQ_FD: the crate cannot send CONFIG_CHANGE_MSG on the channel.
//! - GET_QUEUE_NUM, GET_CONFIG and the rest go to the crate.

use std::fs::File;
use std::io::{self, IoSliceMut, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use crosspoint_memory::{Kind, RegionSpec};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags,
    SocketType, recv, recvmsg, send, sockopt,
};

/// Request numbers (vhost-user protocol, "Front-end message types").
pub(super) const SET_MEM_TABLE: u32 = 5;
/// See [`SET_MEM_TABLE`].
pub(super) const SET_LOG_FD: u32 = 7;
/// Requests that may come with a descriptor, whose kind is known only when it arrives. The crate handles them.
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const SET_VRING_ERR: u32 = 14;
const SET_DEVICE_STATE_FD: u32 = 42;
/// See [`SET_MEM_TABLE`]. The channel for a back end's requests: a socket.
pub(super) const SET_BACKEND_REQ_FD: u32 = 21;
/// See [`SET_MEM_TABLE`].
pub(super) const SET_VRING_ENABLE: u32 = 18;
/// See [`SET_MEM_TABLE`].
pub(super) const SEND_RARP: u32 = 19;
/// A request that the `vhost` crate handles.
pub(super) const GET_FEATURES: u32 = 1;
/// See [`GET_FEATURES`].
pub(super) const SET_PROTOCOL_FEATURES: u32 = 16;
/// See [`SET_MEM_TABLE`].
pub(super) const NET_SET_MTU: u32 = 20;
/// See [`SET_MEM_TABLE`].
pub(super) const SET_STATUS: u32 = 39;
/// See [`SET_MEM_TABLE`].
pub(super) const GET_STATUS: u32 = 40;

/// A back end's request (vhost-user protocol, "Back-end message types"): the configuration space has changed.
const BACKEND_CONFIG_CHANGE_MSG: u32 = 2;

const HEADER_LEN: usize = 12;
const FLAG_REPLY: u32 = 1 << 2;
const FLAG_NEED_REPLY: u32 = 1 << 3;
const VERSION: u32 = 1;
/// Maximum number of regions in SET_MEM_TABLE (vhost-user protocol, "Multiple memory regions").
const MAX_REGIONS: usize = 8;
/// Maximum number of descriptors that come with one message (SCM_MAX_FD of Linux).
const MAX_DESCRIPTORS: usize = 253;
/// Payload bytes that are peeked at: more than any message has.
const MAX_PAYLOAD_PEEKED: usize = 4096;
/// Flag in the payload of SET_VRING_KICK and similar messages: there is no descriptor.
const NO_DESCRIPTOR: u64 = 1 << 8;
/// The longest payload of the messages handled here.
const MAX_PAYLOAD: usize = 8 + 32 * MAX_REGIONS + 64;

/// A message's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Header {
    pub(super) request: u32,
    flags: u32,
    size: u32,
}

impl Header {
    pub(super) fn needs_reply(self) -> bool {
        self.flags & FLAG_NEED_REPLY != 0
    }

    fn parse(bytes: [u8; HEADER_LEN]) -> Header {
        let word = |at: usize| {
            u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        Header {
            request: word(0),
            flags: word(4),
            size: word(8),
        }
    }
}

fn invalid(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

/// Peeks at the next message's header, which stays in the socket. `None` when the front end has disconnected.
pub(super) fn peek(socket: &UnixStream) -> io::Result<Option<Header>> {
    let mut bytes = [0; HEADER_LEN];
    let flags = RecvFlags::PEEK | RecvFlags::WAITALL;
    loop {
        match recv(socket, &mut bytes, flags) {
            Ok((HEADER_LEN, _)) => return Ok(Some(Header::parse(bytes))),
            Ok((0, _)) => return Ok(None),
            Ok((n, _)) => {
                return Err(invalid(format!(
                    "a message of {n} bytes: the header alone has 12"
                )));
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Returns copies of the next descriptors in the socket, and whether they belong to the next message, which has header
/// `header`. The message stays in the socket. If the front end put several messages into one write, its descriptors
/// count as the last one's.
pub(super) fn peek_descriptors(
    socket: &UnixStream,
    header: Header,
) -> io::Result<(Vec<OwnedFd>, bool)> {
    let len = HEADER_LEN + (header.size as usize).min(MAX_PAYLOAD_PEEKED);
    let mut bytes = [0; HEADER_LEN + MAX_PAYLOAD_PEEKED + 1];
    // Linux reads up to and including the first write with descriptors, and stops after it.
    let (got, fds) = receive_descriptors(socket, &mut bytes[..=len], RecvFlags::PEEK)?;
    Ok((fds, got <= len))
}

/// Reads the next message's header, and returns the descriptors that come with it.
pub(super) fn take_descriptors(socket: &UnixStream) -> io::Result<Vec<OwnedFd>> {
    let taken = receive_descriptors(socket, &mut [0; HEADER_LEN], RecvFlags::empty());
    taken.map(|(_, fds)| fds)
}

fn receive_descriptors(
    socket: &UnixStream,
    bytes: &mut [u8],
    flags: RecvFlags,
) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space =
        [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let slices = &mut [IoSliceMut::new(bytes)];
    let flags = flags | RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let got = recvmsg(socket, slices, &mut ancillary, flags)?;
    Ok((got.bytes, rights(&mut ancillary)))
}

fn rights(ancillary: &mut RecvAncillaryBuffer<'_>) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    fds
}

/// Whether the next message, which has header `header`, may have these descriptors even if closing them can block: the
/// handler receives them, and closes them on the caller thread. The message stays in the socket.
pub(super) fn are_for_handler(socket: &UnixStream, header: Header, fds: &[OwnedFd]) -> bool {
    let [fd] = fds else {
        return false;
    };
    if header.flags & !FLAG_NEED_REPLY != VERSION {
        return false;
    }
    if header.request == SET_BACKEND_REQ_FD {
        return header.size == 0 && Kind::of(fd) == Kind::Socket;
    }
    let mut bytes = [0; HEADER_LEN + 8];
    let got = recv(socket, &mut bytes, RecvFlags::PEEK | RecvFlags::DONTWAIT);
    let value = match (got, bytes) {
        (Ok((len, _)), [.., a, b, c, d, e, f, g, h]) if len == HEADER_LEN + 8 => {
            u64::from_ne_bytes([a, b, c, d, e, f, g, h])
        }
        _ => return false,
    };
    let has_one = match header.request {
        SET_VRING_KICK | SET_VRING_CALL | SET_VRING_ERR => value & NO_DESCRIPTOR == 0,
        // The direction, 0 or 1, and the phase, 0: the crate closes the descriptor of another message.
        SET_DEVICE_STATE_FD => value <= 1,
        _ => false,
    };
    has_one && header.size == 8
}

/// Reads the message that was peeked at: returns its payload and descriptors.
pub(super) fn receive(socket: &UnixStream, header: Header) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let size = header.size as usize;
    if header.flags & !FLAG_NEED_REPLY != VERSION {
        return Err(invalid(format!(
            "request {} with flags {:#x}: only version 1 is supported, and this must not be a reply",
            header.request, header.flags
        )));
    }
    if size > MAX_PAYLOAD {
        return Err(invalid(format!(
            "request {} with a payload of {size} bytes",
            header.request
        )));
    }
    let mut bytes = [0; HEADER_LEN];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_REGIONS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let slices = &mut [IoSliceMut::new(&mut bytes)];
    let got = recvmsg(
        socket,
        slices,
        &mut ancillary,
        RecvFlags::WAITALL | RecvFlags::CMSG_CLOEXEC,
    )?;
    let fds = rights(&mut ancillary);
    if got.bytes != HEADER_LEN || got.flags.contains(ReturnFlags::CTRUNC) {
        return Err(invalid(format!(
            "request {} with too many descriptors",
            header.request
        )));
    }
    let mut payload = vec![0; size];
    (&*socket).read_exact(&mut payload)?;
    Ok((payload, fds))
}

/// Whether a message has the payload length and the descriptors of its kind. SET_MEM_TABLE is checked where it is read,
/// since its payload may be longer than necessary.
pub(super) fn check_shape(request: u32, len: usize, fds: usize) -> io::Result<()> {
    let wanted = match request {
        SET_MEM_TABLE => return Ok(()),
        SET_LOG_FD | SET_BACKEND_REQ_FD => (0, 1),
        GET_STATUS => (0, 0),
        _ => (8, 0),
    };
    if (len, fds) != wanted {
        return Err(invalid(format!(
            "request {request} with {len} bytes and {fds} descriptors: it has {} and {}",
            wanted.0, wanted.1
        )));
    }
    Ok(())
}

/// Replies to a message that asked for an acknowledgement (REPLY_ACK): 0 for success.
pub(super) fn acknowledge(socket: &UnixStream, header: Header, ok: bool) -> io::Result<()> {
    reply(socket, header, u64::from(!ok))
}

/// Replies to a message with 64 bits.
pub(super) fn reply(socket: &UnixStream, header: Header, value: u64) -> io::Result<()> {
    let reply = encode(header.request, VERSION | FLAG_REPLY, &value.to_ne_bytes());
    (&*socket).write_all(&reply)
}

/// A front end's message, as bytes.
pub(super) fn message(request: u32, payload: &[u8]) -> Vec<u8> {
    encode(request, VERSION, payload)
}

fn encode(request: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let words = [request, flags, payload.len() as u32];
    [&words.map(u32::to_ne_bytes).concat(), payload].concat()
}

/// Whether a descriptor can be the channel for a back end's requests: a stream socket between processes of this host. To send
/// on another kind could block.
pub(super) fn is_channel(fd: &OwnedFd) -> bool {
    Kind::of(fd) == Kind::Socket
        && sockopt::socket_domain(fd) == Ok(AddressFamily::UNIX)
        && sockopt::socket_type(fd) == Ok(SocketType::STREAM)
}

/// Tells the front end, on its channel, that the configuration space has changed. Does not wait for room or for a reply.
pub(super) fn tell_config_change(channel: &OwnedFd) -> io::Result<()> {
    let words = [BACKEND_CONFIG_CHANGE_MSG, VERSION, 0];
    let message = words.map(u32::to_ne_bytes).concat();
    send(channel, &message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Parses a payload of 64 bits.
pub(super) fn word(payload: &[u8]) -> io::Result<u64> {
    let bytes = <[u8; 8]>::try_from(payload);
    let bytes = bytes.map_err(|_| invalid(format!("a payload of {} bytes, not 8", payload.len())));
    bytes.map(u64::from_ne_bytes)
}

/// Parses a vring's index and a value.
pub(super) fn vring_state(payload: &[u8]) -> io::Result<(u32, u32)> {
    match payload.first_chunk::<8>() {
        Some([a, b, c, d, e, f, g, h]) => Ok((
            u32::from_ne_bytes([*a, *b, *c, *d]),
            u32::from_ne_bytes([*e, *f, *g, *h]),
        )),
        None => Err(invalid("a vring state of fewer than 8 bytes")),
    }
}

/// Parses SET_MEM_TABLE's regions, each with its file. A payload longer than the regions is accepted.
pub(super) fn memory_table(
    payload: &[u8],
    fds: Vec<OwnedFd>,
) -> io::Result<Vec<(RegionSpec, File)>> {
    let word = |at: usize| -> io::Result<u64> {
        let bytes = payload.get(at..).and_then(|rest| rest.first_chunk::<8>());
        bytes
            .map(|b| u64::from_ne_bytes(*b))
            .ok_or_else(|| invalid("a memory table that ends early"))
    };
    // The count has 32 bits; the other 32 are padding that some front ends leave undefined.
    let count = word(0)? as u32 as usize;
    if count == 0 || count > MAX_REGIONS || count != fds.len() {
        return Err(invalid(format!(
            "a memory table of {count} regions with {} descriptors",
            fds.len()
        )));
    }
    let mut table = Vec::with_capacity(count);
    for (index, fd) in fds.into_iter().enumerate() {
        let at = 8 + 32 * index;
        let spec = RegionSpec {
            guest_address: word(at)?,
            size: word(at + 8)?,
            user_address: word(at + 16)?,
            mmap_offset: word(at + 24)?,
        };
        table.push((spec, File::from(fd)));
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn fds(n: usize) -> Vec<OwnedFd> {
        let null = File::open("/dev/null").unwrap();
        (0..n)
            .map(|_| null.as_fd().try_clone_to_owned().unwrap())
            .collect()
    }

    fn table(count: u64, words: usize) -> Vec<u8> {
        let mut payload = count.to_ne_bytes().to_vec();
        payload.extend((0..words as u64).flat_map(|w| (w + 1).to_ne_bytes()));
        payload
    }

    #[test]
    fn a_table_may_be_longer_than_its_regions_and_no_shorter() {
        let got = memory_table(&table(1, 8), fds(1)).unwrap();
        let spec = RegionSpec {
            guest_address: 1,
            size: 2,
            user_address: 3,
            mmap_offset: 4,
        };
        assert_eq!(got[0].0, spec);
        assert!(memory_table(&table(2, 8), fds(2)).is_ok());
        assert!(memory_table(&table(2, 7), fds(2)).is_err());
        assert!(memory_table(&table(1, 4), fds(2)).is_err());
        assert!(memory_table(&table(2, 8), fds(1)).is_err());
        assert!(memory_table(&table(0, 4), fds(0)).is_err());
        assert!(memory_table(&table(9, 36), fds(9)).is_err());
        assert!(memory_table(&[], fds(0)).is_err());
    }

    #[test]
    fn peeking_leaves_the_message_and_sees_the_end() {
        let (mut front, back) = UnixStream::pair().unwrap();
        let mut message = Vec::new();
        for word in [SET_VRING_ENABLE, VERSION | FLAG_NEED_REPLY, 8, 3, 1] {
            message.extend(word.to_ne_bytes());
        }
        front.write_all(&message).unwrap();
        for _ in 0..2 {
            let header = peek(&back).unwrap().unwrap();
            assert!(header.needs_reply() && header.request == SET_VRING_ENABLE);
        }
        let header = peek(&back).unwrap().unwrap();
        let (payload, fds) = receive(&back, header).unwrap();
        assert_eq!((vring_state(&payload).unwrap(), fds.len()), ((3, 1), 0));
        acknowledge(&back, header, true).unwrap();
        let mut reply = [0; 20];
        front.read_exact(&mut reply).unwrap();
        assert_eq!(reply[12..], [0; 8]);
        drop(front);
        assert_eq!(peek(&back).unwrap(), None);
    }
}
