//! Captures and traces of guests' frames through the control socket: no guest notices them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crosspoint_daemon::api::{ControlServer, Source};
use crosspoint_daemon::dataplane::{Dataplane, MoveError};
use crosspoint_engine::observe::tap;
use crosspoint_engine::observe::tap::TAPS_MAX;
use crosspoint_model::capture::{
    Direction, Message, Record, SNAPLEN_MAX, Totals, TraceWanted, Verdict, Wanted,
};
use crosspoint_model::client::{Frames, Traces};
use crosspoint_model::status::{FdbEntry, Status};
use crosspoint_model::trace::Goal;

use super::{Case, PATIENCE, PORTS, Switch};

const CASE: Case = Case {
    packed: false,
    in_order: false,
    workers: 2,
};

struct Daemon(Arc<Dataplane>);

impl Source for Daemon {
    fn status(&self) -> Status {
        self.0.status()
    }

    fn fdb(&self) -> Vec<FdbEntry> {
        self.0.fdb()
    }

    fn move_stream(&self, port: &str, queue: u16, worker: usize) -> Result<(), MoveError> {
        self.0.move_stream(port, queue, worker)
    }

    fn dataplane(&self) -> Option<Arc<Dataplane>> {
        Some(self.0.clone())
    }
}

fn control(switch: &Switch) -> (ControlServer, PathBuf) {
    let path = switch.socket("control");
    let server = ControlServer::start(&path, Arc::new(Daemon(switch.dataplane.clone())));
    (server.expect("nothing is in the way"), path)
}

/// All remaining frames, and the totals.
fn read(frames: Frames) -> (Vec<Record>, Totals) {
    let mut records = Vec::new();
    for message in frames {
        match message.expect("a message") {
            Message::Frame(record) => records.push(record),
            Message::End(totals) => return (records, totals),
        }
    }
    panic!("no end after {} frames", records.len());
}

fn wanted(change: impl Fn(&mut Wanted)) -> Wanted {
    let mut wanted = Wanted {
        rate: 1_000_000_000,
        ..Wanted::default()
    };
    change(&mut wanted);
    wanted
}

#[test]
fn a_capture_whose_reader_sleeps_costs_no_frame_and_is_told_how_many_it_missed() {
    let switch = Switch::start(CASE.workers, &PORTS, 1);
    let (_control, path) = control(&switch);
    let others = switch.bystanders(CASE);
    // There are few large slots.
    let asleep = Frames::ask(&path, &wanted(|w| w.snaplen = SNAPLEN_MAX)).expect("a capture");
    let awake = Frames::ask(
        &path,
        &wanted(|w| (w.count, w.port) = (Some(500), Some("c".to_owned()))),
    );
    let (records, totals) = read(awake.expect("a capture"));
    assert_eq!((records.len(), totals.captured), (500, 500));
    assert!(records.iter().all(|record| record.port == "c"));
    others.load.flow(4000);
    asleep.closer().expect("a socket").close();
    let (records, totals) = read(asleep);
    assert!(
        totals.missed > 0 && totals.captured == records.len() as u64,
        "{totals:?}"
    );
    others.check(&switch);
    switch.check_ledger();
}

#[test]
fn a_frame_and_its_copy_are_told_with_what_became_of_them() {
    let switch = Switch::start(CASE.workers, &PORTS, 1);
    let (_control, path) = control(&switch);
    let others = switch.bystanders(CASE);
    others.load.flow(100);
    let frames = Frames::ask(&path, &wanted(|w| w.count = Some(400))).expect("a capture");
    let (records, _) = read(frames);
    let mut pairs = 0;
    for received in records
        .iter()
        .filter(|r| r.direction == Direction::Received)
    {
        let to = if received.port == "c" { "d" } else { "c" };
        assert_eq!(received.verdict, Verdict::Port(to.to_owned()));
        let is_copy = |r: &&Record| {
            r.direction == Direction::Sent
                && (r.worker, r.serial) == (received.worker, received.serial)
        };
        let Some(sent) = records.iter().find(is_copy) else {
            continue;
        };
        assert_eq!((&*sent.port, &sent.verdict), (to, &Verdict::Delivered));
        assert_eq!((&sent.bytes, sent.len), (&received.bytes, received.len));
        assert!(sent.time_ns >= received.time_ns);
        pairs += 1;
    }
    assert!(pairs > 100, "{pairs}");

    let trace = TraceWanted {
        port: "c".to_owned(),
        count: 5,
        filter: "not ip".to_owned(),
        frame: None,
    };
    let traces: Result<Vec<_>, _> = Traces::ask(&path, &trace).expect("a trace").collect();
    let traces = traces.expect("five traces");
    assert_eq!(traces.len(), 5);
    for trace in &traces {
        assert_eq!(
            (trace.vlan, trace.dropped.as_deref()),
            (Some(20), None),
            "{trace}"
        );
        let Some(Goal::Port { name, .. }) = &trace.destination else {
            panic!("{trace}")
        };
        let [copy] = &trace.copies[..] else {
            panic!("{trace}")
        };
        let delivered = copy.outcome.as_ref().map(|outcome| outcome.delivered);
        assert_eq!(
            (&**name, &*copy.port, delivered),
            ("d", "d", Some(1)),
            "{trace}"
        );
    }
    // The same frame, but not sent.
    let again = TraceWanted {
        frame: Some(traces[0].bytes.clone()),
        count: 1,
        ..trace
    };
    let again: Vec<_> = Traces::ask(&path, &again).expect("an answer").collect();
    let again = again[0].as_ref().expect("a trace");
    assert_eq!(again.destination, traces[0].destination);
    assert_eq!(again.copies[0].outcome, None);
    others.check(&switch);
}

#[test]
fn captures_are_few_and_end_with_their_client_or_the_server() {
    let switch = Switch::start(CASE.workers, &PORTS, 1);
    let (server, path) = control(&switch);
    let others = switch.bystanders(CASE);
    let ask = || Frames::ask(&path, &wanted(|_| ()));
    let mut open: Vec<Frames> = (0..TAPS_MAX).map(|_| ask().expect("a place")).collect();
    let refusal = ask().err().expect("no place").to_string();
    assert!(refusal.contains("4 captures and traces"), "{refusal}");
    // One client disconnects without notice.
    drop(open.pop());
    let start = Instant::now();
    let another = loop {
        match ask() {
            Ok(frames) => break frames,
            Err(error) => assert!(start.elapsed() < PATIENCE, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    // The remaining ones still receive frames.
    assert!(
        open.iter_mut()
            .chain([&mut { another }])
            .all(|frames| frames.next().is_some())
    );
    let start = Instant::now();
    server.stop();
    assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
    // Every place is free again.
    let places: Vec<_> = (0..TAPS_MAX)
        .map(|_| switch.dataplane.add_tap(nothing(), 1))
        .collect();
    assert!(places.iter().all(Option::is_some));
    places
        .iter()
        .flatten()
        .for_each(|tap| switch.dataplane.remove_tap(tap));
    others.check(&switch);
}

fn nothing() -> tap::Wanted {
    tap::Wanted {
        port: None,
        queue: None,
        received: false,
        sent: false,
        dropped_only: false,
        snap_len: 64,
        rate_max: 1,
        filter: None,
    }
}

#[test]
fn what_cannot_be_captured_is_refused_with_help() {
    let switch = Switch::start(1, &PORTS, 1);
    let (_control, path) = control(&switch);
    let refused = |wanted: Wanted| {
        Frames::ask(&path, &wanted)
            .err()
            .expect("a refusal")
            .to_string()
    };
    let error = refused(wanted(|w| w.port = Some("web".to_owned())));
    assert_eq!(error, "crosspoint refuses: no port is named \"web\"");
    let error = refused(wanted(|w| w.filter = "port x".to_owned()));
    assert!(error.contains("column 6: expected a port"), "{error}");
    let frame = |hex: &str| TraceWanted {
        port: "a".to_owned(),
        count: 1,
        filter: String::new(),
        frame: Some(hex.to_owned()),
    };
    for (hex, what) in [("0g", "hexadecimal"), ("012", "odd number"), ("", "none")] {
        let mut traces = Traces::ask(&path, &frame(hex)).expect("it listens");
        let error = traces.next().expect("an answer").expect_err("a refusal");
        assert!(error.to_string().contains(what), "{error}");
    }
}
