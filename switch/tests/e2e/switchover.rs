//! Faults at each step of an upgrade, and after a crash, that a real supervisor does not meet on demand: here the test is the
//! supervisor. (`daemon/src/handover/switchover.rs` has the steps.)

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use crosspoint_guest::{Guest, GuestOptions};
use crosspoint_handover::{
    AdoptionSocket, Begin, Claim, Kind, Link, Message, SUPERVISED, Start, Store, WAS_STARTED, adopt,
};

use crate::harness::{Host, Lab, binary, connect_to, frame, guest, mac, s, wait_until, xdp};

/// A process of the switch, and this side of its connection.
struct Switch {
    child: Child,
    link: Link,
}

/// What the test has as a supervisor.
struct Supervisor<'a> {
    lab: &'a Lab,
    config: PathBuf,
    store: Store,
    started: u32,
    /// Where a process waits for another supervisor.
    adoption_socket: AdoptionSocket,
    /// Of the last attempt at an upgrade, with the connection between the two processes.
    claim: Claim,
    between: Option<(Link, OwnedFd)>,
}

impl<'a> Supervisor<'a> {
    fn new(lab: &'a Lab, ports: &[String]) -> Self {
        let config = lab.dir().join("switch.toml");
        let control = lab.socket("control");
        let text = format!(
            "version = 1\n[workers]\ncores = [1]\n[metrics]\nlisten = \"off\"\n[control]\nsocket = {control:?}\n{}",
            ports.concat()
        );
        fs::write(&config, text).expect("the configuration is written");
        Supervisor {
            lab,
            config,
            store: Store::default(),
            started: 0,
            adoption_socket: AdoptionSocket::bind(&lab.socket("adoption")).expect("a socket"),
            claim: Claim::new().expect("an eventfd"),
            between: None,
        }
    }

    /// Starts a process with all records.
    fn start(&mut self, start: Start) -> Switch {
        let (link, its) = Link::pair().expect("sockets");
        let log = format!("switch-{}.log", self.started);
        let log = File::create(self.lab.dir().join(log)).expect("a file");
        self.started += 1;
        let mut command: Command = self.lab.command(binary());
        command.arg("run").arg("--config").arg(&self.config);
        command.env(SUPERVISED, "1").stdin(Stdio::from(its));
        command.stdout(log.try_clone().expect("a file")).stderr(log);
        let child = command.spawn().expect("it starts");
        self.store.send_all(&link).expect("it reads");
        let begin = Begin {
            start,
            upgrades: 0,
            crashes: 0,
            unsupervised_s_max: 10,
        };
        let begin = serde_json::to_vec(&begin).expect("JSON");
        let mut fds = vec![self.adoption_socket.as_fd()];
        if let Some((_, its)) = self.between.as_ref().filter(|_| start == Start::Prepare) {
            fds.extend([self.claim.as_fd(), its.as_fd()]);
        }
        link.send(Kind::Begin, "", &begin, &fds).expect("it reads");
        Switch { child, link }
    }

    /// Begins an upgrade, up to the successor's READY.
    fn prepare(&mut self, old: &Switch) -> Switch {
        self.claim = Claim::new().expect("an eventfd");
        let (own, its) = Link::pair().expect("sockets");
        let fds = [self.claim.as_fd(), own.as_fd()];
        let sent = old.link.send(Kind::Hold, "", b"", &fds);
        sent.expect("it reads");
        self.between = Some((own, its));
        self.hear(old, Kind::Held);
        let new = self.start(Start::Prepare);
        self.between = None;
        self.hear(&new, Kind::Ready);
        new
    }

    /// Hands the positions to the successor, and lets it go.
    fn go(&mut self, new: &Switch) {
        for name in ["positions", "uplinks"] {
            let record = self.store.remove(name).expect("positions");
            let sent = new.link.send(Kind::Record, name, &record.body, &[]);
            sent.expect("it reads");
        }
        new.say(Kind::Go, "");
    }

    /// Waits for a message of a process, and takes its records.
    fn hear(&mut self, switch: &Switch, wanted: Kind) -> Message {
        loop {
            let message = switch.link.receive_within(s(10));
            let message = message.expect("it speaks").expect("it runs");
            match message.kind {
                kind if kind == wanted => return message,
                Kind::Record | Kind::Forget => drop(self.store.take(message)),
                Kind::Refused => panic!("{}", message.text()),
                _ => {}
            }
        }
    }

    /// Takes what a process has said so far.
    fn catch_up(&mut self, switch: &Switch) {
        while let Ok(Some(message)) = switch.link.receive_within(s(1) / 10) {
            drop(self.store.take(message));
        }
    }

    fn logs(&self) -> String {
        let read = |number| fs::read_to_string(self.lab.dir().join(format!("switch-{number}.log")));
        (0..self.started).flat_map(read).collect()
    }
}

impl Switch {
    fn say(&self, kind: Kind, text: &str) {
        let sent = self.link.send(kind, "", text.as_bytes(), &[]);
        sent.expect("it reads");
    }

    fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Frames there and back, each sent again until it arrives if `may_lose` is set. Returns how often that was.
fn exchange(pair: &mut [Guest; 2], from: u32, may_lose: bool, logs: &dyn Fn() -> String) -> u32 {
    let mut again = 0;
    let [a, b] = pair;
    let guests = [a, b];
    for number in from..from + 300 {
        for (sender, receiver) in [(0, 1), (1, 0)] {
            let sent = frame(
                mac(21 + receiver as u8),
                mac(21 + sender as u8),
                number,
                1000,
            );
            let mut tries = 0;
            wait_until("a frame", s(10), || {
                assert!(may_lose || tries == 0, "frame {number} is lost\n{}", logs());
                again += u32::from(tries > 0);
                tries += 1;
                assert_eq!(guests[sender].send(0, &[&sent]).expect("a ring"), 1);
                // Broadcasts of hosts arrive too.
                let end = Instant::now() + s(1);
                let mut arrived = std::iter::repeat_with(|| {
                    let left = end.saturating_duration_since(Instant::now());
                    guests[receiver]
                        .receive_at_least(0, 1, left)
                        .expect("a ring")
                });
                let all = arrived.find_map(|frames| {
                    let is_there = frames.iter().any(|(_, bytes)| *bytes == sent);
                    (is_there || Instant::now() > end).then_some(is_there)
                });
                (all == Some(true)).then_some(())
            });
        }
    }
    again
}

/// When the new process fails.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Fault {
    /// It has prepared everything.
    Ready,
    /// The old process has stopped its rings.
    Frozen,
    /// It has been told to start its rings, and may have begun.
    Go,
    /// Its rings run, and frames have passed.
    Confirmed,
    /// It is silent after that, and the old process must leave.
    None,
}

/// Waits until `a` reaches `b`, at most five seconds, while the supervisor takes the records of `switch`.
fn reach(supervisor: &mut Supervisor<'_>, switch: &Switch, hosts: &[Host<'_>]) {
    let [a, b] = hosts else { return };
    let reached = (0..50).any(|_| {
        supervisor.catch_up(switch);
        let ping = a
            .command(&format!("ping -q -c 1 -W 0.1 {}", b.address))
            .output();
        ping.is_ok_and(|output| output.status.success())
    });
    assert!(reached, "{}", supervisor.logs());
}

fn fails_at(fault: Fault, packed: bool) {
    let lab = Lab::new(s(90));
    let hosts: Vec<Host<'_>> = match packed {
        false => [("a", 1), ("b", 2)]
            .map(|(name, number)| Host::new(&lab, name, number))
            .into(),
        // Once is enough.
        true => Vec::new(),
    };
    let mut ports = vec![guest(&lab, "g0"), guest(&lab, "g1")];
    ports.extend(
        ["a", "b"]
            .iter()
            .zip(&hosts)
            .map(|(name, host)| xdp(name, host)),
    );
    let mut supervisor = Supervisor::new(&lab, &ports);
    let old = supervisor.start(Start::Fresh);
    supervisor.hear(&old, Kind::Ready);
    let options = GuestOptions {
        packed,
        ..GuestOptions::default()
    };
    let mut pair = ["g0", "g1"].map(|name| connect_to(&lab, name, &options));
    supervisor.catch_up(&old);
    let logs = |supervisor: &Supervisor<'_>| supervisor.logs();
    exchange(&mut pair, 0, false, &|| logs(&supervisor));
    reach(&mut supervisor, &old, &hosts);
    // Several times, so that rings are at other places than at their beginning.
    for round in 1..3 {
        let new = supervisor.prepare(&old);
        exchange(&mut pair, 10_000 * round, false, &|| logs(&supervisor));
        let mut was_started = "";
        if fault != Fault::Ready {
            old.say(Kind::Freeze, "");
            supervisor.hear(&old, Kind::Frozen);
        }
        if matches!(fault, Fault::Go | Fault::Confirmed | Fault::None) {
            supervisor.go(&new);
            was_started = WAS_STARTED;
        }
        if matches!(fault, Fault::Confirmed | Fault::None) {
            supervisor.hear(&new, Kind::Confirmed);
            exchange(&mut pair, 10_000 * round + 1000, false, &|| {
                logs(&supervisor)
            });
            reach(&mut supervisor, &new, &hosts);
        }
        if fault == Fault::None {
            old.say(Kind::Leave, "");
            wait_until("the end of the old process", s(5), || {
                old.link
                    .receive_within(s(1))
                    .is_ok_and(|end| end.is_none())
                    .then_some(())
            });
            old.kill();
            new.say(Kind::Alone, "");
            supervisor.hear(&new, Kind::Ready);
            exchange(&mut pair, 10_000 * round + 2000, false, &|| {
                logs(&supervisor)
            });
            reach(&mut supervisor, &new, &hosts);
            let logs = supervisor.logs();
            assert!(!logs.contains("opened anew"), "{logs}");
            new.kill();
            return;
        }
        new.kill();
        old.say(Kind::Resume, was_started);
        // What a killed worker had in hand may be lost; nothing is in hand here, but for one that starts.
        let may_lose = was_started == WAS_STARTED;
        let again = exchange(&mut pair, 10_000 * round + 3000, may_lose, &|| {
            logs(&supervisor)
        });
        reach(&mut supervisor, &old, &hosts);
        assert!(
            again <= 1,
            "{again} frames were sent again\n{}",
            supervisor.logs()
        );
    }
    old.kill();
}

#[test]
fn the_old_process_goes_on_if_the_new_one_fails_at_any_step() {
    for fault in [
        Fault::Ready,
        Fault::Frozen,
        Fault::Go,
        Fault::Confirmed,
        Fault::None,
    ] {
        for packed in [false, true] {
            println!("{fault:?}, packed rings: {packed}");
            fails_at(fault, packed);
        }
    }
}

/// A supervised switch, and two guests.
fn with_pair(lab: &Lab) -> (Supervisor<'_>, Switch, [Guest; 2]) {
    let ports = ["g0", "g1"].map(|name| guest(lab, name));
    let mut supervisor = Supervisor::new(lab, &ports);
    let old = supervisor.start(Start::Fresh);
    supervisor.hear(&old, Kind::Ready);
    let pair = ["g0", "g1"].map(|name| connect_to(lab, name, &GuestOptions::default()));
    supervisor.catch_up(&old);
    (supervisor, old, pair)
}

/// The supervisor dies at this step of an upgrade. One of the two processes goes on at once, without a frame lost, and is the one
/// that another supervisor finds.
fn supervisor_dies_at(fault: Fault) {
    let lab = Lab::new(s(90));
    let (mut supervisor, mut old, mut pair) = with_pair(&lab);
    for round in 1..3 {
        exchange(&mut pair, 10_000 * round, false, &|| supervisor.logs());
        let mut new = supervisor.prepare(&old);
        if fault != Fault::Ready {
            old.say(Kind::Freeze, "");
            supervisor.hear(&old, Kind::Frozen);
        }
        if matches!(fault, Fault::Go | Fault::Confirmed) {
            supervisor.go(&new);
        }
        if fault == Fault::Confirmed {
            supervisor.hear(&new, Kind::Confirmed);
        }
        // Both connections end.
        for process in [&mut old, &mut new] {
            process.link = Link::pair().expect("sockets").0;
        }
        exchange(&mut pair, 10_000 * round + 1000, false, &|| {
            supervisor.logs()
        });
        let is_over = |process: &mut Switch| process.child.try_wait().expect("a child").is_some();
        let old_is_over = wait_until("the end of one process", s(5), || {
            let ends = [&mut old, &mut new].map(is_over);
            ends.contains(&true).then_some(ends[0])
        });
        match fault {
            Fault::Ready | Fault::Frozen => assert!(!old_is_over),
            // It depends on which of the two was first.
            Fault::Go => {}
            _ => assert!(old_is_over),
        }
        let mut left = if old_is_over { new } else { old };
        let found = wait_until("the process that is left", s(10), || {
            let found = adopt(&lab.socket("adoption"), s(1)).expect("it speaks");
            found.filter(|found| found.given.is_ok())
        });
        assert_eq!(found.pid, rustix::process::Pid::from_child(&left.child));
        let given = found.given.expect("its records");
        (left.link, supervisor.store) = (given.link, given.store);
        supervisor.catch_up(&left);
        exchange(&mut pair, 10_000 * round + 2000, false, &|| {
            supervisor.logs()
        });
        old = left;
    }
    old.kill();
    let after = supervisor.start(Start::AfterCrash);
    supervisor.hear(&after, Kind::Ready);
    exchange(&mut pair, 90_000, false, &|| supervisor.logs());
    after.kill();
}

#[test]
fn one_process_goes_on_if_the_supervisor_dies_at_any_step() {
    for fault in [Fault::Ready, Fault::Frozen, Fault::Go, Fault::Confirmed] {
        println!("{fault:?}");
        supervisor_dies_at(fault);
    }
}

/// The new process ends when it has the claim and before its workers have the rings, and the supervisor dies too: the old process
/// goes on.
#[test]
fn the_old_process_goes_on_if_the_new_one_fails_and_the_supervisor_dies() {
    let lab = Lab::new(s(60));
    let (mut supervisor, mut old, mut pair) = with_pair(&lab);
    exchange(&mut pair, 0, false, &|| supervisor.logs());
    let new = supervisor.prepare(&old);
    old.say(Kind::Freeze, "");
    supervisor.hear(&old, Kind::Frozen);
    // As the new process does when it is told to go.
    assert!(supervisor.claim.take());
    new.kill();
    old.link = Link::pair().expect("sockets").0;
    exchange(&mut pair, 1000, false, &|| supervisor.logs());
    let found = adopt(&lab.socket("adoption"), s(5)).expect("it speaks");
    let found = found.expect("a process");
    assert_eq!(found.pid, rustix::process::Pid::from_child(&old.child));
    old.kill();
}

/// A supervised switch, two guests that exchange frames, and one more.
fn with_victim(lab: &Lab) -> (Supervisor<'_>, Switch, [Guest; 2], Guest) {
    let ports = ["g0", "g1", "victim"].map(|name| guest(lab, name));
    let mut supervisor = Supervisor::new(lab, &ports);
    let process = supervisor.start(Start::Fresh);
    supervisor.hear(&process, Kind::Ready);
    let options = GuestOptions::default();
    let mut pair = ["g0", "g1"].map(|name| connect_to(lab, name, &options));
    let victim = connect_to(lab, "victim", &options);
    exchange(&mut pair, 0, false, &|| supervisor.logs());
    (supervisor, process, pair, victim)
}

/// A crash in the middle of a message: the front end is disconnected, since the switch does not know what it has said. Guests of
/// other ports go on.
#[test]
fn a_session_in_the_middle_of_a_message_does_not_outlive_a_crash_and_the_others_do() {
    let lab = Lab::new(s(60));
    let (mut supervisor, old, mut pair, mut victim) = with_victim(&lab);
    supervisor.catch_up(&old);
    let record = supervisor
        .store
        .remove("session/victim")
        .expect("its record");
    let body: serde_json::Value = serde_json::from_slice(&record.body).expect("JSON");
    let mark = body["in_message"].as_u64().expect("a mark") as usize;
    let mark = File::from(
        record.fds[mark]
            .as_fd()
            .try_clone_to_owned()
            .expect("a file"),
    );
    mark.write_at(&[1], 0).expect("a mark");
    drop(supervisor.store.take(record));
    old.kill();
    let new = supervisor.start(Start::AfterCrash);
    supervisor.hear(&new, Kind::Ready);
    let logs = supervisor.logs();
    assert!(logs.contains("while it handled a message"), "{logs}");
    exchange(&mut pair, 1000, false, &|| supervisor.logs());
    // Its front end sees the end, and may connect again.
    victim.disconnect();
    victim.reconnect().expect("the port listens");
    supervisor.catch_up(&new);
    assert!(
        supervisor
            .store
            .names()
            .any(|name| name == "session/victim")
    );
    new.kill();
}

/// A front end that has cut its guest's memory short cannot keep the switch from an upgrade.
#[test]
fn a_guest_without_memory_is_left_behind_and_the_others_go_on() {
    let lab = Lab::new(s(60));
    let (mut supervisor, old, mut pair, victim) = with_victim(&lab);
    victim.memory().truncate(0, 0).expect("a cut");
    let new = supervisor.prepare(&old);
    old.say(Kind::Freeze, "");
    supervisor.hear(&old, Kind::Frozen);
    supervisor.go(&new);
    supervisor.hear(&new, Kind::Confirmed);
    old.say(Kind::Leave, "");
    new.say(Kind::Alone, "");
    supervisor.hear(&new, Kind::Ready);
    exchange(&mut pair, 1000, false, &|| supervisor.logs());
    let logs = supervisor.logs();
    assert!(logs.contains("its session cannot be taken over"), "{logs}");
    old.kill();
    new.kill();
}
