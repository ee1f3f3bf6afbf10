//! `show --watch`: tables of rates per second.

use crosspoint_model::status::StatusReport;

use super::format::{count, or_dash, percent, rate, time_ns};
use super::rates::{DropRates, Interval, LatencyRates, PortRates, QueueRates, WorkerRates};
use super::render::{latency_table, note, stream, streams, worker_note};
use super::table::Align::{Left, Right};
use super::table::Table;
use crosspoint_model::rows::{LatencyRow, WorkerRow};
use crosspoint_model::topic::Topic;

/// The previous snapshot, which the next one is compared with.
#[derive(Debug, Default)]
pub struct Watch {
    before: Option<StatusReport>,
}

impl Watch {
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
            Topic::Ports => ports(&interval.ports()),
            Topic::Queues => queues(&interval.queues_rates()),
            Topic::Workers => workers(&interval.workers()),
            Topic::Drops => drops(&interval.drops()),
            Topic::Latency => latency(interval.latency()),
            Topic::Switch | Topic::Fdb | Topic::Guests | Topic::Xdp => String::new(),
        };
        self.before = Some(now);
        text
    }
}

fn ports(rates: &[PortRates]) -> String {
    if rates.is_empty() {
        return "There are no ports.\n".to_owned();
    }
    let mut table = Table::new([
        ("PORT", Left),
        ("KIND", Left),
        ("STATE", Left),
        ("RX-PPS", Right),
        ("RX-BIT/S", Right),
        ("TX-PPS", Right),
        ("TX-BIT/S", Right),
        ("DROP/S", Right),
        ("SHARE", Right),
    ]);
    for one in rates {
        let PortRates { row, traffic, .. } = one;
        let cells = [
            row.name.clone(),
            row.kind.clone(),
            row.state.to_string(),
            rate(traffic.rx_pps),
            rate(traffic.rx_bps),
            rate(traffic.tx_pps),
            rate(traffic.tx_bps),
            rate(traffic.drops),
            percent(one.share_percent),
        ];
        // The port's configuration is left out here.
        let why = if row.detail.is_empty() {
            String::new()
        } else {
            note(row)
        };
        table.add_with_note(cells, why);
    }
    table.render()
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
        ("QUEUE", Left),
        ("REASON", Left),
        ("DROP/S", Right),
        ("TOTAL", Right),
        ("MEANING", Left),
    ]);
    for one in rates {
        table.add([
            stream(&one.row.port, one.row.queue),
            one.row.reason.clone(),
            rate(one.rate),
            count(one.row.count),
            one.row.help.clone(),
        ]);
    }
    table.render()
}

fn latency(rates: Vec<LatencyRates>) -> String {
    let done: Vec<String> = rates.iter().map(|one| rate(one.completions)).collect();
    let rows: Vec<LatencyRow> = rates.into_iter().map(|one| one.row).collect();
    latency_table("DONE/S", &rows, done.into_iter())
}
