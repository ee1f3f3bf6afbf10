//! A guest's link, as its device shows it: down while the operator has disabled the port. The port's thread, which talks
//! with the front end, learns of a change by a descriptor.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, eventfd};

/// The state of one guest port's link.
pub(crate) struct Link {
    is_down: AtomicBool,
    /// Readable after a change.
    changed: OwnedFd,
}

impl Link {
    pub(super) fn new(is_down: bool) -> io::Result<Link> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Link {
            is_down: is_down.into(),
            changed: eventfd(0, flags)?,
        })
    }

    pub(super) fn set(&self, is_down: bool) {
        if self.is_down.swap(is_down, Ordering::SeqCst) != is_down {
            let _ = rustix::io::write(&self.changed, &1u64.to_ne_bytes());
        }
    }

    /// Whether it is down.
    pub(crate) fn is_down(&self) -> bool {
        self.is_down.load(Ordering::SeqCst)
    }

    /// Becomes readable when the state changes.
    pub(crate) fn changed(&self) -> BorrowedFd<'_> {
        self.changed.as_fd()
    }

    /// Makes the descriptor unreadable until the next change. The state is to be read after this.
    pub(crate) fn note_seen(&self) {
        let _ = rustix::io::read(&self.changed, &mut [0; 8]);
    }
}
