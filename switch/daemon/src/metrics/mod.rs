//! Metrics for Prometheus, at `GET /metrics`.
//!
//! All of them are read from the [`Source`] at the scrape; [`families`](fn@families) lists them. The `prometheus` crate itself adds those
//! of the process (`process_*`).
//!
//! # How many series
//!
//! A series that appears only with its first event hides that event from `increase()`. Therefore a queue exports from the
//! start, with value 0, every drop reason that a port of its kind can have. Any other reason is exported once it occurs. No
//! label's values depend on what guests send: those of `feature` come from the switch's own list. `METRICS.md` gives the
//! number of series of each kind.
//!
//! Workers' counters are only read, once per scrape, and without a lock that a change of ports waits for.

mod access;
mod buckets;
mod collector;
mod counted;
mod families;
mod queues;
mod server;
mod text;
mod tls;

use std::fmt;
use std::sync::Arc;

pub use access::{Access, AccessError};
pub use buckets::{BOUNDS_NS, BURST_BOUNDS, GAP_BOUNDS_NS};
pub use families::Family;
use prometheus::process_collector::ProcessCollector;
use prometheus::{Registry, TextEncoder};
pub use server::{MetricsError, MetricsServer};

use self::counted::Counted;
use self::families as f;
use crate::api::Source;

/// Every metric, in the order of the reference.
pub fn families() -> Vec<Family> {
    fn of<S>(list: &[Counted<S>]) -> Vec<Family> {
        list.iter().map(|one| one.family).collect()
    }
    [
        f::SWITCH_AND_PORTS,
        &of(counted::PORT_EVENTS),
        f::LOOPS_SLO_AND_TRAFFIC,
        &of(counted::LEDGER),
        f::BURSTS_AND_RINGS,
        &of(counted::QUEUE_EVENTS),
        f::COMPLETIONS,
        &of(counted::SOCKETS),
        f::WORKERS,
        &of(counted::WORKER_EVENTS),
        &of(counted::WORKER_MAXIMA_AND_MOVES),
        f::STALLS_AND_DAEMON,
    ]
    .concat()
}

/// The counters of this process alone.
#[cfg(test)]
pub(crate) fn text_of_process() -> String {
    let mut families = collector::process().to_vec();
    families.retain(|family| !family.get_metric().is_empty());
    let text = TextEncoder::new().encode_to_string(&families);
    text.expect("families of this module")
}

/// Renders the metrics of one switch.
#[derive(Clone)]
pub struct Exposition {
    source: Arc<dyn Source>,
    /// The process's own metrics.
    process: Registry,
}

impl fmt::Debug for Exposition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exposition").finish_non_exhaustive()
    }
}

impl Exposition {
    /// The media type of the text that [`render`](Exposition::render) returns.
    pub const MEDIA_TYPE: &str = prometheus::TEXT_FORMAT;

    /// Metrics of `source`, and of this process.
    pub fn new(source: Arc<dyn Source>) -> prometheus::Result<Exposition> {
        let process = Registry::new();
        process.register(Box::new(ProcessCollector::for_self()))?;
        Ok(Exposition { source, process })
    }

    /// Reads the source, and returns all metrics as text.
    pub fn render(&self) -> prometheus::Result<String> {
        let status = self.source.status();
        let mut families = collector::collect(&status, &self.source.sflow(), &self.source.ipfix());
        families.retain(|family| !family.get_metric().is_empty());
        families.extend(self.process.gather());
        let mut text = text::Text::after(TextEncoder::new().encode_to_string(&families)?);
        queues::write(&mut text, &status.ports);
        Ok(text.finish())
    }
}
