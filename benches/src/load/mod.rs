//! Traffic at a given rate for a given time: the basis of all measurements.
//!
//! | module | what |
//! |---|---|
//! | [`scenario`] | the scenarios of guests, by name |
//! | [`guest_set`], [`generator`], [`idle_guests`] | a scenario's guests, the threads that drive them, and quiet guests beside them |
//! | [`large`], [`tcp`] | two guests with large TCP frames |
//! | [`nic`], [`nic_programs`] | traffic between interfaces, generated and counted in the kernel |
//! | [`testpmd`] | DPDK's guests |
//! | [`pair`], [`wakes`] | single frames between two guests; wakes of a sleeping thread |
//! | [`churn_peers`] | guests and interfaces that come and go |
//! | [`connect`], [`addresses`] | sessions with a switch, and the guests' addresses |

pub mod addresses;
pub mod churn_peers;
pub mod connect;
pub mod generator;
pub mod guest_set;
mod idle_guests;
pub mod large;
pub mod nic;
mod nic_programs;
pub mod pair;
pub mod scenario;
pub mod tcp;
pub mod testpmd;
pub mod wakes;

pub use churn_peers::{ChurnPeers, Interface};
pub use generator::{AWAY, GuestQueue, Job, Sender, Sink};
pub use guest_set::{GuestSet, GuestSetOptions};
pub use idle_guests::Quiet;
pub use large::{LargeGuests, Shape};
pub use nic::{Flow, NicLoad, Path};
pub use nic_programs::{End, Programs, Sending};
pub use pair::Pair;
pub use scenario::{Frames, Role, Scenario};
pub use tcp::{CHECKSUM_OFFSET, HEADERS_LEN, ID_AT, MSS, SEQUENCE_AT, TCP_AT};
pub use testpmd::Testpmd;
pub use wakes::{Floor, Gaps, WakeTimes, wake_worker};

use crate::error::BenchError;
use hdrhistogram::Histogram;
use serde::Serialize;
use std::time::Duration;

/// Guests or interfaces that send traffic through a switch and measure what arrives.
pub trait Load {
    /// Offers `rate` frames per second (the sum over all directions; `None`: as many as the switch takes) for `time`, then
    /// waits until nothing is in flight.
    fn offer(&mut self, rate: Option<f64>, time: Duration) -> Result<Offered, BenchError>;
}

/// The result of an offer.
#[derive(Clone, Debug)]
pub struct Offered {
    /// Length of the trial, without the wait at its end.
    pub seconds: f64,
    /// Frames that the rate asked for; without a rate, those sent. Frames that a full transmit ring kept the generator from
    /// sending count as offered and lost.
    pub due: u64,
    /// Frames that were given to the switch.
    pub sent: u64,
    /// Frames that arrived, including those after the end of the trial.
    pub arrived: u64,
    /// Frames that arrived before the end of the trial.
    pub arrived_within: u64,
    /// The generator's polls that had something to send.
    pub polls: u64,
    /// Of these, polls that found the transmit ring full.
    pub polls_full: u64,
    /// Frames that were due, but given up.
    pub refused: u64,
    /// Time for which no frames were made, since a generator was away, nanoseconds.
    pub away_ns: u64,
    /// The longest time without a frame, nanoseconds, excluding times at which the generator did not run; measured if an
    /// offer lasts until it is stopped.
    pub longest_gap_ns: u64,
    /// Time from the generator's stamp to the sink, nanoseconds.
    pub latency_ns: Histogram<u64>,
    /// The same for the first frame of a quiet guest, if there are such guests.
    pub first_ns: Histogram<u64>,
    /// Time between two iterations of the generator, nanoseconds, if the load measures it. A frame's time cannot be known
    /// more exactly: it waits for up to one iteration until it is sent, and for up to one until it is seen.
    pub iterations_ns: Histogram<u64>,
}

impl Default for Offered {
    /// Nothing was offered.
    fn default() -> Self {
        Self {
            seconds: 0.0,
            due: 0,
            sent: 0,
            arrived: 0,
            arrived_within: 0,
            polls: 0,
            polls_full: 0,
            refused: 0,
            away_ns: 0,
            longest_gap_ns: 0,
            latency_ns: times(),
            first_ns: times(),
            iterations_ns: times(),
        }
    }
}

/// A part of a whole, 0 if there is no whole.
fn part_of(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

/// A histogram of times in nanoseconds, to three digits.
pub fn times() -> Histogram<u64> {
    Histogram::new_with_bounds(1, TIME_MAX_NS, 3).expect("valid bounds")
}

/// Percentiles of a time, nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Times {
    /// Number of times.
    pub count: u64,
    /// The median.
    pub p50: u64,
    /// 90 in 100 took no longer.
    pub p90: u64,
    /// 99 in 100 took no longer.
    pub p99: u64,
    /// 999 in 1000 took no longer.
    pub p99_9: u64,
    /// The longest.
    pub max: u64,
}

impl Times {
    /// The percentiles of a histogram in nanoseconds; `None` if it is empty.
    pub fn of(histogram: &Histogram<u64>) -> Option<Self> {
        let at = |part| histogram.value_at_quantile(part);
        (!histogram.is_empty()).then(|| Self {
            count: histogram.len(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            max: histogram.max(),
        })
    }
}

/// The longest time that is recorded exactly, nanoseconds.
const TIME_MAX_NS: u64 = 10_000_000_000;

impl Offered {
    /// Part of the due frames that did not arrive: 0 to 1.
    pub fn loss(&self) -> f64 {
        part_of(self.due.saturating_sub(self.arrived), self.due)
    }

    /// Millions of frames per second that arrived within the trial.
    pub fn mpps(&self) -> f64 {
        self.arrived_within as f64 / self.seconds / 1e6
    }

    /// Part of the generator's polls that found the transmit ring full: 0 to 1.
    pub fn ring_full(&self) -> f64 {
        part_of(self.polls_full, self.polls)
    }

    /// Adds what another generator offered at the same time.
    fn add(&mut self, other: &Self) {
        self.seconds = self.seconds.max(other.seconds);
        self.due += other.due;
        self.sent += other.sent;
        self.arrived += other.arrived;
        self.arrived_within += other.arrived_within;
        self.polls += other.polls;
        self.polls_full += other.polls_full;
        self.refused += other.refused;
        self.away_ns = self.away_ns.max(other.away_ns);
        self.longest_gap_ns = self.longest_gap_ns.max(other.longest_gap_ns);
        self.latency_ns += &other.latency_ns;
        self.first_ns += &other.first_ns;
        self.iterations_ns += &other.iterations_ns;
    }

    /// Microseconds that this part of the frames took at most; none if no time was measured.
    pub fn latency_us(&self, part: f64) -> Option<f64> {
        let latency = &self.latency_ns;
        (!latency.is_empty()).then(|| latency.value_at_quantile(part) as f64 / 1000.0)
    }
}
