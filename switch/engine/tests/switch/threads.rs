//! Real workers: guests come and go without effect on the others.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crosspoint_engine::observe::counters::PortCounters;
use crosspoint_engine::snapshot::Egress;
use crosspoint_engine::snapshot::Snapshot;
use crosspoint_engine::worker::Idle;
use crosspoint_engine::worker::Update;
use crosspoint_guest::EventFd;

use crate::checks::{assert_balanced, ledger_of};
use crate::floor::{Change, Floor, publish, wait_for};
use crate::frames::{Flow, host, trailer};
use crate::ports::{Driver, PortOptions, port};

const ROUNDS: usize = 500;
/// Frames that one guest may have in flight: fewer than the other guest has buffers.
const WINDOW: u64 = 32;
const COMER: u8 = 2;

fn attach(floor: &mut Floor, number: u16, kick: &EventFd) -> (Driver, Arc<PortCounters>) {
    let workers = floor.links.len();
    let (mut driver, port) = port(number, &PortOptions::default(), workers);
    driver.post_all();
    let (worker, counters) = (usize::from(number) % workers, port.view.counters.clone());
    let waker = &floor.links[worker].waker;
    waker.register_kick((number, 0), kick).unwrap();
    let change = Change {
        port: Some((number, port.view)),
        add: vec![(worker, port.stream)],
        ..Change::default()
    };
    let back = floor.change(change);
    assert_came_back(back, &[]);
    (driver, counters)
}

fn detach(floor: &mut Floor, number: u16, kick: &EventFd) {
    let worker = usize::from(number) % floor.links.len();
    let mut view = floor.view.port(number).unwrap().clone();
    view.egress = Egress::Down;
    let change = Change {
        port: Some((number, view)),
        remove: vec![(worker, (number, 0))],
        ..Change::default()
    };
    let back = floor.change(change);
    assert_came_back(back, &[(worker, (number, 0))]);
    floor.links[worker].waker.unregister(kick).unwrap();
}

/// Each worker has returned its old snapshot, the streams to remove, and nothing else.
fn assert_came_back(
    (back, replaced): (Vec<Update>, Arc<Snapshot>),
    removed: &[(usize, (u16, u16))],
) {
    for (worker, update) in back.into_iter().enumerate() {
        assert!(Arc::ptr_eq(&update.view, &replaced));
        assert!(update.add.is_empty() && update.streams.is_empty());
        let ids: Vec<_> = update.removed.iter().map(|s| (worker, s.id)).collect();
        let expected = removed.iter().filter(|(of, _)| *of == worker);
        assert!(ids.iter().eq(expected), "worker {worker}: {ids:?}");
    }
    assert!(Arc::try_unwrap(replaced).is_ok(), "somebody has kept it");
}

/// Two guests that send each other as much as the window allows, and lose nothing.
struct Talkers {
    drivers: [Driver; 2],
    kicks: [Arc<EventFd>; 2],
    sent: [u64; 2],
    received: [u64; 2],
}

impl Talkers {
    fn turn(&mut self, all: &[AtomicU64; 2], may_send: bool) {
        for (me, all) in all.iter().enumerate() {
            let other = 1 - me;
            let start = self.sent[me];
            while may_send && self.sent[me] < self.received[other] + WINDOW {
                let flow = Flow::plain(host(me as u8), host(other as u8));
                self.drivers[me].send(&flow.frame(200, me as u32, 0, self.sent[me]));
                self.sent[me] += 1;
            }
            if self.sent[me] > start {
                publish(&mut self.drivers[me], &self.kicks[me]);
            }
            for frame in self.drivers[me].received().concat() {
                all.fetch_add(1, Ordering::Relaxed);
                let (source, _, number) = trailer(&frame);
                if source == other as u32 {
                    assert_eq!(number, self.received[me], "lost");
                    self.received[me] += 1;
                }
            }
        }
    }

    fn is_done(&self) -> bool {
        self.received == [self.sent[1], self.sent[0]]
    }
}

#[test]
fn five_hundred_comings_and_goings_cost_the_others_no_frame() {
    let mut floor = Floor::start(2, Idle::SleepAfter(100_000), 16, |run| run());
    let kicks: Vec<_> = (0..4).map(|_| Arc::new(EventFd::new().unwrap())).collect();
    let (a, a_counters) = attach(&mut floor, 0, &kicks[0]);
    let (b, b_counters) = attach(&mut floor, 1, &kicks[1]);
    let (mut caller, caller_counters) = attach(&mut floor, 3, &kicks[3]);
    let hosts = [(0, 0), (1, 1), (COMER, COMER), (3, 3)];
    for (mac, port) in hosts {
        floor.learn(host(mac), port.into());
    }
    let mut talkers = Talkers {
        drivers: [a, b],
        kicks: [kicks[0].clone(), kicks[1].clone()],
        sent: [0; 2],
        received: [0; 2],
    };
    let (stop, all) = (
        AtomicBool::new(false),
        [AtomicU64::new(0), AtomicU64::new(0)],
    );
    let mut comers = Vec::new();
    let (mut number, mut met) = (0, 0);
    std::thread::scope(|scope| {
        let talk = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                talkers.turn(&all, true);
                std::thread::yield_now();
            }
            wait_for("the last frames", || {
                talkers.turn(&all, false);
                talkers.is_done()
            });
        });
        let _stop = StopOnDrop(&stop);
        for _ in 0..ROUNDS {
            // Keeps the new guest's broadcasts from filling the two rings.
            wait_for("the two", || {
                let sent = |c: &PortCounters| c.sum(0, |c| &c.tx_frames);
                let seen = all.each_ref().map(|n| n.load(Ordering::Relaxed));
                assert!(!talk.is_finished(), "they have stopped talking");
                sent(&a_counters) <= seen[0] + 64 && sent(&b_counters) <= seen[1] + 64
            });
            let (mut comer, counters) = attach(&mut floor, COMER.into(), &kicks[2]);
            for _ in 0..4 {
                let flow = Flow::plain(host(COMER), [0xff; 6]);
                comer.send(&flow.frame(100, COMER.into(), 0, number));
                number += 1;
            }
            publish(&mut comer, &kicks[2]);
            // Another guest sends to it all the time, whether it is attached or not.
            caller.transmit.reap().unwrap();
            let flow = Flow::plain(host(3), host(COMER)).frame(1000, 3, 0, number);
            for _ in 0..32.min(caller.transmit.ring().free_descriptors()) {
                caller.send(&flow);
            }
            publish(&mut caller, &kicks[3]);
            caller.received();
            met += comer.received().concat().len();
            detach(&mut floor, COMER.into(), &kicks[2]);
            let memory = Arc::strong_count(&comer.guest.shared);
            assert_eq!(memory, 1, "something of a guest that left is still held");
            met += comer.received().concat().len();
            // Read at the end: until the next guest comes, frames for it are counted as dropped here.
            comers.push(counters);
        }
        stop.store(true, Ordering::Relaxed);
        talk.join().unwrap();
    });
    wait_for("the caller", || {
        publish(&mut caller, &kicks[3]);
        caller.transmit.reap().unwrap();
        caller.transmit.ring().outstanding() == 0
    });
    floor.stop();
    let mut ledgers = vec![
        ledger_of(&a_counters),
        ledger_of(&b_counters),
        ledger_of(&caller_counters),
    ];
    for (me, ledger) in ledgers.iter().enumerate().take(2) {
        assert_eq!(ledger.dropped, 0);
        assert_eq!(ledger.rx.0, talkers.sent[me]);
    }
    assert!(talkers.sent.iter().all(|sent| *sent > ROUNDS as u64));
    assert!(met > ROUNDS, "the newcomers got {met} frames");
    ledgers.extend(comers.iter().map(|counters| ledger_of(counters)));
    assert_balanced(&ledgers);
}

/// Stops the threads also when the test fails.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
