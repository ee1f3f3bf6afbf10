//! What is under way when the switch is upgraded: front ends that connect, a migration, a quarantine, captures.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};

use crosspoint_guest::message::{protocol, request};
use crosspoint_guest::{Guest, GuestOptions};
use rustix::process::Signal;

use crate::harness::{
    Exchange, Lab, Switch, connect_pair, frame, guest, mac, ping_pong, s, wait_until,
};

const PAGE: usize = 4096;

/// Front ends connect, set up and leave all the time. Each sees at most that its connection ends, and can connect again; those
/// that are set up go on.
#[test]
fn front_ends_that_connect_during_upgrades_are_served() {
    let lab = Lab::new(s(90));
    let ports = ["g0", "g1", "visited", "peer"].map(|name| guest(&lab, name));
    let switch = Switch::start_supervised(&lab, &[1], &ports);
    let exchange = Exchange::start(&lab, &switch, ["g0", "g1"]);
    let mut peer = lab.connect("peer");
    let ends = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let visits = scope.spawn(|| {
            let (mut served, mut refused) = (0, 0);
            while !ends.load(Ordering::Relaxed) {
                let visitor = Guest::connect(lab.socket("visited"), GuestOptions::default());
                let Ok(mut visitor) = visitor else {
                    refused += 1;
                    continue;
                };
                // Whichever process has it, its frame goes to the other guest.
                let sent = frame(mac(41), mac(40), served, 300);
                assert_eq!(visitor.send(0, &[&sent]).expect("a ring"), 1);
                wait_until("the visitor's frame", s(10), || {
                    let frames = peer.receive(0).expect("a ring");
                    frames.iter().any(|(_, bytes)| *bytes == sent).then_some(())
                });
                served += 1;
            }
            (served, refused)
        });
        for _ in 0..20 {
            switch.must_upgrade();
            exchange.run(200);
        }
        ends.store(true, Ordering::Relaxed);
        let (served, refused) = visits.join().expect("visits");
        println!("{served} visits, {refused} connections ended early");
        assert!(served >= 5, "{served} visits");
        assert_eq!(refused, 0, "of {served} visits");
    });
    exchange.stop();
    switch.ledger();
}

/// A message of a front end (vhost-user, "Message specification"), and its answer if there is one. Version 1; bit 3 asks for an
/// acknowledgement.
fn exchange(stream: &UnixStream, request: u32, wants_ack: bool, payload: &[u8]) -> Option<u64> {
    let flags = 1 | u32::from(wants_ack) << 3;
    let head = [request, flags, payload.len() as u32].map(u32::to_ne_bytes);
    let mut stream = stream;
    stream
        .write_all(&[&head.concat(), payload].concat())
        .expect("the switch reads");
    if !wants_ack && !payload.is_empty() {
        return None;
    }
    let mut answer = [0; 20];
    stream
        .read_exact(&mut answer)
        .unwrap_or_else(|why| panic!("request {request} has no answer: {why}"));
    Some(u64::from_ne_bytes(
        answer[12..].try_into().expect("eight bytes"),
    ))
}

/// An upgrade before each of the messages with which a front end sets up: each is answered as if there had been none.
#[test]
fn each_message_of_a_front_end_that_sets_up_is_answered_by_the_new_process() {
    let lab = Lab::new(s(60));
    let switch = Switch::start_supervised(&lab, &[1], &[guest(&lab, "g0")]);
    for upgraded_before in 0..5 {
        let stream = UnixStream::connect(lab.socket("g0")).expect("the port listens");
        stream.set_read_timeout(Some(s(5))).expect("a time");
        wait_until("the connection", s(5), || {
            let lines = switch.log().matches("front end connected").count();
            (lines > upgraded_before).then_some(())
        });
        let mut offered = [0; 2];
        for step in 0..5 {
            if step == upgraded_before {
                switch.must_upgrade();
            }
            let say =
                |request, wants_ack, payload: &[u8]| exchange(&stream, request, wants_ack, payload);
            match step {
                0 => offered[0] = say(request::GET_FEATURES, false, &[]).expect("features"),
                1 => {
                    offered[1] = say(request::GET_PROTOCOL_FEATURES, false, &[]).expect("features")
                }
                2 => {
                    assert!(offered[1] & protocol::REPLY_ACK != 0);
                    let wanted = offered[1] & (protocol::REPLY_ACK | protocol::MQ);
                    say(request::SET_PROTOCOL_FEATURES, false, &wanted.to_ne_bytes());
                }
                3 => assert_eq!(say(request::SET_OWNER, true, &[]), Some(0)),
                _ => {
                    let payload = offered[0].to_ne_bytes();
                    assert_eq!(say(request::SET_FEATURES, true, &payload), Some(0));
                }
            }
        }
    }
}

/// A log that began before an upgrade has each page that the new process writes.
#[test]
fn a_migration_that_is_under_way_misses_no_page_of_the_new_process() {
    for packed in [false, true] {
        let lab = Lab::new(s(60));
        let switch =
            Switch::start_supervised(&lab, &[1], &["g0", "g1"].map(|name| guest(&lab, name)));
        let mut options = GuestOptions {
            packed,
            ..GuestOptions::default()
        };
        options.protocol_features |= protocol::LOG_SHMFD;
        let [mut a, mut b] = connect_pair(&lab, &switch, ["g0", "g1"], &options);
        ping_pong(&mut a, &mut b, 1);
        let log = b.start_dirty_log().expect("a migration begins");
        for round in 0..3 {
            switch.must_upgrade();
            let _ = log.take();
            // More frames than the ring has buffers.
            for burst in 0..20 {
                let number = |frame: u32| 10_000 * (round + 1) + 32 * burst + frame;
                let sent: Vec<Vec<u8>> = (0..32)
                    .map(|index| frame(mac(2), mac(1), number(index), 1000))
                    .collect();
                let sent: Vec<&[u8]> = sent.iter().map(Vec::as_slice).collect();
                assert_eq!(a.send(0, &sent).expect("a ring"), 32);
                let got = b.receive_at_least(0, 32, s(5)).expect("a ring");
                assert_eq!(got.len(), 32);
            }
            // So a frame was written to each buffer, of which each page has a part.
            let area = b.receive_queue(0).expect("a ring").area();
            let (base, len) = (area.guest_address() as usize, area.len());
            let pages = base.div_ceil(PAGE)..(base + len) / PAGE;
            let clean: Vec<usize> = pages
                .filter(|page| !log.is_dirty((page * PAGE) as u64))
                .collect();
            assert!(clean.is_empty(), "written, and clean: pages {clean:?}");
        }
        b.stop_dirty_log().expect("it ends");
        ping_pong(&mut a, &mut b, 9000);
    }
}

/// A guest in quarantine stays there, and its way out is the same.
#[test]
fn a_quarantined_guest_stays_so_through_upgrades_until_it_reconnects() {
    let lab = Lab::new(s(60));
    let ports = ["g0", "g1", "liar", "peer"].map(|name| guest(&lab, name));
    let switch = Switch::start_supervised(&lab, &[1], &ports);
    let exchange = Exchange::start(&lab, &switch, ["g0", "g1"]);
    let (mut liar, mut peer) = (lab.connect("liar"), lab.connect("peer"));
    for number in 0..3 {
        switch.wait_up(&["liar", "peer"]);
        ping_pong(&mut liar, &mut peer, number);
        let queue = liar.transmit_queue(0).expect("a queue");
        let runaway = queue.ring().avail_idx().wrapping_add(5000);
        queue.ring().set_avail_idx(runaway);
        // In the first round the worker finds it while the new process prepares, or after that.
        if number > 0 {
            switch.wait_quarantined("entries ahead");
        }
        switch.must_upgrade();
        exchange.run(500);
        switch.wait_quarantined("entries ahead");
        liar.disconnect();
        switch.wait_down(&["liar"]);
        liar.reset(0);
        liar.reconnect().expect("the guest connects again");
    }
    switch.wait_up(&["liar", "peer"]);
    ping_pong(&mut liar, &mut peer, 10);
    exchange.stop();
    switch.ledger();
}

/// A capture ends with its totals and the reason.
#[test]
fn an_upgrade_ends_captures_in_order_and_says_so() {
    let lab = Lab::new(s(60));
    let switch = Switch::start_supervised(&lab, &[1], &["g0", "g1"].map(|name| guest(&lab, name)));
    let exchange = Exchange::start(&lab, &switch, ["g0", "g1"]);
    let file = lab.dir().join("frames.pcapng");
    let words = ["capture", "--write", file.to_str().expect("a plain path")];
    let mut capture = switch.start_command("capture", &words);
    wait_until("the capture", s(10), || {
        switch.log().contains("a capture has started").then_some(())
    });
    exchange.run(500);
    switch.must_upgrade();
    let status = capture.wait(s(10)).expect("it ends");
    let said = capture.log();
    assert!(status.success(), "{said}");
    assert!(
        said.contains(" captured, ") && said.contains("the switch was upgraded"),
        "{said}"
    );
    // The next one is of the new process.
    let mut capture = switch.start_command("capture", &["capture", "--count", "10"]);
    exchange.run(500);
    assert!(
        capture.wait(s(10)).is_some_and(|status| status.success()),
        "{}",
        capture.log()
    );
    capture.signal(Signal::INT);
    exchange.stop();
}
