//! What a guest sees of its link while the operator has disabled its port.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use crosspoint_daemon::dataplane::PortSettings;
use crosspoint_guest::Session;
use crosspoint_guest::message::{FLAG_VERSION, protocol, request};
use crosspoint_guest::net::features;

use super::{PATIENCE, Switch};

/// A back end's request (vhost-user protocol, "Back-end message types").
const CONFIG_CHANGE_MSG: u32 = 2;
const BOTH: u64 = protocol::CONFIG | protocol::BACKEND_REQ | protocol::REPLY_ACK;

fn set_disabled(switch: &Switch, disabled: bool) {
    let number = switch.dataplane.port_number("a").expect("a port");
    let settings = PortSettings {
        disabled: Some(disabled),
        ..PortSettings::default()
    };
    switch.dataplane.set_port(number, settings);
}

fn negotiated(switch: &Switch, protocol_features: u64) -> Session {
    let mut session = switch.session("a");
    let features = features::VERSION_1 | features::STATUS | features::PROTOCOL_FEATURES;
    let done = session.negotiate(features, protocol_features);
    done.expect("the switch agrees");
    session
}

/// Gives the switch a channel, and returns the front end's end.
fn with_channel(session: &mut Session) -> UnixStream {
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    give(session, &theirs);
    ours.set_read_timeout(Some(PATIENCE)).expect("a time");
    ours
}

fn give(session: &mut Session, channel: &UnixStream) {
    let given = session.request(request::SET_BACKEND_REQ_FD, &[], &[channel.as_fd()]);
    given.expect("the switch takes it");
}

/// `status` of the configuration space (virtio 1.2, 5.1.4).
fn status(session: &mut Session) -> u16 {
    let bytes = session.config(6, 2).expect("the status");
    u16::from_le_bytes([bytes[0], bytes[1]])
}

fn must_be_told(channel: &mut UnixStream) {
    let mut message = [0; 12];
    channel.read_exact(&mut message).expect("a message");
    let expected = [CONFIG_CHANGE_MSG, FLAG_VERSION, 0].map(u32::to_ne_bytes);
    assert_eq!(message, *expected.concat());
}

#[test]
fn a_front_end_that_can_be_told_shows_its_guest_that_the_port_is_disabled() {
    let switch = Switch::start(&["a"], |_| ());
    let mut session = negotiated(&switch, BOTH);
    let mut channel = with_channel(&mut session);
    for _ in 0..3 {
        assert_eq!(status(&mut session), 1);
        set_disabled(&switch, true);
        must_be_told(&mut channel);
        assert_eq!(status(&mut session), 0);
        set_disabled(&switch, false);
        must_be_told(&mut channel);
    }
    set_disabled(&switch, true);
    drop(session);
    // The next front end finds the link down.
    let mut session = negotiated(&switch, BOTH);
    let mut channel = with_channel(&mut session);
    must_be_told(&mut channel);
    assert_eq!(status(&mut session), 0);
    set_disabled(&switch, false);
    must_be_told(&mut channel);
    assert_eq!(status(&mut session), 1);
}

/// A guest that saw its link go down would not see it come up again.
#[test]
fn a_front_end_that_cannot_be_told_shows_a_link_that_is_up() {
    let switch = Switch::start(&["a"], |_| ());
    set_disabled(&switch, true);
    let mut session = negotiated(&switch, BOTH);
    assert_eq!(status(&mut session), 1, "there is no channel");
    drop(session);
    let mut session = negotiated(&switch, BOTH & !protocol::BACKEND_REQ);
    assert_eq!(status(&mut session), 1);
}

#[test]
fn a_front_end_that_does_not_read_its_channel_holds_nothing_up() {
    let switch = Switch::start(&["a"], |_| ());
    let mut session = negotiated(&switch, BOTH);
    let (mut ours, mut theirs) = UnixStream::pair().expect("a pair");
    theirs.set_nonblocking(true).expect("a socket");
    while theirs.write(&[0; 4096]).is_ok() {}
    theirs.set_nonblocking(false).expect("a socket");
    give(&mut session, &theirs);
    for disabled in [true, false, true] {
        set_disabled(&switch, disabled);
        assert_eq!(status(&mut session) == 0, disabled);
    }
    // Nor does one that has closed it.
    ours.set_nonblocking(true).expect("a socket");
    while ours.read(&mut [0; 4096]).is_ok_and(|got| got > 0) {}
    drop(ours);
    set_disabled(&switch, false);
    assert_eq!(status(&mut session), 1);
}
