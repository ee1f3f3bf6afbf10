//! Runs one session from bytes, and checks what must hold after it.

mod descriptors;
#[allow(dead_code, reason = "some is for the seeds alone")]
mod record;

use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use crosspoint_config::{Role, VhostPort};
use crosspoint_daemon::dataplane::{
    BalanceOptions, Dataplane, DataplaneOptions, PortOptions, PortState,
};
use crosspoint_daemon::ports::vhost::converse_once;
use crosspoint_engine::bridge::fdb::Damping;
use crosspoint_engine::bridge::vlan::VlanPolicy;
use crosspoint_guest::message::{FLAG_NEED_REPLY, FLAG_VERSION, encode, send_bytes};
use crosspoint_guest::{Guest, GuestOptions, Session};
use descriptors::Descriptors;
use record::{ACKED, FILL, MANY, RAW, Record};

/// Maximum messages of one input, and maximum raw bytes: all of them and their answers fit into a socket's buffer, so
/// the answers need not be read during the session.
const MESSAGES_MAX: usize = 64;
const RAW_MAX: usize = 1024;
/// Sessions between two of the slow checks.
const LOOK_EVERY: u64 = 64;
/// Longest wait for other threads.
const PATIENCE: Duration = Duration::from_secs(5);

/// State that is created once: starting workers for each input would be most of the work.
struct World {
    dataplane: Arc<Dataplane>,
    target: u16,
    config: VhostPort,
    descriptors: usize,
    mappings: usize,
    start: Instant,
    pair: [Guest; 2],
    sessions: u64,
}

/// Runs one input.
pub fn input(bytes: &[u8]) {
    static WORLD: OnceLock<Mutex<World>> = OnceLock::new();
    let world = WORLD.get_or_init(|| Mutex::new(World::new()));
    let mut world = world.lock().expect("no input panics and goes on");
    world.session(bytes);
    world.check();
}

fn config() -> VhostPort {
    VhostPort {
        role: Role::Client,
        queue_pairs: 2,
        ..VhostPort::default()
    }
}

/// Number of rings of the two honest guests.
const COPIES_MAX: isize = 8;

impl World {
    fn new() -> World {
        // As in every Rust program; here the main program is libFuzzer's. SAFETY: sets a signal's disposition before
        // another thread of ours exists.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
        let dataplane = Dataplane::start(DataplaneOptions {
            cores: vec![core()],
            sleep_after: Some(Duration::from_micros(20)),
            fdb_capacity: 1024,
            fdb_ageing: Duration::from_secs(300),
            fdb_damping: Damping::OFF,
            nic_queues: 0,
            balance: BalanceOptions::default(),
        })
        .expect("a worker starts");
        let port = |name: &str| {
            dataplane
                .add_port(PortOptions {
                    name: name.to_owned(),
                    vlan: VlanPolicy::Access(1),
                    mac_limit: 16,
                    queues: 2,
                    ..PortOptions::default()
                })
                .expect("there is room")
        };
        let target = port("target");
        let mut world = World {
            target,
            config: config(),
            descriptors: 0,
            mappings: 0,
            start: Instant::now(),
            pair: ["left", "right"].map(|name| honest(&dataplane, port(name))),
            sessions: 0,
            dataplane,
        };
        // This also waits until both ports are up.
        world.exchange();
        (world.descriptors, world.mappings) = (descriptors_open(), memory_mappings());
        world
    }

    /// Sends everything, closes its sending side, and lets the switch read it.
    fn session(&mut self, mut bytes: &[u8]) {
        let (front, back) = UnixStream::pair().expect("descriptors");
        // What does not fit is not sent.
        front.set_nonblocking(true).expect("a socket");
        let mut descriptors = Descriptors::default();
        let (mut messages, mut raw) = (0, 0);
        while let Some(record) = Record::take(&mut bytes) {
            if record.order & 0xc0 == FILL {
                descriptors.fill(record.at, record.bytes);
                continue;
            }
            if record.order & 0xc0 == RAW {
                raw += record.bytes.len();
            }
            messages += 1;
            if messages > MESSAGES_MAX || raw > RAW_MAX {
                break;
            }
            if send(&front, &record, &mut descriptors).is_err() {
                break;
            }
        }
        front
            .shutdown(std::net::Shutdown::Write)
            .expect("it is connected");
        converse_once(self.dataplane.clone(), self.target, &self.config, back);
    }

    /// Checks what must hold between sessions, whatever was sent.
    fn check(&mut self) {
        assert_eq!(self.dataplane.port_state(self.target), PortState::Down);
        // On a loaded machine calls may cost the honest guests' ports so much that the ports' caller threads make them,
        // each with a duplicate of its descriptor: once for each ring, not once for each session.
        let more = descriptors_open() as isize - self.descriptors as isize;
        assert!(
            (0..=COPIES_MAX).contains(&more),
            "{more} descriptors are left open"
        );
        self.dataplane.housekeep(self.start.elapsed());
        self.sessions += 1;
        if self.sessions.is_multiple_of(LOOK_EVERY) {
            assert_eq!(memory_mappings(), self.mappings, "memory is left mapped");
            self.exchange();
        }
    }

    /// Sends a frame each way between the honest guests.
    fn exchange(&mut self) {
        let [left, right] = &mut self.pair;
        carry(left, right, 1, self.sessions);
        carry(right, left, 2, self.sessions);
    }
}

/// Sends a message as described by its record.
fn send(
    front: &UnixStream,
    record: &Record<'_>,
    descriptors: &mut Descriptors,
) -> std::io::Result<()> {
    let message = match record.order & 0xc0 {
        RAW => record.bytes.to_vec(),
        ACKED => encode(
            record.request.into(),
            FLAG_VERSION | FLAG_NEED_REPLY,
            record.bytes,
        ),
        _ => encode(record.request.into(), FLAG_VERSION, record.bytes),
    };
    record
        .descriptors
        .iter()
        .for_each(|kind| descriptors.make(*kind));
    let mut fds: Vec<BorrowedFd<'_>> = record
        .descriptors
        .iter()
        .map(|kind| descriptors.get(*kind))
        .collect();
    if let (true, Some(first)) = (record.order & MANY != 0, fds.first().copied()) {
        fds.resize(40, first);
    }
    send_bytes(front, &message, &fds)
}

/// Starts an honest guest on port `number`.
fn honest(dataplane: &Arc<Dataplane>, number: u16) -> Guest {
    let (front, back) = UnixStream::pair().expect("descriptors");
    let dataplane = dataplane.clone();
    std::thread::spawn(move || converse_once(dataplane, number, &config(), back));
    let mut guest = Guest::new(GuestOptions::default()).expect("memory");
    let session = Session::from_stream(front, PATIENCE).expect("a socket");
    guest.attach(session).expect("the switch agrees");
    guest
}

/// A broadcast frame from one honest guest arrives at the other, whatever other ports have sent it besides.
fn carry(from: &mut Guest, to: &mut Guest, station: u8, number: u64) {
    let mut frame = [[0xff; 6], [2, 0, 0, 0, 9, station]].concat();
    frame.extend([0x88, 0xb5]);
    frame.extend(number.to_le_bytes());
    frame.resize(60, station);
    let deadline = Instant::now() + PATIENCE;
    // Makes room.
    while !to.receive(0).expect("a ring").is_empty() {}
    assert_eq!(from.send(0, &[&frame]).expect("a ring"), 1);
    loop {
        let frames = to.receive(0).expect("the switch follows the rules");
        if frames.iter().any(|(_, bytes)| *bytes == frame) {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "a frame of the honest pair is lost"
        );
        std::thread::sleep(Duration::from_micros(20));
    }
}

/// The last core that this process may use.
fn core() -> usize {
    let cores = rustix::thread::sched_getaffinity(None).expect("it always works");
    (0..rustix::thread::CpuSet::MAX_CPU)
        .rfind(|core| cores.is_set(*core))
        .expect("it runs somewhere")
}

/// Number of the process's descriptors except pipes: the sanitizers' symbolizer is at the other end of some pipes after
/// its first use.
fn descriptors_open() -> usize {
    let all = std::fs::read_dir("/proc/self/fd").expect("it is there");
    let is_pipe = |path: PathBuf| {
        std::fs::read_link(path).is_ok_and(|to| to.to_string_lossy().starts_with("pipe:"))
    };
    all.flatten().filter(|entry| !is_pipe(entry.path())).count()
}

/// Number of mappings of memory files and deleted files.
fn memory_mappings() -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("it is there");
    maps.lines()
        .filter(|line| line.contains("(deleted)"))
        .count()
}
