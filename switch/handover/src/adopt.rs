//! A supervisor that dies, and the next one: the switch goes on meanwhile, and waits at a socket of its own for the next
//! supervisor to connect.
//!
//! The socket's file outlives both. A first supervisor makes it and hands it to each process of the switch. The process that has
//! the guests calls listen(2) on it once more: that makes the kernel name this process to those that connect (SO_PEERCRED).

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen,
    socket_with,
};
use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use crate::{Kind, Link, LinkError};

/// Only the switch's user, and root, may be its supervisor.
const MODE: u32 = 0o600;
/// Supervisors that may wait at the same time; there is one.
const WAITING_MAX: i32 = 4;

/// The body of [`Kind::Adopted`], as JSON.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Adopted {
    /// Upgrades since the first supervisor started.
    pub upgrades: u64,
    /// Ends of a process that were not in order, since then.
    pub crashes: u64,
}

/// The socket at which a process of the switch waits for its next supervisor.
#[derive(Debug)]
pub struct Meeting(OwnedFd);

fn seqpacket() -> Result<OwnedFd, Errno> {
    let (flags, kind) = (SocketFlags::CLOEXEC, SocketType::SEQPACKET);
    socket_with(AddressFamily::UNIX, kind, flags, None)
}

impl Meeting {
    /// Makes the socket and its file, in place of one that nothing listens at.
    pub fn bind(path: &Path) -> io::Result<Meeting> {
        match fs::remove_file(path) {
            Err(why) if why.kind() != io::ErrorKind::NotFound => return Err(why),
            _ => {}
        }
        let socket = seqpacket()?;
        bind(&socket, &SocketAddrUnix::new(path)?)?;
        fs::set_permissions(path, fs::Permissions::from_mode(MODE))?;
        listen(&socket, WAITING_MAX)?;
        Ok(Meeting(socket))
    }

    /// The socket that another process has made.
    pub fn of(socket: OwnedFd) -> Meeting {
        Meeting(socket)
    }

    /// Another descriptor of the same socket.
    pub fn try_clone(&self) -> io::Result<Meeting> {
        self.0.try_clone().map(Meeting)
    }

    /// Makes this process the one that a supervisor finds here.
    pub fn own(&self) -> io::Result<()> {
        Ok(listen(&self.0, WAITING_MAX)?)
    }

    /// Waits for a supervisor, at most for `time`.
    pub fn accept_within(&self, time: Duration) -> io::Result<Option<Link>> {
        let deadline = Instant::now() + time;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut polled = [PollFd::new(&self.0, PollFlags::IN)];
            match poll(&mut polled, Timespec::try_from(left).ok().as_ref()) {
                Ok(0) => return Ok(None),
                Ok(_) => {
                    let socket = accept_with(&self.0, SocketFlags::CLOEXEC)?;
                    return Ok(Some(Link::of(socket)));
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl AsFd for Meeting {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A process of the switch that has lost its supervisor.
#[derive(Debug)]
pub struct Orphan {
    /// The process.
    pub pid: Pid,
    /// The connection to it.
    pub link: Link,
    /// What it has said of itself and its socket; `None` if it says nothing.
    pub adopted: Option<(Adopted, Meeting)>,
}

/// Connects to the process that waits at `path`, at most for `time`. `None` if none does.
///
/// # Errors
///
/// The socket cannot be used, or the process speaks another version.
pub fn adopt(path: &Path, time: Duration) -> Result<Option<Orphan>, LinkError> {
    let deadline = Instant::now() + time;
    let socket = seqpacket()?;
    match connect(&socket, &SocketAddrUnix::new(path)?) {
        Ok(()) => {}
        Err(Errno::NOENT | Errno::CONNREFUSED) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    }
    let pid = rustix::net::sockopt::socket_peercred(&socket)?.pid;
    let link = Link::of(socket);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let message = match link.receive_within(left) {
            Ok(Some(message)) => message,
            // It has ended since.
            Ok(None) => return Ok(None),
            Err(LinkError::Io(why)) if why.kind() == io::ErrorKind::TimedOut => {
                let adopted = None;
                return Ok(Some(Orphan { pid, link, adopted }));
            }
            Err(why) => return Err(why),
        };
        if message.kind != Kind::Adopted {
            continue;
        }
        let body = serde_json::from_slice(&message.body).map_err(io::Error::from)?;
        let meeting = message.fds.into_iter().next().map(Meeting::of);
        let meeting = meeting.ok_or(LinkError::Malformed("it has no socket"))?;
        let adopted = Some((body, meeting));
        return Ok(Some(Orphan { pid, link, adopted }));
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
        let meeting = Meeting::bind(&path).unwrap();
        drop(meeting);
        assert!(adopt(&path, TIME).unwrap().is_none(), "no process");
        let meeting = Meeting::bind(&path).unwrap();
        meeting.own().unwrap();
        let silent = adopt(&path, Duration::from_millis(10)).unwrap().unwrap();
        assert!(silent.adopted.is_none(), "it does not answer");
        drop(silent);
        let body = Adopted {
            upgrades: 3,
            crashes: 1,
        };
        let process = std::thread::spawn(move || {
            // The one that went away, and the one that stays.
            for _ in 0..2 {
                let link = meeting.accept_within(TIME).unwrap().unwrap();
                let body = serde_json::to_vec(&body).unwrap();
                let _ = link.send(Kind::Adopted, "", &body, &[meeting.as_fd()]);
            }
        });
        let found = adopt(&path, TIME).unwrap().unwrap();
        assert_eq!(found.pid, rustix::process::getpid());
        assert_eq!(found.adopted.unwrap().0, body);
        process.join().unwrap();
        fs::remove_dir_all(&folder).unwrap();
    }
}
