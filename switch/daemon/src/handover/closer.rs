//! Closes what guests' front ends share, on threads of its own: the last close of a pipe or socket can block for as long as its
//! other end likes.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::Builder;
use std::time::Duration;

use crosspoint_handover::Message;
use crosspoint_memory::Kind;

/// The most closes that may be blocked at the same time. Descriptors beyond that stay open until this process ends.
const BLOCKED_MAX: usize = 256;
/// How long the closes in hand are waited for.
const IDLE_TIME_MAX: Duration = Duration::from_millis(100);
const THREAD_STACK: usize = 32 << 10;

/// Closes the descriptors of messages.
#[derive(Debug)]
pub struct Closer {
    to: Sender<Job>,
    blocked: Arc<AtomicUsize>,
}

#[derive(Debug)]
enum Job {
    Close(Message),
    /// Tells that all before it is done.
    Tell(Sender<()>),
}

impl Closer {
    /// Starts its thread.
    pub fn start() -> io::Result<Closer> {
        let (to, from) = channel();
        let blocked = Arc::new(AtomicUsize::new(0));
        let count = blocked.clone();
        let closing = move || {
            for job in from {
                match job {
                    Job::Close(message) => message.fds.into_iter().for_each(|fd| close(fd, &count)),
                    Job::Tell(done) => drop(done.send(())),
                }
            }
        };
        Builder::new().name("cp-close".to_owned()).spawn(closing)?;
        Ok(Closer { to, blocked })
    }

    /// Whether everything that was handed to it is closed.
    pub fn is_idle(&self) -> bool {
        let (done, is_done) = channel();
        let told = self.to.send(Job::Tell(done)).is_ok();
        told && is_done.recv_timeout(IDLE_TIME_MAX).is_ok()
            && self.blocked.load(Ordering::SeqCst) == 0
    }

    /// Closes a message's descriptors.
    pub fn close(&self, message: Message) {
        let _ = self.to.send(Job::Close(message));
    }

    /// The same, if there is a message.
    pub fn close_some(&self, message: Option<Message>) {
        if let Some(message) = message {
            self.close(message);
        }
    }
}

/// Closes a descriptor: on a thread of its own, unless that can never block.
fn close(fd: OwnedFd, blocked: &Arc<AtomicUsize>) {
    // Each close of a file can ask the server of its file system, and to find out which one that is can too.
    if Kind::of(&fd) == Kind::Eventfd {
        return drop(fd);
    }
    if blocked.fetch_add(1, Ordering::SeqCst) >= BLOCKED_MAX {
        blocked.fetch_sub(1, Ordering::SeqCst);
        std::mem::forget(fd);
        return;
    }
    let done = Arc::clone(blocked);
    let closing = move || {
        drop(fd);
        done.fetch_sub(1, Ordering::SeqCst);
    };
    let thread = Builder::new()
        .name("cp-close".to_owned())
        .stack_size(THREAD_STACK);
    if thread.spawn(closing).is_err() {
        blocked.fetch_sub(1, Ordering::SeqCst);
    }
}
