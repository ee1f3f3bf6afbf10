//! Front ends that connect and disconnect.

use std::time::Duration;

use crosspoint_guest::message::{FLAG_VERSION, request};
use std::os::unix::net::UnixStream;

use crate::rig::{Census, PATIENCE, attack, until};

#[test]
fn a_thousand_connect_and_close() {
    attack(|target| {
        let before = Census::now();
        for _ in 0..1000 {
            // The listener's backlog is limited; when it is full, the attacker tries again.
            assert!(until(PATIENCE, || UnixStream::connect(target.path()).is_ok()));
        }
        before.assert_same();
    });
}

/// One after the other: each is served, sends nothing, and stays for a moment.
#[test]
fn a_thousand_connect_and_say_nothing() {
    attack(|target| {
        let before = Census::now();
        let mut held = std::collections::VecDeque::new();
        for _ in 0..1000 {
            let silent = until(PATIENCE, || match UnixStream::connect(target.path()) {
                Ok(stream) => {
                    held.push_back(stream);
                    true
                }
                Err(_) => false,
            });
            assert!(silent);
            if held.len() > 50 {
                held.pop_front();
            }
        }
        target.others_go_on();
        drop(held);
        before.assert_same();
    });
}

/// A front end that sends requests and never reads: replies fill its socket.
#[test]
fn a_client_reads_no_replies() {
    attack(|target| {
        let mut session = target.connect();
        for _ in 0..500 {
            // Once its own send buffer is full, a send would block.
            if session
                .send(request::GET_FEATURES, FLAG_VERSION, &[], &[])
                .is_err()
            {
                break;
            }
        }
        target.others_go_on();
    });
}

#[test]
fn a_guest_attaches_and_goes_a_hundred_times_in_mid_traffic() {
    attack(|target| {
        let before = Census::now();
        for _ in 0..100 {
            let mut guest = target.guest();
            let _ = guest.send(0, &[&[0xff; 100][..]; 16]);
            target.send_to_it(1);
            drop(guest);
        }
        before.assert_same();
        std::thread::sleep(Duration::from_millis(50));
    });
}
