//! `crosspoint show`: rows of the running switch as JSON for programs, and as tables for people.
//!
//! The JSON of each topic: [`Topic`](crosspoint_model::topic::Topic). [`Watch`] shows some topics as what happens in a second:
//! differences of two snapshots over the time between, by [`rates`].

mod command;
pub(crate) mod format;
pub(crate) mod rates;
mod render;
mod render_port;
mod slo;
mod table;
mod watch;

pub(crate) use command::{Show, seconds};
pub use render::{Misshapen, render, render_config, render_movers};
pub use render_port::render_port;
pub use table::printable;
pub use watch::Watch;
