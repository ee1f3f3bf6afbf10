//! Messages in an order, or with values, that no well-behaved front end sends.

use std::os::fd::AsFd;

use crosspoint_daemon::dataplane::PortState;
use crosspoint_guest::message::{FLAG_VERSION, request};
use crosspoint_guest::net::features;
use crosspoint_guest::{EventFd, Guest, GuestOptions};

use crate::rig::{Census, Fate, attack, must_fail, resident_kib, say, vring_fd, words};

/// Vring numbers beyond those of two queue pairs.
const BEYOND: [u32; 6] = [4, 5, 127, 255, 0x8000_0000, u32::MAX];

#[test]
fn vrings_are_named_that_there_are_not() {
    attack(|target| {
        for index in BEYOND {
            let state = words(&[index, 1]);
            for number in [
                request::SET_VRING_NUM,
                request::SET_VRING_BASE,
                request::SET_VRING_ENABLE,
            ] {
                must_fail(&mut target.negotiated(), number, &state, &[]);
            }
            let mut addresses = words(&[index, 0]);
            addresses.resize(40, 0);
            must_fail(
                &mut target.negotiated(),
                request::SET_VRING_ADDR,
                &addresses,
                &[],
            );
        }
        // These messages have eight bits for the number.
        let event = EventFd::new().unwrap();
        for index in 4..=255 {
            for number in [request::SET_VRING_KICK, request::SET_VRING_CALL] {
                let mut session = target.negotiated();
                must_fail(
                    &mut session,
                    number,
                    &vring_fd(index, true),
                    &[event.as_fd()],
                );
            }
        }
    });
}

#[test]
fn the_base_is_asked_of_a_vring_that_there_is_not() {
    attack(|target| {
        for index in BEYOND {
            let mut session = target.negotiated();
            let payload = words(&[index, 0]);
            session
                .send(request::GET_VRING_BASE, FLAG_VERSION, &payload, &[])
                .unwrap();
            let closed = session.wait_closed(crate::rig::PATIENCE);
            assert!(closed.unwrap(), "vring {index}");
        }
    });
}

#[test]
fn rings_are_started_before_there_is_memory() {
    attack(|target| {
        let mut session = target.negotiated();
        for index in 0..4 {
            let mut addresses = words(&[index, 0]);
            addresses.resize(40, 0);
            session
                .set_vring_state(request::SET_VRING_NUM, index, 256)
                .unwrap();
            session
                .request(request::SET_VRING_ADDR, &addresses, &[])
                .unwrap();
            session
                .set_vring_fd(request::SET_VRING_KICK, index, None)
                .unwrap();
            session.enable_vring(index, true).unwrap();
        }
        target.wait_state(PortState::Connected);
        target.others_go_on();
    });
}

#[test]
fn a_kick_comes_before_size_and_address() {
    attack(|target| {
        let mut session = target.negotiated();
        let guest = Guest::new(GuestOptions::default()).unwrap();
        session.set_mem_table(guest.memory()).unwrap();
        for index in 0..4 {
            session.enable_vring(index, true).unwrap();
            session
                .set_vring_fd(request::SET_VRING_KICK, index, None)
                .unwrap();
        }
        target.others_go_on();
        target.wait_state(PortState::Connected);
        // Addresses, but still no size.
        let at = guest.memory().user_address(0).unwrap();
        for index in 0..4 {
            session
                .set_vring_addr(index, [at, at + 0x1000, at + 0x2000, 0])
                .unwrap();
        }
        target.others_go_on();
        target.wait_state(PortState::Connected);
    });
}

#[test]
fn features_change_while_the_rings_run() {
    attack(|target| {
        let mut guest = target.guest();
        let modern = features::VERSION_1 | features::PROTOCOL_FEATURES;
        for number in 0..50 {
            let bits = [
                modern,
                modern | features::MRG_RXBUF,
                0,
                modern | features::EVENT_IDX,
            ];
            let session = guest.session().unwrap();
            session
                .request_u64(request::SET_FEATURES, bits[number % 4])
                .unwrap();
        }
        target.others_go_on();
    });
}

#[test]
fn features_are_acknowledged_that_were_not_offered() {
    attack(|target| {
        let mut session = target.negotiated();
        let offered = session.query_u64(request::GET_FEATURES).unwrap();
        for bit in (0..64).filter(|bit| offered & 1 << bit == 0) {
            let bits = (offered | 1 << bit).to_ne_bytes();
            assert_eq!(
                say(&mut session, request::SET_FEATURES, &bits, &[]),
                Fate::Refused,
                "bit {bit}"
            );
        }
    });
}

#[test]
fn protocol_features_are_acknowledged_that_were_not_offered() {
    attack(|target| {
        for bits in [u64::MAX, 1 << 15, 1 << 12, 1 << 18, 1 << 63] {
            let mut session = target.connect();
            let _ = session.query_u64(request::GET_FEATURES);
            let payload = (bits | 1 << 3).to_ne_bytes();
            session
                .send(request::SET_PROTOCOL_FEATURES, FLAG_VERSION, &payload, &[])
                .unwrap();
            // What the bits stand for still does not exist. 44 is GET_SHMEM_CONFIG.
            must_fail(&mut session, 44, &[], &[]);
            target.others_go_on();
        }
    });
}

#[test]
fn a_ring_has_an_impossible_size() {
    attack(|target| {
        let mut session = target.negotiated();
        for size in [
            0,
            3,
            100,
            255,
            32_769,
            65_535,
            65_536,
            0x1_0000_0000_u64 as u32,
            u32::MAX,
        ] {
            let payload = words(&[0, size]);
            assert_eq!(
                say(&mut session, request::SET_VRING_NUM, &payload, &[]),
                Fate::Refused,
                "{size}"
            );
        }
    });
}

#[test]
fn a_rings_size_changes_while_it_runs() {
    attack(|target| {
        let mut guest = target.guest();
        for size in [1, 128, 512, 32_768] {
            let payload = words(&[1, size]);
            let fate = say(
                guest.session().unwrap(),
                request::SET_VRING_NUM,
                &payload,
                &[],
            );
            assert_eq!(fate, Fate::Refused);
        }
        // The guest goes on as before.
        assert_eq!(guest.send(0, &[&[0xff; 60]]).unwrap(), 1);
        assert!(guest.drain_transmit(0, crate::rig::PATIENCE).unwrap());
    });
}

#[test]
fn sizes_are_set_ten_thousand_times() {
    attack(|target| {
        let mut session = target.negotiated();
        let mut set = |times| {
            for number in 0..times {
                let size = 1 << (number % 16);
                session
                    .set_vring_state(request::SET_VRING_NUM, number % 4, size)
                    .unwrap();
            }
        };
        set(100);
        let (before, kib) = (Census::now(), resident_kib());
        set(10_000);
        before.assert_same();
        let grown = resident_kib().saturating_sub(kib);
        assert!(grown < 4096, "{grown} KiB more");
    });
}

#[test]
fn a_base_is_set_while_the_ring_runs_or_is_out_of_range() {
    attack(|target| {
        let mut guest = target.guest();
        must_fail(
            guest.session().unwrap(),
            request::SET_VRING_BASE,
            &words(&[1, 7]),
            &[],
        );
        drop(guest);
        let mut session = target.negotiated();
        for base in [0x1_0000, u32::MAX] {
            let fate = say(
                &mut session,
                request::SET_VRING_BASE,
                &words(&[0, base]),
                &[],
            );
            // Bits beyond the ring's sixteen: accepted or refused, they have no effect.
            assert_ne!(fate, Fate::Closed);
        }
    });
}

#[test]
fn the_configuration_is_read_at_absurd_places() {
    attack(|target| {
        let mut session = target.negotiated();
        for (offset, size) in [
            (0u32, 0u32),
            (0, 1),
            (255, 1),
            (256, 1),
            (256, 0),
            (0, 256),
            (0, 257),
            (u32::MAX, 1),
            (u32::MAX, 0),
            (4000, 256),
        ] {
            let mut payload = words(&[offset, size, 0]);
            payload.resize(12 + size as usize, 0);
            match say(&mut session, request::GET_CONFIG, &payload, &[]) {
                Fate::Closed => {
                    drop(session);
                    session = target.negotiated();
                }
                _ => _ = session.query_u64(request::GET_FEATURES).unwrap(),
            }
        }
        drop(session);
        // A size that differs from the payload's.
        for size in [1, 100, 4096, u32::MAX] {
            must_fail(
                &mut target.negotiated(),
                request::GET_CONFIG,
                &words(&[0, size, 0]),
                &[],
            );
        }
    });
}

#[test]
fn the_configuration_is_written() {
    attack(|target| {
        let mut payload = words(&[0, 6, 0]);
        payload.resize(18, 0xff);
        must_fail(&mut target.negotiated(), request::SET_CONFIG, &payload, &[]);
    });
}

#[test]
fn rings_are_enabled_and_disabled_without_pause() {
    attack(|target| {
        let mut guest = target.guest();
        let before = Census::now();
        for number in 0..1000 {
            guest.enable(number % 2 == 1).unwrap();
        }
        before.assert_same();
    });
}

#[test]
fn a_ring_is_stopped_again_and_again() {
    attack(|target| {
        let mut guest = target.guest();
        let session = guest.session().unwrap();
        let first = session.vring_base(1).unwrap();
        for _ in 0..1000 {
            assert_eq!(session.vring_base(1).unwrap(), first);
        }
    });
}

#[test]
fn the_device_is_reset_without_pause() {
    attack(|target| {
        let mut guest = target.guest();
        let before = Census::now();
        for _ in 0..1000 {
            guest
                .session()
                .unwrap()
                .request(request::RESET_OWNER, &[], &[])
                .unwrap();
        }
        // The rings' descriptors are closed with the rings.
        before.assert_no_more();
    });
}
