//! A supervisor that dies, and the next one: the switch goes on meanwhile, and waits at a socket of its own for the next
//! supervisor to connect.
//!
//! The socket's file outlives both. A first supervisor makes it and hands it to each process of the switch. The process that has
//! the guests calls listen(2) on it once more: that makes the kernel name this process to those that connect (SO_PEERCRED).

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect,
    getsockname, listen, socket_with,
};
use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use crate::{Kind, Link, LinkError, Store};

/// Only the switch's user, and root, may be its supervisor.
const MODE: u32 = 0o600;
/// Pause between two attempts.
const PAUSE: Duration = Duration::from_millis(10);
/// Supervisors that may wait at the same time; there is one.
const WAITING_MAX: i32 = 4;

/// The body of [`Kind::Adopted`], as JSON.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Adopted {
    /// Upgrades since the first supervisor started.
    pub upgrades: u64,
    /// Ends of a process that were not in order, since then.
    pub crashes: u64,
    /// The process's number, as it knows it. Only the kernel's word counts; if it differs, the kernel has not heard of this process
    /// yet.
    pub pid: i32,
}

/// The socket at which a process of the switch waits for its next supervisor.
#[derive(Debug)]
pub struct AdoptionSocket(OwnedFd);

fn seqpacket() -> Result<OwnedFd, Errno> {
    let (flags, kind) = (SocketFlags::CLOEXEC, SocketType::SEQPACKET);
    socket_with(AddressFamily::UNIX, kind, flags, None)
}

impl AdoptionSocket {
    /// Makes the socket and its file, in place of one that nothing listens at.
    pub fn bind(path: &Path) -> io::Result<AdoptionSocket> {
        match fs::remove_file(path) {
            Err(why) if why.kind() != io::ErrorKind::NotFound => return Err(why),
            _ => {}
        }
        let socket = seqpacket()?;
        bind(&socket, &SocketAddrUnix::new(path)?)?;
        fs::set_permissions(path, fs::Permissions::from_mode(MODE))?;
        listen(&socket, WAITING_MAX)?;
        Ok(AdoptionSocket(socket))
    }

    /// The socket that another process has made.
    pub fn of(socket: OwnedFd) -> AdoptionSocket {
        AdoptionSocket(socket)
    }

    /// Another descriptor of the same socket.
    pub fn try_clone(&self) -> io::Result<AdoptionSocket> {
        self.0.try_clone().map(AdoptionSocket)
    }

    /// Makes this process the one that a supervisor finds here.
    pub fn own(&self) -> io::Result<()> {
        Ok(listen(&self.0, WAITING_MAX)?)
    }

    /// The path of the socket's file.
    pub fn path(&self) -> io::Result<PathBuf> {
        let address = SocketAddrUnix::try_from(getsockname(&self.0)?)?;
        let path = address.path_bytes().map(OsStr::from_bytes);
        path.map(PathBuf::from)
            .ok_or_else(|| io::Error::other("the socket has no file"))
    }

    /// Waits for a supervisor, at most for `time`.
    pub fn accept_within(&self, time: Duration) -> io::Result<Option<Link>> {
        let deadline = Instant::now() + time;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut polled = [PollFd::new(&self.0, PollFlags::IN)];
            match poll(&mut polled, Timespec::try_from(left).ok().as_ref()) {
                Ok(0) => return Ok(None),
                Ok(_) => match accept_with(&self.0, SocketFlags::CLOEXEC) {
                    Ok(socket) => return Ok(Some(Link::of(socket))),
                    // For want of a descriptor or of memory, for instance: guests must not pay for that.
                    Err(_) if Instant::now() < deadline => std::thread::sleep(PAUSE),
                    Err(errno) => return Err(errno.into()),
                },
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl AsFd for AdoptionSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A process of the switch that has lost its supervisor.
#[derive(Debug)]
pub struct Orphan {
    /// The process.
    pub pid: Pid,
    /// What it has given, or why it cannot be gone on with.
    pub given: Result<Adoption, LinkError>,
}

/// What such a process gives to its next supervisor.
#[derive(Debug)]
pub struct Adoption {
    /// The connection to it.
    pub link: Link,
    /// What it says of itself.
    pub adopted: Adopted,
    /// Its socket.
    pub adoption_socket: AdoptionSocket,
    /// Its records.
    pub store: Store,
}

/// Connects to the process that waits at `path`, and takes its records, at most for `time`. `None` if none waits there.
///
/// # Errors
///
/// The socket cannot be used, or belongs to another user.
pub fn adopt(path: &Path, time: Duration) -> io::Result<Option<Orphan>> {
    let deadline = Instant::now() + time;
    loop {
        let Some(socket) = connected(path, deadline)? else {
            return Ok(None);
        };
        let peer = rustix::net::sockopt::socket_peercred(&socket)?;
        if peer.uid != rustix::process::geteuid() {
            return Err(io::Error::other("another user's process listens there"));
        }
        let given = receive(Link::of(socket), path, deadline);
        let is_it = |given: &Adoption| given.adopted.pid == peer.pid.as_raw_nonzero().get();
        match &given {
            Ok(given) if is_it(given) => {}
            // It has not called listen(2) when this connected, or has lost the connection: once more.
            Ok(_) | Err(LinkError::Io(_)) if Instant::now() < deadline => {
                std::thread::sleep(PAUSE);
                continue;
            }
            _ => {}
        }
        return Ok(Some(Orphan {
            pid: peer.pid,
            given,
        }));
    }
}

/// A connection to the socket at `path`; `None` if nothing listens there.
fn connected(path: &Path, deadline: Instant) -> io::Result<Option<OwnedFd>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    loop {
        match connect(&socket, &SocketAddrUnix::new(path)?) {
            Ok(()) => return Ok(Some(socket)),
            Err(Errno::NOENT | Errno::CONNREFUSED) => return Ok(None),
            // Others wait already.
            Err(Errno::AGAIN | Errno::INTR) if Instant::now() < deadline => {
                std::thread::sleep(PAUSE);
            }
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Receives all that a process gives, up to its READY.
fn receive(link: Link, path: &Path, deadline: Instant) -> Result<Adoption, LinkError> {
    let (mut store, mut said) = (Store::default(), None);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::from(io::ErrorKind::TimedOut).into());
        }
        let message = link.receive_within(left)?;
        let message = message.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        match message.kind {
            Kind::Adopted => {
                let adopted = serde_json::from_slice(&message.body)
                    .map_err(|_| LinkError::Malformed("what it says of itself"))?;
                let adoption_socket = message.fds.into_iter().next().map(AdoptionSocket::of);
                let is_there = |adoption_socket: &AdoptionSocket| {
                    adoption_socket.path().is_ok_and(|its| its == path)
                };
                let adoption_socket = adoption_socket.filter(is_there);
                let adoption_socket =
                    adoption_socket.ok_or(LinkError::Malformed("it has another socket"))?;
                said = Some((adopted, adoption_socket));
            }
            Kind::Ready => {
                let (adopted, adoption_socket) =
                    said.ok_or(LinkError::Malformed("it does not say what it is"))?;
                return Ok(Adoption {
                    link,
                    adopted,
                    adoption_socket,
                    store,
                });
            }
            // Records are those of the switch's own parts. None is replaced, so nothing is closed here.
            _ => drop(store.take(message)),
        }
    }
}

/// The right to the guests' rings in one attempt at an upgrade: either the new process takes it, when it is told to go, or the
/// old one, when the supervisor dies in that moment. An eventfd of value 1, which is read once.
#[derive(Debug)]
pub struct Claim(OwnedFd);

impl Claim {
    /// One that no process has taken.
    pub fn new() -> io::Result<Claim> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Claim(eventfd(1, flags)?))
    }

    /// The claim that another process has made.
    pub fn of(eventfd: OwnedFd) -> Claim {
        Claim(eventfd)
    }

    /// Takes the claim. Returns `false` if another process was first.
    pub fn take(&self) -> bool {
        rustix::io::read(&self.0, &mut [0; 8]) == Ok(8)
    }
}

impl AsFd for Claim {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: Duration = Duration::from_secs(5);

    #[test]
    fn a_claim_is_taken_once() {
        let claim = Claim::new().unwrap();
        let other = Claim::of(claim.as_fd().try_clone_to_owned().unwrap());
        assert!(other.take());
        assert!(!claim.take() && !other.take());
    }

    #[test]
    fn a_supervisor_finds_the_process_that_listened_last_and_nothing_where_none_does() {
        let folder = std::env::temp_dir().join(format!("cp-adopt-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("switch.sock");
        assert!(adopt(&path, TIME).unwrap().is_none(), "no file");
        let adoption_socket = AdoptionSocket::bind(&path).unwrap();
        drop(adoption_socket);
        assert!(adopt(&path, TIME).unwrap().is_none(), "no process");
        let adoption_socket = AdoptionSocket::bind(&path).unwrap();
        adoption_socket.own().unwrap();
        let silent = adopt(&path, Duration::from_millis(50)).unwrap().unwrap();
        assert!(silent.given.is_err(), "it does not answer");
        let own = rustix::process::getpid();
        let body = |pid: i32| Adopted {
            upgrades: 3,
            crashes: 1,
            pid,
        };
        let process = std::thread::spawn(move || {
            // The one that went away, one that is told another number, one that loses it, and the one that stays.
            for round in 0.. {
                let Some(link) = adoption_socket.accept_within(TIME).unwrap() else {
                    return;
                };
                let body = body(own.as_raw_nonzero().get() + i32::from(round == 1));
                let body = serde_json::to_vec(&body).unwrap();
                let _ = link.send(Kind::Adopted, "", &body, &[adoption_socket.as_fd()]);
                let _ = link.send(Kind::Record, "session/web-1", b"{}", &[]);
                if round != 2 {
                    let _ = link.send(Kind::Ready, "", b"", &[]);
                }
                if round == 3 {
                    return;
                }
            }
        });
        let found = adopt(&path, TIME).unwrap().unwrap();
        let given = found.given.unwrap();
        assert_eq!(
            (found.pid, given.adopted),
            (own, body(own.as_raw_nonzero().get()))
        );
        assert!(given.store.names().eq(["session/web-1"]));
        process.join().unwrap();
        fs::remove_dir_all(&folder).unwrap();
    }
}
