//! The families of the switch, its ports and its workers, built from one status.

use crosspoint_model::health::Health;
use crosspoint_model::status::{
    IpfixStatus, MirrorStatus, ObjectiveStatus, PortConnections, PortStatus, SflowStatus,
    ShownState, SloStatus, Status, WorkerStatus,
};
use prometheus::proto::MetricFamily;

use super::buckets::{GAP_BOUNDS_NS, cumulative, sum_seconds};
use super::counted::{CYCLES, Counted, PORT_EVENTS, WORKER_EVENTS, WORKER_MAXIMA_AND_MOVES};
use super::families::{self as f, Family, Samples};
use super::server;
use crate::api;
use crate::handover;
use crate::service::{log, sandbox};

/// All families; some may have no samples.
pub(super) fn collect(
    status: &Status,
    sflow: &SflowStatus,
    ipfix: &IpfixStatus,
) -> Vec<MetricFamily> {
    let mut all = switch(status).to_vec();
    all.extend(ports(&status.ports));
    all.extend(properties(&status.ports));
    all.extend(port_events(&status.ports));
    all.extend(objectives(&status.ports));
    all.extend(workers(&status.workers));
    all.push(gaps(&status.workers));
    all.extend(worker_events(&status.workers));
    all.extend(connections(status));
    all.push(mirrors(&status.mirrors));
    all.extend(self::sflow(sflow));
    all.extend(self::ipfix(ipfix));
    all.extend(process());
    all
}

/// Connections of ports with security groups, and the table of all.
fn connections(status: &Status) -> [MetricFamily; 9] {
    type Read = fn(&PortConnections) -> u64;
    let of_ports: [(Family, Read); 7] = [
        (f::CONNECTIONS, |of| of.connections.into()),
        (f::CONNECTIONS_HALF_OPEN, |of| of.half_open.into()),
        (f::CONNECTIONS_MAX, |of| of.max.into()),
        (f::CONNECTIONS_CREATED, |of| of.created),
        (f::CONNECTIONS_REFUSED, |of| of.refused),
        (f::CONNECTIONS_RATE_MAX, |of| of.rate.into()),
        (f::CONNECTIONS_RATE_REFUSED, |of| of.rate_refused),
    ];
    let [now, half_open, max, created, refused, rate, too_fast] = of_ports.map(|(family, read)| {
        let mut samples = Samples::of(family);
        for port in &status.ports {
            if let Some(of) = &port.connections {
                samples.add(&[&port.name], read(of));
            }
        }
        samples
    });
    let mut capacity = Samples::of(f::CONNECTIONS_CAPACITY);
    let mut used = Samples::of(f::CONNECTIONS_USED);
    if let Some(table) = &status.connections {
        capacity.add(&[], table.capacity);
        used.add(&[], table.used);
    }
    [
        now, half_open, max, created, refused, rate, too_fast, capacity, used,
    ]
    .map(Samples::finish)
}

fn mirrors(mirrors: &[MirrorStatus]) -> MetricFamily {
    let mut copies = Samples::of(f::MIRROR_COPIES);
    for mirror in mirrors {
        copies.add(&[&mirror.name, "delivered"], mirror.copied);
        copies.add(&[&mirror.name, "missed"], mirror.missed);
    }
    copies.finish()
}

/// The export to an sFlow collector.
fn sflow(status: &SflowStatus) -> [MetricFamily; 4] {
    let one = |family, value: u64| {
        let mut samples = Samples::of(family);
        samples.add(&[], value);
        samples
    };
    let mut samples = Samples::of(f::SFLOW_SAMPLES);
    samples.add(&["flow"], status.flow_samples);
    samples.add(&["counters"], status.counter_samples);
    [
        one(f::SFLOW_DATAGRAMS, status.datagrams),
        samples,
        one(f::SFLOW_MISSED, status.samples_missed),
        one(f::SFLOW_ERRORS, status.send_errors),
    ]
    .map(Samples::finish)
}

/// The export to a collector of IPFIX.
fn ipfix(status: &IpfixStatus) -> [MetricFamily; 5] {
    let one = |family, value: u64| {
        let mut samples = Samples::of(family);
        samples.add(&[], value);
        samples
    };
    let mut records = Samples::of(f::IPFIX_RECORDS);
    records.add(&["begun"], status.begun);
    records.add(&["updated"], status.updated);
    records.add(&["ended"], status.ended);
    records.add(&["denied"], status.denied);
    let mut lost = Samples::of(f::IPFIX_LOST);
    lost.add(&["missed"], status.records_missed);
    lost.add(&["unsent"], status.records_unsent);
    [
        one(f::IPFIX_MESSAGES, status.messages),
        records,
        lost,
        one(f::IPFIX_DENIED_UNSENT, status.denied_unsent),
        one(f::IPFIX_ERRORS, status.send_errors),
    ]
    .map(Samples::finish)
}

/// Counters of this process: lost log lines, refused system calls, connections closed for lack of places, and what its
/// supervisor has counted.
pub(super) fn process() -> [MetricFamily; 5] {
    let mut lost = Samples::of(f::LOG_LOST);
    lost.add(&[], log::lost_lines());
    let mut calls = Samples::of(f::CALLS_REFUSED);
    for (threads, count) in ["workers", "others"].into_iter().zip(sandbox::counts()) {
        calls.add(&[threads], count);
    }
    let mut samples = Samples::of(f::CLIENTS_CLOSED);
    let servers = [("metrics", &server::CLOSED), ("control", &api::CLOSED)];
    for (name, closed) in servers {
        let [gave_way, refused] = closed.counts();
        samples.add(&[name, "gave_way"], gave_way);
        samples.add(&[name, "refused"], refused);
    }
    let (upgraded, crashed) = handover::counts().unwrap_or_default();
    let one = |family, count: u64| {
        let mut samples = Samples::of(family);
        samples.add(&[], count);
        samples
    };
    let [upgrades, crashes] = [one(f::UPGRADES, upgraded), one(f::CRASHES, crashed)];
    [lost, calls, upgrades, crashes, samples].map(Samples::finish)
}

fn switch(status: &Status) -> [MetricFamily; 9] {
    let mut build = Samples::of(f::BUILD_INFO);
    build.add(&[env!("CARGO_PKG_VERSION")], true);
    let one = |family, value: f64| {
        let mut samples = Samples::of(family);
        samples.add(&[], value);
        samples
    };
    let (fdb, config) = (status.fdb, status.config);
    let successful = f64::from(u8::from(config.last_reload_successful));
    [
        build,
        one(f::READY, f64::from(u8::from(Health::of(status).ready))),
        one(f::TSC_HERTZ, status.tsc_hz),
        one(f::CONFIG_SUCCESSFUL, successful),
        one(f::CONFIG_TIMESTAMP, config.last_reload_success_timestamp_s),
        one(f::CONFIG_PROBLEMS, config.problems as f64),
        one(f::FDB_ENTRIES, fdb.entries as f64),
        one(f::FDB_CAPACITY, fdb.capacity as f64),
        one(f::FDB_AGEING, fdb.ageing_s as f64),
    ]
    .map(Samples::finish)
}

fn ports(ports: &[PortStatus]) -> [MetricFamily; 4] {
    let (mut up, mut state) = (Samples::of(f::PORT_UP), Samples::of(f::PORT_STATE));
    let mut required = Samples::of(f::PORT_REQUIRED);
    let mut addresses = Samples::of(f::PORT_ADDRESSES);
    for port in ports {
        up.add(&[&port.name], port.state == ShownState::Up);
        for one in ShownState::ALL {
            state.add(&[&port.name, one.as_str()], port.state == one);
        }
        required.add(&[&port.name], port.required);
        addresses.add(&[&port.name], u64::from(port.addresses));
    }
    [up, state, required, addresses].map(Samples::finish)
}

/// What ports are attached to, and the features negotiated with guests.
fn properties(ports: &[PortStatus]) -> [MetricFamily; 2] {
    let (mut info, mut feature) = (Samples::of(f::PORT_INFO), Samples::of(f::PORT_FEATURE));
    for port in ports {
        let property = |name: &str| port.properties.get(name).map_or("", String::as_str);
        let (xdp, copy) = (property("xdp"), property("copy"));
        let (attachment, role, rings) = match &port.device {
            Some(device) => (&*device.socket, &*device.role, &*device.ring_type),
            None => (property("interface"), "", ""),
        };
        let labels = [&port.name, &port.kind, attachment, role, rings, xdp, copy];
        info.add(&labels, true);
        // The names come from the switch's own list.
        for name in port.device.iter().flat_map(|device| &device.features) {
            feature.add(&[&port.name, name], true);
        }
    }
    [info, feature].map(Samples::finish)
}

/// Counters of events of ports.
fn port_events(ports: &[PortStatus]) -> Vec<MetricFamily> {
    let mut connections = Samples::of(f::PORT_CONNECTIONS);
    let mut looping = Samples::of(f::PORT_LOOPING);
    for port in ports {
        if let Some(device) = &port.device {
            connections.add(&[&port.name], device.connections);
        }
        looping.add(&[&port.name], u64::from(port.looping));
    }
    let mut all = vec![connections.finish()];
    all.extend(counted(PORT_EVENTS, ports, |port| port.name.clone()));
    all.push(looping.finish());
    all
}

/// The families of a list, each with a sample of each status, whose only label is its name.
fn counted<S>(
    list: &[Counted<S>],
    all: &[S],
    name: fn(&S) -> String,
) -> impl Iterator<Item = MetricFamily> {
    list.iter().map(move |Counted { family, read }| {
        let mut samples = Samples::of(*family);
        for one in all {
            samples.add(&[&name(one)], read(one));
        }
        samples.finish()
    })
}

/// Service level objectives.
fn objectives(ports: &[PortStatus]) -> [MetricFamily; 5] {
    type Read = fn(&SloStatus) -> Option<ObjectiveStatus>;
    let kinds: [(&str, Read, Family, Family); 2] = [
        (
            "completion_p50",
            |s| s.completion_p50,
            f::SLO_P50_OBJECTIVE,
            f::SLO_P50,
        ),
        (
            "completion_p99",
            |s| s.completion_p99,
            f::SLO_P99_OBJECTIVE,
            f::SLO_P99,
        ),
    ];
    let mut met = Samples::of(f::SLO_MET);
    let [p50, p99] = kinds.map(|(name, read, objective, measured)| {
        let (mut objective, mut measured) = (Samples::of(objective), Samples::of(measured));
        for port in ports {
            if let Some(one) = port.slo.as_ref().and_then(read) {
                let seconds = |ns: u64| ns as f64 / 1e9;
                objective.add(&[&port.name], seconds(one.objective_ns));
                measured.add(&[&port.name], one.measured_ns.map_or(f64::NAN, seconds));
                met.add(&[&port.name, name], one.is_met().unwrap_or(true));
            }
        }
        [objective, measured].map(Samples::finish)
    });
    let [[p50_objective, p50], [p99_objective, p99]] = [p50, p99];
    [met.finish(), p50_objective, p50, p99_objective, p99]
}

/// The label of a worker.
fn number(worker: &WorkerStatus) -> String {
    worker.worker.to_string()
}

/// How workers spend their time.
fn workers(workers: &[WorkerStatus]) -> Vec<MetricFamily> {
    let (mut info, mut cycles) = (Samples::of(f::WORKER_INFO), Samples::of(f::WORKER_CYCLES));
    let mut iterations = Samples::of(f::WORKER_ITERATIONS);
    for worker in workers {
        let name = number(worker);
        let node = worker.node.map_or(String::new(), |node| node.to_string());
        info.add(&[&name, &worker.core.to_string(), &node], true);
        for (state, read) in CYCLES {
            cycles.add(&[&name, state], read(worker));
        }
        iterations.add(&[&name], worker.iterations);
    }
    let mut all = [info, cycles, iterations].map(Samples::finish).to_vec();
    all.extend(counted(WORKER_EVENTS, workers, number));
    all
}

fn gaps(workers: &[WorkerStatus]) -> MetricFamily {
    let mut samples = Samples::of(f::WORKER_GAP);
    for worker in workers {
        let (counts, count) = cumulative(&worker.turns.buckets_ns, &GAP_BOUNDS_NS);
        let bounds = GAP_BOUNDS_NS.iter().map(|ns| *ns as f64 / 1e9);
        let all = (count, sum_seconds(&worker.turns));
        samples.add_histogram(&[&number(worker)], bounds.zip(counts), all);
    }
    samples.finish()
}

/// Further counters of workers.
fn worker_events(workers: &[WorkerStatus]) -> Vec<MetricFamily> {
    type Read = fn(&WorkerStatus) -> u64;
    let values: [(Family, Read); 4] = [
        (f::WORKER_STALLS, |w| w.stalls),
        (f::WORKER_STALLED, |w| w.stalled.into()),
        (f::WORKER_PREEMPTED, |w| w.involuntary_switches),
        (f::WORKER_MISPLACED, |w| w.misplaced.into()),
    ];
    let values = values.map(|(family, read)| Counted { family, read });
    counted(WORKER_MAXIMA_AND_MOVES, workers, number)
        .chain(counted(&values, workers, number))
        .collect()
}
