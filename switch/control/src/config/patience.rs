//! Reading from file systems that may never answer: FUSE, NFS and the like, when their server is gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// The longest that one file, or a folder, is waited for.
pub(super) const READ_TIME_MAX: Duration = Duration::from_secs(5);
/// The most reads that are left behind without an answer, each with its thread; beyond them nothing is read.
const STALLED_MAX: usize = 4;

static STALLED: AtomicUsize = AtomicUsize::new(0);

/// Runs `read` on a thread of its own, and gives up after so long: then `None`, and the thread stays until the kernel lets
/// it go. The same where too many stay already, or no thread can be started.
pub(super) fn within<T: Send + 'static>(
    time_max: Duration,
    read: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    if STALLED.load(Ordering::Relaxed) >= STALLED_MAX {
        return None;
    }
    let (sender, receiver) = mpsc::sync_channel(1);
    // Set by the first of the two that are through with it.
    let is_over = Arc::new(AtomicBool::new(false));
    let over = Arc::clone(&is_over);
    let reading = move || {
        // What waits may have given up.
        let _ = sender.send(read());
        if over.swap(true, Ordering::AcqRel) {
            STALLED.fetch_sub(1, Ordering::Relaxed);
        }
    };
    let thread = thread::Builder::new().name("cp-read".to_owned());
    thread.spawn(reading).ok()?;
    let answer = receiver.recv_timeout(time_max);
    if answer.is_err() {
        STALLED.fetch_add(1, Ordering::Relaxed);
        if is_over.swap(true, Ordering::AcqRel) {
            STALLED.fetch_sub(1, Ordering::Relaxed);
        }
    }
    answer.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_answers_is_given_up_and_leaves_few_threads() {
        const MS: Duration = Duration::from_millis(1);
        let (release, held) = mpsc::channel::<()>();
        let held = Arc::new(std::sync::Mutex::new(held));
        for _ in 0..20 {
            let held = held.clone();
            let wait = move || drop(held.lock().map(|held| held.recv()));
            assert!(within(MS, wait).is_none());
            let left = STALLED.load(Ordering::Relaxed);
            assert!(left <= STALLED_MAX, "{left}");
        }
        drop(release);
        while STALLED.load(Ordering::Relaxed) > 0 {
            thread::sleep(MS);
        }
        assert_eq!(within(READ_TIME_MAX, || 5), Some(5));
    }
}
