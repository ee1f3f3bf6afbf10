//! A switch with one worker and four guest ports: two for the honest pair, one to attack, one for the attacked port's
//! partner.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crosspoint_config as config;
use crosspoint_daemon::dataplane::{
    BalanceOptions, Dataplane, DataplaneOptions, PortOptions, PortState,
};
use crosspoint_daemon::ports::vhost::VhostPort;
use crosspoint_engine::bridge::fdb::Damping;
use crosspoint_engine::bridge::vlan::VlanPolicy;
use crosspoint_guest::message::{FLAG_NEED_REPLY, FLAG_VERSION, VRING_NO_FD, protocol};
use crosspoint_guest::net::features;
use crosspoint_guest::{Guest, GuestOptions, Session, SessionError};
use crosspoint_model::status::{PortStatus, QueueStatus};
use tempfile::TempDir;

/// Frames in flight in one direction: fewer than a ring has entries.
const WINDOW: usize = 32;
/// Minimum number of frames that the honest pair exchanges before and after an attack.
pub const FRAMES: u64 = 2000;
/// Longest wait for anything.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// Port names with their VLANs: floods to the attacked port do not reach the pair.
const PORTS: [(&str, u16); 4] = [("calm0", 8), ("calm1", 8), ("target", 7), ("partner", 7)];
const TARGET: u16 = 2;
const PARTNER: u16 = 3;

/// One switch at a time, since descriptors and mappings are counted for the process.
static ALONE: Mutex<()> = Mutex::new(());

/// Runs `body` while the honest pair exchanges frames, then attaches an honest front end to the port attacked.
pub fn attack(body: impl FnOnce(&Target<'_>)) {
    let rig = Rig::start();
    let exchange = Exchange::start(rig.calm_guests());
    exchange.run(FRAMES);
    let target = Target {
        rig: &rig,
        exchange: Some(&exchange),
    };
    body(&target);
    exchange.run(FRAMES);
    let sent = exchange.stop();
    rig.assert_nothing_lost(sent);
    rig.assert_target_works();
}

/// Like [`attack`], for an attacker that holds its resources until the end: meanwhile the port works, another one is
/// opened, and the switch ends in time. `body` must leave the port to an honest front end.
pub fn attack_held(body: impl FnOnce(&Target<'_>)) {
    let rig = Rig::start();
    let exchange = Exchange::start(rig.calm_guests());
    exchange.run(FRAMES);
    let target = Target {
        rig: &rig,
        exchange: Some(&exchange),
    };
    body(&target);
    rig.another_port_works();
    rig.assert_target_works();
    exchange.run(FRAMES);
    let sent = exchange.stop();
    rig.assert_nothing_lost(sent);
    let started = Instant::now();
    drop(rig);
    let took = started.elapsed();
    assert!(took < PATIENCE, "the switch ends after {took:?}");
}

/// Like [`attack`], without the honest pair, so that the worker sleeps.
pub fn attack_alone(body: impl FnOnce(&Target<'_>)) {
    let rig = Rig::start();
    body(&Target {
        rig: &rig,
        exchange: None,
    });
    rig.assert_target_works();
}

/// The port to attack.
pub struct Target<'a> {
    rig: &'a Rig,
    exchange: Option<&'a Exchange>,
}

impl Target<'_> {
    pub fn path(&self) -> PathBuf {
        self.rig.path(TARGET)
    }

    /// A connection on which nothing has been sent.
    pub fn connect(&self) -> Session {
        Session::connect(self.path(), PATIENCE).expect("it connects")
    }

    /// A session with features and owner set, in which every message is acknowledged.
    pub fn negotiated(&self) -> Session {
        let mut session = self.connect();
        session.negotiate(FEATURES, PROTOCOL).expect("it agrees");
        session
    }

    /// A working guest with its port up.
    pub fn guest(&self) -> Guest {
        self.guest_with(GuestOptions::default())
    }

    pub fn guest_with(&self, options: GuestOptions) -> Guest {
        let guest = Guest::connect(self.path(), options).expect("it connects");
        self.wait_state(PortState::Up);
        guest
    }

    pub fn wait_state(&self, state: PortState) {
        self.rig.wait_state(TARGET, state);
    }

    /// The guest that sends to the attacked one.
    pub fn partner(&self) -> MutexGuard<'_, Guest> {
        self.rig.partner()
    }

    /// The partner broadcasts `count` frames in its VLAN, which reach the attacked port.
    pub fn send_to_it(&self, count: u32) {
        let mut partner = self.partner();
        for number in 0..count {
            let sent = partner
                .send(0, &[&frame(0xff, 22, number, 200)])
                .expect("a ring");
            assert_eq!(sent, 1);
            assert!(partner.drain_transmit(0, PATIENCE).expect("a ring"));
        }
    }

    /// The honest pair exchanges more frames now.
    pub fn others_go_on(&self) {
        self.exchange().run(4 * WINDOW as u64);
    }

    /// A front end attaches to a newly opened port.
    pub fn another_port_works(&self) {
        self.rig.another_port_works();
    }

    /// The attacked port is removed, and another one gets its name and number.
    pub fn replace(&self) {
        let (rig, started) = (self.rig, Instant::now());
        let (name, vlan) = PORTS[usize::from(TARGET)];
        let mut ports = rig.ports();
        drop(ports.remove(TARGET.into()));
        rig.dataplane.remove_port(TARGET);
        let took = started.elapsed();
        assert!(took < PATIENCE, "the port is removed after {took:?}");
        let port = open(&rig.dataplane, rig.path(TARGET), name, vlan);
        ports.insert(TARGET.into(), port);
    }

    /// Number of threads that serve or have served the attacked port.
    pub fn threads(&self) -> usize {
        let tasks = std::fs::read_dir("/proc/self/task").expect("it is there");
        let names = tasks.filter_map(|task| {
            let name = task.ok()?.path().join("comm");
            std::fs::read_to_string(name).ok()
        });
        names
            .filter(|name| name.trim() == format!("port-{TARGET}"))
            .count()
    }

    /// A property of the attacked port in `show port`.
    pub fn property(&self, key: &str) -> Option<String> {
        self.rig.status(TARGET).properties.remove(key)
    }

    /// Whether the honest pair makes progress within `limit`.
    pub fn others_move_within(&self, limit: Duration) -> bool {
        let goal = self.exchange().frames() + 4 * WINDOW as u64;
        until(limit, || self.exchange().frames() >= goal)
    }

    /// The detail of its state.
    pub fn detail(&self) -> String {
        self.rig.status(TARGET).detail
    }

    fn exchange(&self) -> &Exchange {
        self.exchange.expect("an honest pair")
    }

    /// Drops on the attacked port, by reason.
    pub fn drops(&self) -> BTreeMap<String, u64> {
        let mut drops = BTreeMap::new();
        for queue in self.rig.status(TARGET).queues {
            for (reason, n) in queue.drops {
                *drops.entry(reason).or_default() += n;
            }
        }
        drops
    }
}

/// Features that honest front ends request.
pub const FEATURES: u64 =
    features::VERSION_1 | features::MRG_RXBUF | features::EVENT_IDX | features::PROTOCOL_FEATURES;
/// All protocol features that a session may offer.
pub const PROTOCOL: u64 =
    protocol::MQ | protocol::REPLY_ACK | protocol::CONFIG | protocol::BACKEND_REQ;

/// The result of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    Accepted,
    /// A failure was acknowledged.
    Refused,
    /// The switch closed the connection.
    Closed,
}

/// Sends a message with an acknowledgement or a reply, and returns its result.
pub fn say(session: &mut Session, number: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Fate {
    if let Err(SessionError::Io { .. }) =
        session.send(number, FLAG_VERSION | FLAG_NEED_REPLY, payload, fds)
    {
        return Fate::Closed;
    }
    hear(session)
}

/// Reads the switch's answer.
pub fn hear(session: &mut Session) -> Fate {
    match session.receive() {
        Ok(reply) if reply.payload.len() == 8 && reply.u64_at(0) == Some(1) => Fate::Refused,
        Ok(_) => Fate::Accepted,
        Err(error) => match error.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe => Fate::Closed,
            kind => panic!("no answer: {kind}"),
        },
    }
}

/// Checks that the message is not accepted.
pub fn must_fail(session: &mut Session, number: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) {
    let fate = say(session, number, payload, fds);
    assert_ne!(
        fate,
        Fate::Accepted,
        "request {number} with {} bytes",
        payload.len()
    );
}

/// Words as a payload.
pub fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// Payload of SET_MEM_TABLE: guest address, size, user address, offset of each region.
pub fn table(regions: &[[u64; 4]]) -> Vec<u8> {
    let mut payload = words(&[regions.len() as u32, 0]);
    payload.extend(regions.iter().flatten().flat_map(|word| word.to_ne_bytes()));
    payload
}

/// Payload of SET_VRING_KICK and SET_VRING_CALL.
pub fn vring_fd(index: u64, present: bool) -> [u8; 8] {
    (index | if present { 0 } else { VRING_NO_FD }).to_ne_bytes()
}

/// An anonymous file of `len` bytes.
pub fn memfd(len: u64) -> OwnedFd {
    let fd = rustix::fs::memfd_create("hostile", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&fd, len).unwrap();
    fd
}

/// Retries until `done` returns true or `limit` has passed. Returns whether it did.
pub fn until(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if done() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The process's descriptors and its mappings of guest memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Census {
    /// Eventfds, then all others.
    events: usize,
    descriptors: usize,
    mappings: usize,
}

/// The most copies of call descriptors, all eventfds, in the two honest guests' ports.
const CALLS_MAX: usize = 8;

impl Census {
    pub fn now() -> Census {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("it is there");
        let guest = |line: &&str| line.contains("memfd:");
        let is_event = |entry: &std::fs::DirEntry| {
            std::fs::read_link(entry.path())
                .is_ok_and(|what| what.to_string_lossy().contains("eventfd"))
        };
        let descriptors = std::fs::read_dir("/proc/self/fd").expect("it is there");
        let (events, others): (Vec<_>, Vec<_>) = descriptors
            .map(|entry| entry.expect("it is readable"))
            .partition(is_event);
        Census {
            events: events.len(),
            descriptors: others.len(),
            mappings: maps.lines().filter(guest).count(),
        }
    }

    /// Checks that no more is held than in this census, once pending work has ended, but for the copies of descriptors that
    /// [`assert_same`](Self::assert_same) tells of.
    pub fn assert_no_more(self) {
        let mut now = Census::now();
        let no_more = until(PATIENCE, || {
            now = Census::now();
            now.events <= self.events + CALLS_MAX
                && now.descriptors <= self.descriptors
                && now.mappings <= self.mappings
        });
        assert!(no_more, "before {self:?}, after {now:?}");
    }

    /// Checks that exactly as much is held as in this census, once pending work has ended. On a loaded machine calls
    /// may become so costly that an honest port's own thread makes them, with copies of its descriptors.
    pub fn assert_same(self) {
        let mut now = Census::now();
        let same = until(PATIENCE, || {
            now = Census::now();
            let copies = now.events.saturating_sub(self.events);
            now.events >= self.events
                && copies <= CALLS_MAX
                && now.descriptors == self.descriptors
                && now.mappings == self.mappings
        });
        assert!(same, "before {self:?}, after {now:?}");
    }
}

/// Resident memory of the process, KiB.
pub fn resident_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("it is there");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok())
        .expect("a number of KiB")
}

struct Rig {
    dataplane: Arc<Dataplane>,
    ports: Mutex<Vec<VhostPort>>,
    partner: Mutex<Guest>,
    over: Arc<AtomicBool>,
    housekeeper: Option<JoinHandle<()>>,
    directory: TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Rig {
    fn start() -> Rig {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let directory = tempfile::tempdir().expect("a directory can be made");
        let core = core_affinity::get_core_ids().and_then(|ids| ids.last().map(|core| core.id));
        let dataplane = Dataplane::start(DataplaneOptions {
            cores: vec![core.expect("a core")],
            sleep_after: Some(Duration::from_micros(50)),
            fdb_capacity: 1024,
            fdb_ageing: Duration::from_secs(300),
            fdb_damping: Damping::OFF,
            nic_queues: 0,
            balance: BalanceOptions::default(),
        })
        .expect("a worker starts");
        let ports =
            PORTS.map(|(name, vlan)| open(&dataplane, directory.path().join(name), name, vlan));
        let over = Arc::new(AtomicBool::new(false));
        let partner = Guest::connect(directory.path().join("partner"), GuestOptions::default());
        let rig = Rig {
            housekeeper: Some(housekeeper(&dataplane, &over)),
            dataplane,
            ports: Mutex::new(ports.into()),
            partner: Mutex::new(partner.expect("it connects")),
            over,
            directory,
            _alone: alone,
        };
        rig.wait_state(PARTNER, PortState::Up);
        rig
    }

    fn ports(&self) -> MutexGuard<'_, Vec<VhostPort>> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn calm_guests(&self) -> [Guest; 2] {
        [0, 1].map(|port| {
            let guest = Guest::connect(self.path(port), GuestOptions::default());
            self.wait_state(port, PortState::Up);
            guest.expect("it connects")
        })
    }

    fn path(&self, port: u16) -> PathBuf {
        self.directory.path().join(PORTS[usize::from(port)].0)
    }

    fn partner(&self) -> MutexGuard<'_, Guest> {
        self.partner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn status(&self, port: u16) -> PortStatus {
        self.dataplane.status().ports.swap_remove(port.into())
    }

    fn wait_state(&self, port: u16, state: PortState) {
        let is = || self.dataplane.port_state(port) == state;
        assert!(
            until(PATIENCE, is),
            "port {port} is {:?}",
            self.dataplane.port_state(port)
        );
    }

    /// Checks the honest pair's counters: exactly what was sent was received and delivered.
    fn assert_nothing_lost(&self, sent: u64) {
        for port in 0..2 {
            let queues = self.status(port).queues;
            let sum = |of: fn(&QueueStatus) -> u64| queues.iter().map(of).sum::<u64>();
            let got = [
                sum(|q| q.rx_packets),
                sum(|q| q.tx_packets),
                sum(|q| q.delivered_copies),
                sum(|q| q.dropped_copies),
            ];
            assert_eq!(
                got,
                [sent, sent, sent, 0],
                "taken, sent, delivered, dropped"
            );
        }
    }

    /// Opens another port, attaches a guest to it, and removes both.
    fn another_port_works(&self) {
        let path = self.directory.path().join("another");
        let number = add_port(&self.dataplane, "another", 9);
        let port = serve(&self.dataplane, number, path.clone(), "another");
        let guest = Guest::connect(path, GuestOptions::default()).expect("it connects");
        self.wait_state(number, PortState::Up);
        drop(guest);
        drop(port);
        self.dataplane.remove_port(number);
    }

    /// Checks that an honest guest can attach to the attacked port, and that frames go both ways.
    fn assert_target_works(&self) {
        // It waits for earlier connections in the backlog to be served.
        let options = GuestOptions {
            timeout: 6 * PATIENCE,
            ..GuestOptions::default()
        };
        let mut guest =
            Guest::connect(self.path(TARGET), options).expect("an honest front end connects");
        self.wait_state(TARGET, PortState::Up);
        let mut partner = self.partner();
        // Clears its ring of frames from the attack.
        while !partner.receive(0).expect("a ring").is_empty() {}
        let (there, back) = (frame(0xff, 21, 1, 500), frame(21, 22, 2, 500));
        assert_eq!(partner.send(0, &[&there]).expect("a ring"), 1);
        assert!(arrives(&mut guest, &there), "a frame to the honest guest");
        assert_eq!(guest.send(0, &[&back]).expect("a ring"), 1);
        assert!(
            arrives(&mut partner, &back),
            "a frame from the honest guest"
        );
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        self.ports().clear();
        // A thread that was left behind also holds the dataplane.
        self.dataplane.stop();
        if let Some(thread) = self.housekeeper.take() {
            let _ = thread.join();
        }
    }
}

fn open(dataplane: &Arc<Dataplane>, socket: PathBuf, name: &str, vlan: u16) -> VhostPort {
    serve(dataplane, add_port(dataplane, name, vlan), socket, name)
}

fn add_port(dataplane: &Dataplane, name: &str, vlan: u16) -> u16 {
    let options = PortOptions {
        name: name.to_owned(),
        vlan: VlanPolicy::Access(vlan),
        queues: 2,
        ..PortOptions::default()
    };
    dataplane.add_port(options).expect("there is room")
}

fn serve(dataplane: &Arc<Dataplane>, number: u16, socket: PathBuf, name: &str) -> VhostPort {
    // Two pairs, so that MQ and GET_QUEUE_NUM can be attacked.
    let config = config::VhostPort {
        socket,
        queue_pairs: 2,
        ..config::VhostPort::default()
    };
    VhostPort::open(dataplane.clone(), number, name, &config).expect("it listens")
}

fn housekeeper(dataplane: &Arc<Dataplane>, over: &Arc<AtomicBool>) -> JoinHandle<()> {
    let (dataplane, over, start) = (dataplane.clone(), over.clone(), Instant::now());
    std::thread::spawn(move || {
        while !over.load(Ordering::Relaxed) {
            dataplane.housekeep(start.elapsed());
            std::thread::sleep(Duration::from_millis(20));
        }
    })
}

/// A frame of an experimental type with a number in it.
pub fn frame(to: u8, from: u8, number: u32, len: usize) -> Vec<u8> {
    let to = if to == 0xff {
        [0xff; 6]
    } else {
        [2, 0, 0, 0, 9, to]
    };
    let head = [
        &to[..],
        &[2, 0, 0, 0, 9, from],
        &[0x88, 0xb5],
        &number.to_be_bytes(),
    ]
    .concat();
    let fill = (head.len()..len).map(|at| (at as u32).wrapping_mul(31).wrapping_add(number) as u8);
    head.iter().copied().chain(fill).collect()
}

/// Whether `guest` receives `expected`, possibly among other frames.
pub fn arrives(guest: &mut Guest, expected: &[u8]) -> bool {
    until(PATIENCE, || {
        let frames = guest.receive(0).expect("the device follows the rules");
        frames.iter().any(|(_, bytes)| bytes == expected)
    })
}

/// The honest pair, on its own thread. Every frame must arrive, in order and unchanged.
pub struct Exchange {
    over: Arc<AtomicBool>,
    frames: Arc<AtomicU64>,
    thread: Option<JoinHandle<u64>>,
}

impl Exchange {
    pub fn start(mut guests: [Guest; 2]) -> Exchange {
        let (over, frames) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (ended, counted) = (over.clone(), frames.clone());
        let thread = std::thread::spawn(move || {
            let mut number = 0;
            while !ended.load(Ordering::Relaxed) {
                round(&mut guests, number);
                number += WINDOW as u32;
                counted.store(u64::from(number), Ordering::Relaxed);
                // Leaves the machine some time for the others.
                std::thread::sleep(Duration::from_micros(300));
            }
            u64::from(number)
        });
        Exchange {
            over,
            frames,
            thread: Some(thread),
        }
    }

    fn frames(&self) -> u64 {
        self.frames.load(Ordering::Relaxed)
    }

    /// Waits until `count` more frames have arrived on each side.
    pub fn run(&self, count: u64) {
        let goal = self.frames() + count;
        let ended = || self.thread.as_ref().is_some_and(JoinHandle::is_finished);
        let done = until(3 * PATIENCE, || self.frames() >= goal || ended());
        assert!(
            done && !ended(),
            "the honest pair has lost frames, or waits"
        );
    }

    pub fn stop(mut self) -> u64 {
        self.over.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("a thread");
        thread.join().expect("the honest pair has lost nothing")
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Exchanges a window of frames in both directions.
fn round(guests: &mut [Guest; 2], number: u32) {
    let len = |n: u32| 60 + n as usize * 7 % 1455;
    let frames = |to, from| -> Vec<Vec<u8>> {
        let numbers = number..number + WINDOW as u32;
        numbers.map(|n| frame(to, from, n, len(n))).collect()
    };
    let sent = [frames(12, 11), frames(11, 12)];
    for (guest, frames) in guests.iter_mut().zip(&sent) {
        let frames: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
        let count = guest
            .send(0, &frames)
            .expect("the device follows the rules");
        assert_eq!(count, frames.len(), "a ring of 256 has room");
    }
    for (guest, frames) in guests.iter_mut().zip(sent.iter().rev()) {
        let got = guest.receive_at_least(0, frames.len(), PATIENCE);
        let got = got.expect("the device follows the rules").into_iter();
        assert!(
            got.map(|(_, bytes)| bytes).eq(frames.iter().cloned()),
            "all, in order, with every byte"
        );
    }
    for guest in guests {
        assert!(
            guest
                .drain_transmit(0, PATIENCE)
                .expect("the device follows the rules")
        );
    }
}
