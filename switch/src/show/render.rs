//! Tables made from JSON, so that people see what programs get.

use crosspoint_config::limits::DEFAULT_BRIDGE;
use crosspoint_model::status::{FdbEntry, FdbMover, IpfixStatus, Origin, SflowStatus, ShownState};
use miette::Diagnostic;
use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;

use super::drops::drops;
use super::format::{count, lasting_s, memory_about, or_dash, percent, time_ns};
use super::ipfix::ipfix;
use super::sflow::sflow;
use super::table::Align::{self, Left, Right};
use super::table::{Table, paragraph, printable};
use super::{
    render_bindings, render_bridges, render_groups, render_mirrors, render_multicast, slo, vlan,
};
use crosspoint_model::rows::{
    ConnectionTable, Fdb, GuestRow, LatencyRow, MulticastTable, PortRow, QueueRow, SwitchRow,
    WorkerRow, XdpRow,
};
use crosspoint_model::topic::Topic;

/// The JSON does not have the topic's form.
#[derive(Debug, Error, Diagnostic)]
#[error("the daemon's answer about {topic} is not understood: {cause}")]
#[diagnostic(help(
    "daemon and command line are probably of different versions; --json shows the answer as it is"
))]
pub struct Misshapen {
    pub(super) topic: &'static str,
    #[source]
    pub(super) cause: serde_json::Error,
}

/// Renders a topic's JSON, which is what a reply's `ok` holds, as a table.
pub fn render(topic: Topic, value: &Value) -> Result<String, Misshapen> {
    let text = match topic {
        Topic::Ports => Vec::deserialize(value).map(|rows| ports(&rows, false)),
        Topic::Queues => Vec::deserialize(value).map(|rows| queues(&rows)),
        Topic::Workers => Vec::deserialize(value).map(|rows| workers(&rows)),
        Topic::Fdb => Fdb::deserialize(value).map(|table| fdb(&table)),
        Topic::Drops => Vec::deserialize(value).map(|rows| drops(&rows)),
        Topic::Switch => SwitchRow::deserialize(value).map(|row| switch(&row)),
        Topic::Latency => Vec::deserialize(value).map(|rows| latency(&rows)),
        Topic::Guests => Vec::deserialize(value).map(|rows| guests(&rows)),
        Topic::Xdp => Vec::deserialize(value).map(|rows| xdp(&rows)),
        Topic::Mirrors => Vec::deserialize(value).map(|rows| render_mirrors::mirrors(&rows)),
        Topic::Bindings => Vec::deserialize(value).map(|rows| render_bindings::bindings(&rows)),
        Topic::Multicast => {
            MulticastTable::deserialize(value).map(|table| render_multicast::multicast(&table))
        }
        Topic::Bridges => Vec::deserialize(value).map(|rows| render_bridges::bridges(&rows)),
        Topic::Groups => Vec::deserialize(value).map(|rows| render_groups::groups(&rows)),
        Topic::Rules => Vec::deserialize(value).map(|rows| render_groups::rules(&rows)),
        Topic::Sets => Vec::deserialize(value).map(|rows| render_groups::sets(&rows)),
        Topic::Connections => {
            ConnectionTable::deserialize(value).map(|table| render_groups::connections(&table))
        }
        Topic::Sflow => SflowStatus::deserialize(value).map(|status| sflow(&status)),
        Topic::Ipfix => IpfixStatus::deserialize(value).map(|status| ipfix(&status)),
    };
    let topic = topic.name();
    text.map_err(|cause| Misshapen { topic, cause })
}

/// Renders the addresses that moved recently, from the JSON of the topic `fdb`.
pub fn render_movers(value: &Value) -> Result<String, Misshapen> {
    let topic = Topic::Fdb.name();
    let table = Fdb::deserialize(value).map_err(|cause| Misshapen { topic, cause })?;
    Ok(movers(&table.movers))
}

fn movers(movers: &[FdbMover]) -> String {
    if movers.is_empty() {
        return "No address has moved between ports recently.\n".to_owned();
    }
    let mut table = Table::new([
        ("ADDRESS", Left),
        ("VLAN", Right),
        ("HOME", Left),
        ("OTHER", Left),
        ("PORT", Left),
        ("MOVES", Right),
        ("SINCE", Right),
        ("DAMPED", Left),
    ]);
    for mover in movers {
        table.add([
            mover.mac.clone(),
            vlan_or_dash(mover.vlan),
            mover.home.clone(),
            mover.other.clone(),
            mover.port.clone(),
            mover.moves.to_string(),
            format!("{}s", mover.since_s),
            if mover.damped { "yes" } else { "no" }.to_owned(),
        ]);
    }
    table.render()
}

fn vlan_or_dash(vlan: u16) -> String {
    or_dash(Some(vlan).filter(|vlan| *vlan > 0), |vlan| vlan.to_string())
}

/// The running configuration, as a file.
pub fn render_config(value: &Value) -> Result<String, Misshapen> {
    #[derive(Deserialize)]
    struct Answer {
        config: String,
    }
    let answer = Answer::deserialize(value);
    let topic = "the configuration";
    answer
        .map(|answer| answer.config)
        .map_err(|cause| Misshapen { topic, cause })
}

/// Renders the JSON of the topic `ports`: a line for each port and, with `detail`, remarks below it.
pub fn render_ports(value: &Value, detail: bool) -> Result<String, Misshapen> {
    let topic = Topic::Ports.name();
    let rows = Vec::<PortRow>::deserialize(value);
    let rows = rows.map_err(|cause| Misshapen { topic, cause })?;
    Ok(ports(&rows, detail))
}

/// The longest list of VLANs that stays in its column with `--detail`; a longer one is below the line.
const VLAN_WIDTH_MAX: usize = 48;

fn ports(rows: &[PortRow], detail: bool) -> String {
    if rows.is_empty() {
        return "There are no ports.\n".to_owned();
    }
    let mut table = Table::new([
        ("PORT", Left),
        ("KIND", Left),
        ("STATE", Left),
        ("QUEUE", Right),
        ("MACS", Right),
        ("RX", Right),
        ("TX", Right),
        ("DROPS", Right),
        ("SHARE", Right),
        ("VLAN", Left),
    ]);
    for row in rows {
        let vlan = vlan::ranges(&row.vlan);
        let is_long = !detail || vlan.len() > VLAN_WIDTH_MAX;
        let cells = [
            row.name.clone(),
            row.kind.clone(),
            row.state.to_string(),
            row.queues.to_string(),
            row.addresses.to_string(),
            count(row.rx_packets),
            count(row.tx_packets),
            count(row.drops),
            percent(row.share_percent),
            match is_long {
                true => vlan::short(&row.vlan),
                false => vlan,
            },
        ];
        let note = match (detail, is_long) {
            (false, _) => String::new(),
            (true, false) => note(row),
            (true, true) => [note(row), format!("vlan {}", vlan::ranges(&row.vlan))].join("; "),
        };
        table.add_with_note(cells, note);
    }
    if detail {
        return table.render();
    }
    table.in_one_line().render() + &remarks(rows)
}

/// The most ports that are listed below the table.
const REMARKS_MAX: usize = 8;

/// Why ports are not up, and which are not as in the files: a few of them; empty if there are none.
fn remarks(rows: &[PortRow]) -> String {
    let all: Vec<String> = rows.iter().filter_map(remark).collect();
    let more = all.len().saturating_sub(REMARKS_MAX);
    let more = (more > 0).then(|| format!("and {more} more; --detail shows all"));
    let lines = all.iter().take(REMARKS_MAX).chain(&more);
    match all.is_empty() {
        true => String::new(),
        false => format!(
            "\n{}",
            lines.map(|line| paragraph(line)).collect::<String>()
        ),
    }
}

fn remark(row: &PortRow) -> Option<String> {
    let why = match row.detail.as_str() {
        "" => String::new(),
        detail => format!(": {detail}"),
    };
    let state = (row.state != ShownState::Up).then(|| format!(" is {}{why}", row.state));
    let unkept = row.unkept.map(|unkept| format!(" {}", unkept.remark()));
    if state.is_none() && unkept.is_none() {
        return None;
    }
    let parts = [Some(row.name.clone()), unkept, state];
    Some(printable(&parts.into_iter().flatten().collect::<String>()))
}

/// Remarks about a port.
pub(super) fn note(row: &PortRow) -> String {
    let detail = Some(row.detail.clone()).filter(|detail| !detail.is_empty());
    let properties = row
        .properties
        .iter()
        .map(|(key, value)| format!("{key}={value}"));
    let properties = properties.collect::<Vec<_>>().join(" ");
    let properties = Some(properties).filter(|all| !all.is_empty());
    let slo = row
        .slo
        .as_ref()
        .map(|slo| format!("slo {}", slo::in_words(slo)));
    // The default weight is not mentioned.
    let weight = (row.weight > 1).then(|| format!("weight {}", row.weight));
    let allowed = match row.addresses_allowed.len() {
        0 => None,
        1 => Some("bound to 1 address".to_owned()),
        count => Some(format!("bound to {count} addresses")),
    };
    let unkept = row.unkept.map(|unkept| unkept.remark().to_owned());
    let detail = unkept.into_iter().chain(detail);
    let words = detail.chain(slo).chain(weight).chain(allowed);
    let parts: Vec<String> = words.chain(properties).collect();
    parts.join("; ")
}

pub(super) fn queues(rows: &[QueueRow]) -> String {
    if rows.is_empty() {
        return "There are no queues.\n".to_owned();
    }
    let mut table = Table::new([
        ("QUEUE", Left),
        ("WORKER", Right),
        ("RX", Right),
        ("RX-BYTES", Right),
        ("TX", Right),
        ("TX-BYTES", Right),
        ("DROPS", Right),
        ("P50", Right),
        ("P99", Right),
    ]);
    for row in rows {
        table.add([
            stream(&row.port, row.queue),
            or_dash(row.worker, |worker| worker.to_string()),
            count(row.rx_packets),
            count(row.rx_bytes),
            count(row.tx_packets),
            count(row.tx_bytes),
            count(row.drops),
            or_dash(row.completion_p50_ns, time_ns),
            or_dash(row.completion_p99_ns, time_ns),
        ]);
    }
    table.render()
}

/// A queue's name in tables.
pub(crate) fn stream(port: &str, queue: u16) -> String {
    format!("{port}:{queue}")
}

fn workers(rows: &[WorkerRow]) -> String {
    if rows.is_empty() {
        return "There are no workers.\n".to_owned();
    }
    let mut table = Table::new([
        ("WORKER", Right),
        ("CORE", Right),
        ("NODE", Right),
        ("BUSY", Right),
        ("IDLE", Right),
        ("SLEEP", Right),
        ("SLEEPS", Right),
        ("PREEMPT", Right),
        ("STALLS", Right),
        ("MOVES", Right),
        ("STREAMS", Right),
    ]);
    for row in rows {
        let cells = [
            row.worker.to_string(),
            row.core.to_string(),
            or_dash(row.node, |node| node.to_string()),
            percent(row.busy_percent),
            percent(row.idle_percent),
            percent(row.sleep_percent),
            count(row.sleeps),
            count(row.involuntary_context_switches),
            count(row.stalls),
            count(row.stream_moves),
            row.streams.len().to_string(),
        ];
        table.add_with_note(cells, worker_note(row));
    }
    table.render() + &streams(rows)
}

/// Remarks about a worker.
pub(super) fn worker_note(row: &WorkerRow) -> String {
    let stalled = row
        .stalled
        .then(|| "makes no progress: it is preempted or stuck; the log shows which".to_owned());
    let misplaced = row.misplaced.then(|| {
        let last = row.last_core;
        let last = last.map_or(String::new(), |last| format!(", last ran on {last}"));
        let (core, allowed) = (row.core, &row.allowed_cores);
        format!("not pinned to core {core}: may run on {allowed}{last}; it is put back as soon as the kernel allows it")
    });
    let all: Vec<String> = stalled.into_iter().chain(misplaced).collect();
    all.join("; ")
}

/// The streams of each worker; empty if no worker has any.
pub(super) fn streams(rows: &[WorkerRow]) -> String {
    if rows.iter().all(|row| row.streams.is_empty()) {
        return String::new();
    }
    let mut table = Table::new([
        ("WORKER", Right),
        ("STREAM", Left),
        ("SHARE", Right),
        ("NODE", Right),
        ("STAYS", Left),
    ]);
    for (row, one) in rows
        .iter()
        .flat_map(|row| row.streams.iter().map(move |one| (row, one)))
    {
        table.add([
            row.worker.to_string(),
            stream(&one.port, one.queue),
            percent(one.share_percent),
            or_dash(one.node, |node| node.to_string()),
            or_dash(one.fixed.as_deref(), str::to_owned),
        ]);
    }
    format!("\n{}", table.render())
}

fn fdb(fdb: &Fdb) -> String {
    let text = format!(
        "{} of {} entries in use; addresses not seen for {} s are forgotten.\n",
        fdb.entries, fdb.capacity, fdb.ageing_s
    );
    match fdb.addresses.as_slice() {
        [] => text,
        addresses => text + &fdb_addresses(addresses),
    }
}

/// Renders the chosen addresses of the JSON of the topic `fdb`.
pub fn render_addresses(value: &Value) -> Result<String, Misshapen> {
    let topic = Topic::Fdb.name();
    let table = Fdb::deserialize(value).map_err(|cause| Misshapen { topic, cause })?;
    Ok(match table.addresses.as_slice() {
        [] => "No such address is known now.\n".to_owned(),
        addresses => fdb_addresses(addresses),
    })
}

fn fdb_addresses(addresses: &[FdbEntry]) -> String {
    const COLUMNS: [(&str, Align); 4] = [
        ("ADDRESS", Left),
        ("VLAN", Right),
        ("AGE", Right),
        ("PORT", Left),
    ];
    let row = |entry: &FdbEntry| {
        [
            entry.mac.clone(),
            vlan_or_dash(entry.vlan),
            match (entry.is_static, entry.origin) {
                (true, Some(Origin::File)) => "static (file)".to_owned(),
                (true, Some(Origin::Command)) => "static (command)".to_owned(),
                (true, None) => "static".to_owned(),
                (false, _) => format!("{}s", entry.age_s),
            },
            entry.port.clone(),
        ]
    };
    if addresses.iter().all(|entry| entry.bridge.is_none()) {
        let mut table = Table::new(COLUMNS);
        addresses.iter().for_each(|entry| table.add(row(entry)));
        return table.render();
    }
    let [mac, vlan, age, port] = COLUMNS;
    let mut table = Table::new([mac, vlan, ("BRIDGE", Left), age, port]);
    for entry in addresses {
        let [mac, vlan, age, port] = row(entry);
        let bridge = entry.bridge.as_deref().unwrap_or(DEFAULT_BRIDGE);
        table.add([mac, vlan, bridge.to_owned(), age, port]);
    }
    table.render()
}

fn switch(row: &SwitchRow) -> String {
    let version = printable(&row.version);
    let mut table = Table::new([("VERSION", Left), (version.as_str(), Left)]);
    let mut add = |key: &str, value: String| table.add([key.to_owned(), value]);
    let cores: Vec<String> = row.cores.iter().map(usize::to_string).collect();
    let seconds = row.balance_interval_ms as f64 / 1e3;
    add("pid", row.pid.to_string());
    add("uptime", lasting_s(row.uptime_s));
    add("config", or_dash(row.config.clone(), |path| path));
    add("control", row.control.clone());
    add("metrics", or_dash(row.metrics.clone(), |address| address));
    if !row.sandbox.is_empty() {
        add("sandbox", printable(&row.sandbox));
    }
    for missing in &row.missing {
        add("missing", printable(missing).to_string());
    }
    for problem in &row.config_problems {
        add("problem", printable(problem));
    }
    for setting in &row.restart_pending {
        add("restart pending", printable(setting));
    }
    let stalled = Some(row.workers_stalled).filter(|n| *n > 0);
    let stalled = stalled.map_or(String::new(), |n| {
        format!("; {n} stalled, see show workers")
    });
    add(
        "workers",
        format!("{} on cores {}{stalled}", row.cores.len(), cores.join(",")),
    );
    add("poll", row.poll.clone());
    let moves = format!("{} moves since the start", row.stream_moves);
    add(
        "balance",
        format!("{}, every {seconds} s; {moves}", row.balance),
    );
    let broken = Some(row.ports_quarantined).filter(|n| *n > 0);
    let broken = broken.map_or(String::new(), |n| format!(", {n} quarantined"));
    let disabled = Some(row.ports_disabled).filter(|n| *n > 0);
    let disabled = disabled.map_or(String::new(), |n| format!(", {n} disabled"));
    let queues = format!("{} queues", row.queues);
    add(
        "ports",
        format!(
            "{}, {} up{broken}{disabled}; {queues}",
            row.ports, row.ports_up
        ),
    );
    let ageing = format!("forgotten after {} s", row.fdb_ageing_s);
    add(
        "fdb",
        format!(
            "{} of {} addresses; {ageing}",
            row.fdb_entries, row.fdb_capacity
        ),
    );
    if let Some(of) = row.connections {
        let memory = memory_about(of.bytes as u64);
        add(
            "connections",
            format!("{} of {}; {memory} of memory", of.used, of.capacity),
        );
    }
    add(
        "rx",
        format!(
            "{} frames, {} bytes",
            count(row.rx_packets),
            count(row.rx_bytes)
        ),
    );
    add(
        "tx",
        format!(
            "{} frames, {} bytes",
            count(row.tx_packets),
            count(row.tx_bytes)
        ),
    );
    add("drops", count(row.drops));
    table.render()
}

fn latency(rows: &[LatencyRow]) -> String {
    let done = rows.iter().map(|row| count(row.completions));
    latency_table("DONE", rows, done)
}

/// A table of completion times; `what` is the heading of its first column.
pub(super) fn latency_table(
    what: &str,
    rows: &[LatencyRow],
    values: impl Iterator<Item = String>,
) -> String {
    if rows.is_empty() {
        return "There are no guests.\n".to_owned();
    }
    let mut table = Table::new([
        ("QUEUE", Left),
        ("WORKER", Right),
        (what, Right),
        ("MEAN", Right),
        ("P50", Right),
        ("P90", Right),
        ("P99", Right),
        ("P99.9", Right),
        ("MAX", Right),
    ]);
    for (row, value) in rows.iter().zip(values) {
        table.add([
            stream(&row.port, row.queue),
            or_dash(row.worker, |worker| worker.to_string()),
            value,
            or_dash(row.mean_ns, time_ns),
            or_dash(row.p50_ns, time_ns),
            or_dash(row.p90_ns, time_ns),
            or_dash(row.p99_ns, time_ns),
            or_dash(row.p999_ns, time_ns),
            or_dash(row.max_ns, time_ns),
        ]);
    }
    table.render()
}

fn guests(rows: &[GuestRow]) -> String {
    if rows.is_empty() {
        return "There are no guests.\n".to_owned();
    }
    let mut table = Table::new([
        ("PORT", Left),
        ("STATE", Left),
        ("FOR", Right),
        ("ROLE", Left),
        ("RINGS", Left),
        ("RUN", Right),
        ("MEMORY", Right),
        ("MTU", Right),
        ("CONNECTS", Right),
    ]);
    for row in rows {
        let device = &row.device;
        let running = device.vrings.iter().filter(|vring| vring.running).count();
        let memory = device.memory.iter().map(|region| region.size);
        let cells = [
            row.port.clone(),
            row.state.to_string(),
            lasting_s(row.state_for_s),
            device.role.clone(),
            device.ring_type.clone(),
            format!("{running}/{}", device.vrings.len()),
            memory_about(memory.fold(0, u64::saturating_add)),
            device.mtu_set.unwrap_or(device.mtu).to_string(),
            device.connections.to_string(),
        ];
        let last = device.last_end.as_ref();
        let request = device.last_request.as_ref();
        let request = request.map_or(String::new(), |name| format!(", after {name}"));
        let last = last.map_or(String::new(), |why| {
            format!("; the last front end left: {why}{request}")
        });
        table.add_with_note(cells, format!("{}{last}", device.socket));
    }
    table.render()
}

pub(super) fn xdp(rows: &[XdpRow]) -> String {
    if rows.is_empty() {
        return "There are no sockets of NIC queues.\n".to_owned();
    }
    let mut table = Table::new([
        ("QUEUE", Left),
        ("RX-DROP", Right),
        ("RX-RING-FULL", Right),
        ("FILL-EMPTY", Right),
        ("TX-EMPTY", Right),
        ("RX-INVALID", Right),
        ("TX-INVALID", Right),
    ]);
    for row in rows {
        table.add([
            stream(&row.port, row.queue),
            count(row.xdp.rx_dropped),
            count(row.xdp.rx_ring_full),
            count(row.xdp.rx_fill_ring_empty_descs),
            count(row.xdp.tx_ring_empty_descs),
            count(row.xdp.rx_invalid_descs),
            count(row.xdp.tx_invalid_descs),
        ]);
    }
    table.render()
}
