//! `show ipfix`: the export to a collector of IPFIX.

use crosspoint_model::status::IpfixStatus;

use super::format::{count, or_dash};
use super::table::Align::Left;
use super::table::{Table, printable};

pub(super) fn ipfix(status: &IpfixStatus) -> String {
    let Some(collector) = &status.collector else {
        let about = "Nothing is exported: the configuration has no [ipfix] with a collector.\n";
        return about.to_owned();
    };
    let mut table = Table::new([("COLLECTOR", Left), (collector.as_str(), Left)]);
    let mut add = |key: &str, value: String| table.add([key.to_owned(), value]);
    let source = or_dash(status.source.clone(), |source| source);
    add("source", format!("{source}, domain {}", status.domain));
    let every = |ms: u64| format!("every {} s", ms as f64 / 1e3);
    add("active timeout", every(status.active_timeout_ms));
    add("templates", every(status.templates_ms));
    add("memory", format!("{} MiB", status.bytes >> 20));
    add("messages", count(status.messages));
    add(
        "records",
        format!(
            "{} begun, {} updated, {} ended, {} denied",
            count(status.begun),
            count(status.updated),
            count(status.ended),
            count(status.denied)
        ),
    );
    add(
        "lost",
        format!(
            "{} missed, {} unsent; {} denied beyond the rate",
            count(status.records_missed),
            count(status.records_unsent),
            count(status.denied_unsent)
        ),
    );
    let why = status.last_error.as_ref();
    let why = why.map_or(String::new(), |why| format!(", last: {}", printable(why)));
    add("send errors", format!("{}{why}", count(status.send_errors)));
    table.render()
}
