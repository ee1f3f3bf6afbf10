//! `show sflow`: the export to an sFlow collector.

use crosspoint_model::status::SflowStatus;

use super::format::{count, or_dash};
use super::table::Align::{Left, Right};
use super::table::{Table, printable};

pub(super) fn sflow(status: &SflowStatus) -> String {
    let Some(collector) = &status.collector else {
        let about = "Nothing is exported: the configuration has no [sflow] with a collector.\n";
        return about.to_owned();
    };
    let mut table = Table::new([("COLLECTOR", Left), (collector.as_str(), Left)]);
    let mut add = |key: &str, value: String| table.add([key.to_owned(), value]);
    add("agent", or_dash(status.agent.clone(), |agent| agent));
    add(
        "sampling",
        format!(
            "1 of {} frames, {} bytes of each",
            status.sampling, status.header_len_bytes
        ),
    );
    let every = |ms: u64| format!("every {} s", ms as f64 / 1e3);
    add("polling", status.polling_ms.map_or("off".to_owned(), every));
    add("datagrams", count(status.datagrams));
    add(
        "samples",
        format!(
            "{} of frames, {} missed; {} of counters",
            count(status.flow_samples),
            count(status.samples_missed),
            count(status.counter_samples)
        ),
    );
    let why = status.last_error.as_ref();
    let why = why.map_or(String::new(), |why| format!(", last: {}", printable(why)));
    add("send errors", format!("{}{why}", count(status.send_errors)));
    let mut ports = Table::new([
        ("PORT", Left),
        ("IFINDEX", Right),
        ("FRAMES", Right),
        ("SAMPLES", Right),
        ("MISSED", Right),
    ]);
    for port in &status.interfaces {
        ports.add([
            port.port.clone(),
            port.ifindex.to_string(),
            count(port.frames),
            count(port.samples),
            count(port.missed),
        ]);
    }
    format!("{}\n{}", table.render(), ports.render())
}
