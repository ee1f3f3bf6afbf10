//! The control thread's side of the switch: the port table, and how a change to it reaches the
//! workers.
//!
//! A change is: build a new [`View`], send it to every worker with the streams it gains and
//! loses, wait until each has passed a quiescent point, and only then free what was replaced.
//! Ports that a change does not name keep their rings and lose no frame.

mod ageing;
mod announce;
mod attachment;
mod balance;
pub(crate) mod caller;
mod direct;
mod health;
mod moves;
mod moving;
pub(crate) mod numa;
mod packets;
mod placement;
mod planner;
mod ports;
mod report;
mod slo;
mod stall;
mod taps;
mod watch;
mod worker;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use crosspoint_engine::MAX_PORTS;
use crosspoint_engine::counters::PortCounters;
use crosspoint_engine::fdb::{Damping, Fdb, Quota};
use crosspoint_engine::storm::{StormControl, StormLimits};
use crosspoint_engine::stream::{Source, Stream, StreamId};
use crosspoint_engine::tap::Tap;
use crosspoint_engine::tx::NicTx;
use crosspoint_engine::view::{Egress, PortView, View};
use crosspoint_engine::vlan::VlanPolicy;
use crosspoint_engine::worker::{Idle, Shared, Update, WorkerLink};
use crosspoint_frame::{Clock, tsc};
use crosspoint_packet::{FlowHasher, Mac};
use crosspoint_vring::{GuestMemory, InflightRegion, RingFault, lost_mappings};
use crosspoint_xsk::{DirectStatus, PacketMemory, XskSocket, XskTx};

use crate::status::{ConfigStatus, DeviceStatus, RemovedStatus};
use ageing::Ageing;
pub(crate) use attachment::Attachment;
use attachment::Calls;
use balance::Measured;
pub use balance::{BalanceOptions, INTERVAL_DEFAULT};
pub use direct::Uplink;
pub use moving::MoveError;
pub use ports::PortSettings;
use watch::Watch;
pub use worker::WorkerError;

/// How long a worker may take to come round before the log says so. It is waited for all the
/// same: what it may still be using cannot be freed.
const PATIENCE: Duration = Duration::from_secs(5);
/// Why a port is quarantined whose calls block.
const STUCK_CALL: &str =
    "its front end made a call descriptor block, and a worker had to be freed from it";

/// What the fabric is made of, from the configuration.
#[derive(Clone, Debug)]
pub struct FabricOptions {
    /// One worker for each.
    pub cores: Vec<usize>,
    /// Sleep after polling in vain for so long; `None` for never.
    pub sleep_after: Option<Duration>,
    /// Entries of the forwarding database.
    pub fdb_capacity: usize,
    /// When an address that was not seen is forgotten.
    pub fdb_ageing: Duration,
    /// When an address has moved between ports too often, and so stays.
    pub fdb_damping: Damping,
    /// NIC queues that there will be: workers share packet memory among so many. More get memory of their own.
    pub nic_queues: usize,
    /// Whether streams go to other workers by measured load, and how often that is looked at.
    pub balance: BalanceOptions,
}

/// What a port is, from the configuration.
#[derive(Clone, Debug)]
pub struct PortOptions {
    /// Its name.
    pub name: String,
    /// "vhost" or "xdp".
    pub kind: &'static str,
    /// Its VLANs.
    pub vlan: VlanPolicy,
    /// The same, for people.
    pub vlan_text: String,
    /// Most addresses learned on it; 0 for no limit.
    pub mac_limit: u32,
    /// Most queues (pairs) it will have.
    pub queues: usize,
    /// Whether TCP segments that come in here are joined for guests that take large frames.
    pub joins: bool,
    /// The worker of all its streams; `None` where the switch chooses.
    pub worker: Option<usize>,
    /// Whether the switch is ready only while it is up.
    pub required: bool,
    /// Its part of a busy worker's time, beside other ports' weights; at least 1.
    pub weight: u32,
    /// Into how many copies its frames may be flooded, per second.
    pub storm: StormLimits,
    /// The only source addresses that its frames may have; none: any.
    pub addresses: Vec<Mac>,
}

/// How a port is, for `show`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PortState {
    /// Nobody is there.
    Down,
    /// A front end is there, its rings are not.
    Connected,
    /// Frames flow.
    Up,
    /// The guest broke the rules.
    Quarantined,
}

impl PortState {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            PortState::Down => "down",
            PortState::Connected => "connected",
            PortState::Up => "up",
            PortState::Quarantined => "quarantined",
        }
    }
}

/// A stream that a port gains, and what wakes its worker.
pub struct NewStream {
    /// Queue number.
    pub queue: u16,
    /// Where its frames come from.
    pub source: Source,
    /// A guest's kicks, if it gave an eventfd for them. Without, a worker that sleeps looks from time to time.
    pub kick: Option<OwnedFd>,
    /// The memory node of a guest's ring, if the kernel tells.
    pub node: Option<u32>,
}

/// A change to one port.
#[derive(Default)]
pub struct PortChange {
    /// Where its frames go from now on.
    pub egress: Option<Egress>,
    /// Queues that are no longer read.
    pub remove: Vec<u16>,
    /// Queues that are read from now on.
    pub add: Vec<NewStream>,
    /// NIC queues for sending, each with the queue number: from none to some, or, empty and
    /// `Some`, to none.
    pub nic: Option<Vec<(u16, XskTx)>>,
    /// How the port is now.
    pub state: Option<(PortState, String)>,
    /// What `show` says of it besides.
    pub properties: Option<BTreeMap<String, String>>,
    /// The guest's memory from now on, to be watched: its files can be cut short at any time.
    pub memory: Option<Option<Arc<GuestMemory>>>,
    /// Its inflight region, likewise.
    pub inflight: Option<Option<Arc<InflightRegion>>>,
}

/// A stream's place: its worker, and the kick that it is registered with there.
struct Placed {
    worker: usize,
    kick: Option<OwnedFd>,
    /// Whether that wakes the worker, or something else does; if not, it looks from time to time.
    has_wakeup: bool,
    socket: Option<Arc<XskSocket>>,
    /// How the guest's own queue does, if it has one.
    direct: Option<Arc<DirectStatus>>,
    /// The memory node that it should be on.
    node: Option<u32>,
    measured: Measured,
}

struct Port {
    view: PortView,
    options: PortOptions,
    state: PortState,
    detail: String,
    /// When `state` became what it is.
    since: Instant,
    device: Option<DeviceStatus>,
    properties: BTreeMap<String, String>,
    streams: BTreeMap<u16, Placed>,
    objectives: Option<slo::Objectives>,
    memory: Option<Arc<GuestMemory>>,
    inflight: Option<Arc<InflightRegion>>,
    /// Transmit halves that no worker needs: there are more queues than workers.
    spare: Vec<XskTx>,
    /// The memory node of an uplink's NIC.
    node: Option<u32>,
    calls: Calls,
}

struct State {
    ports: Vec<Option<Port>>,
    view: Arc<View>,
    ageing: Ageing,
    moves: moves::Reported,
    /// How many mappings had been lost when the ports' memories were last looked at.
    lost_mappings: u64,
    /// When it was last looked at what calls had cost.
    calls_reviewed: Instant,
    balance: balance::State,
    taps: Vec<Arc<Tap>>,
    /// What ports that are gone had counted.
    removed: RemovedStatus,
    /// Kept for the status alone.
    config: ConfigStatus,
}

/// The switch, as its control threads see it.
pub struct Fabric {
    options: FabricOptions,
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
    fdb: Arc<Fdb>,
}

impl Fabric {
    /// Starts the workers, with no ports.
    pub fn start(options: FabricOptions) -> Result<Arc<Fabric>, WorkerError> {
        let clock = Clock::calibrate();
        let mut seed = [0u64; 3];
        for word in &mut seed {
            *word = placement::random_word();
        }
        let [a, b, flows] = seed;
        let fdb = Arc::new(Fdb::new(options.fdb_capacity, [a, b]));
        fdb.set_damping(options.fdb_damping);
        let flows = FlowHasher::new(flows);
        let view = Arc::new(View::new(Box::new([]), fdb.clone(), flows, Box::new([])));
        let idle = match options.sleep_after {
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
        Ok(Arc::new(Fabric {
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
                ageing,
                moves: moves::Reported::default(),
                lost_mappings: 0,
                calls_reviewed: Instant::now(),
                balance,
                taps: Vec::new(),
                removed: RemovedStatus::default(),
                config: ConfigStatus {
                    last_reload_success_timestamp_s: seconds_since_1970(),
                    ..ConfigStatus::default()
                },
            }),
            fdb,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The daemon aborts on panic, so a poisoned lock is only ever seen by tests.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.links.len()
    }

    /// The limits at work; `None` where there are none.
    fn storm_control(&self, limits: StormLimits) -> Option<Arc<StormControl>> {
        let control = || Arc::new(StormControl::new(limits, self.clock.hz(), tsc()));
        (!limits.is_unlimited()).then(control)
    }

    /// Adds a port, down. A worker that there is not is as good as none. `None` when there are [`MAX_PORTS`] already.
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
        let view = PortView {
            name: options.name.as_str().into(),
            vlan: Arc::new(options.vlan.clone()),
            egress: Egress::Down,
            counters: Arc::new(PortCounters::new(self.links.len(), options.queues)),
            quota: Arc::new(Quota::new(options.mac_limit)),
            joins: options.joins,
            weight: options.weight.max(1),
            storm: self.storm_control(options.storm),
            sources: ports::source_guard(&options.addresses),
        };
        state.ports[number] = Some(Port {
            view,
            options,
            state: PortState::Down,
            detail: "nothing is attached yet".to_owned(),
            since: Instant::now(),
            device: None,
            properties: BTreeMap::new(),
            streams: BTreeMap::new(),
            objectives: None,
            memory: None,
            inflight: None,
            spare: Vec::new(),
            node: None,
            calls: Calls::new(self.clock.hz()),
        });
        drop(self.publish(&mut state, Vec::new()));
        self.forget_forbidden(&state);
        Some(number as u16)
    }

    /// Applies a change to port `number` and waits until every worker works by it. Returns the
    /// streams that were removed, with the positions that their rings have come to.
    ///
    /// A quarantined port takes no streams and no egress until its state is set anew.
    pub fn change(&self, number: u16, change: PortChange) -> io::Result<Vec<Stream>> {
        self.change_if(number, change, || true)
    }

    /// Does so if `holds`, which is asked under the lock.
    fn change_if(
        &self,
        number: u16,
        change: PortChange,
        holds: impl FnOnce() -> bool,
    ) -> io::Result<Vec<Stream>> {
        let mut state = self.lock();
        if !holds() {
            return Err(io::Error::other("the port has been taken from its thread"));
        }
        let leaves = matches!(change.state, Some((PortState::Down, _)));
        let changed = self.change_locked(&mut state, number, change);
        if leaves {
            // The workers have come round, so there is nothing more to come of this guest.
            self.take_faults(&mut state, Some(number));
        }
        // What came of a front end is let go of without the lock: it can last.
        drop(state);
        changed.map(|changed| changed.removed)
    }

    fn change_locked(
        &self,
        state: &mut State,
        number: u16,
        mut change: PortChange,
    ) -> io::Result<Changed> {
        let mut updates: Vec<WorkerChange> =
            self.links.iter().map(|_| WorkerChange::default()).collect();
        let mut candidates = match change.add.is_empty() {
            true => Vec::new(),
            false => self.candidates(state),
        };
        let nic_worker = |port: &Port, queue| self.nic_worker_of(port, number, queue);
        let busy_max = self.options.balance.busy_permille_max;
        let Some(Some(port)) = state.ports.get_mut(usize::from(number)) else {
            return Err(io::Error::other("no such port"));
        };
        let was_quarantined = port.state == PortState::Quarantined;
        if let Some((state, detail)) = change.state.take() {
            if state != port.state {
                port.since = Instant::now();
            }
            (port.state, port.detail) = (state, detail);
        } else if was_quarantined {
            change.add.clear();
            change.egress = None;
        }
        if let Some(properties) = change.properties {
            port.properties = properties;
        }
        let memory_before = match change.memory {
            Some(memory) => std::mem::replace(&mut port.memory, memory),
            None => None,
        };
        let inflight_before = match change.inflight {
            Some(inflight) => std::mem::replace(&mut port.inflight, inflight),
            None => None,
        };
        if let Some(egress) = change.egress {
            port.view.egress = egress;
        }
        let mut released = Vec::new();
        for queue in change.remove {
            if let Some(placed) = port.streams.remove(&queue) {
                let counters = &port.view.counters;
                state.balance.note_left(counters, queue, &placed);
                updates[placed.worker].remove.push((number, queue));
                released.push(placed);
            }
        }
        for new in change.add {
            let worker = match (&new.source, port.options.worker) {
                (Source::Nic(_), _) => nic_worker(port, new.queue),
                (_, Some(worker)) => worker,
                _ => placement::guest_worker(&candidates, new.node, busy_max),
            };
            candidates[worker].streams += 1;
            candidates[worker].fresh += 1;
            let queue = new.queue;
            let placed = self.place(port, number, worker, new, &mut updates[worker]);
            port.streams.insert(queue, placed);
        }
        if let Some(queues) = change.nic {
            let workers: Vec<usize> = queues.iter().map(|(q, _)| nic_worker(port, *q)).collect();
            let queues = workers.into_iter().zip(queues).collect();
            placement::share_out(port, number, queues, &mut updates, &self.links);
        }
        let removed = self.publish(state, updates);
        // Only now: a worker that slept on these descriptors has been woken and told.
        for placed in &released {
            worker::unregister(&self.links[placed.worker], placed);
        }
        Ok(Changed {
            removed,
            _released: released,
            _memory: memory_before,
            _inflight: inflight_before,
        })
    }

    /// Registers what wakes the worker, and adds the stream to what it will be told.
    fn place(
        &self,
        port: &Port,
        number: u16,
        worker: usize,
        new: NewStream,
        update: &mut WorkerChange,
    ) -> Placed {
        let id: StreamId = (number, new.queue);
        let waker = &self.links[worker].waker;
        let socket = match &new.source {
            Source::Nic(nic) => Some(nic.socket().clone()),
            Source::Guest(_) | Source::Direct(_) => None,
        };
        let direct = match &new.source {
            Source::Direct(guest) => guest.status().cloned(),
            _ => None,
        };
        // Whoever waits for a socket is looked at with each frame that it has sent or received. A worker that never
        // sleeps does not wait.
        let sleeps = self.options.sleep_after.is_some();
        let registered = match (&socket, &new.kick) {
            (Some(socket), _) if sleeps => waker.register_nic(id, &**socket),
            (Some(_), _) => Ok(()),
            (_, Some(kick)) => waker.register_kick(id, kick),
            (_, None) => Err(io::Error::other("there is no kick descriptor")),
        };
        let has_wakeup = registered.is_ok() || (!sleeps && new.kick.is_none());
        if let Err(why) = registered
            && sleeps
        {
            tracing::info!(port = %port.view.name, queue = new.queue,
                "nothing wakes a sleeping worker for it, which looks for frames every millisecond: {why}");
        }
        let counters = port.view.counters.clone();
        let measured = Measured::from_now(&counters, worker, new.queue);
        let mut stream = Stream::new(id, new.source, counters);
        stream.has_wakeup = has_wakeup;
        update.add.push(stream);
        Placed {
            worker,
            kick: new.kick,
            has_wakeup,
            node: if socket.is_some() {
                port.node
            } else {
                new.node
            },
            socket,
            direct,
            measured,
        }
    }

    /// Sends every worker the new picture and its own changes, and waits for all of them.
    /// Returns the streams that they gave up; what else was replaced is freed here.
    fn publish(&self, state: &mut State, changes: Vec<WorkerChange>) -> Vec<Stream> {
        let retired = self.exchange(state, changes).into_iter();
        retired.flat_map(|update| update.removed).collect()
    }

    /// Does so, and returns what each worker gave back: less than all only when the workers end.
    fn exchange(&self, state: &mut State, changes: Vec<WorkerChange>) -> Vec<Update> {
        let last = state
            .ports
            .iter()
            .rposition(Option::is_some)
            .map_or(0, |n| n + 1);
        let ports = state
            .ports
            .iter()
            .take(last)
            .map(|port| port.as_ref().map(|p| p.view.clone()));
        let view = Arc::new(View::new(
            ports.collect(),
            self.fdb.clone(),
            state.view.flows,
            state.taps.clone().into(),
        ));
        state.view = view.clone();
        let mut changes = changes.into_iter();
        for (number, link) in self.links.iter().enumerate() {
            let change = changes.next().unwrap_or_default();
            let streams = streams_of(state, number) + change.add.len() + change.remove.len();
            let mut update = Update::new(view.clone(), streams);
            update.removed = Vec::with_capacity(change.remove.len());
            (update.add, update.remove, update.nics) = (change.add, change.remove, change.nics);
            if change.asks_nic_positions {
                update.nic_positions = Vec::with_capacity(MAX_PORTS);
            }
            // The last one was waited for, so there is room.
            let _ = link.mailbox.publish(update);
            link.waker.wake();
        }
        let mut all = Vec::with_capacity(self.links.len());
        for (number, link) in self.links.iter().enumerate() {
            all.extend(loop {
                match link.mailbox.wait_retired(PATIENCE, || ()) {
                    Some(retired) => break Some(retired),
                    None if self.shared.stop.load(Ordering::SeqCst) => break None,
                    None => tracing::error!(
                        worker = number,
                        "does not come round: it is waited for, and no port can change meanwhile"
                    ),
                }
            });
        }
        all
    }

    /// Waits until every worker has passed a quiescent point: what was taken out of use before
    /// the call is used by nobody after it.
    pub fn quiesce(&self) {
        let mut state = self.lock();
        drop(self.publish(&mut state, Vec::new()));
    }

    /// What must happen from time to time: ageing, quarantine of guests whose rings the workers
    /// found broken, and balancing. Called about ten times a second.
    pub fn housekeep(&self, uptime: Duration) {
        // First: a ring of zeroes breaks some rule too.
        self.quarantine_lost_memories();
        self.take_faults(&mut self.lock(), None);
        self.take_stuck(&mut self.lock(), None);
        self.review_calls();
        self.balance();
        self.note_objectives();
        self.fdb.set_time_s(uptime.as_secs());
        let mut state = self.lock();
        self.report_moves(&mut state);
        self.end_lost_directs(&mut state);
        let Some(ticks) = state.ageing.advance(uptime) else {
            return;
        };
        self.shared.tick.store(ticks as u8, Ordering::Relaxed);
        let limit = state.ageing.ticks_max();
        let view = state.view.clone();
        let quota = |port| view.port(port).map(|p| &*p.quota);
        self.fdb
            .sweep(ticks as u8, quota, |_, age| u64::from(age) > limit);
        self.fdb.forget_old_moves();
    }

    /// Quarantines the ports whose guests' memory was taken away under them.
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

    /// Cuts port `number` off, if anybody is there.
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
        tracing::warn!(port = %port.view.name, "quarantined until its guest resets the device, or its front end connects anew: {why}");
        let change = PortChange {
            egress: Some(Egress::Quarantined),
            remove: port.streams.keys().copied().collect(),
            state: Some((PortState::Quarantined, why.to_owned())),
            ..PortChange::default()
        };
        // Freed under the lock: the last of nothing. The port's own thread has memory, rings and descriptors, too.
        let _ = self.change_locked(state, number, change);
    }

    /// Quarantines the ports whose calls have blocked, but `gone`. No worker calls them again, whoever connects.
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

    /// Quarantines the ports whose rings workers have found broken, but `gone`: its guest is
    /// not the one that did it any more.
    fn take_faults(&self, state: &mut State, gone: Option<u16>) {
        while let Some((port, fault)) = self.shared.faults.pop() {
            if gone != Some(port) {
                self.quarantine_locked(state, port, &fault.to_string());
            }
        }
    }

    /// Quarantines the ports whose rings workers have found broken so far.
    pub(crate) fn settle_faults(&self) {
        self.take_faults(&mut self.lock(), None);
    }

    /// How port `number` is.
    pub fn port_state(&self, number: u16) -> PortState {
        let state = self.lock();
        match state.ports.get(usize::from(number)) {
            Some(Some(port)) => port.state,
            _ => PortState::Down,
        }
    }

    /// Ends the workers and waits for their threads.
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

impl Drop for Fabric {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Now, as Prometheus counts it.
pub(crate) fn seconds_since_1970() -> f64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.map_or(0.0, |since| since.as_secs_f64())
}

/// What a change has taken out of use, and no worker uses any more.
struct Changed {
    removed: Vec<Stream>,
    _released: Vec<Placed>,
    _memory: Option<Arc<GuestMemory>>,
    _inflight: Option<Arc<InflightRegion>>,
}

/// What one worker is told besides the picture.
#[derive(Default)]
struct WorkerChange {
    add: Vec<Stream>,
    remove: Vec<StreamId>,
    nics: Vec<(u16, Option<Box<NicTx>>)>,
    /// Whether it is to say how far its ways to NICs have come.
    asks_nic_positions: bool,
}

fn streams_of(state: &State, worker: usize) -> usize {
    let ports = state.ports.iter().flatten();
    ports
        .flat_map(|port| port.streams.values())
        .filter(|placed| placed.worker == worker)
        .count()
}
