//! A stream's cycles in the windows in which loads are measured.

use crosspoint_engine::observe::counters::PortCounters;

/// A stream's cycle count at the last two samples, or when the worker got the stream.
#[derive(Clone, Copy)]
pub(super) struct Measured {
    pub cycles: [u64; 2],
    /// Whether its worker has had it for less than a window.
    pub fresh: bool,
}

impl Measured {
    /// For a stream that `worker` gets now.
    pub fn from_now(counters: &PortCounters, worker: usize, queue: u16) -> Measured {
        Measured {
            cycles: [counters.at(worker, queue).cycles.get(); 2],
            fresh: true,
        }
    }
}
