//! The control thread's side of the switch: the port table, and how a change to it reaches the
//! workers.
//!
//! A change is: build a new [`Snapshot`], send it to every worker with the streams it gains and
//! loses, wait until each has passed a quiescent point, and only then free what was replaced.
//! Ports that a change does not name keep their rings and lose no frame.

mod admin;
mod ageing;
mod ahead;
mod announce;
mod attachment;
mod balance;
mod batch;
mod bridges;
pub(crate) mod caller;
mod change;
mod counts;
mod direct;
mod flows;
mod groups;
mod health;
mod kept;
mod leases;
mod loops;
mod mac_limit;
mod measured;
mod mirrors;
mod moves;
mod moving;
mod multicast;
mod nic_takeover;
pub(crate) mod numa;
mod options;
mod packets;
mod pinning;
mod placement;
mod planner;
mod ports;
mod probes;
mod report;
mod slo;
mod stall;
mod statics;
mod tables;
mod taps;
#[cfg(test)]
mod testing;
mod watch;
mod worker;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use ageing::Ageing;
pub(crate) use ahead::Place;
pub(crate) use attachment::Attachment;
use attachment::Calls;
pub use balance::BalanceOptions;
pub use bridges::PortBridges;
use change::WorkerChange;
use crosspoint_engine::MAX_PORTS;
use crosspoint_engine::bridge::fdb::Fdb;
use crosspoint_engine::bridge::probe::Probes;
use crosspoint_engine::bridge::several::DEFAULT_BRIDGE;
use crosspoint_engine::bridge::storm::StormControl;
use crosspoint_engine::bridge::storm::StormLimits;
use crosspoint_engine::egress::uplink::UplinkShare;
use crosspoint_engine::observe::sample::Sampler;
use crosspoint_engine::observe::tap::Tap;
use crosspoint_engine::snapshot::Egress;
use crosspoint_engine::snapshot::PortSnapshot;
use crosspoint_engine::snapshot::Snapshot;
use crosspoint_engine::stages::meter::{Meter, RateLimits};
use crosspoint_engine::worker::Idle;
use crosspoint_engine::worker::Shared;
use crosspoint_engine::worker::WorkerLink;
use crosspoint_frame::{Clock, tsc};
use crosspoint_memory::{GuestMemory, lost_mappings};
use crosspoint_model::status::{ConfigStatus, DeviceStatus, RemovedStatus};
use crosspoint_packet::FlowHasher;
use crosspoint_vring::{InflightRegion, RingFault};
use crosspoint_xsk::{DirectStatus, PacketMemory, XskSocket, XskTx};
pub use direct::Uplink;
pub(crate) use flows::ZoneNames;
pub use groups::ConnectionFilter;
use kept::Kept;
use measured::Measured;
pub use moving::MoveError;
pub(crate) use nic_takeover::{SuspendedNics, TakenSocket};
pub use options::{DataplaneOptions, NewStream, PortChange, PortOptions, PortState};
pub use ports::PortSettings;
pub use statics::{FdbError, Flush};
pub(crate) use tables::{Counters, LearnedTable};
use watch::Watch;
pub use worker::WorkerError;

/// Reason given when a port is quarantined because one of its calls blocked.
const STUCK_CALL: &str =
    "its front end made a call descriptor block, and a worker had to be freed from it";

/// A stream's worker, and what wakes that worker for it.
struct Placed {
    worker: usize,
    kick: Option<OwnedFd>,
    /// Whether something wakes the worker for this stream; without it, the worker polls the stream periodically.
    has_wakeup: bool,
    socket: Option<Arc<XskSocket>>,
    /// Status of the guest's own NIC queue, if it has one.
    direct: Option<Arc<DirectStatus>>,
    /// The preferred memory node.
    node: Option<u32>,
    measured: Measured,
}

struct Port {
    view: PortSnapshot,
    /// Destination of its frames while it is not disabled; `view` has what workers see.
    egress: Egress,
    options: PortOptions,
    state: PortState,
    detail: String,
    /// When `state` last changed.
    since: Instant,
    device: Option<DeviceStatus>,
    properties: BTreeMap<String, String>,
    streams: BTreeMap<u16, Placed>,
    /// Streams that no worker polls, because the port is disabled.
    parked: BTreeMap<u16, admin::Parked>,
    objectives: Option<slo::Objectives>,
    memory: Option<Arc<GuestMemory>>,
    inflight: Option<Arc<InflightRegion>>,
    /// Transmit halves that no worker needs, when there are more queues than workers.
    spare: Vec<XskTx>,
    /// What it has of its predecessor's NIC queues.
    taken: nic_takeover::TakenNic,
    /// The memory node of an uplink's NIC.
    node: Option<u32>,
    calls: Calls,
    before: kept::Before,
    /// Set while the port is blocked because of a loop.
    blocked: Option<probes::Blocked>,
    /// Refusals of its addresses.
    refusals: mac_limit::Refusals,
}

struct State {
    ports: Vec<Option<Port>>,
    view: Arc<Snapshot>,
    /// How many snapshots there have been.
    published: u64,
    ageing: Ageing,
    moves: moves::Reported,
    loops: loops::Loops,
    probing: probes::Probing,
    /// The number of lost mappings when the ports' memories were last checked.
    lost_mappings: u64,
    /// When the cost of calls was last reviewed.
    calls_reviewed: Instant,
    balance: balance::State,
    taps: Vec<Arc<Tap>>,
    mirrors: mirrors::Mirrors,
    sampler: Option<Arc<Sampler>>,
    statics: statics::Statics,
    bridges: bridges::Bridges,
    snooping: multicast::Snooping,
    leases: leases::Leases,
    /// Whether requests for bound addresses go to their ports alone.
    suppresses: bool,
    groups: groups::Groups,
    /// Counts of removed ports.
    removed: RemovedStatus,
    /// Counts of ports that are being reopened, by name.
    kept: BTreeMap<String, kept::Kept>,
    /// Kept only for the status.
    config: ConfigStatus,
    /// Changes that are to reach the workers together.
    batch: Option<batch::Batch>,
    /// What workers gave up in the last batch before they rested; their descriptors are still registered.
    released: Vec<Placed>,
    /// The workers as candidates for rings that will start together.
    ahead: Option<Vec<placement::Candidate>>,
}

/// The switch, as the control threads see it.
pub struct Dataplane {
    options: DataplaneOptions,
    clock: Clock,
    shared: Arc<Shared>,
    links: Vec<Arc<WorkerLink>>,
    /// The memory node of each worker's core.
    nodes: Vec<Option<u32>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    watch: Watch,
    /// Packet memory for NIC queues, by worker.
    memories: Vec<Mutex<PacketMemory>>,
    state: Mutex<State>,
    /// The default bridge's.
    fdb: Arc<Fdb>,
    probes: Arc<Probes>,
}

impl Dataplane {
    /// Starts the workers, with no ports.
    pub fn start(options: DataplaneOptions) -> Result<Arc<Dataplane>, WorkerError> {
        let clock = Clock::calibrate();
        let mut seed = [0u64; 3];
        for word in &mut seed {
            *word = placement::random_word();
        }
        let [a, b, flows] = seed;
        let fdb = Arc::new(Fdb::new(options.fdb_capacity, [a, b]));
        let fdb_damping = options.fdb_damping;
        fdb.set_damping(fdb_damping);
        let flows = FlowHasher::new(flows);
        let view = Arc::new(Snapshot::new(
            Box::new([]),
            fdb.clone(),
            flows,
            Box::new([]),
        ));
        let idle = match options.sleep_after {
            // Another process's workers still run on these cores.
            _ if crate::handover::is_preparing() => Idle::SleepAfter(0),
            None => Idle::Spin,
            Some(time) => Idle::SleepAfter(clock.cycles(time)),
        };
        let shared = worker::shared(&clock);
        let (links, threads, ids) = worker::spawn_all(&options.cores, &shared, &view, idle)?;
        let watch = Watch::start(&options.cores, &links, &ids);
        let watch = watch.map_err(|why| WorkerError::Start { worker: 0, why })?;
        let ageing = Ageing::new(options.fdb_ageing);
        let memories = packets::memories(&options.cores, options.nic_queues);
        let nodes = options.cores.iter().map(|core| numa::of_core(*core));
        let nodes = nodes.collect();
        let balance = balance::State::new(&links, &options.balance);
        Ok(Arc::new(Dataplane {
            options,
            clock,
            shared,
            links,
            nodes,
            threads: Mutex::new(threads),
            watch,
            memories,
            state: Mutex::new(State {
                ports: Vec::new(),
                view,
                published: 0,
                ageing,
                moves: moves::Reported::default(),
                loops: loops::Loops::default(),
                probing: probes::Probing::default(),
                lost_mappings: 0,
                calls_reviewed: Instant::now(),
                balance,
                taps: Vec::new(),
                mirrors: mirrors::Mirrors::default(),
                sampler: None,
                statics: statics::Statics::default(),
                bridges: bridges::Bridges::new(fdb_damping),
                snooping: multicast::Snooping::default(),
                leases: leases::Leases::default(),
                suppresses: false,
                groups: groups::Groups::default(),
                removed: RemovedStatus::default(),
                kept: BTreeMap::new(),
                batch: None,
                released: Vec::new(),
                ahead: None,
                config: ConfigStatus {
                    last_reload_success_timestamp_s: seconds_since_1970(),
                    ..ConfigStatus::default()
                },
            }),
            fdb,
            probes: Arc::new(Probes::default()),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The daemon aborts on panic, so a poisoned lock is only ever seen by tests.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of workers.
    pub fn workers(&self) -> usize {
        self.links.len()
    }

    /// The limits in effect; `None` for no limits.
    fn storm_control(&self, limits: StormLimits) -> Option<Arc<StormControl>> {
        let control = || Arc::new(StormControl::new(limits, self.clock.hz(), tsc()));
        (!limits.is_unlimited()).then(control)
    }

    /// The meters of what a guest sends and of what is sent to it, each with a full bucket.
    fn meters(&self, rates: RateLimits) -> (Option<Arc<Meter>>, Option<Arc<Meter>>) {
        let meter = |limit| Meter::new(limit, self.clock.hz(), tsc()).map(Arc::new);
        (meter(rates.out), meter(rates.in_))
    }

    /// Adds a port, in state down. An out-of-range worker is ignored. Returns `None` when there are [`MAX_PORTS`]
    /// already.
    pub fn add_port(&self, mut options: PortOptions) -> Option<u16> {
        options.worker = options.worker.filter(|worker| *worker < self.workers());
        let mut state = self.lock();
        let number = match state.ports.iter().position(Option::is_none) {
            Some(free) => free,
            None if state.ports.len() < MAX_PORTS => {
                state.ports.push(None);
                state.ports.len() - 1
            }
            None => return None,
        };
        let kept = state.kept.remove(&options.name);
        // Besides those of the workers, a set that no worker writes: for counts of a predecessor.
        let size = (self.links.len() + 1, options.queues);
        let (counters, quota, before) = Kept::resume(kept, size, options.mac_limit);
        let (meter_out, meter_in) = self.meters(options.rates);
        let mut view = PortSnapshot {
            name: options.name.as_str().into(),
            bridge: DEFAULT_BRIDGE,
            tags: None,
            vlan: Arc::new(options.vlan.clone()),
            egress: admin::shown_egress(&Egress::Down, options.disabled),
            counters,
            quota,
            joins: options.joins,
            weight: options.weight.max(1),
            storm: self.storm_control(options.storm),
            meter_out,
            meter_in,
            uplink_share: (options.kind == "xdp").then(|| Arc::new(UplinkShare::new(&self.clock))),
            sources: None,
            groups: state.groups.policy(&options.name),
            is_server: options.dhcp_server,
            is_isolated: options.isolated,
            is_uplink: options.kind == "xdp",
            control: options.forward_control,
        };
        state.bridges.place(&mut view, &options.bridges);
        state.ports[number] = Some(Port {
            view,
            egress: Egress::Down,
            options,
            state: PortState::Down,
            detail: "nothing is attached yet".to_owned(),
            since: Instant::now(),
            device: None,
            properties: BTreeMap::new(),
            streams: BTreeMap::new(),
            parked: BTreeMap::new(),
            objectives: None,
            memory: None,
            inflight: None,
            spare: Vec::new(),
            taken: nic_takeover::TakenNic::default(),
            node: None,
            calls: Calls::new(self.clock.hz()),
            before,
            blocked: None,
            refusals: mac_limit::Refusals::new(),
        });
        if let Some(Some(port)) = state.ports.get_mut(number) {
            port.set_mac_limit_action(port.options.mac_limit_action);
            port.view.sources = port.guard(self, number as u16);
        }
        let State { bridges, ports, .. } = &mut *state;
        bridges.note_tags(ports);
        drop(self.publish(&mut state, Vec::new()));
        self.forget_forbidden(&state);
        Some(number as u16)
    }

    /// Periodic work: ageing, quarantine of guests whose rings the workers found broken, and balancing. Called about
    /// ten times a second.
    pub fn housekeep(&self, uptime: Duration) {
        // First, because a ring full of zeroes also breaks a rule.
        self.quarantine_lost_memories();
        self.take_faults(&mut self.lock(), None);
        self.take_stuck(&mut self.lock(), None);
        self.quarantine_over_limit(&mut self.lock());
        self.review_calls();
        self.balance();
        self.note_objectives();
        for (_, fdb) in self.fdbs(&self.lock()) {
            fdb.set_time_s(uptime.as_secs());
        }
        self.sweep_connections(uptime);
        let mut state = self.lock();
        self.report_moves(&mut state);
        Self::report_loops(&mut state, Instant::now());
        self.probe_loops(&mut state, Instant::now());
        self.snoop(&mut state, Instant::now());
        self.note_leases(&mut state, Instant::now());
        self.end_lost_directs(&mut state);
        let Some(ticks) = state.ageing.advance(uptime) else {
            return;
        };
        self.shared.tick.store(ticks as u8, Ordering::Relaxed);
        self.put_statics(&state);
        let limit = state.ageing.ticks_max();
        let view = state.view.clone();
        let quota = |port| view.port(port).map(|p| &*p.quota);
        for (_, fdb) in self.fdbs(&state) {
            fdb.sweep(ticks as u8, quota, |_, age| u64::from(age) > limit);
            fdb.forget_old_moves();
        }
    }

    /// Quarantines the ports whose guest memory was truncated.
    fn quarantine_lost_memories(&self) {
        let lost = lost_mappings();
        let mut state = self.lock();
        if std::mem::replace(&mut state.lost_mappings, lost) == lost {
            return;
        }
        let is_lost = |port: &Option<Port>| {
            port.as_ref().is_some_and(|port| {
                let (memory, inflight) = (&port.memory, &port.inflight);
                memory.as_ref().is_some_and(|memory| memory.is_lost())
                    || inflight.as_ref().is_some_and(|region| region.is_lost())
            })
        };
        let ports: Vec<usize> = (0..state.ports.len())
            .filter(|number| is_lost(&state.ports[*number]))
            .collect();
        drop(state);
        for number in ports {
            self.quarantine(number as u16, &RingFault::MemoryLost.to_string());
        }
    }

    /// Quarantines port `number` if it is connected or up.
    fn quarantine(&self, number: u16, why: &str) {
        self.quarantine_locked(&mut self.lock(), number, why);
    }

    fn quarantine_locked(&self, state: &mut State, number: u16, why: &str) {
        let Some(Some(port)) = state.ports.get(usize::from(number)) else {
            return;
        };
        if !matches!(port.state, PortState::Up | PortState::Connected) {
            return;
        }
        tracing::warn!(port = %port.view.name, "quarantined until its guest resets the device, or its front end reconnects: {why}");
        let change = PortChange {
            egress: Some(Egress::Quarantined),
            remove: port.queues_with_streams(),
            state: Some((PortState::Quarantined, why.to_owned())),
            ..PortChange::default()
        };
        // Dropping the result under the lock is safe: the port's own thread also holds memory, rings and descriptors.
        let _ = self.change_locked(state, number, change);
    }

    /// Quarantines the ports whose calls have blocked, except `gone`. No worker makes their calls again, even after a
    /// reconnect.
    fn take_stuck(&self, state: &mut State, gone: Option<u16>) {
        while let Some(number) = self.watch.next_stuck() {
            if gone == Some(number) {
                continue;
            }
            if let Some(Some(port)) = state.ports.get(usize::from(number)) {
                port.calls.budget.leave_to_caller();
            }
            self.quarantine_locked(state, number, STUCK_CALL);
        }
    }

    /// Quarantines the ports whose rings workers have found broken, except `gone`: the guest that caused that fault has
    /// left.
    fn take_faults(&self, state: &mut State, gone: Option<u16>) {
        while let Some((port, fault)) = self.shared.faults.pop() {
            if gone != Some(port) {
                self.quarantine_locked(state, port, &fault.to_string());
            }
        }
    }

    /// Quarantines the ports whose rings workers have found broken so far, and those whose calls have blocked.
    pub(crate) fn settle_faults(&self) {
        let mut state = self.lock();
        self.take_faults(&mut state, None);
        self.take_stuck(&mut state, None);
        self.quarantine_over_limit(&mut state);
    }

    /// The state of port `number`.
    pub fn port_state(&self, number: u16) -> PortState {
        let state = self.lock();
        match state.ports.get(usize::from(number)) {
            Some(Some(port)) => port.state,
            _ => PortState::Down,
        }
    }

    /// The name of a port; empty if there is none.
    pub(crate) fn port_name(&self, number: u16) -> String {
        let state = self.lock();
        let port = state
            .ports
            .get(usize::from(number))
            .and_then(Option::as_ref);
        port.map_or_else(String::new, |port| port.options.name.clone())
    }

    /// Stops the workers and waits for their threads.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for link in &self.links {
            link.waker.wake();
        }
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        for thread in threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Dataplane {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The current time in seconds since 1970, as Prometheus expects it.
pub(crate) fn seconds_since_1970() -> f64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.map_or(0.0, |since| since.as_secs_f64())
}
