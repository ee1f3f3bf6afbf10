//! Wakes of a sleeping worker: how long they take.

use crate::error::BenchError;
use crate::interrupt;
use crate::lab::{PRIORITY_POLL, REALTIME, Thread, pin};
use crate::load::{Pair, Times, times};
use crate::random::Random;
use crosspoint_frame::{Clock, tsc};
use crosspoint_guest::EventFd;
use hdrhistogram::Histogram;
use rustix::event::epoll;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// A frame or an answer that takes longer is lost.
const LOST_AFTER: Duration = Duration::from_secs(1);
/// Sleeping is only this exact; the rest of a pause is spent polling.
const SLEEP_EXACT: Duration = Duration::from_micros(200);
/// Number of unsuccessful checks before the clock is read.
const LOOKS: u32 = 256;

/// The result of one wake of a thread on another core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wake {
    /// Whether it had asked to be woken: it slept, or was about to sleep.
    pub asked: bool,
    /// Nanoseconds from the beginning of the attempt until it showed that it was awake; `None` if it never did.
    pub ns: Option<u64>,
}

/// Wakes the worker by a frame from one guest, and waits until it arrives at the other.
pub fn wake_worker(pair: &mut Pair, clock: Clock) -> Result<Wake, BenchError> {
    let start = tsc();
    let asked = pair.send(1, start)?.kicked;
    let ns = wait(start, clock, || Ok(pair.receive(|_| ())? > 0))?;
    Ok(Wake { asked, ns })
}

/// The machine's own minimum: a thread that sleeps in epoll, as the worker does, and only writes a number when an eventfd
/// wakes it.
pub struct Floor {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    clock: Clock,
    attempts: u64,
}

struct Shared {
    event: EventFd,
    woken: AtomicU64,
    stop: AtomicBool,
}

impl Floor {
    /// Starts the thread on `core`.
    pub fn start(core: usize, realtime: bool, clock: Clock) -> Result<Self, BenchError> {
        let io = || BenchError::io("floor");
        let shared = Arc::new(Shared {
            event: EventFd::new().map_err(io())?,
            woken: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        });
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|why| io()(why.into()))?;
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&poll, &shared.event, epoll::EventData::new_u64(0), flags)
            .map_err(|why| io()(why.into()))?;
        let of_thread = shared.clone();
        let thread = std::thread::spawn(move || {
            let _ = pin(core);
            if realtime && let Err(why) = Thread::current().set_fifo(PRIORITY_POLL) {
                eprintln!("floor: {REALTIME}: {why}");
            }
            let mut events = Vec::with_capacity(4);
            while !of_thread.stop.load(Ordering::Relaxed) {
                events.clear();
                let room = rustix::buffer::spare_capacity(&mut events);
                if epoll::wait(&poll, room, None).is_ok() {
                    of_thread.woken.fetch_add(1, Ordering::Release);
                }
            }
        });
        Ok(Self {
            shared,
            thread: Some(thread),
            clock,
            attempts: 0,
        })
    }

    /// Wakes the thread, and waits until it shows that it is awake.
    pub fn wake(&mut self) -> Result<Wake, BenchError> {
        self.attempts += 1;
        let (attempts, shared) = (self.attempts, &self.shared);
        let start = tsc();
        shared.event.signal().map_err(BenchError::io("eventfd"))?;
        let is_awake = || Ok(shared.woken.load(Ordering::Acquire) >= attempts);
        let ns = wait(start, self.clock, is_awake)?;
        Ok(Wake { asked: true, ns })
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let _ = self.shared.event.signal();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Polls until `there` returns true. Returns the nanoseconds since `start`; `None` after [`LOST_AFTER`].
fn wait(
    start: u64,
    clock: Clock,
    mut there: impl FnMut() -> Result<bool, BenchError>,
) -> Result<Option<u64>, BenchError> {
    let deadline = start + clock.cycles(LOST_AFTER);
    let mut looks = 0_u32;
    while !there()? {
        looks = looks.wrapping_add(1);
        if looks.is_multiple_of(LOOKS) && tsc() > deadline {
            return Ok(None);
        }
    }
    Ok(Some(clock.ns(tsc().saturating_sub(start)) as u64))
}

/// Waits for `seconds`: sleeps, except for the end, which is spent polling.
fn pause(seconds: f64, clock: Clock) {
    let start = tsc();
    let time = Duration::from_secs_f64(seconds);
    let end = start + clock.cycles(time);
    if let Some(asleep) = time.checked_sub(SLEEP_EXACT)
        && asleep > SLEEP_EXACT
    {
        std::thread::sleep(asleep);
    }
    while tsc() < end {
        std::hint::spin_loop();
    }
}

/// Pauses before a wake.
#[derive(Clone, Copy, Debug)]
pub struct Gaps {
    /// How long a worker polls without work before it sleeps, seconds.
    pub spin: f64,
    /// The longest pause.
    pub longest: f64,
}

impl Gaps {
    /// Half of the pauses end at about the time when the worker goes to sleep; the other half are longer, of any order of
    /// magnitude.
    fn next(self, random: &mut Random) -> f64 {
        let near = self.near().min(self.longest);
        if random.part() < 0.5 {
            random.between(0.0, near)
        } else {
            random.between_log(near, self.longest)
        }
    }

    fn near(self) -> f64 {
        2.0 * self.spin
    }

    /// The worker's state at a wake: an index of [`STATES`].
    fn state(self, asked: bool, gap: f64) -> usize {
        match gap {
            _ if !asked => 0,
            _ if gap <= self.near() => 1,
            ..=1e-3 => 2,
            ..=1e-2 => 3,
            _ => 4,
        }
    }
}

/// States of the worker at a wake, from whether it had asked for a kick, and the pause before.
pub const STATES: [&str; 6] = [
    "polling still",
    "about to sleep, or just asleep",
    "after up to 1 ms",
    "after 1 to 10 ms",
    "after more than 10 ms",
    "all that asked to be woken",
];
const ASKED: usize = STATES.len() - 1;

/// Times of wakes, by the worker's state, and the number of failures.
pub struct WakeTimes {
    gaps: Gaps,
    by_state: [Histogram<u64>; STATES.len()],
    /// Wakes that failed.
    pub lost: u64,
}

impl WakeTimes {
    /// No times yet.
    pub fn new(gaps: Gaps) -> Self {
        Self {
            gaps,
            by_state: std::array::from_fn(|_| times()),
            lost: 0,
        }
    }

    /// Records one wake after a pause.
    fn note(&mut self, gap: f64, wake: Wake) {
        let Some(ns) = wake.ns else {
            self.lost += 1;
            return;
        };
        self.by_state[self.gaps.state(wake.asked, gap)].saturating_record(ns.max(1));
        if wake.asked {
            self.by_state[ASKED].saturating_record(ns.max(1));
        }
    }

    /// Times of the wakes in each state in which there were any.
    pub fn rows(&self) -> impl Iterator<Item = (&'static str, Times)> {
        let states = STATES.into_iter().zip(&self.by_state);
        states.filter_map(|(state, times)| Some((state, Times::of(times)?)))
    }

    /// Calls `wake` `count` times, after pauses.
    pub fn fill(
        &mut self,
        count: u64,
        random: &mut Random,
        clock: Clock,
        mut wake: impl FnMut() -> Result<Wake, BenchError>,
    ) -> Result<(), BenchError> {
        for _ in 0..count {
            interrupt::check()?;
            let gap = self.gaps.next(random);
            pause(gap, clock);
            self.note(gap, wake()?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_meet_every_state() {
        let gaps = Gaps {
            spin: 50e-6,
            longest: 20e-3,
        };
        let (mut random, mut counts) = (Random(3), [0; STATES.len()]);
        for _ in 0..10_000 {
            let gap = gaps.next(&mut random);
            assert!((0.0..gaps.longest).contains(&gap));
            counts[gaps.state(true, gap)] += 1;
        }
        assert!(
            counts[1..ASKED].iter().all(|count| *count > 500),
            "{counts:?}"
        );
        assert_eq!(gaps.state(false, 1.0), 0);
    }

    #[test]
    fn a_thread_asleep_is_woken_and_timed() {
        let clock = Clock::calibrate();
        let mut floor = Floor::start(0, false, clock).unwrap();
        let mut times = WakeTimes::new(Gaps {
            spin: 1e-6,
            longest: 1e-3,
        });
        times
            .fill(50, &mut Random(1), clock, || floor.wake())
            .unwrap();
        let asked = times.rows().last().unwrap().1;
        assert_eq!((asked.count, times.lost), (50, 0));
        assert!(asked.p50 > 100 && asked.p50 <= asked.max, "{asked:?}");
    }
}
