//! What the data path tells: counters, histograms, latencies, taps, samples, explanations.

pub mod counters;
pub mod explain;
pub(crate) mod histograms;
pub(crate) mod latency;
pub mod mirror;
pub mod sample;
pub mod tap;

use crosspoint_frame::Burst;

use crate::egress::tx::Tx;
use crate::snapshot::Snapshot;
use crate::stream::StreamId;

pub use histograms::{BurstSizes, Turns};
pub use latency::{Latencies, Latency};

/// Shows the taps, the sampler and DHCP snooping a burst that was received on `id` and has been looked up.
#[cold]
#[inline(never)]
pub fn received(burst: &Burst, id: StreamId, view: &Snapshot, tx: &mut Tx) {
    if !view.taps.is_empty() {
        tap::received(burst, id, view, tx);
    }
    if let Some(sampler) = &view.sampler {
        sampler.received(burst, id, view, tx.worker);
    }
    if let (Some(leases), Some(port)) = (&view.leases, view.port(id.0)) {
        leases.listen(burst, id.0, port.is_server);
    }
}
