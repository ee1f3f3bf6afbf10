//! Invalid memory slots, dirty logs and inflight regions.

use std::os::fd::AsFd;

use crosspoint_guest::message::{FLAG_VERSION, protocol, request};
use crosspoint_guest::{GuestOptions, Session};

use crate::rig::{Census, FEATURES, Fate, PROTOCOL, Target, attack, memfd, must_fail, say};

const LEN: u64 = 0x10_0000;

/// A session with all protocol features for migration.
fn session(target: &Target<'_>) -> Session {
    let more = protocol::CONFIGURE_MEM_SLOTS | protocol::LOG_SHMFD | protocol::INFLIGHT_SHMFD;
    let mut session = target.connect();
    session
        .negotiate(FEATURES, PROTOCOL | more)
        .expect("it agrees");
    session
}

/// Payload of ADD_MEM_REG and REM_MEM_REG: guest address, size, user address, offset.
fn slot(region: [u64; 4]) -> Vec<u8> {
    let words = std::iter::once(0).chain(region);
    words.flat_map(u64::to_ne_bytes).collect()
}

/// Payload of SET_LOG_BASE.
fn log(size: u64, offset: u64) -> Vec<u8> {
    [size, offset]
        .into_iter()
        .flat_map(u64::to_ne_bytes)
        .collect()
}

/// Payload of GET_INFLIGHT_FD and SET_INFLIGHT_FD.
fn inflight(size: u64, offset: u64, queues: u16, ring_size: u16) -> Vec<u8> {
    let mut payload = log(size, offset);
    payload.extend(queues.to_ne_bytes());
    payload.extend(ring_size.to_ne_bytes());
    payload.extend([0; 4]);
    payload
}

#[test]
fn slots_overlap_overflow_or_exceed_their_file() {
    attack(|target| {
        let file = memfd(LEN);
        let before = Census::now();
        for region in [
            [0, 0, 0, 0],
            [u64::MAX, 2, 0, 0],
            [0, 2, u64::MAX, 0],
            [0, 2, 0, u64::MAX],
            [0, LEN + 1, 0, 0],
            [0, LEN, 0, 1],
            [0x1fff, 0x1000, 0x8000, 0],
        ] {
            let mut session = session(target);
            let good = slot([0x1000, 0x1000, 0x1000, 0]);
            let added = say(&mut session, request::ADD_MEM_REG, &good, &[file.as_fd()]);
            assert_eq!(added, Fate::Accepted);
            must_fail(
                &mut session,
                request::ADD_MEM_REG,
                &slot(region),
                &[file.as_fd()],
            );
        }
        before.assert_same();
    });
}

#[test]
fn more_slots_are_added_than_there_are() {
    attack(|target| {
        let file = memfd(LEN);
        let before = Census::now();
        let mut session = session(target);
        let most = session.query_u64(request::GET_MAX_MEM_SLOTS).unwrap();
        for number in 0..most {
            let region = slot([number * 0x1000, 0x1000, number * 0x1000, 0]);
            let added = say(&mut session, request::ADD_MEM_REG, &region, &[file.as_fd()]);
            assert_eq!(added, Fate::Accepted, "slot {number}");
        }
        target.others_go_on();
        let region = slot([most * 0x1000, 0x1000, most * 0x1000, 0]);
        must_fail(&mut session, request::ADD_MEM_REG, &region, &[file.as_fd()]);
        drop(session);
        before.assert_same();
    });
}

#[test]
fn a_slot_is_added_and_removed_a_thousand_times() {
    attack(|target| {
        let file = memfd(LEN);
        let mut session = session(target);
        let region = slot([0x1000, 0x1000, 0x1000, 0]);
        let before = Census::now();
        for _ in 0..1000 {
            session
                .request(request::ADD_MEM_REG, &region, &[file.as_fd()])
                .unwrap();
            session.request(request::REM_MEM_REG, &region, &[]).unwrap();
        }
        before.assert_same();
        must_fail(&mut session, request::REM_MEM_REG, &region, &[]);
    });
}

#[test]
fn descriptors_of_a_slot_are_none_or_too_many() {
    attack(|target| {
        let file = memfd(LEN);
        let region = slot([0x1000, 0x1000, 0x1000, 0]);
        let before = Census::now();
        for count in [0, 2, 8, 32] {
            let fds = vec![file.as_fd(); count];
            must_fail(&mut session(target), request::ADD_MEM_REG, &region, &fds);
        }
        before.assert_same();
    });
}

#[test]
fn a_dirty_log_is_empty_too_short_or_out_of_its_file() {
    attack(|target| {
        let (file, memory) = (memfd(4096), memfd(LEN));
        let before = Census::now();
        for (size, offset) in [
            (0, 0),
            (4097, 0),
            (4096, 1),
            (u64::MAX, 1),
            (1, u64::MAX),
            (1 << 60, 0),
        ] {
            let mut session = session(target);
            // Once without memory, and once with more memory than one byte of a log covers.
            must_fail(
                &mut session,
                request::SET_LOG_BASE,
                &log(size, offset),
                &[file.as_fd()],
            );
        }
        let mut session = session(target);
        let region = slot([1 << 40, LEN, 0, 0]);
        assert_eq!(
            say(
                &mut session,
                request::ADD_MEM_REG,
                &region,
                &[memory.as_fd()]
            ),
            Fate::Accepted
        );
        must_fail(
            &mut session,
            request::SET_LOG_BASE,
            &log(4096, 0),
            &[file.as_fd()],
        );
        drop(session);
        before.assert_same();
    });
}

#[test]
fn an_inflight_region_has_impossible_numbers() {
    attack(|target| {
        let file = memfd(1 << 20);
        let before = Census::now();
        for (queues, ring_size) in [
            (0, 256),
            (2, 0),
            (2, 3),
            (2, 65_535),
            (65_535, 32_768),
            (65_535, 256),
            (5, 256),
        ] {
            let payload = inflight(0, 0, queues, ring_size);
            must_fail(
                &mut session(target),
                request::GET_INFLIGHT_FD,
                &payload,
                &[],
            );
            let payload = inflight(1 << 20, 0, queues, ring_size);
            must_fail(
                &mut session(target),
                request::SET_INFLIGHT_FD,
                &payload,
                &[file.as_fd()],
            );
        }
        for (size, offset) in [
            (1, 0),
            (1 << 20, 1 << 20),
            (u64::MAX, 64),
            (1 << 20, u64::MAX),
            (1 << 20, 1),
        ] {
            let payload = inflight(size, offset, 2, 256);
            must_fail(
                &mut session(target),
                request::SET_INFLIGHT_FD,
                &payload,
                &[file.as_fd()],
            );
        }
        before.assert_same();
    });
}

/// The front end can write the inflight region: its contents are only hints.
#[test]
fn an_inflight_region_is_full_of_nonsense() {
    attack(|target| {
        for byte in [0x00, 0x01, 0x7f, 0x80, 0xff] {
            let mut session = session(target);
            let file = memfd(1 << 16);
            rustix::io::pwrite(&file, &vec![byte; 1 << 16], 0).unwrap();
            let payload = inflight(1 << 16, 0, 4, 256);
            let _ = say(
                &mut session,
                request::SET_INFLIGHT_FD,
                &payload,
                &[file.as_fd()],
            );
            let guest = crosspoint_guest::Guest::new(GuestOptions::default()).unwrap();
            if session.set_mem_table(guest.memory()).is_ok() {
                let start = guest.memory().user_address(0).unwrap();
                for index in 0..2 {
                    let _ = session.set_vring_state(request::SET_VRING_NUM, index, 256);
                    let _ =
                        session.set_vring_addr(index, [start, start + 0x4000, start + 0x8000, 0]);
                    let _ = session.set_vring_fd(request::SET_VRING_KICK, index, None);
                    let _ = session.enable_vring(index, true);
                }
            }
            target.send_to_it(2);
            target.others_go_on();
        }
    });
}

#[test]
fn a_log_is_sent_without_a_descriptor() {
    attack(|target| {
        let mut session = session(target);
        session
            .send(request::SET_LOG_BASE, FLAG_VERSION, &log(4096, 0), &[])
            .unwrap();
        assert!(session.wait_closed(crate::rig::PATIENCE).unwrap());
    });
}
