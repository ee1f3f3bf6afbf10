//! Kinds of descriptors that a front end passes, as the kernel reports them.
//!
//! The front end keeps a copy of each descriptor, and what it does with the copy decides how long a system call on ours
//! takes. What each kind can make a caller wait for (Linux 6.18):
//!
//! - An eventfd has a spinlock and no other lock. A write wakes its waiters, in the caller's time. It sleeps
//!   (interruptibly) only when the counter is full and the front end has cleared O_NONBLOCK.
//! - A pipe has a mutex. A reader holds it while it copies to its own memory, so a page of that memory that never
//!   arrives (FUSE, userfaultfd) keeps a writer in uninterruptible sleep. Closing the last copy takes the same mutex.
//! - A socket has a lock with the same problem, and one write may go to many receivers.
//! - An epoll descriptor that is added to another one takes its own mutex.
//! - A FUSE file asks its server: for its size, for its pages, and at each close.
//!
//! So workers write to, and wait for, true eventfds only. The kind is checked first, by the name of the link in
//! /proc/self/fd, which involves none of these locks or servers. The name of an anonymous object comes from the kernel
//! alone. A path begins with "/", or with "(unreachable)", whatever the file's name is.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd};

/// Kind of a descriptor, as far as the switch needs it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// An eventfd.
    Eventfd,
    /// A pipe without a name.
    Pipe,
    /// A socket of any family.
    Socket,
    /// Something with a path: a file, a memory file, a directory, a device, a named pipe.
    Path,
    /// Anything else: epoll, timerfd, io_uring, a process, a namespace; or /proc cannot be read.
    Other,
}

impl Kind {
    /// Returns the kind of `fd`. Makes no system call on the object that it refers to.
    pub fn of(fd: impl AsFd) -> Kind {
        let link = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
        let name = rustix::fs::readlink(link, Vec::new());
        name.map_or(Kind::Other, |name| Kind::named(name.as_bytes()))
    }

    fn named(name: &[u8]) -> Kind {
        match name {
            b"anon_inode:[eventfd]" => Kind::Eventfd,
            [b'/', ..] => Kind::Path,
            [b'p', b'i', b'p', b'e', b':', b'[', ..] => Kind::Pipe,
            [b's', b'o', b'c', b'k', b'e', b't', b':', b'[', ..] => Kind::Socket,
            _ => Kind::Other,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Eventfd => "an eventfd",
            Kind::Pipe => "a pipe",
            Kind::Socket => "a socket",
            Kind::Path => "a file, a directory or a device",
            Kind::Other => "neither an eventfd, a pipe, a socket nor a file",
        })
    }
}

#[cfg(all(test, not(miri)))]
mod tests {
    use std::os::fd::OwnedFd;

    use super::*;
    use rustix::event::{EventfdFlags, epoll, eventfd};
    use rustix::fs::{Mode, OFlags, memfd_create};

    fn open(path: impl rustix::path::Arg) -> OwnedFd {
        let flags = OFlags::RDONLY | OFlags::CREATE;
        rustix::fs::open(path, flags, Mode::RWXU).unwrap()
    }

    #[test]
    fn an_eventfd_is_told_from_everything_else_by_what_the_kernel_says() {
        let of = |flags| Kind::of(eventfd(0, flags).unwrap());
        assert_eq!(of(EventfdFlags::empty()), Kind::Eventfd);
        assert_eq!(of(EventfdFlags::SEMAPHORE), Kind::Eventfd);
        let (read, write) = rustix::pipe::pipe().unwrap();
        assert_eq!((Kind::of(read), Kind::of(write)), (Kind::Pipe, Kind::Pipe));
        let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(Kind::of(socket), Kind::Socket);
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        assert_eq!(Kind::of(poll), Kind::Other);
        for path in ["/dev/zero", "/tmp", "/proc/self/fd"] {
            let fd = rustix::fs::open(path, OFlags::RDONLY, Mode::empty());
            assert_eq!(Kind::of(fd.unwrap()), Kind::Path, "{path}");
        }
    }

    /// A process that may create files chooses their names: here a memory file, a file in a folder, a removed file, and
    /// a named pipe.
    #[test]
    fn a_file_that_is_called_like_an_eventfd_is_none() {
        let name = "anon_inode:[eventfd]";
        let memory = memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        assert_eq!(Kind::of(memory), Kind::Path);
        let folder = std::env::temp_dir().join(format!("crosspoint-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join(name);
        let file = open(path.as_path());
        assert_eq!(Kind::of(&file), Kind::Path);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(Kind::of(&file), Kind::Path);
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(Kind::of(&file), Kind::Path);
        // Paths outside the root folder, or without their mount.
        for name in [
            "(unreachable)/anon_inode:[eventfd]",
            "anon_inode:[eventfd] (deleted)",
        ] {
            assert_eq!(Kind::named(name.as_bytes()), Kind::Other);
        }
    }
}
