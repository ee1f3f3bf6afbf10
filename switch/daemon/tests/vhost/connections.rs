//! Front ends that misbehave before their first message.

use std::fs::File;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crosspoint_daemon::ports::vhost::{MESSAGE_TIME_MAX, SILENCE_MAX};
use crosspoint_guest::message::request;
use crosspoint_guest::{GuestOptions, Session};
use crosspoint_model::status::ShownState;
use rustix::fs::OFlags;
use rustix::process::{Resource, getrlimit, setrlimit};

use super::{PATIENCE, Switch};

fn speaks(session: &mut Session) -> bool {
    session.query_u64(request::GET_FEATURES).is_ok()
}

#[test]
fn a_front_end_that_says_nothing_gives_way_to_the_next() {
    let switch = Switch::start(&["a"], |_| ());
    let mut silent = switch.session("a");
    let start = Instant::now();
    assert!(speaks(&mut switch.session("a")));
    // Not at once, since it may just be slow.
    assert!(start.elapsed() > SILENCE_MAX / 2);
    assert!(silent.wait_closed(PATIENCE).expect("a socket"));
    switch.wait("a", |port| port.state == ShownState::Down);
    assert_eq!(switch.device("a").connections, 2);
}

#[test]
fn a_front_end_that_says_nothing_keeps_its_place_while_no_other_wants_it() {
    let switch = Switch::start(&["a"], |_| ());
    let mut slow = switch.session("a");
    std::thread::sleep(SILENCE_MAX + SILENCE_MAX / 2);
    assert!(speaks(&mut slow));
}

#[test]
fn a_front_end_that_has_spoken_keeps_its_place() {
    let switch = Switch::start(&["a"], |_| ());
    let mut first = switch.session("a");
    assert!(speaks(&mut first));
    let mut second = switch.session("a");
    let closed = first.wait_closed(SILENCE_MAX + SILENCE_MAX / 2);
    assert!(!closed.expect("a socket") && speaks(&mut first));
    // The second one is served when the first disconnects.
    drop(first);
    assert!(speaks(&mut second));
}

#[test]
fn half_a_message_holds_the_port_for_no_longer_than_the_limit() {
    let switch = Switch::start(&["a"], |_| ());
    for half in [
        &[1u8, 0, 0][..],
        &[3; 5],
        &[39, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 1],
    ] {
        let mut stream = UnixStream::connect(switch.socket("a")).expect("the switch listens");
        stream.write_all(half).expect("the switch reads");
        let mut next = switch.session("a");
        let start = Instant::now();
        assert!(speaks(&mut next), "{half:?}");
        assert!(start.elapsed() < MESSAGE_TIME_MAX + Duration::from_secs(10));
    }
}

/// The process is at its limit of open files: the port waits, and goes on when descriptors are free.
#[test]
fn a_port_without_descriptors_waits_for_some() {
    let switch = Switch::start(&["a"], |_| ());
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = Some(128);
    setrlimit(Resource::Nofile, limit).expect("the limit may be lowered");
    let mut held: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    assert!(held.len() < 128);
    held.pop();
    let mut session = switch.session("a");
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(switch.device("a").connections, 0);
    drop(held);
    assert!(speaks(&mut session));
}

/// The front end shares the open file description to which a call is written.
#[test]
fn a_call_descriptor_that_blocks_costs_its_own_port_and_no_worker() {
    let switch = Switch::start(&["a", "b", "c"], |_| ());
    let mut guests = ["a", "b", "c"].map(|name| switch.guest(name, GuestOptions::default()));
    let [bad, b, c] = &mut guests;
    for index in 0..2 {
        let call = bad.call_event(index).expect("a ring");
        let _ = rustix::io::read(&*call, &mut [0; 8]);
        let full = (u64::MAX - 1).to_ne_bytes();
        rustix::io::write(&*call, &full).expect("an empty eventfd takes all but the last");
        rustix::fs::fcntl_setfl(&*call, OFlags::empty()).expect("it is ours");
    }
    // A broadcast: the worker calls the bad port, and would not return without help.
    let mut frame = [0xff; 60];
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    let start = Instant::now();
    while switch.port("a").state != ShownState::Quarantined {
        assert!(start.elapsed() < PATIENCE, "{:#?}", switch.port("a"));
        assert_eq!(b.send(0, &[&frame]).ok(), Some(1));
        std::thread::sleep(Duration::from_millis(50));
        switch.dataplane.housekeep(start.elapsed());
    }
    let why = switch.port("a").detail;
    assert!(why.contains("call descriptor"), "{why}");
    c.receive(0).expect("a ring");
    assert_eq!(b.send(0, &[&frame]).ok(), Some(1));
    let got = c.receive_at_least(0, 1, PATIENCE).expect("a ring");
    assert!(!got.is_empty());
    // The front end may try again.
    bad.disconnect();
    switch.wait("a", |port| port.state == ShownState::Down);
    switch.check_ledger();
}
