//! The output of `crosspoint show`: JSON for programs, and tables for people.
//!
//! Both are made from the rows in [`rows`], whose fields are the keys of the JSON:
//!
//! | topic | JSON |
//! |---|---|
//! | `switch` | one [`SwitchRow`](rows::SwitchRow) |
//! | `ports` | array of [`PortRow`](rows::PortRow), in the order of the configuration |
//! | `queues` | array of [`QueueRow`](rows::QueueRow), by port and number |
//! | `workers` | array of [`WorkerRow`](rows::WorkerRow), by number |
//! | `fdb` | one [`Fdb`](rows::Fdb): addresses by VLAN and address, and a list of those that moved recently |
//! | `drops` | array of [`DropRow`](rows::DropRow) that are not zero, by port, queue and reason |
//! | `latency` | array of [`LatencyRow`](rows::LatencyRow), by port and queue; queues of NICs have no such times |
//! | `guests` | array of [`GuestRow`](rows::GuestRow), in the order of the configuration |
//! | `xdp` | array of [`XdpRow`](rows::XdpRow), by port and queue, of queues with a socket |
//! | `port NAME` | one [`PortDetail`](rows::PortDetail) |
//!
//! Counts are since the daemon started; shares of workers' time are of the last seconds. JSON is exact; tables show large
//! counts with three digits (`1.23M`). Keys may be added; none is renamed or removed.
//!
//! [`Watch`] shows some topics as rates per second, the differences of two snapshots: see [`rates`].

pub(crate) mod format;
pub mod rates;
mod render;
mod render_port;
pub mod rows;
mod shares;
mod slo;
mod table;
mod watch;

use std::fmt;
use std::io::Write;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use render::{Misshapen, render, render_movers};
pub use render_port::render_port;
pub use table::printable;
pub use watch::Watch;

use crate::api::Source;

/// A topic of `show`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Topic {
    /// The switch as a whole.
    Switch,
    /// Ports: their state and totals.
    Ports,
    /// Every queue's counts and completion times.
    Queues,
    /// Workers: how busy they are, and with what.
    Workers,
    /// The learned addresses.
    Fdb,
    /// Drops by place and reason.
    Drops,
    /// How long guests' descriptors take to completion.
    Latency,
    /// Guests: their devices and front ends.
    Guests,
    /// The kernel's counters of the sockets of NIC queues.
    Xdp,
}

impl Topic {
    /// All topics.
    pub const ALL: [Topic; 9] = [
        Topic::Switch,
        Topic::Ports,
        Topic::Queues,
        Topic::Workers,
        Topic::Fdb,
        Topic::Drops,
        Topic::Latency,
        Topic::Guests,
        Topic::Xdp,
    ];

    /// Its name in commands and requests.
    pub const fn name(self) -> &'static str {
        match self {
            Topic::Ports => "ports",
            Topic::Queues => "queues",
            Topic::Workers => "workers",
            Topic::Fdb => "fdb",
            Topic::Drops => "drops",
            Topic::Switch => "switch",
            Topic::Latency => "latency",
            Topic::Guests => "guests",
            Topic::Xdp => "xdp",
        }
    }

    /// What it shows, in a few words for `--help`.
    pub const fn help(self) -> &'static str {
        match self {
            Topic::Ports => "the state and the totals of every port",
            Topic::Queues => "every queue's counts and completion times",
            Topic::Workers => "how busy every worker is, and with what",
            Topic::Fdb => "the known addresses, and their ports",
            Topic::Drops => "where frames were dropped, and why",
            Topic::Switch => "version, configuration and totals",
            Topic::Latency => "how long guests' descriptors take to completion, by queue",
            Topic::Guests => "guests' devices and front ends",
            Topic::Xdp => "what the kernel counts at the sockets of NIC queues",
        }
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// There is no such topic.
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
        Topic::Fdb => {
            let fdb = rows::fdb(&status, source.fdb(), source.movers());
            serde_json::to_writer(out, &fdb)
        }
        Topic::Drops => serde_json::to_writer(out, &rows::drops(&status)),
        Topic::Latency => serde_json::to_writer(out, &rows::latency(&status)),
        Topic::Guests => serde_json::to_writer(out, &rows::guests(&status)),
        Topic::Xdp => serde_json::to_writer(out, &rows::xdp(&status)),
        Topic::Switch => {
            let daemon = source.daemon();
            let mut row = rows::switch(&daemon, &status);
            row.missing = source.missing();
            serde_json::to_writer(out, &row)
        }
    }
}

/// There is no port of this name.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("no port is named {name:?}")]
pub struct UnknownPort {
    name: String,
    known: Vec<String>,
}

impl UnknownPort {
    /// Help for people: the existing names.
    pub fn help(&self) -> String {
        match self.known.as_slice() {
            [] => "there are no ports".to_owned(),
            known => format!("the ports are {}", known.join(", ")),
        }
    }
}

/// Everything known about the port `name`.
pub fn port(name: &str, source: &dyn Source) -> Result<rows::PortDetail, UnknownPort> {
    let status = source.status();
    let found = status.ports.iter().find(|port| port.name == name);
    let detail = found.map(|port| rows::port_detail(&status, port));
    detail.ok_or_else(|| UnknownPort {
        name: name.to_owned(),
        known: status.ports.iter().map(|port| port.name.clone()).collect(),
    })
}
