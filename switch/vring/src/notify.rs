//! Waking the other side: eventfds written by us (calls).

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};

/// Where a queue's calls go: an eventfd that the front end may exchange at any time.
#[derive(Debug)]
pub struct Notifier {
    fd: AtomicI32,
}

const NONE: RawFd = -1;

impl Default for Notifier {
    fn default() -> Notifier {
        Notifier::new(None)
    }
}

impl Notifier {
    /// A notifier that writes to `fd`, or to nothing.
    pub fn new(fd: Option<OwnedFd>) -> Notifier {
        Notifier {
            fd: AtomicI32::new(fd.map_or(NONE, prepare)),
        }
    }

    /// Exchanges the descriptor. Workers may be using the one that is returned until each has
    /// passed a quiescent point: keep it open until then.
    #[must_use = "workers may be using the old descriptor: drop it after they have passed a quiescent point"]
    pub fn swap(&self, fd: Option<OwnedFd>) -> Option<OwnedFd> {
        let new = fd.map_or(NONE, prepare);
        let old = self.fd.swap(new, Ordering::AcqRel);
        // SAFETY: `old` came from `into_raw_fd`, and the swap took it out: we own it alone.
        (old != NONE).then(|| unsafe { OwnedFd::from_raw_fd(old) })
    }

    /// Adds one to the eventfd. Returns whether there is one; an error of the write is the front
    /// end's own loss (it closed or filled its descriptor).
    pub fn call(&self) -> bool {
        let fd = self.fd.load(Ordering::Acquire);
        if fd == NONE {
            return false;
        }
        // SAFETY: the descriptor stays open until after this worker's next quiescent point: the
        // caller of `swap` upholds it, and `drop` runs only when no worker holds the queue.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        rustix::io::write(fd, &1u64.to_ne_bytes()).is_ok()
    }
}

/// Makes a descriptor fit for a worker to write to: a full eventfd, or a pipe, must not block
/// it. What cannot be made so is not used; nor are files and devices, which are nobody's to
/// write to but their owner's. User-Mode Linux gives pipes.
fn prepare(fd: OwnedFd) -> RawFd {
    use rustix::fs::FileType;
    let kind = rustix::fs::fstat(&fd).map(|stat| FileType::from_raw_mode(stat.st_mode));
    // An eventfd has no type at all.
    if !matches!(
        kind,
        Ok(FileType::Fifo | FileType::Socket | FileType::Unknown)
    ) {
        return NONE;
    }
    let nonblocking = rustix::fs::fcntl_getfl(&fd)
        .and_then(|flags| rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK));
    match nonblocking {
        Ok(()) => fd.into_raw_fd(),
        Err(_) => NONE,
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        drop(self.swap(None));
    }
}

impl AsRawFd for Notifier {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.load(Ordering::Relaxed)
    }
}
