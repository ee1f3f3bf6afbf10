//! Traffic that can be asked for: so much per second, for so long. What all measurements are made of.

use crate::error::BenchError;
use hdrhistogram::Histogram;
use std::time::Duration;

/// Guests or interfaces that make traffic through a switch and see what becomes of it.
pub trait Load {
    /// Offers `rate` frames per second (the sum over all directions; `None`: as many as the switch takes) for `time`, then waits until
    /// nothing is on its way.
    fn offer(&mut self, rate: Option<f64>, time: Duration) -> Result<Offered, BenchError>;
}

/// What became of an offer.
#[derive(Clone, Debug)]
pub struct Offered {
    /// Length of the trial, without the wait at its end.
    pub seconds: f64,
    /// Frames that the rate asked for; those sent, where it asked for none. What a full transmit ring kept the generator from sending
    /// is offered and lost.
    pub due: u64,
    /// Frames that the switch was given.
    pub sent: u64,
    /// Frames that arrived, those after the end of the trial included.
    pub arrived: u64,
    /// Frames that arrived before the end of the trial.
    pub arrived_within: u64,
    /// Part of the generator's polls that found the transmit ring full: 0 to 1.
    pub ring_full: f64,
    /// From the generator's stamp to the sink, nanoseconds.
    pub latency_ns: Histogram<u64>,
    /// The same of the first frame of a quiet guest, where there are such guests.
    pub first_ns: Histogram<u64>,
    /// Lengths of runs of frames lost in a row, where the load can tell.
    pub loss_runs: Histogram<u64>,
    /// From one turn of the generator to the next, nanoseconds, where the load can tell. A frame's time cannot be known better: it
    /// waits for up to one turn until it is sent, and for up to one until it is seen.
    pub turns_ns: Histogram<u64>,
}

/// A histogram of times in nanoseconds, to three digits.
pub fn times() -> Histogram<u64> {
    Histogram::new_with_bounds(1, TIME_MAX_NS, 3).expect("valid bounds")
}

/// The longest time that is told from a longer one, nanoseconds.
const TIME_MAX_NS: u64 = 10_000_000_000;

impl Offered {
    /// Part of what was due that did not arrive: 0 to 1.
    pub fn loss(&self) -> f64 {
        if self.due == 0 {
            return 0.0;
        }
        self.due.saturating_sub(self.arrived) as f64 / self.due as f64
    }

    /// Millions of frames per second that arrived within the trial.
    pub fn mpps(&self) -> f64 {
        self.arrived_within as f64 / self.seconds / 1e6
    }
}
