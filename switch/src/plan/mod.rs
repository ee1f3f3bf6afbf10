//! `crosspoint plan`: the changes that a configuration would make in a running switch.

mod command;
mod render;

pub(crate) use command::Plan;
pub use render::{render, render_reload};
