//! Rates per second: differences of two snapshots over the time between them.
//!
//! A rate is absent (`None`) if it is unknown: in the first snapshot, in the first of another daemon, and if a count has
//! decreased, as when a port was removed and added again.

use std::collections::HashMap;

use crosspoint_model::status::{
    FdbMover, LatencyStatus, PortConnections, PortStatus, QueueStatus, Status, StatusReport,
    WorkerStatus,
};

use super::render::stream;
use crosspoint_model::rows::shares;
use crosspoint_model::rows::{self, DropRow, LatencyRow, PortRow, QueueRow, WorkerRow};

/// Two snapshots of one daemon.
#[derive(Clone, Copy, Debug)]
pub struct Interval<'a> {
    before: Option<&'a Status>,
    now: &'a Status,
    movers: &'a [FdbMover],
    /// Seconds between them, if there are two; more than 0.
    seconds: f64,
}

/// Traffic of a port or a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Traffic {
    /// Frames from the port into the switch, per second.
    pub rx_pps: Option<f64>,
    /// Their bits, per second.
    pub rx_bps: Option<f64>,
    /// Copies delivered to the port, per second.
    pub tx_pps: Option<f64>,
    /// Their bits, per second.
    pub tx_bps: Option<f64>,
    /// Drops counted there, per second.
    pub drops: Option<f64>,
}

/// A port.
#[derive(Clone, Debug, Default)]
pub struct PortRates {
    /// Its row, with counts since the daemon started.
    pub row: PortRow,
    /// Its traffic.
    pub traffic: Traffic,
    /// Its part of the time of one worker, percent. With several workers it is the sum, which may exceed 100.
    pub share_percent: Option<f64>,
    /// Poll iterations in which one of its queues was not read, because the port was ahead of its fair share, per second.
    pub held_back: Option<f64>,
    /// Drops there of frames whose senders were above their shares, per second.
    pub over_share: Option<f64>,
    /// Floods of its frames that were dropped by its storm limits, per second.
    pub floods_dropped: Option<f64>,
    /// Addresses that moved to it from other ports, per second.
    pub moves: Option<f64>,
    /// Addresses that were not moved to it because they had moved too often, per second.
    pub damped: Option<f64>,
    /// Connections that began, per second.
    pub connections_begun: Option<f64>,
    /// Connections that were refused, per second.
    pub connections_refused: Option<f64>,
    /// Its flooded frames.
    pub floods: Floods,
}

/// Flooded frames of a port, per second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Floods {
    /// Broadcasts.
    pub broadcasts: Option<f64>,
    /// Multicasts.
    pub multicasts: Option<f64>,
    /// Frames for unknown addresses.
    pub unknown_unicasts: Option<f64>,
    /// The copies that all of them were made into, less one for each.
    pub copies: Option<f64>,
}

impl Floods {
    /// All flooded frames; absent if a number is unknown.
    pub fn frames(&self) -> Option<f64> {
        Some(self.broadcasts? + self.multicasts? + self.unknown_unicasts?)
    }
}

/// A queue.
#[derive(Clone, Debug, Default)]
pub struct QueueRates {
    /// Its row, with counts since the daemon started.
    pub row: QueueRow,
    /// Its traffic.
    pub traffic: Traffic,
    /// Kicks that woke a worker, per second.
    pub kicks: Option<f64>,
    /// Calls to the guest, per second.
    pub calls: Option<f64>,
    /// Bursts, per second.
    pub bursts: Option<f64>,
    /// Cycles that workers spent per frame from here; absent if there were no frames.
    pub cycles_per_frame: Option<f64>,
    /// Completion times since the previous snapshot.
    pub latency: LatencyRates,
}

/// Completion times of a queue since the previous snapshot.
#[derive(Clone, Debug, Default)]
pub struct LatencyRates {
    /// Counts and times of the interval.
    pub row: LatencyRow,
    /// Completions, per second.
    pub completions: Option<f64>,
    /// Times (nanoseconds, ascending) and how often each occurred.
    pub buckets_ns: Vec<(u64, u64)>,
}

/// A worker. Shares of time in `row` are of the interval; if that is unknown, they are the daemon's.
#[derive(Clone, Debug, Default)]
pub struct WorkerRates {
    /// Its row.
    pub row: WorkerRow,
    /// Bursts, per second.
    pub bursts: Option<f64>,
    /// Times it slept, per second.
    pub sleeps: Option<f64>,
    /// Involuntary context switches, per second.
    pub preempted: Option<f64>,
}

/// A drop reason at a queue.
#[derive(Clone, Debug, Default)]
pub struct DropRates {
    /// Its row, with the count since the daemon started.
    pub row: DropRow,
    /// Per second.
    pub rate: Option<f64>,
}

impl<'a> Interval<'a> {
    /// The interval from `before`, if there is one of the same daemon, to `now`.
    pub fn new(before: Option<&'a StatusReport>, now: &'a StatusReport) -> Interval<'a> {
        let same = before.filter(|before| {
            let (before, now) = (&before.daemon, &now.daemon);
            before.pid == now.pid
                && before.started_ms == now.started_ms
                && before.uptime_ns < now.uptime_ns
        });
        let ns = same.map_or(0, |before| now.daemon.uptime_ns - before.daemon.uptime_ns);
        Interval {
            before: same.map(|before| &before.status),
            now: &now.status,
            movers: &now.movers,
            seconds: ns as f64 / 1e9,
        }
    }

    /// Its length, seconds; absent if there is only one snapshot.
    #[cfg(test)]
    pub fn seconds(&self) -> Option<f64> {
        self.before.map(|_| self.seconds)
    }

    /// Addresses that moved recently, as reported by the daemon.
    pub fn movers(&self) -> &'a [FdbMover] {
        self.movers
    }

    /// The rate of a count that was `before` and is `now`.
    fn rate(&self, before: Option<u64>, now: u64) -> Option<f64> {
        let difference = now.checked_sub(before?)?;
        Some(difference as f64 / self.seconds)
    }

    /// The port's status now.
    pub fn port(&self, name: &str) -> Option<&'a PortStatus> {
        self.now.ports.iter().find(|port| port.name == name)
    }

    fn ports_before(&self) -> HashMap<&'a str, &'a PortStatus> {
        let ports = self.before.map_or(&[][..], |before| &before.ports);
        ports
            .iter()
            .map(|port| (port.name.as_str(), port))
            .collect()
    }

    /// Each queue with its port, and its previous status.
    fn queues(
        &self,
    ) -> impl Iterator<Item = (&'a PortStatus, &'a QueueStatus, Option<&'a QueueStatus>)> {
        let before = self.ports_before();
        self.now.ports.iter().flat_map(move |port| {
            let before = before.get(port.name.as_str()).map(|port| &port.queues);
            port.queues.iter().map(move |queue| {
                let same = |one: &&QueueStatus| one.queue == queue.queue;
                let before = before.and_then(|queues| queues.iter().find(same));
                (port, queue, before)
            })
        })
    }

    /// All ports together.
    pub fn all(&self) -> Traffic {
        let sum = |status: &Status| {
            let queues = status.ports.iter().flat_map(|port| &port.queues);
            Counts::sum(queues)
        };
        self.traffic(self.before.map(sum), sum(self.now))
    }

    /// All ports.
    pub fn ports(&self) -> Vec<PortRates> {
        let before = self.ports_before();
        let mut taken: HashMap<String, f64> = HashMap::new();
        for stream in self.workers().into_iter().flat_map(|one| one.row.streams) {
            if let Some(percent) = stream.share_percent {
                *taken.entry(stream.port).or_default() += percent;
            }
        }
        let rates = |port: &PortStatus| {
            let before = before.get(port.name.as_str());
            let rate = |read: &dyn Fn(&PortStatus) -> u64| {
                self.rate(before.map(|port| read(port)), read(port))
            };
            PortRates {
                row: rows::port(port),
                traffic: self.traffic(
                    before.map(|port| Counts::sum(&port.queues)),
                    Counts::sum(&port.queues),
                ),
                share_percent: taken.get(&port.name).copied(),
                held_back: rate(&shares::held_back),
                over_share: rate(&|port| shares::drops_for(port, shares::is_over_share)),
                floods_dropped: rate(&|port| shares::drops_for(port, shares::is_storm)),
                moves: rate(&|port| port.addresses_moved),
                damped: rate(&|port| port.addresses_damped),
                connections_begun: rate(&|port| connections(port).created),
                connections_refused: rate(&|port| {
                    let of = connections(port);
                    rows::total(of.refused, of.rate_refused)
                }),
                floods: Floods {
                    broadcasts: rate(&|port| of_queues(port, |queue| queue.broadcasts)),
                    multicasts: rate(&|port| of_queues(port, |queue| queue.multicasts)),
                    unknown_unicasts: rate(&|port| of_queues(port, |queue| queue.unknown_unicasts)),
                    copies: rate(&|port| of_queues(port, |queue| queue.flood_copies)),
                },
            }
        };
        self.now.ports.iter().map(rates).collect()
    }

    fn traffic(&self, before: Option<Counts>, now: Counts) -> Traffic {
        let bits = |rate: Option<f64>| rate.map(|bytes| bytes * 8.0);
        let rate = |read: fn(&Counts) -> u64| self.rate(before.as_ref().map(read), read(&now));
        Traffic {
            rx_pps: rate(|c| c.rx_packets),
            rx_bps: bits(rate(|c| c.rx_bytes)),
            tx_pps: rate(|c| c.tx_packets),
            tx_bps: bits(rate(|c| c.tx_bytes)),
            drops: rate(|c| c.drops),
        }
    }

    /// All queues.
    pub fn queues_rates(&self) -> Vec<QueueRates> {
        let rates = |(port, queue, before): (&PortStatus, &QueueStatus, Option<&QueueStatus>)| {
            let rate = |read: fn(&QueueStatus) -> u64| self.rate(before.map(read), read(queue));
            let frames = rate(|q| q.rx_packets).filter(|frames| *frames > 0.0);
            let cycles = rate(|q| q.cycles);
            QueueRates {
                row: rows::queue(&port.name, queue),
                traffic: self.traffic(before.map(Counts::of), Counts::of(queue)),
                kicks: rate(|q| q.kicks),
                calls: rate(|q| q.calls),
                bursts: rate(|q| q.bursts),
                cycles_per_frame: frames.and_then(|frames| Some(cycles? / frames)),
                latency: self.latency_of(port, queue, before),
            }
        };
        self.queues().map(rates).collect()
    }

    /// Completion times of all queues of guests.
    pub fn latency(&self) -> Vec<LatencyRates> {
        let guests = self
            .queues()
            .filter(|(port, q, _)| port.kind == "vhost" || !q.completion.buckets_ns.is_empty());
        guests
            .map(|(port, queue, before)| self.latency_of(port, queue, before))
            .collect()
    }

    fn latency_of(
        &self,
        port: &PortStatus,
        queue: &QueueStatus,
        before: Option<&QueueStatus>,
    ) -> LatencyRates {
        let since = before.and_then(|before| since(&before.completion, &queue.completion));
        let known = since.is_some();
        let since = since.unwrap_or_default();
        let row = rows::latency_of(&port.name, queue, &since);
        LatencyRates {
            completions: known.then(|| row.completions as f64 / self.seconds),
            row,
            buckets_ns: since.buckets_ns,
        }
    }

    /// All workers.
    pub fn workers(&self) -> Vec<WorkerRates> {
        let cycles: HashMap<String, f64> = self
            .queues()
            .filter_map(|(port, queue, before)| {
                let spent = self.rate(before.map(|q| q.cycles), queue.cycles)?;
                Some((stream(&port.name, queue.queue), spent))
            })
            .collect();
        let before = |worker: usize| {
            let workers = self.before.map_or(&[][..], |before| &before.workers);
            workers.iter().find(|one| one.worker == worker)
        };
        let rows = rows::workers(self.now).into_iter().zip(&self.now.workers);
        rows.map(|(mut row, now)| {
            let before = before(now.worker);
            self.share(&mut row, before, now, &cycles);
            let rate = |read: fn(&WorkerStatus) -> u64| self.rate(before.map(read), read(now));
            WorkerRates {
                row,
                bursts: rate(|w| w.bursts),
                sleeps: rate(|w| w.sleeps),
                preempted: rate(|w| w.involuntary_switches),
            }
        })
        .collect()
    }

    /// Replaces the daemon's shares of time by the interval's. A sleeping worker counts its cycles when it wakes: if no
    /// cycles were counted in the interval, the daemon's shares stay.
    fn share(
        &self,
        row: &mut WorkerRow,
        before: Option<&WorkerStatus>,
        now: &WorkerStatus,
        cycles: &HashMap<String, f64>,
    ) {
        let rate = |read: fn(&WorkerStatus) -> u64| self.rate(before.map(read), read(now));
        let (Some(busy), Some(idle), Some(sleep)) = (
            rate(|w| w.busy_cycles),
            rate(|w| w.idle_cycles),
            rate(|w| w.sleep_cycles),
        ) else {
            return;
        };
        let all = busy + idle + sleep;
        if all <= 0.0 {
            return;
        }
        let percent = |part: f64| (part / all * 1000.0).round() / 10.0;
        row.busy_percent = Some(percent(busy));
        row.idle_percent = Some(percent(idle));
        row.sleep_percent = Some(percent(sleep));
        row.window_ms = (self.seconds * 1e3) as u64;
        let of = |port: &str, queue| cycles.get(&stream(port, queue)).copied().unwrap_or(0.0);
        let streams = row.streams.iter().map(|one| of(&one.port, one.queue));
        let streams: f64 = streams.sum();
        // A stream's cost may have been counted before the poll iteration that it was part of.
        let scale = if streams > busy { busy / streams } else { 1.0 };
        for one in &mut row.streams {
            one.share_percent = Some(percent(of(&one.port, one.queue) * scale));
        }
    }

    /// All drop reasons that occurred since the daemon started.
    pub fn drops(&self) -> Vec<DropRates> {
        // What has not been dropped in the interval may be another sender's.
        let senders = rows::senders::senders(self.before, self.now);
        let senders_ever = rows::senders::senders(None, self.now);
        let mut all = Vec::new();
        for (port, queue, before) in self.queues() {
            for row in rows::drops_of_queue(port, queue) {
                let before = before.map(|q| q.drops.get(&row.reason).copied().unwrap_or(0));
                let rate = self.rate(before, row.count);
                let row = match rate {
                    Some(rate) if rate > 0.0 => row.sent_by(&senders),
                    _ => row.sent_by(&senders_ever),
                };
                all.push(DropRates { row, rate });
            }
        }
        all
    }
}

/// Those of a port with security groups; none for others.
fn connections(port: &PortStatus) -> PortConnections {
    port.connections.unwrap_or_default()
}

fn of_queues(port: &PortStatus, read: fn(&QueueStatus) -> u64) -> u64 {
    port.queues.iter().map(read).fold(0, rows::total)
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    rx_packets: u64,
    rx_bytes: u64,
    tx_packets: u64,
    tx_bytes: u64,
    drops: u64,
}

impl Counts {
    fn of(queue: &QueueStatus) -> Counts {
        Counts {
            rx_packets: queue.rx_packets,
            rx_bytes: queue.rx_bytes,
            tx_packets: queue.tx_packets,
            tx_bytes: queue.tx_bytes,
            drops: rows::all_drops(queue),
        }
    }

    fn sum<'q>(queues: impl IntoIterator<Item = &'q QueueStatus>) -> Counts {
        let queues = queues.into_iter().map(Counts::of);
        queues.fold(Counts::default(), |a, b| Counts {
            rx_packets: rows::total(a.rx_packets, b.rx_packets),
            rx_bytes: rows::total(a.rx_bytes, b.rx_bytes),
            tx_packets: rows::total(a.tx_packets, b.tx_packets),
            tx_bytes: rows::total(a.tx_bytes, b.tx_bytes),
            drops: rows::total(a.drops, b.drops),
        })
    }
}

/// The increase of a histogram; absent if any count has decreased.
fn since(before: &LatencyStatus, now: &LatencyStatus) -> Option<LatencyStatus> {
    let mut left: HashMap<u64, u64> = HashMap::new();
    for &(ns, count) in &before.buckets_ns {
        let sum = left.entry(ns).or_insert(0);
        *sum = rows::total(*sum, count);
    }
    let mut buckets_ns = Vec::new();
    for &(ns, count) in &now.buckets_ns {
        let more = count.checked_sub(left.remove(&ns).unwrap_or(0))?;
        if more > 0 {
            buckets_ns.push((ns, more));
        }
    }
    if left.values().any(|count| *count > 0) {
        return None;
    }
    let sum_ns = now.sum_ns - before.sum_ns;
    Some(LatencyStatus { buckets_ns, sum_ns })
}

#[cfg(test)]
mod tests {
    use crosspoint_model::status::DaemonStatus;
    use proptest::prelude::*;

    use super::*;

    fn snapshot(uptime_s: u64, rx_packets: u64, completion: &[(u64, u64)]) -> StatusReport {
        let queue = QueueStatus {
            rx_packets,
            rx_bytes: rx_packets.saturating_mul(100),
            completion: LatencyStatus {
                buckets_ns: completion.to_vec(),
                sum_ns: 0.0,
            },
            ..QueueStatus::default()
        };
        let port = PortStatus {
            name: "a".into(),
            queues: vec![queue],
            ..PortStatus::default()
        };
        StatusReport {
            daemon: DaemonStatus {
                uptime_ns: uptime_s * 1_000_000_000,
                ..DaemonStatus::default()
            },
            status: Status {
                ports: vec![port],
                ..Status::default()
            },
            ..StatusReport::default()
        }
    }

    fn rx(before: &StatusReport, now: &StatusReport) -> Option<f64> {
        Interval::new(Some(before), now).ports()[0].traffic.rx_pps
    }

    #[test]
    fn rates_are_differences_over_the_time_between() {
        let (before, now) = (snapshot(10, 1000, &[]), snapshot(12, 4000, &[]));
        let interval = Interval::new(Some(&before), &now);
        assert_eq!(interval.seconds(), Some(2.0));
        let traffic = interval.ports()[0].traffic;
        assert_eq!(
            (traffic.rx_pps, traffic.rx_bps),
            (Some(1500.0), Some(1_200_000.0))
        );
        assert_eq!(interval.all(), traffic);
        assert_eq!(interval.queues_rates()[0].traffic, traffic);
    }

    #[test]
    fn a_daemon_that_was_started_again_has_no_rates_yet() {
        let (before, mut now) = (snapshot(10, 1000, &[]), snapshot(12, 4000, &[]));
        now.daemon.pid = 7;
        assert_eq!(rx(&before, &now), None);
        assert_eq!(Interval::new(Some(&before), &now).seconds(), None);
        now.daemon = DaemonStatus {
            started_ms: 7,
            ..before.daemon.clone()
        };
        assert_eq!(rx(&before, &now), None);
    }

    #[test]
    fn a_count_that_goes_back_has_no_rate() {
        assert_eq!(rx(&snapshot(1, 10, &[]), &snapshot(2, 9, &[])), None);
        assert_eq!(rx(&snapshot(2, 10, &[]), &snapshot(2, 19, &[])), None);
    }

    #[test]
    fn times_are_those_of_the_interval_alone() {
        let before = snapshot(1, 0, &[(1_000, 1_000_000), (90_000, 5)]);
        let now = snapshot(2, 0, &[(1_000, 1_000_000), (5_000, 100), (90_000, 6)]);
        let latency = &Interval::new(Some(&before), &now).latency()[0];
        assert_eq!(latency.buckets_ns, [(5_000, 100), (90_000, 1)]);
        assert_eq!(latency.completions, Some(101.0));
        let (p50, max) = (latency.row.p50_ns, latency.row.max_ns);
        assert!(p50.is_some_and(|ns| ns.abs_diff(5_000) < 100), "{p50:?}");
        assert!(max.is_some_and(|ns| ns.abs_diff(90_000) < 1_000), "{max:?}");
        let latency = &Interval::new(Some(&now), &before).latency()[0];
        assert_eq!((latency.completions, latency.row.p50_ns), (None, None));
    }

    proptest! {
        #[test]
        fn what_a_histogram_has_more_is_what_was_recorded_meanwhile(
            before in prop::collection::btree_map(0u64..50, 1u64..1000, 0..20),
            more in prop::collection::btree_map(0u64..50, 1u64..1000, 0..20),
        ) {
            let mut now = before.clone();
            for (ns, n) in &more {
                *now.entry(*ns).or_insert(0) += n;
            }
            let status = |map: &std::collections::BTreeMap<u64, u64>| LatencyStatus {
                buckets_ns: map.iter().map(|(ns, n)| (*ns, *n)).collect(),
                sum_ns: 0.0,
            };
            let found = since(&status(&before), &status(&now)).expect("nothing went back");
            prop_assert_eq!(found.buckets_ns, status(&more).buckets_ns);
        }
    }
}
