//! Malformed messages: headers, sizes, versions, numbers, attached descriptors.

use std::os::fd::AsFd;
use std::time::Duration;

use crosspoint_guest::message::{FLAG_NEED_REPLY, FLAG_REPLY, FLAG_VERSION, encode, request};

use crate::rig::{
    Census, Fate, PATIENCE, attack, hear, memfd, must_fail, say, table, vring_fd, words,
};

/// All requests of the specification with a fixed size, and their sizes.
const SIZES: &[(u32, usize)] = &[
    (request::GET_FEATURES, 0),
    (request::SET_FEATURES, 8),
    (request::SET_OWNER, 0),
    (request::RESET_OWNER, 0),
    (request::SET_LOG_BASE, 16),
    (request::SET_VRING_NUM, 8),
    (request::SET_VRING_ADDR, 40),
    (request::SET_VRING_BASE, 8),
    (request::GET_VRING_BASE, 8),
    (request::SET_VRING_KICK, 8),
    (request::SET_VRING_CALL, 8),
    (request::SET_VRING_ERR, 8),
    (request::GET_PROTOCOL_FEATURES, 0),
    (request::SET_PROTOCOL_FEATURES, 8),
    (request::GET_QUEUE_NUM, 0),
    (request::SET_VRING_ENABLE, 8),
    (request::SEND_RARP, 8),
    (request::NET_SET_MTU, 8),
    (request::GET_INFLIGHT_FD, 24),
    (request::SET_INFLIGHT_FD, 24),
    (request::RESET_DEVICE, 0),
    (request::GET_MAX_MEM_SLOTS, 0),
    (request::ADD_MEM_REG, 40),
    (request::REM_MEM_REG, 40),
    (request::SET_STATUS, 8),
    (request::GET_STATUS, 0),
];

#[test]
fn a_header_is_cut_off() {
    attack(|target| {
        let whole = encode(request::GET_FEATURES, FLAG_VERSION, &[]);
        for len in 1..whole.len() {
            // Incomplete at first, then disconnected.
            let mut session = target.connect();
            session.send_bytes(&whole[..len], &[]).unwrap();
            target.others_go_on();
        }
    });
}

#[test]
fn a_payload_is_cut_off() {
    attack(|target| {
        for (number, size) in SIZES.iter().filter(|(_, size)| *size > 0) {
            let whole = encode(*number, FLAG_VERSION, &vec![0; *size]);
            let mut session = target.negotiated();
            session.send_bytes(&whole[..whole.len() - 1], &[]).unwrap();
            drop(session);
        }
        let whole = encode(
            request::SET_MEM_TABLE,
            FLAG_VERSION,
            &table(&[[0, 0x1000, 0, 0]]),
        );
        let mut session = target.negotiated();
        session
            .send_bytes(&whole[..20], &[memfd(0x1000).as_fd()])
            .unwrap();
        target.others_go_on();
    });
}

#[test]
fn a_payload_has_the_wrong_size() {
    attack(|target| {
        for (number, size) in SIZES {
            for wrong in [0, 1, size.saturating_sub(1), size + 1, size + 8, 4096] {
                // Excess bytes of SET_VRING_ENABLE are ignored.
                let lenient = *number == request::SET_VRING_ENABLE && wrong > *size;
                if wrong != *size && !lenient {
                    must_fail(&mut target.negotiated(), *number, &vec![0; wrong], &[]);
                }
            }
        }
    });
}

#[test]
fn a_memory_table_has_the_wrong_size() {
    attack(|target| {
        let whole = table(&[[0, 0x1000, 0, 0], [0x1000, 0x1000, 0x1000, 0]]);
        let file = memfd(0x1000);
        for len in [0, 1, 7, 8, 40, whole.len() - 1, 4096] {
            let mut payload = whole.clone();
            payload.resize(len, 0);
            let fds = [file.as_fd(); 2];
            must_fail(
                &mut target.negotiated(),
                request::SET_MEM_TABLE,
                &payload,
                &fds,
            );
        }
    });
}

#[test]
fn a_size_is_absurd() {
    attack(|target| {
        for number in 0..50 {
            for size in [4097, 0x1_0000, 0x7fff_ffff, u32::MAX] {
                let mut session = target.connect();
                let header = words(&[number, FLAG_VERSION, size]);
                session.send_bytes(&header, &[]).unwrap();
                assert!(
                    session.wait_closed(PATIENCE).unwrap(),
                    "request {number} of {size} bytes"
                );
            }
        }
    });
}

/// Flags that no request may have: other versions, the reply bit, reserved bits.
const WRONG_FLAGS: [u32; 6] = [
    0,
    2,
    3,
    FLAG_VERSION | FLAG_REPLY,
    FLAG_VERSION | 1 << 4,
    u32::MAX,
];

#[test]
fn version_and_flags_are_wrong() {
    attack(|target| {
        let ours = [request::SET_MEM_TABLE, request::SET_VRING_ENABLE];
        for (number, size) in SIZES.iter().filter(|(number, _)| !ours.contains(number)) {
            for flags in WRONG_FLAGS {
                let mut session = target.negotiated();
                session.send(*number, flags, &vec![0; *size], &[]).unwrap();
                assert_eq!(
                    hear(&mut session),
                    Fate::Closed,
                    "request {number} with flags {flags:#x}"
                );
            }
        }
    });
}

#[test]
fn version_and_flags_of_a_memory_table_or_an_enable_are_wrong() {
    attack(|target| {
        let file = memfd(0x1000);
        for flags in WRONG_FLAGS {
            let mut session = target.negotiated();
            let payload = table(&[[0, 0x1000, 0, 0]]);
            let fds = [file.as_fd()];
            session
                .send(request::SET_MEM_TABLE, flags, &payload, &fds)
                .unwrap();
            assert!(
                session.wait_closed(PATIENCE).unwrap(),
                "a table with flags {flags:#x}"
            );
            let mut session = target.negotiated();
            session
                .send(request::SET_VRING_ENABLE, flags, &words(&[0, 1]), &[])
                .unwrap();
            assert!(
                session.wait_closed(PATIENCE).unwrap(),
                "an enable with flags {flags:#x}"
            );
        }
    });
}

#[test]
fn requests_are_unknown() {
    attack(|target| {
        for number in [
            0,
            26,
            27,
            28,
            29,
            30,
            41,
            42,
            43,
            44,
            45,
            99,
            0x7fff_ffff,
            u32::MAX,
        ] {
            for size in [0, 8, 100] {
                must_fail(&mut target.negotiated(), number, &vec![0; size], &[]);
            }
        }
    });
}

#[test]
fn bytes_are_random() {
    attack(|target| {
        let mut state = 1u64;
        for _ in 0..300 {
            let mut next = || {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                (state >> 33) as u32
            };
            let mut session = target.connect();
            // An existing request number, so that more than the header is parsed.
            let mut message = words(&[
                next() % 46,
                FLAG_VERSION | (next() % 2 * FLAG_NEED_REPLY),
                next() % 64,
            ]);
            message.extend((0..next() % 64).map(|_| next() as u8));
            let _ = session.send_bytes(&message, &[]);
        }
    });
}

#[test]
fn descriptors_come_with_requests_that_have_none() {
    attack(|target| {
        let none = [
            request::SET_MEM_TABLE,
            request::SET_LOG_BASE,
            request::SET_VRING_KICK,
            request::SET_VRING_CALL,
            request::SET_VRING_ERR,
            request::SET_INFLIGHT_FD,
            request::ADD_MEM_REG,
            request::REM_MEM_REG,
        ];
        let file = memfd(0x1000);
        let before = Census::now();
        for (number, size) in SIZES.iter().filter(|(number, _)| !none.contains(number)) {
            for count in [1, 8] {
                let mut session = target.negotiated();
                let fate = say(
                    &mut session,
                    *number,
                    &vec![0; *size],
                    &vec![file.as_fd(); count],
                );
                // SET_VRING_ENABLE is handled outside the crate, and attached descriptors are closed.
                let lenient = *number == request::SET_VRING_ENABLE;
                assert!(
                    lenient || fate == Fate::Closed,
                    "request {number}: {fate:?}"
                );
            }
        }
        before.assert_same();
    });
}

#[test]
fn descriptors_are_missing() {
    attack(|target| {
        let mut session = target.negotiated();
        must_fail(
            &mut session,
            request::SET_MEM_TABLE,
            &table(&[[0, 0x1000, 0, 0]]),
            &[],
        );
        for number in [
            request::SET_VRING_KICK,
            request::SET_VRING_CALL,
            request::SET_VRING_ERR,
        ] {
            must_fail(&mut target.negotiated(), number, &vring_fd(0, true), &[]);
        }
        for number in [
            request::SET_LOG_BASE,
            request::SET_LOG_FD,
            request::SET_BACKEND_REQ_FD,
        ] {
            must_fail(&mut target.negotiated(), number, &[0; 16], &[]);
        }
    });
}

#[test]
fn descriptors_are_too_many() {
    attack(|target| {
        let file = memfd(0x1000);
        let before = Census::now();
        let requests = [
            (request::SET_MEM_TABLE, table(&[[0, 0x1000, 0, 0]])),
            (request::SET_VRING_KICK, vring_fd(0, true).to_vec()),
            (request::SET_VRING_CALL, vring_fd(0, true).to_vec()),
            (request::SET_VRING_ERR, vring_fd(0, true).to_vec()),
            // One descriptor, though none was announced.
            (request::SET_BACKEND_REQ_FD, vec![]),
        ];
        for (number, payload) in &requests {
            for count in [2, 8, 9, 10, 31, 32] {
                let fds = vec![file.as_fd(); count];
                must_fail(&mut target.negotiated(), *number, payload, &fds);
            }
            // More than the crate accepts: it may wait for what it takes for the next message.
            for count in [33, 34, 64] {
                let mut session = target.negotiated();
                let fds = vec![file.as_fd(); count];
                let flags = FLAG_VERSION | FLAG_NEED_REPLY;
                session.send(*number, flags, payload, &fds).unwrap();
                let _ = session.wait_closed(Duration::from_millis(50));
            }
        }
        let absent = vring_fd(0, false);
        must_fail(
            &mut target.negotiated(),
            request::SET_VRING_KICK,
            &absent,
            &[file.as_fd()],
        );
        before.assert_same();
    });
}

/// Descriptors that come with the payload, after the header, belong to no message.
#[test]
fn descriptors_come_late() {
    attack(|target| {
        let file = memfd(0x1000);
        let before = Census::now();
        let whole = encode(
            request::SET_MEM_TABLE,
            FLAG_VERSION,
            &table(&[[0, 0x1000, 0, 0]]),
        );
        for cut in [12, 20] {
            for _ in 0..20 {
                let mut session = target.negotiated();
                session.send_bytes(&whole[..cut], &[]).unwrap();
                // The send fails if the switch has already closed the connection.
                let _ = session.send_bytes(&whole[cut..], &[file.as_fd(); 8]);
                assert!(session.wait_closed(PATIENCE).unwrap());
            }
        }
        before.assert_same();
    });
}

/// The descriptor for the channel of our own requests is not a socket.
#[test]
fn the_channel_back_is_no_socket() {
    attack(|target| {
        let before = Census::now();
        for _ in 0..10 {
            let mut session = target.negotiated();
            must_fail(
                &mut session,
                request::SET_BACKEND_REQ_FD,
                &[],
                &[memfd(8).as_fd()],
            );
        }
        before.assert_same();
    });
}
