//! Kick and call descriptors that are not eventfds, or are made to block or harm their writer.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crosspoint_guest::EventFd;
use crosspoint_guest::message::request;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::OFlags;

use crosspoint_guest::{Guest, GuestOptions};

use crate::rig::{Census, PATIENCE, Target, arrives, attack, attack_alone, frame, memfd, until};

/// A descriptor with a name, and another one that must live as long.
type Odd = (&'static str, OwnedFd, Option<OwnedFd>);

/// All kinds of descriptors other than eventfds.
fn odd_ones() -> Vec<Odd> {
    let open = |path: &str| {
        let both = File::options().read(true).write(true).open(path);
        OwnedFd::from(both.or_else(|_| File::open(path)).unwrap())
    };
    let pipes = || rustix::pipe::pipe().unwrap();
    let ((read, w), (r, write), (read_alone, _), (_, write_alone)) =
        (pipes(), pipes(), pipes(), pipes());
    let (socket, peer) = UnixStream::pair().unwrap();
    let (socket_alone, _) = UnixStream::pair().unwrap();
    let poll = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).unwrap();
    let timer = rustix::time::timerfd_create(
        rustix::time::TimerfdClockId::Monotonic,
        rustix::time::TimerfdFlags::CLOEXEC,
    );
    let timer = timer.unwrap();
    let us = rustix::process::getpid();
    let process = rustix::process::pidfd_open(us, rustix::process::PidfdFlags::empty()).unwrap();
    let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    vec![
        ("the reading end of a pipe", read, Some(w)),
        ("the writing end of a pipe", write, Some(r)),
        ("a pipe that no process writes", read_alone, None),
        ("a pipe that no process reads", write_alone, None),
        ("a full pipe", full_pipe().0, Some(full_pipe().1)),
        ("a socket", socket.into(), Some(peer.into())),
        ("a socket whose peer is gone", socket_alone.into(), None),
        ("/dev/zero", open("/dev/zero"), None),
        ("/dev/null", open("/dev/null"), None),
        ("a directory", open("/tmp"), None),
        ("a file", tempfile::tempfile().unwrap().into(), None),
        ("a memory file", memfd(4096), None),
        ("an epoll", poll, None),
        ("a timer", timer, None),
        ("a process", process, None),
        ("a UDP socket", datagrams.into(), None),
        ("/dev/fuse", open("/dev/fuse"), None),
    ]
}

/// A full pipe in blocking mode.
fn full_pipe() -> (OwnedFd, OwnedFd) {
    let (read, write) = rustix::pipe::pipe().unwrap();
    rustix::fs::fcntl_setfl(&write, OFlags::NONBLOCK).unwrap();
    while rustix::io::write(&write, &[0; 4096]).is_ok() {}
    rustix::fs::fcntl_setfl(&write, OFlags::empty()).unwrap();
    (write, read)
}

/// For each odd descriptor on vring `index`: either the attacked port works or it does not; all other ports work.
fn with(target: &Target<'_>, number: u32, index: u32) {
    for (what, fd, _partner) in odd_ones() {
        println!("{what}");
        let mut guest = target.guest();
        let odd = EventFd::from_fd(fd);
        let _ = guest
            .session()
            .unwrap()
            .set_vring_fd(number, index, Some(&odd));
        target.send_to_it(20);
        let _ = guest.send(0, &[&[0xff; 60][..]; 8]);
        target.others_go_on();
        drop(guest);
    }
}

#[test]
fn kicks_are_no_eventfds() {
    attack(|target| {
        (0..2).for_each(|index| with(target, request::SET_VRING_KICK, index));
    });
}

#[test]
fn calls_are_no_eventfds() {
    attack(|target| {
        (0..2).for_each(|index| with(target, request::SET_VRING_CALL, index));
    });
}

#[test]
fn errors_go_to_no_eventfd() {
    attack(|target| with(target, request::SET_VRING_ERR, 0));
}

/// The front end chooses the file that is written to. It may be another process's file that the front end may write to
/// and the switch must not.
#[test]
fn a_call_writes_to_a_file() {
    attack(|target| {
        let mut guest = target.guest();
        let file = memfd(0);
        let call = EventFd::from_fd(file.try_clone().unwrap());
        let _ = guest
            .session()
            .unwrap()
            .set_vring_fd(request::SET_VRING_CALL, 0, Some(&call));
        target.send_to_it(20);
        assert_eq!(
            rustix::fs::fstat(&file).unwrap().st_size,
            0,
            "bytes written to a file"
        );
    });
}

fn full_eventfd() -> OwnedFd {
    let full = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
    rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    full
}

#[test]
fn the_call_is_full() {
    attack(|target| {
        let mut guest = target.guest();
        let full = full_eventfd();
        // It arrives in blocking mode; the switch makes it nonblocking.
        rustix::fs::fcntl_setfl(&full, OFlags::empty()).unwrap();
        let call = EventFd::from_fd(full);
        guest
            .session()
            .unwrap()
            .set_vring_fd(request::SET_VRING_CALL, 0, Some(&call))
            .unwrap();
        target.send_to_it(20);
        target.others_go_on();
    });
}

/// O_NONBLOCK belongs to the open file description, which both sides share: the front end can clear it again.
#[test]
fn the_call_is_made_to_block_after_it_was_given() {
    attack(|target| {
        let mut guest = target.guest();
        let full = full_eventfd();
        let call = EventFd::from_fd(full.try_clone().unwrap());
        guest
            .session()
            .unwrap()
            .set_vring_fd(request::SET_VRING_CALL, 0, Some(&call))
            .unwrap();
        rustix::fs::fcntl_setfl(&full, OFlags::empty()).unwrap();
        let sent = target.partner().send(0, &[&frame(0xff, 22, 1, 60)]);
        assert_eq!(sent.unwrap(), 1);
        let moved = target.others_move_within(PATIENCE);
        // The blocked writer is released before any assertion.
        rustix::fs::fcntl_setfl(&full, OFlags::NONBLOCK).unwrap();
        for _ in 0..100 {
            let _ = rustix::io::read(&full, &mut [0; 8]);
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(moved, "the others waited for a call");
    });
}

#[test]
fn descriptors_are_exchanged_without_pause() {
    attack(|target| {
        let mut guest = target.guest();
        let before = Census::now();
        for number in 0..1000 {
            let event = (number % 3 > 0).then(|| EventFd::new().unwrap());
            let session = guest.session().unwrap();
            session
                .set_vring_fd(request::SET_VRING_CALL, number % 2, event.as_ref())
                .unwrap();
            session
                .set_vring_fd(request::SET_VRING_KICK, number % 2, event.as_ref())
                .unwrap();
            session
                .set_vring_fd(request::SET_VRING_ERR, number % 2, event.as_ref())
                .unwrap();
        }
        for index in 0..2 {
            let event = guest.kick_event(index).unwrap();
            for number in [request::SET_VRING_CALL, request::SET_VRING_KICK] {
                let index = index as u32;
                guest
                    .session()
                    .unwrap()
                    .set_vring_fd(number, index, Some(&event))
                    .unwrap();
            }
        }
        before.assert_same();
    });
}

/// The same eventfd for everything: each event wakes all rings, and none is lost.
#[test]
fn all_descriptors_are_the_same() {
    attack(|target| {
        let mut guest = target.guest();
        let event = EventFd::new().unwrap();
        for index in 0..2 {
            for number in [request::SET_VRING_CALL, request::SET_VRING_KICK] {
                guest
                    .session()
                    .unwrap()
                    .set_vring_fd(number, index, Some(&event))
                    .unwrap();
            }
        }
        target.send_to_it(20);
        let _ = event.as_fd();
        target.others_go_on();
    });
}

/// Each frame of a guest arrives although the worker sleeps before it and nothing wakes it.
fn is_polled(target: &Target<'_>, guest: &mut Guest) {
    assert_eq!(target.property("polled_queues").as_deref(), Some("0"));
    for number in 0..5 {
        std::thread::sleep(Duration::from_millis(20));
        let sent = frame(0xff, 21, number, 100);
        assert_eq!(guest.send(0, &[&sent]).unwrap(), 1);
        assert!(arrives(&mut target.partner(), &sent), "frame {number}");
    }
}

/// The bit "no descriptor": the front end asks for its rings to be polled.
#[test]
fn a_guest_without_a_kick_is_served_by_a_worker_that_sleeps() {
    attack_alone(|target| {
        let mut guest = target.guest_with(GuestOptions {
            polling: true,
            ..GuestOptions::default()
        });
        is_polled(target, &mut guest);
    });
}

/// A kick that is not an eventfd wakes no worker, and its queue loses no frame.
#[test]
fn a_guest_whose_kick_is_no_eventfd_is_served_by_a_worker_that_sleeps() {
    attack_alone(|target| {
        for (what, fd, _partner) in odd_ones() {
            println!("{what}");
            let mut guest = target.guest();
            let kick = EventFd::from_fd(fd);
            let session = guest.session().unwrap();
            session
                .set_vring_fd(request::SET_VRING_KICK, 1, Some(&kick))
                .unwrap();
            is_polled(target, &mut guest);
        }
    });
}

/// A semaphore eventfd adds like any other.
#[test]
fn the_call_is_a_semaphore() {
    attack(|target| {
        let mut guest = target.guest();
        let event = eventfd(0, EventfdFlags::SEMAPHORE | EventfdFlags::NONBLOCK).unwrap();
        let call = EventFd::from_fd(event);
        let session = guest.session().unwrap();
        session
            .set_vring_fd(request::SET_VRING_CALL, 0, Some(&call))
            .unwrap();
        target.send_to_it(20);
        assert!(call.take().unwrap() > 0, "it is called");
        target.others_go_on();
    });
}

/// User-Mode Linux gives pipes: the port's thread writes to them.
#[test]
fn a_pipe_is_called() {
    attack(|target| {
        let mut guest = target.guest();
        let (read, write) = rustix::pipe::pipe().unwrap();
        rustix::fs::fcntl_setfl(&read, OFlags::NONBLOCK).unwrap();
        let call = EventFd::from_fd(write);
        let session = guest.session().unwrap();
        session
            .set_vring_fd(request::SET_VRING_CALL, 0, Some(&call))
            .unwrap();
        for number in 0..20 {
            while rustix::io::read(&read, &mut [0; 512]).is_ok() {}
            target.send_to_it(1);
            let called = until(PATIENCE, || rustix::io::read(&read, &mut [0; 8]).is_ok());
            assert!(called, "frame {number}");
            let _ = guest.receive(0).unwrap();
        }
        let calls = target.property("calls").expect("it is shown");
        assert!(calls.contains("not an eventfd"), "{calls}");
    });
}
