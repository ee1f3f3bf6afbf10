//! Front ends that misbehave before they have said a word.

use std::fs::File;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crosspoint_control::vhost::{MESSAGE_TIME_MAX, SILENCE_MAX};
use crosspoint_guest::Session;
use crosspoint_guest::message::request;
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
    // Not at once: it may just be slow.
    assert!(start.elapsed() > SILENCE_MAX / 2);
    assert!(silent.wait_closed(PATIENCE).expect("a socket"));
    switch.wait("a", |port| port.state == "down");
    assert_eq!(switch.device("a").connections, 2);
}

#[test]
fn a_front_end_that_says_nothing_keeps_its_place_while_nobody_wants_it() {
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
    // The second one's turn comes when the first goes.
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

/// The process is at its limit of open files: the port waits, and goes on when there is room.
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
