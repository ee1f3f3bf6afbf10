//! The state of a guest that migrates, as front ends save and restore it.

use std::fs::File;
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use crosspoint_config::Config;
use crosspoint_guest::Session;
use crosspoint_guest::message::{protocol, request};
use crosspoint_guest::net::features;
use crosspoint_model::status::ShownState;

use super::{PATIENCE, Switch};

const FEATURES: u64 = features::VERSION_1 | features::PROTOCOL_FEATURES;
const PROTOCOL: u64 = protocol::REPLY_ACK | protocol::DEVICE_STATE;
const SAVE: u32 = 0;
const LOAD: u32 = 1;

/// A switch with port "a", whose group allows TCP to port 80, and port "b" without groups.
fn switch() -> Switch {
    let switch = Switch::start(&["a", "b"], |_| ());
    let port = |name: &str| {
        format!("[[port]]\nname = \"{name}\"\ntype = \"vhost\"\nsocket = \"/run/{name}\"\n")
    };
    let text = format!(
        "version = 1\n{}groups = [\"web\"]\n{}[[group]]\nname = \"web\"\n\
         rules = [{{ direction = \"in\", protocol = \"tcp\", port = 80 }}]\n",
        port("a"),
        port("b")
    );
    let config =
        Config::parse("switch.toml", &text).unwrap_or_else(|why| panic!("{}", why.render()));
    let set = switch.dataplane.set_groups(&config, 4096);
    set.expect("the rules compile");
    switch
}

fn session(switch: &Switch, port: &str) -> Session {
    let mut session = switch.session(port);
    session.negotiate(FEATURES, PROTOCOL).expect("it agrees");
    session
}

/// SET_DEVICE_STATE_FD: the answer, and the descriptor that came with it.
fn set_fd(session: &mut Session, direction: u32, fd: impl AsFd) -> (u64, Option<OwnedFd>) {
    let payload = [direction, 0].map(u32::to_ne_bytes).concat();
    let answer = session.query(request::SET_DEVICE_STATE_FD, &payload, &[fd.as_fd()]);
    let mut answer = answer.expect("an answer");
    (answer.u64_at(0).expect("a word"), answer.fds.pop())
}

fn transfer(session: &mut Session, direction: u32) -> File {
    // Of the front end's own pipe, which is not used.
    let (reader, writer) = rustix::pipe::pipe().expect("a pipe");
    let own = if direction == SAVE { writer } else { reader };
    let (answer, fd) = set_fd(session, direction, own);
    assert_eq!(answer, 0);
    File::from(fd.expect("another descriptor"))
}

fn check(session: &mut Session) -> u64 {
    let answer = session.query_u64(request::CHECK_DEVICE_STATE);
    answer.expect("an answer")
}

fn save(session: &mut Session) -> Vec<u8> {
    let mut state = Vec::new();
    let mut reader = transfer(session, SAVE);
    reader.read_to_end(&mut state).expect("the whole state");
    assert_eq!(check(session), 0);
    state
}

fn load(session: &mut Session, state: &[u8]) -> u64 {
    let mut writer = transfer(session, LOAD);
    writer.write_all(state).expect("there is room");
    drop(writer);
    check(session)
}

/// An established TCP connection that 192.0.2.9 began, to a port of 192.0.2.1.
fn connection(from: u16, to: u16) -> Vec<u8> {
    let bits = |last| Ipv4Addr::new(192, 0, 2, last).to_ipv6_mapped().to_bits();
    let mut bytes = [bits(1).to_le_bytes(), bits(9).to_le_bytes()].concat();
    bytes.extend([to, from].map(u16::to_le_bytes).concat());
    bytes.extend([6, 0, 0, 0]);
    bytes.extend([0; 8]);
    // Established; the originator is the upper end; in.
    bytes.extend([2, 0, 0, 0, 0, 0, 0, 0]);
    bytes
}

fn head(version: u32, len: usize, count: usize) -> String {
    format!(
        "{{\"format\":\"crosspoint guest\",\"version\":{version},\"connection_len\":{len},\"connections\":{count}}}\n"
    )
}

fn state(connections: &[Vec<u8>]) -> Vec<u8> {
    let len = connections.first().map_or(56, Vec::len);
    let head = head(1, len, connections.len());
    [head.as_bytes(), &connections.concat(), b"\nend\n"].concat()
}

fn connections(switch: &Switch) -> u32 {
    let port = switch.port("a");
    port.connections.map_or(0, |of| of.connections)
}

/// What a switch has saved another one takes, as far as its rules allow it; and another version may add to a connection.
#[test]
fn connections_are_restored_as_far_as_the_rules_allow_and_saved_again() {
    let (first, second) = (switch(), switch());
    let (mut from, mut to) = (session(&first, "a"), session(&second, "a"));
    let wanted = [connection(1000, 80), connection(1001, 80)];
    let [one, two] = wanted.clone();
    assert_eq!(
        load(&mut from, &state(&[one, two, connection(1000, 22)])),
        0
    );
    assert_eq!(connections(&first), 2);
    let saved = save(&mut from);
    assert_eq!(saved.len(), state(&wanted).len());
    assert_eq!(load(&mut to, &saved), 0);
    assert_eq!(connections(&second), 2);
    // The source has them still: its guest may go on there.
    assert_eq!(connections(&first), 2);
    let longer = wanted.map(|connection| [connection, vec![7; 8]].concat());
    let third = switch();
    assert_eq!(load(&mut session(&third, "a"), &state(&longer)), 0);
    assert_eq!(connections(&third), 2);
    let many: Vec<Vec<u8>> = (1..=3000).map(|port| connection(port, 80)).collect();
    assert_eq!(load(&mut to, &state(&many)), 0);
    assert_eq!(connections(&second), 3000);
    assert_eq!(load(&mut from, &save(&mut to)), 0);
    assert_eq!(connections(&first), 3000);
}

/// Only ports with groups offer it unless the configuration says otherwise: a migration between switches of which only one knows
/// it would fail.
#[test]
fn a_state_is_offered_where_there_are_groups_or_it_is_configured() {
    let offers = |switch: &Switch, port: &str| {
        let mut session = switch.session(port);
        let offer = session.negotiate(FEATURES, protocol::REPLY_ACK);
        offer.expect("it agrees");
        session.negotiated().protocol_offered & protocol::DEVICE_STATE != 0
    };
    let with_groups = switch();
    assert!(offers(&with_groups, "a") && !offers(&with_groups, "b"));
    let wanted = Switch::start(&["a"], |config| config.migrate_connections = Some(true));
    assert!(offers(&wanted, "a"));
    let mut session = session(&wanted, "a");
    // Without groups there are none, and what comes is not needed.
    assert_eq!(save(&mut session), state(&[]));
    assert_eq!(load(&mut session, &state(&[connection(1, 80)])), 0);
}

#[test]
fn a_state_that_is_none_is_refused_and_the_session_goes_on() {
    let switch = switch();
    let mut session = session(&switch, "a");
    let one = connection(1000, 80);
    let whole = state(std::slice::from_ref(&one));
    let cut = &whole[..whole.len() - 1];
    let begins_late = [b"\n", &whole[..]].concat();
    for bad in [
        &[][..],
        b"{}",
        &[b'x'; 5000],
        &[0xff; 100],
        cut,
        &begins_late,
        head(2, 56, 0).as_bytes(),
        head(1, 55, 1).as_bytes(),
        head(1, usize::MAX, 1).as_bytes(),
        head(1, 56, usize::MAX).as_bytes(),
        head(1, 256, 1 << 20).as_bytes(),
        head(1, 56, (1 << 20) + 1).as_bytes(),
    ] {
        assert_eq!(
            load(&mut session, bad),
            1,
            "{}",
            String::from_utf8_lossy(bad)
        );
        assert_eq!(connections(&switch), 0);
    }
    // More than the file has room for.
    let mut writer = transfer(&mut session, LOAD);
    rustix::fs::seek(&writer, rustix::fs::SeekFrom::End(0)).expect("it is a file");
    assert!(writer.write_all(&[1; 4096]).is_err());
    assert!(rustix::fs::ftruncate(&writer, 1 << 40).is_err());
    assert!(rustix::fs::ftruncate(&writer, 1).is_err());
    assert_eq!(check(&mut session), 1);
    assert_eq!(load(&mut session, &whole), 0);
    assert_eq!(connections(&switch), 1);
    // A direction that does not exist ends the session, as any invalid message does.
    let payload = [2u32, 0].map(u32::to_ne_bytes).concat();
    let (reader, _writer) = rustix::pipe::pipe().expect("a pipe");
    let answer = session.query(request::SET_DEVICE_STATE_FD, &payload, &[reader.as_fd()]);
    assert!(answer.is_err());
    switch.wait("a", |port| port.state == ShownState::Down);
}

/// A front end that reads nothing, or only a part, holds up nothing: neither its next messages nor its end.
#[test]
fn a_front_end_that_does_not_read_the_state_holds_up_nothing() {
    let switch = switch();
    let mut session = session(&switch, "a");
    // More than a pipe holds.
    let many: Vec<Vec<u8>> = (1..=3000).map(|port| connection(port, 80)).collect();
    assert_eq!(load(&mut session, &state(&many)), 0);
    let started = Instant::now();
    let kept: Vec<File> = (0..20).map(|_| transfer(&mut session, SAVE)).collect();
    let mut first = [0; 10];
    let last = kept.last().expect("there are some");
    (&*last).read_exact(&mut first).expect("the beginning");
    assert_eq!(check(&mut session), 1);
    // A page each, however many the front end keeps.
    let size = rustix::pipe::fcntl_getpipe_size(last).expect("a pipe");
    assert_eq!(size, 4096);
    let gone = transfer(&mut session, SAVE);
    drop(gone);
    assert_eq!(check(&mut session), 1);
    let more: Vec<u64> = (0..50)
        .map(|_| {
            let (_reader, writer) = rustix::pipe::pipe().expect("a pipe");
            set_fd(&mut session, SAVE, writer).0
        })
        .collect();
    assert_eq!(more.iter().filter(|answer| **answer == 0).count(), 43);
    let held = kept;
    drop(session);
    switch.wait("a", |port| port.state == ShownState::Down);
    let took = started.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
    let threads = || {
        let tasks = std::fs::read_dir("/proc/self/task").expect("it is there");
        let names =
            tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
        names.filter(|name| name.trim() == "cp-state").count()
    };
    let deadline = Instant::now() + PATIENCE;
    while threads() > 0 {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(held);
}
