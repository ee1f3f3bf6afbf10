//! Closes what guests' front ends share, on threads of its own: the last close of a pipe or socket can block for as long as its
//! other end likes.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::Builder;
use std::time::{Duration, Instant};

use crosspoint_handover::Message;
use crosspoint_memory::Kind;

/// The most records whose closing may be blocked at the same time. Descriptors beyond that stay open until this process ends.
const BLOCKED_MAX: usize = 256;
/// How long a place among these is waited for: closing takes microseconds, unless it is blocked.
const PLACE_TIME_MAX: Duration = Duration::from_millis(100);
const PAUSE: Duration = Duration::from_micros(100);
/// Records that wait to be closed; a thread that hands over one more waits.
const WAITING_MAX: usize = 16;
/// How long the closes in hand are waited for.
const IDLE_TIME_MAX: Duration = Duration::from_millis(100);
const THREAD_STACK: usize = 32 << 10;

/// Closes the descriptors of messages.
#[derive(Debug)]
pub struct Closer {
    to: SyncSender<Job>,
    blocked: Arc<AtomicUsize>,
}

#[derive(Debug)]
enum Job {
    Close(Message),
    /// Tells that all before it is done.
    Tell(SyncSender<()>),
}

impl Closer {
    /// Starts its thread.
    pub fn start() -> io::Result<Closer> {
        let (to, from) = sync_channel(WAITING_MAX);
        let blocked = Arc::new(AtomicUsize::new(0));
        let count = blocked.clone();
        let closing = move || {
            for job in from {
                match job {
                    Job::Close(message) => close(message.fds, &count),
                    Job::Tell(done) => drop(done.send(())),
                }
            }
        };
        Builder::new().name("cp-close".to_owned()).spawn(closing)?;
        Ok(Closer { to, blocked })
    }

    /// Whether everything that was handed to it is closed.
    pub fn is_idle(&self) -> bool {
        let (done, is_done) = sync_channel(1);
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

/// Closes the descriptors of a record: those whose close can block on a thread of their own, so that one front end blocks only what
/// it gave.
fn close(mut fds: Vec<OwnedFd>, blocked: &Arc<AtomicUsize>) {
    // A close of a file can ask the server of its file system, and so can the question which file system that is.
    fds.retain(|fd| Kind::of(fd) != Kind::Eventfd);
    if fds.is_empty() {
        return;
    }
    let deadline = Instant::now() + PLACE_TIME_MAX;
    while blocked.load(Ordering::SeqCst) >= BLOCKED_MAX {
        if Instant::now() >= deadline {
            return std::mem::forget(fds);
        }
        std::thread::sleep(PAUSE);
    }
    blocked.fetch_add(1, Ordering::SeqCst);
    let done = Arc::clone(blocked);
    let closing = move || {
        drop(fds);
        done.fetch_sub(1, Ordering::SeqCst);
    };
    let thread = Builder::new()
        .name("cp-close".to_owned())
        .stack_size(THREAD_STACK);
    if thread.spawn(closing).is_err() {
        blocked.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsFd;

    use crosspoint_handover::Kind as MessageKind;
    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;

    fn open_count() -> usize {
        fs::read_dir("/proc/self/fd").expect("/proc").count()
    }

    /// As when all guests of a large host are replaced at once, each with many memory regions.
    #[test]
    fn every_descriptor_of_thousands_of_records_is_closed() {
        let closer = Closer::start().expect("a thread");
        let file = memfd_create("memory", MemfdFlags::CLOEXEC).expect("a file");
        let before = open_count();
        for _ in 0..2000 {
            let copy = || file.as_fd().try_clone_to_owned().expect("a descriptor");
            closer.close(Message {
                kind: MessageKind::Record,
                name: "session/web-1".to_owned(),
                body: Vec::new(),
                fds: (0..8).map(|_| copy()).collect(),
                is_critical: false,
            });
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        while !closer.is_idle() {
            assert!(Instant::now() < deadline, "it does not end");
        }
        assert_eq!(open_count(), before);
    }
}
