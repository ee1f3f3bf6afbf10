//! Reads from file systems that may never answer: FUSE, NFS and the like, when their server is gone.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

/// The longest wait for a file or a folder.
pub(super) const READ_TIME_MAX: Duration = Duration::from_secs(5);
/// The most unanswered reads that are left behind, each with its thread; with more, no read is started.
const STALLED_MAX: usize = 16;

/// Paths with an unanswered read.
static STALLED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn stalled() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    STALLED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `read` for `path` on a separate thread, and gives up after `time_max`: then it returns `None`, and the thread
/// stays until the kernel releases it. Also returns `None` while such a thread for the path remains, while too many
/// others do, and if no thread can be started.
pub(super) fn within<T: Send + 'static>(
    path: &Path,
    time_max: Duration,
    read: impl FnOnce(&Path) -> T + Send + 'static,
) -> Option<T> {
    {
        let stalled = stalled();
        if stalled.contains(path) || stalled.len() >= STALLED_MAX {
            return None;
        }
    }
    let (sender, receiver) = mpsc::sync_channel(1);
    // Whether the read has finished. The later of the two threads updates the list.
    let is_over = Arc::new(Mutex::new(false));
    let over = Arc::clone(&is_over);
    let owned = path.to_owned();
    let reading = move || {
        // The receiver may have given up.
        let _ = sender.send(read(&owned));
        *over.lock().unwrap_or_else(PoisonError::into_inner) = true;
        stalled().remove(&owned);
    };
    let thread = thread::Builder::new().name("cp-read".to_owned());
    thread.spawn(reading).ok()?;
    let answer = receiver.recv_timeout(time_max).ok();
    if answer.is_none() {
        let is_over = is_over.lock().unwrap_or_else(PoisonError::into_inner);
        if !*is_over {
            stalled().insert(path.to_owned());
        }
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_answers_is_given_up_and_costs_one_thread() {
        const MS: Duration = Duration::from_millis(1);
        let (release, held) = mpsc::channel::<()>();
        let held = Arc::new(Mutex::new(held));
        let wait = |path: &str| {
            let held = held.clone();
            let wait = move |_: &Path| drop(held.lock().map(|held| held.recv()));
            within(Path::new(path), MS, wait)
        };
        for _ in 0..20 {
            assert!(wait("/stalled").is_none());
            assert_eq!(stalled().len(), 1);
        }
        // Other paths are still read, until too many reads are left behind.
        let read = || within(Path::new("/other"), READ_TIME_MAX, |_| 5);
        assert_eq!(read(), Some(5));
        for number in 0..2 * STALLED_MAX {
            assert!(wait(&format!("/stalled-{number}")).is_none());
        }
        // Not in one expression: the list would stay locked during the read.
        let count = stalled().len();
        assert_eq!((count, read()), (STALLED_MAX, None));
        drop(release);
        while !stalled().is_empty() {
            thread::sleep(MS);
        }
        assert_eq!(read(), Some(5));
    }
}
