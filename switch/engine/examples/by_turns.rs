//! Measures the cost of frames with many addresses, beside guests without traffic, and with a second worker. Each worker
//! and its guests run alternately in one thread, so that no cache line moves between cores.
//!
//! `by_turns [REPEATS] [addresses=N] [idle=N] [sampling=N] [packed] [inorder] [unmerged] [workers=N] [counted]
//! [limited|held|security|stateless|rules|connections|new|inflight] [flows=N]` prints cycles per frame.
//!
//! | word | meaning |
//! |---|---|
//! | `REPEATS` | how often 256 frames are measured; default 5000 |
//! | `addresses` | number of addresses on each side, used in rotation, so that consecutive frames differ |
//! | `idle` | number of other guests, without traffic, that each worker polls |
//! | `sampling` | one of so many frames is sampled, on average |
//! | `packed`, `inorder`, `unmerged` | kind of rings and receive buffers |
//! | `limited` | measures in rounds: all guests without limits, then all with a limit of what they send, which none reaches; and so on |
//! | `held` | the same, but with limits that hold back the guests without traffic: each has a frame that waits for credit. Without limits they have none |
//! | `security` | the same: without, then with port security for one MAC and one IP address |
//! | `stateless` | the same: without, then with a security group of one stateless rule |
//! | `rules` | the same, with 1000 stateless rules and a set of 10 000 addresses |
//! | `connections` | the same, with a stateful rule; all frames belong to `flows` connections (default 10 000) that are known |
//! | `new` | the same, with frames that each begin a connection |
//! | `inflight` | the same: without, then with the positions of all rings recorded in inflight regions |
//! | `counted` | bursts are not made shorter when they take long: for valgrind |
//! | `workers` | number of workers, on cores 0, 1 and so on, first one by one and then all at once. The loss with all at once comes from shared cache lines |
#![allow(
    missing_docs,
    dead_code,
    unreachable_pub,
    reason = "shares its guests with the tests"
)]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam::queue::ArrayQueue;
use crosspoint_engine::bridge::fdb::Fdb;
use crosspoint_engine::groups::{
    Connections, Direction, GroupPolicy, LinkParts, Rule, RuleTable, Timeouts, Zone,
};
use crosspoint_engine::observe::sample::Sampler;
use crosspoint_engine::snapshot::Snapshot;
use crosspoint_engine::stages::meter::{Meter, RateLimit};
use crosspoint_engine::sync::sleep::Waker;
use crosspoint_engine::worker::Idle;
use crosspoint_engine::worker::Shared;
use crosspoint_engine::worker::Times;
use crosspoint_engine::worker::Update;
use crosspoint_engine::worker::Worker;
use crosspoint_engine::worker::WorkerLink;
use crosspoint_frame::{BURST, Clock, tsc};
use crosspoint_guest::{Buffer, VirtioNetHdr};
use crosspoint_packet::{FlowHasher, IpNet, Mac};
use crosspoint_vring::feature;

#[path = "../tests/switch/ports.rs"]
mod ports;
#[path = "../../vring/tests/device/world.rs"]
mod world;

use ports::{Driver, PortOptions, port};

/// Frames on the ring at the start of a repeat: a full ring.
const FRAMES: usize = 256;
/// Offset of a frame's header, so that it ends with a cache line, as with DPDK; and distance between frames.
const OFFSET: usize = 52;
const STRIDE: usize = 128;
const FRAME_LEN: usize = 60;
/// Repeats until all data is in the caches.
const WARMUP: usize = 100;
/// Step between the destinations of consecutive frames: a prime, so that it differs from the step of sources.
const DESTINATION_STEP: u32 = 7919;

/// Slots of the sampler.
const SLOTS: usize = 4096;

/// A worker's quantum, cycles.
const QUANTUM_CYCLES: u64 = 61_000;

/// Cycles a second, about: limits need no more.
const HZ: f64 = 2.5e9;
/// A limit that no guest here reaches.
const HIGH: RateLimit = RateLimit {
    bits_per_s: 1_000_000_000_000,
    burst_bytes: 4 << 20,
    packets_per_s: 0,
};
/// A limit that lets a frame pass in a minute.
const LOW: RateLimit = RateLimit {
    bits_per_s: 8,
    burst_bytes: 1,
    packets_per_s: 0,
};
/// Turns after which each has used its credit up.
const HOLD_TURNS: usize = 100;
/// Rounds of a comparison, an odd number.
const ROUNDS: usize = 21;

/// Interval between two checks whether all threads have arrived.
const LOOK: Duration = Duration::from_millis(1);

/// Command line options.
struct Options {
    repeats: usize,
    workers: u16,
    quantum_cycles: u64,
    addresses: u32,
    idle: u16,
    sampling: u32,
    features: u64,
    limits: Limits,
    /// Number of connections of frames; 0: frames are not IP packets of connections.
    flows: u32,
}

/// What is compared with none of it: limits of what guests send, and other policies of the sender.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Limits {
    None,
    Security,
    Stateless,
    Rules,
    Connections,
    New,
    /// All have one that they do not reach.
    High,
    /// Those without traffic have one that holds them back.
    Low,
    Inflight,
}

impl Options {
    fn parse() -> Options {
        let mut options = Options {
            repeats: 5000,
            workers: 1,
            quantum_cycles: QUANTUM_CYCLES,
            addresses: 1,
            idle: 0,
            sampling: 0,
            features: PortOptions::default().features,
            limits: Limits::None,
            flows: 0,
        };
        for word in std::env::args().skip(1) {
            match (word.as_str(), word.split_once('=')) {
                ("counted", _) => options.quantum_cycles = u64::MAX >> 16,
                ("limited", _) => options.limits = Limits::High,
                ("held", _) => options.limits = Limits::Low,
                ("security", _) => options.limits = Limits::Security,
                ("stateless", _) => options.limits = Limits::Stateless,
                ("rules", _) => options.limits = Limits::Rules,
                ("connections", _) => options.limits = Limits::Connections,
                ("new", _) => options.limits = Limits::New,
                ("inflight", _) => options.limits = Limits::Inflight,
                (_, Some(("flows", number))) => options.flows = number.parse().unwrap(),
                ("packed", _) => options.features |= feature::RING_PACKED,
                ("unmerged", _) => options.features &= !feature::MRG_RXBUF,
                ("inorder", _) => options.features |= feature::IN_ORDER,
                (_, Some(("addresses", number))) => options.addresses = number.parse().unwrap(),
                (_, Some(("workers", number))) => options.workers = number.parse().unwrap(),
                (_, Some(("idle", number))) => options.idle = number.parse().unwrap(),
                (_, Some(("sampling", number))) => options.sampling = number.parse().unwrap(),
                (number, _) => options.repeats = number.parse().expect("see the top of the source"),
            }
        }
        let of_connections = [
            Limits::Security,
            Limits::Stateless,
            Limits::Rules,
            Limits::Connections,
            Limits::New,
        ];
        if of_connections.contains(&options.limits) && options.flows == 0 {
            options.flows = 10_000;
        }
        options
    }

    /// A sampler without a reader: its slots are soon full, and the rest is counted as missed.
    fn sampler(&self) -> Option<Arc<Sampler>> {
        let new = |every| {
            let (workers, clock) = (self.workers.into(), Clock::calibrate());
            Sampler::new((every, 128), SLOTS, workers, &clock, 1)
        };
        (self.sampling > 0).then_some(self.sampling).map(new)
    }

    /// `number`: 0 for the guest that sends, 1 for the one that receives, more for those without traffic.
    fn port(&self, limits: Limits, number: u16) -> PortOptions {
        let (is_idle, is_sender) = (number > 1, number == 0);
        let limit = match limits {
            Limits::Low if is_idle => LOW,
            Limits::High | Limits::Low => HIGH,
            _ => RateLimit::default(),
        };
        let groups = is_sender.then(|| groups(limits)).flatten();
        let is_secure = limits == Limits::Security && is_sender;
        PortOptions {
            features: self.features,
            meter_out: Meter::new(limit, HZ, tsc()).map(Arc::new),
            groups,
            tracks: limits == Limits::Inflight,
            macs: if is_secure {
                vec![address(0, 0)]
            } else {
                Vec::new()
            },
            ips: if is_secure {
                vec![SOURCE.into()]
            } else {
                Vec::new()
            },
            ..PortOptions::default()
        }
    }
}

/// Source of all packets.
const SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));

/// The groups of a guest that sends.
fn groups(limits: Limits) -> Option<Arc<GroupPolicy>> {
    let rule = |port: u16, remote: Option<Arc<[IpNet]>>, stateful| Rule {
        name: String::new(),
        direction: Direction::Out,
        ip_version: None,
        protocol: Some(17),
        ports: Box::new([port..=port]),
        icmp: None,
        remote,
        link: LinkParts::default(),
        stateful,
    };
    let rules = match limits {
        Limits::Stateless => vec![rule(53, None, false)],
        Limits::Rules => {
            let hosts = (0..10_000u32)
                .map(|number| IpAddr::from(Ipv4Addr::from_bits(DESTINATIONS + 7 * number)).into());
            let set: Arc<[IpNet]> = hosts.chain(["11.0.0.0/8".parse().unwrap()]).collect();
            let others = (1000..1999).map(|port| rule(port, Some(set.clone()), false));
            others.chain([rule(53, Some(set.clone()), false)]).collect()
        }
        Limits::Connections | Limits::New => vec![rule(53, None, true)],
        _ => return None,
    };
    let began = Instant::now();
    let table = RuleTable::compile(rules, 1).expect("few rules");
    eprintln!(
        "rules compiled in {:.1} ms",
        began.elapsed().as_secs_f64() * 1e3
    );
    let zone = Zone::new(1, u32::MAX / 2);
    Some(Arc::new(GroupPolicy::new(
        table.into(),
        zone.into(),
        0,
        false,
    )))
}

/// First destination of packets: each has 65 536 connections.
const DESTINATIONS: u32 = 0x0b00_0000;

#[inline(never)]
fn turn(worker: &mut Worker, times: &mut Times) {
    worker.turn(times);
}

/// Returns a guest's address number `number`.
fn address(guest: u16, number: u32) -> [u8; 6] {
    let [high, low] = (number as u16).to_be_bytes();
    let [guest_high, guest_low] = guest.to_be_bytes();
    [2, 0, high, low, guest_high, guest_low]
}

/// A worker that has not started, and all guests that it serves.
struct Side {
    /// Number of the worker and of its core.
    number: usize,
    link: Arc<WorkerLink>,
    from: Driver,
    to: Driver,
    idle: Vec<Driver>,
}

/// Writes frames numbered from `first` on, with `addresses` addresses.
fn write_frames(driver: &Driver, [from, to]: [u16; 2], first: u32, (addresses, flows): (u32, u32)) {
    let area = driver.transmit.area().view();
    let mut bytes = [0; 12 + FRAME_LEN];
    bytes[..12].copy_from_slice(&VirtioNetHdr::default().to_bytes());
    bytes[24] = 8;
    for i in 0..FRAMES {
        let number = (first + i as u32) % addresses;
        let product = u64::from(number) * u64::from(DESTINATION_STEP);
        let destination = (product % u64::from(addresses)) as u32;
        bytes[12..18].copy_from_slice(&address(to, destination));
        bytes[18..24].copy_from_slice(&address(from, number));
        if flows > 0 {
            // In an order that no prefetcher guesses.
            let flow = (u64::from(first) + i as u64).wrapping_mul(2_654_435_761) % u64::from(flows);
            write_packet(&mut bytes[24..], flow as u32);
        }
        area.write(i * STRIDE + OFFSET, &bytes);
    }
}

/// Writes the type and the headers of a packet of connection `flow`.
fn write_packet(bytes: &mut [u8], flow: u32) {
    bytes[..2].copy_from_slice(&[8, 0]);
    let packet = &mut bytes[2..];
    packet[..12].copy_from_slice(&[0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0, 0]);
    packet[12..16].copy_from_slice(&[10, 0, 0, 1]);
    packet[16..20].copy_from_slice(&(DESTINATIONS + (flow >> 16)).to_be_bytes());
    packet[20..22].copy_from_slice(&(flow as u16).to_be_bytes());
    packet[22..28].copy_from_slice(&[0, 53, 0, 26, 0, 0]);
}

fn send_all(driver: &mut Driver) {
    let area = driver.transmit.area().guest_address();
    for i in 0..FRAMES {
        let buffer = Buffer {
            address: area + (i * STRIDE + OFFSET) as u64,
            len: (12 + FRAME_LEN) as u32,
            device_writes: false,
        };
        let added = driver.transmit.virtqueue().add(&[buffer]);
        assert!(added.is_some(), "the ring is empty");
    }
    let _ = driver.transmit.virtqueue().publish();
}

/// Creates workers with two ports each, whose addresses are all known, and further ports without traffic.
fn start(options: &Options, limits: Limits) -> (Arc<Shared>, Arc<Snapshot>, Vec<Side>) {
    let shared = Arc::new(Shared {
        stop: AtomicBool::new(false),
        tick: AtomicU8::new(0),
        faults: ArrayQueue::new(8),
        quantum_cycles: options.quantum_cycles,
    });
    let each = 2 + options.idle;
    let mut drivers = Vec::new();
    let (mut ports, mut streams) = (Vec::new(), Vec::new());
    for number in 0..each * options.workers {
        let port_options = options.port(limits, number % each);
        let (mut driver, port) = port(number, &port_options, options.workers.into());
        if number % each > 0 {
            driver.post_all();
        }
        drivers.push(driver);
        ports.push(Some(port.view));
        streams.push(port.stream);
    }
    let entries = 4 * 2 * options.addresses as usize * usize::from(options.workers);
    let fdb = Arc::new(Fdb::new(entries, [1, 2]));
    let flows = FlowHasher::new(3);
    let view = Snapshot::new(ports.into(), fdb.clone(), flows, Box::new([]));
    let has_groups = view
        .ports
        .iter()
        .flatten()
        .any(|port| port.groups.is_some());
    let connections = Connections::new(options.flows as usize + FRAMES, Timeouts::default());
    let connections = has_groups.then(|| Arc::new(connections));
    let view = view.with_connections(connections);
    let view = Arc::new(view.with_sampler(options.sampler()));
    let busy = (0..each * options.workers).filter(|number| number % each < 2);
    for (guest, number) in busy.flat_map(|guest| (0..options.addresses).map(move |n| (guest, n))) {
        let key = fdb.key(Mac::new(address(guest, number)), 0);
        fdb.learn(key, guest, 0, |port| {
            view.port(port).map(|port| &*port.quota)
        });
    }
    let mut sides = Vec::new();
    for number in 0..options.workers {
        let link = Arc::new(WorkerLink::new(Waker::new().expect("an eventfd")));
        let mut update = Update::new(view.clone(), each.into());
        update.add = streams.drain(..usize::from(each)).collect();
        assert!(link.mailbox.publish(update).is_ok());
        let mut own = drivers.drain(..usize::from(each));
        let mut next = || own.next().expect("as many as streams");
        sides.push(Side {
            number: number.into(),
            link,
            from: next(),
            to: next(),
            idle: own.collect(),
        });
    }
    (shared, view, sides)
}

impl Side {
    /// Has each guest without traffic send a frame, which uses its credit up, and another one, which waits.
    fn hold_back(&mut self, worker: &mut Worker) {
        let mut frame = [8; FRAME_LEN];
        let first = self.number as u16 * (2 + self.idle.len() as u16);
        frame[..6].copy_from_slice(&address(first + 1, 0));
        for (number, driver) in (first + 2..).zip(&mut self.idle) {
            frame[6..12].copy_from_slice(&address(number, 0));
            driver.send(&frame);
            driver.send(&frame);
            let _ = driver.transmit.virtqueue().publish();
        }
        let mut times = Times::begin();
        for _ in 0..HOLD_TURNS {
            turn(worker, &mut times);
            drop(self.to.received());
        }
    }

    /// Sends, delivers and receives 256 frames. Returns the worker's cycles.
    fn repeat(&mut self, worker: &mut Worker, options: &Options, repeat: usize) -> u64 {
        if repeat == 0 || options.addresses > 1 || options.flows > 0 {
            let first = self.number as u16 * (2 + options.idle);
            let guests = [first, first + 1];
            write_frames(
                &self.from,
                guests,
                (repeat * FRAMES) as u32,
                (options.addresses, options.flows),
            );
        }
        send_all(&mut self.from);
        let mut times = Times::begin();
        let began = tsc();
        for _ in 0..FRAMES / BURST {
            turn(worker, &mut times);
        }
        let cycles = tsc() - began;
        let mut got = 0;
        // A burst that was interrupted makes the next ones shorter, so frames may be left.
        while got < FRAMES {
            turn(worker, &mut times);
            got += self.to.received()[0].len();
        }
        let sent = self.from.transmit.virtqueue();
        while sent.pop_used().expect("a sound ring").is_some() {}
        cycles
    }
}

/// Measures without and with limits in turns, so that both meet the same clock of the core.
fn compare(options: &Options) {
    let sides = [Limits::None, options.limits].map(|limits| {
        let (shared, view, mut sides) = start(options, limits);
        let mut side = sides.remove(0);
        let mut worker = Worker::new(0, shared, side.link.clone(), view.clone(), Idle::Spin);
        if limits == Limits::Low {
            side.hold_back(&mut worker);
        }
        // Until all connections are known.
        for repeat in 0..options.flows as usize / FRAMES + 1 {
            side.repeat(&mut worker, options, repeat);
        }
        (worker, side, view)
    });
    let mut sides = sides;
    let mut medians = [Vec::new(), Vec::new()];
    for round in 0..ROUNDS {
        for number in [round % 2, (round + 1) % 2] {
            let (worker, side, view) = &mut sides[number];
            let connections = view
                .connections
                .clone()
                .filter(|_| options.limits == Limits::New);
            medians[number].push(measure(worker, side, options, connections.as_deref())[1]);
        }
    }
    let mut ratios: Vec<f64> = medians[0]
        .iter()
        .zip(&medians[1])
        .map(|(a, b)| b / a)
        .collect();
    for values in medians.iter_mut().chain([&mut ratios]) {
        values.sort_unstable_by(f64::total_cmp);
    }
    let middle = |values: &[f64]| values[ROUNDS / 2];
    let [without, with] = &medians;
    println!(
        "cycles a frame, median of {ROUNDS} rounds: {:.1} without, {:.1} with; with over without {:.3} ({:.3} to {:.3})",
        middle(without),
        middle(with),
        middle(&ratios),
        ratios[0],
        ratios[ROUNDS - 1]
    );
}

/// Cycles per frame: the best hundredth, and the median.
type Cost = [f64; 2];

/// Shared by all threads.
#[derive(Default)]
struct Phase {
    ready: AtomicUsize,
    done: AtomicUsize,
}

impl Phase {
    /// Yields the core until all threads have arrived.
    fn begin(&self, threads: usize) {
        self.ready.fetch_add(1, Ordering::Relaxed);
        while self.ready.load(Ordering::Relaxed) < threads {
            std::thread::sleep(LOOK);
        }
    }
}

/// One worker's thread: measures alone, and with all others at the same time.
fn work(mut worker: Worker, mut side: Side, options: &Options, phases: &[Phase]) -> [Cost; 2] {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    if let Some(core) = cores.get(side.number).filter(|_| options.workers > 1) {
        core_affinity::set_for_current(*core);
    }
    let mut costs = [Cost::default(); 2];
    let threads = usize::from(options.workers);
    for (number, phase) in phases.iter().enumerate() {
        phase.begin(threads);
        if number == side.number {
            costs[0] = measure(&mut worker, &mut side, options, None);
        } else if number == threads {
            costs[1] = measure(&mut worker, &mut side, options, None);
            phase.done.fetch_add(1, Ordering::Relaxed);
            // Keeps running so that the others do not finish alone.
            while phase.done.load(Ordering::Relaxed) < threads {
                side.repeat(&mut worker, options, 1);
            }
        }
    }
    costs
}

/// Measures. `forgets`: before each repeat, all these connections are forgotten.
fn measure(
    worker: &mut Worker,
    side: &mut Side,
    options: &Options,
    forgets: Option<&Connections>,
) -> Cost {
    let cycles = |repeat| {
        if let Some(connections) = forgets {
            connections.sweep(0, connections.capacity(), |_| None);
        }
        side.repeat(worker, options, repeat)
    };
    let mut costs: Vec<u64> = (0..options.repeats).map(cycles).collect();
    costs.drain(..WARMUP.min(options.repeats - 1));
    costs.sort_unstable();
    [1, 50].map(|percent| costs[costs.len() * percent / 100] as f64 / FRAMES as f64)
}

fn main() {
    let options = Options::parse();
    if options.limits != Limits::None {
        return compare(&options);
    }
    let (shared, view, sides) = start(&options, Limits::None);
    let count = sides.len();
    // Each alone, then, if there are several, all at once.
    let all = if count == 1 { 1 } else { count + 1 };
    let phases: Vec<Phase> = (0..all).map(|_| Phase::default()).collect();
    let costs: Vec<[Cost; 2]> = std::thread::scope(|scope| {
        let spawn = |side: Side| {
            let (shared, view) = (shared.clone(), view.clone());
            let (options, phases) = (&options, &phases[..]);
            scope.spawn(move || {
                let link = side.link.clone();
                let worker = Worker::new(side.number, shared, link, view, Idle::Spin);
                work(worker, side, options, phases)
            })
        };
        let threads: Vec<_> = sides.into_iter().map(spawn).collect();
        let costs = threads.into_iter().map(|thread| thread.join().unwrap());
        costs.collect()
    });
    for (number, [[best, median], [best_beside, median_beside]]) in costs.into_iter().enumerate() {
        if count == 1 {
            println!("cycles a frame: {best:.1} (1 %), {median:.1} (median)");
            return;
        }
        println!(
            "worker {number}, cycles a frame: alone {best:.1} (1 %), {median:.1} (median); \
             beside the others {best_beside:.1}, {median_beside:.1}; rate kept: {:.1} %, {:.1} %",
            100.0 * best / best_beside,
            100.0 * median / median_beside
        );
    }
}
