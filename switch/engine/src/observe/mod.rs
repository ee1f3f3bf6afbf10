//! What the data path tells: counters, histograms, latencies, taps, explanations.

pub mod counters;
pub mod explain;
pub(crate) mod histograms;
pub(crate) mod latency;
pub mod mirror;
pub mod tap;

pub use histograms::{BurstSizes, Turns};
pub use latency::{Latencies, Latency};
