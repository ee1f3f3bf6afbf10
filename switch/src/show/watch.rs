//! `show --watch`: tables of rates per second.

use crosspoint_model::status::StatusReport;

use super::choose::Choice;
use super::drops::{about_senders, by_reason, sender};
use super::format::{count, lasting_s, or_dash, percent, rate, time_ns};
use super::rates::{DropRates, Floods, Interval, LatencyRates, PortRates, QueueRates, WorkerRates};
use super::render::{latency_table, note, stream, streams, worker_note};
use super::table::Align::{Left, Right};
use super::table::{Table, printable};
use crosspoint_model::rows::{LatencyRow, WorkerRow};
use crosspoint_model::topic::Topic;

/// The previous snapshot, which the next one is compared with.
#[derive(Debug, Default)]
pub struct Watch {
    before: Option<StatusReport>,
    /// Which ports are shown.
    choice: Choice,
}

impl Watch {
    /// Shows only these ports, in this order.
    pub fn of(choice: Choice) -> Watch {
        Watch {
            before: None,
            choice,
        }
    }

    /// Whether nothing has been rendered yet.
    pub fn is_new(&self) -> bool {
        self.before.is_none()
    }

    /// Renders the next snapshot of one port, like [`render`](Self::render).
    pub fn render_port(&mut self, name: &str, now: StatusReport) -> String {
        let interval = Interval::new(self.before.as_ref(), &now);
        let text = port(name, &interval);
        self.before = Some(now);
        text
    }

    /// Whether a topic is shown as rates.
    pub const fn has_rates(topic: Topic) -> bool {
        matches!(
            topic,
            Topic::Ports | Topic::Queues | Topic::Workers | Topic::Drops | Topic::Latency
        )
    }

    /// Renders the next snapshot as a table that ends in a newline. Rates are over the time since the previous one; the
    /// first has none. A topic without rates ([`has_rates`](Self::has_rates)) gives an empty text.
    pub fn render(&mut self, topic: Topic, now: StatusReport) -> String {
        let interval = Interval::new(self.before.as_ref(), &now);
        let text = match topic {
            Topic::Ports => {
                let chosen = self.choice.of_rates(interval.ports());
                ports(&chosen, self.choice.detail)
            }
            Topic::Queues => queues(&interval.queues_rates()),
            Topic::Workers => workers(&interval.workers()),
            Topic::Drops => drops(&interval.drops()),
            Topic::Latency => latency(interval.latency()),
            Topic::Switch
            | Topic::Fdb
            | Topic::Guests
            | Topic::Xdp
            | Topic::Mirrors
            | Topic::Bridges
            | Topic::Bindings
            | Topic::Multicast
            | Topic::Groups
            | Topic::Rules
            | Topic::Sets
            | Topic::Connections
            | Topic::Sflow
            | Topic::Ipfix => String::new(),
        };
        self.before = Some(now);
        text
    }
}

fn ports(rates: &[PortRates], detail: bool) -> String {
    if rates.is_empty() {
        return "There are no ports.\n".to_owned();
    }
    let mut table = Table::new([
        ("PORT", Left),
        ("STATE", Left),
        ("RX-PPS", Right),
        ("RX-BIT/S", Right),
        ("TX-PPS", Right),
        ("TX-BIT/S", Right),
        ("DROP/S", Right),
        ("FLOOD/S", Right),
        ("SHARE", Right),
    ]);
    for one in rates {
        let PortRates { row, traffic, .. } = one;
        let cells = [
            row.name.clone(),
            row.state.to_string(),
            rate(traffic.rx_pps),
            rate(traffic.rx_bps),
            rate(traffic.tx_pps),
            rate(traffic.tx_bps),
            rate(traffic.drops),
            rate(one.floods.frames()),
            percent(one.share_percent),
        ];
        let why = match detail {
            true => [floods(one), format!("addresses {}", moves(one)), note(row)].join("; "),
            false => String::new(),
        };
        table.add_with_note(cells, why);
    }
    let floods = if detail {
        String::new()
    } else {
        most_floods(rates)
    };
    table.render() + &floods
}

/// The most ports whose floods are listed below the table.
const FLOODS_MAX: usize = 8;

/// The ports that flood or take addresses from others, those with most first; empty if none does.
fn most_floods(rates: &[PortRates]) -> String {
    let kinds = |one: &PortRates| {
        let floods = &one.floods;
        [
            floods.broadcasts,
            floods.multicasts,
            floods.unknown_unicasts,
            floods.copies,
            one.moves,
        ]
    };
    let sum = |one: &PortRates| -> f64 { kinds(one).into_iter().flatten().sum() };
    let mut all: Vec<&PortRates> = rates.iter().filter(|one| sum(one) > 0.0).collect();
    all.sort_by(|a, b| sum(b).total_cmp(&sum(a)));
    if all.is_empty() {
        return String::new();
    }
    let mut table = Table::new([
        ("FLOODS OF", Left),
        ("BCAST/S", Right),
        ("MCAST/S", Right),
        ("UNKN/S", Right),
        ("EXTRA/S", Right),
        ("MOVE/S", Right),
    ]);
    for one in all.iter().take(FLOODS_MAX) {
        let [broadcasts, multicasts, unknown, copies, moves] = kinds(one).map(rate);
        let name = one.row.name.clone();
        table.add([name, broadcasts, multicasts, unknown, copies, moves]);
    }
    let more = match all.len().saturating_sub(FLOODS_MAX) {
        0 => String::new(),
        more => format!("and {more} more; --detail shows all\n"),
    };
    format!("\n{}{more}", table.render())
}

/// What a port floods in a second.
fn floods(one: &PortRates) -> String {
    let Floods {
        broadcasts,
        multicasts,
        unknown_unicasts,
        copies,
    } = one.floods;
    format!(
        "broadcasts {}/s, multicasts {}/s, unknown unicasts {}/s; {} more copies/s",
        rate(broadcasts),
        rate(multicasts),
        rate(unknown_unicasts),
        rate(copies)
    )
}

/// Addresses that come to a port in a second.
fn moves(one: &PortRates) -> String {
    format!("{}/s from other ports", rate(one.moves))
}

/// What a port does in a second: its sums, its queues, and what is dropped there.
fn port(name: &str, interval: &Interval<'_>) -> String {
    let ports = interval.ports();
    let Some(one) = ports.iter().find(|one| one.row.name == name) else {
        return format!("There is no port {} now.\n", printable(name));
    };
    let status = interval.port(name);
    let (row, traffic) = (&one.row, &one.traffic);
    let name = printable(&row.name);
    let mut table = Table::new([("PORT", Left), (name.as_str(), Left)]);
    let mut add = |key: &str, value: String| table.add([key.to_owned(), value]);
    let since = status.map_or(String::new(), |port| {
        format!(" for {}", lasting_s(port.state_for_s))
    });
    let detail = Some(&row.detail).filter(|detail| !detail.is_empty());
    let detail = detail.map_or(String::new(), |detail| format!(": {detail}"));
    add("state", format!("{}{since}{detail}", row.state));
    let flow = |frames, bits| format!("{} frames/s, {} bit/s", rate(frames), rate(bits));
    add("rx", flow(traffic.rx_pps, traffic.rx_bps));
    add("tx", flow(traffic.tx_pps, traffic.tx_bps));
    add("drops", format!("{}/s", rate(traffic.drops)));
    let share = format!("{} of a worker's time", percent(one.share_percent));
    add("share", share);
    add("floods", floods(one));
    add("addresses", format!("{}, {}", row.addresses, moves(one)));
    let of_port = |port: &str| port == row.name;
    let mut per_queue = interval.queues_rates();
    per_queue.retain(|queue| of_port(&queue.row.port));
    let mut dropped = interval.drops();
    dropped.retain(|drop| of_port(&drop.row.port));
    [table.render(), queues(&per_queue), drops(&dropped)].join("\n")
}

fn queues(rates: &[QueueRates]) -> String {
    if rates.is_empty() {
        return "There are no queues.\n".to_owned();
    }
    let mut table = Table::new([
        ("QUEUE", Left),
        ("WORKER", Right),
        ("RX-PPS", Right),
        ("RX-BIT/S", Right),
        ("TX-PPS", Right),
        ("TX-BIT/S", Right),
        ("DROP/S", Right),
        ("P50", Right),
        ("P99", Right),
    ]);
    for one in rates {
        table.add([
            stream(&one.row.port, one.row.queue),
            or_dash(one.row.worker, |worker| worker.to_string()),
            rate(one.traffic.rx_pps),
            rate(one.traffic.rx_bps),
            rate(one.traffic.tx_pps),
            rate(one.traffic.tx_bps),
            rate(one.traffic.drops),
            or_dash(one.latency.row.p50_ns, time_ns),
            or_dash(one.latency.row.p99_ns, time_ns),
        ]);
    }
    table.render()
}

fn workers(rates: &[WorkerRates]) -> String {
    if rates.is_empty() {
        return "There are no workers.\n".to_owned();
    }
    let mut table = Table::new([
        ("WORKER", Right),
        ("CORE", Right),
        ("BUSY", Right),
        ("IDLE", Right),
        ("SLEEP", Right),
        ("BURST/S", Right),
        ("SLEEP/S", Right),
        ("PREEMPT/S", Right),
        ("STALLS", Right),
    ]);
    for one in rates {
        let row = &one.row;
        let cells = [
            row.worker.to_string(),
            row.core.to_string(),
            percent(row.busy_percent),
            percent(row.idle_percent),
            percent(row.sleep_percent),
            rate(one.bursts),
            rate(one.sleeps),
            rate(one.preempted),
            count(row.stalls),
        ];
        table.add_with_note(cells, worker_note(row));
    }
    let rows: Vec<WorkerRow> = rates.iter().map(|one| one.row.clone()).collect();
    table.render() + &streams(&rows)
}

fn drops(rates: &[DropRates]) -> String {
    if rates.is_empty() {
        return "Nothing was dropped.\n".to_owned();
    }
    let mut table = Table::new([
        ("REASON", Left),
        ("QUEUE", Left),
        ("DROP/S", Right),
        ("TOTAL", Right),
        ("SENDER", Left),
    ]);
    // Before there are rates, the totals order the reasons.
    let has_rates = rates.iter().any(|one| one.rate.is_some());
    let number = |one: &DropRates| match has_rates {
        true => one.rate.unwrap_or(0.0),
        false => one.row.count as f64,
    };
    for (one, heads) in by_reason(rates, |one| &one.row, number) {
        let cells = [
            heads.reason,
            stream(&one.row.port, one.row.queue),
            rate(one.rate),
            count(one.row.count),
            sender(&one.row),
        ];
        table.add_with_note(cells, heads.meaning);
    }
    table.render() + about_senders(rates.iter().map(|one| &one.row))
}

fn latency(rates: Vec<LatencyRates>) -> String {
    let done: Vec<String> = rates.iter().map(|one| rate(one.completions)).collect();
    let rows: Vec<LatencyRow> = rates.into_iter().map(|one| one.row).collect();
    latency_table("DONE/S", &rows, done.into_iter())
}
