//! Progress of the threads that control the switch: the main loop, the servers, the threads that follow interfaces.
//!
//! Each marks when it begins a piece of work and when it rests. A thread that is busy with the same piece for [`STUCK`]
//! is stuck: its duties are not done any more, though frames go on. The main loop takes the port table's lock ten times
//! a second, so a lock that is never released shows there.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

/// The longest time for one piece of work: longer than a reload with many NICs, and shorter than a service manager's
/// usual timeout.
pub(crate) const STUCK: Duration = Duration::from_secs(20);
/// Value instead of a time: the thread rests.
const RESTS: u64 = u64::MAX;

/// Origin of the times.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);
/// All beats.
static BEATS: Mutex<Vec<Weak<Beat>>> = Mutex::new(Vec::new());

/// Progress marks of a thread.
#[derive(Debug)]
pub(crate) struct Beat {
    name: &'static str,
    /// When its current piece of work began, milliseconds.
    since_ms: AtomicU64,
}

impl Beat {
    /// For a thread that messages call `name`, as in "the metrics server". It rests at first.
    pub(crate) fn new(name: &'static str) -> Arc<Beat> {
        let beat = Arc::new(Beat {
            name,
            since_ms: AtomicU64::new(RESTS),
        });
        let mut all = BEATS.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|one| one.strong_count() > 0);
        all.push(Arc::downgrade(&beat));
        beat
    }

    /// Marks the begin of a piece of work.
    pub(crate) fn begin(&self) {
        self.since_ms.store(now_ms(), Ordering::Relaxed);
    }

    /// Marks that the thread waits, for any time.
    pub(crate) fn rest(&self) {
        self.since_ms.store(RESTS, Ordering::Relaxed);
    }

    /// How long it has been busy with its current piece of work.
    fn busy(&self, now_ms: u64) -> Duration {
        match self.since_ms.load(Ordering::Relaxed) {
            RESTS => Duration::ZERO,
            since => Duration::from_millis(now_ms.saturating_sub(since)),
        }
    }
}

fn now_ms() -> u64 {
    u64::try_from(START.elapsed().as_millis()).unwrap_or(RESTS - 1)
}

/// The stuck threads, one line of text each.
pub(crate) fn stuck() -> Vec<String> {
    stuck_at(now_ms())
}

fn stuck_at(now_ms: u64) -> Vec<String> {
    let all = BEATS.lock().unwrap_or_else(PoisonError::into_inner);
    let all = all.iter().filter_map(Weak::upgrade);
    let stuck = all.filter_map(|beat| {
        let busy = beat.busy(now_ms);
        let name = beat.name;
        (busy >= STUCK).then(|| format!("{name} has made no progress for {} s", busy.as_secs()))
    });
    stuck.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_at_one_thing_for_too_long_is_stuck() {
        let (idle, busy) = (Beat::new("the idle one"), Beat::new("the busy one"));
        let far = now_ms() + 10 * u64::try_from(STUCK.as_millis()).expect("some seconds");
        let named = |stuck: &[String], name: &str| stuck.iter().any(|line| line.starts_with(name));
        assert!(!named(&stuck_at(far), "the"));
        busy.begin();
        assert!(!named(&stuck(), "the busy one"));
        assert!(named(
            &stuck_at(far),
            "the busy one has made no progress for "
        ));
        assert!(!named(&stuck_at(far), "the idle one"));
        busy.rest();
        assert!(!named(&stuck_at(far), "the busy one"));
        busy.begin();
        drop((idle, busy));
        assert!(!named(&stuck_at(far), "the busy one"));
    }
}
