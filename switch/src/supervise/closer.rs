//! Closes what guests' front ends share, off the main thread: the last close of a pipe or socket can block for as long as its
//! other end likes.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::Builder;

use crosspoint_handover::Message;
use crosspoint_memory::Kind;

/// The most closes that may be blocked at the same time. Descriptors beyond that stay open until the supervisor ends.
const BLOCKED_MAX: usize = 256;
const THREAD_STACK: usize = 32 << 10;

pub(super) struct Closer(Sender<Message>);

impl Closer {
    pub(super) fn start() -> io::Result<Closer> {
        let (to, from) = channel::<Message>();
        let blocked = Arc::new(AtomicUsize::new(0));
        let closing = move || {
            let fds = from.into_iter().flat_map(|message| message.fds);
            fds.for_each(|fd| close(fd, &blocked));
        };
        Builder::new().name("cp-close".to_owned()).spawn(closing)?;
        Ok(Closer(to))
    }

    /// Closes a message's descriptors.
    pub(super) fn close(&self, message: Message) {
        let _ = self.0.send(message);
    }

    pub(super) fn close_some(&self, message: Option<Message>) {
        if let Some(message) = message {
            self.close(message);
        }
    }
}

/// Closes a descriptor: one whose close can block, on a thread of its own.
fn close(fd: OwnedFd, blocked: &Arc<AtomicUsize>) {
    // Files of guests' memory are of kinds that no server can hold up; the switch has checked that.
    if matches!(Kind::of(&fd), Kind::Eventfd | Kind::Path) {
        return drop(fd);
    }
    if blocked.fetch_add(1, Ordering::Relaxed) >= BLOCKED_MAX {
        blocked.fetch_sub(1, Ordering::Relaxed);
        std::mem::forget(fd);
        return;
    }
    let done = Arc::clone(blocked);
    let closing = move || {
        drop(fd);
        done.fetch_sub(1, Ordering::Relaxed);
    };
    let thread = Builder::new()
        .name("cp-close".to_owned())
        .stack_size(THREAD_STACK);
    if thread.spawn(closing).is_err() {
        blocked.fetch_sub(1, Ordering::Relaxed);
    }
}
