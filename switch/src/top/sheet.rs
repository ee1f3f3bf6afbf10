//! Views as lines of cells, sorted and filtered.

mod view;

pub(super) use view::Column;
pub use view::View;

use std::cmp::Ordering;

use crosspoint_model::status::{FdbMover, ShownState};

use crate::show::format::{count, lasting_s, or_dash, percent, rate, time_ns};
use crate::show::printable;
use crate::show::rates::{DropRates, Interval, LatencyRates, PortRates, QueueRates, WorkerRates};

/// How a view is sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Order {
    /// The column to sort by; without one, the switch's own order.
    pub(super) column: Option<usize>,
    /// Whether the column's own direction is reversed.
    pub(super) reversed: bool,
}

impl Order {
    /// Whether the largest comes first, which is the default for numbers.
    pub(super) fn is_down(self, column: &Column) -> bool {
        column.words == self.reversed
    }
}

/// The subject of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    Port(String),
    Queue(String, u16),
    Worker(usize),
    Drop(String, u16, String),
    /// An address in its VLAN.
    Address(String, u16),
}

/// The emphasis of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mood {
    Normal,
    /// Absent, or without work.
    Dim,
    /// Needs an operator's attention.
    Bad,
}

/// A cell's sort key. Unknown is less than all others.
#[derive(Clone, Debug, PartialEq)]
enum Value {
    Unknown,
    Number(f64),
    Words(String),
}

#[derive(Clone, Debug)]
pub(super) struct Cell {
    pub(super) text: String,
    value: Value,
}

#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) subject: Subject,
    pub(super) mood: Mood,
    pub(super) cells: Vec<Cell>,
}

/// The lines of a view; each has as many cells as the view has columns.
#[derive(Clone, Debug)]
pub(super) struct Sheet {
    pub(super) columns: &'static [Column],
    pub(super) lines: Vec<Line>,
    /// The sorted column.
    pub(super) sorted: Option<usize>,
    /// Number of lines that the filter hides.
    pub(super) hidden: usize,
}

fn text(text: &str) -> Cell {
    let text = printable(text);
    Cell {
        value: Value::Words(text.clone()),
        text,
    }
}

fn numeric(text: String, value: Option<f64>) -> Cell {
    let value = value.map_or(Value::Unknown, Value::Number);
    Cell { text, value }
}

fn whole(n: u64) -> Cell {
    numeric(count(n), Some(n as f64))
}

fn per_second(per_second: Option<f64>) -> Cell {
    numeric(rate(per_second), per_second)
}

fn share(share: Option<f64>) -> Cell {
    numeric(percent(share), share)
}

fn time(ns: Option<u64>) -> Cell {
    numeric(or_dash(ns, time_ns), ns.map(|ns| ns as f64))
}

fn worker(worker: Option<usize>) -> Cell {
    let text = or_dash(worker, |worker| worker.to_string());
    numeric(text, worker.map(|worker| worker as f64))
}

fn queue(port: &str, queue: u16) -> Cell {
    text(&format!("{port}:{queue}"))
}

impl Sheet {
    /// The lines of `view` that contain `filter`, in this order.
    pub(super) fn new(view: View, interval: &Interval<'_>, filter: &str, order: Order) -> Sheet {
        let mut lines = match view {
            View::Ports => interval.ports().iter().map(port_line).collect(),
            View::Queues => interval.queues_rates().iter().map(queue_line).collect(),
            View::Workers => interval.workers().iter().map(worker_line).collect(),
            View::Drops => interval.drops().iter().map(drop_line).collect(),
            View::Latency => interval
                .latency()
                .iter()
                .map(latency_line)
                .collect::<Vec<_>>(),
            View::Shares => interval.ports().iter().map(shares_line).collect(),
            View::Moves => interval.movers().iter().map(mover_line).collect(),
            View::Floods => interval.ports().iter().map(floods_line).collect(),
            View::Connections => interval
                .ports()
                .iter()
                .filter_map(connections_line)
                .collect(),
        };
        let all = lines.len();
        let filter = filter.to_lowercase();
        let has = |line: &Line| {
            let mut cells = line.cells.iter();
            cells.any(|cell| cell.text.to_lowercase().contains(&filter))
        };
        lines.retain(|line| filter.is_empty() || has(line));
        let columns = view.columns();
        if let Some((index, column)) = order.column.and_then(|i| Some((i, columns.get(i)?))) {
            let down = order.is_down(column);
            lines.sort_by(|a, b| {
                let order = compare(a.cells.get(index), b.cells.get(index));
                if down { order.reverse() } else { order }
            });
        } else if order.reversed {
            lines.reverse();
        }
        Sheet {
            columns,
            sorted: order.column,
            hidden: all - lines.len(),
            lines,
        }
    }

    /// The column widths at which nothing is cut off.
    pub(super) fn widths(&self) -> Vec<usize> {
        let width = |(index, column): (usize, &Column)| {
            let cells = self.lines.iter().filter_map(|line| line.cells.get(index));
            let widest = cells.map(|cell| cell.text.chars().count()).max();
            let arrow = usize::from(self.sorted == Some(index));
            let name = column.name.len() + arrow;
            widest.unwrap_or(0).max(name).max(column.width_min)
        };
        self.columns.iter().enumerate().map(width).collect()
    }
}

fn compare(a: Option<&Cell>, b: Option<&Cell>) -> Ordering {
    match (a.map(|cell| &cell.value), b.map(|cell| &cell.value)) {
        (Some(Value::Number(a)), Some(Value::Number(b))) => a.total_cmp(b),
        (Some(Value::Words(a)), Some(Value::Words(b))) => a.cmp(b),
        (Some(Value::Number(_)), _) => Ordering::Greater,
        (_, Some(Value::Number(_))) => Ordering::Less,
        _ => Ordering::Equal,
    }
}

fn is_dropping(drops: Option<f64>) -> bool {
    drops.is_some_and(|drops| drops > 0.0)
}

fn port_line(one: &PortRates) -> Line {
    let (row, traffic) = (&one.row, &one.traffic);
    Line {
        subject: Subject::Port(row.name.clone()),
        mood: match row.state {
            ShownState::Quarantined | ShownState::Blocked => Mood::Bad,
            _ if is_dropping(traffic.drops) => Mood::Bad,
            ShownState::Up => Mood::Normal,
            _ => Mood::Dim,
        },
        cells: vec![
            text(&row.name),
            text(&row.kind),
            text(row.state.as_str()),
            per_second(traffic.rx_pps),
            per_second(traffic.rx_bps),
            per_second(traffic.tx_pps),
            per_second(traffic.tx_bps),
            per_second(traffic.drops),
            whole(row.addresses.into()),
            share(one.share_percent),
        ],
    }
}

/// Marked bad if shares or limits hold back or drop anything, or if addresses move.
fn shares_line(one: &PortRates) -> Line {
    let row = &one.row;
    let all = [
        one.held_back,
        one.over_share,
        one.floods_dropped,
        one.moves,
        one.damped,
    ];
    Line {
        subject: Subject::Port(row.name.clone()),
        mood: match row.state {
            _ if all.into_iter().any(is_dropping) => Mood::Bad,
            ShownState::Up => Mood::Normal,
            _ => Mood::Dim,
        },
        cells: vec![
            text(&row.name),
            whole(row.weight.into()),
            share(one.share_percent),
            per_second(one.held_back),
            per_second(one.over_share),
            per_second(one.floods_dropped),
            per_second(one.moves),
            per_second(one.damped),
            whole(row.addresses.into()),
        ],
    }
}

/// Marked bad if the storm limits drop anything, or if addresses move.
fn floods_line(one: &PortRates) -> Line {
    let (row, floods) = (&one.row, &one.floods);
    let bad = [one.floods_dropped, one.moves];
    Line {
        subject: Subject::Port(row.name.clone()),
        mood: match row.state {
            _ if bad.into_iter().any(is_dropping) => Mood::Bad,
            ShownState::Up => Mood::Normal,
            _ => Mood::Dim,
        },
        cells: vec![
            text(&row.name),
            per_second(floods.broadcasts),
            per_second(floods.multicasts),
            per_second(floods.unknown_unicasts),
            per_second(floods.copies),
            per_second(one.floods_dropped),
            per_second(one.moves),
            share(one.share_percent),
        ],
    }
}

/// Marked bad if connections are refused. A port without security groups has no line.
fn connections_line(one: &PortRates) -> Option<Line> {
    let row = &one.row;
    let all = row.connections?;
    let part = f64::from(all.connections) * 100.0 / f64::from(all.max.max(1));
    Some(Line {
        subject: Subject::Port(row.name.clone()),
        mood: match row.state {
            _ if is_dropping(one.connections_refused) => Mood::Bad,
            ShownState::Up => Mood::Normal,
            _ => Mood::Dim,
        },
        cells: vec![
            text(&row.name),
            whole(all.connections.into()),
            share(Some(part)),
            whole(all.half_open.into()),
            per_second(one.connections_begun),
            per_second(one.connections_refused),
            whole(all.max.into()),
        ],
    })
}

fn mover_line(one: &FdbMover) -> Line {
    let since = lasting_s(one.since_s.into());
    Line {
        subject: Subject::Address(one.mac.clone(), one.vlan),
        mood: if one.damped { Mood::Bad } else { Mood::Normal },
        cells: vec![
            text(&one.mac),
            whole(one.vlan.into()),
            text(&one.home),
            text(&one.other),
            text(&one.port),
            whole(one.moves.into()),
            numeric(since, Some(one.since_s.into())),
            text(if one.damped { "yes" } else { "no" }),
        ],
    }
}

fn queue_line(one: &QueueRates) -> Line {
    let (row, traffic) = (&one.row, &one.traffic);
    Line {
        subject: Subject::Queue(row.port.clone(), row.queue),
        mood: match (is_dropping(traffic.drops), row.worker) {
            (true, _) => Mood::Bad,
            (false, None) => Mood::Dim,
            (false, Some(_)) => Mood::Normal,
        },
        cells: vec![
            queue(&row.port, row.queue),
            worker(row.worker),
            per_second(traffic.rx_pps),
            per_second(traffic.rx_bps),
            per_second(traffic.tx_pps),
            per_second(traffic.tx_bps),
            per_second(traffic.drops),
            per_second(one.kicks),
            per_second(one.calls),
        ],
    }
}

fn worker_line(one: &WorkerRates) -> Line {
    let row = &one.row;
    let mut streams: Vec<_> = row.streams.iter().collect();
    let share_of = |share: Option<f64>| share.unwrap_or(0.0);
    streams.sort_by(|a, b| share_of(b.share_percent).total_cmp(&share_of(a.share_percent)));
    let streams = streams.into_iter().map(|stream| {
        let share = or_dash(stream.share_percent, |share| format!("{share:.0}%"));
        format!("{}:{} {share}", stream.port, stream.queue)
    });
    let streams = streams.collect::<Vec<_>>().join("  ");
    Line {
        subject: Subject::Worker(row.worker),
        mood: match row.stalled || row.misplaced {
            true => Mood::Bad,
            false => Mood::Normal,
        },
        cells: vec![
            worker(Some(row.worker)),
            worker(Some(row.core)),
            share(row.busy_percent),
            share(row.idle_percent),
            share(row.sleep_percent),
            per_second(one.bursts),
            per_second(one.preempted),
            match (row.stalled, row.misplaced) {
                (true, _) => text(&format!("STALLED  {streams}")),
                (_, true) => text(&format!("ON {}  {streams}", row.allowed_cores)),
                _ => text(&streams),
            },
        ],
    }
}

fn drop_line(one: &DropRates) -> Line {
    let row = &one.row;
    Line {
        subject: Subject::Drop(row.port.clone(), row.queue, row.reason.clone()),
        mood: match is_dropping(one.rate) {
            true => Mood::Bad,
            false => Mood::Dim,
        },
        cells: vec![
            queue(&row.port, row.queue),
            text(&row.reason),
            per_second(one.rate),
            whole(row.count),
            text(row.sender.as_deref().unwrap_or("-")),
            text(&row.help),
        ],
    }
}

fn latency_line(one: &LatencyRates) -> Line {
    let row = &one.row;
    Line {
        subject: Subject::Queue(row.port.clone(), row.queue),
        mood: match one.completions.is_some_and(|done| done > 0.0) {
            true => Mood::Normal,
            false => Mood::Dim,
        },
        cells: vec![
            queue(&row.port, row.queue),
            worker(row.worker),
            per_second(one.completions),
            time(row.mean_ns),
            time(row.p50_ns),
            time(row.p90_ns),
            time(row.p99_ns),
            time(row.p999_ns),
            time(row.max_ns),
        ],
    }
}
