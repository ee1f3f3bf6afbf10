//! Uplinks in upgrades and crashes of the switch under a supervisor: their sockets stay, with all that is in their rings.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{Host, Lab, Process, Switch, s, xdp};

/// Flows of a stream, each from a socket of its own, so that they use all queues.
const FLOWS: usize = 4;
/// Datagrams of a flow in a millisecond.
const RATE: u32 = 5;
/// Memory for datagrams that wait for the receiver, bytes.
const RECEIVE_BUFFER: usize = 64 << 20;

/// Numbered datagrams in several flows.
struct Stream {
    /// Of each flow, how many were sent.
    sent: Vec<u32>,
    /// Of each flow, what arrived, in order.
    arrived: Vec<Vec<u32>>,
    /// The longest time in which nothing arrived.
    gap: Duration,
}

/// Sends until `ends` is set. Returns how many datagrams each flow has.
fn send(address: &str, ends: &AtomicBool) -> Vec<u32> {
    let sockets = [(); FLOWS].map(|()| UdpSocket::bind("0.0.0.0:0").expect("a socket"));
    let mut sent = vec![0; FLOWS];
    let start = Instant::now();
    while !ends.load(Ordering::Relaxed) {
        let due = start.elapsed().as_millis() as u32 * RATE;
        while sent[0] < due {
            for (flow, socket) in sockets.iter().enumerate() {
                let mut bytes = [0; 200];
                bytes[..4].copy_from_slice(&(flow as u32).to_be_bytes());
                bytes[4..8].copy_from_slice(&sent[flow].to_be_bytes());
                socket.send_to(&bytes, (address, 7777)).expect("it leaves");
                sent[flow] += 1;
            }
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    sent
}

/// Receives until nothing has come for a second after `ends` was set.
fn receive(ends: &AtomicBool) -> (Vec<Vec<u32>>, Duration) {
    let socket = UdpSocket::bind("0.0.0.0:7777").expect("a socket");
    rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER)
        .expect("memory");
    socket.set_read_timeout(Some(s(1))).expect("a time limit");
    let mut arrived = vec![Vec::new(); FLOWS];
    let (mut gap, mut last) = (Duration::ZERO, None::<Instant>);
    let mut bytes = [0; 256];
    loop {
        let Ok(200) = socket.recv(&mut bytes) else {
            if ends.load(Ordering::Relaxed) {
                return (arrived, gap);
            }
            continue;
        };
        let now = Instant::now();
        gap = gap.max(last.map_or(Duration::ZERO, |last| now - last));
        last = Some(now);
        let word = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
        arrived[word(0) as usize].push(word(4));
    }
}

/// A stream from `a` to `b` while `job` runs.
fn stream(a: &Host<'_>, b: &Host<'_>, job: impl FnOnce()) -> Stream {
    let ends = AtomicBool::new(false);
    let (sent, (arrived, gap)) = std::thread::scope(|scope| {
        let receiver = scope.spawn(|| b.inside(|| receive(&ends)));
        std::thread::sleep(s(1) / 10);
        let sender = scope.spawn(|| a.inside(|| send(&b.address, &ends)));
        job();
        ends.store(true, Ordering::Relaxed);
        (sender.join().unwrap(), receiver.join().unwrap())
    });
    Stream { sent, arrived, gap }
}

impl Stream {
    /// How many datagrams were lost. None may come twice or out of order.
    fn lost(&self) -> u32 {
        let mut lost = 0;
        for (sent, arrived) in self.sent.iter().zip(&self.arrived) {
            assert!(arrived.is_sorted_by(|a, b| a < b), "order and once each");
            lost += sent - arrived.len() as u32;
        }
        lost
    }
}

/// Uplinks with `queues` queues each, and two workers. With one queue, one worker hands frames off to the other.
fn upgrade(queues: u32) {
    let lab = Lab::new(s(60));
    let (a, b) = (
        Host::with_queues(&lab, "a", 1, queues),
        Host::with_queues(&lab, "b", 2, queues),
    );
    let switch = Switch::start_supervised(&lab, &[0, 1], &[xdp("a", &a), xdp("b", &b)]);
    a.must_ping(&b);
    let mut said = Vec::new();
    let stream = stream(&a, &b, || {
        for words in [&[][..], &["--dry-run"], &[], &["--back"]] {
            std::thread::sleep(s(1) / 2);
            let (status, text) = switch.upgrade(words);
            assert!(status.success(), "{text}\n{}", switch.log());
            said.push(text);
        }
        std::thread::sleep(s(1) / 2);
    });
    println!(
        "{queues} queue(s): {:?} sent, longest gap {:?}\n{}",
        stream.sent,
        stream.gap,
        said.concat()
    );
    assert_eq!(
        stream.lost(),
        0,
        "{:#}\n{}",
        switch.show_json("drops"),
        switch.log()
    );
    assert!(!switch.log().contains("opened anew"), "{}", switch.log());
    // The port still follows its interface.
    lab.ip(&format!("link set {} down", a.interface));
    switch.wait_down(&["a"]);
    lab.ip(&format!("link set {} up", a.interface));
    switch.wait_up(&["a", "b"]);
    a.must_ping(&b);
    switch.ledger();
}

#[test]
fn upgrades_lose_no_frame_between_uplinks_with_a_queue_for_each_worker() {
    upgrade(2);
}

#[test]
fn upgrades_lose_no_frame_between_uplinks_with_fewer_queues_than_workers() {
    upgrade(1);
}

/// Sockets that an upgrade's configuration does not have are closed everywhere: their queues are free, and nothing grows.
#[test]
fn an_upgrade_with_other_queues_opens_them_anew_and_leaves_none_behind() {
    let lab = Lab::new(s(90));
    let (a, b) = (
        Host::with_queues(&lab, "a", 1, 2),
        Host::with_queues(&lab, "b", 2, 2),
    );
    let switch = Switch::start_supervised(&lab, &[1], &[xdp("a", &a), xdp("b", &b)]);
    a.must_ping(&b);
    let path = switch.config_path();
    let all = std::fs::read_to_string(&path).expect("the configuration");
    let one = all.replacen("[[port]]\n", "[[port]]\nqueues = [0]\n", 1);
    assert_ne!(all, one);
    let open = || {
        let list = std::fs::read_dir(format!("/proc/{}/fd", switch.id()));
        list.expect("descriptors").count()
    };
    let mut counts = Vec::new();
    for text in [&one, &all, &one, &all] {
        std::fs::write(&path, text).expect("a file");
        let (status, said) = switch.upgrade(&[]);
        assert!(status.success(), "{said}");
        switch.wait_up(&["a", "b"]);
        // With one queue, the kernel gets what arrives in the other, which depends on the sender's core.
        if text == &all {
            a.must_ping(&b);
        }
        counts.push(open());
    }
    assert_eq!(counts[..2], counts[2..], "{counts:?}\n{}", switch.log());
    assert!(counts[0] < counts[1], "a socket less: {counts:?}");
    switch.ledger();
}

/// The program stays attached, so no link goes down; only the sockets are opened again.
#[test]
fn uplinks_keep_their_program_and_are_back_soon_after_a_crash() {
    const PINGS: u32 = 1000;
    const PING_MS: u32 = 2;
    let lab = Lab::new(s(60));
    let (a, b) = (Host::new(&lab, "a", 1), Host::new(&lab, "b", 2));
    let switch = Switch::start_supervised(&lab, &[1], &[xdp("a", &a), xdp("b", &b)]);
    a.must_ping(&b);
    let program = || {
        let link = lab.ip(&format!("-d link show {}", a.interface));
        let id = link
            .split_once("prog/xdp id ")
            .map(|(_, rest)| rest.to_owned());
        id.and_then(|rest| Some(rest.split_whitespace().next()?.to_owned()))
    };
    let before = program();
    assert!(before.is_some());
    let line = format!("ping -q -i 0.00{PING_MS} -c {PINGS} {}", b.address);
    let mut pings = Process::start(lab.dir(), "pings", &a.command(&line));
    std::thread::sleep(s(1) / 2);
    let id = switch.supervised_id();
    let pid = Pid::from_raw(id as i32).expect("a process");
    kill_process(pid, Signal::KILL).expect("it runs");
    pings.wait(s(20)).expect("it ends");
    assert_ne!(switch.supervised_id(), id);
    assert_eq!(program(), before, "{}", switch.log());
    let log = pings.log();
    let received = log
        .split_once(" received")
        .and_then(|(text, _)| text.split(' ').next_back());
    let received: u32 = received
        .and_then(|number| number.parse().ok())
        .expect("a number");
    println!(
        "{} of {PINGS} pings, one every {PING_MS} ms, lost in a crash",
        PINGS - received
    );
    assert!(PINGS - received < 400, "{log}");
    a.must_ping(&b);
    switch.ledger();
}
