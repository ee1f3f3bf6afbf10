//! One end of the connection between a supervisor and a process of the switch.
//!
//! A message is one or more packets. Each has a header, and up to [`FDS_OF_PACKET`] descriptors; the first also has the name
//! and, if it is short, the body. A long body is a memory file, whose descriptor comes first.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
    sendmsg, socketpair,
};
use thiserror::Error;

use crate::message::{Kind, Message};
use crate::{VERSIONS, Versions};

const MAGIC: u32 = 0x4352_5350;
const HEADER_LEN: usize = 20;
/// A longer body goes into a memory file.
const INLINE_MAX: usize = 16 << 10;
/// The longest body: the addresses and connections of a large switch.
const BODY_MAX: usize = 256 << 20;
/// The longest name.
const NAME_MAX: usize = 512;
/// Descriptors in one packet; Linux allows 253 (SCM_MAX_FD).
const FDS_OF_PACKET: usize = 200;
/// Descriptors of one message: those of a guest with 509 memory regions and 512 rings, and room.
const FDS_MAX: usize = 4096;
/// How long the rest of a message may take, and the other side's reading of one.
const REST_TIME_MAX: Duration = Duration::from_secs(5);
/// Seals of a body's memory file.
const SEALS: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::WRITE);
/// The flag of a body in a memory file.
const IN_FILE: u16 = 1;
/// The flag of a critical record.
const CRITICAL: u16 = 2;

/// Why a message cannot be sent or received.
#[derive(Debug, Error)]
pub enum LinkError {
    /// The other side has another version.
    #[error("the other side writes version {found} of the hand-over, and this one reads {} to {}", reads.start(), reads.end())]
    Version {
        /// What it writes.
        found: u16,
        /// What this side reads.
        reads: Versions,
    },
    /// The message is malformed or too long.
    #[error("a message of the hand-over is malformed: {0}")]
    Malformed(&'static str),
    /// The kernel's error.
    #[error("the connection to the other process: {0}")]
    Io(#[from] io::Error),
}

impl From<rustix::io::Errno> for LinkError {
    fn from(errno: rustix::io::Errno) -> LinkError {
        LinkError::Io(errno.into())
    }
}

/// One end of the connection. Several threads may send.
#[derive(Debug)]
pub struct Link {
    socket: OwnedFd,
    /// Held while a message's packets are sent.
    sending: Mutex<()>,
    reads: Versions,
    /// The version in which it writes.
    writes: AtomicU16,
}

/// A packet's header.
struct Header {
    version: u16,
    kind: u16,
    flags: u16,
    name_len: usize,
    body_len: usize,
    /// Descriptors that are still to come, those of this packet included.
    fds_left: usize,
}

impl Header {
    fn bytes(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0..4].copy_from_slice(&MAGIC.to_ne_bytes());
        bytes[4..6].copy_from_slice(&self.version.to_ne_bytes());
        bytes[6..8].copy_from_slice(&self.kind.to_ne_bytes());
        bytes[8..10].copy_from_slice(&self.flags.to_ne_bytes());
        bytes[10..12].copy_from_slice(&(self.name_len as u16).to_ne_bytes());
        bytes[12..16].copy_from_slice(&(self.body_len as u32).to_ne_bytes());
        bytes[16..20].copy_from_slice(&(self.fds_left as u32).to_ne_bytes());
        bytes
    }

    fn parse(bytes: &[u8]) -> Result<Header, LinkError> {
        let short = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        let long = |at: usize| {
            u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        if bytes.len() < HEADER_LEN || long(0) != MAGIC {
            return Err(LinkError::Malformed("no header"));
        }
        let header = Header {
            version: short(4),
            kind: short(6),
            flags: short(8),
            name_len: usize::from(short(10)),
            body_len: long(12) as usize,
            fds_left: long(16) as usize,
        };
        let fits = header.name_len <= NAME_MAX
            && header.body_len <= BODY_MAX
            && header.fds_left <= FDS_MAX;
        fits.then_some(header)
            .ok_or(LinkError::Malformed("its lengths are out of bounds"))
    }
}

impl Link {
    /// Two connected ends: one for this process, and one for the standard input of another.
    pub fn pair() -> io::Result<(Link, OwnedFd)> {
        let (own, its) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok((Link::of(own), its))
    }

    /// The end whose descriptor is `socket`.
    pub fn of(socket: OwnedFd) -> Link {
        Link::with_versions(socket, VERSIONS)
    }

    /// Like [`of`](Self::of), of a program that reads these versions.
    pub fn with_versions(socket: OwnedFd, reads: Versions) -> Link {
        let writes = AtomicU16::new(*reads.start());
        Link {
            socket,
            sending: Mutex::new(()),
            reads,
            writes,
        }
    }

    /// Checks the version of what was received, and writes that of now on if it is higher than what this side writes.
    fn hear(&self, header: &Header) -> Result<(), LinkError> {
        let found = header.version;
        // The one message that every version understands.
        if header.kind == Kind::Refused as u16 {
            return Ok(());
        }
        if !self.reads.contains(&found) {
            return Err(LinkError::Version {
                found,
                reads: self.reads.clone(),
            });
        }
        self.writes.fetch_max(found, Ordering::Relaxed);
        Ok(())
    }

    /// Sends a message. Waits while the other side has no room, at most five seconds.
    pub fn send(
        &self,
        kind: Kind,
        name: &str,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), LinkError> {
        self.send_flagged(kind, (name, body), fds, 0)
    }

    /// Sends a record, as [`send`](Self::send) does; [`Message::is_critical`] tells what `is_critical` means.
    pub fn send_record(
        &self,
        name: &str,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
        is_critical: bool,
    ) -> Result<(), LinkError> {
        let flags = if is_critical { CRITICAL } else { 0 };
        self.send_flagged(Kind::Record, (name, body), fds, flags)
    }

    fn send_flagged(
        &self,
        kind: Kind,
        (name, body): (&str, &[u8]),
        fds: &[BorrowedFd<'_>],
        flags: u16,
    ) -> Result<(), LinkError> {
        if name.len() > NAME_MAX || body.len() > BODY_MAX || fds.len() >= FDS_MAX {
            return Err(LinkError::Malformed("it is too long to be sent"));
        }
        let file = match body.len() > INLINE_MAX {
            true => Some(file_of(body)?),
            false => None,
        };
        let all: Vec<BorrowedFd<'_>> = file
            .iter()
            .map(AsFd::as_fd)
            .chain(fds.iter().copied())
            .collect();
        let inline = if file.is_some() { &[][..] } else { body };
        let _sending = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        let mut left = all.as_slice();
        let mut is_first = true;
        while is_first || !left.is_empty() {
            let (now, later) = left.split_at(left.len().min(FDS_OF_PACKET));
            let header = Header {
                version: self.writes.load(Ordering::Relaxed),
                kind: kind as u16,
                flags: flags | if file.is_some() { IN_FILE } else { 0 },
                name_len: if is_first { name.len() } else { 0 },
                body_len: if is_first { body.len() } else { 0 },
                fds_left: left.len(),
            };
            let rest = if is_first {
                (name.as_bytes(), inline)
            } else {
                (&[][..], &[][..])
            };
            self.send_packet(&header, rest, now)?;
            (left, is_first) = (later, false);
        }
        Ok(())
    }

    fn send_packet(
        &self,
        header: &Header,
        (name, body): (&[u8], &[u8]),
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), LinkError> {
        let bytes = header.bytes();
        let slices = [IoSlice::new(&bytes), IoSlice::new(name), IoSlice::new(body)];
        let deadline = Instant::now() + REST_TIME_MAX;
        loop {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_OF_PACKET))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
                return Err(LinkError::Malformed("too many descriptors in a packet"));
            }
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match sendmsg(&self.socket, &slices, &mut ancillary, flags) {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) if Instant::now() < deadline => {
                    self.wait(PollFlags::OUT, Some(deadline))?;
                }
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Receives the next message. `None` when the other process has ended.
    pub fn receive(&self) -> Result<Option<Message>, LinkError> {
        self.receive_until(None)
    }

    /// Receives the next message; an error of kind `TimedOut` if none has come after `time`.
    pub fn receive_within(&self, time: Duration) -> Result<Option<Message>, LinkError> {
        self.receive_until(Some(Instant::now() + time))
    }

    fn receive_until(&self, deadline: Option<Instant>) -> Result<Option<Message>, LinkError> {
        let mut buffer = vec![0; HEADER_LEN + NAME_MAX + INLINE_MAX];
        let mut fds = Vec::new();
        let Some((header, len)) = self.receive_packet(&mut buffer, &mut fds, deadline)? else {
            return Ok(None);
        };
        let is_in_file = header.flags & IN_FILE != 0;
        let body_at = HEADER_LEN + header.name_len;
        let inline_len = if is_in_file { 0 } else { header.body_len };
        if body_at + inline_len != len {
            return Err(LinkError::Malformed(
                "its length is not what its header says",
            ));
        }
        let name = String::from_utf8_lossy(&buffer[HEADER_LEN..body_at]).into_owned();
        let mut body = buffer[body_at..len].to_vec();
        let deadline = Some(Instant::now() + REST_TIME_MAX);
        while fds.len() < header.fds_left {
            let before = fds.len();
            let next = self.receive_packet(&mut buffer, &mut fds, deadline)?;
            if next.is_none() || fds.len() == before {
                return Err(LinkError::Malformed("it ends early"));
            }
        }
        if is_in_file {
            if fds.is_empty() {
                return Err(LinkError::Malformed("its body is missing"));
            }
            body = read_file(fds.remove(0), header.body_len)?;
        }
        Ok(Some(Message {
            kind: Kind::of(header.kind),
            name,
            body,
            fds,
            is_critical: header.flags & CRITICAL != 0,
        }))
    }

    fn receive_packet(
        &self,
        buffer: &mut [u8],
        fds: &mut Vec<OwnedFd>,
        deadline: Option<Instant>,
    ) -> Result<Option<(Header, usize)>, LinkError> {
        loop {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_OF_PACKET))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let slices = &mut [IoSliceMut::new(buffer)];
            let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
            let got = match recvmsg(&self.socket, slices, &mut ancillary, flags) {
                Ok(got) => got,
                Err(rustix::io::Errno::INTR) => continue,
                Err(rustix::io::Errno::AGAIN) => {
                    self.wait(PollFlags::IN, deadline)?;
                    continue;
                }
                // The other process has ended without reading all. The kernel says so once, and then gives what that process has
                // sent, and the end.
                Err(rustix::io::Errno::CONNRESET) => continue,
                Err(errno) => return Err(errno.into()),
            };
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = message {
                    fds.extend(rights);
                }
            }
            if got.bytes == 0 {
                return Ok(None);
            }
            if got
                .flags
                .intersects(ReturnFlags::CTRUNC | ReturnFlags::TRUNC)
            {
                return Err(LinkError::Malformed(
                    "not all of its descriptors arrived: raise the limit of open files (LimitNOFILE)",
                ));
            }
            let header = Header::parse(&buffer[..got.bytes])?;
            self.hear(&header)?;
            return Ok(Some((header, got.bytes)));
        }
    }

    fn wait(&self, what: PollFlags, deadline: Option<Instant>) -> Result<(), LinkError> {
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Err(io::Error::from(io::ErrorKind::TimedOut).into());
        }
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        let mut polled = [PollFd::new(&self.socket, what)];
        match poll(&mut polled, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn file_of(body: &[u8]) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = File::from(memfd_create("crosspoint-record", flags)?);
    file.write_all(body)?;
    fcntl_add_seals(&file, SEALS)?;
    Ok(file)
}

fn read_file(fd: OwnedFd, len: usize) -> io::Result<Vec<u8>> {
    // Only a memory file has seals, and with them a read can neither block nor end early.
    let seals = fcntl_get_seals(&fd)?;
    if !seals.contains(SEALS) {
        return Err(io::Error::other("a body is in a file that is not sealed"));
    }
    let mut file = File::from(fd);
    file.rewind()?;
    let mut body = vec![0; len];
    file.read_exact(&mut body)?;
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends() -> (Link, Link) {
        let (own, its) = Link::pair().unwrap();
        (own, Link::of(its))
    }

    /// Bodies of every length around the limits, and more descriptors than one packet holds, arrive identical and in order.
    #[test]
    fn a_message_arrives_whole_whatever_its_length_and_its_descriptors() {
        let (a, b) = ends();
        let files: Vec<File> = (0..3 * FDS_OF_PACKET as u64 + 7)
            .map(|n| file_of(&n.to_ne_bytes()).unwrap())
            .collect();
        for body_len in [0, 1, INLINE_MAX, INLINE_MAX + 1, 1 << 20] {
            for count in [0, 1, FDS_OF_PACKET, FDS_OF_PACKET + 1, files.len()] {
                let body: Vec<u8> = (0..body_len).map(|n| n as u8).collect();
                let fds: Vec<_> = files[..count].iter().map(AsFd::as_fd).collect();
                a.send(Kind::Record, "session/web-1", &body, &fds).unwrap();
                let got = b.receive().unwrap().unwrap();
                assert_eq!(
                    (got.kind, got.name.as_str()),
                    (Kind::Record, "session/web-1")
                );
                assert!(got.body == body && got.fds.len() == count);
                for (n, fd) in (0u64..).zip(got.fds) {
                    assert_eq!(read_file(fd, 8).unwrap(), n.to_ne_bytes());
                }
            }
        }
    }

    /// A process that ends with unread messages of ours: what it has sent arrives all the same.
    #[test]
    fn what_a_process_has_sent_arrives_though_it_ends_without_reading() {
        let (a, b) = ends();
        for body in [b"1", b"2"] {
            a.send(Kind::Record, "counters", body, &[]).unwrap();
        }
        b.send(Kind::Confirmed, "", b"", &[]).unwrap();
        drop(a);
        let bodies = [b.receive(), b.receive()].map(|message| message.unwrap().unwrap().body);
        assert_eq!(bodies, [b"1", b"2"]);
        assert!(b.receive().unwrap().is_none());
        // The order of the end and of what it has not read does not matter.
        let (a, b) = ends();
        a.send(Kind::Record, "counters", b"1", &[]).unwrap();
        b.send(Kind::Confirmed, "", b"", &[]).unwrap();
        let reader = std::thread::spawn(move || {
            let received = std::iter::from_fn(|| b.receive().unwrap());
            received.count()
        });
        std::thread::sleep(Duration::from_millis(20));
        drop(a);
        assert_eq!(reader.join().unwrap(), 1);
    }

    #[test]
    fn the_end_of_the_other_process_is_no_error_and_silence_has_a_limit() {
        let (a, b) = ends();
        let silent = b.receive_within(Duration::from_millis(5)).unwrap_err();
        assert!(matches!(silent, LinkError::Io(why) if why.kind() == io::ErrorKind::TimedOut));
        a.send(Kind::Ready, "", b"", &[]).unwrap();
        drop(a);
        assert_eq!(b.receive().unwrap().unwrap().kind, Kind::Ready);
        assert!(b.receive().unwrap().is_none());
    }

    #[test]
    fn another_version_and_nonsense_are_told_apart() {
        let (a, b) = ends();
        let mut bytes = Header {
            version: *VERSIONS.start(),
            kind: Kind::Ready as u16,
            flags: 0,
            name_len: 0,
            body_len: 0,
            fds_left: 0,
        }
        .bytes();
        let send = |bytes: &[u8]| {
            rustix::net::send(&a.socket, bytes, SendFlags::empty()).unwrap();
            b.receive().unwrap_err()
        };
        assert!(matches!(send(&bytes[..7]), LinkError::Malformed(_)));
        bytes[4..6].copy_from_slice(&(VERSIONS.end() + 1).to_ne_bytes());
        assert!(matches!(send(&bytes), LinkError::Version { .. }));
        bytes[0] ^= 1;
        assert!(matches!(send(&bytes), LinkError::Malformed(_)));
    }

    #[test]
    fn a_side_that_reads_an_older_version_writes_it_and_one_that_does_not_refuses_in_words() {
        let sides = |a: Versions, b: Versions| {
            let (own, its) = Link::pair().unwrap();
            let own = Link::with_versions(own.socket, a);
            (own, Link::with_versions(its, b))
        };
        let writes = |link: &Link| link.writes.load(Ordering::Relaxed);
        for (a, b) in [(1..=1, 1..=3), (1..=3, 1..=1), (2..=2, 1..=3)] {
            let agreed = *a.start();
            let (a, b) = sides(a, b);
            a.send(Kind::Ready, "", b"", &[]).unwrap();
            b.receive().unwrap();
            b.send(Kind::Ready, "", b"", &[]).unwrap();
            a.receive().unwrap();
            assert_eq!((writes(&a), writes(&b)), (agreed, agreed));
        }
        let (a, b) = sides(1..=1, 2..=2);
        a.send(Kind::Begin, "", b"", &[]).unwrap();
        let why = b.receive().unwrap_err().to_string();
        assert_eq!(
            why,
            "the other side writes version 1 of the hand-over, and this one reads 2 to 2"
        );
        b.send(Kind::Refused, "", why.as_bytes(), &[]).unwrap();
        assert_eq!(a.receive().unwrap().unwrap().text(), why);
    }
}
