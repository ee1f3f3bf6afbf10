//! Frames at a steady rate from one guest to another, and their losses.
//!
//! Missed frames are not sent later: a frame that becomes due while the transmit ring is full is refused permanently. Frames
//! that become due while the generator itself does not run are not offered at all, as if its clock had stopped.

use crate::error::BenchError;
use crate::interrupt;
use crate::load::{Load, Offered, times};
use crate::pair::Pair;
use crosspoint_frame::{Clock, tsc};
use hdrhistogram::Histogram;
use serde::Serialize;
use std::time::Duration;

/// Frames in a burst.
const BURST: u64 = 64;
/// The time of a frame is taken in one of this many polls.
const SAMPLE_EVERY: u64 = 8;
/// Polls between two checks whether to end.
const LOOK_EVERY: u64 = 64;
/// At the maximum rate: if its polls are further apart than this, the generator did not run.
const STALL: Duration = Duration::from_micros(100);
const SECOND: Duration = Duration::from_secs(1);

/// The results of a stream of frames.
#[derive(Clone, Debug, Serialize)]
pub struct Flow {
    /// Its length, including times at which the generator did not run.
    pub seconds: f64,
    /// Time during which the generator did not run: nothing was offered.
    pub away_seconds: f64,
    /// Frames that became due.
    pub offered: u64,
    /// Of these, those for which the transmit ring had no room.
    pub refused: u64,
    /// Frames that were given to the switch.
    pub sent: u64,
    /// Frames that arrived, in total.
    pub arrived: u64,
    /// Frames that arrived while others were still sent.
    pub arrived_within: u64,
    /// The longest time without a frame, microseconds, excluding times at which the generator did not run.
    pub longest_gap_us: f64,
    /// Part of the polls that found the transmit ring full.
    pub ring_full: f64,
    /// Time from the generator's stamp to the sink, nanoseconds.
    #[serde(skip)]
    pub latency_ns: Histogram<u64>,
    /// Lengths of runs of frames that were sent but did not arrive.
    #[serde(skip)]
    pub loss_runs: Histogram<u64>,
}

impl Flow {
    /// Frames that were given to the switch but not delivered.
    pub fn lost(&self) -> u64 {
        self.sent.saturating_sub(self.arrived)
    }

    /// How long a flow at this rate would have to be blocked to lose the same number of frames, seconds.
    pub fn blocked_seconds(&self) -> f64 {
        let rate = self.offered as f64 / (self.seconds - self.away_seconds);
        (self.lost() + self.refused) as f64 / rate.max(1.0)
    }
}

/// Times at which frames are due.
#[derive(Clone, Debug)]
struct Schedule {
    /// `None`: a burst is always due.
    frames_per_cycle: Option<f64>,
    /// The longest step that counts.
    step_max: u64,
    /// Fraction of a frame that is due.
    rest: f64,
}

impl Schedule {
    /// `rate` in frames per second. Steps count if their frames fill at most a quarter of a ring.
    fn new(rate: Option<f64>, ring: u16, clock: Clock) -> Self {
        let step_max = match rate {
            Some(rate) => (f64::from(ring / 4) / rate * clock.hz()) as u64,
            None => clock.cycles(STALL),
        };
        Self {
            frames_per_cycle: rate.map(|rate| rate / clock.hz()),
            step_max,
            rest: 0.0,
        }
    }

    /// Frames that became due in `step` cycles, and how many of these cycles counted.
    fn due(&mut self, step: u64) -> (u64, u64) {
        let counted = step.min(self.step_max);
        let Some(frames_per_cycle) = self.frames_per_cycle else {
            return (BURST, counted);
        };
        self.rest += counted as f64 * frames_per_cycle;
        let due = self.rest.floor();
        self.rest -= due;
        (due as u64, counted)
    }
}

/// The longest time without a frame.
#[derive(Clone, Copy, Debug, Default)]
struct Gap {
    present: Option<u64>,
    longest: u64,
}

impl Gap {
    /// Records that `cycles` more have passed, and whether a frame arrived.
    fn pass(&mut self, cycles: u64, arrived: bool) {
        // Before the first frame there is no gap.
        let present = self.present.map(|gap| gap + cycles);
        self.longest = self.longest.max(present.unwrap_or(0));
        self.present = if arrived { Some(0) } else { present };
    }
}

/// Runs of missing frames, by the low 16 bits of their numbers.
struct Missing {
    next: Option<u16>,
    runs: Histogram<u64>,
}

impl Missing {
    fn see(&mut self, number: u16) {
        let missing = self.next.map_or(0, |next| number.wrapping_sub(next));
        if missing > 0 {
            self.runs.saturating_record(missing.into());
        }
        self.next = Some(number.wrapping_add(1));
    }
}

/// A generator and a sink on one thread.
pub struct Steady {
    /// The guests.
    pub pair: Pair,
    /// The time stamp counter's rate.
    pub clock: Clock,
    /// Entries of the sender's ring.
    pub ring: u16,
}

impl Steady {
    /// Offers `rate` frames per second (`None`: as many as the switch takes) until `over` returns true for the time that has
    /// passed, and then waits until nothing is in flight.
    pub fn run(
        &mut self,
        rate: Option<f64>,
        over: impl Fn(Duration) -> bool,
    ) -> Result<Flow, BenchError> {
        let clock = self.clock;
        let mut schedule = Schedule::new(rate, self.ring, clock);
        let mut tally = Tally::new();
        let start = tsc();
        let (mut then, mut polls, mut full, mut away) = (start, 0_u64, 0_u64, 0_u64);
        let mut answered = start;
        loop {
            let now = tsc();
            let step = now.saturating_sub(then);
            then = now;
            let (due, counted) = schedule.due(step);
            away += step - counted;
            // Received before more is sent: the frames then in flight fit the receiver's ring, wherever this thread loses
            // its core.
            let sample = polls.is_multiple_of(SAMPLE_EVERY);
            let arrived = self.take(&mut tally, sample)?;
            tally.gap.pass(counted, arrived > 0);
            tally.arrived += arrived;
            let sent = self.offer_now(due, now)?;
            tally.sent += sent;
            if sent < due {
                full += 1;
                tally.refused += if rate.is_some() { due - sent } else { 0 };
            }
            polls += 1;
            if polls.is_multiple_of(LOOK_EVERY) {
                interrupt::check()?;
                if now - answered > clock.cycles(SECOND) {
                    answered = now;
                    self.pair.answer()?;
                }
                let passed = Duration::from_secs_f64((now - start) as f64 / clock.hz());
                if over(passed) {
                    break;
                }
            }
        }
        let arrived_within = tally.arrived;
        let late = self
            .pair
            .settle(&mut |head| tally.missing.see(head.sequence()))?;
        Ok(Flow {
            seconds: (then - start) as f64 / clock.hz(),
            away_seconds: away as f64 / clock.hz(),
            offered: tally.sent + tally.refused,
            refused: tally.refused,
            sent: tally.sent,
            arrived: arrived_within + late,
            arrived_within,
            longest_gap_us: clock.ns(tally.gap.longest) / 1000.0,
            ring_full: full as f64 / polls as f64,
            latency_ns: tally.latency_ns,
            loss_runs: tally.missing.runs,
        })
    }

    /// Sends `due` frames, or as many as fit.
    fn offer_now(&mut self, due: u64, stamp: u64) -> Result<u64, BenchError> {
        let mut sent = 0;
        while sent < due {
            let limit = (due - sent).min(BURST);
            let frames = u64::from(self.pair.send(limit as usize, stamp)?.frames);
            sent += frames;
            // Only zero means a full ring: a pump takes back whole lines of the used ring, so it may send fewer than asked
            // for.
            if frames == 0 {
                break;
            }
        }
        Ok(sent)
    }

    /// Receives all frames that have arrived.
    fn take(&mut self, tally: &mut Tally, mut sample: bool) -> Result<u64, BenchError> {
        let clock = self.clock;
        let Tally {
            missing,
            latency_ns,
            ..
        } = tally;
        let mut arrived = 0;
        loop {
            let more = self.pair.receive(|head| {
                missing.see(head.sequence());
                if sample {
                    sample = false;
                    let cycles = tsc().saturating_sub(head.stamp());
                    latency_ns.saturating_record((clock.ns(cycles) as u64).max(1));
                }
            })?;
            arrived += more;
            if more < BURST / 2 {
                return Ok(arrived);
            }
        }
    }
}

struct Tally {
    sent: u64,
    refused: u64,
    arrived: u64,
    gap: Gap,
    missing: Missing,
    latency_ns: Histogram<u64>,
}

impl Tally {
    fn new() -> Self {
        let histogram = |longest| Histogram::new_with_bounds(1, longest, 3).expect("valid bounds");
        Self {
            sent: 0,
            refused: 0,
            arrived: 0,
            gap: Gap::default(),
            missing: Missing {
                next: None,
                runs: histogram(u64::from(u16::MAX)),
            },
            latency_ns: histogram(10_000_000_000),
        }
    }
}

impl Load for Steady {
    fn offer(&mut self, rate: Option<f64>, time: Duration) -> Result<Offered, BenchError> {
        let flow = self.run(rate, |passed| passed >= time)?;
        Ok(Offered {
            seconds: flow.seconds,
            due: flow.offered,
            sent: flow.sent,
            arrived: flow.arrived,
            arrived_within: flow.arrived_within,
            ring_full: flow.ring_full,
            latency_ns: flow.latency_ns,
            first_ns: times(),
            loss_runs: flow.loss_runs,
            turns_ns: times(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_due_at_their_rate_and_stalls_do_not_count() {
        let clock = Clock::calibrate();
        let mut schedule = Schedule::new(Some(1e6), 256, clock);
        let step = clock.cycles(Duration::from_nanos(2_500));
        let mut frames = 0;
        for _ in 0..1000 {
            let (due, counted) = schedule.due(step);
            assert_eq!(counted, step);
            frames += due;
        }
        assert!((2495..=2500).contains(&frames), "{frames}");
        let (due, counted) = schedule.due(clock.cycles(SECOND));
        assert!((63..=65).contains(&due), "{due}");
        assert!(counted < clock.cycles(Duration::from_micros(65)));
    }

    #[test]
    fn the_longest_gap_is_between_two_frames() {
        let mut gap = Gap::default();
        gap.pass(1000, false); // before the first
        gap.pass(1, true);
        for _ in 0..3 {
            gap.pass(10, false);
        }
        gap.pass(5, true);
        gap.pass(7, true);
        assert_eq!(gap.longest, 35);
        gap.pass(100, false); // and after the last
        assert_eq!(gap.longest, 100);
    }

    #[test]
    fn runs_of_missing_frames_are_found_past_the_end_of_the_numbers() {
        let mut missing = Tally::new().missing;
        for number in [65_533, 65_534, 1, 2, 4] {
            missing.see(number);
        }
        assert_eq!((missing.runs.len(), missing.runs.max()), (2, 2));
        assert_eq!(missing.runs.min(), 1);
    }

    #[test]
    fn blocked_time_is_what_did_not_get_through_over_the_rate() {
        let tally = Tally::new();
        let flow = Flow {
            seconds: 3.0,
            away_seconds: 1.0,
            offered: 2_000_000,
            refused: 500,
            sent: 1_999_500,
            arrived: 1_999_000,
            arrived_within: 1_999_000,
            longest_gap_us: 1.0,
            ring_full: 0.0,
            latency_ns: tally.latency_ns,
            loss_runs: tally.missing.runs,
        };
        assert_eq!(flow.lost(), 500);
        assert!((flow.blocked_seconds() - 1e-3).abs() < 1e-9);
    }
}
