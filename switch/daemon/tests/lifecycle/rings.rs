//! Rings that stop and start under load.

use std::time::Duration;

use crosspoint_guest::message::protocol;
use crosspoint_guest::{Guest, GuestOptions};
use crosspoint_model::status::ShownState;

use super::load::{Load, Loss, Pair};
use super::{Case, PORTS, Switch};

/// Checks that frames for the guest while its rings were stopped are counted as dropped, and all others have arrived
/// once.
fn check(switch: &Switch, pair: &Pair, dropped_before: u64) {
    let dropped = switch.drops("a", "port_down") - dropped_before;
    let lost = (pair.lost(0), pair.lost(1), pair.doubled(), pair.late());
    assert_eq!(lost, (0, dropped, 0, 0));
    switch.check_ledger();
}

/// Runs `again` on a guest under load several times; it must leave the guest running.
fn again_and_again(protocol_features: u64, again: impl Fn(&mut Guest, Load) -> Load) {
    Case::each(|case| {
        let switch = Switch::start(case.workers, &PORTS, 1);
        let others = switch.bystanders(case);
        let mut a = switch.guest("a", case.guest(protocol_features));
        let mut b = switch.guest("b", case.guest(0));
        let mut load = Load::start(&mut a, &mut b, 1, Loss::Counted);
        let before = switch.drops("a", "port_down");
        for _ in 0..8 {
            load = again(&mut a, load);
            switch.wait("a", |port| port.state == ShownState::Up);
            load.flow(300);
        }
        let pair = load.finish();
        others.check(&switch);
        check(&switch, &pair, before);
    });
}

fn set_features(a: &mut Guest) {
    let features = a.negotiated().features;
    let done = a.session().expect("a session").set_features(features);
    done.expect("the same as before");
}

#[test]
fn rings_stop_and_go_on_at_their_bases() {
    again_and_again(0, |a, load| {
        a.stop().expect("the bases");
        std::thread::sleep(Duration::from_millis(3));
        a.restart().expect("on we go");
        load
    });
}

#[test]
fn a_device_that_is_stopped_and_reset_goes_on() {
    again_and_again(protocol::RESET_DEVICE, |a, load| {
        a.reset_device().expect("a reset");
        set_features(a);
        a.restart().expect("on we go");
        load
    });
}

/// Without preceding messages: the driver itself determines the rings' indices.
#[test]
fn a_device_that_is_reset_under_load_goes_on() {
    for status in [false, true] {
        again_and_again(protocol::RESET_DEVICE | protocol::STATUS, |a, load| {
            let session = a.session().expect("a session");
            match status {
                true => session.set_status(0).expect("a reset"),
                false => session.reset_device().expect("a reset"),
            }
            let mut pair = load.abort();
            set_features(a);
            pair.lend(0, a, |a| a.restart().expect("on we go"));
            Load::of(pair)
        });
    }
}

#[test]
fn rings_that_are_disabled_keep_what_they_have() {
    again_and_again(0, |a, load| {
        for index in [0, 1, 1, 0] {
            let session = a.session().expect("a session");
            session.enable_vring(index, false).expect("off");
            std::thread::sleep(Duration::from_millis(2));
            session.enable_vring(index, true).expect("on");
        }
        load
    });
}

/// Four queue pairs, of which some are in use: while at least one is, nothing is lost.
#[test]
fn queue_pairs_come_and_go_and_lose_nothing() {
    Case::each(|case| {
        let switch = Switch::start(case.workers, &PORTS, 4);
        let others = switch.bystanders(case);
        let many = |case: Case| GuestOptions {
            queue_pairs: 4,
            ..case.guest(protocol::MQ)
        };
        let mut a = switch.guest("a", many(case));
        let mut b = switch.guest("b", many(case));
        let load = Load::start(&mut a, &mut b, 1, Loss::Counted);
        let mut use_pairs = |pairs: &[u32]| {
            // New pairs first, so that at least one is always enabled.
            for enable in [true, false] {
                for pair in (0..4).filter(|pair| pairs.contains(pair) == enable) {
                    let session = a.session().expect("a session");
                    for index in [2 * pair, 2 * pair + 1] {
                        session.enable_vring(index, enable).expect("a ring");
                    }
                }
            }
            std::thread::sleep(Duration::from_millis(3));
        };
        for _ in 0..4 {
            use_pairs(&[0]);
            use_pairs(&[0, 1]);
            use_pairs(&[2, 3]);
            use_pairs(&[1]);
            use_pairs(&[0, 1, 2, 3]);
            load.flow(50);
        }
        let pair = load.finish();
        assert_eq!((pair.lost(0), pair.lost(1), pair.doubled()), (0, 0, 0));
        others.check(&switch);
        switch.check_ledger();
    });
}
