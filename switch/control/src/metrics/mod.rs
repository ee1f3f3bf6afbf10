//! Metrics for Prometheus, at `GET /metrics`.
//!
//! All of them are read from the [`Source`] at the scrape; [`FAMILIES`] lists them.
//!
//! # How many series
//!
//! Series that appear only with their first event hide it from `increase()`, so a queue exports from the start, with
//! value 0, every drop reason that a port of its kind can meet: 14 of a guest's, 12 of an uplink's. A reason met in
//! spite of that is exported as well. A guest's queue comes to some 42 series, 18 of them its histogram, and an
//! uplink's to some 28. No label's values depend on what guests send.

mod collector;
mod completion;
mod families;
mod server;

use std::sync::Arc;

use prometheus::{Registry, TextEncoder};

pub use completion::{BOUNDS_NS, Completion};
pub use families::{FAMILIES, Family};
pub use server::{MetricsError, MetricsServer};

use crate::api::Source;

/// Renders the metrics of one switch.
#[derive(Clone, Debug)]
pub struct Exposition {
    registry: Registry,
}

impl Exposition {
    /// The media type of what [`render`](Exposition::render) returns.
    pub const MEDIA_TYPE: &str = prometheus::TEXT_FORMAT;

    /// Metrics of `source`, in a registry of their own.
    pub fn new(source: Arc<dyn Source>) -> prometheus::Result<Exposition> {
        let registry = Registry::new();
        registry.register(Box::new(collector::StatusCollector::new(source)?))?;
        Ok(Exposition { registry })
    }

    /// Reads the source, and writes all of it as text.
    pub fn render(&self) -> prometheus::Result<String> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}
