//! Wakes of a sleeping worker: how long they take, and whether they ever fail.

use super::pair::Pair;
use crate::error::BenchError;
use crate::interrupt;
use crate::lab::schedule::REALTIME;
use crate::lab::threads::{PRIORITY_POLL, Thread, pin};
use crate::random::Random;
use crosspoint_frame::{Clock, tsc};
use crosspoint_guest::EventFd;
use hdrhistogram::Histogram;
use rustix::event::epoll;
use serde::Serialize;
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

/// A thread on another core that sleeps, and can be woken.
pub trait Wakeable {
    /// Wakes it, and waits until it shows that it is awake.
    fn wake(&mut self) -> Result<Wake, BenchError>;
}

/// The result of one wake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wake {
    /// Whether it had asked to be woken: it slept, or was about to sleep.
    pub asked: bool,
    /// Cycles from the beginning of the attempt until it showed that it was awake; `None` if it never did.
    pub cycles: Option<u64>,
}

/// A pair of guests: a frame from one wakes the worker, and arrives at the other.
pub struct Frames<'a> {
    /// The guests.
    pub pair: &'a mut Pair,
    /// The time stamp counter's rate.
    pub clock: Clock,
}

impl Wakeable for Frames<'_> {
    fn wake(&mut self) -> Result<Wake, BenchError> {
        let start = tsc();
        let asked = self.pair.send(1, start)?.kicked;
        let pair = &mut self.pair;
        let cycles = wait(start, self.clock, || Ok(pair.receive(|_| ())? > 0))?;
        Ok(Wake { asked, cycles })
    }
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
}

impl Wakeable for Floor {
    fn wake(&mut self) -> Result<Wake, BenchError> {
        self.attempts += 1;
        let (attempts, woken) = (self.attempts, &self.shared.woken);
        let start = tsc();
        self.shared
            .event
            .signal()
            .map_err(BenchError::io("eventfd"))?;
        let cycles = wait(start, self.clock, || {
            Ok(woken.load(Ordering::Acquire) >= attempts)
        })?;
        Ok(Wake {
            asked: true,
            cycles,
        })
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

/// Polls until `there` returns true. Returns the cycles since `start`; `None` after [`LOST_AFTER`].
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
    Ok(Some(tsc().saturating_sub(start)))
}

/// Waits for `seconds`: sleeps, except for the end, which is spent polling.
pub fn pause(seconds: f64, clock: Clock) {
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
    pub fn next(self, random: &mut Random) -> f64 {
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
}

/// The worker's state at a wake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Met {
    /// Polling: it asked for no kick.
    Polling,
    /// About to sleep, or asleep for no longer than it polls without work.
    Near,
    /// Asleep for up to a millisecond.
    Millisecond,
    /// Asleep for up to ten milliseconds.
    Ten,
    /// Asleep for longer.
    Longer,
    /// Any state in which it had asked to be woken.
    Asked,
}

impl Met {
    /// All states, in order.
    pub const ALL: [Self; 6] = [
        Self::Polling,
        Self::Near,
        Self::Millisecond,
        Self::Ten,
        Self::Longer,
        Self::Asked,
    ];

    /// The state, from whether the worker had asked, and the pause before.
    pub fn of(asked: bool, gap: f64, gaps: Gaps) -> Self {
        match gap {
            _ if !asked => Self::Polling,
            _ if gap <= gaps.near() => Self::Near,
            ..=1e-3 => Self::Millisecond,
            ..=1e-2 => Self::Ten,
            _ => Self::Longer,
        }
    }

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Polling => "polling still",
            Self::Near => "about to sleep, or just asleep",
            Self::Millisecond => "after up to 1 ms",
            Self::Ten => "after 1 to 10 ms",
            Self::Longer => "after more than 10 ms",
            Self::Asked => "all that asked to be woken",
        }
    }
}

/// The number of wakes, and how long they took.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Figures {
    /// Number of wakes.
    pub count: u64,
    /// The median.
    pub p50_us: f64,
    /// 99 in 100 took less.
    pub p99_us: f64,
    /// 999 in 1000 took less.
    pub p999_us: f64,
    /// The longest.
    pub max_us: f64,
}

/// Times of wakes in cycles, by the worker's state, and the number of failures.
pub struct Times {
    clock: Clock,
    by_state: Vec<Histogram<u64>>,
    /// Wakes that failed.
    pub lost: u64,
}

impl Times {
    /// No times yet.
    pub fn new(clock: Clock) -> Self {
        let longest = clock.cycles(2 * LOST_AFTER);
        let empty = || Histogram::new_with_bounds(1, longest, 3).expect("valid bounds");
        Self {
            clock,
            by_state: Met::ALL.iter().map(|_| empty()).collect(),
            lost: 0,
        }
    }

    /// Records one wake.
    pub fn note(&mut self, met: Met, wake: Wake) {
        let Some(cycles) = wake.cycles else {
            self.lost += 1;
            return;
        };
        let mut record = |met: Met| self.by_state[met as usize].saturating_record(cycles.max(1));
        record(met);
        if wake.asked {
            record(Met::Asked);
        }
    }

    /// Figures of the wakes in a state; `None` if there were none.
    pub fn figures(&self, met: Met) -> Option<Figures> {
        let times = &self.by_state[met as usize];
        let us = |cycles: u64| self.clock.ns(cycles) / 1000.0;
        let at = |part| us(times.value_at_quantile(part));
        (!times.is_empty()).then(|| Figures {
            count: times.len(),
            p50_us: at(0.5),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: us(times.max()),
        })
    }

    /// The number of wakes that were asked for and succeeded within `time`.
    pub fn asked_within(&self, time: Duration) -> u64 {
        let times = &self.by_state[Met::Asked as usize];
        times.count_between(0, self.clock.cycles(time))
    }
}

/// Wakes `whom` `count` times.
pub fn wake_often(
    whom: &mut impl Wakeable,
    count: u64,
    gaps: Gaps,
    random: &mut Random,
    times: &mut Times,
) -> Result<(), BenchError> {
    let clock = times.clock;
    for _ in 0..count {
        interrupt::check()?;
        let gap = gaps.next(random);
        pause(gap, clock);
        let wake = whom.wake()?;
        times.note(Met::of(wake.asked, gap, gaps), wake);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GAPS: Gaps = Gaps {
        spin: 50e-6,
        longest: 20e-3,
    };

    #[test]
    fn a_worker_that_asked_for_nothing_polls() {
        assert_eq!(Met::of(false, 1.0, GAPS), Met::Polling);
        assert_eq!(Met::of(true, 60e-6, GAPS), Met::Near);
        assert_eq!(Met::of(true, 500e-6, GAPS), Met::Millisecond);
        assert_eq!(Met::of(true, 5e-3, GAPS), Met::Ten);
        assert_eq!(Met::of(true, 15e-3, GAPS), Met::Longer);
    }

    #[test]
    fn pauses_meet_every_state() {
        let mut random = Random(3);
        let gaps: Vec<f64> = (0..10_000).map(|_| GAPS.next(&mut random)).collect();
        let count = |met| {
            let met = gaps.iter().filter(|gap| Met::of(true, **gap, GAPS) == met);
            met.count()
        };
        for state in [Met::Near, Met::Millisecond, Met::Ten, Met::Longer] {
            assert!(count(state) > 500, "{state:?}");
        }
        assert!(gaps.iter().all(|gap| (0.0..GAPS.longest).contains(gap)));
    }

    #[test]
    fn a_thread_asleep_is_woken_and_timed() {
        let clock = Clock::calibrate();
        let mut floor = Floor::start(0, false, clock).unwrap();
        let (mut random, mut times) = (Random(1), Times::new(clock));
        let gaps = Gaps {
            spin: 1e-6,
            longest: 1e-3,
        };
        wake_often(&mut floor, 50, gaps, &mut random, &mut times).unwrap();
        let Figures {
            count,
            p50_us,
            max_us,
            ..
        } = times.figures(Met::Asked).unwrap();
        assert_eq!((count, times.lost), (50, 0));
        assert!(p50_us > 0.1 && p50_us <= max_us, "{p50_us} {max_us}");
    }
}
