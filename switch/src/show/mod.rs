//! `crosspoint show`: rows of the running switch as JSON for programs, and as tables for people.
//!
//! The JSON of each topic: [`Topic`](crosspoint_model::topic::Topic). [`Watch`] shows some topics as what happens in a second:
//! differences of two snapshots over the time between, by [`rates`].

mod choose;
mod choose_fdb;
mod command;
mod drops;
pub(crate) mod format;
mod ipfix;
pub(crate) mod rates;
mod render;
mod render_bindings;
mod render_bridges;
mod render_groups;
mod render_mirrors;
mod render_multicast;
mod render_port;
mod sflow;
mod slo;
mod table;
mod vlan;
mod watch;

pub use choose::{Choice, SortBy};
pub use choose_fdb::{FdbChoice, part_of_mac};
pub(crate) use command::{Show, seconds};
pub use render::{Misshapen, render, render_addresses, render_config, render_movers, render_ports};
pub use render_groups::render_set;
pub use render_port::render_port;
pub(crate) use table::indented_paragraph;
pub use table::printable;
pub use watch::Watch;
