//! Guests that follow the protocol, but use it to hold up others.

use std::time::{Duration, Instant};

use crosspoint_daemon::dataplane::PortState;
use crosspoint_daemon::ports::vhost::QUARANTINE_FIRST;
use crosspoint_guest::message::{protocol, request};
use crosspoint_guest::{Guest, GuestOptions};

use crate::rig::{PATIENCE, PROTOCOL, arrives, attack, frame, until};

#[test]
fn a_guest_never_frees_its_receive_buffers() {
    attack(|target| {
        let _guest = target.guest();
        target.send_to_it(1000);
        let full = || target.drops().get("guest_ring_full").copied();
        // A ring of 256 entries is filled once.
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

/// Every ring fault is followed by a new session, and that by the next fault.
#[test]
fn a_guest_is_quarantined_a_hundred_times() {
    attack(|target| {
        for _ in 0..100 {
            let mut guest = target.guest();
            break_ring(&mut guest);
            target.wait_state(PortState::Quarantined);
        }
    });
}

/// A quarantined port restarts no ring, whatever its front end sends, until all its rings have been stopped.
#[test]
fn a_guest_in_quarantine_sets_its_rings_up_again() {
    attack(|target| {
        let mut guest = target.guest();
        break_ring(&mut guest);
        target.wait_state(PortState::Quarantined);
        let memory = guest.memory().clone();
        for _ in 0..20 {
            let session = guest.session().unwrap();
            let _ = session.set_mem_table(&memory);
            let _ = session.vring_base(1);
            let _ = session.set_vring_fd(request::SET_VRING_KICK, 1, None);
            let _ = guest.enable(true);
            target.wait_state(PortState::Quarantined);
        }
        target.others_go_on();
    });
}

/// An index that no driver writes.
fn break_ring(guest: &mut Guest) {
    let queue = guest.transmit_queue(0).unwrap();
    let runaway = queue.ring().avail_idx().wrapping_add(5000);
    queue.ring().set_avail_idx(runaway);
    guest.kick(1).unwrap();
}

fn resettable() -> GuestOptions {
    GuestOptions {
        protocol_features: PROTOCOL | protocol::RESET_DEVICE | protocol::STATUS,
        ..GuestOptions::default()
    }
}

/// The messages with which a front end reports its guest's reboot.
#[derive(Clone, Copy, Debug)]
enum Reset {
    Status,
    Device,
    Rings,
    Disabled,
}

fn reboot(guest: &mut Guest, how: Reset) {
    let session = guest.session().unwrap();
    match how {
        Reset::Status => session.set_status(0).unwrap(),
        Reset::Device => session.reset_device().unwrap(),
        Reset::Rings => (0..2).for_each(|index| {
            session.vring_base(index).unwrap();
        }),
        Reset::Disabled => guest.enable(false).unwrap(),
    }
    guest.reset(0);
    let features = guest.negotiated().features;
    guest.start(features).unwrap();
    guest.session().unwrap().set_features(features).unwrap();
    guest.restart().unwrap();
}

/// A faulty driver in a boot loader does not cost the system that it loads its network, however the front end reports
/// the device's restart.
#[test]
fn a_guest_that_boots_again_leaves_quarantine() {
    for how in [Reset::Status, Reset::Device, Reset::Rings, Reset::Disabled] {
        attack(|target| {
            let mut guest = target.guest_with(resettable());
            break_ring(&mut guest);
            target.wait_state(PortState::Quarantined);
            let started = Instant::now();
            reboot(&mut guest, how);
            // Messages are answered during the pause.
            let session = guest.session().unwrap();
            assert!(session.query_u64(request::GET_FEATURES).is_ok(), "{how:?}");
            target.wait_state(PortState::Up);
            let took = started.elapsed();
            assert!(took >= QUARANTINE_FIRST, "{how:?}: up after {took:?}");
            let (there, back) = (frame(0xff, 22, 1, 500), frame(22, 21, 2, 500));
            let mut partner = target.partner();
            assert_eq!(partner.send(0, &[&there]).unwrap(), 1);
            assert!(arrives(&mut guest, &there), "{how:?}");
            assert_eq!(guest.send(0, &[&back]).unwrap(), 1);
            assert!(arrives(&mut partner, &back), "{how:?}");
        });
    }
}

/// Each pause is twice the previous one, so that a guest gains nothing from faults.
#[test]
fn a_guest_that_breaks_its_rings_after_each_reset_waits_ever_longer() {
    attack(|target| {
        let mut guest = target.guest_with(resettable());
        for pause in [1, 2, 4] {
            break_ring(&mut guest);
            target.wait_state(PortState::Quarantined);
            let started = Instant::now();
            reboot(&mut guest, Reset::Device);
            // A second reset does not count again.
            reboot(&mut guest, Reset::Status);
            let says =
                format!("; it has been reset since, and its traffic resumes after {pause} s");
            let detail = target.detail();
            assert!(detail.ends_with(&says), "{detail}");
            assert_eq!(detail.matches("reset").count(), 1, "{detail}");
            target.wait_state(PortState::Up);
            let took = started.elapsed();
            assert!(took >= Duration::from_secs(pause), "up after {took:?}");
        }
        target.others_go_on();
    });
}
