//! What `crosspoint show` shows: as JSON for programs, and as tables for people.
//!
//! Both are made of the rows in [`rows`], whose fields are the keys of the JSON:
//!
//! | topic | JSON |
//! |---|---|
//! | `ports` | array of [`PortRow`](rows::PortRow), in the order of the configuration |
//! | `queues` | array of [`QueueRow`](rows::QueueRow), by port and number |
//! | `workers` | array of [`WorkerRow`](rows::WorkerRow), by number |
//! | `fdb` | one [`Fdb`](rows::Fdb), its addresses by VLAN and address |
//! | `drops` | array of [`DropRow`](rows::DropRow), those that are not zero, by port, queue and reason |
//! | `port NAME` | one [`PortDetail`](rows::PortDetail) |
//!
//! Counts are since the daemon started; the shares of workers' time are of the last seconds. In JSON all are exact; tables show large ones with three digits (`1.23M`).
//! Keys may be added, and none is renamed or removed.

mod format;
mod render;
mod render_port;
pub mod rows;
mod slo;
mod table;

use std::fmt;
use std::io::Write;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use render::{Misshapen, render};
pub use render_port::render_port;

use crate::api::Source;

/// What can be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Topic {
    /// Ports: their state and totals.
    Ports,
    /// Every queue's counts and completion times.
    Queues,
    /// Workers: how busy they are, and with what.
    Workers,
    /// The addresses that are known.
    Fdb,
    /// What was dropped where, and why.
    Drops,
}

impl Topic {
    /// All of them.
    pub const ALL: [Topic; 5] = [
        Topic::Ports,
        Topic::Queues,
        Topic::Workers,
        Topic::Fdb,
        Topic::Drops,
    ];

    /// Its name in commands and requests.
    pub const fn name(self) -> &'static str {
        match self {
            Topic::Ports => "ports",
            Topic::Queues => "queues",
            Topic::Workers => "workers",
            Topic::Fdb => "fdb",
            Topic::Drops => "drops",
        }
    }

    /// What it shows, in a few words for `--help`.
    pub const fn help(self) -> &'static str {
        match self {
            Topic::Ports => "ports: their state and totals",
            Topic::Queues => "every queue's counts and completion times",
            Topic::Workers => "workers: how busy they are, and with what",
            Topic::Fdb => "the addresses that are known",
            Topic::Drops => "what was dropped where, and why",
        }
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Not a topic.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{0}` is not a topic; there are {topics}", topics = Topic::ALL.map(Topic::name).join(", "))]
pub struct UnknownTopic(String);

impl FromStr for Topic {
    type Err = UnknownTopic;

    fn from_str(name: &str) -> Result<Topic, UnknownTopic> {
        let topic = Topic::ALL.into_iter().find(|topic| topic.name() == name);
        topic.ok_or_else(|| UnknownTopic(name.to_owned()))
    }
}

/// Writes a topic's JSON, on one line.
pub fn write_json(
    topic: Topic,
    source: &dyn Source,
    out: &mut impl Write,
) -> serde_json::Result<()> {
    let status = source.status();
    match topic {
        Topic::Ports => serde_json::to_writer(out, &rows::ports(&status)),
        Topic::Queues => serde_json::to_writer(out, &rows::queues(&status)),
        Topic::Workers => serde_json::to_writer(out, &rows::workers(&status)),
        Topic::Fdb => serde_json::to_writer(out, &rows::fdb(&status, source.fdb())),
        Topic::Drops => serde_json::to_writer(out, &rows::drops(&status)),
    }
}

/// No port has this name.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("no port is named {name:?}")]
pub struct UnknownPort {
    name: String,
    known: Vec<String>,
}

impl UnknownPort {
    /// The names that there are, for people.
    pub fn help(&self) -> String {
        match self.known.as_slice() {
            [] => "there are no ports".to_owned(),
            known => format!("the ports are {}", known.join(", ")),
        }
    }
}

/// All that is known of the port `name`.
pub fn port(name: &str, source: &dyn Source) -> Result<rows::PortDetail, UnknownPort> {
    let status = source.status();
    let found = status.ports.iter().find(|port| port.name == name);
    found.map(rows::port_detail).ok_or_else(|| UnknownPort {
        name: name.to_owned(),
        known: status.ports.iter().map(|port| port.name.clone()).collect(),
    })
}
