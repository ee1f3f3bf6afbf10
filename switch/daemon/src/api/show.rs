//! Answers to `show`: rows of a topic or of a port, in JSON.

use std::io::Write;

use crosspoint_model::request::ConnectionsWanted;
use crosspoint_model::rows;
use crosspoint_model::topic::Topic;
use thiserror::Error;

use super::Source;

/// Writes a topic's JSON, on one line.
pub fn write_json(
    topic: Topic,
    source: &dyn Source,
    out: &mut impl Write,
) -> serde_json::Result<()> {
    let status = source.status();
    match topic {
        Topic::Ports => {
            let mut rows = rows::ports(&status);
            let unkept = source.unkept();
            for row in &mut rows {
                row.unkept = unkept.get(&row.name).copied();
            }
            rows.extend(source.absent());
            serde_json::to_writer(out, &rows)
        }
        Topic::Queues => serde_json::to_writer(out, &rows::queues(&status)),
        Topic::Workers => serde_json::to_writer(out, &rows::workers(&status)),
        Topic::Fdb => {
            let fdb = rows::fdb(&status, source.fdb(), source.movers());
            serde_json::to_writer(out, &fdb)
        }
        Topic::Drops => serde_json::to_writer(out, &rows::drops(&status)),
        Topic::Latency => serde_json::to_writer(out, &rows::latency(&status)),
        Topic::Guests => serde_json::to_writer(out, &rows::guests(&status)),
        Topic::Mirrors => serde_json::to_writer(out, &status.mirrors),
        Topic::Bindings => serde_json::to_writer(out, &rows::bindings(&status)),
        Topic::Multicast => serde_json::to_writer(out, &source.multicast()),
        Topic::Bridges => serde_json::to_writer(out, &status.bridges),
        Topic::Xdp => serde_json::to_writer(out, &rows::xdp(&status)),
        Topic::Groups => serde_json::to_writer(out, &source.group_tables().groups),
        Topic::Rules => serde_json::to_writer(out, &source.group_tables().rules),
        Topic::Sets => serde_json::to_writer(out, &source.group_tables().sets),
        Topic::Connections => {
            let table = source.connections(&ConnectionsWanted::default());
            serde_json::to_writer(out, &table.unwrap_or_default())
        }
        Topic::Sflow => serde_json::to_writer(out, &source.sflow()),
        Topic::Ipfix => serde_json::to_writer(out, &source.ipfix()),
        Topic::Switch => {
            let daemon = source.daemon();
            let mut row = rows::switch(&daemon, &status);
            row.missing = source.missing();
            row.config_problems = source.config_problems();
            row.restart_pending = source.restart_pending();
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
    let detail = found.map(|port| {
        let mut detail = rows::port_detail(&status, port);
        detail.port.unkept = source.unkept().get(name).copied();
        detail
    });
    detail.ok_or_else(|| UnknownPort {
        name: name.to_owned(),
        known: status.ports.iter().map(|port| port.name.clone()).collect(),
    })
}
