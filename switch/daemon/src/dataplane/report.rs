//! Builds the status for metrics and `show`.
//!
//! A change of ports waits for the port table's lock, and workers never wait. So the lock is held only while the list
//! of ports and streams is copied; counters and threads are read after that, while workers go on counting.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crosspoint_config::control_names;
use crosspoint_engine::bridge::vlan::VlanPolicy;
use crosspoint_engine::observe::Latencies;
use crosspoint_engine::observe::Turns;
use crosspoint_engine::observe::counters::PortCounters;
use crosspoint_engine::snapshot::Egress;
use crosspoint_engine::stages::meter::RateLimit;
use crosspoint_model::status::{
    BridgeStatus, ConfigStatus, ConnectionsStatus, FdbEntry, FdbStatus, LatencyStatus, LimitStatus,
    LoopProtectStatus, MirrorStatus, Origin, PortStatus, QueueStatus, RateStatus, RemovedStatus,
    ShownState, Status, StormStatus, StreamStatus, VlanStatus, WindowStatus, WorkerStatus,
    XdpStatus,
};
use crosspoint_packet::Mac;

use super::balance::{Loads, Shares};
use super::counts::{drops, port_counts, queue_counts, sizes, worker_counts, xdp_status};
use super::slo::Window;
use super::{Dataplane, Placed, Port, PortState, State, pinning};

/// A port, as seen under the lock.
struct SeenPort {
    /// Its status, without queues and objectives.
    status: PortStatus,
    counters: Arc<PortCounters>,
    queues: Vec<SeenQueue>,
    objectives: Option<Window>,
}

/// A queue, as seen under the lock.
struct SeenQueue {
    worker: Option<usize>,
    /// Read under the lock: a socket that is still referenced would block the next one on its queue.
    xdp: Option<XdpStatus>,
    ring_entries: Option<u16>,
    buffers: Option<usize>,
}

/// A worker, as seen under the lock.
struct SeenWorker {
    shares: Shares,
    moves: u64,
    put_off: u64,
    streams: Vec<StreamStatus>,
}

/// All that is seen under the lock.
struct Seen {
    ports: Vec<SeenPort>,
    workers: Vec<SeenWorker>,
    window_cycles: u64,
    config: ConfigStatus,
    removed: RemovedStatus,
    mirrors: Vec<MirrorStatus>,
    bridges: Vec<BridgeStatus>,
    connections: Option<ConnectionsStatus>,
    ageing: Duration,
}

impl Dataplane {
    /// The current status. Reads the workers' counters while they go on counting.
    pub fn status(&self) -> Status {
        let seen = self.see(&self.lock());
        let workers = seen.workers.into_iter().enumerate();
        Status {
            ports: seen
                .ports
                .into_iter()
                .map(|port| self.port_status(port))
                .collect(),
            workers: workers
                .map(|(number, worker)| self.worker_status(number, worker, seen.window_cycles))
                .collect(),
            removed: seen.removed,
            fdb: FdbStatus {
                entries: self.fdb.entries(),
                capacity: self.fdb.capacity(),
                ageing_s: seen.ageing.as_secs(),
            },
            config: seen.config,
            tsc_hz: self.clock.hz(),
            mirrors: seen.mirrors,
            bridges: seen.bridges,
            connections: seen.connections,
        }
    }

    /// Sets the configuration's part of the status. It is kept only for the status.
    pub fn set_config_status(&self, config: ConfigStatus) {
        self.lock().config = config;
    }

    /// The configuration's part of the status.
    pub fn config_status(&self) -> ConfigStatus {
        self.lock().config
    }

    /// All learned addresses.
    pub fn fdb(&self) -> Vec<FdbEntry> {
        let (view, tick, tick_length) = self.picture();
        let (by_hand, fdbs) = {
            let state = self.lock();
            let named = self.fdbs(&state).into_iter();
            let named =
                named.map(|(number, fdb)| (number, state.bridges.name(number).cloned(), fdb));
            (Self::statics_by_hand(&state), Vec::from_iter(named))
        };
        let name = |number: u16| view.port(number).map_or("?".into(), |p| p.name.to_string());
        let origin = |bridge, mac, vlan, port| {
            let bindings = view.bindings_of(bridge)?;
            let is_static = bindings.static_port(mac, vlan) == Some(port);
            is_static.then(|| match by_hand.contains(&(bridge, mac, vlan)) {
                true => Origin::Command,
                false => Origin::File,
            })
        };
        let mut entries = Vec::new();
        for (number, bridge, fdb) in fdbs {
            entries.extend(fdb.dump(tick).into_iter().map(|(mac, vlan, port, age)| {
                let origin = origin(number, mac, vlan, port);
                FdbEntry {
                    mac: mac.to_string(),
                    vlan,
                    bridge: bridge.as_ref().map(|name| name.to_string()),
                    port: name(port),
                    age_s: u64::from(age) * tick_length.as_secs(),
                    is_static: origin.is_some(),
                    origin,
                }
            }));
        }
        let place = |entry: &FdbEntry| (entry.bridge.clone(), entry.vlan, entry.mac.clone());
        entries.sort_by_cached_key(place);
        entries
    }

    fn see(&self, state: &State) -> Seen {
        let loads = self.shown_loads(state);
        let mut workers: Vec<SeenWorker> = (0..self.links.len())
            .map(|worker| SeenWorker {
                shares: loads.workers[worker],
                moves: state.balance.moves[worker],
                put_off: state.balance.put_off[worker],
                streams: Vec::new(),
            })
            .collect();
        for port in state.ports.iter().flatten() {
            for (queue, placed) in &port.streams {
                let stream = stream_status(port, *queue, placed, &loads);
                workers[placed.worker].streams.push(stream);
            }
        }
        let mut leases = state.leases.of_ports(Instant::now());
        let ports = (0..).zip(&state.ports);
        let ports = ports.filter_map(|(number, port)| {
            let port = port.as_ref()?;
            let mut seen = see_port(port);
            seen.status.leases = leases.remove(&number).unwrap_or_default();
            seen.status.looping_with = looping_with(state, number);
            seen.status.looping = state.is_looping(number);
            seen.status.groups = state.groups.names_of(&port.options.name);
            seen.status.connections = state.groups.connections_of(&port.options.name);
            if port.options.disabled {
                seen.status.state = ShownState::Disabled;
                seen.status.detail = port.why_disabled();
            } else if let (Some(why), PortState::Up) = (port.why_blocked(), port.state) {
                seen.status.state = ShownState::Blocked;
                seen.status.detail = why;
                seen.status.blocked_with = port.blocked_with().map(str::to_owned);
            } else if let (Some(mirror), PortState::Up) =
                (state.mirrors.owner(&port.options.name), port.state)
            {
                seen.status.detail = format!("it gets the copies of mirror {mirror} only");
            }
            Some(seen)
        });
        Seen {
            ports: ports.collect(),
            workers,
            window_cycles: loads.cycles,
            config: state.config,
            removed: state.gone(),
            mirrors: state.mirrors.status(&state.ports),
            bridges: self.bridge_status(state),
            connections: state.groups.status(),
            ageing: state.ageing.times().0,
        }
    }

    fn port_status(&self, port: SeenPort) -> PortStatus {
        let counters = &port.counters;
        let mut all = Latencies::default();
        let queue = |(number, queue)| {
            let completion = Latencies::of(counters.of_queue(number).map(|c| &c.completion));
            all.add(&completion);
            self.queue_status(counters, number, queue, &completion)
        };
        PortStatus {
            queues: port.queues.iter().enumerate().map(queue).collect(),
            slo: port
                .objectives
                .map(|window| window.status(&all, &self.clock)),
            ..port.status
        }
    }

    fn queue_status(
        &self,
        counters: &PortCounters,
        queue: usize,
        seen: &SeenQueue,
        completion: &Latencies,
    ) -> QueueStatus {
        let rx_burst_sizes = sizes(counters, queue, |c| c.rx_bursts.counts());
        QueueStatus {
            queue: queue as u16,
            worker: seen.worker,
            bursts: rx_burst_sizes.iter().sum(),
            rx_burst_sizes,
            tx_burst_sizes: sizes(counters, queue, |c| c.tx_bursts.counts()),
            receive_ring_entries: seen.ring_entries,
            receive_buffers: seen.buffers,
            drops: drops(counters, queue),
            completion: LatencyStatus {
                buckets_ns: self.in_ns(completion.buckets()),
                sum_ns: self.clock.ns(completion.sum()),
            },
            xdp: seen.xdp,
            ..queue_counts(counters, queue)
        }
    }

    /// Converts buckets of cycles to nanoseconds. If a cycle is shorter than a nanosecond, adjacent buckets may be
    /// merged.
    fn in_ns(&self, buckets: impl Iterator<Item = (u64, u64)>) -> Vec<(u64, u64)> {
        let mut all: Vec<(u64, u64)> = Vec::new();
        for (cycles, n) in buckets {
            let ns = self.clock.ns(cycles) as u64;
            match all.last_mut() {
                Some(last) if last.0 == ns => last.1 += n,
                _ => all.push((ns, n)),
            }
        }
        all
    }

    fn turns(&self, turns: &Turns, cycles: u64) -> LatencyStatus {
        LatencyStatus {
            buckets_ns: self.in_ns(turns.buckets()),
            sum_ns: self.clock.ns(cycles),
        }
    }

    fn worker_status(&self, worker: usize, seen: SeenWorker, window_cycles: u64) -> WorkerStatus {
        let counters = &self.links[worker].counters;
        let (stalled, stalls) = self.watch.stalls(worker);
        let (allowed, last_core) = self.watch.cores(worker);
        let core = self.options.cores.get(worker).copied().unwrap_or_default();
        let counted = worker_counts(counters);
        let polled_cycles = counted.busy_cycles.wrapping_add(counted.idle_cycles);
        WorkerStatus {
            worker,
            core,
            allowed_cores: allowed.to_string(),
            last_core,
            misplaced: !allowed.is_empty() && !pinning::is_pinned(&allowed, core),
            node: self.nodes[worker],
            window: WindowStatus {
                ms: (self.clock.ns(window_cycles) / 1e6) as u64,
                busy: seen.shares.busy,
                idle: seen.shares.idle,
                sleep: seen.shares.sleep,
            },
            turns: self.turns(&counters.turns, polled_cycles),
            stream_moves: seen.moves,
            stream_moves_put_off: seen.put_off,
            stalls,
            stalled,
            involuntary_switches: self.watch.involuntary_switches(worker),
            streams: seen.streams,
            ..counted
        }
    }
}

/// Names of the ports to which probes have shown a loop from this one.
fn looping_with(state: &State, number: u16) -> Vec<String> {
    let name = |number| Some(state.view.port(number)?.name.to_string());
    state.probing.others(number).filter_map(name).collect()
}

fn see_port(port: &Port) -> SeenPort {
    let quota = &port.view.quota;
    let queues = 0..port.view.counters.queues();
    SeenPort {
        status: PortStatus {
            name: port.options.name.clone(),
            kind: port.options.kind.to_owned(),
            state: port.state.shown(),
            detail: detail(port),
            vlan: port.options.vlan_text.clone(),
            vlans: vlans(&port.options.vlan),
            required: port.options.required,
            addresses: quota.used(),
            weight: port.options.weight,
            storm: StormStatus {
                broadcast: port.options.storm.broadcast,
                multicast: port.options.storm.multicast,
                unknown_unicast: port.options.storm.unknown_unicast,
            },
            dhcp_server: port.options.dhcp_server,
            isolated: port.options.isolated,
            bridge: port.options.bridges.own.clone(),
            bridges: port.options.bridges.tag_texts(),
            limit: LimitStatus {
                out: rate(port.options.rates.out),
                r#in: rate(port.options.rates.in_),
            },
            addresses_allowed: port
                .options
                .addresses
                .mac
                .iter()
                .map(Mac::to_string)
                .collect(),
            ip_allowed: port.options.addresses.ip_texts(),
            forward_control: control_names(port.options.forward_control),
            loop_protect: port.options.loop_protect.map(|protect| LoopProtectStatus {
                action: protect.action,
                block_time_s: protect.block_time.as_secs_f64(),
            }),
            properties: properties(port),
            state_for_s: port.since.elapsed().as_secs(),
            device: port
                .device
                .as_ref()
                .map(|device| port.before.device(device)),
            ..port_counts(&quota.events)
        },
        counters: port.view.counters.clone(),
        queues: queues.map(|queue| see_queue(port, queue)).collect(),
        objectives: port.objectives.as_ref().map(|all| all.window()),
    }
}

fn vlans(policy: &VlanPolicy) -> VlanStatus {
    match policy {
        VlanPolicy::Unaware | VlanPolicy::Untagged => VlanStatus::default(),
        VlanPolicy::Access(id) => VlanStatus {
            access: Some(*id),
            ..VlanStatus::default()
        },
        VlanPolicy::Trunk { native, .. } => VlanStatus {
            access: None,
            trunk: Some(
                (1..4095)
                    .filter(|id| policy.carries(*id) && policy.sends_tagged(*id))
                    .collect(),
            ),
            native: *native,
        },
    }
}

/// Why the port is in its state, and why no front end can connect, if that is so.
fn detail(port: &Port) -> String {
    let device = port.device.as_ref();
    match device.and_then(|device| device.socket_problem.as_ref()) {
        None => port.detail.clone(),
        Some(problem) if port.state == PortState::Down || port.detail.is_empty() => problem.clone(),
        Some(problem) => format!("{}; {problem}", port.detail),
    }
}

/// Properties that the port's thread or driver has set, and those derived from its descriptors.
fn properties(port: &Port) -> BTreeMap<String, String> {
    let polled = port.streams.iter().filter(|(_, placed)| !placed.has_wakeup);
    let polled: Vec<String> = polled.map(|(queue, _)| queue.to_string()).collect();
    let polled = (!polled.is_empty()).then(|| ("polled_queues", polled.join(" ")));
    let calls = port.calls.text().map(|text| ("calls", text));
    let mut properties = port.properties.clone();
    properties.extend(
        [polled, calls]
            .into_iter()
            .flatten()
            .map(|(key, value)| (key.to_owned(), value)),
    );
    properties
}

fn see_queue(port: &Port, queue: usize) -> SeenQueue {
    let placed = port.streams.get(&(queue as u16));
    let socket = placed.and_then(|placed| placed.socket.as_ref());
    let ring = match &port.egress {
        Egress::Guest(queues) => queues.get(queue),
        _ => None,
    };
    SeenQueue {
        worker: placed.map(|placed| placed.worker),
        xdp: port
            .before
            .xdp(queue as u16, socket.and_then(|socket| xdp_status(socket))),
        ring_entries: ring.map(|ring| ring.size()),
        buffers: ring.and_then(|ring| ring.offered()),
    }
}

fn stream_status(port: &Port, queue: u16, placed: &Placed, loads: &Loads) -> StreamStatus {
    let fixed = match (&placed.socket, &placed.direct, port.options.worker) {
        (.., Some(_)) => Some("pinned"),
        (Some(_), ..) => Some("nic"),
        (_, Some(_), _) => Some("direct"),
        _ => None,
    };
    StreamStatus {
        port: port.options.name.clone(),
        queue,
        share: loads.of_stream(port, queue, placed),
        fixed: fixed.map(str::to_owned),
        node: placed.node,
    }
}

fn rate(limit: RateLimit) -> RateStatus {
    RateStatus {
        bits_per_s: limit.bits_per_s,
        burst_bytes: limit.burst_bytes,
        packets_per_s: limit.packets_per_s,
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::dataplane::{PortOptions, testing};

    const WORKERS: usize = 8;

    fn add_port(dataplane: &Dataplane, number: u64) {
        let options = PortOptions {
            name: format!("guest-{number}"),
            mac_limit: 16,
            queues: 2,
            ..PortOptions::default()
        };
        let port = dataplane.add_port(options).expect("there is room");
        let state = dataplane.lock();
        let port = state.ports[usize::from(port)]
            .as_ref()
            .expect("it was added");
        for (worker, queue) in (0..WORKERS).flat_map(|w| [(w, 0), (w, 1)]) {
            let counters = port.view.counters.at(worker, queue);
            counters.rx_bursts.record(1 + worker as u32);
            counters.rx_frames.add(1 + worker as u64);
            for octave in 8..20 {
                counters.completion.record((number % 100) << octave, 1);
            }
        }
    }

    /// The shortest of many, since a machine has more to do.
    fn shortest<T>(mut what: impl FnMut() -> T) -> Duration {
        let once = |_| {
            let start = Instant::now();
            drop(what());
            start.elapsed()
        };
        (0..20).map(once).min().unwrap_or_default()
    }

    #[test]
    fn who_looks_at_a_thousand_queues_does_not_hold_up_who_changes_a_port() {
        let dataplane = testing::start(WORKERS);
        for number in 0..500 {
            add_port(&dataplane, number);
            dataplane.set_slo(
                number as u16,
                Some(crosspoint_config::Slo {
                    completion_p50: None,
                    completion_p99: Some(Duration::from_micros(20)),
                }),
            );
        }
        let status = dataplane.status();
        let queues: Vec<_> = status.ports.iter().flat_map(|port| &port.queues).collect();
        assert_eq!(queues.len(), 1000);
        assert!(queues.iter().all(|queue| {
            (queue.bursts, queue.rx_packets) == (8, 36)
                && queue.rx_burst_sizes == [1, 1, 2, 4, 0, 0, 0, 0]
        }));
        let held = shortest(|| dataplane.see(&dataplane.lock()));
        let all = shortest(|| dataplane.status());
        println!("1000 queues of {WORKERS} workers: {all:?}, with the lock held {held:?}");
        // Takes milliseconds in practice.
        assert!(held < Duration::from_millis(50), "{held:?}");
        assert!(all < Duration::from_millis(500), "{all:?}");
    }
}
