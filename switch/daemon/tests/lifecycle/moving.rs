//! Streams that move between workers while frames flow.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crosspoint_config::{Config, PortKind};
use crosspoint_daemon::dataplane::{
    BalanceOptions, Dataplane, DataplaneOptions, MoveError, PortChange, PortOptions,
};
use crosspoint_daemon::ports::nic::{UplinkOptions, Uplinks};
use crosspoint_daemon::ports::vhost::VhostPort;
use crosspoint_engine::snapshot::Egress;
use crosspoint_guest::message::protocol;
use crosspoint_guest::{Guest, GuestOptions};
use crosspoint_model::status::ShownState;

use super::direct::{leave_for_a_wire, run};
use super::load::{Load, Loss};
use super::{Case, Housekeeper, PATIENCE, PINNED, PORTS, Switch, dataplane, options};

/// Two workers, without automatic moves.
fn two_workers(sleep_after: Option<Duration>) -> DataplaneOptions {
    DataplaneOptions {
        sleep_after,
        balance: BalanceOptions {
            auto: false,
            ..BalanceOptions::default()
        },
        ..options(2, 0)
    }
}

const ADAPTIVE: Option<Duration> = Some(Duration::from_micros(50));

fn case(packed: bool) -> Case {
    Case {
        packed,
        in_order: packed,
        workers: 2,
    }
}

fn moves(dataplane: &Dataplane) -> u64 {
    dataplane
        .status()
        .workers
        .iter()
        .map(|w| w.stream_moves)
        .sum()
}

/// The worker that polls a queue, if any does.
fn place(switch: &Switch, port: &str, queue: usize) -> Option<usize> {
    switch.port(port).queues[queue].worker
}

/// Moves queue 0 of a port, as soon as both workers have their cores.
fn move_now(switch: &Switch, port: &str, to: usize) {
    let start = Instant::now();
    while let Err(why) = switch.dataplane.move_stream(port, 0, to) {
        let waits = matches!(why, MoveError::Stalled { .. }) && start.elapsed() < PATIENCE;
        assert!(waits, "{why}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Moves streams back and forth until stopped.
struct Mover {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<[u64; 2]>,
}

impl Mover {
    fn start(dataplane: &Arc<Dataplane>, streams: &'static [(&'static str, u16)]) -> Mover {
        let stop = Arc::new(AtomicBool::new(false));
        let (dataplane, seen) = (dataplane.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let [mut moved, mut put_off] = [0; 2];
            let mut turn = 0;
            while !seen.load(Ordering::Relaxed) {
                for (port, queue) in streams {
                    // Streams move in different combinations each time.
                    match dataplane.move_stream(port, *queue, (turn + usize::from(*queue)) % 2) {
                        Ok(()) => moved += 1,
                        Err(MoveError::PutOff { .. }) => put_off += 1,
                        // The guest comes and goes, or a worker loses its core.
                        Err(MoveError::NoStream { .. } | MoveError::Stalled { .. }) => {}
                        Err(other) => panic!("{other}"),
                    }
                }
                turn += 1;
                std::thread::sleep(Duration::from_micros(200));
            }
            [moved, put_off]
        });
        Mover { stop, thread }
    }

    /// Numbers of moves made and put off.
    fn finish(self) -> [u64; 2] {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("streams can be moved")
    }
}

#[test]
fn streams_that_move_hundreds_of_times_under_load_lose_nothing_and_keep_their_order() {
    for (packed, sleep_after) in [
        (false, ADAPTIVE),
        (true, ADAPTIVE),
        (false, None),
        (true, None),
    ] {
        println!("packed {packed}, sleeping {sleep_after:?}");
        let switch = Switch::start_with(two_workers(sleep_after), &PORTS, 2);
        let others = switch.bystanders(case(packed));
        let two_pairs = GuestOptions {
            queue_pairs: 2,
            ..case(packed).guest(protocol::MQ)
        };
        let mut guests = ["a", "b"].map(|name| switch.guest(name, two_pairs.clone()));
        let [a, b] = &mut guests;
        let load = Load::start(a, b, 1, Loss::None);
        let mover = Mover::start(&switch.dataplane, &[("a", 0), ("a", 1), ("b", 0), ("b", 1)]);
        let start = Instant::now();
        // If busy-polling workers share their cores with others, a step may take long.
        while moves(&switch.dataplane) < 200 && start.elapsed() < PATIENCE / 2 {
            load.flow(20);
        }
        assert!(moves(&switch.dataplane) > 5);
        let [_, put_off] = mover.finish();
        assert_eq!(put_off, 0, "there is no NIC");
        load.flow(100);
        load.finish().expect_all();
        others.check(&switch);
        switch.check_ledger();
    }
}

/// Both workers sleep at the move, and the next frame must wake the right one.
#[test]
fn a_stream_that_moved_while_all_slept_wakes_its_new_worker() {
    let switch = Switch::start_with(two_workers(ADAPTIVE), &["a", "b"], 1);
    let mut guests = ["a", "b"].map(|name| switch.guest(name, case(false).guest(0)));
    let [a, b] = &mut guests;
    let load = Load::start(a, b, 1, Loss::None);
    for turn in 0..100 {
        load.with(|pair| pair.held = true);
        std::thread::sleep(Duration::from_millis(1));
        for port in ["a", "b"] {
            let to = 1 - place(&switch, port, 0).expect("a worker");
            move_now(&switch, port, to);
            assert_eq!(place(&switch, port, 0), Some(to));
        }
        if turn % 2 == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        load.with(|pair| pair.held = false);
        load.flow(3);
    }
    load.finish().expect_all();
    switch.check_ledger();
}

/// The guest reconnects, or breaks its ring's rules and is quarantined, during the moves.
#[test]
fn guests_that_go_or_lie_while_their_streams_move_cost_others_nothing() {
    let switch = Switch::start_with(two_workers(ADAPTIVE), &PORTS, 1);
    let others = switch.bystanders(case(false));
    let mover = Mover::start(&switch.dataplane, &[("a", 0), ("b", 0)]);
    for round in 0..16 {
        let mut guests = ["a", "b"].map(|name| switch.guest(name, case(false).guest(0)));
        match round % 2 {
            0 => {
                let [a, b] = &mut guests;
                let load = Load::start(a, b, 1, Loss::Counted);
                load.flow(50);
                a.disconnect();
                load.abort();
            }
            _ => {
                let queue = guests[0].transmit_queue(0).expect("a queue");
                let runaway = queue.ring().avail_idx().wrapping_add(5000);
                queue.ring().set_avail_idx(runaway);
                guests[0].kick(1).expect("a ring");
                switch.wait("a", |port| port.state == ShownState::Quarantined);
            }
        }
        drop(guests);
        for name in ["a", "b"] {
            switch.wait(name, |port| port.state == ShownState::Down);
        }
    }
    let [moved, _] = mover.finish();
    assert!(moved > 0);
    others.check(&switch);
    switch.check_ledger();
}

#[test]
fn what_cannot_move_is_refused_with_a_reason() {
    let switch = Switch::start_with(two_workers(ADAPTIVE), &["a", PINNED.0], 1);
    let _guests = ["a", PINNED.0].map(|name| switch.guest(name, case(false).guest(0)));
    let ask = |port: &str, queue, worker| switch.dataplane.move_stream(port, queue, worker);
    let refused = |port: &str, queue, worker| ask(port, queue, worker).expect_err("a refusal");
    let why = refused("nobody", 0, 0);
    assert_eq!(why.to_string(), "no port is named \"nobody\"");
    let why = refused("a", 1, 0);
    assert_eq!(
        why.to_string(),
        "no worker polls queue 1 of port a: its ring does not run"
    );
    let why = refused("a", 0, 2);
    assert_eq!(why.to_string(), "there is no worker 2: the last one is 1");
    let why = refused(PINNED.0, 0, 0);
    assert_eq!(
        why.to_string(),
        "port pinned is pinned: its configuration has `worker = 1`"
    );
    assert_eq!(place(&switch, PINNED.0, 0), Some(1));
    // It is there already.
    assert_eq!(ask(PINNED.0, 0, 1), Ok(()));
    assert_eq!(moves(&switch.dataplane), 0);
}

/// One of two streams moves.
#[test]
fn what_a_stream_cost_before_it_went_is_not_charged_to_those_that_stay() {
    let switch = Switch::start_with(two_workers(ADAPTIVE), &["a", "b"], 1);
    let mut guests = ["a", "b"].map(|name| switch.guest(name, case(false).guest(0)));
    let [a, b] = &mut guests;
    for port in ["a", "b"] {
        move_now(&switch, port, 0);
    }
    let load = Load::start(a, b, 1, Loss::None);
    load.flow(300);
    load.with(|pair| pair.held = true);
    std::thread::sleep(Duration::from_millis(10));
    let [a, b] = ["a", "b"].map(|port| switch.port(port).queues[0].cycles as f64);
    move_now(&switch, "a", 1);
    let worker = &switch.dataplane.status().workers[0];
    let [stays] = &worker.streams[..] else {
        panic!("{worker:?}");
    };
    let (busy, expected) = (worker.window.busy, worker.window.busy * b / (a + b));
    assert!(
        a > 0.0 && (stays.share - expected).abs() < 0.03 * busy,
        "{a} {b} {worker:?}"
    );
    load.with(|pair| pair.held = false);
    load.finish().expect_all();
}

/// All load is on one worker with a low threshold: it is relieved, a pinned stream stays, and `show` reports it all.
#[test]
fn a_worker_with_too_much_to_do_is_relieved() {
    let balance = BalanceOptions {
        auto: true,
        interval: Duration::from_millis(100),
        busy_permille_max: 2,
        gain_permille_min: 1,
    };
    let options = DataplaneOptions {
        balance,
        ..two_workers(ADAPTIVE)
    };
    let switch = Switch::start_with(options, &["a", "b", PINNED.0], 1);
    let mut guests = ["a", "b"].map(|name| switch.guest(name, case(false).guest(0)));
    let _pinned = switch.guest(PINNED.0, case(false).guest(0));
    let [a, b] = &mut guests;
    let load = Load::start(a, b, 1, Loss::None);
    let start = Instant::now();
    for port in ["a", "b"] {
        move_now(&switch, port, 1);
    }
    let by_hand = moves(&switch.dataplane);
    while moves(&switch.dataplane) == by_hand {
        assert!(
            start.elapsed() < PATIENCE,
            "{:#?}",
            switch.dataplane.status().workers
        );
        load.flow(20);
    }
    assert_eq!(place(&switch, PINNED.0, 0), Some(PINNED.1));
    let workers = switch.dataplane.status().workers;
    for worker in &workers {
        let window = worker.window;
        assert!(
            (window.busy + window.idle + window.sleep - 1.0).abs() < 1e-6,
            "{worker:?}"
        );
        let shares: f64 = worker.streams.iter().map(|stream| stream.share).sum();
        // They are read one after the other.
        assert!(shares <= window.busy + 1e-3, "{worker:?}");
    }
    let streams = workers.iter().flat_map(|worker| &worker.streams);
    let pinned = streams.filter(|stream| stream.fixed.as_deref() == Some("pinned"));
    assert_eq!(
        pinned.map(|stream| &*stream.port).collect::<Vec<_>>(),
        [PINNED.0]
    );
    load.finish().expect_all();
    let cycles: u64 = ["a", "b"]
        .map(|name| switch.port(name).queues[0].cycles)
        .iter()
        .sum();
    let busy: u64 = switch
        .dataplane
        .status()
        .workers
        .iter()
        .map(|w| w.busy_cycles)
        .sum();
    assert!(0 < cycles && cycles <= busy, "{cycles} of {busy}");
    switch.check_ledger();
}

/// A guest's datagrams to a host at the other end of a wire.
struct Datagrams {
    to: [u8; 6],
}

impl Datagrams {
    fn frame(&self, number: u32) -> Vec<u8> {
        let ip = [
            &[0x45, 0, 0, 32, 0, 0, 0x40, 0, 64, 17, 0, 0][..],
            &[10, 9, 0, 2, 10, 9, 0, 1],
        ];
        let mut ip = ip.concat();
        let words = ip
            .chunks(2)
            .map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
        let sum: u32 = words.sum();
        let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        // UDP from port 1000 to 9999, no checksum.
        let udp = [3, 232, 0x27, 0x0f, 0, 12, 0, 0];
        let source = [0x52, 0x54, 0, 0, 0, 1];
        let number = number.to_be_bytes();
        [&self.to[..], &source, &[8, 0], &ip, &udp, &number, &[0; 14]].concat()
    }
}

fn wired(
    directory: &std::path::Path,
    queues: &str,
) -> (Config, Arc<Dataplane>, Vec<VhostPort>, Uplinks) {
    let socket = directory.join("a").display().to_string();
    let text = format!(
        "version = 1\n[[port]]\nname = \"a\"\ntype = \"vhost\"\nsocket = \"{socket}\"\n\
         [[port]]\nname = \"near\"\ntype = \"xdp\"\ninterface = \"near\"\nqueues = {queues}\n"
    );
    let config = Config::parse("test", &text).unwrap_or_else(|error| panic!("{error}"));
    let dataplane = dataplane(2, 2);
    let (mut ports, mut uplinks) = (Vec::new(), Vec::new());
    for port in &config.ports {
        let number = dataplane.add_port(PortOptions {
            name: port.name.clone(),
            kind: "",
            queues: 2,
            ..PortOptions::default()
        });
        let number = number.expect("a number is free");
        match &port.kind {
            PortKind::Vhost(vhost) => {
                let open = VhostPort::open(dataplane.clone(), number, &port.name, vhost);
                ports.push(open.expect("nothing is in the way"));
            }
            PortKind::Xdp(xdp) => uplinks.push(UplinkOptions {
                number,
                name: port.name.clone(),
                config: xdp.clone(),
                direct: Vec::new(),
            }),
        }
    }
    let uplinks = Uplinks::start(&dataplane, uplinks).expect("root may do so");
    (config, dataplane, ports, uplinks)
}

/// Reads numbers until there were `count`, or none arrived for long. They must be in order.
fn read(socket: &UdpSocket, count: u32, seen: &AtomicU64) {
    let mut bytes = [0; 64];
    for expected in 0..count {
        let len = socket.recv(&mut bytes).expect("a datagram comes");
        assert_eq!(len, 4);
        let number = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        assert_eq!(number, expected, "lost, or overtaken");
        seen.store(u64::from(number) + 1, Ordering::Release);
    }
}

fn send_all(guest: &mut Guest, count: u32, to: [u8; 6], seen: &AtomicU64) {
    let (datagrams, mut last_sent) = (Datagrams { to }, Instant::now());
    let mut next = 0;
    while next < count {
        assert!(last_sent.elapsed() < PATIENCE, "{next} sent, {seen:?} came");
        let room = 64 - (u64::from(next) - seen.load(Ordering::Acquire)).min(64);
        let last = (next + room as u32).min(count);
        if last == next {
            std::thread::yield_now();
            continue;
        }
        last_sent = Instant::now();
        let frames: Vec<Vec<u8>> = (next..last).map(|n| datagrams.frame(n)).collect();
        let frames: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
        next += guest.send(0, &frames).expect("a queue") as u32;
        guest.drain_transmit(0, PATIENCE).expect("a queue");
    }
}

/// A host at one end of a wire in its own namespace; returns its address.
fn wire_to_a_host() -> [u8; 6] {
    leave_for_a_wire();
    run("ip addr add 10.9.0.1/24 dev wire");
    let address = std::fs::read_to_string("/sys/class/net/wire/address").expect("it is there");
    let bytes = address
        .trim()
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16));
    let bytes: Vec<u8> = bytes.map(|byte| byte.expect("a byte")).collect();
    bytes.try_into().expect("six bytes")
}

/// Moves the guest's stream as soon as possible.
fn move_stream_now(dataplane: &Dataplane, to: usize) {
    let start = Instant::now();
    while let Err(why) = dataplane.move_stream("a", 0, to) {
        assert!(start.elapsed() < PATIENCE, "{why}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn wait_up(dataplane: &Dataplane) {
    let start = Instant::now();
    while !dataplane
        .status()
        .ports
        .iter()
        .all(|port| port.state == ShownState::Up)
    {
        assert!(
            start.elapsed() < PATIENCE,
            "{:#?}",
            dataplane.status().ports
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A worker that only sends what others hand off is busy, and that is not the load of its own streams.
#[test]
fn a_worker_that_sends_for_others_is_busy_and_its_own_streams_are_not() {
    let to = wire_to_a_host();
    let directory = tempfile::tempdir().expect("a directory can be made");
    let (_, dataplane, _ports, _uplinks) = wired(directory.path(), "[0]");
    let _housekeeper = Housekeeper::start(dataplane.clone());
    let socket = UdpSocket::bind("10.9.0.1:9999").expect("an address of this namespace");
    socket.set_read_timeout(Some(PATIENCE)).expect("a time");
    let mut guest = Guest::connect(directory.path().join("a"), case(false).guest(0));
    let guest = guest.as_mut().expect("the guest connects");
    wait_up(&dataplane);
    let owner = dataplane.status().ports[1].queues[0].worker;
    let owner = owner.expect("a worker");
    move_stream_now(&dataplane, 1 - owner);
    let before = dataplane.status().workers;
    let seen = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| read(&socket, 5000, &seen));
        send_all(guest, 5000, to, &seen);
    });
    let after = dataplane.status().workers;
    let since = |worker: usize| {
        let (before, after) = (&before[worker], &after[worker]);
        let bursts = after.bursts - before.bursts;
        (bursts, after.busy_cycles - before.busy_cycles)
    };
    let ((bursts, busy), (few, for_others)) = (since(1 - owner), since(owner));
    assert!(few < 20 && bursts > 70, "{few} bursts, {bursts}");
    assert!(for_others > busy / 10, "{for_others} cycles, {busy}");
    let after = &after[owner];
    let own: f64 = after.streams.iter().map(|stream| stream.share).sum();
    assert!(own < after.window.busy / 2.0, "{after:?}");
}

/// An interface that is down keeps what it was given, and sends it when it is up again.
#[test]
fn a_stream_stays_while_a_nic_holds_what_its_worker_gave_it() {
    let datagrams = Datagrams {
        to: wire_to_a_host(),
    };
    let directory = tempfile::tempdir().expect("a directory can be made");
    let (_, dataplane, _ports, _uplinks) = wired(directory.path(), "[0, 1]");
    let _housekeeper = Housekeeper::start(dataplane.clone());
    let mut guest = Guest::connect(directory.path().join("a"), case(false).guest(0));
    let guest = guest.as_mut().expect("the guest connects");
    let put_off = || {
        let workers = dataplane.status().workers;
        workers.iter().map(|w| w.stream_moves_put_off).sum::<u64>()
    };
    let place = || {
        dataplane.status().ports[0].queues[0]
            .worker
            .expect("a worker")
    };
    let mut send = || {
        let frames: Vec<Vec<u8>> = (0..16).map(|n| datagrams.frame(n)).collect();
        let frames: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
        guest.send(0, &frames).expect("a queue");
        guest.drain_transmit(0, PATIENCE).expect("a queue");
    };
    wait_up(&dataplane);
    send();
    std::thread::scope(|scope| {
        // In this thread's namespace.
        scope.spawn(|| run("ip link set near down"));
        while dataplane.status().ports[1].state == ShownState::Up {
            send();
        }
    });
    // It may be down for days: no move waits for it.
    move_stream_now(&dataplane, 1 - place());
    let other = 1 - place();
    // The switch has not noticed yet.
    let up = PortChange {
        egress: Some(Egress::Nic),
        ..PortChange::default()
    };
    dataplane.change(1, up).expect("a port");
    send();
    let asked = dataplane.move_stream("a", 0, other);
    assert_eq!(asked, Err(MoveError::PutOff { from: 1 - other }));
    assert_eq!((put_off(), place()), (1, 1 - other));
    run("ip link set near up");
    wait_up(&dataplane);
    move_stream_now(&dataplane, other);
    assert_eq!(place(), other);
}

/// Each worker sends through its own queue, or one through the other's, while the stream moves back and forth.
#[test]
fn a_flow_to_a_wire_keeps_its_order_while_its_stream_moves() {
    const COUNT: u32 = 10_000;
    let to = wire_to_a_host();
    for queues in ["[0, 1]", "[0]", "[1]"] {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let (_, dataplane, ports, uplinks) = wired(directory.path(), queues);
        let housekeeper = Housekeeper::start(dataplane.clone());
        let socket = UdpSocket::bind("10.9.0.1:9999").expect("an address of this namespace");
        socket.set_read_timeout(Some(PATIENCE)).expect("a time");
        let mut guest = Guest::connect(directory.path().join("a"), case(false).guest(0));
        let guest = guest.as_mut().expect("the guest connects");
        wait_up(&dataplane);
        let start = Instant::now();
        let why = dataplane
            .move_stream("near", 0, 0)
            .expect_err("a NIC's queue stays");
        assert!(
            matches!(why, MoveError::Nic { .. } | MoveError::NoStream { .. }),
            "{why}"
        );
        let mover = Mover::start(&dataplane, &[("a", 0)]);
        let seen = AtomicU64::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| read(&socket, COUNT, &seen));
            send_all(guest, COUNT, to, &seen);
        });
        let [moved, put_off] = mover.finish();
        println!(
            "queues {queues}: {moved} moves, {put_off} put off, {:?}",
            start.elapsed()
        );
        assert!(moved > 5, "{moved} moves, {put_off} put off");
        drop((ports, uplinks, housekeeper));
    }
}
