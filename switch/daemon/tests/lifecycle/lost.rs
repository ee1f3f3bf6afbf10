//! Guests that truncate their memory.

use std::time::Duration;

use crosspoint_daemon::ports::vhost::QUARANTINE_FIRST;
use crosspoint_guest::message::protocol;
use crosspoint_guest::{Guest, GuestMemory, GuestOptions};
use crosspoint_model::status::ShownState;

use super::load::{Load, Loss};
use super::{Case, PORTS, Switch};

/// The switch guarantees one second; the rest allows for a busy machine.
const NOTICED: Duration = Duration::from_secs(10);

/// Receive ring, its buffers, transmit ring, its buffers: regions of [`scattered`].
const AREAS: [usize; 4] = [0, 1, 3, 4];

fn scattered(case: Case, protocol_features: u64) -> GuestOptions {
    GuestOptions {
        region_bases: (0..6).map(|region| region << 28).collect(),
        ..case.guest(protocol_features)
    }
}

/// Checks that the port is quarantined soon for this reason, and then serves the next guest normally.
fn is_quarantined_and_heals(
    switch: &Switch,
    case: Case,
    reason: &str,
    load: Load,
    guests: [Guest; 2],
) {
    let took = switch.wait("a", |port| port.state == ShownState::Quarantined);
    assert!(took < NOTICED, "{took:?}");
    let detail = switch.port("a").detail;
    assert!(detail.contains(reason), "{detail}");
    assert_eq!(switch.port("b").state, ShownState::Up);
    drop((load.abort(), guests));
    for name in ["a", "b"] {
        switch.wait(name, |port| port.state == ShownState::Down);
    }
    let mut guests = ["a", "b"].map(|name| switch.guest(name, case.guest(0)));
    let [a, b] = &mut guests;
    let load = Load::start(a, b, 1, Loss::None);
    load.flow(300);
    load.finish().expect_all();
}

/// Truncates a file to nothing. What the guest receives from now on may be garbage.
fn cut(memory: &GuestMemory, region: usize, load: &Load) {
    load.with(|pair| pair.blind = true);
    memory.truncate(region, 0).expect("a cut");
}

fn lose(protocol_features: u64, reason: &str, take_away: impl Fn(&mut Guest, &Load)) {
    Case::each(|case| {
        let switch = Switch::start(case.workers, &PORTS, 1);
        let others = switch.bystanders(case);
        let mut a = switch.guest("a", scattered(case, protocol_features));
        let mut b = switch.guest("b", case.guest(0));
        let load = Load::start(&mut a, &mut b, 1, Loss::Counted);
        take_away(&mut a, &load);
        is_quarantined_and_heals(&switch, case, reason, load, [a, b]);
        others.check(&switch);
        switch.check_ledger();
    });
}

const TRUNCATED: &str = "truncated";

/// A ring of zeroes breaks other rules too; the port shows the first one found.
#[test]
fn a_guest_that_cuts_off_a_ring_is_quarantined() {
    for region in [AREAS[0], AREAS[2]] {
        lose(0, "", |a, load| cut(a.memory(), region, load));
    }
}

#[test]
fn a_guest_that_cuts_off_a_ring_is_quarantined_for_that() {
    for region in [AREAS[0], AREAS[2]] {
        lose(0, TRUNCATED, |a, load| cut(a.memory(), region, load));
    }
}

#[test]
fn a_guest_that_cuts_off_its_buffers_is_quarantined_for_that() {
    for region in [AREAS[1], AREAS[3]] {
        lose(0, TRUNCATED, |a, load| cut(a.memory(), region, load));
    }
}

fn cut_log(a: &mut Guest, load: &Load) {
    let log = a.start_dirty_log().expect("a log");
    load.flow(100);
    cut(log.memory(), 0, load);
}

fn cut_inflight(a: &mut Guest, load: &Load) {
    load.flow(100);
    cut(a.inflight().expect("a region").memory(), 0, load);
}

#[test]
fn a_guest_that_cuts_off_its_dirty_log_is_quarantined_for_that() {
    lose(protocol::LOG_SHMFD, TRUNCATED, cut_log);
}

#[test]
fn a_guest_that_cuts_off_its_inflight_region_is_quarantined_for_that() {
    lose(protocol::INFLIGHT_SHMFD, TRUNCATED, cut_inflight);
}

/// Frames do not depend on the log or the inflight region.
#[test]
fn a_guest_that_cuts_off_log_and_inflight_region_harms_no_other() {
    Case::each(|case| {
        let switch = Switch::start(case.workers, &PORTS, 1);
        let others = switch.bystanders(case);
        let features = protocol::LOG_SHMFD | protocol::INFLIGHT_SHMFD;
        let mut a = switch.guest("a", scattered(case, features));
        let mut b = switch.guest("b", case.guest(0));
        let load = Load::start(&mut a, &mut b, 1, Loss::Counted);
        cut_log(&mut a, &load);
        cut(a.inflight().expect("a region").memory(), 0, &load);
        std::thread::sleep(Duration::from_millis(300));
        drop((load.abort(), a, b));
        others.check(&switch);
        switch.wait("b", |port| port.state == ShownState::Down);
        switch.check_ledger();
    });
}

/// The loss is detected while the port is not up, when there is nothing to quarantine yet.
#[test]
fn memory_that_was_lost_before_the_port_is_up_is_not_forgotten() {
    Case::each(|case| {
        let switch = Switch::start(case.workers, &PORTS, 1);
        let mut a = switch.guest("a", scattered(case, 0));
        let mut b = switch.guest("b", case.guest(0));
        let load = Load::start(&mut a, &mut b, 1, Loss::Counted);
        let session = a.session().expect("a session");
        session.enable_vring(1, false).expect("a ring less");
        switch.wait("a", |port| port.state == ShownState::Connected);
        cut(a.memory(), AREAS[1], &load);
        std::thread::sleep(Duration::from_millis(500));
        let session = a.session().expect("a session");
        session.enable_vring(1, true).expect("the ring again");
        switch.wait("a", |port| port.state == ShownState::Quarantined);
        drop(load.abort());
    });
}

/// A reset does not restore the memory.
#[test]
fn a_guest_whose_memory_is_lost_stays_in_quarantine_after_a_reset() {
    Case::each(|case| {
        let switch = Switch::start(case.workers, &PORTS, 1);
        let mut a = switch.guest("a", scattered(case, protocol::RESET_DEVICE));
        let mut b = switch.guest("b", case.guest(0));
        let load = Load::start(&mut a, &mut b, 1, Loss::Counted);
        cut(a.memory(), AREAS[1], &load);
        switch.wait("a", |port| port.state == ShownState::Quarantined);
        let session = a.session().expect("a session");
        session.reset_device().expect("a reset");
        std::thread::sleep(QUARANTINE_FIRST + QUARANTINE_FIRST / 2);
        assert_eq!(switch.port("a").state, ShownState::Quarantined);
        drop(load.abort());
    });
}
