//! Metrics for Prometheus, at `GET /metrics`.
//!
//! All of them are read from the [`Source`] at the scrape; [`FAMILIES`] lists them. Those of the process (`process_*`)
//! are the `prometheus` crate's own.
//!
//! # How many series
//!
//! Series that appear only with their first event hide it from `increase()`, so a queue exports from the start, with
//! value 0, every drop reason that a port of its kind can meet. A reason met in spite of that is exported as well. No
//! label's values depend on what guests send: those of `feature` are from a list of the switch's own. How many there are
//! of each kind says `METRICS.md`.
//!
//! What a worker writes is only read, once for each scrape, and no lock is held meanwhile that a change of ports waits for.

mod buckets;
mod collector;
mod completion;
mod families;
mod queues;
mod server;
mod text;

use std::fmt;
use std::sync::Arc;

use prometheus::process_collector::ProcessCollector;
use prometheus::{Registry, TextEncoder};

pub use buckets::{BOUNDS_NS, BURST_BOUNDS, GAP_BOUNDS_NS};
pub use completion::Completion;
pub use families::{FAMILIES, Family};
pub use server::{MetricsError, MetricsServer};

use crate::api::Source;

/// Renders the metrics of one switch.
#[derive(Clone)]
pub struct Exposition {
    source: Arc<dyn Source>,
    /// Of the process.
    process: Registry,
}

impl fmt::Debug for Exposition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exposition").finish_non_exhaustive()
    }
}

impl Exposition {
    /// The media type of what [`render`](Exposition::render) returns.
    pub const MEDIA_TYPE: &str = prometheus::TEXT_FORMAT;

    /// Metrics of `source`, and of this process.
    pub fn new(source: Arc<dyn Source>) -> prometheus::Result<Exposition> {
        let process = Registry::new();
        process.register(Box::new(ProcessCollector::for_self()))?;
        Ok(Exposition { source, process })
    }

    /// Reads the source, and writes all of it as text.
    pub fn render(&self) -> prometheus::Result<String> {
        let status = self.source.status();
        let mut families = collector::collect(&status);
        families.retain(|family| !family.get_metric().is_empty());
        families.extend(self.process.gather());
        let mut text = text::Text::after(TextEncoder::new().encode_to_string(&families)?);
        queues::write(&mut text, &status.ports);
        Ok(text.finish())
    }
}
