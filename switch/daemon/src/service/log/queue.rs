//! The queue of log lines, and the thread that writes them.
//!
//! The log's reader may stop: a full pipe, a hanging journal. Then up to [`LINES_MAX`] lines and [`BYTES_MAX`] are
//! kept, and further lines are lost and counted; but no thread that logs ever waits. The loss is logged as soon as the
//! log is read again.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use tracing_subscriber::fmt::MakeWriter;

use super::TARGET;
use super::entry::Entry;

/// The most lines that are kept until they are written: several times what a start with a thousand ports logs.
const LINES_MAX: usize = 8192;
/// The most bytes of those lines.
const BYTES_MAX: usize = 4 << 20;
/// How long the end of the process, or a message outside the log, waits for earlier lines to be written.
const END_TIME_MAX: Duration = Duration::from_secs(1);

/// Lines lost since the process started.
static LOST: AtomicU64 = AtomicU64::new(0);
/// The log's queue, once the log has started.
static QUEUE: Mutex<Option<Arc<Queue>>> = Mutex::new(None);

/// Number of log lines that were lost because the reader did not keep up.
pub(crate) fn lost_lines() -> u64 {
    LOST.load(Ordering::Relaxed)
}

/// Waits until everything logged so far is written, but no longer than a second.
pub fn drain() {
    // The lock is not held during the wait.
    let queue = published().clone();
    if let Some(queue) = queue {
        queue.drain(END_TIME_MAX);
    }
}

fn published() -> MutexGuard<'static, Option<Arc<Queue>>> {
    QUEUE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes text that is not part of the log to standard error, after earlier log lines; `false` if that is not done
/// within a second.
pub fn print(text: &str) -> bool {
    drain();
    let (sender, receiver) = mpsc::sync_channel(1);
    let bytes = text.as_bytes().to_vec();
    let copy = bytes.clone();
    let write = move || {
        let _ = sender.send(write_all(io::stderr().as_fd(), &bytes).is_ok());
    };
    let started = thread::Builder::new()
        .name("cp-print".to_owned())
        .spawn(write);
    match started {
        Ok(_) => receiver
            .recv_timeout(END_TIME_MAX)
            .is_ok_and(|written| written),
        // A worker that panics may not start threads.
        Err(_) => write_if_read(io::stderr().as_fd(), &copy),
    }
}

/// Writes what fits without waiting longer than a second.
fn write_if_read(file: impl AsFd, bytes: &[u8]) -> bool {
    let time = Timespec::try_from(END_TIME_MAX).ok();
    let mut waits = [PollFd::new(&file, PollFlags::OUT)];
    let is_read = poll(&mut waits, time.as_ref()).is_ok_and(|ready| ready > 0);
    is_read && rustix::io::write(&file, bytes).is_ok_and(|written| written == bytes.len())
}

/// One line, or one journal entry.
#[derive(Debug)]
pub(super) enum Item {
    Line(Vec<u8>),
    Entry(Entry),
}

impl Item {
    fn len(&self) -> usize {
        match self {
            Item::Line(line) => line.len(),
            Item::Entry(entry) => entry.len(),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    /// Signals that there is an item, or that there is none and none is being written.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    items: VecDeque<Item>,
    bytes: usize,
    is_writing: bool,
    /// Set when the queue is to be written to its end, and its thread is then to end.
    is_ending: bool,
}

impl Queue {
    /// A queue, and a thread that passes its items to `write`, one after another. `write` may block.
    pub(super) fn start(
        mut write: impl FnMut(&Item) -> io::Result<()> + Send + 'static,
    ) -> io::Result<Arc<Queue>> {
        let queue = Arc::new(Queue::default());
        let taking = Arc::clone(&queue);
        let run = move || {
            let mut told = lost_lines();
            while let Some(item) = taking.take() {
                if write(&item).is_err() {
                    LOST.fetch_add(1, Ordering::Relaxed);
                }
                let lost = lost_lines();
                if lost != told {
                    tracing::warn!(
                        target: TARGET,
                        suppressed = lost - told,
                        "{} log lines were lost here: the reader of the log did not keep up",
                        lost - told
                    );
                    told = lost;
                }
            }
        };
        thread::Builder::new()
            .name("cp-log".to_owned())
            .spawn(run)?;
        Ok(queue)
    }

    /// Makes this the queue that [`drain`] waits for. The previous queue is written to its end.
    pub(super) fn publish(self: &Arc<Self>) {
        let before = published().replace(Arc::clone(self));
        if let Some(before) = before {
            before.drain(END_TIME_MAX);
            before.lock().is_ending = true;
            before.changed.notify_all();
        }
    }

    /// Adds an item, or counts it as lost if there is no room.
    pub(super) fn push(&self, item: Item) {
        let mut state = self.lock();
        let len = item.len();
        if state.items.len() >= LINES_MAX || state.bytes + len > BYTES_MAX {
            LOST.fetch_add(1, Ordering::Relaxed);
            return;
        }
        state.bytes += len;
        state.items.push_back(item);
        drop(state);
        self.changed.notify_all();
    }

    /// Waits for an item, which then counts as being written; earlier ones are written by then. `None` when the queue
    /// ends.
    fn take(&self) -> Option<Item> {
        let mut state = self.lock();
        state.is_writing = false;
        loop {
            if let Some(item) = state.items.pop_front() {
                state.bytes -= item.len();
                state.is_writing = true;
                return Some(item);
            }
            self.changed.notify_all();
            if state.is_ending {
                return None;
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until the queue is empty, at most `time_max`.
    pub(super) fn drain(&self, time_max: Duration) {
        let deadline = Instant::now() + time_max;
        let mut state = self.lock();
        while state.is_writing || !state.items.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes all bytes, and waits as long as necessary, also if the file is nonblocking.
pub(super) fn write_all(file: impl AsFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(&file, bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let mut waits = [PollFd::new(&file, PollFlags::OUT)];
                match poll(&mut waits, None) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Passes lines to the queue's thread.
#[derive(Clone, Debug)]
pub(super) struct Lines(pub Arc<Queue>);

/// A line that is being composed.
pub(super) struct Line<'a> {
    queue: &'a Queue,
    bytes: Vec<u8>,
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line {
            queue: &self.0,
            bytes: Vec::new(),
        }
    }
}

impl io::Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        if !self.bytes.is_empty() {
            self.queue.push(Item::Line(std::mem::take(&mut self.bytes)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(number: usize) -> Item {
        Item::Line(format!("{number}\n").into_bytes())
    }

    /// Whatever the reader does, threads that log go on, memory is bounded, and each line is written or counted.
    #[test]
    fn a_log_that_is_not_read_holds_up_nothing_and_every_line_is_written_or_counted() {
        const ALL: usize = 3 * LINES_MAX;
        let (release, held) = mpsc::channel::<()>();
        let (written, lines) = mpsc::channel();
        let queue = Queue::start(move |item| {
            let _ = held.recv();
            let _ = written.send(item.len());
            Ok(())
        });
        let queue = queue.expect("a thread");
        for number in 0..ALL {
            queue.push(line(number));
        }
        assert!(queue.lock().items.len() <= LINES_MAX);
        let start = Instant::now();
        queue.drain(Duration::from_millis(10));
        assert!(start.elapsed() >= Duration::from_millis(10));
        drop(release);
        queue.drain(Duration::from_secs(60));
        assert_eq!(lines.try_iter().count() + lost_lines() as usize, ALL);
        assert!(lost_lines() >= (ALL - LINES_MAX - 1) as u64);
        // The queue's size in bytes is limited too.
        let huge = || Item::Line(vec![b'x'; BYTES_MAX / 4]);
        let lost = lost_lines();
        let stuck = Queue::start(|_| {
            loop {
                thread::park();
            }
        });
        let stuck = stuck.expect("a thread");
        (0..10).for_each(|_| stuck.push(huge()));
        assert!(stuck.lock().bytes <= BYTES_MAX);
        assert!(lost_lines() - lost >= 5);
    }
}
