//! Guests that follow the protocol, and use what it gives them to hold up others.

use std::time::{Duration, Instant};

use crosspoint_control::fabric::PortState;
use crosspoint_guest::GuestOptions;
use crosspoint_guest::message::request;

use crate::rig::{PATIENCE, attack, until};

#[test]
fn a_guest_never_frees_its_receive_buffers() {
    attack(|target| {
        let _guest = target.guest();
        target.send_to_it(1000);
        let full = || target.drops().get("guest_ring_full").copied();
        // A ring of 256 is filled once.
        assert!(
            until(PATIENCE, || full() == Some(1000 - 256)),
            "{:?}",
            target.drops()
        );
        target.others_go_on();
    });
}

#[test]
fn a_guest_offers_no_receive_buffers() {
    attack(|target| {
        let options = GuestOptions {
            rx_posted: 0,
            ..GuestOptions::default()
        };
        let _guest = target.guest_with(options);
        target.send_to_it(100);
        let full = || target.drops().get("guest_ring_full").copied();
        assert!(
            until(PATIENCE, || full() == Some(100)),
            "{:?}",
            target.drops()
        );
    });
}

#[test]
fn a_guest_kicks_without_pause() {
    attack(|target| {
        let mut guest = target.guest();
        let end = Instant::now() + Duration::from_secs(1);
        while Instant::now() < end {
            (0..100).for_each(|number| guest.kick(number % 2).unwrap());
        }
        target.others_go_on();
    });
}

#[test]
fn a_guest_sends_as_fast_as_it_can() {
    attack(|target| {
        let mut guest = target.guest();
        let frame = crate::rig::frame(0xff, 21, 0, 1500);
        let end = Instant::now() + Duration::from_secs(1);
        while Instant::now() < end {
            guest.send(0, &[&frame[..]; 64]).unwrap();
        }
        target.others_go_on();
    });
}

/// Every fault of a ring is followed by a new session, and that by the next fault.
#[test]
fn a_guest_is_quarantined_a_hundred_times() {
    attack(|target| {
        for _ in 0..100 {
            let mut guest = target.guest();
            let queue = guest.transmit_queue(0).unwrap();
            let runaway = queue.ring().avail_idx().wrapping_add(5000);
            queue.ring().set_avail_idx(runaway);
            guest.kick(1).unwrap();
            target.wait_state(PortState::Quarantined);
        }
    });
}

/// A port in quarantine takes no ring back, whatever its front end says; only a new session does.
#[test]
fn a_guest_in_quarantine_sets_its_rings_up_again() {
    attack(|target| {
        let mut guest = target.guest();
        let queue = guest.transmit_queue(0).unwrap();
        let runaway = queue.ring().avail_idx().wrapping_add(5000);
        queue.ring().set_avail_idx(runaway);
        guest.kick(1).unwrap();
        target.wait_state(PortState::Quarantined);
        let memory = guest.memory().clone();
        for _ in 0..20 {
            let session = guest.session().unwrap();
            let _ = session.set_mem_table(&memory);
            let _ = session.vring_base(1);
            let _ = session.set_vring_fd(request::SET_VRING_KICK, 1, None);
            let _ = guest.enable(false);
            let _ = guest.enable(true);
            target.wait_state(PortState::Quarantined);
        }
        target.others_go_on();
    });
}
