//! Guests that return on the same connection, and front ends that leave.

use std::time::Duration;

use crosspoint_guest::GuestOptions;
use crosspoint_guest::message::{protocol, request};
use crosspoint_model::status::ShownState;

use super::{PATIENCE, Switch};

/// A reset ends the faults of the rings before it, even if they are noticed late: the next rings are not quarantined.
#[test]
fn a_fault_that_is_found_before_a_reset_and_seen_after_it_is_of_the_rings_before() {
    let switch = Switch::start(&["a", "b"], |_| ());
    let options = GuestOptions {
        protocol_features: protocol::REPLY_ACK | protocol::RESET_DEVICE | protocol::STATUS,
        ..GuestOptions::default()
    };
    let mut bad = switch.guest("a", options);
    let mut b = switch.guest("b", GuestOptions::default());
    let queue = bad.receive_queue(0).expect("a queue");
    let runaway = queue.ring().avail_idx().wrapping_add(5000);
    queue.ring().set_avail_idx(runaway);
    let mut frame = [0xff; 60];
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    // The worker has the fault now, and it is not processed yet: this test does its own housekeeping.
    assert_eq!(b.send(0, &[&frame]).ok(), Some(1));
    let drops = |port: &crosspoint_model::status::PortStatus| -> u64 {
        let of =
            |q: &crosspoint_model::status::QueueStatus| q.drops.get("guest_quarantined").copied();
        port.queues.iter().filter_map(of).sum()
    };
    switch.wait("a", |port| drops(port) == 1);
    assert_eq!(switch.port("a").state, ShownState::Up);
    let session = bad.session().expect("a session");
    session.reset_device().expect("a reset");
    assert_eq!(switch.port("a").state, ShownState::Quarantined);
    bad.reset(0);
    let features = bad.negotiated().features;
    bad.start(features).expect("a driver");
    let session = bad.session().expect("a session");
    session.set_features(features).expect("they are offered");
    bad.restart().expect("rings");
    switch.wait("a", |port| port.state == ShownState::Up);
    switch.dataplane.housekeep(Duration::from_secs(1));
    assert_eq!(switch.port("a").state, ShownState::Up);
    assert_eq!(b.send(0, &[&frame]).ok(), Some(1));
    let got = bad.receive_at_least(0, 1, PATIENCE).expect("a ring");
    assert_eq!(got.len(), 1);
    switch.check_ledger();
}

/// A front end that lacks something leaves and reconnects without a message: only its last request, and how often it
/// left, can be known.
#[test]
fn a_front_end_that_leaves_before_its_rings_run_is_told_of() {
    let switch = Switch::start(&["a"], |_| ());
    for times in 1..=3 {
        let mut session = switch.session("a");
        assert!(session.query_u64(request::GET_FEATURES).is_ok());
        assert!(session.query_u64(request::GET_PROTOCOL_FEATURES).is_ok());
        drop(session);
        switch.wait("a", |port| {
            let device = port.device.as_ref().expect("a device");
            port.state == ShownState::Down && device.early_ends == times
        });
        let device = switch.device("a");
        assert_eq!(
            device.last_request.as_deref(),
            Some("GET_PROTOCOL_FEATURES")
        );
        assert_eq!(device.last_end.as_deref(), Some("it closed the connection"));
    }
    let says = "the last 3 left before their rings ran, after GET_PROTOCOL_FEATURES";
    assert_eq!(
        switch.port("a").detail,
        format!("no front end is connected; {says}")
    );
    let next = switch.session("a");
    switch.wait("a", |port| port.state == ShownState::Connected);
    assert_eq!(
        switch.port("a").detail,
        format!("the front end is setting up; {says}")
    );
    drop(next);
    switch.wait("a", |port| {
        port.detail
            .contains("4 left before their rings ran, without a request")
    });
    // A front end whose rings have run resets the count.
    let guest = switch.guest("a", GuestOptions::default());
    switch.wait("a", |port| port.state == ShownState::Up);
    drop(guest);
    switch.wait("a", |port| {
        let device = port.device.as_ref().expect("a device");
        port.state == ShownState::Down && device.early_ends == 0
    });
    assert_eq!(switch.port("a").detail, "no front end is connected");
}
