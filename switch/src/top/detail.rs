//! One port, queue or worker in full, as lines of text.

use crosspoint_model::rows::DropRow;
use crosspoint_model::status::Status;

use super::sheet::Subject;
use crate::show::format::{count, lasting_s, or_dash, percent, rate, time_ns};
use crate::show::printable;
use crate::show::rates::{Interval, LatencyRates, PortRates, QueueRates};

/// The widest bar of a histogram.
const BAR: usize = 40;

/// The details of `subject`, or a line that it no longer exists.
pub(super) fn detail(subject: &Subject, status: &Status, interval: &Interval<'_>) -> Vec<String> {
    let lines = match subject {
        Subject::Port(name) => port(name, status, interval),
        Subject::Queue(port, number) | Subject::Drop(port, number, _) => {
            queue(port, *number, interval)
        }
        Subject::Worker(number) => worker(*number, interval),
        Subject::Address(mac, vlan) => address(mac, *vlan, interval),
    };
    let lines = lines.unwrap_or_else(|| vec!["It does not exist any more.".to_owned()]);
    lines.iter().map(|line| printable(line)).collect()
}

/// The title of a subject's details.
pub(super) fn title(subject: &Subject) -> String {
    printable(&match subject {
        Subject::Port(name) => format!("port {name}"),
        Subject::Queue(port, queue) | Subject::Drop(port, queue, _) => {
            format!("queue {port}:{queue}")
        }
        Subject::Worker(worker) => format!("worker {worker}"),
        Subject::Address(mac, vlan) => format!("address {mac} in vlan {vlan}"),
    })
}

fn port(name: &str, status: &Status, interval: &Interval<'_>) -> Option<Vec<String>> {
    let port = status.ports.iter().find(|port| port.name == name)?;
    let rates = interval.ports().into_iter();
    let rates = rates.into_iter().find(|one| one.row.name == name)?;
    let why = match port.detail.as_str() {
        "" => String::new(),
        detail => format!(": {detail}"),
    };
    let (row, traffic) = (&rates.row, &rates.traffic);
    let mut lines = vec![
        format!(
            "state      {} for {}{why}",
            port.state,
            lasting_s(port.state_for_s)
        ),
        format!(
            "kind       {}, vlan {}, addresses learned {}",
            port.kind, port.vlan, port.addresses
        ),
        format!(
            "rx         {} frames/s  {} bit/s  {} frames in all",
            rate(traffic.rx_pps),
            rate(traffic.rx_bps),
            count(row.rx_packets)
        ),
        format!(
            "tx         {} frames/s  {} bit/s  {} frames in all",
            rate(traffic.tx_pps),
            rate(traffic.tx_bps),
            count(row.tx_packets)
        ),
        format!(
            "drops      {}/s  {} in all",
            rate(traffic.drops),
            count(row.drops)
        ),
    ];
    lines.extend(shares(&rates));
    if let Some(device) = &port.device {
        lines.push(format!("socket     {} ({})", device.socket, device.role));
        let running = device.vrings.iter().filter(|vring| vring.running).count();
        lines.push(format!(
            "rings      {}, {running} of {} running; front ends so far {}",
            device.ring_type,
            device.vrings.len(),
            device.connections
        ));
        lines.push(format!("features   {}", device.features.join(" ")));
    }
    for (key, value) in &port.properties {
        lines.push(format!("{key:<10} {value}"));
    }
    lines.push(String::new());
    lines
        .push("QUEUE  WORKER  RX-PPS  RX-BIT/S  TX-PPS  TX-BIT/S  DROP/S    P50    P99".to_owned());
    let queues = interval.queues_rates().into_iter();
    for one in queues.filter(|one| one.row.port == name) {
        let traffic = &one.traffic;
        lines.push(format!(
            "{:>5}  {:>6}  {:>6}  {:>8}  {:>6}  {:>8}  {:>6}  {:>5}  {:>5}",
            one.row.queue,
            or_dash(one.row.worker, |worker| worker.to_string()),
            rate(traffic.rx_pps),
            rate(traffic.rx_bps),
            rate(traffic.tx_pps),
            rate(traffic.tx_bps),
            rate(traffic.drops),
            or_dash(one.latency.row.p50_ns, time_ns),
            or_dash(one.latency.row.p99_ns, time_ns),
        ));
    }
    drops(&mut lines, interval, |port, _| port == name);
    Some(lines)
}

/// Its use of workers' time, and what was held back.
fn shares(rates: &PortRates) -> [String; 5] {
    let row = &rates.row;
    let share = percent(rates.share_percent);
    let line = |name: &str, per_second, what: &str, all| {
        format!(
            "{name:<10} {}/s{what}  {} in all",
            rate(per_second),
            count(all)
        )
    };
    [
        format!(
            "share      {share} of a worker's time, weight {}",
            row.weight
        ),
        line("held back", rates.held_back, " polls", row.held_back),
        line(
            "over share",
            rates.over_share,
            " frames to it",
            row.over_share,
        ),
        line(
            "floods",
            rates.floods_dropped,
            " over its limits",
            row.floods_dropped,
        ),
        format!(
            "{}; {}/s kept from it, {} in all",
            line(
                "moves",
                rates.moves,
                " addresses to it",
                row.addresses_moved
            ),
            rate(rates.damped),
            count(row.addresses_damped)
        ),
    ]
}

/// Details of an address that moves.
fn address(mac: &str, vlan: u16, interval: &Interval<'_>) -> Option<Vec<String>> {
    let mut movers = interval.movers().iter();
    let one = movers.find(|one| one.mac == mac && one.vlan == vlan)?;
    let is = match one.damped {
        true => format!("It has moved too often, and stays at {}.", one.home),
        false => format!("It is at {} now.", one.port),
    };
    Some(vec![
        format!(
            "moves      {} between {} and {}, the first {} ago",
            one.moves,
            one.home,
            one.other,
            lasting_s(one.since_s.into())
        ),
        is,
        "Two ports that both send with it have the same address: one of them is wrong.".to_owned(),
    ])
}

/// Adds the drops of some queues, if there are any.
fn drops(lines: &mut Vec<String>, interval: &Interval<'_>, of: impl Fn(&str, u16) -> bool) {
    let drops = interval.drops().into_iter();
    let drops: Vec<_> = drops
        .filter(|one| of(&one.row.port, one.row.queue))
        .collect();
    if drops.is_empty() {
        return;
    }
    lines.push(String::new());
    lines.push("QUEUE  DROP/S  TOTAL  REASON".to_owned());
    for one in drops {
        lines.push(format!(
            "{:>5}  {:>6}  {:>5}  {}{}: {}",
            one.row.queue,
            rate(one.rate),
            count(one.row.count),
            one.row.reason,
            sender(&one.row),
            one.row.help
        ));
    }
}

/// Who sent what was dropped at a receiver, if it is known.
fn sender(row: &DropRow) -> String {
    let other = row.sender.as_ref().filter(|sender| **sender != row.port);
    other.map_or(String::new(), |sender| format!(" (sent by {sender})"))
}

fn queue(port: &str, number: u16, interval: &Interval<'_>) -> Option<Vec<String>> {
    let queues = interval.queues_rates().into_iter();
    let mut queues = queues.filter(|one| one.row.port == port && one.row.queue == number);
    let one: QueueRates = queues.next()?;
    let (row, traffic) = (&one.row, &one.traffic);
    let polled = row
        .worker
        .map(|worker| format!("polled by worker {worker}"));
    let mut lines = vec![
        polled.unwrap_or_else(|| "polled by no worker".to_owned()),
        String::new(),
        "               PER-SECOND  TOTAL".to_owned(),
    ];
    let mut add = |name: &str, per_second: String, total: u64| {
        lines.push(format!("{name:<13}  {per_second:>10}  {:>5}", count(total)));
    };
    add("rx frames", rate(traffic.rx_pps), row.rx_packets);
    add(
        "rx bits",
        rate(traffic.rx_bps),
        row.rx_bytes.saturating_mul(8),
    );
    add("tx frames", rate(traffic.tx_pps), row.tx_packets);
    add(
        "tx bits",
        rate(traffic.tx_bps),
        row.tx_bytes.saturating_mul(8),
    );
    add("drops", rate(traffic.drops), row.drops);
    add("bursts", rate(one.bursts), row.bursts);
    add("kicks", rate(one.kicks), row.kicks);
    add("calls", rate(one.calls), row.calls);
    add(
        "completions",
        rate(one.latency.completions),
        row.completions,
    );
    let cycles = one.cycles_per_frame.map(|cycles| count(cycles as u64));
    lines.push(format!(
        "cycles per frame from here: {}",
        or_dash(cycles, |cycles| cycles)
    ));
    if let Some(xdp) = &row.xdp {
        lines.push(format!(
            "kernel: {} dropped, receive ring full {}, fill ring empty {}, transmit ring empty {}",
            count(xdp.rx_dropped),
            count(xdp.rx_ring_full),
            count(xdp.rx_fill_ring_empty_descs),
            count(xdp.tx_ring_empty_descs)
        ));
    }
    histogram(&mut lines, &one.latency);
    drops(&mut lines, interval, |of, queue| {
        of == port && queue == number
    });
    Some(lines)
}

/// Adds the histogram of completion times in the interval: a line for each power of two.
fn histogram(lines: &mut Vec<String>, latency: &LatencyRates) {
    let row = &latency.row;
    let Some(max_ns) = row.max_ns else { return };
    let shown = |ns: Option<u64>| or_dash(ns, time_ns);
    lines.push(String::new());
    lines.push(format!(
        "completion: p50 {}  p90 {}  p99 {}  p99.9 {}  max {}",
        shown(row.p50_ns),
        shown(row.p90_ns),
        shown(row.p99_ns),
        shown(row.p999_ns),
        time_ns(max_ns)
    ));
    let mut octaves = std::collections::BTreeMap::new();
    for &(ns, n) in &latency.buckets_ns {
        let sum = octaves.entry(ns.max(1).ilog2()).or_insert(0_u64);
        *sum = sum.saturating_add(n);
    }
    let most = octaves.values().copied().max().unwrap_or(1).max(1);
    let all = octaves
        .values()
        .fold(0, |a: u64, n| a.saturating_add(*n))
        .max(1);
    for (octave, n) in octaves {
        let bar = (n as f64 / most as f64 * BAR as f64).ceil() as usize;
        let share = percent(Some(n as f64 / all as f64 * 100.0));
        let from = time_ns(1 << octave);
        lines.push(format!(
            "{from:>5}..  {share:>6}  {}",
            "#".repeat(bar.min(BAR))
        ));
    }
}

fn worker(number: usize, interval: &Interval<'_>) -> Option<Vec<String>> {
    let workers = interval.workers().into_iter();
    let mut workers = workers.into_iter().filter(|one| one.row.worker == number);
    let one = workers.next()?;
    let row = &one.row;
    let node = row.node.map(|node| format!(", memory node {node}"));
    let mut lines = vec![
        format!("core       {}{}", row.core, node.unwrap_or_default()),
        format!(
            "may run on {}; last on {}",
            or_dash(
                Some(&row.allowed_cores).filter(|cores| !cores.is_empty()),
                |cores| cores.clone()
            ),
            or_dash(row.last_core, |core| core.to_string())
        ),
        format!(
            "time       {} busy, {} polling without work, {} asleep (of {} ms)",
            percent(row.busy_percent),
            percent(row.idle_percent),
            percent(row.sleep_percent),
            row.window_ms
        ),
        format!(
            "bursts     {}/s  {} in all",
            rate(one.bursts),
            count(row.bursts)
        ),
        format!(
            "sleeps     {}/s  {} in all",
            rate(one.sleeps),
            count(row.sleeps)
        ),
        format!(
            "preempted  {}/s  {} in all",
            rate(one.preempted),
            count(row.involuntary_context_switches)
        ),
        format!(
            "stalls     {}{}",
            count(row.stalls),
            if row.stalled { ", and now" } else { "" }
        ),
        format!(
            "moves      {} streams taken from others, {} put off",
            count(row.stream_moves),
            count(row.stream_moves_put_off)
        ),
        String::new(),
        " SHARE  NODE  STAYS   STREAM".to_owned(),
    ];
    for stream in &row.streams {
        lines.push(format!(
            "{:>6}  {:>4}  {:<6}  {}:{}",
            percent(stream.share_percent),
            or_dash(stream.node, |node| node.to_string()),
            or_dash(stream.fixed.as_deref(), str::to_owned),
            stream.port,
            stream.queue
        ));
    }
    Some(lines)
}
