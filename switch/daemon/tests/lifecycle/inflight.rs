//! Switches that are killed, and their successors.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crosspoint_guest::frontend::Vring;
use crosspoint_guest::message::{self, protocol, request};
use crosspoint_guest::{Guest, Position, Session, SessionError};
use crosspoint_model::status::ShownState;
use tempfile::TempDir;

use super::load::{Load, Loss, Pair};
use super::{Case, Housekeeper, PATIENCE, PORTS, Switch, options, start_at};

const INFLIGHT: u64 = protocol::INFLIGHT_SHMFD;
/// The most frames that a worker has taken but not completed.
const BURST: u64 = 64;
const RING: u64 = 256;
/// Directory and number of workers for the switch of [`a_switch_to_be_killed`].
const DIRECTORY: &str = "LIFECYCLE_DIRECTORY";
const WORKERS: &str = "LIFECYCLE_WORKERS";

/// A switch in its own process.
struct Victim {
    child: Child,
}

impl Victim {
    fn start(directory: &Path, workers: usize) -> Victim {
        for name in ["a", "b"] {
            let _ = std::fs::remove_file(directory.join(name));
        }
        let this = std::env::current_exe().expect("this program");
        let child = Command::new(this)
            .args(["--exact", "--ignored", "inflight::a_switch_to_be_killed"])
            .env(DIRECTORY, directory)
            .env(WORKERS, workers.to_string())
            .stdout(Stdio::null())
            .spawn();
        Victim {
            child: child.expect("it starts"),
        }
    }

    /// SIGKILL: it cannot clean up.
    fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }
}

#[test]
#[ignore = "a part of the tests below, which start it as a process of its own"]
fn a_switch_to_be_killed() {
    let Some(directory) = std::env::var_os(DIRECTORY) else {
        return;
    };
    let workers = std::env::var(WORKERS).expect("a number");
    let workers = workers.parse().expect("a number");
    let (dataplane, _ports) = start_at(Path::new(&directory), options(workers, 0), &["a", "b"], 1);
    let _housekeeper = Housekeeper::start(dataplane);
    std::thread::sleep(Duration::from_secs(60));
}

fn rounds() -> u64 {
    std::env::var("ROUNDS").map_or(4, |n| n.parse().unwrap())
}

fn directory() -> Arc<TempDir> {
    Arc::new(tempfile::tempdir().expect("a directory can be made"))
}

/// Connects both guests to the next switch.
fn reconnect(pair: &mut Pair, guests: &mut [Guest; 2]) {
    for (end, guest) in guests.iter_mut().enumerate() {
        pair.lend(end, guest, |guest| {
            guest.reconnect().expect("the next switch");
        });
    }
}

/// Checks what may be lost and doubled when a switch dies `times` times.
fn check_deaths(pair: &Pair, case: Case, times: u64) {
    let burst = BURST * case.workers as u64 * times;
    for end in [0, 1] {
        assert!(pair.lost(end) <= burst, "{} lost", pair.lost(end));
        let empty = pair.ends[end].empty;
        assert!(empty <= burst, "{empty} buffers came back empty");
    }
    assert!(pair.doubled() <= 2 * burst, "{} doubled", pair.doubled());
    println!(
        "sent {} and {}, lost {} and {}, doubled {}, late {}, empty {} and {}",
        pair.sent(0),
        pair.sent(1),
        pair.lost(0),
        pair.lost(1),
        pair.doubled(),
        pair.late(),
        pair.ends[0].empty,
        pair.ends[1].empty
    );
}

#[test]
fn guests_go_on_at_the_successor_of_a_switch_that_was_killed() {
    Case::each(|case| {
        let directory = directory();
        let mut victim = Victim::start(directory.path(), case.workers);
        let options = || case.guest(INFLIGHT);
        let connect = |name| Guest::connect(directory.path().join(name), options());
        let mut guests = ["a", "b"].map(|name| connect(name).expect("the switch listens"));
        let [a, b] = &mut guests;
        let mut load = Load::start(a, b, 1, Loss::OfDeaths);
        for round in 0..rounds() {
            load.flow(100 + 37 * (round % 8));
            victim.kill();
            let mut pair = load.abort();
            guests.iter_mut().for_each(Guest::disconnect);
            victim = Victim::start(directory.path(), case.workers);
            reconnect(&mut pair, &mut guests);
            load = Load::of(pair);
            load.flow(3 * RING);
        }
        check_deaths(&load.finish(), case, rounds());
        victim.kill();
    });
}

#[test]
fn guests_go_on_at_a_switch_that_was_started_again() {
    Case::each(|case| {
        let directory = directory();
        let start = || Switch::start_in(directory.clone(), case.workers, &PORTS, 1);
        let mut switch = start();
        let mut guests = ["a", "b"].map(|name| switch.guest(name, case.guest(INFLIGHT)));
        let [a, b] = &mut guests;
        let mut load = Load::start(a, b, 1, Loss::Counted);
        for round in 0..4 {
            load.flow(100 + 37 * round);
            drop(switch);
            let mut pair = load.abort();
            guests.iter_mut().for_each(Guest::disconnect);
            switch = start();
            let others = switch.bystanders(case);
            reconnect(&mut pair, &mut guests);
            load = Load::of(pair);
            load.flow(3 * RING);
            others.check(&switch);
        }
        let pair = load.finish();
        // It closes one port after the other: frames for the first one are dropped and counted.
        assert_eq!(pair.doubled(), 0);
        switch.check_ledger();
    });
}

/// Without the inflight region, with a front end that knows only the initial index of a packed ring.
#[test]
fn a_packed_ring_that_is_told_its_beginning_goes_on_at_its_marks() {
    for workers in [1, 2] {
        let case = Case {
            packed: true,
            in_order: false,
            workers,
        };
        let directory = directory();
        let victim = Victim::start(directory.path(), workers);
        let connect = |name| Guest::connect(directory.path().join(name), case.guest(0));
        let mut guests = ["a", "b"].map(|name| connect(name).expect("the switch listens"));
        let [a, b] = &mut guests;
        let load = Load::start(a, b, 1, Loss::OfDeaths);
        load.flow(777);
        victim.kill();
        let pair = load.abort();
        let victim = Victim::start(directory.path(), workers);
        let sessions =
            ["a", "b"].map(|name| Session::connect(directory.path().join(name), PATIENCE));
        let mut sessions = sessions.map(|session| session.expect("the next switch"));
        for ((session, guest), end) in sessions.iter_mut().zip(&guests).zip(&pair.ends) {
            begin_again(session, guest, end.lanes.iter().map(|lane| lane.layout()));
        }
        let load = Load::of(pair);
        load.flow(3 * RING);
        check_deaths(&load.finish(), case, 1);
        victim.kill();
    }
}

fn begin_again(
    session: &mut Session,
    guest: &Guest,
    layouts: impl Iterator<Item = crosspoint_guest::RingLayout>,
) {
    let before = guest.negotiated();
    let negotiated = session.negotiate(before.features, before.protocol_features);
    assert_eq!(negotiated.expect("as before"), before);
    session.set_mem_table(guest.memory()).expect("memory");
    let start = u32::from(Position::START.to_bits());
    for (index, layout) in layouts.enumerate() {
        let (kick, call) = (guest.kick_event(index), guest.call_event(index));
        let (kick, call) = (kick.expect("a ring"), call.expect("a ring"));
        let vring = Vring {
            index: index as u32,
            layout,
            base: start | start << 16,
            log: false,
            kick: Some(&kick),
            call: Some(&call),
        };
        session.start_vring(guest.memory(), &vring).expect("a ring");
        session.enable_vring(index as u32, true).expect("a ring");
        kick.signal().expect("an eventfd");
    }
}

#[test]
fn an_inflight_region_that_cannot_be_is_refused() {
    Case::each(|case| {
        let switch = Switch::start(case.workers, &PORTS, 1);
        let others = switch.bystanders(case);
        // The reply cannot express a refusal.
        for (queues, size, reason) in [
            (3, 256, "for 3 vrings of 2"),
            (0, 256, "invalid message"),
            (u16::MAX, 256, "for 65535 vrings of 2"),
            (2, 255, "rings of 255 entries"),
            (2, 0, "invalid message"),
            (2, u16::MAX, "rings of 65535 entries"),
        ] {
            let mut a = switch.guest("a", case.guest(INFLIGHT));
            let session = a.session().expect("a session");
            assert!(session.inflight(queues, size).is_err());
            assert!(session.wait_closed(PATIENCE).expect("a socket"));
            switch.wait("a", |port| port.state == ShownState::Down);
            let end = switch.last_end("a");
            assert!(end.contains("request 31") && end.contains(reason), "{end}");
        }
        // This reply can.
        let mut a = switch.guest("a", case.guest(INFLIGHT));
        let mut b = switch.guest("b", case.guest(0));
        let known = a.inflight().expect("a region").clone();
        let session = a.session().expect("a session");
        for (len, offset, queues, size) in [
            (known.len, 0, 3, 256),
            (known.len, 0, 2, 255),
            (known.len, 0, 2, 512),
            (known.len - 1, 0, 2, 256),
            (known.len, 4096, 2, 256),
            (known.len, 1, 2, 256),
            (known.len, u64::MAX - 63, 2, 256),
            (u64::MAX, 64, 2, 256),
        ] {
            let payload = message::inflight(len, offset, queues, size);
            let fds = [known.region().file()];
            let answer = session.request(request::SET_INFLIGHT_FD, &payload, &fds);
            let refused = matches!(answer, Err(SessionError::Refused { .. }));
            assert!(refused, "{len} {offset} {queues} {size}: {answer:?}");
        }
        let load = Load::start(&mut a, &mut b, 1, Loss::None);
        load.flow(300);
        load.finish().expect_all();
        others.check(&switch);
        switch.check_ledger();
    });
}

fn held() -> (usize, usize) {
    let fds = std::fs::read_dir("/proc/self/fd").expect("proc").count();
    let maps = std::fs::read_to_string("/proc/self/maps").expect("proc");
    (fds, maps.lines().count())
}

#[test]
fn inflight_regions_that_are_asked_for_again_and_again_are_not_kept() {
    let case = Case {
        packed: true,
        in_order: false,
        workers: 1,
    };
    let switch = Switch::start(1, &PORTS, 1);
    let mut a = switch.guest("a", case.guest(INFLIGHT));
    let mut b = switch.guest("b", case.guest(0));
    let load = Load::start(&mut a, &mut b, 1, Loss::None);
    let session = a.session().expect("a session");
    let mut ask = |times| {
        for _ in 0..times {
            let region = session.inflight(2, 256).expect("a region");
            session.set_inflight(&region).expect("the same region");
        }
    };
    ask(10);
    let (before, start) = (held(), Instant::now());
    ask(10_000);
    let (fds, maps) = held();
    println!("{:?}", start.elapsed());
    assert!(
        fds <= before.0 + 4,
        "{fds} descriptors, {} before",
        before.0
    );
    assert!(
        maps <= before.1 + 16,
        "{maps} mappings, {} before",
        before.1
    );
    load.finish().expect_all();
}
